"""Shipped models: which is chosen for an image, what headers say of telescopes, and that what is shipped is whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits

import sr.shipped
from simulate.errors import InputError
from simulate.instruments import config_folder, load_instrument
from sr.doctor import examine
from sr.domain import Observation, SeenRange
from sr.model_folder import load_model, save_model
from sr.shipped import choose_model, find_model, shipped_models, validation_psnr_db
from sr.super_resolve import super_resolve_fits
from sr.telescopes import agrees, recognise, telescope_of
from sr.trained_model import interpolation_model

from .conftest import blob_pairs

CPU = torch.device("cpu")
MAXIMUM_BYTES = 8 * 2**20


def ship(folder: Path, name: str, psnr_db: Any = None, scale: int = 2, **changes: Any) -> None:
    model = interpolation_model("bicubic", blob_pairs(1, scale=scale, lr_size=8))
    model.config = model.config.model_copy(update={"lr_pixel_scale_arcsec": 0.1, **changes})
    save_model(model, folder / name, None if psnr_db is None else {"validation": {"psnr_db": psnr_db}})


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sr.shipped, "WEIGHTS_FOLDER", tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture
def shelf(weights: Path) -> Path:
    """Models of two instruments of 0.1" (nearly), one of 0.05"."""
    ship(weights, "vis-poor", 40.0, lr_instrument="Euclid VIS")
    ship(weights, "vis-good", {"mean": 44.0, "low": 43.0, "high": 45.0}, lr_instrument="Euclid VIS")
    ship(weights, "vis-unmeasured", None, lr_instrument="Euclid VIS")
    ship(weights, "vis-x4", 60.0, scale=4, lr_instrument="Euclid VIS")
    seen = SeenRange(peak_signal_to_noise=(10, 100), lr_fwhm_arcsec=0.17, lr_fwhm_range_arcsec=(0.12, 0.24))
    several = {"architecture": "unrolled", "settings": {"scales": [2, 4]}, "training_range": seen}
    ship(weights, "vis-psfs", 42.0, scale=4, lr_instrument="Euclid VIS", **several)
    ship(weights, "vis-one-lens", 90.0, architecture="lens_encoder", lr_instrument="Euclid VIS")
    ship(weights, "vis-colour", 70.0, channels=3, lr_instrument="Euclid VIS")
    ship(weights, "f160w", 50.0, lr_instrument="HST WFC3 F160W", lr_pixel_scale_arcsec=0.0975)
    ship(weights, "acs", 80.0, lr_instrument="HST ACS F814W", lr_pixel_scale_arcsec=0.05)
    return weights


def observation(pixel_scale_arcsec: float | None, **words: str) -> Observation:
    return Observation(pixel_scale_arcsec, telescope_of(fits.Header(words)), 0.0, 0.0, 50.0)


VIS = {"TELESCOP": "EUCLID", "FILTER": "VIS"}


def test_a_model_for_many_psfs_is_chosen_where_the_psf_is_given(shelf: Path) -> None:
    image = observation(0.1, **VIS)
    assert choose_model(image, "in.fits", 2, with_psf=True) == shelf / "vis-psfs"
    assert choose_model(image, "in.fits", 4, with_psf=True) == shelf / "vis-psfs"
    assert choose_model(image, "in.fits", None, with_psf=True) == shelf / "vis-psfs"


@pytest.mark.parametrize(
    ("found", "scale", "expected"),
    [
        (
            observation(0.1, **VIS),
            None,
            "vis-good",
        ),  # x2 before x4, one channel, any image, the best
        (observation(0.1, **VIS), 4, "vis-x4"),
        (observation(0.0955, FILTER="VIS"), None, "vis-good"),
        (observation(0.1, TELESCOP="HST", INSTRUME="WFC3", FILTER="F160W"), None, "f160w"),
        (observation(0.05), None, "acs"),  # nothing but the pixel scale is known, and one instrument has it
        (observation(0.05, TELESCOP="HST"), None, "acs"),
    ],
)
def test_the_model_of_the_images_instrument_and_pixels_is_chosen(
    shelf: Path, found: Observation, scale: int | None, expected: str
) -> None:
    assert choose_model(found, "in.fits", scale) == shelf / expected


@pytest.mark.parametrize(
    ("found", "scale", "message"),
    [
        (observation(0.1), None, "expected the instrument in the header .* Euclid VIS or HST WFC3 F160W; set it, or"),
        (observation(None, **VIS), None, "expected PIXSCALE or a WCS .*found neither"),
        (
            observation(0.168, **VIS),
            None,
            r'no shipped model is for EUCLID VIS with 0\.168" pixels \(shipped are acs: HST',
        ),
        (observation(0.1, TELESCOP="JWST", INSTRUME="MIRI"), None, "no shipped model is for JWST MIRI"),
        (observation(0.1, **VIS), 8, "no shipped model is for EUCLID VIS .* and a scale of 8"),
        (
            observation(0.02),
            None,
            r'no shipped model is for an unknown instrument .*vis-good: Euclid VIS 0\.1", x2, 44\.00 dB',
        ),
    ],
)
def test_no_model_is_chosen_by_guessing(shelf: Path, found: Observation, scale: int | None, message: str) -> None:
    with pytest.raises(InputError, match=rf"^in\.fits: {message}"):
        choose_model(found, "in.fits", scale)


def test_without_shipped_models_the_way_out_is_told(weights: Path) -> None:
    with pytest.raises(InputError, match=r"in\.fits: no model is shipped .*pipeline train.*--model"):
        choose_model(observation(0.1, **VIS), "in.fits")
    with pytest.raises(InputError, match=r"--model rcan: no such folder, and no shipped model .*none is shipped"):
        find_model("rcan")


def test_a_model_is_found_by_name_or_folder(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_model("acs") == shelf / "acs"
    ship(tmp_path, "acs", lr_instrument="mine")
    assert find_model(tmp_path / "acs") == tmp_path / "acs"
    monkeypatch.chdir(tmp_path)
    assert load_model(find_model("acs"), CPU).config.lr_instrument == "mine"  # a folder goes before a name
    with pytest.raises(InputError, match=r"shipped are acs: .*; f160w: "):
        find_model("asc")


def test_an_image_is_super_resolved_without_a_model_named(shelf: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(0, 1, (40, 40)).astype("f4")
    header = fits.Header({"PIXSCALE": 0.1, **VIS})
    fits.writeto(tmp_path / "in.fits", image, header)
    done = super_resolve_fits(tmp_path / "in.fits", tmp_path / "out.fits", None, CPU)
    assert (done["model"], done["notes"]) == (str(shelf / "vis-good"), [])
    assert "model vis-good (bicubic), Euclid VIS" in " ".join(fits.getheader(tmp_path / "out.fits")["HISTORY"])
    done = super_resolve_fits(tmp_path / "in.fits", tmp_path / "x4.fits", None, CPU, scale=4)
    assert fits.getdata(tmp_path / "x4.fits").shape == (160, 160)
    done = super_resolve_fits(tmp_path / "in.fits", tmp_path / "poor.fits", "vis-poor", CPU)
    assert done["model"].endswith("vis-poor")
    with pytest.raises(InputError, match=r"0\.05.*EUCLID VIS.*HST ACS F814W.*--force"):
        super_resolve_fits(tmp_path / "in.fits", tmp_path / "acs.fits", "acs", CPU)


def test_doctor_lists_them_and_finds_a_damaged_one(shelf: Path) -> None:
    line = next(check for check in examine() if check.text.startswith("shipped models: "))
    assert line.good
    assert 'vis-good (Euclid VIS 0.1", x2, 44.00 dB in validation)' in line.text
    assert 'vis-one-lens (Euclid VIS 0.1", x2, 90.00 dB in validation, for one lens in a whole image)' in line.text
    (shelf / "acs" / "config.json").write_text("{")
    line = next(check for check in examine() if check.text.startswith("shipped models: "))
    assert not line.good
    assert "acs/config.json: cannot be read" in line.text


def test_what_is_shipped_is_whole_and_small() -> None:
    for name, config in shipped_models().items():
        folder = find_model(name)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= MAXIMUM_BYTES, name
        assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
        assert load_model(folder, CPU).name == name
        assert validation_psnr_db(config) is not None, f"{name} was saved without validation scores"
        assert config.training_range is not None, f"{name} was saved without the range it saw"
        assert recognise(config.lr_instrument).cameras, f"{name}: no header can be known to be its instrument's"


# -- what headers say -------------------------------------------------------------------------------------------------


def test_our_instruments_are_told_from_one_another() -> None:
    names = sorted({load_instrument(path.stem).name for path in (config_folder() / "instruments").glob("*.yaml")})
    assert len(names) == 10  # HST ACS F814W comes with three pixel scales
    for one in names:
        for other in names:
            assert agrees(recognise(one), recognise(other)) is (one == other)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"TELESCOP": "HST", "INSTRUME": "ACS", "FILTER1": "CLEAR1L", "FILTER2": "F814W"}, "HST ACS F814W"),
        ({"TELESCOP": "HST", "INSTRUME": "WFC3", "DETECTOR": "IR", "FILTER": "F160W"}, "HST WFC3 F160W"),
        ({"TELESCOP": "JWST", "INSTRUME": "NIRCAM", "FILTER": "F150W", "PUPIL": "CLEAR"}, "JWST NIRCam F150W"),
        ({"TELESCOP": "EUCLID", "INSTRUME": "VIS", "FILTER": "VIS"}, "Euclid VIS"),
        ({"FILTER": "VIS"}, "Euclid VIS"),
        ({"INSTRUME": "NISP", "FILTER": "NIR_H"}, "Euclid NISP H"),
        ({"TELESCOP": "Subaru", "INSTRUME": "Hyper Suprime-Cam", "FILTER": "HSC-I"}, "HSC i"),
        ({"TELESCOP": "Subaru", "FILTER": "i2"}, "HSC i"),
        ({"TELESCOP": "CTIO 4.0-m telescope", "FILTER": "i DECam SDSS c0003 7835.0 1470.0", "BAND": "i"}, "DES i"),
        ({"TELESCOP": "Simonyi Survey Telescope", "INSTRUME": "LSSTCam", "FILTER": "i_39"}, "Rubin LSST i"),
        ({"TELESCOP": "HST"}, "HST ACS F814W"),  # too little to disagree
        ({"FILTER": "F814W"}, "HST ACS F814W"),
    ],
)
def test_headers_of_telescopes_are_recognised(words: dict[str, str], name: str) -> None:
    assert agrees(telescope_of(fits.Header(words)), recognise(name)) is True


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({"TELESCOP": "HST", "INSTRUME": "ACS", "FILTER1": "F606W", "FILTER2": "CLEAR2L"}, "HST ACS F814W"),
        ({"TELESCOP": "HST", "INSTRUME": "COS"}, "HST ACS F814W"),
        ({"TELESCOP": "HST", "INSTRUME": "WFPC2", "FILTNAM1": "F814W"}, "HST ACS F814W"),
        ({"TELESCOP": "JWST", "INSTRUME": "NIRCAM", "FILTER": "F150W2", "PUPIL": "F162M"}, "JWST NIRCam F150W"),
        ({"TELESCOP": "VISTA", "INSTRUME": "VIRCAM", "FILTER": "Ks"}, "Euclid VIS"),
        ({"TELESCOP": "VLT"}, "Euclid VIS"),
        ({"FILTER": "F814W"}, "Euclid VIS"),
        ({"TELESCOP": "EUCLID", "FILTER": "DECAM_g"}, "Euclid VIS"),
        ({"FILTER": "HSC-R"}, "HSC i"),
    ],
)
def test_headers_of_other_telescopes_are_told_apart(words: dict[str, str], name: str) -> None:
    assert agrees(telescope_of(fits.Header(words)), recognise(name)) is False


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ({}, "Euclid VIS"),
        ({"TELESCOP": "", "FILTER": "unknown"}, "Euclid VIS"),
        ({"TELESCOP": "HST", "INSTRUME": "ACS", "FILTER": "F814W"}, "degraded"),
    ],
)
def test_what_cannot_be_compared_is_left_open(words: dict[str, str], name: str) -> None:
    assert agrees(telescope_of(fits.Header(words)), recognise(name)) is None


def test_a_header_whose_keyword_has_no_value_is_read() -> None:
    header = fits.Header.fromstring(
        "TELESCOP=".ljust(80) + "FILTER  =                    5".ljust(80) + "END".ljust(80)
    )
    assert telescope_of(header).text == ""


def test_real_headers_are_recognised(observed_images: Path) -> None:
    folder = observed_images / "two_telescope"
    expected = {
        ("euclidQ1_example.fits", "VIS_FLUX"): "Euclid VIS",
        ("euclidQ1_102018665_NEG570040238507752998.fits", "VIS_BGSUB"): "Euclid VIS",
        ("euclidQ1_102018665_NEG570040238507752998.fits", "DES_I_BGSUB"): "DES i",
        ("euclidQ1_102018665_NEG570040238507752998.fits", "NIR_H_BGSUB"): "Euclid NISP H",
        ("euclidQ1_EUCLJ174517.55+655612.5.fits", "HSC_Z_FLUX"): "HSC z",
        ("../hst_galaxies/cosmos_acs_f814w.fits", "PRIMARY"): "HST ACS F814W",
    }
    names = sorted({*expected.values(), "Roman WFI F129", "HST WFC3 F160W", "HSC i"})
    for (file, hdu), name in expected.items():
        telescope = telescope_of(fits.getheader(folder / file, hdu))
        assert [one for one in names if agrees(telescope, recognise(one))] == [name]
    bare = telescope_of(fits.getheader(observed_images / "hst_lenses" / "HE0435_HST_f814w.fits", "SCI"))
    assert bare.text == ""
