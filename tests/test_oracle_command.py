"""`pipeline fit`: from a FITS image to parameters, model images and a picture; and what it refuses."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image
from typer.testing import CliRunner

import pipeline
from simulate.errors import InputError
from simulate.instruments import PSFSettings, pixel_psf
from simulate.lenstronomy_engine import render_reference
from simulate.sample import instruments, simulate_sample
from simulate.scene import Scene
from sr.oracle.image_file import LARGEST, read_lens_image
from sr.psf_choice import PsfChoice

from .test_oracle_model import small_settings

SETTINGS = small_settings()
HEIGHT, WIDTH = 30, 32
QUICK = ["--set", "dark_lens=true", "--set", "fit={draws: 512, starts: 2, rounds: 3}"]


def wcs_header() -> fits.Header:
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "BUNIT": "nJy"})
    header["CRPIX1"], header["CRPIX2"], header["CDELT1"], header["CDELT2"] = 10.0, 12.0, -0.1 / 3600, 0.1 / 3600
    return header


@dataclass
class Lens:
    path: Path
    scene: Scene
    lr: np.ndarray
    noise: np.ndarray


@pytest.fixture(scope="module")
def lens(tmp_path_factory: pytest.TempPathFactory) -> Lens:
    """A simulated lens without its two upper rows, with one pixel missing."""
    sample = simulate_sample(SETTINGS, 11, 3)
    lr, noise = (sample[name][0][:HEIGHT].copy() for name in ("lr", "lr_noise"))
    lr[2, 3] = np.nan
    path = tmp_path_factory.mktemp("lens") / "lens.fits"
    noise_map = fits.ImageHDU(noise, name="RMS")
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(lr, wcs_header(), name="SCI"), noise_map]).writeto(path)
    noise_map.name = "RMS"
    return Lens(path, Scene.from_json(sample["name"]), lr, noise)


def run(*arguments: object) -> tuple[int, str]:
    """Exit code and last line of `pipeline fit ...`."""
    try:
        result = CliRunner().invoke(pipeline.app, ["fit", *map(str, arguments)], catch_exceptions=False)
    except InputError as error:
        return 2, str(error)
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def fitted(lens: Lens, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("out") / "fit"
    code, output = run(lens.path, folder, "--fwhm", 0.16, "--device", "cpu", *QUICK)
    assert code == 0
    return folder, json.loads((folder / "fit.json").read_text()), output


def test_the_parameters_are_those_of_the_lens(lens: Lens, fitted):
    _, found, output = fitted
    assert found["accepted"]
    assert "accepted" in output
    assert "noise from RMS" in output
    assert 0.85 < found["chi2_per_degree"] < 1.15
    truth = lens.scene.kwargs_lens[0] | lens.scene.kwargs_lens[1]
    parameters = found["parameters"]
    # the frame's middle is that of the square of 32 pixels that the image is put in: a row above the lens's
    up = 0.1
    for name, key, shift in (
        ("theta_e_arcsec", "theta_E", 0),
        ("slope", "gamma", 0),
        ("e1", "e1", 0),
        ("gamma1", "gamma1", 0),
        ("center_x_arcsec", "center_x", 0),
        ("center_y_arcsec", "center_y", up),
    ):
        one = parameters[f"macro.{name}"]
        assert abs(one["value"] - truth[key] - shift) < 5 * one["sigma"], name
        assert one["sigma"] > 0
    assert found["origin_fits_pixel"] == [16.5, 15.5]
    matrix = np.array(found["covariance"]["matrix"])
    names = found["covariance"]["names"]
    assert "source.flux" in names
    np.testing.assert_allclose(np.sqrt(matrix.diagonal()), [parameters[name]["sigma"] for name in names])
    assert np.linalg.eigvalsh(matrix / np.sqrt(np.outer(matrix.diagonal(), matrix.diagonal()))).min() > 0
    assert parameters["source.flux"]["unit"].startswith("nJy")


def test_the_images_are_the_models(lens: Lens, fitted):
    folder, found, _ = fitted
    with fits.open(folder / "fit.fits") as file:
        model, residual, hr, sigma = (file[name].data for name in ("MODEL", "RESIDUAL", "HR_MODEL", "HR_SIGMA"))
        hr_header, lr_header = file["HR_MODEL"].header, file["MODEL"].header
    assert model.shape == (HEIGHT, WIDTH)
    assert hr.shape == sigma.shape == (2 * HEIGHT, 2 * WIDTH)
    known = np.isfinite(lens.lr)
    np.testing.assert_allclose(residual[known], ((lens.lr - model) / lens.noise)[known], atol=1e-4)
    assert np.nansum(residual[known] ** 2) == pytest.approx(found["chi2"], rel=1e-4)
    # lenstronomy's image of the same models, on the square frame
    scene = Scene(
        "none",
        **{"lens_light_model_list": [], "kwargs_lens_light": [], **found["lenstronomy"]},
        z_lens=0.5,
        z_source=1.5,
        cosmology={},
        draw={},
    )
    wanted = render_reference(scene, instruments(SETTINGS)[1], 32, 6)
    np.testing.assert_allclose(model, wanted[1 : HEIGHT + 1], atol=2e-6 * wanted.max())
    assert hr.sum() == pytest.approx(model.sum(), rel=0.02)
    assert 0 < sigma.max() < 0.1 * hr.max()
    corner_hr, corner_lr = WCS(hr_header).pixel_to_world(-0.5, -0.5), WCS(lr_header).pixel_to_world(-0.5, -0.5)
    assert corner_hr.separation(corner_lr).arcsec < 1e-6
    with Image.open(folder / "fit.png") as picture:
        assert picture.size[0] > 1000


def test_a_psf_file_serves_as_well_as_its_description(lens: Lens, tmp_path: Path):
    _, lr_instrument = instruments(SETTINGS)
    hdu = fits.PrimaryHDU(pixel_psf(lr_instrument))
    hdu.writeto(tmp_path / "psf.fits")
    from_file = read_lens_image(lens.path, PsfChoice(file=tmp_path / "psf.fits"))
    assert from_file.psf.kind == "fits"
    named = [fits.PrimaryHDU(), fits.ImageHDU(np.zeros((9, 9)), name="SCI"), fits.ImageHDU(hdu.data, name="PSF")]
    fits.HDUList(named).writeto(tmp_path / "named.fits")
    in_hdu = read_lens_image(lens.path, PsfChoice(file=tmp_path / "named.fits"))
    assert (in_hdu.psf.kind, in_hdu.psf.hdu) == ("fits", "PSF")
    named[2].name = "VIS_PSF"
    fits.HDUList(named).writeto(tmp_path / "several.fits")
    with pytest.raises(InputError, match=r"expected an HDU called PSF, or one image alone, found SCI, VIS_PSF; save"):
        read_lens_image(lens.path, PsfChoice(file=tmp_path / "several.fits"))
    assert from_file.psf.fits_pixel_scale_arcsec == pytest.approx(0.1)
    assert from_file.psf.pixel_response_arcsec == pytest.approx(0.1)
    by_name = read_lens_image(lens.path, PsfChoice(instrument="euclid-vis"))
    assert by_name.psf == PSFSettings(kind="gaussian", fwhm_arcsec=0.16)
    assert by_name.flux.shape == (32, 32)
    assert np.isinf(by_name.noise[[0, 31]]).all()  # rows that the file does not have
    assert np.isinf(by_name.noise[3, 3])  # the missing pixel
    assert np.count_nonzero(np.isfinite(by_name.noise)) == HEIGHT * WIDTH - 1
    given = read_lens_image(lens.path, PsfChoice(fwhm_arcsec=0.2), noise_sigma=3.0)
    assert np.unique(given.noise).tolist() == [3.0, np.inf]


def test_wrong_input_is_one_clear_line_and_exit_code_2(
    lens: Lens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["pipeline", "fit", str(lens.path), str(tmp_path / "out"), "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        pipeline.main()
    assert stop.value.code == 2
    assert "give --psf, --fwhm or --instrument" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fwhm", "0.16", "--instrument", "euclid-vis"], "not several"),
        (["--fwhm", "-1"], "--fwhm -1"),
        (["--instrument", "euclid"], "unknown instrument 'euclid'"),
        (["--fwhm", "0.16", "--noise", "0"], "--noise 0"),
        (["--fwhm", "0.16", "--hdu", "NONE"], "NONE"),
        (["--fwhm", "0.16", "--set", "macro.theta_e=1"], "theta_e_arcsec"),
        (["--fwhm", "0.16", "--set", "dark_lens=true", "--set", "lens_light={sersic_index: 4}"], "dark_lens"),
        (["--psf", "nowhere.fits"], "nowhere.fits"),
        (["--fwhm", "0.16", "--pixel-scale", "0"], "pixel scale"),
    ],
)
def test_wrong_options_are_named(lens: Lens, tmp_path: Path, arguments: list[str], message: str):
    code, output = run(lens.path, tmp_path / "out", "--device", "cpu", *arguments)
    assert code == 2
    assert message in output
    assert not (tmp_path / "out").exists()


def test_images_that_cannot_be_fitted_are_refused(lens: Lens, tmp_path: Path):
    def write(name: str, image: np.ndarray, **header: object) -> Path:
        fits.PrimaryHDU(image, fits.Header(header)).writeto(tmp_path / name)
        return tmp_path / name

    noise = np.random.default_rng(0).normal(size=(LARGEST + 1, 40)).astype("f4")
    psf = ["--fwhm", "0.16", "--device", "cpu"]
    assert run(write("large.fits", noise, PIXSCALE=0.1), tmp_path / "a", *psf)[1].count(f"{LARGEST}") == 1
    assert "--pixel-scale" in run(write("no_scale.fits", noise[:40]), tmp_path / "b", *psf)[1]
    empty = write("empty.fits", -np.abs(noise[:40]), PIXSCALE=0.1)
    assert "nothing to fit" in run(empty, tmp_path / "c", *psf, "--noise", "1")[1]
    (tmp_path / "there").mkdir()
    assert "exists already" in run(lens.path, tmp_path / "there", *psf)[1]
