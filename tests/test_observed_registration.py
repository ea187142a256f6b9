"""Pairs from two instruments: registration against fields whose offset is known, and the real files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from simulate.errors import InputError
from simulate.settings import parse_settings
from simulate.shards import read_pairs
from sr.observed import PairsSettings, pairs_run
from sr.observed.degrade import make_blur
from sr.observed.psf import SIGMA_PER_FWHM, gaussian_psf
from sr.observed.registration import concentric_corner, corner_from_wcs, measure_shift, register

HR_FWHM, LR_FWHM = 0.12, 0.6
GALAXIES = np.random.default_rng(8).uniform([-3.2, -3.2, 0.15, 1.0], [3.2, 3.2, 0.4, 4.0], (25, 4))  # y, x, sigma, flux


def seen(size: int, pixel: float, fwhm: float, shift: tuple[float, float] = (0, 0), noise: float = 0.0) -> np.ndarray:
    """The galaxies (Gaussians, arcsec about the frame's centre) through a Gaussian PSF that includes the pixel."""
    y, x = (np.indices((size, size)) - (size - 1) / 2) * pixel
    image = np.random.default_rng(size).normal(0, noise, (size, size)) if noise else np.zeros((size, size))
    for cy, cx, sigma, flux in GALAXIES:
        variance = sigma**2 + (fwhm * SIGMA_PER_FWHM) ** 2
        square = (y - cy - shift[0]) ** 2 + (x - cx - shift[1]) ** 2
        image += flux * pixel**2 / (2 * np.pi * variance) * np.exp(-square / (2 * variance))
    return image


def blur_of(hr_pixel: float, lr_pixel: float, pixel: float) -> np.ndarray:
    hr, lr = (
        psf.__class__(psf.image, psf.centre, psf.pixel_scale_arcsec, includes_pixel=True)
        for psf in (gaussian_psf(HR_FWHM), gaussian_psf(LR_FWHM))
    )
    return make_blur(hr, hr_pixel, lr, lr_pixel, pixel).kernel


@pytest.mark.parametrize("shift_lr_pixels", [(0.0, 0.0), (0.31, -0.12), (-0.64, 1.27)])
def test_registration_recovers_a_known_shift_gain_and_sky(shift_lr_pixels: tuple[float, float]) -> None:
    hr_pixel, lr_pixel, scale = 0.03, 0.168, 4
    hr = seen(250, hr_pixel, HR_FWHM)
    shift = (shift_lr_pixels[0] * lr_pixel, shift_lr_pixels[1] * lr_pixel)
    lr = 3 * seen(50, lr_pixel, LR_FWHM, shift) + 0.2
    real = np.ones(hr.shape, bool), np.ones(lr.shape, bool)
    corner = concentric_corner(hr.shape, lr.shape, lr_pixel / hr_pixel)
    kernel = blur_of(hr_pixel, lr_pixel, lr_pixel / scale)
    found = register(hr, real[0], lr, real[1], lr_pixel / hr_pixel, corner, kernel, scale)
    assert found.shift_lr_pixels == pytest.approx(shift_lr_pixels, abs=0.02)
    assert found.gain == pytest.approx(3, rel=0.01)
    assert found.sky == pytest.approx(0.2, abs=0.01)
    # The prediction is what LR shows, and HR's flux in an inner box is LR's (light that crosses its edge apart)
    inner = found.real.copy()
    inner[:8] = inner[-8:] = inner[:, :8] = inner[:, -8:] = False
    np.testing.assert_allclose(found.prediction[inner], (lr - found.sky)[inner], atol=0.015 * lr.max())
    fine = np.kron(inner, np.ones((scale, scale), bool))
    assert found.hr[fine].sum() == pytest.approx((lr - found.sky)[inner].sum(), rel=0.02)


def test_measured_shift_ignores_pixels_that_are_not_real() -> None:
    sharp, moved = seen(60, 0.1, 0.6), seen(60, 0.1, 0.6, (0.033, -0.05))
    real = np.ones(sharp.shape, bool)
    real[:7] = False
    moved[2, 3] = 1e6
    assert measure_shift(sharp, moved, real) == pytest.approx([0.33, -0.5], rel=0.1)
    with pytest.raises(InputError, match="fewer than 8 LR pixels"):
        measure_shift(sharp, moved, real & (np.arange(60) < 5))


def sky_wcs(pixel: float, centre_pixel: float, rotation: float = 0.0) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [centre_pixel + 1, centre_pixel + 1]
    cosine, sine = np.cos(rotation), np.sin(rotation)
    wcs.wcs.cd = np.array([[-cosine, sine], [sine, cosine]]) * pixel / 3600
    return wcs


def test_corner_from_wcs_is_that_of_the_geometry() -> None:
    hr, lr = sky_wcs(0.05, 99.5), sky_wcs(0.2, 19.5)
    # Both reference points are the middle of 200 and of 40 pixels: frames of 10 and 8 arcsec about one point
    assert corner_from_wcs(hr, lr, 4.0, (40, 40), "a") == pytest.approx((20, 20), abs=1e-3)
    assert concentric_corner((200, 200), (40, 40), 4.0) == (20, 20)
    with pytest.raises(InputError, match="a: the images' WCS are rotated or scaled"):
        corner_from_wcs(hr, sky_wcs(0.2, 19.5, 0.1), 4.0, (40, 40), "a")
    with pytest.raises(InputError, match="rotated or scaled"):
        corner_from_wcs(hr, lr, 3.0, (40, 40), "a")


def write_pair(path: Path, shift_arcsec: tuple[float, float] = (0.05, 0.02)) -> Path:
    hr, lr = seen(160, 0.05, HR_FWHM, noise=1e-4), seen(40, 0.2, LR_FWHM, shift_arcsec, noise=1e-4)
    rms = np.full(lr.shape, 1e-4)
    rms[20, 17] = 1e16
    psfs = [gaussian_psf(HR_FWHM), gaussian_psf(LR_FWHM)]
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(hr.astype(">f4"), sky_wcs(0.05, 79.5).to_header(), name="SHARP"),
        fits.ImageHDU(np.stack([lr, 2 * lr]).astype(">f4"), sky_wcs(0.2, 19.5).to_header(), name="BROAD"),
        fits.ImageHDU(rms, name="BROAD_RMS"),
        *(fits.ImageHDU(psf.image, name=f"{name}_PSF") for psf, name in zip(psfs, ("SHARP", "BROAD"), strict=True)),
    ]
    fits.HDUList(hdus).writeto(path)
    return path


