"""Pairs gathered from many files, and the one data set and the numbers that they become."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from simulate.errors import InputError
from simulate.shards import Band, Pairs

from .degrade import SAME_SCALE, Blur, OnePair

CLASSES = ("axion", "cdm", "none")


@dataclass
class Collection:
    """Pairs gathered so far, what they have in common, and what was left out and why."""

    pairs: list[OnePair] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    blurs: list[Blur] = field(default_factory=list)
    pixel_scale_arcsec: float | None = None
    units: set[str] = field(default_factory=set)
    instruments: set[tuple[str, str]] = field(default_factory=set)
    files: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def settle_scale(self, pixel_scale_arcsec: float, where: str) -> None:
        """All HR images share one pixel scale: the first one's."""
        if self.pixel_scale_arcsec is None:
            self.pixel_scale_arcsec = pixel_scale_arcsec
        if abs(pixel_scale_arcsec / self.pixel_scale_arcsec - 1) > SAME_SCALE:
            raise InputError(
                f"{where}: HR pixels of {pixel_scale_arcsec:.4f} arcsec, but others of this data set have "
                f"{self.pixel_scale_arcsec:.4f}; make two runs"
            )


def assemble(found: Collection, scale: int, kind: str) -> Pairs:
    """All pairs as one data set. Raises `InputError` if there are none."""
    if not found.pairs:
        reasons = "; ".join(f"{one['file']}: {one['reason']}" for one in found.skipped[:5])
        raise InputError(f"pairs: no image of the sources can be used. {reasons}")
    assert found.pixel_scale_arcsec is not None  # settled with the first pair
    pixel = found.pixel_scale_arcsec
    hr_names, lr_names = ({names[side] for names in found.instruments} for side in (0, 1))

    def stack(name: str, dtype: str) -> np.ndarray:
        return np.stack([getattr(pair, name) for pair in found.pairs])[:, None].astype(dtype)

    hr = stack("hr", "f4")
    return Pairs(
        hr=hr,
        hr_noisy=hr,
        hr_mask=stack("hr_mask", "?"),
        lr=stack("lr", "f4"),
        lr_noise=stack("lr_noise", "f4"),
        label=np.full(len(hr), -1, "i1"),
        index=np.arange(len(hr)),
        name=tuple(found.objects),
        classes=CLASSES,
        unit=", ".join(sorted(found.units)),
        hr_band=Band(", ".join(sorted(hr_names)), pixel, _join_psfs([blur.hr_psf for blur in found.blurs]), pixel),
        lr_band=Band(
            ", ".join(sorted(lr_names)),
            pixel * scale,
            _join_psfs([blur.lr_psf for blur in found.blurs]),
            pixel,
        ),
        kind=kind,
    )


def _join_psfs(psfs: list[np.ndarray]) -> np.ndarray:
    """(k,k) if all are the same, else (N,k,k) with smaller ones padded."""
    size = max(len(psf) for psf in psfs)
    padded = np.stack([np.pad(psf, (size - len(psf)) // 2) for psf in psfs])
    return padded[0] if (padded == padded[0]).all() else padded


def summarise(found: Collection, pairs: Pairs) -> dict[str, Any]:
    """The numbers of `metrics.json`."""
    peak = (pairs.lr / pairs.lr_noise).max(axis=(1, 2, 3))
    return {
        "count": len(pairs),
        "object_count": len(set(pairs.name)),
        "objects": dict(Counter(pairs.name)),
        "scale": pairs.scale,
        "hr_size": pairs.hr.shape[-1],
        "lr_size": pairs.lr.shape[-1],
        "hr_pixel_scale_arcsec": pairs.hr_band.pixel_scale_arcsec,
        "lr_pixel_scale_arcsec": pairs.lr_band.pixel_scale_arcsec,
        "unit": pairs.unit,
        "hr_instrument": pairs.hr_band.instrument,
        "lr_instrument": pairs.lr_band.instrument,
        "lr_peak_signal_to_noise": {
            name: round(float(np.percentile(peak, share)), 2)
            for name, share in (("low", 5), ("median", 50), ("high", 95))
        },
        "real_pixel_fraction": float(pairs.hr_mask.mean()),
        "files": found.files,
        "skipped": found.skipped,
    }
