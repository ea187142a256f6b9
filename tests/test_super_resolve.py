"""FITS in, FITS out: sky positions against astropy, tiles against one piece, flux, NaN, noise and bad input."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS
from scipy.special import erf
from torch import nn
from typer.testing import CliRunner

import pipeline
from simulate.errors import InputError
from simulate.shards import Band, file_sha256
from sr.degradation import UsualKernel, usual_kernel
from sr.domain import SeenRange
from sr.model_folder import save_model
from sr.models import build_network, resolve_settings
from sr.models.flow import FlowSettings
from sr.models.unrolled import UnrolledSettings
from sr.normalisation import Normalisation
from sr.operators import matching_kernels
from sr.posterior import sigma_image
from sr.super_resolve import fill_nearest, super_resolve_fits
from sr.tiles import super_resolve_image, tile_starts, tile_weights
from sr.trained_model import TrainedModel, describe_model, interpolation_model
from sr.upsampled_header import is_surface_brightness, upsampled_header

from .conftest import blob_pairs, gaussian_kernel

CPU = torch.device("cpu")
PIXEL_SCALE_ARCSEC = 0.1  # of the LR side of blob_pairs at scale 2


@pytest.fixture
def bicubic(tmp_path: Path) -> Path:
    save_model(interpolation_model("bicubic", blob_pairs(1)), tmp_path / "bicubic", None)
    return tmp_path / "bicubic"


def random_fsrcnn(scale: int = 2) -> TrainedModel:
    """FSRCNN as it is drawn, but with an output of order 1: untrained, so every pixel of the field of view matters."""
    pairs = blob_pairs(1, scale=scale)
    settings = resolve_settings("fsrcnn")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network("fsrcnn", settings, scale)
        nn.init.normal_(network.get_parameter("upsampling.weight"), std=0.05)
    config = describe_model("fsrcnn", settings, pairs, Normalisation(20.0, scale), data_sha256="ab" * 32)
    return TrainedModel("fsrcnn", network, config)


def sky_image(height: int = 40, width: int = 50, sigma: float = 0.5, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    source = 30 * np.exp(-((x - width / 2) ** 2 + (y - height / 2) ** 2) / 18)
    return (source + np.random.default_rng(seed).normal(0, sigma, source.shape)).astype("f4")


def cd_header() -> fits.Header:
    step, angle = PIXEL_SCALE_ARCSEC / 3600, np.radians(25)
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.1, "CRVAL2": 2.2})
    header["CRPIX1"], header["CRPIX2"] = 20.25, 17.5
    header["CD1_1"], header["CD1_2"] = -step * np.cos(angle), step * np.sin(angle)
    header["CD2_1"], header["CD2_2"] = step * np.sin(angle), step * np.cos(angle)
    return header


def pc_header() -> fits.Header:
    header = cd_header()
    step = PIXEL_SCALE_ARCSEC / 3600
    header["CDELT1"], header["CDELT2"] = -step, step
    for world, sign in ((1, -1), (2, 1)):
        for pixel in (1, 2):
            header[f"PC{world}_{pixel}"] = sign * header.pop(f"CD{world}_{pixel}") / step
    return header


def pc_without_cdelt_header() -> fits.Header:
    header = cd_header()
    for key in ("1_1", "1_2", "2_1", "2_2"):
        header[f"PC{key}"] = header.pop(f"CD{key}")
    return header


def rotation_header() -> fits.Header:
    header = cd_header()
    for key in ("CD1_1", "CD1_2", "CD2_1", "CD2_2"):
        del header[key]
    step = PIXEL_SCALE_ARCSEC / 3600
    header["CDELT1"], header["CDELT2"], header["CROTA2"] = -step, step, 25.0
    return header


def sip_header() -> fits.Header:
    header = cd_header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN-SIP", "DEC--TAN-SIP"
    rng = np.random.default_rng(1)
    for letter in ("A", "B", "AP", "BP"):
        header[f"{letter}_ORDER"] = 3
        for p in range(4):
            for q in range(4 - p):
                if p + q >= 2:
                    header[f"{letter}_{p}_{q}"] = rng.normal(0, 0.3) * 20.0 ** (1 - p - q)
    header["A_DMAX"] = 1.5
    return header


def alternate_header() -> fits.Header:
    """A second description of the same axes, next to one that is not celestial."""
    header = fits.Header()
    for key, value in cd_header().items():
        header[f"{key}A"] = value
    header["CTYPE1"], header["CRPIX1"], header["CRVAL1"], header["CDELT1"] = "LINEAR", 1.0, 1.0, 1.0
    return header


# -- the world coordinates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [cd_header, pc_header, pc_without_cdelt_header, rotation_header, sip_header])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_pixel_centres_and_the_centres_of_their_blocks_are_the_same_place_on_the_sky(
    make: Callable[[], fits.Header], scale: int
) -> None:
    lr_wcs, hr_wcs = WCS(make()), WCS(upsampled_header(make(), scale, "test"))
    y, x = np.mgrid[-0.5:39.6:2.5, -0.5:49.6:2.5]  # pixels counted from 0, borders and fractions too
    lr_sky = np.array(lr_wcs.all_pix2world(x, y, 0))
    hr_sky = np.array(hr_wcs.all_pix2world((x + 0.5) * scale - 0.5, (y + 0.5) * scale - 0.5, 0))
    np.testing.assert_allclose(hr_sky, lr_sky, rtol=0, atol=1e-11)
    # the header is a real one: its sky moves by a pixel scale from pixel to pixel
    assert np.hypot(*(lr_sky[:, 8, 9] - lr_sky[:, 8, 8])) * 3600 == pytest.approx(2.5 * PIXEL_SCALE_ARCSEC, rel=0.2)


@pytest.mark.parametrize("name", ["a", "b", "ap", "bp"])
def test_sip_distortion_in_pixels_grows_with_the_scale(name: str) -> None:
    """Forward and inverse polynomials, from pixels relative to CRPIX to a shift in pixels."""
    lr_sip, hr_sip = WCS(sip_header()).sip, WCS(upsampled_header(sip_header(), 2, "test")).sip
    u, v = np.array([3.0, -12.0]), np.array([-4.0, 7.0])
    lr_shift = np.polynomial.polynomial.polyval2d(u, v, getattr(lr_sip, name))
    hr_shift = np.polynomial.polynomial.polyval2d(2 * u, 2 * v, getattr(hr_sip, name))
    np.testing.assert_allclose(hr_shift, 2 * lr_shift, rtol=1e-12)
    assert (np.abs(lr_shift) > 0.01).all()


def test_alternate_wcs_and_pixel_keywords_are_scaled() -> None:
    header = upsampled_header(alternate_header(), 2, "test")
    pixel = np.array([7.0, 8.0])
    expected = WCS(alternate_header(), key="A").all_pix2world(*pixel, 0)
    np.testing.assert_allclose(WCS(header, key="A").all_pix2world(*(2 * pixel + 0.5), 0), expected, atol=1e-11)
    assert (header["CRPIX1"], header["CDELT1"]) == (1.5, 0.5)

    header = fits.Header({"PIXSCALE": 0.1, "PIXAR_SR": 4e-13, "LTV1": -100.0, "LTM1_1": 1.0, "BSCALE": 2.0})
    header["CHECKSUM"], header["DATASUM"], header["DATAMAX"] = "abc", "1", 5.0
    header["EXPTIME"] = 300.0
    result = upsampled_header(header, 2, "test")
    assert result["PIXSCALE"] == 0.05
    assert result["PIXAR_SR"] == 1e-13
    assert result["EXPTIME"] == 300.0
    assert not {"CHECKSUM", "DATASUM", "DATAMAX", "BSCALE", "CRPIX1", "CDELT1"} & set(result)
    detector = (7.0 - header["LTV1"]) / header["LTM1_1"]  # of LR pixel 7, counted from 1; its block's centre is 13.5
    assert (13.5 - result["LTV1"]) / result["LTM1_1"] == detector


def test_distortion_tables_are_refused() -> None:
    header = cd_header()
    header["CPDIS1"] = "LOOKUP"
    with pytest.raises(InputError, match=r"image\.fits \[SCI\]: its WCS has a distortion table \(CPDIS1\)"):
        upsampled_header(header, 2, "image.fits [SCI]")
    with pytest.raises(InputError, match="CTYPE2"):
        upsampled_header(fits.Header({"CTYPE2": "DEC--TAB"}), 2, "image.fits [SCI]")


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("MJy/sr", True),
        ("ct / (s arcsec2)", True),
        ("Jy/beam", True),
        ("nJy", False),
        ("ELECTRONS/S", False),
        ("", False),
    ],
)
def test_units_per_solid_angle_are_recognised(unit: str, expected: bool) -> None:
    assert is_surface_brightness(fits.Header({"BUNIT": unit})) is expected


# -- tiles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "tile"), [(50, 50), (65, 64), (129, 128), (500, 128), (1001, 96)])
def test_tiles_cover_the_image_and_their_weights_sum_to_one(size: int, tile: int) -> None:
    starts, weights = tile_starts(size, tile), tile_weights(size, tile, 3)
    total = np.zeros(3 * size)
    for start, weight in zip(starts, weights, strict=True):
        total[3 * start : 3 * (start + tile)] += weight
    np.testing.assert_allclose(total, 1, rtol=1e-6)
    assert starts[0] == 0
    assert starts[-1] + tile == size
    for weight in weights[1:]:
        assert not weight[: 3 * 16].any()  # the margin at an inner edge


@pytest.mark.parametrize(("height", "width"), [(150, 97), (33, 140), (7, 9)])
def test_tiles_give_what_one_piece_gives(height: int, width: int) -> None:
    """The field's brightness runs from one end to the other: an amplitude of each tile's own would show."""
    model = random_fsrcnn()
    image = sky_image(height, width) + np.linspace(0, 200, width, dtype="f4")
    noise = np.full_like(image, 0.5)
    whole = model.super_resolve(image[None, None], noise[None, None], CPU)[0, 0]
    tiled = super_resolve_image(model, image, 0.5, CPU, tile_size=64)
    assert tiled.shape == (2 * height, 2 * width)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=2e-6 * np.abs(whole).max())


# -- the whole path ---------------------------------------------------------------------------------------------------


def test_result_has_pixels_header_and_history(tmp_path: Path) -> None:
    model = random_fsrcnn()
    save_model(model, tmp_path / "fsrcnn", None)
    header = cd_header()
    header["BUNIT"], header["OBJECT"], header["EXPTIME"] = "electron/s", "lens", 500.0
    header.add_history("made by a telescope")
    image = sky_image(150, 70)
    rms = np.full(image.shape, 0.5, "f4")
    source, target = tmp_path / "in.fits", tmp_path / "deep" / "out.fits"
    hdus = [fits.PrimaryHDU(image, header), fits.ImageHDU(rms, name="RMS")]
    fits.HDUList(hdus).writeto(source, checksum=True)

    done = super_resolve_fits(source, target, tmp_path / "fsrcnn", CPU, tile_size=64)

    with fits.open(target) as file:
        assert len(file) == 1
        result, written = file[0].data, file[0].header
    assert result.dtype == np.dtype(">f4")
    expected = model.super_resolve(image[None, None], rms[None, None], CPU)[0, 0]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(
        WCS(written).all_pix2world(2 * 10 + 0.5, 2 * 20 + 0.5, 0), WCS(header).all_pix2world(10, 20, 0), atol=1e-9
    )
    assert (written["BUNIT"], written["OBJECT"], written["EXPTIME"]) == ("electron/s", "lens", 500.0)
    assert "CHECKSUM" not in written
    history = " ".join(written["HISTORY"])
    assert "made by a telescope" in history
    for expected_text in (
        "super-resolve x2",
        "model fsrcnn (fsrcnn), blurred to sharp",
        f"weights SHA-256 {file_sha256(tmp_path / 'fsrcnn' / 'model.safetensors')}",
        f"training data SHA-256 {'ab' * 32}",
        "noise from RMS: median 1 sigma 0.5",
        "0 input pixels not finite",
        "unit electron/s as in the input",
    ):
        assert expected_text in history
    assert done["input_shape"] == (150, 70)
    assert done["output_shape"] == (300, 140)
    assert done["noise_sigma"] == 0.5
    assert done["notes"] == ["the header names no telescope or filter; the model was trained on blurred"]


def write_image(folder: Path, data: np.ndarray, header: fits.Header | None = None) -> Path:
    path = folder / "image.fits"
    fits.PrimaryHDU(data, header or fits.Header({"PIXSCALE": PIXEL_SCALE_ARCSEC})).writeto(path)
    return path


def run(source: Path, model: Path, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
    target = source.with_name("out.fits")
    done = super_resolve_fits(source, target, model, CPU, **options)
    return fits.getdata(target), done


def test_flux_is_conserved_and_surface_brightness_is_kept(tmp_path: Path, bicubic: Path) -> None:
    image = np.zeros((60, 60), "f4") + sky_image(60, 60, sigma=1e-4)
    flux, _ = run(write_image(tmp_path, image), bicubic)
    assert flux.sum(dtype="f8") == pytest.approx(image.sum(dtype="f8"), rel=1e-4)
    (tmp_path / "sky").mkdir()
    source = write_image(tmp_path / "sky", image, fits.Header({"BUNIT": "MJy/sr", "PIXSCALE": PIXEL_SCALE_ARCSEC}))
    brightness, _ = run(source, bicubic)
    np.testing.assert_array_equal(brightness, 4 * flux)


def test_pixels_that_are_not_finite_come_back_as_blocks_and_spoil_nothing_else(tmp_path: Path, bicubic: Path) -> None:
    image = sky_image()
    image[5, 7], image[20:24, 30:33], image[0, 0] = np.nan, np.inf, -np.inf
    result, done = run(write_image(tmp_path, image), bicubic)
    blocks = np.isnan(result).reshape(40, 2, 50, 2)
    for row in (0, 1):
        for column in (0, 1):
            np.testing.assert_array_equal(blocks[:, row, :, column], ~np.isfinite(image))
    assert np.isfinite(result).sum() == 4 * np.isfinite(image).sum()
    assert done["pixels_not_finite"] == 14


def test_holes_are_filled_from_the_nearest_pixel() -> None:
    image = np.array([[1.0, np.nan, np.nan, np.nan, 5.0], [2.0, 2.0, np.nan, 6.0, 6.0]])
    real = np.isfinite(image)
    filled = fill_nearest(image, real)
    np.testing.assert_array_equal(filled[real], image[real])
    assert filled[0, 1] in (1.0, 2.0)
    assert filled[0, 3] in (5.0, 6.0)
    assert filled[1, 2] in (2.0, 6.0)


@pytest.mark.parametrize("kind", [">f4", ">f8", ">i2", "u2", "u1"])
def test_any_number_format_is_read(tmp_path: Path, bicubic: Path, kind: str) -> None:
    image = np.clip(sky_image(sigma=3.0) + 20, 0, 200).round()
    result, _ = run(write_image(tmp_path, image.astype(kind)), bicubic, force=True)  # unsigned: its sky is 20
    (tmp_path / "float").mkdir()
    expected, _ = run(write_image(tmp_path / "float", image), bicubic, force=True)
    np.testing.assert_array_equal(result, expected)


def test_scaled_integers_and_blanks_are_read_as_values(tmp_path: Path, bicubic: Path) -> None:
    image = sky_image()
    hdu = fits.PrimaryHDU(np.round(image / 0.01).astype("i2"))
    hdu.data[3, 4] = -32768
    hdu.header["BLANK"], hdu.header["PIXSCALE"] = -32768, PIXEL_SCALE_ARCSEC
    hdu.header["BSCALE"], hdu.header["BZERO"] = 0.01, 0.0
    hdu.writeto(tmp_path / "image.fits")
    result, done = run(tmp_path / "image.fits", bicubic)
    (tmp_path / "float").mkdir()
    image[3, 4] = np.nan
    expected, _ = run(write_image(tmp_path / "float", image), bicubic)
    np.testing.assert_allclose(result, expected, atol=0.01)
    assert done["pixels_not_finite"] == 1
    written = fits.getheader(tmp_path / "out.fits")
    assert not {"BLANK", "BSCALE", "BZERO"} & set(written)


def test_noise_is_measured_where_no_map_gives_it(tmp_path: Path, bicubic: Path) -> None:
    image = sky_image(100, 100, sigma=0.5)
    image[:, :10] = 0  # no exposure there
    _, done = run(write_image(tmp_path, image), bicubic)
    assert done["noise_source"] == "noise measured on the sky"
    assert done["noise_sigma"] == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize(
    ("image_name", "map_name", "value", "sigma"),
    [
        ("SCI", "ERR", 0.7, 0.7),
        ("VIS_FLUX", "VIS_RMS", 0.7, 0.7),
        ("VIS_FLUX", "NIR_RMS", 0.7, 0.5),  # another image's map
        ("SCI", "WHT", 4.0, 0.5),  # weights are inverse variances up to a factor
    ],
)
def test_noise_comes_from_the_map_that_belongs_to_the_image(
    tmp_path: Path, bicubic: Path, image_name: str, map_name: str, value: float, sigma: float
) -> None:
    image = sky_image(100, 100, sigma=0.5)
    other = fits.ImageHDU(np.full(image.shape, 9.0, "f4"), name=map_name, ver=2)  # of a second image
    noise = fits.ImageHDU(np.full(image.shape, value, "f4"), name=map_name)
    science = fits.ImageHDU(image, fits.Header({"PIXSCALE": PIXEL_SCALE_ARCSEC}), name=image_name)
    fits.HDUList([fits.PrimaryHDU(), science, noise, other]).writeto(tmp_path / "a.fits")
    _, done = run(tmp_path / "a.fits", bicubic)
    assert done["noise_sigma"] == pytest.approx(sigma, rel=0.06)


def test_extension_inherits_the_primary_header_and_compressed_files_work(tmp_path: Path, bicubic: Path) -> None:
    primary = fits.PrimaryHDU(header=fits.Header({"TELESCOP": "HST", "EXPTIME": 100.0}))
    header = cd_header()
    header["INHERIT"], header["EXPTIME"] = True, 50.0
    other, image = fits.ImageHDU(sky_image(seed=1), name="OTHER"), sky_image(seed=2)
    science = fits.CompImageHDU(image, header, name="SCI", compression_type="GZIP_2", quantize_level=0)
    fits.HDUList([primary, other, science]).writeto(tmp_path / "in.fits.gz")
    target = tmp_path / "out.fits.gz"
    done = super_resolve_fits(tmp_path / "in.fits.gz", target, bicubic, CPU)  # SCI goes before the first image
    with gzip.open(target) as file:
        assert file.read(6) == b"SIMPLE"
    result, written = fits.getdata(target), fits.getheader(target)
    assert done["source"].endswith("in.fits.gz [SCI]")
    assert (written["TELESCOP"], written["EXPTIME"]) == ("HST", 50.0)
    plain, _ = run(write_image(tmp_path, image), bicubic)
    np.testing.assert_array_equal(result, plain)

    options: dict[str, Any] = {"overwrite": True, "force": True}  # it has no pixel scale
    by_number = super_resolve_fits(tmp_path / "in.fits.gz", target, bicubic, CPU, hdu="1", **options)
    assert by_number["source"].endswith("[OTHER]")


# -- images that the model was not trained for ------------------------------------------------------------------------


def described_model(folder: Path, **changes: Any) -> Path:
    """Bicubic interpolation that says it is a model for Euclid VIS at 0.1"."""
    model = interpolation_model("bicubic", blob_pairs(1))
    model.config = model.config.model_copy(update={"lr_instrument": "Euclid VIS", **changes})
    save_model(model, folder / "vis", None)
    return folder / "vis"


