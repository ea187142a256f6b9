"""Wrong PSF files: mended with one line that says how, or refused with a reason; and how files are found."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from simulate.errors import InputError
from simulate.instruments import PSFSettings, config_folder, load_instrument, psf_kernel
from simulate.psf import SIGMA_PER_FWHM, Psf, PSFWarning, mend_psf, read_psf
from simulate.settings import parse_settings

from .test_psf import centroid, star, write_psf


def mended(tmp_path: Path, image: np.ndarray) -> tuple[np.ndarray, str]:
    """The kernel at half the pixel scale of the image, and the one warning that was shown."""
    settings = write_psf(tmp_path / "psf.fits", image, PIXSCALE=0.05)
    with pytest.warns(PSFWarning) as shown:
        kernel = psf_kernel(PSFSettings(**settings), 0.025)
    (warning,) = shown
    text = warnings.formatwarning(warning.message, warning.category, warning.filename, warning.lineno)
    assert text.count("\n") == 1
    assert str(warning.message).startswith(f"{tmp_path / 'psf.fits'} [PRIMARY]: ")
    return kernel, str(warning.message).partition("[PRIMARY]: ")[2]


def with_pixels(image: np.ndarray, places: list[tuple[int, int]], value: float) -> np.ndarray:
    changed = image.copy()
    for place in places:
        changed[place] = value
    return changed


GOOD = star(0.2, 41)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (3 * GOOD, "normalised (the sum was 3)"),
        (star(0.2, 40), "even-sized (40 x 40): resampled about its centre"),
        (
            star(0.2, 40, shift=(0.025, 0.025)),  # its peak on pixel 20, as FFTs have it
            "even-sized (40 x 40): resampled about its centre; re-centred by 0.71 of its pixels",
        ),
        (star(0.2, 41, shift=(0.11, -0.04)), "re-centred by 2.34 of its pixels"),
        (GOOD[4:-4], "not square (33 x 41): what lies outside counts as 0"),
        (with_pixels(GOOD, [(2, 2), (30, 3)], -0.004), "negative pixels (0.81% of the flux) set to 0"),
        (with_pixels(GOOD, [(0, 0), (1, 40)], np.nan), "2 pixels that are not finite set to 0"),
        (with_pixels(GOOD, [(15, 20)], np.inf), "1 pixels that are not finite interpolated"),
        (np.stack([GOOD, 2 * GOOD, -GOOD]), "average of 2 of 3 PSFs (others have strongly negative pixels)"),
    ],
)
def test_wrong_psf_is_mended_with_one_line(tmp_path: Path, image: np.ndarray, said: str) -> None:
    kernel, text = mended(tmp_path, image)
    assert text == said
    middle = len(kernel) // 2
    axis = (np.arange(len(kernel)) - middle) * 0.025
    expected = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (0.2 * SIGMA_PER_FWHM) ** 2))
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=0.02 * kernel.max())
    assert np.abs(centroid(np.where(kernel > 0.02 * kernel.max(), kernel, 0))).max() < 0.05


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((21, 21)), "not a PSF: its pixels sum to 0"),
        (-GOOD, "not a PSF: its pixels sum to -1"),
        (GOOD - 0.2 / GOOD.size, "not a PSF: its pixels sum to 0.8, of which -0.1"),
        (np.ones(30), r"expected a PSF image \(k,k\) or a cube of them, found shape \(30,\)"),
        (np.ones((2, 2)), r"found shape \(2, 2\)"),
        (with_pixels(GOOD, [(20, 20)], np.nan), "1 pixels that are not finite in or around the core; give a PSF"),
        (with_pixels(GOOD, [(15, 19), (15, 20), (15, 21)], np.nan), "3 pixels that are not finite in or around"),
        (np.full((21, 21), np.nan), "not a PSF: its pixels sum to 0"),
        (np.fft.ifftshift(GOOD), r"on the edge at \(0, 0\) of 41 x 41; .* shift it with numpy.fft.fftshift"),
    ],
)
def test_psf_that_cannot_be_mended_is_refused_with_a_reason(tmp_path: Path, image: np.ndarray, reason: str) -> None:
    settings = write_psf(tmp_path / "psf.fits", image, PIXSCALE=0.05)
    with pytest.raises(InputError, match=reason) as raised:
        psf_kernel(PSFSettings(**settings), 0.05)
    assert str(raised.value).startswith(f"{tmp_path / 'psf.fits'} [PRIMARY]: ")


def test_good_psf_is_taken_in_silence() -> None:
    assert mend_psf(GOOD, 0.05, False, "a").notes == ()
    assert mend_psf(GOOD[None].astype(">f4"), 0.05, False, "a").notes == ()


def test_hdu_and_pixel_scale_are_found_or_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "psf.fits"
    psf = fits.ImageHDU(GOOD, name="PSF")
    psf.header["PIXELSCL"] = 0.02
    wide = fits.ImageHDU(star(0.4, 41), name="WIDE")
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=[1.0])], name="TABLE")
    fits.HDUList([fits.PrimaryHDU(), wide, psf, table]).writeto(path)
    assert read_psf(path, None, None, None, False).pixel_scale_arcsec == 0.02
    assert read_psf(path, 2, None, 0.03, False).pixel_scale_arcsec == 0.03
    assert read_psf(path, "wide", None, 0.05, False).fwhm_arcsec == pytest.approx(0.4, rel=0.03)
    for hdu in ("TABLE", 0, 7, "NOISE"):
        message = rf"psf.fits: expected an image in HDU {hdu!r}, found the HDUs PRIMARY, WIDE, PSF, TABLE; set psf.hdu"
        with pytest.raises(InputError, match=message):
            read_psf(path, hdu, None, 0.05, False)
    with pytest.raises(InputError, match="expected a cube with a plane 0"):
        read_psf(path, None, 0, None, False)
    (tmp_path / "no.fits").write_text("no")
    for name in ("no.fits", "absent.fits"):
        with pytest.raises(InputError, match=f"{name}: cannot be read as FITS"):
            read_psf(tmp_path / name, None, None, 0.05, False)


def test_fits_psf_is_found_beside_the_yaml_or_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path)
    text = (config_folder() / "instruments" / "euclid-vis.yaml").read_text()
    yaml = tmp_path / "deep" / "mine.yaml"
    yaml.write_text(
        text.replace(
            "{kind: gaussian, fwhm_arcsec: 0.16}", "{kind: fits, fits: a.fits, includes_pixel_response: false}"
        )
    )
    for folder, fwhm in ((tmp_path, 0.3), (tmp_path / "deep", 0.2)):
        write_psf(folder / "a.fits", star(fwhm, 41), PIXSCALE=0.05)
        kernel = psf_kernel(load_instrument(str(yaml)).psf, 0.02)
        measured = Psf(kernel, (len(kernel) // 2,) * 2, 0.02, False).fwhm_arcsec
        assert measured == pytest.approx(fwhm, rel=0.02)


@pytest.mark.parametrize(
    ("psf", "message"),
    [
        ({}, "kind: gaussian needs fwhm_arcsec"),
        ({"kind": "moffat", "fwhm_arcsec": 1}, "kind: moffat needs moffat_beta"),
        ({"fwhm_arcsec": 1, "moffat_beta": 3}, "moffat_beta does not belong to kind: gaussian"),
        ({"kind": "fits", "fits": "a.fits"}, "kind: fits needs includes_pixel_response"),
        (
            {"kind": "fits", "fits": "a.fits", "includes_pixel_response": True, "fwhm_arcsec": 1},
            "fwhm_arcsec does not belong to kind: fits",
        ),
        (
            {"kind": "fits", "fits": "a.fits", "includes_pixel_response": False, "pixel_response_arcsec": 1},
            "pixel_response_arcsec belongs to includes_pixel_response: true",
        ),
        ({"kind": "moffat", "fwhm_arcsec": 1, "moffat_beta": 1.2}, "greater than or equal to 1.4"),
        ({"fwmh_arcsec": 1}, "did you mean 'fwhm_arcsec'"),
    ],
)
def test_settings_of_a_psf_are_strict(psf: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_settings(PSFSettings, psf, "psf")
