"""A telescope, camera and exposure: one small YAML each in configs/instruments."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from .errors import InputError
from .settings import Settings, parse_settings, read_yaml

NANOJANSKY_ZERO_POINT = 31.4
"""AB magnitude of a source of one nanojansky."""


class PSFSettings(Settings):
    """The optical point-spread function, without the response of the pixel."""

    kind: Literal["gaussian", "moffat"] = "gaussian"
    fwhm_arcsec: float = Field(gt=0)
    moffat_beta: float | None = Field(None, gt=1)

    @model_validator(mode="after")
    def _check(self) -> "PSFSettings":
        if (self.kind == "moffat") != (self.moffat_beta is not None):
            raise ValueError("moffat_beta belongs to kind: moffat, and is needed there")
        return self


class Instrument(Settings):
    """An instrument and observation, in the quantities of lenstronomy's `SingleBand`."""

    name: str
    pixel_scale_arcsec: float = Field(gt=0)
    psf: PSFSettings
    exposure_time_s: float = Field(gt=0)
    num_exposures: int = Field(1, ge=1)
    magnitude_zero_point: float
    """AB magnitude of a source of one electron a second."""
    sky_brightness_mag_arcsec2: float
    read_noise_electrons: float = Field(ge=0)

    @property
    def nanojansky_per_electron_s(self) -> float:
        """Flux density of a source of one electron a second."""
        return float(10 ** (-0.4 * (self.magnitude_zero_point - NANOJANSKY_ZERO_POINT)))


def psf_kernel(psf: PSFSettings, pixel_scale_arcsec: float) -> np.ndarray:
    """(k,k) odd-sized PSF sampled at pixels of this scale, sum 1, out to 3 FWHM (Moffat wings: 5)."""
    reach_arcsec = (3 if psf.kind == "gaussian" else 5) * psf.fwhm_arcsec
    half = int(np.ceil(reach_arcsec / pixel_scale_arcsec))
    axis = np.arange(-half, half + 1) * pixel_scale_arcsec
    squared = (axis[:, None] ** 2 + axis[None, :] ** 2) / psf.fwhm_arcsec**2
    if psf.kind == "gaussian":
        kernel = np.exp(-4 * np.log(2) * squared)
    else:
        assert psf.moffat_beta is not None
        kernel = (1 + 4 * (2 ** (1 / psf.moffat_beta) - 1) * squared) ** -psf.moffat_beta
    return kernel / kernel.sum()


def config_folder() -> Path:
    """Where the shipped configurations are: inside the installed package, or at the top of a checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def load_instrument(name: str | dict[str, Any]) -> Instrument:
    """An instrument by the name of its shipped YAML, by the path of one, or from its settings themselves."""
    if isinstance(name, dict):
        return parse_settings(Instrument, name, "instrument")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = config_folder() / "instruments" / f"{name}.yaml"
        if not path.is_file():
            known = sorted(one.stem for one in path.parent.glob("*.yaml"))
            raise InputError(f"unknown instrument {name!r}; known: {', '.join(known)}, or the path of a YAML file")
    return parse_settings(Instrument, read_yaml(path), str(path))
