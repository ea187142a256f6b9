"""Coverage of Gaussian posteriors that are known exactly: right, too narrow, too wide, and blind to correlations."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from simulate.settings import Settings
from simulate.shards import Pairs
from sr.coverage import (
    cell_fluxes,
    coverage_scores,
    interval_coverage,
    lit_pixels,
    sigma_scores,
    tarp_coverage,
)
from sr.models import resolve_settings
from sr.models.flow import FlowSettings
from sr.normalisation import fit_normalisation
from sr.shape_metrics import arc_mask
from sr.trained_model import TrainedModel, describe_model
from sr.training import initial_network
from sr.trust import Trust, UncertaintySettings

from .conftest import blob_pairs, write_dataset

CPU = torch.device("cpu")
DRAWS = 15
AXIS = np.linspace(-6, 6, 601)
WEIGHT = norm.pdf(AXIS) * (AXIS[1] - AXIS[0])


def gaussian_posteriors(
    scenes: int, width: float = 1.0, cells: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, Pairs]:
    """Draws and mean of posteriors whose sigma grows with the light, and pairs whose truth was drawn from them.

    The draws' spread is `width` times the truth's. With `cells` errors of the truth are the same all over 8 x 8 pixels,
    and the draws do not know.
    """
    rng = np.random.default_rng(seed)
    pairs = blob_pairs(scenes, seed=seed)
    mean = pairs.hr
    sigma = 0.01 + 0.1 * mean
    errors = rng.standard_normal((scenes, 1, 4, 4)) if cells else rng.standard_normal(mean.shape)
    if cells:
        errors = np.kron(errors, np.ones((8, 8)))
    noise = rng.standard_normal((scenes, DRAWS, *mean.shape[2:]))
    return (mean + width * sigma * noise).astype("f4"), mean, replace(pairs, hr=(mean + sigma * errors).astype("f4"))


def expected_intervals(width: float, draws: int = DRAWS) -> np.ndarray:
    """Coverage of the central intervals by quadrature: of K draws N(0, width²), B(K, Phi(x/width)) are below x."""
    chance = norm.cdf(AXIS / width)
    places = np.arange(draws // 2, 0, -1)
    within = [binom.cdf(draws - one, draws, chance) - binom.cdf(one - 1, draws, chance) for one in places]
    return np.array(within) @ WEIGHT


@pytest.mark.parametrize("width", [1.0, 0.6, 1.6])
def test_intervals_hold_the_truth_as_often_as_quadrature_says(width: float) -> None:
    draws, mean, pairs = gaussian_posteriors(60, width)
    mask = lit_pixels(mean, pairs)
    levels, share = interval_coverage(draws, pairs.hr, mask)
    expected = expected_intervals(width)
    observed = np.average(share, axis=0, weights=mask.sum((1, 2, 3)))
    np.testing.assert_allclose(observed, expected, atol=4 * 0.5 / np.sqrt(mask.sum()))
    np.testing.assert_allclose(levels, np.array([2, 4, 6, 8, 10, 12, 14]) / 16)
    if width == 1:
        np.testing.assert_allclose(expected, levels, atol=1e-6)
    else:
        assert ((observed > levels + 0.02) == (width > 1)).all()


def test_pixels_that_the_truth_chooses_blame_a_perfect_posterior() -> None:
    """Why `lit_pixels` looks at the estimate. The noise is such that sigma and threshold are alike."""
    draws, mean, pairs = gaussian_posteriors(60)
    pairs = replace(pairs, lr_noise=np.full_like(pairs.lr_noise, 0.06))
    images = [torch.from_numpy(one) for one in (pairs.hr, pairs.lr_noise, pairs.hr_mask)]
    chosen_by_truth = arc_mask(*images).numpy() & (np.abs(mean - 0.015) < 0.01)
    chosen_by_estimate = lit_pixels(mean, pairs) & (np.abs(mean - 0.015) < 0.01)
    off = []
    for mask in (chosen_by_truth, chosen_by_estimate):
        below = (draws < pairs.hr).mean(1, keepdims=True)[mask]
        off.append(below.mean() - 0.5)
    assert off[0] > 0.1
    assert abs(off[1]) < 4 * 0.29 / np.sqrt(chosen_by_estimate.sum())


def test_a_scene_without_pixels_has_no_coverage() -> None:
    draws, _, pairs = gaussian_posteriors(3)
    mask = np.ones_like(pairs.hr_mask)
    mask[1] = False
    _, share = interval_coverage(draws, pairs.hr, mask)
    assert np.isnan(share).all(1).tolist() == [False, True, False]


# -- TARP -------------------------------------------------------------------------------------------------------------


def expected_tarp(width: float) -> np.ndarray:
    """In one dimension, by quadrature over truth and point: the distance's rank among the draws is binomial."""
    truth, point = AXIS[::4, None], AXIS[None, ::4]
    reach = np.abs(truth - point)
    chance = norm.cdf((point + reach) / width) - norm.cdf((point - reach) / width)
    weight = np.outer(WEIGHT[::4], WEIGHT[::4]) * 16
    return np.array([(binom.cdf(one - 1, DRAWS, chance) * weight).sum() for one in range(1, DRAWS + 1)])


