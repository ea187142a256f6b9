"""The stage `pairs`: sources of real images in, one data set of observed pairs out."""

import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from simulate.errors import InputError
from simulate.progress import progress_bar
from simulate.provenance import provenance
from simulate.shards import MANIFEST_NAME, describe_shard, file_sha256, write_manifest, write_shard

from ..stages import METRICS_NAME, fingerprint, finished_metrics, write_metrics
from .collection import CLASSES, Collection, assemble, summarise
from .degrade import SAME_SCALE, degrade, make_blur
from .fits_images import RealImages, list_files, read_psf, read_real_images
from .hubble_deep_field import CAVEAT, picture_file, read_hubble_deep_field
from .psf import Psf, gaussian_psf
from .settings import FitsSettings, HubbleDeepFieldSettings, PairsSettings, TwoInstrumentSettings
from .two_instrument import read_field

DEGRADED, OBSERVED = "real HR, degraded LR", "observed HR, observed LR"
Task = tuple[HubbleDeepFieldSettings | FitsSettings | TwoInstrumentSettings, Path]


def pairs_run(run: Path, settings: PairsSettings, seed: int, resume: bool) -> dict[str, Any]:
    """Write RUN/pairs (split "observed") and its metrics.json from the sources; returns the metrics.

    Image i of the sources gets its noise from `default_rng([seed, i])`. With `resume`, nothing is done again if the
    settings, the files and the seed are the same. Raises `InputError` that names file and HDU for input that is wrong;
    files of a folder that do not serve are left out instead and listed under "skipped", with the reason.
    """
    folder = run / "pairs"
    tasks = _list_tasks(settings)
    files = sorted({*(path for _, path in tasks), *_psf_files(settings)})
    sources = [{"file": path.name, "sha256": file_sha256(path)} for path in files]
    identity = fingerprint(settings, seed=seed, files=json.dumps(sources))
    finished = finished_metrics(folder, identity, resume)
    if finished is not None:
        return finished
    if resume and (folder / METRICS_NAME).is_file():
        raise InputError(
            f"{folder}: holds pairs of other settings or files; use --fresh, or another --out to keep both"
        )
    inside = [path.name for path in files if folder.resolve() in path.resolve().parents]
    if inside:
        raise InputError(f"{folder}: {inside[0]} is a source and lies where the pairs are written; move it elsewhere")
    begun = perf_counter()
    found = Collection(pixel_scale_arcsec=settings.hr_pixel_scale_arcsec)
    with progress_bar("pairs", len(tasks)) as advance:
        for source, path in tasks:
            _add_file(found, settings, source, path, seed)
            advance(1, path.name)
    two = isinstance(settings.sources[0], TwoInstrumentSettings)
    pairs = assemble(found, settings.scale, OBSERVED if two else DEGRADED)
    caveats = [CAVEAT] if any(source.kind == "hubble_deep_field" for source in settings.sources) else []
    if len(found.units) > 1:
        caveats.append(
            f"The images have different units ({pairs.unit}) but share one data range: what counts are the paired "
            "differences in dB, not mean squared errors or the height of PSNR and SSIM."
        )
    about = {
        "kind": pairs.kind,
        "source": " + ".join(dict.fromkeys(_describe(source) for source in settings.sources)),
        "caveat": " ".join(caveats) or None,
    }
    origin = provenance(settings, seed)
    for name in (METRICS_NAME, MANIFEST_NAME):  # whatever they said is no longer true
        (folder / name).unlink(missing_ok=True)
    path = folder / "observed" / "shard-00000.h5"
    write_shard(path, pairs, origin)
    head = {**about, "classes": list(CLASSES), **origin, "sources": sources}
    write_manifest(folder, {"observed": [describe_shard(folder, path, pairs.index)]}, head)
    return write_metrics(folder, identity, perf_counter() - begun, {**about, **summarise(found, pairs)})


def _list_tasks(settings: PairsSettings) -> list[Task]:
    tasks: list[Task] = []
    for source in settings.sources:
        if isinstance(source, HubbleDeepFieldSettings):
            tasks.append((source, picture_file()))
        else:
            tasks += [(source, path) for path in list_files(source.path, source.pattern)]
    return tasks


def _psf_files(settings: PairsSettings) -> Iterator[Path]:
    chosen = [settings.lr_psf]
    for source in settings.sources:
        if isinstance(source, FitsSettings):
            chosen.append(source.psf)
        elif isinstance(source, TwoInstrumentSettings):
            chosen += [source.hr.psf, source.lr.psf]
    for psf in chosen:
        if psf is not None and psf.file is not None:
            yield from list_files(psf.file, "*.fits")