def pair_settings(path: Path, **content: Any) -> PairsSettings:
    source: dict[str, Any] = {
        "kind": "two_instrument",
        "path": str(path),
        "hr": {"hdu": "SHARP", "psf": {"hdu": "SHARP_PSF", "pixel_scale_arcsec": HR_FWHM / 6}, "instrument": "Sharp"},
        "lr": {
            "hdu": "BROAD",
            "plane": 1,
            "noise_hdu": "BROAD_RMS",
            "psf": {"hdu": "BROAD_PSF", "pixel_scale_arcsec": LR_FWHM / 6},
            "instrument": "Broad",
        },
    }
    return parse_settings(PairsSettings, {"scale": 4, "hr_size": 48, "sources": [source], **content}, "test")


def test_two_instruments_become_tiles_of_one_object(tmp_path: Path) -> None:
    metrics = pairs_run(tmp_path, pair_settings(write_pair(tmp_path / "field.fits")), 0, resume=False)
    pairs = read_pairs(tmp_path / "pairs", "observed")
    assert pairs.kind == metrics["kind"] == "observed HR, observed LR"
    assert metrics["objects"] == {"field": len(pairs)}
    assert len(pairs) >= 4
    assert (pairs.hr_band.pixel_scale_arcsec, pairs.lr_band.pixel_scale_arcsec) == pytest.approx((0.05, 0.2))
    (field,) = metrics["files"]
    assert field["shift_from"] == "WCS"
    assert field["shift_lr_pixels"] == pytest.approx([0.25, 0.1], abs=0.02)
    assert field["gain"] == pytest.approx(2, rel=0.02)
    assert max(field["tile_offsets_lr_pixels"]) < 0.25
    (masked,) = {count for count in (~pairs.hr_mask).sum((1, 2, 3)).tolist() if count}
    assert masked == 16  # the LR pixel with the sentinel
    flux = pairs.hr.sum((1, 2, 3)) / pairs.lr.sum((1, 2, 3))
    assert np.median(flux) == pytest.approx(1, abs=0.1)