@pytest.mark.parametrize("width", [1.0, 0.6, 1.6])
def test_tarp_in_one_dimension_is_what_quadrature_says(width: float) -> None:
    rng, scenes = np.random.default_rng(1), 6000
    centre, truth = rng.normal(0, 9, (scenes, 1)), rng.standard_normal((scenes, 1))
    draws = centre[:, None] + width * rng.standard_normal((scenes, DRAWS, 1))
    levels, share = tarp_coverage(draws, centre + truth, centre, rng)
    np.testing.assert_allclose(share.mean(0), expected_tarp(width), atol=4 * 0.5 / np.sqrt(scenes))
    if width == 1:
        np.testing.assert_allclose(expected_tarp(1.0), levels, atol=3e-3)


@pytest.mark.parametrize(("width", "side"), [(1.0, 0), (0.8, -1), (1.25, 1)])
def test_tarp_in_many_dimensions_tells_too_narrow_from_too_wide(width: float, side: int) -> None:
    rng, scenes = np.random.default_rng(2), 400
    truth = rng.standard_normal((scenes, 30))
    draws = width * rng.standard_normal((scenes, DRAWS, 30))
    levels, share = tarp_coverage(draws, truth, np.zeros_like(truth), rng)
    off = share.mean(0) - levels
    if side == 0:
        assert np.abs(off).max() < 4 * 0.5 / np.sqrt(scenes)
    else:
        assert (side * off[4:10] > 0.15).all()


def test_a_bias_is_seen() -> None:
    rng, scenes = np.random.default_rng(3), 400
    truth, draws = rng.standard_normal((scenes, 30)), rng.standard_normal((scenes, DRAWS, 30)) + 0.7
    levels, share = tarp_coverage(draws, truth, np.full_like(truth, 0.7), rng)
    assert (share.mean(0) < levels - 0.05)[3:12].all()


def test_cells_hold_the_flux_of_the_light_in_units_of_the_noise() -> None:
    images = np.arange(2 * 16 * 16, dtype="f4").reshape(1, 2, 16, 16)
    mask = np.zeros((1, 1, 16, 16), bool)
    mask[..., :8, :8] = True  # one whole cell of 4 LR pixels
    mask[..., 0, 8] = True  # a pixel of the next
    fluxes = cell_fluxes(images, mask, np.full((1, 1, 8, 8), 0.5))
    assert fluxes.shape == (1, 2, 4)
    np.testing.assert_allclose(fluxes[0, :, 0], images[0, :, :8, :8].sum((1, 2)) / np.sqrt(16 * 0.25))
    np.testing.assert_allclose(fluxes[0, :, 1], images[0, :, 0, 8] / np.sqrt(0.25 / 4))
    assert not fluxes[..., 2:].any()


# -- predicted sigma --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "power"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 2.0), (1.0, 0.5)])
def test_sigma_against_error(width: float, power: float) -> None:
    """Draws of sigma width s^power around truths of sigma s: actual ~ predicted^(1/power), in all 1 / width."""
    rng = np.random.default_rng(4)
    shape = (12, 1, 48, 48)
    true_sigma = np.exp(rng.uniform(-2, 2, shape))
    truth = true_sigma * rng.standard_normal(shape)
    draws = width * true_sigma**power * rng.standard_normal((12, DRAWS + 1, 48, 48))
    scores = sigma_scores(draws, truth, np.ones(shape, bool), rng)
    assert scores["slope"]["mean"] == pytest.approx(1 / power, rel=0.08)  # groups average powers of sigma
    if power == 1:
        assert scores["error_over_sigma"]["low"] < 1 / width < scores["error_over_sigma"]["high"]
        expected = np.array(scores["sigma"]["predicted"]) / width
        np.testing.assert_allclose(scores["sigma"]["actual"], expected, rtol=0.1)
    if width == power == 1:
        z = scores["z"]
        np.testing.assert_allclose(z["observed"], z["expected"], atol=4 * 0.5 / np.sqrt(truth.size))
        assert sum(z["expected"]) == pytest.approx(1)


