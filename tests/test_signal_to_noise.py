"""Exposures that give LR images the S/N that is asked for."""

import numpy as np
import pytest
import torch

from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.priors import Prior
from simulate.sample import draw_sample, instruments, render_scenes, simulate_sample
from simulate.scene import Scene
from simulate.settings import parse_settings
from simulate.torch_engine.blocks import render_block

CONTENT = {"classes": ["cdm", "none"], "hr_size": 32, "scene": {"supersampling": 1}}


def make_settings(**more: object) -> SimulateSettings:
    return parse_settings(SimulateSettings, {**CONTENT, **more}, "test").resolve()


WANTED = make_settings(lr_peak_signal_to_noise={"choice": [10, 100]})


def test_the_brightest_pixel_has_the_wanted_signal_to_noise() -> None:
    found = set()
    for index in range(8):
        sample = simulate_sample(WANTED, 3, index)
        scene = Scene.from_json(sample["name"])
        (_, lr), *_ = render_scenes(WANTED, [scene])
        signal_to_noise = (lr / sample["lr_noise"][0]).max()
        assert signal_to_noise == pytest.approx(scene.lr_peak_signal_to_noise, rel=1e-5)
        found.add(scene.lr_peak_signal_to_noise)
    assert found == {10.0, 100.0}


def test_noise_is_that_of_an_exposure_of_another_length() -> None:
    """Without read noise: variance of sky and source falls as one over the time."""
    _, lr_instrument = instruments(WANTED)
    quiet = lr_instrument.model_copy(update={"read_noise_electrons": 0.0})
    longer = quiet.model_copy(update={"exposure_time_s": 7.3 * quiet.exposure_time_s})
    expected = simulate_sample(make_settings(lr_instrument=longer.model_dump()), 3, 1)
    plain = make_settings(lr_instrument=quiet.model_dump())
    (_, lr), *_ = render_scenes(plain, [draw_sample(plain, 3, 1, "train")[0]])
    wanted = float((lr / expected["lr_noise"][0]).max())
    found = simulate_sample(make_settings(lr_instrument=quiet.model_dump(), lr_peak_signal_to_noise=wanted), 3, 1)
    assert np.allclose(found["lr_noise"], expected["lr_noise"], rtol=1e-5)
    assert np.array_equal(found["hr"], expected["hr"])


def test_nothing_else_changes() -> None:
    plain, wanted = (simulate_sample(settings, 3, 2) for settings in (make_settings(), WANTED))
    assert np.array_equal(plain["hr"], wanted["hr"])
    assert "lr_peak_signal_to_noise" not in plain["name"]
    assert not np.allclose(plain["lr_noise"], wanted["lr_noise"])


def test_blocks_on_a_device_have_the_same_noise_maps() -> None:
    scenes = [draw_sample(WANTED, 3, index, "train")[0] for index in range(4)]
    block = render_block(WANTED, scenes, torch.Generator().manual_seed(0), torch.device("cpu"), 2**30)
    for index in range(4):
        expected = simulate_sample(WANTED, 3, index)["lr_noise"]
        assert torch.allclose(block["lr_noise"][index], torch.from_numpy(expected), rtol=1e-4)
    noiseless = torch.from_numpy(render_scenes(WANTED, scenes[:1])[0][1])
    scatter = (block["lr"][0, 0] - noiseless) / block["lr_noise"][0, 0]
    assert float(scatter.std()) == pytest.approx(1, abs=0.2)  # 256 pixels: 4 sigma are 0.18


@pytest.mark.parametrize("wrong", [0, -5, {"uniform": [0, 10]}, {"choice": []}])
def test_signal_to_noise_is_positive(wrong: object) -> None:
    with pytest.raises(InputError, match=r"lr_peak_signal_to_noise|choice"):
        make_settings(lr_peak_signal_to_noise=wrong)


def test_choice_is_even() -> None:
    rng = np.random.default_rng(0)
    draws = [Prior(choice=(1.0, 2.0, 4.0)).draw(rng) for _ in range(3000)]
    counts = [draws.count(one) for one in (1.0, 2.0, 4.0)]
    assert sum(counts) == 3000
    assert min(counts) > 880  # 4.6 sigma
