"""The configuration that a run keeps says the same when it is read back."""

from pathlib import Path

import pytest

from simulate.errors import InputError
from simulate.generate import simulate_run
from simulate.settings import parse_settings, read_yaml
from sr.config import RunConfig, keep_config, load_config
from tests.test_generate import SETTINGS


@pytest.mark.parametrize("name", ["quickstart", "paper", "hsc", "observed", "strong-substructure"])
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