def test_draws_without_spread_are_wrong_everywhere() -> None:
    _, mean, pairs = gaussian_posteriors(6)
    draws = np.repeat(mean, 8, axis=1)
    scores = coverage_scores(draws, mean, pairs, np.random.default_rng(0))
    light = scores["pixels"]["light"]
    assert light["at_68"]["high"] == 0
    assert light["slope"] is None
    assert light["error_over_sigma"] is None
    assert light["z"]["observed"][0] + light["z"]["observed"][-1] == pytest.approx(1)
    json.dumps(scores, allow_nan=False)


# -- all together -----------------------------------------------------------------------------------------------------


def test_a_right_posterior_lies_on_every_diagonal() -> None:
    draws, mean, pairs = gaussian_posteriors(60, seed=5)
    scores = coverage_scores(draws, mean, pairs, np.random.default_rng(0))
    for curve in (*scores["pixels"].values(), scores["tarp"]):
        observed = curve["observed"]
        within = (np.array(observed["low"]) <= curve["expected"]) & (np.array(observed["high"]) >= curve["expected"])
        assert within.mean() > 0.8
        assert curve["at_68"]["low"] < 0.69
        assert curve["at_68"]["high"] > 0.675
    assert scores["pixels"]["light"]["error_over_sigma"]["mean"] == pytest.approx(1, abs=0.03)
    cells = lit_pixels(mean, pairs).reshape(60, 4, 8, 4, 8).any((2, 4)).sum()
    assert scores["tarp"]["cells"] == pytest.approx(cells / 60)
    json.dumps(scores, allow_nan=False)


def test_pixels_do_not_show_what_cells_do() -> None:
    """Errors that are the same all over a cell, and draws that are independent: right in every pixel, wrong in sums."""
    draws, mean, pairs = gaussian_posteriors(200, cells=True, seed=6)
    scores = coverage_scores(draws, mean, pairs, np.random.default_rng(0))
    light = scores["pixels"]["light"]
    assert light["at_68"]["mean"] == pytest.approx(0.683, abs=0.05)
    assert scores["tarp"]["at_68"]["high"] < 0.5


def tiny_model(name: str, pairs: Pairs, settings: Settings) -> TrainedModel:
    config = describe_model(name, settings, pairs, fit_normalisation(pairs))
    return TrainedModel(name, initial_network(name, settings, pairs.scale, 1, 0), config)


def test_every_model_that_can_sample_is_covered(tmp_path: Path) -> None:
    """The first scenes, the model's own draws and point estimate, on a data set that was not simulated."""
    pairs = blob_pairs(6)
    write_dataset(tmp_path, {"test": pairs})
    flow = tiny_model("flow", pairs, FlowSettings(blocks=1, features=4))
    models = [tiny_model("fsrcnn", pairs, resolve_settings("fsrcnn")), flow]
    trust = Trust(pairs, None, tmp_path, UncertaintySettings(scenes=4, draws=5, noise_images=8), seed=3)
    content = trust.content(models, CPU)
    assert list(content["coverage"]) == ["flow"]
    some = pairs.select(np.arange(4))
    draws = flow.sample(some.lr, some.lr_noise, 5, 3, CPU)
    expected = coverage_scores(draws, flow.super_resolve(some.lr, some.lr_noise, CPU), some, np.random.default_rng(0))
    found = content["coverage"]["flow"]
    assert (found["scenes"], found["draws"]) == (4, 5)
    for region, scores in expected["pixels"].items():
        np.testing.assert_allclose(found["pixels"][region]["observed"]["mean"], scores["observed"]["mean"])
    json.dumps(content, allow_nan=False)
    none = Trust(pairs, None, tmp_path, UncertaintySettings(scenes=0, noise_images=8), seed=3)
    assert none.content(models, CPU)["coverage"] == {}
