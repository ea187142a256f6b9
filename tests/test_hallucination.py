"""Made-up features: planted ones are found at their size, noise gives its known false alarms, blur does not win."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from simulate.instruments import load_instrument
from simulate.shards import Band, Pairs
from sr.hallucination import (
    ALARM_SIGMA,
    feature_kernel,
    features,
    imprint_scores,
    lens_features,
    noise_itself,
    noise_pairs,
    noise_scores,
    noise_unit,
    rate,
)
from sr.trust import Trust, UncertaintySettings
from sr.truth_parts import TruthParts

from .conftest import blob_pairs, gaussian_kernel, write_dataset


def wide_pairs(count: int, scale: int = 2, lr_size: int = 32, seed: int = 0) -> Pairs:
    """Blobs, with PSFs that a pixel resolves: sigma 1 HR pixel and 1.5 LR pixels."""
    return replace(
        blob_pairs(count, scale=scale, lr_size=lr_size, seed=seed),
        hr_band=Band("sharp", 0.05, gaussian_kernel(2.3548, size=11), 0.05),
        lr_band=Band("blurred", 0.05 * scale, gaussian_kernel(2.3548 * 1.5 * scale, size=31), 0.05),
    )


def test_the_kernel_is_the_psf_seen_through_the_pixel() -> None:
    """A Gaussian of sigma 1 through a pixel of width 1, which adds a variance of 1/12."""
    kernel = feature_kernel(wide_pairs(1), beyond_lr=False)[0]
    axis = np.arange(len(kernel)) - len(kernel) // 2
    edges = np.append(axis - 0.5, axis[-1] + 0.5)
    expected = np.diff(norm.cdf(edges))
    np.testing.assert_allclose(kernel, np.outer(expected, expected), atol=3e-4)
    assert kernel.sum() == pytest.approx(1, abs=1e-6)


def test_beyond_lr_smooth_light_is_gone_and_points_stay() -> None:
    kernel = feature_kernel(wide_pairs(1), beyond_lr=True)[0]
    assert kernel.sum() == pytest.approx(0, abs=1e-6)
    size = len(kernel) // 2
    y, x = np.mgrid[-size : size + 1, -size : size + 1]
    plain = feature_kernel(wide_pairs(1), beyond_lr=False)[0]
    wide = np.exp(-(x**2 + y**2) / (2 * 8.0**2))
    assert abs((kernel * wide).sum()) < 0.15  # plain: 0.98
    assert kernel[size, size] > 0.8 * plain.max()


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("beyond_lr", [False, True])
def test_features_of_noise_have_a_variance_of_one(scale: int, beyond_lr: bool) -> None:
    pairs = wide_pairs(60, scale=scale)
    noise = noise_pairs(pairs, None, np.random.default_rng(0))
    found = features(noise_itself(noise), noise, feature_kernel(noise, beyond_lr))
    inside = found[:, 24:-24, 24:-24]
    assert inside.mean() == pytest.approx(0, abs=0.05)
    assert inside.std() == pytest.approx(1, abs=0.04)


def test_psfs_of_their_own_are_used_image_by_image() -> None:
    pairs = wide_pairs(2)
    narrow, wide = gaussian_kernel(2.3548), gaussian_kernel(4.0)
    own = replace(pairs, hr_band=replace(pairs.hr_band, psf=np.stack([narrow, wide])))
    both = features(pairs.hr, own, feature_kernel(own, beyond_lr=True))
    for row, psf in enumerate((narrow, wide)):
        alone = replace(pairs.select(np.array([row])), hr_band=replace(pairs.hr_band, psf=psf))
        np.testing.assert_allclose(both[row], features(alone.hr, alone, feature_kernel(alone, True))[0], atol=1e-6)


# -- lenses -----------------------------------------------------------------------------------------------------------


def test_a_planted_blob_is_found_at_its_size() -> None:
    pairs = wide_pairs(3)
    mask = np.ones_like(pairs.hr_mask)
    kernel = feature_kernel(pairs, beyond_lr=True)
    planted = np.zeros_like(pairs.hr)
    planted[1, 0, 30, 33] = 0.5
    response = features(planted, pairs, kernel)
    found = lens_features(pairs.hr + planted, pairs.hr, pairs, mask)
    assert found["largest_feature"][[0, 2]].tolist() == [0, 0]
    assert found["largest_feature"][1] == pytest.approx(response[1, 30, 33], rel=1e-5)
    assert found["share_wrong"].tolist() == [0, 1 / 64**2, 0]  # 0.5 is 40 sigma of 0.05 / 4
    mask[1, 0, 20:40, 20:40] = False
    assert lens_features(pairs.hr + planted, pairs.hr, pairs, mask)["largest_feature"][1] < 0.1 * response.max()


def test_pixels_are_wrong_beyond_three_sigma() -> None:
    pairs = wide_pairs(2)
    offset = noise_unit(pairs) * np.array([2.9, 3.1]).reshape(2, 1, 1, 1)
    found = lens_features((pairs.hr + offset).astype("f4"), pairs.hr, pairs, np.ones_like(pairs.hr_mask))
    assert found["share_wrong"].tolist() == [0, 1]


def with_substructure(pairs: Pairs) -> tuple[Pairs, np.ndarray, np.ndarray]:
    """Every second scene gets 8 compact dents that the LR noise hardly shows; its macro-model is the scene before."""
    rng, macro = np.random.default_rng(4), pairs.hr
    smooth = np.arange(len(pairs)) % 2 == 0
    dents = np.zeros_like(macro)
    for row in np.flatnonzero(~smooth):
        dents[row, 0, rng.integers(16, 48, 8), rng.integers(16, 48, 8)] = rng.choice([-1, 1], 8) * 0.5
    dents = gaussian_filter(dents, (0, 0, 1, 1))
    return replace(pairs, hr=macro + dents), macro, smooth


def test_blur_invention_and_truth_are_told_apart() -> None:
    rng = np.random.default_rng(5)
    pairs, macro, smooth = with_substructure(wide_pairs(60))
    mask = macro > noise_unit(pairs)
    true_feature = lens_features(pairs.hr, macro, pairs, mask)["largest_feature"]
    invented = gaussian_filter(rng.normal(0, 0.15, macro.shape), (0, 0, 1, 1)).astype("f4")
    images = {
        "truth": pairs.hr,
        "macro": macro,
        "blurred": gaussian_filter(pairs.hr, (0, 0, 3, 3)),
        "inventive": macro + invented,
        "half": macro + 0.5 * (pairs.hr - macro),
    }
    scores = {
        name: imprint_scores(lens_features(one, macro, pairs, mask), true_feature, smooth, rng)
        for name, one in images.items()
    }
    auc = {name: one["imprint_auc"]["mean"] for name, one in scores.items()}
    assert auc["truth"] == auc["half"] == 1
    assert auc["macro"] == 0.5
    assert auc["inventive"] == pytest.approx(0.5, abs=0.2)
    assert auc["blurred"] < 0.75
    assert scores["truth"]["share_wrong"] == {"mean": 0, "low": 0, "high": 0}
    assert scores["truth"]["false_imprint_rate"]["mean"] == 0
    assert scores["truth"]["false_imprint_rate"]["high"] == pytest.approx(0.114, abs=0.001)  # Wilson, 0 of 30
    assert scores["blurred"]["share_wrong"]["low"] > 0.2
    for name in ("blurred", "inventive"):
        assert scores[name]["largest_feature"]["low"] > 1
        assert scores[name]["largest_feature"]["low"] > scores["half"]["largest_feature"]["high"]


def test_without_macro_models_there_is_still_the_error() -> None:
    pairs = wide_pairs(4)
    found = lens_features(pairs.hr, pairs.hr, pairs, np.ones_like(pairs.hr_mask))
    scores = imprint_scores(found, None, np.ones(4, bool), np.random.default_rng(0))
    assert set(scores) == {"share_wrong", "largest_feature"}


# -- noise ------------------------------------------------------------------------------------------------------------


def test_noise_itself_has_the_false_alarms_of_gaussian_pixels() -> None:
    """With a PSF of one pixel, and LR pixels that are HR pixels: 1 - Phi(4)^n of the images have one above 4 sigma."""
    point = np.zeros((1, 3, 3))
    point[0, 1, 1] = 1
    noise = noise_pairs(blob_pairs(400, lr_size=32), None, np.random.default_rng(1))
    found = features(noise_itself(noise), noise, point)
    np.testing.assert_allclose(found, np.kron(noise.lr / 0.05, np.ones((2, 2)))[:, 0], atol=1e-5)
    expected = 1 - norm.cdf(ALARM_SIGMA) ** (32 * 32)
    share = (found.max((1, 2)) > ALARM_SIGMA).mean()
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected / 400))


def test_the_psf_hardly_changes_the_false_alarms() -> None:
    noise = noise_pairs(wide_pairs(400), None, np.random.default_rng(2))
    scores = noise_scores(noise_itself(noise), noise, np.random.default_rng(0))
    expected = 1 - norm.cdf(ALARM_SIGMA) ** (32 * 32)
    assert 0.3 * expected < scores["alarm_rate"]["mean"] < 3 * expected
    assert scores["peak"]["mean"] == pytest.approx(3.2, abs=0.3)  # of some 1000 normal numbers
    assert scores["own_peak"]["mean"] == pytest.approx(3.2, abs=0.4)


def test_made_up_sources_are_counted() -> None:
    rng = np.random.default_rng(3)
    noise = noise_pairs(wide_pairs(40), None, rng)
    sources = np.zeros_like(noise.hr)
    sources[:10, 0, 20, 20] = 40 * 0.05  # 40 sigma of an LR pixel in one HR pixel
    blurred = gaussian_filter(sources, (0, 0, 1, 1))
    bright = noise_scores(blurred, noise, rng)
    assert bright["alarm_rate"]["mean"] == 0.25
    assert bright["made_up_flux"]["mean"] == pytest.approx(0.25 * 40, rel=0.2)  # their cores
    faint = noise_scores(blurred / 1000 + rng.normal(0, 1e-6, noise.hr.shape), noise, rng)
    assert faint["alarm_rate"]["mean"] == faint["made_up_flux"]["mean"] == 0
    assert faint["own_alarm_rate"]["mean"] >= 0.25
    assert faint["peak"]["mean"] < 0.01
    empty = noise_scores(np.zeros_like(noise.hr), noise, rng)
    assert empty["peak"]["mean"] == empty["own_peak"]["mean"] == 0


def test_noise_is_that_of_the_sky_and_of_the_instrument() -> None:
    pairs = blob_pairs(30, lr_size=32)
    pairs.lr_noise[:] = np.linspace(0.05, 0.5, 32)
    pairs.lr_noise[5:] *= 2
    noise = noise_pairs(pairs, None, np.random.default_rng(0))
    assert noise.lr[:5].std() == pytest.approx(0.05, rel=0.05)
    assert noise.lr[5:].std() == pytest.approx(0.1, rel=0.02)
    assert not noise.hr.any()
    drizzled = load_instrument("hst-wfc3-f160w")
    correlated = noise_pairs(pairs, drizzled, np.random.default_rng(0)).lr[5:]
    neighbours = (correlated[..., 1:] * correlated[..., :-1]).mean() / (correlated**2).mean()
    assert neighbours > 0.2
    assert correlated.std() == pytest.approx(0.1, rel=0.03)


def test_rates_of_no_events_have_an_upper_limit() -> None:
    assert rate(np.zeros(60, bool))["high"] == pytest.approx(0.060, abs=0.001)
    assert rate(np.array([True, False]))["mean"] == 0.5


# -- all together -----------------------------------------------------------------------------------------------------


def test_methods_are_compared_on_the_same_lenses_and_noise(tmp_path: Path) -> None:
    pairs, macro, smooth = with_substructure(wide_pairs(12))
    write_dataset(tmp_path, {"test": pairs})
    macro = np.where(smooth[:, None, None, None], np.nan, macro)  # as rendered: not where there is no substructure
    parts = TruthParts(macro, np.zeros_like(macro))
    settings = UncertaintySettings(scenes=0, noise_images=20)
    trust = Trust(pairs, parts, tmp_path, settings, seed=1)
    seen: list[np.ndarray] = []

    def nearest(noise: Pairs) -> np.ndarray:
        seen.append(noise.lr)
        return noise_itself(noise)

    trust.add("one", pairs.hr, nearest)
    trust.add("two", noise_itself(pairs), nearest)
    content = trust.content([], torch.device("cpu"))
    assert np.array_equal(seen[0], seen[1])
    assert seen[0].shape == (20, 1, 32, 32)
    assert seen[0].std() == pytest.approx(0.05, rel=0.02)
    one, two = content["rows"]
    truth, noise = content["references"]
    assert one["lenses"] == truth["lenses"]
    assert one["noise"]["alarm_rate"] == two["noise"]["alarm_rate"] == noise["noise"]["alarm_rate"]
    assert truth["lenses"]["imprint_auc"]["mean"] == 1
    assert two["lenses"]["imprint_auc"]["mean"] < 1
    assert two["lenses"]["share_wrong"]["mean"] > 0.05
    assert content["smooth_lenses"] == 6
    assert content["true_imprint"] > 3
    json.dumps(content, allow_nan=False)


def test_without_parts_the_class_none_is_smooth(tmp_path: Path) -> None:
    pairs = blob_pairs(6)
    write_dataset(tmp_path, {"test": pairs})
    settings = UncertaintySettings(scenes=0, noise_images=3)
    trust = Trust(pairs, None, tmp_path, settings, seed=1)
    trust.add("truth", pairs.hr, noise_itself)
    content = trust.content([], torch.device("cpu"))
    assert content["smooth_lenses"] == 2
    assert content["true_imprint"] is None
    assert set(content["rows"][0]["lenses"]) == {"share_wrong", "largest_feature"}
    others = pairs.select(pairs.label != 2)
    assert (
        "lenses"
        not in Trust(others, None, tmp_path, settings, seed=1).content([], torch.device("cpu"))["references"][0]
    )
