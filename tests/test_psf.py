"""PSFs: diffraction and other shapes, FITS files of any sampling, wrong ones mended or refused, real ones."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from scipy.ndimage import map_coordinates, uniform_filter
from scipy.special import erf

from simulate.errors import InputError
from simulate.instruments import PSFSettings, load_instrument, psf_kernel
from simulate.psf import SIGMA_PER_FWHM, Psf, PSFWarning, optical_kernel, read_psf

# Analytic PSFs


def pupil_psf(obscuration: float, size: int, radius: int) -> np.ndarray:
    y, x = np.indices((size, size)) - size // 2
    distance = np.hypot(y, x)
    pupil = (distance <= radius) & (distance >= obscuration * radius)
    return np.abs(np.fft.fftshift(np.fft.fft2(pupil))) ** 2


@pytest.mark.parametrize("obscuration", [0.0, 0.3])
def test_airy_is_the_diffraction_of_the_aperture(obscuration: float) -> None:
    """Against the Fourier transform of a pupil 2 x 64 wide on 1024: lambda / D is 8 pixels."""
    image = pupil_psf(obscuration, 1024, 64)
    line = image[512, 512:] / image[512, 512]
    half = float(np.interp(-0.5, -line[:12], np.arange(12)))
    settings = PSFSettings(kind="airy", fwhm_arcsec=2 * half, airy_obscuration=obscuration)
    kernel = psf_kernel(settings, 1.0)
    middle = len(kernel) // 2
    np.testing.assert_allclose(kernel[middle, middle:] / kernel.max(), line[: middle + 1], atol=4e-3)
    if obscuration == 0:
        assert 2 * half == pytest.approx(1.029 * 8, rel=0.01)
        rings = kernel[middle, middle : middle + 15]
        assert int(rings.argmin()) == round(1.22 * 8)


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "airy", "fwhm_arcsec": 0.1, "airy_obscuration": 0.3},
        {"kind": "gaussian", "fwhm_arcsec": 0.2},
        {"kind": "moffat", "fwhm_arcsec": 0.6, "moffat_beta": 3.0},
        {"kind": "moffat", "fwhm_arcsec": 0.04, "moffat_beta": 1.5},
    ],
)
def test_kernel_is_normalised_centred_and_as_wide_as_it_says(settings: dict[str, Any]) -> None:
    kernel = psf_kernel(PSFSettings(**settings), settings["fwhm_arcsec"] / 20)
    middle = len(kernel) // 2
    assert kernel.shape == (2 * middle + 1,) * 2
    assert kernel.sum() == pytest.approx(1)
    assert np.array_equal(kernel, kernel[::-1, ::-1])
    profile = kernel[middle, middle:] / kernel.max()
    assert 2 * np.interp(-0.5, -profile[:30], np.arange(30)) / 20 == pytest.approx(1, rel=0.01)


def test_moffat_reaches_to_97_percent_of_its_flux() -> None:
    kernel = psf_kernel(PSFSettings(kind="moffat", fwhm_arcsec=1, moffat_beta=1.5), 0.5)
    core = 0.5 / np.sqrt(2 ** (1 / 1.5) - 1)
    peak_density = 0.5 / (np.pi * core**2)  # of a Moffat of flux 1, (beta - 1) / (pi core^2)
    assert peak_density * 0.25 / kernel.max() == pytest.approx(0.98, abs=0.015)  # the square holds a little more


# PSFs from FITS files


def star(
    fwhm: float, size: int = 61, pixel: float = 0.05, shift: tuple[float, float] = (0, 0), box: float = 0.0
) -> Any:
    """A Gaussian (size,size), in arcsec, sampled or averaged over a square of width `box`; off-centre by `shift`."""
    sigma = fwhm * SIGMA_PER_FWHM
    lines = []
    for offset in shift:
        x = (np.arange(size) - (size - 1) / 2) * pixel - offset
        if box:
            scale = np.sqrt(2) * sigma
            lines.append((erf((x + box / 2) / scale) - erf((x - box / 2) / scale)) / 2 * pixel / box)
        else:
            lines.append(np.exp(-(x**2) / (2 * sigma**2)) * pixel / (sigma * np.sqrt(2 * np.pi)))
    return np.outer(*lines)


def write_psf(path: Path, image: np.ndarray, **header: Any) -> dict[str, Any]:
    hdu = fits.PrimaryHDU(np.asarray(image, ">f8"))
    hdu.header.update(header)
    hdu.writeto(path, overwrite=True)
    return {"kind": "fits", "fits": str(path), "includes_pixel_response": False}


def centroid(kernel: np.ndarray) -> np.ndarray:
    y, x = np.indices(kernel.shape) - len(kernel) // 2
    return np.array([(kernel * y).sum(), (kernel * x).sum()]) / kernel.sum()


@pytest.mark.parametrize("wanted", [0.0125, 0.02, 0.05, 0.07])
@pytest.mark.parametrize(
    ("size", "pixel", "shift", "box"),
    [
        (61, 0.05, (0, 0), 0.0),
        (61, 0.05, (0, 0), 0.05),
        (60, 0.05, (0.025, 0.025), 0.05),
        (121, 0.0125, (0.03, -0.02), 0.05),
    ],
)
@pytest.mark.filterwarnings("ignore::simulate.psf.PSFWarning")
def test_psf_of_any_sampling_becomes_the_optical_kernel_at_any_other(
    tmp_path: Path, size: int, pixel: float, shift: tuple[float, float], box: float, wanted: float
) -> None:
    """Sampled or effective, odd or even, off-centre or supersampled: what comes out is the Gaussian of the optics."""
    settings = write_psf(tmp_path / "psf.fits", star(0.15, size, pixel, shift, box), PIXSCALE=pixel)
    if box:
        settings |= {"includes_pixel_response": True, "pixel_response_arcsec": box}
    kernel = psf_kernel(PSFSettings(**settings), wanted)
    middle = len(kernel) // 2
    assert kernel.shape == (2 * middle + 1,) * 2
    assert kernel.sum() == pytest.approx(1, abs=1e-12)
    assert kernel.min() >= 0
    assert np.abs(centroid(kernel)).max() * wanted < 2e-4
    axis = (np.arange(len(kernel)) - middle) * wanted
    expected = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (0.15 * SIGMA_PER_FWHM) ** 2))
    np.testing.assert_allclose(kernel, expected / expected.sum(), atol=(8e-3 if pixel == 0.05 else 1e-3) * kernel.max())
    if wanted == 0.0125:
        measured = Psf(kernel, (middle, middle), wanted, False).fwhm_arcsec
        assert measured == pytest.approx(0.15, rel=0.01)


def seen_through_pixel(kernel: np.ndarray, fine: int, psf: Psf, width: float) -> np.ndarray:
    """`kernel`, sampled `fine` (odd) times per `width`, averaged over the pixel, at the pixels of `psf`."""
    seen = uniform_filter(kernel, fine, mode="constant")
    steps = psf.pixel_scale_arcsec / (width / fine)
    y, x = np.indices(psf.image.shape)
    places = [(axis - c) * steps + len(kernel) // 2 for axis, c in zip((y, x), psf.centre, strict=True)]
    return map_coordinates(seen, places, order=3) * steps**2


@pytest.mark.parametrize(
    ("file", "scale", "width", "tolerance"),
    [
        ("acs_wfc_f814w_empirical.fits", 0.05 / 4, 0.05, 3e-3),
        ("psf-ceers-f606w.fits", None, 0.04, 2e-3),
        ("psf-ceers-f814w.fits", None, 0.04, 2e-3),
        ("psf-ceers-f125w.fits", None, 0.04, 2e-3),
        ("psf-ceers-f160w.fits", None, 0.04, 2e-3),
        ("psf-ceers-nrca3-f115w.fits", None, 0.04, 0.03),  # undersampled: see below
        ("psf-ceers-nrca3-f150w.fits", None, 0.04, 0.03),
        ("psf-ceers-nrca5-f277w.fits", None, 0.04, 2e-3),
        ("psf-ceers-nrca5-f444w.fits", None, 0.04, 2e-3),
    ],
)
def test_pixel_taken_out_of_a_real_psf_and_put_back_gives_the_psf(
    observed_images: Path, file: str, scale: float | None, width: float, tolerance: float
) -> None:
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        psf = read_psf(observed_images / "psf" / file, None, None, scale, True)
        kernel = optical_kernel(psf, width / 9, width)
    np.testing.assert_allclose(seen_through_pixel(kernel, 9, psf, width), psf.image, atol=tolerance * psf.image.max())
    half = len(kernel) // 2
    core = Psf(kernel[half - 50 : half + 51, half - 50 : half + 51], (50, 50), width / 9, False)
    assert core.fwhm_arcsec < 0.995 * psf.fwhm_arcsec
    texts = " ".join(str(one.message) for one in shown)
    assert ("average of 36 of 56 PSFs" in texts) == file.startswith("acs")
    # F115W and F150W are not sampled well enough at 0.04": that cannot be mended, and is said
    assert ("too sharp for its sampling of 0.04 arcsec" in texts) == (tolerance > 0.01)


def test_cube_planes_with_sentinels_are_refused_and_others_load(observed_images: Path) -> None:
    cube = observed_images / "psf" / "acs_wfc_f814w_empirical.fits"
    with pytest.raises(InputError, match=r"\[PRIMARY, plane 27\]: not a PSF: its pixels sum to -3.1"):
        read_psf(cube, None, 27, 0.0125, True)
    with pytest.raises(InputError, match=r"expected a cube with a plane 56, found an array of shape \(56, 101, 101\)"):
        read_psf(cube, None, 56, 0.0125, True)
    with pytest.raises(InputError, match=r"the pixel scale is not known.*set fits_pixel_scale_arcsec"):
        read_psf(cube, None, 17, None, True)
    settings = PSFSettings(
        kind="fits",
        fits=str(cube),
        plane=17,
        fits_pixel_scale_arcsec=0.0125,
        includes_pixel_response=True,
        pixel_response_arcsec=0.05,
    )
    with pytest.warns(PSFWarning, match=r"plane 17\]: normalised \(the sum was 16.98\)"):
        kernel = psf_kernel(settings, 0.05 / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = psf_kernel(settings, 0.05 / 3)  # said once, and the file is not read again
    np.testing.assert_array_equal(kernel, again)


@pytest.mark.parametrize(
    ("name", "file", "tolerance"),
    [
        ("jwst-nircam-f115w", "nrca3-f115w", 0.03),
        ("jwst-nircam-f150w", "nrca3-f150w", 0.03),
        ("hst-wfc3-f160w", "f160w", 0.03),
    ],
)
@pytest.mark.filterwarnings("ignore::simulate.psf.PSFWarning")
def test_wings_hold_the_flux_of_real_ones(observed_images: Path, name: str, file: str, tolerance: float) -> None:
    settings = load_instrument(name).psf
    assert settings.fwhm_arcsec is not None
    assert settings.moffat_beta is not None
    stars = read_psf(observed_images / "psf" / f"psf-ceers-{file}.fits", None, None, None, True)
    kernel = optical_kernel(stars, 0.02)
    y, x = np.indices(kernel.shape) - len(kernel) // 2
    core = settings.fwhm_arcsec / (2 * np.sqrt(2 ** (1 / settings.moffat_beta) - 1))
    for radius in (0.2, 0.3, 0.5, 1.0):
        real = kernel[np.hypot(y, x) * 0.02 <= radius].sum()
        assert 1 - (1 + (radius / core) ** 2) ** (1 - settings.moffat_beta) == pytest.approx(real, abs=tolerance)