def _add_file(found: Collection, settings: PairsSettings, source: Any, path: Path, seed: int) -> None:
    """Add the pairs of one file; a file of a folder that does not serve is noted under `skipped`."""
    one_of_many = not isinstance(source, HubbleDeepFieldSettings) and source.path.is_dir()
    try:
        if isinstance(source, TwoInstrumentSettings):
            _add_field(found, settings, source, path)
        else:
            _add_images(found, settings, source, path, seed)
    except (InputError, OSError, ValueError, KeyError) as error:  # astropy raises any of them for odd headers
        if not one_of_many:
            raise InputError(str(error) if isinstance(error, InputError) else f"{path}: {error}") from error
        found.skipped.append({"file": path.name, "reason": str(error).replace(str(path), path.name)})


def _add_field(found: Collection, settings: PairsSettings, source: TwoInstrumentSettings, path: Path) -> None:
    observed = read_field(path, source, settings.hr_size, settings.scale)
    found.settle_scale(observed.hr_pixel_scale_arcsec, str(path))
    found.pairs += observed.tiles
    found.objects += [path.stem] * len(observed.tiles)
    found.blurs += [observed.blur] * len(observed.tiles)
    found.skipped += [{"file": path.name, "reason": reason} for reason in observed.left_out]
    if observed.tiles:
        found.units.add(observed.unit)
        found.instruments.add((source.hr.instrument, source.lr.instrument))
    found.files.append({"file": path.name, "count": len(observed.tiles), **observed.numbers})


def _add_images(
    found: Collection, settings: PairsSettings, source: HubbleDeepFieldSettings | FitsSettings, path: Path, seed: int
) -> None:
    if isinstance(source, FitsSettings):
        images = read_real_images(path, source)
        pixel = found.pixel_scale_arcsec or images.pixel_scale_arcsec
    else:
        pixel = found.pixel_scale_arcsec or source.pixel_scale_arcsec
    lr_pixel = pixel * settings.scale
    lr_psf = gaussian_psf(1.6 * lr_pixel) if settings.lr_psf is None else read_psf(settings.lr_psf, None, lr_pixel)
    if isinstance(source, HubbleDeepFieldSettings):
        margin = int(np.ceil(5 * lr_psf.fwhm_arcsec / pixel)) + settings.scale
        images = read_hubble_deep_field(source, settings.hr_size, margin)
    _check_sharpness(images, pixel, lr_psf, path)
    found.settle_scale(pixel, str(path))
    blur = make_blur(images.psf, images.pixel_scale_arcsec, lr_psf, lr_pixel, pixel)
    first, before = len(found.pairs) + len(found.skipped), len(found.pairs)
    for number, name in enumerate(images.objects):
        pair = degrade(
            images.images[number],
            images.masks[number],
            images.noises[number],
            images.pixel_scale_arcsec,
            blur,
            pixel,
            settings.hr_size,
            settings.scale,
            settings.lr_noise_factor,
            settings.lr_noise_sigma,
            np.random.default_rng([seed, first + number]),
        )
        real = float(pair.hr_mask.mean())
        if real < settings.min_real_fraction:
            reason = f"{name}: only {real:.0%} of its {settings.hr_size} x {settings.hr_size} HR pixels are real"
            found.skipped.append({"file": path.name, "reason": reason})
            continue
        found.pairs.append(pair)
        found.objects.append(name)
        found.blurs.append(blur)
    if len(found.pairs) > before:
        found.units.add(images.unit)
        found.instruments.add((images.instrument, settings.lr_instrument))
    found.files.append(
        {
            "file": path.name,
            "count": len(found.pairs) - before,
            "native_pixel_scale_arcsec": images.pixel_scale_arcsec,
            "hr_psf_fwhm_arcsec": images.psf.fwhm_arcsec,
            "lr_psf_fwhm_arcsec": lr_psf.fwhm_arcsec,
            "notes": list(images.notes),
        }
    )


def _check_sharpness(images: RealImages, pixel: float, lr_psf: Psf, path: Path) -> None:
    if images.pixel_scale_arcsec > pixel * (1 + SAME_SCALE):
        raise InputError(
            f"{path}: its pixels ({images.pixel_scale_arcsec:.4f} arcsec) are coarser than hr_pixel_scale_arcsec "
            f"({pixel:.4f}); leave it out or choose coarser HR pixels"
        )
    if images.psf.fwhm_arcsec >= lr_psf.fwhm_arcsec:
        raise InputError(
            f"{path}: its PSF (FWHM {images.psf.fwhm_arcsec:.3f} arcsec) is not sharper than the LR PSF "
            f"({lr_psf.fwhm_arcsec:.3f}); leave it out or choose a broader lr_psf"
        )


def _describe(source: HubbleDeepFieldSettings | FitsSettings | TwoInstrumentSettings) -> str:
    if isinstance(source, HubbleDeepFieldSettings):
        return "Hubble eXtreme Deep Field (picture shipped with scikit-image)"
    if isinstance(source, TwoInstrumentSettings):
        return f"{source.path.name} ({source.hr.instrument} and {source.lr.instrument})"
    return source.path.name
