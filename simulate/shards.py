"""The on-disk contract: HDF5 shards of image pairs and their manifest, written whole or not at all."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .errors import InputError

FORMAT_NAME = "sharplens-pairs"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
HR_IMAGES = ("hr", "hr_noisy", "hr_mask")
LR_IMAGES = ("lr", "lr_noise")
IMAGES = HR_IMAGES + LR_IMAGES
TRUTH_UNITS = {
    "convergence_macro": "critical surface density",
    "convergence_substructure": "critical surface density",
    "deflection": "arcsec",
    "source": "nJy",
    "lens_light": "nJy",
}
"""Truth maps, values at the centres of the HR pixels (nJy: times the pixel's area), before any PSF."""


@dataclass(frozen=True)
class Band:
    """What the images of one side of the pairs were taken with."""

    instrument: str
    pixel_scale_arcsec: float
    psf: np.ndarray
    """(k,k) if all samples share it, else (N,k,k); sums to 1, centred, odd-sized, without the pixel response."""
    psf_pixel_scale_arcsec: float


@dataclass(frozen=True)
class Pairs:
    """N pairs of images of the same sky. Fluxes are per pixel of their own image, in `unit`.

    `hr` is the noiseless truth for simulated pairs and the observation for observed ones (then `hr_noisy` equals it).
    `name` is the scene (JSON) of a simulated pair and the object's name of an observed one.
    """

    hr: np.ndarray  # (N,1,H,W) f4
    hr_noisy: np.ndarray  # (N,1,H,W) f4
    hr_mask: np.ndarray  # (N,1,H,W) bool, True where the pixel is real
    lr: np.ndarray  # (N,1,h,w) f4
    lr_noise: np.ndarray  # (N,1,h,w) f4, 1-sigma
    label: np.ndarray  # (N,) i1, index into `classes`; -1 where the kind is not known
    index: np.ndarray  # (N,) i8
    name: tuple[str, ...]
    classes: tuple[str, ...]
    unit: str
    hr_band: Band
    lr_band: Band
    kind: str  # "simulated", "real HR, degraded LR" or "observed HR, observed LR"
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    """Maps (N,C,H,W) f4 that no telescope sees, of simulated pairs on request: `TRUTH_UNITS`."""

    def __len__(self) -> int:
        return len(self.label)

    @property
    def scale(self) -> int:
        """HR pixels per LR pixel along one axis."""
        return int(self.hr.shape[-1] // self.lr.shape[-1])

    def select(self, rows: np.ndarray) -> "Pairs":
        """The pairs at `rows` (integer indices or a boolean mask)."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows)
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for key in (*IMAGES, "label", "index"):
            values[key] = values[key][rows]
        values["name"] = tuple(self.name[row] for row in rows)
        values["truth"] = {name: one[rows] for name, one in self.truth.items()}
        for key in ("hr_band", "lr_band"):
            band = values[key]
            if band.psf.ndim == 3:
                values[key] = replace(band, psf=band.psf[rows])
        return Pairs(**values)

    def hr_band_at(self, scale: int) -> Band:
        """The HR instrument with pixels so many times smaller than the LR pixels."""
        return replace(self.hr_band, pixel_scale_arcsec=self.hr_band.pixel_scale_arcsec * self.scale / scale)

    def at_scale(self, scale: int) -> "Pairs":
        """The pairs with HR pixels so many times smaller than the LR pixels, sums of those that there are.

        A sum of pixels is what a larger pixel sees behind the same optics. It is real where all of them are; truth maps
        are left out. Raises `ValueError` if `scale` does not divide that of the pairs.
        """
        if self.scale % scale:
            raise ValueError(f"pairs of scale {self.scale} cannot be made pairs of scale {scale}")
        if scale == self.scale:
            return self
        many = self.scale // scale

        def blocks(images: np.ndarray) -> np.ndarray:
            return images.reshape(*images.shape[:2], images.shape[2] // many, many, images.shape[3] // many, many)

        return replace(
            self,
            hr=blocks(self.hr).sum((3, 5)),
            hr_noisy=blocks(self.hr_noisy).sum((3, 5)),
            hr_mask=np.all(blocks(self.hr_mask), axis=(3, 5)),
            hr_band=self.hr_band_at(scale),
            truth={},
        )


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` on a temporary file beside `path`, flush it to disk, then rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_shard(path: Path, pairs: Pairs, provenance: Mapping[str, str | int]) -> None:
    """Write one shard, atomically. `provenance` becomes root attributes (config YAML, versions, seed, ...)."""
    write_atomically(path, lambda temporary: _write_hdf5(temporary, pairs, provenance))


def _write_hdf5(path: Path, pairs: Pairs, provenance: Mapping[str, str | int]) -> None:
    with h5py.File(path, "w", track_order=True) as file:
        file.attrs["format"] = FORMAT_NAME
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["kind"] = pairs.kind
        for key, value in provenance.items():
            file.attrs[key] = value
        for names, band, side in ((HR_IMAGES, pairs.hr_band, "hr"), (LR_IMAGES, pairs.lr_band, "lr")):
            for name in names:
                unit = "" if name == "hr_mask" else pairs.unit
                _write_images(file, name, getattr(pairs, name), unit, band)
            psf = file.create_dataset(f"psf_{side}", data=band.psf)
            psf.attrs["pixel_scale_arcsec"] = band.psf_pixel_scale_arcsec
        for name, maps in pairs.truth.items():
            _write_images(file, f"truth_{name}", maps, TRUTH_UNITS[name], pairs.hr_band)
        label = file.create_dataset("label", data=pairs.label.astype(np.int8))
        label.attrs["classes"] = list(pairs.classes)
        file.create_dataset("index", data=pairs.index.astype(np.int64))
        names_key = "scene" if pairs.kind == "simulated" else "object"
        file.create_dataset(names_key, data=list(pairs.name), dtype=h5py.string_dtype("utf-8"))


def _write_images(file: h5py.File, name: str, images: np.ndarray, unit: str, band: Band) -> None:
    # gzip, not lzf: lzf may pack the same pixels into other bytes, and the file's SHA-256 with them
    dataset = file.create_dataset(
        name,
        data=images,
        chunks=(1, *images.shape[1:]),
        compression="gzip",
        compression_opts=1,
        shuffle=True,
        fletcher32=True,
    )
    dataset.attrs["unit"] = unit
    dataset.attrs["pixel_scale_arcsec"] = band.pixel_scale_arcsec
    dataset.attrs["instrument"] = band.instrument


def read_shard(path: Path) -> Pairs:
    """Read one shard. Raises `InputError` that names the file (and dataset) if it is missing, damaged or incomplete."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT_NAME:
                raise InputError(f"{path}: not a {FORMAT_NAME} file (root attribute 'format' is missing or different)")
            found_version = int(file.attrs["format_version"])
            if found_version != FORMAT_VERSION:
                raise InputError(f"{path}: format version {found_version}, expected {FORMAT_VERSION}")
            return _read_hdf5(file)
    except KeyError as error:
        raise InputError(f"{path}: incomplete shard: {error.args[0]}") from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read as HDF5 ({error}); make the data again, or restore the file"
        ) from None


def _read_hdf5(file: h5py.File) -> Pairs:
    images = {name: file[name][()] for name in IMAGES}
    for name, image in images.items():
        if image.ndim != 4 or len(image) != len(file["label"]):
            raise KeyError(f"dataset {name!r} has shape {image.shape}, expected (N,1,H,W) with N={len(file['label'])}")
    kind = str(file.attrs["kind"])
    names_key = "scene" if kind == "simulated" else "object"
    return Pairs(
        **images,
        label=file["label"][()],
        index=file["index"][()],
        name=tuple(file[names_key].asstr()[()].tolist()),
        classes=tuple(str(one) for one in file["label"].attrs["classes"]),
        unit=str(file["hr"].attrs["unit"]),
        hr_band=_read_band(file, "hr"),
        lr_band=_read_band(file, "lr"),
        kind=kind,
        truth={name: file[f"truth_{name}"][()] for name in TRUTH_UNITS if f"truth_{name}" in file},
    )


def _read_band(file: h5py.File, side: str) -> Band:
    attributes, psf = file[side].attrs, file[f"psf_{side}"]
    return Band(
        instrument=str(attributes["instrument"]),
        pixel_scale_arcsec=float(attributes["pixel_scale_arcsec"]),
        psf=psf[()],
        psf_pixel_scale_arcsec=float(psf.attrs["pixel_scale_arcsec"]),
    )


def concatenate(parts: list[Pairs]) -> Pairs:
    """Join shards of one data set."""
    if len(parts) == 1:
        return parts[0]
    values = {field.name: getattr(parts[0], field.name) for field in fields(parts[0])}
    for key in (*IMAGES, "label", "index"):
        values[key] = np.concatenate([getattr(part, key) for part in parts])
    values["name"] = tuple(name for part in parts for name in part.name)
    values["truth"] = {name: np.concatenate([part.truth[name] for part in parts]) for name in parts[0].truth}
    for key in ("hr_band", "lr_band"):
        band = values[key]
        if band.psf.ndim == 3:
            psf = np.concatenate([getattr(part, key).psf for part in parts])
            values[key] = Band(band.instrument, band.pixel_scale_arcsec, psf, band.psf_pixel_scale_arcsec)
    return Pairs(**values)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a data set folder. Raises `InputError` if there is none or it is damaged."""
    path = folder / MANIFEST_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no data set here; run `pipeline simulate` (or `pipeline pairs`) first") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def manifest_sha256(folder: Path) -> str:
    """Identity of a data set: the hash of its manifest, which has the hashes of all shards. Raises `InputError`."""
    read_manifest(folder)
    return file_sha256(folder / MANIFEST_NAME)


def read_pairs(folder: Path, split: str) -> Pairs:
    """All pairs of one split ("train", "val", "test"; "observed" for observed pairs) of a data set folder."""
    entries = read_manifest(folder).get("splits", {}).get(split)
    if not entries:
        raise InputError(f"{folder / MANIFEST_NAME}: no split {split!r} in this data set")
    return concatenate([read_shard(folder / entry["file"]) for entry in entries])


def describe_shard(folder: Path, path: Path, index: np.ndarray) -> dict[str, Any]:
    """The manifest's entry for a shard that was just written."""
    return {
        "file": path.relative_to(folder).as_posix(),
        "sha256": file_sha256(path),
        "count": len(index),
        "index_first": int(index.min()),
        "index_last": int(index.max()),
    }


def write_manifest(folder: Path, splits: Mapping[str, list[dict[str, Any]]], provenance: Mapping[str, Any]) -> None:
    """Write the manifest: each shard's SHA-256, count and index range, and where the data came from."""
    content = {"format": FORMAT_NAME, "format_version": FORMAT_VERSION, **provenance, "splits": dict(splits)}
    write_json(folder / MANIFEST_NAME, content)


def verify_dataset(folder: Path) -> dict[str, int]:
    """Re-hash and read every shard of a data set; return the number of samples in each split.

    Raises `InputError` that names the first shard that is missing, changed, damaged, or holds images that are not
    finite, samples seen twice, or another number of samples than the manifest says.
    """
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for split, entries in read_manifest(folder)["splits"].items():
        for entry in entries:
            path = folder / entry["file"]
            if not path.is_file():
                raise InputError(f"{path}: missing, but the manifest lists it")
            digest = file_sha256(path)
            if digest != entry["sha256"]:
                raise InputError(f"{path}: SHA-256 is {digest}, the manifest says {entry['sha256']}; the file changed")
            pairs = read_shard(path)
            if len(pairs) != entry["count"]:
                raise InputError(f"{path}: {len(pairs)} samples, the manifest says {entry['count']}")
            for name in IMAGES:
                if not np.isfinite(getattr(pairs, name)).all():
                    raise InputError(f"{path}: dataset {name!r} holds values that are not finite")
            repeated = seen.intersection(pairs.index.tolist())
            if repeated:
                raise InputError(f"{path}: sample {min(repeated)} is also in another shard")
            seen.update(pairs.index.tolist())
            counts[split] = counts.get(split, 0) + len(pairs)
    return counts