def test_fields_out_of_place_or_too_coarse_are_refused(tmp_path: Path) -> None:
    far = write_pair(tmp_path / "far.fits", shift_arcsec=(0.9, 0.0))
    with pytest.raises(InputError, match=r"far.fits: lies 4\.\d* LR pixels from where its headers say"):
        pairs_run(tmp_path, pair_settings(far), 0, resume=False)
    with pytest.raises(InputError, match=r"far.fits: scale 8 asks for HR pixels of 0.025 arcsec, finer"):
        pairs_run(tmp_path, pair_settings(far, scale=8), 0, resume=False)
    near = write_pair(tmp_path / "near.fits")
    with pytest.raises(InputError, match=r"near.fits: HR pixels of 0.0500 arcsec, but others .* have 0.0600"):
        pairs_run(tmp_path, pair_settings(near, hr_pixel_scale_arcsec=0.06), 0, resume=False)


def test_hst_and_hsc_see_the_same_sky(observed_images: Path, tmp_path: Path) -> None:
    source = {
        "kind": "two_instrument",
        "path": str(observed_images / "two_telescope"),
        "pattern": "cosmos_hst_hsc_*.fits",
        "hr": {
            "hdu": "HST_F814W",
            "psf": {"hdu": "HST_PSF"},
            "pixel_scale_arcsec": 0.03,
            "instrument": "HST/ACS F814W",
        },
        "lr": {
            "hdu": "HSC_GRIZY",
            "plane": 2,
            "psf": {"hdu": "HSC_PSF", "plane": 2},
            "pixel_scale_arcsec": 0.168,
            "instrument": "Subaru/HSC i",
        },
    }
    settings = parse_settings(PairsSettings, {"scale": 4, "hr_size": 48, "sources": [source]}, "test")
    metrics = pairs_run(tmp_path, settings, 0, resume=False)
    assert metrics["object_count"] == 2
    assert metrics["count"] >= 10
    # HST's PSF is 1.4 pixels off the middle of its stamp: without centring it the second field would move further
    assert np.abs([field["shift_lr_pixels"] for field in metrics["files"]]).max() < 0.6
    assert metrics["source"] == "two_telescope (HST/ACS F814W and Subaru/HSC i)"


def test_euclid_fields_that_do_not_match_are_noticed(observed_images: Path, tmp_path: Path) -> None:
    """In 102042913 and 102159187 the lens itself lies differently in VIS and NISP: those tiles are left out."""
    source = {
        "kind": "two_instrument",
        "path": str(observed_images / "two_telescope"),
        "pattern": "euclidQ1_102[01]*.fits",
        "hr": {"hdu": "VIS_FLUX", "noise_hdu": "VIS_RMS", "psf": {"hdu": "VIS_PSF"}, "instrument": "Euclid/VIS"},
        "lr": {
            "hdu": "NIR_Y_FLUX",
            "noise_hdu": "NIR_Y_RMS",
            "psf": {"hdu": "NIR_Y_PSF"},
            "block": 3,
            "instrument": "Euclid/NISP Y",
        },
    }
    settings = parse_settings(PairsSettings, {"scale": 3, "hr_size": 60, "sources": [source]}, "test")
    metrics = pairs_run(tmp_path, settings, 0, resume=False)
    flagged = [entry["file"] for entry in metrics["skipped"] if "misregistered" in entry["reason"]]
    for field in ("102042913", "102159187"):
        assert sum(field in file for file in flagged) >= 2
    assert sum("102020057" in file for file in flagged) == 0
    kept = {entry["file"].split("_")[1]: entry["count"] for entry in metrics["files"]}
    assert kept["102020057"] == 4
    assert max(kept["102042913"], kept["102159187"]) <= 2
