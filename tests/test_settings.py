"""Strict settings: typos, doubled keys and wrong types are errors that help."""

from pathlib import Path

import pytest

from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.priors import Prior
from simulate.settings import apply_overrides, parse_settings, read_yaml


def test_unknown_key_names_the_nearest_right_one() -> None:
    with pytest.raises(InputError, match=r"a.yaml: unknown key 'scene.macro.theta_e' .*'theta_e_arcsec'\?"):
        parse_settings(SimulateSettings, {"scene": {"macro": {"theta_e": 1.0}}}, "a.yaml")


def test_wrong_type_says_expected_and_found() -> None:
    with pytest.raises(InputError, match=r"'hr_size': expected a valid integer.*found 'big'"):
        parse_settings(SimulateSettings, {"hr_size": "big"}, "a.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' is given twice"),
        ("seed: [1\n", "not valid YAML"),
        ("- 1\n", "expected a mapping"),
        ("a: !!python/object:os.system {}\n", "not valid YAML"),
    ],
)
def test_bad_yaml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.yaml: cannot be read"):
        read_yaml(tmp_path / "nothing.yaml")


def test_overrides_reach_into_sections_and_lists_and_leave_the_original() -> None:
    content = {"a": {"b": 1}, "models": [{"size": "small"}]}
    changed = apply_overrides(content, ["a.b=2.5", "a.c={uniform: [1, 2]}", "models.0.size=full", "x.y=true"])
    assert changed == {"a": {"b": 2.5, "c": {"uniform": [1, 2]}}, "models": [{"size": "full"}], "x": {"y": True}}
    assert content == {"a": {"b": 1}, "models": [{"size": "small"}]}
    for bad in ("a.b", "=3", "a.b.c=1", "models.7.size=1"):
        with pytest.raises(InputError, match=r"--set"):
            apply_overrides(content, [bad])


@pytest.mark.parametrize(
    "bad",
    [{"uniform": [2, 1]}, {"log_uniform": [0, 1]}, {"normal": [0, -1]}, {"uniform": [0, 1], "fixed": 2}, True],
)
def test_impossible_priors_are_refused(bad: object) -> None:
    with pytest.raises(InputError):
        parse_settings(Prior, bad, "prior")


def test_priors_out_of_physics_are_refused() -> None:
    with pytest.raises(InputError, match="lenses must lie before sources"):
        parse_settings(SimulateSettings, {"scene": {"z_lens": 1.2, "z_source": 1.0}}, "a.yaml")
    with pytest.raises(InputError, match="slope must lie between"):
        parse_settings(SimulateSettings, {"scene": {"macro": {"slope": 3.5}}}, "a.yaml")
    with pytest.raises(InputError, match="hr_size 95 must be a multiple of scale 2"):
        parse_settings(SimulateSettings, {"hr_size": 95}, "a.yaml")
    with pytest.raises(InputError, match="LR pixel is 2 times"):
        SimulateSettings(scale=4).resolve()
    with pytest.raises(InputError, match=r"unknown instrument 'hubble'; known: .*euclid-vis"):
        SimulateSettings(hr_instrument="hubble").resolve()