EUCLID = {"TELESCOP": "EUCLID", "INSTRUME": "VIS", "FILTER": "VIS", "PIXSCALE": 0.1}


@pytest.mark.parametrize(
    ("changes", "sky", "reason"),
    [
        ({"PIXSCALE": 0.107}, 0, r'the pixels are 0\.107", the model was trained on 0\.1"'),
        ({"PIXSCALE": 0.094}, 0, r'the pixels are 0\.094", the model was trained on 0\.1"'),
        ({"PIXSCALE": "unknown"}, 0, r'the pixel scale is not in the header .*, the model expects 0\.1"'),
        ({"PIXSCALE": 0.0}, 0, r"the pixel scale is not in the header"),
        ({"INSTRUME": "NISP", "FILTER": "NIR_H"}, 0, "the image is from EUCLID NISP NIR_H, .* trained on Euclid VIS"),
        ({"TELESCOP": "VLT", "INSTRUME": "FORS2", "FILTER": "R_SPECIAL"}, 0, "the image is from VLT FORS2"),
        (
            {},
            10,
            r"the background at the edges is (10|9\.9\d*) \([12]\d(\.\d)? sigma\), expected below 5 sigma: subtract",
        ),
        ({}, -10, r"the background at the edges is -(10|9\.9\d*) \(-[12]\d(\.\d)? sigma\)"),
    ],
)
def test_an_image_of_another_kind_is_refused_unless_forced(
    tmp_path: Path, changes: dict[str, Any], sky: float, reason: str
) -> None:
    model = described_model(tmp_path)
    source = write_image(tmp_path, sky_image() + np.float32(sky), fits.Header(EUCLID | changes))
    with pytest.raises(InputError, match=rf"image\.fits \[PRIMARY\]: not what model vis .*: {reason}.*--force"):
        run(source, model)
    assert not (tmp_path / "out.fits").exists()
    _, done = run(source, model, force=True)
    assert len(done["notes"]) == 1
    assert done["notes"][0].startswith("forced: ")
    assert "note: forced: " in " ".join(fits.getheader(tmp_path / "out.fits")["HISTORY"])


