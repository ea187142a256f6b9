"""The configuration that a run keeps says the same when it is read back."""

from pathlib import Path

import pytest

from simulate.errors import InputError
from simulate.generate import simulate_run
from simulate.settings import parse_settings, read_yaml
from sr.config import RunConfig, check_sections, keep_config, load_config
from tests.test_generate import SETTINGS

SHIPPED = ["quickstart", "paper", "hsc", "observed", "strong-substructure"]
SHIPPED += [f"deeplensesim-model-{number}" for number in (1, 2, 3)]


@pytest.mark.parametrize("name", SHIPPED)
def test_sections_of_every_shipped_configuration_fit_together(name: str, tmp_path: Path) -> None:
    check_sections(load_config(Path(name), tmp_path, [], None))
    size = "simulate.hr_size=32" if name == "hsc" else "simulate.hr_size=16"
    small = load_config(Path(name), tmp_path, [size, "train.crop_size=64"], None)
    with pytest.raises(InputError, match=r"train.crop_size is 64, its LR images have 8 pixels"):
        check_sections(small)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_configuration_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    settings = load_config(Path(name), tmp_path, ["train.crop_size=null", "transfer.crop_size=null"], None)
    keep_config(settings, tmp_path)
    assert load_config(None, tmp_path, [], None) == settings
    assert settings.train.crop_size is None


def test_a_gaussian_psf_survives_a_round_trip(tmp_path: Path) -> None:
    settings = parse_settings(RunConfig, {"pairs": {"lr_psf": {"fwhm_arcsec": 0.3}}}, "test")
    keep_config(settings, tmp_path)
    assert parse_settings(RunConfig, read_yaml(tmp_path / "config.yaml"), "kept") == settings


def test_fresh_does_not_empty_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.fits").write_text("not ours")
    with pytest.raises(InputError, match="was not made by `pipeline simulate`"):
        simulate_run(tmp_path, SETTINGS, seed=1, resume=False, workers=1)
    assert (tmp_path / "data" / "precious.fits").read_text() == "not ours"