def test_every_reason_is_given_at_once(tmp_path: Path) -> None:
    header = fits.Header({"PIXSCALE": 0.05, "TELESCOP": "HST", "INSTRUME": "ACS"})
    with pytest.raises(InputError, match=r"0\.05.*HST ACS.*background") as caught:
        run(write_image(tmp_path, sky_image() + 10, header), described_model(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"PIXSCALE": 0.104}, {"PIXSCALE": 0.096}])
def test_an_image_of_the_models_own_kind_is_taken_without_a_word(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A galaxy that fills most of the image is no background: only the edges count."""
    y, x = np.mgrid[:60, :60]
    galaxy = 60 * np.exp(-((x - 30) ** 2 + (y - 30) ** 2) / 200).astype("f4")
    image = fits.PrimaryHDU(galaxy + sky_image(60, 60), fits.Header(EUCLID | changes))
    rms = fits.ImageHDU(np.full((60, 60), 0.5, "f4"), name="RMS")
    fits.HDUList([image, rms]).writeto(tmp_path / "in.fits")
    _, done = run(tmp_path / "in.fits", described_model(tmp_path))
    assert done["notes"] == []
    assert np.median(galaxy) > 5 * done["noise_sigma"] == 2.5


def test_the_telescope_is_read_from_the_primary_header_too(tmp_path: Path) -> None:
    """As JWST writes it, without INHERIT; the primary header's own pixel scale is not the image's."""
    primary = fits.PrimaryHDU(header=fits.Header({"TELESCOP": "JWST", "INSTRUME": "NIRCAM", "FILTER": "F150W"}))
    image = fits.ImageHDU(sky_image(), cd_header(), name="SCI")
    fits.HDUList([primary, image]).writeto(tmp_path / "in.fits")
    with pytest.raises(InputError, match="the image is from JWST NIRCAM F150W"):
        run(tmp_path / "in.fits", described_model(tmp_path))
    del image.header["C*"]
    primary.header["PIXSCALE"] = 0.1
    fits.HDUList([primary, image]).writeto(tmp_path / "in.fits", overwrite=True)
    with pytest.raises(InputError, match="the pixel scale is not in the header"):
        run(tmp_path / "in.fits", described_model(tmp_path))


def test_what_is_no_reason_to_refuse_is_noted(tmp_path: Path) -> None:
    seen = {"training_range": SeenRange(peak_signal_to_noise=(2.0, 10.0), lr_fwhm_arcsec=0.16)}
    source = write_image(tmp_path, sky_image())
    _, done = run(source, described_model(tmp_path, **seen))
    assert len(done["notes"]) == 2
    assert done["notes"][0] == "the header names no telescope or filter; the model was trained on Euclid VIS"
    peak = float(sky_image().max()) / done["noise_sigma"]
    assert done["notes"][1] == f"the brightest pixel is {peak:.3g} sigma, in training it was 2 to 10"
    (tmp_path / "degraded").mkdir()
    source = write_image(tmp_path / "degraded", sky_image(), fits.Header(EUCLID))
    model = described_model(tmp_path, lr_instrument="degraded")
    _, done = run(source, model)
    assert done["notes"] == ["whether EUCLID VIS VIS is what the model knows as degraded is open"]


def test_a_scale_that_the_model_has_not_is_refused(tmp_path: Path, bicubic: Path) -> None:
    source = write_image(tmp_path, sky_image())
    with pytest.raises(InputError, match=r"bicubic: expected .* enlarges 4 times \(--scale\), found .* 2 times"):
        run(source, bicubic, scale=4)
    assert run(source, bicubic, scale=2)[0].shape == (80, 100)


def test_self_ensemble_is_the_models_and_is_told(tmp_path: Path) -> None:
    model = random_fsrcnn()
    save_model(model, tmp_path / "fsrcnn", None)
    image = sky_image(70, 50)
    result, done = run(write_image(tmp_path, image), tmp_path / "fsrcnn", self_ensemble=True)
    noise = np.full_like(image, done["noise_sigma"])[None, None]
    expected = model.super_resolve(image[None, None], noise, CPU, self_ensemble=True)[0, 0]
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert np.abs(expected - model.super_resolve(image[None, None], noise, CPU)[0, 0]).max() > 1e-3
    assert "mean over the 8 symmetries" in " ".join(fits.getheader(tmp_path / "out.fits")["HISTORY"])


# -- bad input --------------------------------------------------------------------------------------------------------


def test_bad_files_are_input_errors_that_name_them(tmp_path: Path, bicubic: Path) -> None:
    good = write_image(tmp_path, sky_image(200, 200))
    target = tmp_path / "out.fits"

    def refused(source: Path, match: str, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            super_resolve_fits(source, target, bicubic, CPU, **options)
        assert not target.exists()

    refused(tmp_path / "absent.fits", r"absent\.fits")
    text = tmp_path / "text.fits"
    text.write_text("not an image")
    refused(text, r"text\.fits")
    cut = tmp_path / "cut.fits"
    cut.write_bytes(good.read_bytes()[:90_000])
    refused(cut, r"cut\.fits")
    refused(good, r"image\.fits.*'SKY'", hdu="SKY")
    refused(good, r"image\.fits.*7", hdu=7)
    refused(good, "tile_size: expected at least 64 LR pixels, found 20", tile_size=20)
    cube = tmp_path / "cube.fits"
    fits.PrimaryHDU(np.zeros((3, 8, 8), "f4")).writeto(cube)
    refused(cube, r"cube\.fits \[PRIMARY\]: expected a 2-D image, found an array of shape \(3, 8, 8\)")
    empty = tmp_path / "empty.fits"
    fits.PrimaryHDU(np.full((30, 30), np.nan, "f4")).writeto(empty)
    refused(empty, r"empty\.fits \[PRIMARY\]: no pixel of this 30 x 30 image is finite")
    flat = tmp_path / "flat.fits"
    fits.PrimaryHDU(np.ones((30, 30), "f4")).writeto(flat)
    refused(flat, r"flat\.fits \[PRIMARY\]: no noise can be measured")
    table = tmp_path / "table.fits"
    fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.ones(3))]).writeto(table)
    refused(table, r"table\.fits", hdu=1)
    with pytest.raises(InputError, match="not a model folder"):
        super_resolve_fits(good, target, tmp_path, CPU)


def test_nothing_is_overwritten_unless_asked(tmp_path: Path, bicubic: Path) -> None:
    source = write_image(tmp_path, sky_image())
    target = tmp_path / "out.fits"
    target.write_text("precious")
    with pytest.raises(InputError, match=r"out\.fits: exists already"):
        super_resolve_fits(source, target, bicubic, CPU)
    assert target.read_text() == "precious"
    super_resolve_fits(source, target, bicubic, CPU, overwrite=True)
    assert fits.getdata(target).shape == (80, 100)
    with pytest.raises(InputError, match=r"image\.fits: is the input"):
        super_resolve_fits(source, source, bicubic, CPU, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bicubic", "image.fits", "out.fits"]


# -- the uncertainty map ----------------------------------------------------------------------------------------------


def random_flow(folder: Path) -> TrainedModel:
    """A flow as it is drawn; one evaluation sees 4 LR pixels far."""
    pairs = blob_pairs(1)
    settings = FlowSettings(blocks=1, features=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network("flow", settings, 2)
    model = TrainedModel("flow", network, describe_model("flow", settings, pairs, Normalisation(20.0, 2)))
    save_model(model, folder / "flow", None)
    return model


def starting_noise(draws: int, shape: tuple[int, int]) -> np.ndarray:
    return np.stack([np.random.default_rng([0, one]).standard_normal(shape, dtype="f4") for one in range(draws)])


def test_sigma_is_the_scatter_of_draws_of_the_whole_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one step, two evaluations, a network sees no further than the tiles' margin: no seam, to rounding."""
    monkeypatch.setattr("sr.posterior.STEPS", 1)
    model = random_flow(tmp_path)
    image = sky_image(150, 70)
    header = cd_header()
    header["BUNIT"] = "electron/s"
    hdus = [fits.PrimaryHDU(image, header), fits.ImageHDU(np.full(image.shape, 0.5, "f4"), name="RMS")]
    source, target = tmp_path / "in.fits", tmp_path / "out.fits"
    fits.HDUList(hdus).writeto(source)
    done = super_resolve_fits(source, target, tmp_path / "flow", CPU, tile_size=64, draws=5)

    start = starting_noise(5, (300, 140))[None]
    lr, noise = image[None, None], np.full((1, 1, *image.shape), 0.5, "f4")
    draws = model.sample(lr, noise, 5, 0, CPU, steps=1, start=start)[0]
    history = "HDU SIGMA: standard deviation of 5 posterior draws (1 steps each)"
    with fits.open(target) as file:
        assert [one.name for one in file] == ["PRIMARY", "SIGMA"]
        primary, sigma = file
        assert sigma.data.dtype == np.dtype(">f4")
        np.testing.assert_allclose(sigma.data, draws.std(0, ddof=1), rtol=2e-3, atol=1e-5 * draws.std(0).max())
        np.testing.assert_allclose(primary.data, model.super_resolve(lr, noise, CPU)[0, 0], atol=1e-5 * image.max())
        assert sigma.header["BUNIT"] == "electron/s"
        for one in (primary, sigma):
            place = WCS(one.header).all_pix2world(2 * 10 + 0.5, 2 * 20 + 0.5, 0)
            np.testing.assert_allclose(place, WCS(header).all_pix2world(10, 20, 0), atol=1e-9)
            assert history in " ".join(one.header["HISTORY"])
    assert done["draws"] == 5


def test_eight_steps_leave_no_seam_that_matters(tmp_path: Path) -> None:
    """They see further than a tile's margin; tiles with noise of their own would be off by 0.3 sigma in the overlap."""
    model, image = random_flow(tmp_path), sky_image(64, 110)
    one_piece = sigma_image(model, image, 0.5, CPU, 128, 6)
    tiled = sigma_image(model, image, 0.5, CPU, 64, 6)
    np.testing.assert_allclose(tiled, one_piece, rtol=0.01)


class Noisy(nn.Module):
    """A network with a predicted sigma: twice as large in the right half of what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = build_network("bicubic", resolve_settings("bicubic", "full"), 2)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return self.mean(lr)

    def sample(self, lr: torch.Tensor, noise: torch.Tensor, steps: int) -> torch.Tensor:
        return self(lr) + noise * (1 + (self(lr) > 1))


def test_a_predicted_sigma_is_found_again() -> None:
    """A network's 1 is a flux of 0.5 x 20 / 4 here; 100 draws give a sigma to 7 % in each pixel."""
    image = np.full((70, 100), 1.0, "f4")
    image[:, 50:] = 30.0
    config = describe_model("bicubic", resolve_settings("bicubic", "full"), blob_pairs(1), Normalisation(20.0, 2))
    sigma = sigma_image(TrainedModel("noisy", Noisy(), config), image, 0.5, CPU, 64, 100)
    for half, expected in ((sigma[:, :96], 2.5), (sigma[:, 104:], 5.0)):
        assert half.mean() == pytest.approx(expected, rel=0.005)
        np.testing.assert_allclose(half, expected, rtol=5 * 0.071)


def test_sigma_has_the_unit_and_the_holes_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sr.posterior.STEPS", 1)
    random_flow(tmp_path)
    image = sky_image()
    image[5, 7] = np.nan
    sigmas = []
    for unit in ("Jy", "MJy/sr"):
        (tmp_path / unit[:2]).mkdir()
        source = write_image(tmp_path / unit[:2], image, fits.Header({"BUNIT": unit, "PIXSCALE": PIXEL_SCALE_ARCSEC}))
        result, done = run(source, tmp_path / "flow")
        assert done["draws"] == 16  # nothing was asked for, and a flow can
        sigmas.append(fits.getdata(source.with_name("out.fits"), "SIGMA"))
        np.testing.assert_array_equal(np.isnan(sigmas[-1]), np.isnan(result))
    assert np.isnan(sigmas[0]).sum() == 4
    np.testing.assert_array_equal(sigmas[1], 4 * sigmas[0])
    run(source, tmp_path / "flow", draws=0, overwrite=True)
    with fits.open(source.with_name("out.fits")) as file:
        assert len(file) == 1


def test_draws_that_cannot_be_made_are_refused(tmp_path: Path, bicubic: Path) -> None:
    source = write_image(tmp_path, sky_image())
    with pytest.raises(InputError, match=r"bicubic.* gives one answer an image.*leave --draws out, or give a --model"):
        run(source, bicubic, draws=4)
    assert not source.with_name("out.fits").exists()
    random_flow(tmp_path)
    with pytest.raises(InputError, match=r"expected 0 \(no map\) or at least 2, found 1"):
        run(source, tmp_path / "flow", draws=1)
    _, done = run(source, bicubic)
    assert done["draws"] == 0


def test_a_real_lens_is_super_resolved(observed_images: Path, tmp_path: Path) -> None:
    source = observed_images / "two_telescope" / "euclidQ1_example.fits"
    done = super_resolve_fits(source, tmp_path / "out.fits", described_model(tmp_path), CPU, hdu="VIS_FLUX")
    image, header = fits.getdata(source, "VIS_FLUX"), fits.getheader(source, "VIS_FLUX")
    result, written = fits.getdata(tmp_path / "out.fits"), fits.getheader(tmp_path / "out.fits")
    assert result.shape == (2 * image.shape[0], 2 * image.shape[1])
    assert done["noise_source"] == "noise from RMS"
    assert done["notes"] == []
    assert np.nansum(result) == pytest.approx(np.nansum(image), rel=0.01)
    np.testing.assert_allclose(
        WCS(written).all_pix2world(2 * 90 + 0.5, 2 * 80 + 0.5, 0), WCS(header).all_pix2world(90, 80, 0), atol=1e-9
    )


@pytest.mark.parametrize(
    ("name", "hdu", "reason"),
    [
        ("two_telescope/euclidQ1_example.fits", "NIR_H_FLUX", "the image is from NIR_H"),  # resampled to 0.1"
        ("two_telescope/euclidQ1_102018665_NEG570040238507752998.fits", "DES_I_BGSUB", "the image is from DECAM_i"),
        ("two_telescope/euclidQ1_EUCLJ174517.55+655612.5.fits", "HSC_G_FLUX", "the image is from HSC_g"),
        ("two_telescope/euclidQ1_EUCLJ174517.55+655612.5.fits", "MEGACAM_R_FLUX", "the image is from MEGACAM_r"),
        ("hst_lenses/HE0435_HST_f814w.fits", "SCI", r'the pixels are 0\.05"'),
        ("hst_lenses/slacs0946+1006.fits", "SCI", "the pixel scale is not in the header"),
        ("hst_lenses/J0607_HSTF160W.fits", "SCI", r"background at the edges is .* \(6\.81 sigma\)"),  # 0.0975"
    ],
)
def test_real_images_of_other_telescopes_are_refused_by_a_model_for_vis(
    observed_images: Path, tmp_path: Path, name: str, hdu: str, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        super_resolve_fits(observed_images / name, tmp_path / "out.fits", described_model(tmp_path), CPU, hdu=hdu)


# -- the PSF of the image, for a network that knows the degradation ---------------------------------------------------


PSF_STEP_ARCSEC = 0.05


def unrolled_model(folder: Path, **changes: Any) -> TrainedModel:
    """Untrained: its step of A alone makes the answer depend on the PSF. Trained on LR PSFs of 0.2", it says."""
    pairs = blob_pairs(1)
    pairs = replace(pairs, lr_band=Band("blurred", 0.1, gaussian_kernel(4, 25), PSF_STEP_ARCSEC))
    settings = UnrolledSettings(steps=1, blocks=1, fields=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network("unrolled", settings, 2)
    seen = SeenRange(peak_signal_to_noise=(10.0, 1000.0), lr_fwhm_arcsec=0.2)
    config = describe_model("unrolled", settings, pairs, Normalisation(20.0, 2), training_range=seen)
    model = TrainedModel("unrolled", network, config, usual_kernel(network, pairs))
    save_model(replace(model, **changes), folder / "unrolled", None)
    return model


def write_psf(folder: Path, image: np.ndarray, pixel_scale_arcsec: float = PSF_STEP_ARCSEC) -> Path:
    path = folder / "psf.fits"
    fits.PrimaryHDU(image, fits.Header({"PIXSCALE": pixel_scale_arcsec})).writeto(path, overwrite=True)
    return path


def expected_answer(model: TrainedModel, image: np.ndarray, psf: np.ndarray, noise: float) -> np.ndarray:
    """What the network says if it is told the kernel for this LR PSF, sampled at PSF_STEP_ARCSEC."""
    lr_band = Band("given", 0.1, psf, PSF_STEP_ARCSEC)
    kernels = matching_kernels(blob_pairs(1).hr_band, lr_band)
    sigma = np.full_like(image, noise)[None, None]
    return model.super_resolve(image[None, None], sigma, CPU, kernels=kernels)[0, 0]


@pytest.mark.parametrize("fwhm_arcsec", [0.2, 0.3])
def test_the_network_is_told_the_psf_of_the_file(tmp_path: Path, fwhm_arcsec: float) -> None:
    model, image = unrolled_model(tmp_path), sky_image()
    source = write_image(tmp_path, image)
    kernel = gaussian_kernel(fwhm_arcsec / PSF_STEP_ARCSEC, 31)
    psf = write_psf(tmp_path, kernel)
    result, done = run(source, tmp_path / "unrolled", psf=psf, psf_includes_pixel=False)
    expected = expected_answer(model, image, kernel, done["noise_sigma"])
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * expected.max())
    usual, usually = run(source, tmp_path / "unrolled", overwrite=True)
    difference = np.abs(result - usual).max() / expected.max()
    assert difference < 1e-3 if fwhm_arcsec == 0.2 else difference > 0.02
    assert usually["psf_source"] == "PSF: the mean of the training data"
    assert done["psf_source"].startswith(f"PSF: {psf} [PRIMARY], FWHM {fwhm_arcsec:.1f}")
    assert done["psf_source"].endswith('(0.2" in training)')


def test_a_psf_measured_on_stars_has_the_pixel_in_it(tmp_path: Path) -> None:
    """A Gaussian averaged over LR pixels of 0.1", in closed form."""
    model, image = unrolled_model(tmp_path), sky_image()
    source = write_image(tmp_path, image)
    sigma, axis = 0.3 / 2.3548, (np.arange(41) - 20) * PSF_STEP_ARCSEC
    edges = np.stack([erf((axis + side) / (sigma * np.sqrt(2))) for side in (-0.05, 0.05)])
    profile = (edges[1] - edges[0]) / (edges[1] - edges[0]).sum()
    psf = write_psf(tmp_path, np.outer(profile, profile))
    result, done = run(source, tmp_path / "unrolled", psf=psf)
    expected = expected_answer(model, image, gaussian_kernel(6, 41), done["noise_sigma"])
    np.testing.assert_allclose(result, expected, rtol=0, atol=3e-3 * expected.max())
    taken_as_optics, _ = run(source, tmp_path / "unrolled", psf=psf, psf_includes_pixel=False, overwrite=True)
    assert np.abs(taken_as_optics - expected).max() > 0.01 * expected.max()


def test_the_hdu_of_the_psf_is_found(tmp_path: Path) -> None:
    """Beside other images, alone behind an empty primary HDU, and without a pixel scale: then it is the image's."""
    unrolled_model(tmp_path)
    source, psf = write_image(tmp_path, sky_image()), write_psf(tmp_path, gaussian_kernel(6, 31))
    expected, _ = run(source, tmp_path / "unrolled", psf=psf, psf_includes_pixel=False)
    header = fits.Header({"PSFSUP": 2})
    for first in (fits.PrimaryHDU(sky_image()), fits.PrimaryHDU()):
        fits.HDUList([first, fits.ImageHDU(gaussian_kernel(6, 31), header, name="PSF")]).writeto(psf, overwrite=True)
        result, done = run(source, tmp_path / "unrolled", psf=psf, psf_includes_pixel=False, overwrite=True)
        np.testing.assert_array_equal(result, expected)
        assert "psf.fits [PSF], FWHM 0.3" in done["psf_source"]


def test_psfs_are_told_in_pixels(tmp_path: Path) -> None:
    """An image whose pixels are 4 % wider, with a PSF that is too, is the same image to a network."""
    unrolled_model(tmp_path)
    results = []
    for width in (1.0, 1.04):
        folder = tmp_path / str(width)
        folder.mkdir()
        source = write_image(folder, sky_image(), fits.Header({"PIXSCALE": 0.1 * width}))
        psf = write_psf(folder, gaussian_kernel(6, 31), PSF_STEP_ARCSEC * width)
        results.append(run(source, tmp_path / "unrolled", psf=psf, psf_includes_pixel=False)[0])
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-4 * results[0].max())


def test_a_psf_that_is_of_no_use_is_refused(tmp_path: Path, bicubic: Path) -> None:
    source, psf = write_image(tmp_path, sky_image()), write_psf(tmp_path, gaussian_kernel(6, 31))

    def refused(model: Path, match: str, psf: Path = psf) -> None:
        with pytest.raises(InputError, match=match) as caught:
            run(source, model, psf=psf, psf_includes_pixel=False)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out.fits").exists()

    refused(bicubic, r"--psf .*psf\.fits: has no effect: model bicubic \(bicubic\) is not told")
    model = unrolled_model(tmp_path)
    assert model.kernel is not None
    refused(tmp_path / "unrolled", r"absent\.fits", tmp_path / "absent.fits")
    sharp = write_psf(tmp_path, gaussian_kernel(6, 31), 0.01)
    refused(tmp_path / "unrolled", r'broader than the 0\.09\d*" \(FWHM\) of sharp.* found 0\.0[5-7]', sharp)
    unrolled_model(tmp_path, kernel=UsualKernel(model.kernel.kernel, None))
    refused(tmp_path / "unrolled", "saved by an older version, without the PSF of its HR instrument")


def test_the_command_takes_a_psf(tmp_path: Path) -> None:
    unrolled_model(tmp_path)
    source, psf = write_image(tmp_path, sky_image()), write_psf(tmp_path, gaussian_kernel(6, 31))
    expected, _ = run(source, tmp_path / "unrolled", psf=psf, psf_includes_pixel=False)
    arguments = ["super-resolve", source, tmp_path / "cli.fits", "--model", tmp_path / "unrolled", "--psf", psf]
    CliRunner().invoke(pipeline.app, [*map(str, arguments), "--psf-without-pixel"], catch_exceptions=False)
    np.testing.assert_array_equal(fits.getdata(tmp_path / "cli.fits"), expected)
    assert "FWHM 0.3" in " ".join(fits.getheader(tmp_path / "cli.fits")["HISTORY"])


def test_a_model_of_whole_images_refuses_more_than_one_tile(tmp_path: Path) -> None:
    pairs = blob_pairs(2, seed=3)
    settings = resolve_settings("lens_encoder", "small", {"features": 4, "hidden": 8, "refinements": 0})
    config = describe_model("lens_encoder", settings, pairs, Normalisation(20.0, 2), data_sha256="ab" * 32)
    network = build_network("lens_encoder", settings, 2)
    save_model(TrainedModel("lens", network, config, usual_kernel(network, pairs)), tmp_path / "lens", None)
    whole = write_image(tmp_path, sky_image())
    assert run(whole, tmp_path / "lens", force=True)[0].shape == (80, 100)
    whole.unlink()
    (tmp_path / "out.fits").unlink()
    with pytest.raises(InputError, match=r"one lens .* expected at most 64 pixels a side, found 40 x 70"):
        run(write_image(tmp_path, sky_image(40, 70)), tmp_path / "lens", force=True, tile_size=64)
