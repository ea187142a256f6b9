"""Residuals against white noise, closed forms and brute force; spectra against numpy; scenes without substructure."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.ndimage import gaussian_filter

from simulate.errors import InputError
from simulate.generate import SimulateSettings, assemble
from simulate.instruments import DrizzleSettings, load_instrument
from simulate.lenstronomy_engine import render_pair
from simulate.provenance import provenance
from simulate.sample import instruments, simulate_sample
from simulate.scene import Scene, SceneSettings, draw_scene, without_substructure
from simulate.shards import Pairs, write_manifest
from sr.bootstrap import bootstrap_along, bootstrap_interval
from sr.metrics import fidelity_scores, summarise
from sr.operators import ForwardOperator, forward_operator
from sr.residual_metrics import LAGS, consistency_scores, substructure_scores
from sr.spectral_metrics import Spectra, spectra, spectral_scores, summarise_spectra
from sr.truth_parts import TruthParts, render_truth_parts

from .conftest import blob_pairs, gaussian_kernel

CPU = torch.device("cpu")
IDENTITY = ForwardOperator(np.ones((1, 1, 1)), 1)
LIT = {"lens_light": {"magnitude": 21.0}, "supersampling": 2}
SKY = SimulateSettings(counts={"train": 1, "val": 1, "test": 24}, hr_size=64, scene=LIT).resolve()


def simulated(settings: SimulateSettings, count: int, seed: int = 5) -> Pairs:
    return assemble(settings, [simulate_sample(settings, seed, index) for index in range(count)])


@pytest.fixture(scope="module")
def sky() -> Pairs:
    """24 simulated lenses whose galaxies shine."""
    return simulated(SKY, 24)


def consistency(images: np.ndarray, pairs: Pairs) -> dict[str, np.ndarray]:
    real, lr, noise = (torch.from_numpy(one) for one in (pairs.hr_mask, pairs.lr, pairs.lr_noise))
    scores = consistency_scores(torch.from_numpy(images), real, lr, noise, forward_operator(pairs))
    return {name: values.numpy() for name, values in scores.items()}


def of_noise(residual: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of an image of nothing, whose LR image is `residual` (N,h,w) in units of its noise."""
    lr = torch.from_numpy(residual)[:, None]
    scores = consistency_scores(torch.zeros_like(lr), torch.ones_like(lr, dtype=torch.bool), lr, lr * 0 + 1, IDENTITY)
    return {name: values.numpy() for name, values in scores.items()}


# -- the LR image -----------------------------------------------------------------------------------------------------


def test_the_truth_is_consistent_with_simulated_images(sky: Pairs) -> None:
    """Poisson noise of the arcs is in the noise map, so nothing but white noise of variance 1 is left."""
    lr_instrument = instruments(SKY)[1]
    poisson = sky.lr_noise**2 - lr_instrument.background_sigma_njy**2  # = true flux x that of one electron
    bright = sky.lr > 100 * sky.lr_noise
    assert bright.sum() > 20
    np.testing.assert_allclose(poisson[bright], sky.lr[bright] * lr_instrument.njy_per_electron, rtol=0.05)

    margin = forward_operator(sky).margin
    pixels = (sky.lr.shape[-1] - 2 * margin) ** 2
    scores = consistency(sky.hr, sky)
    assert abs(scores["chi2_per_pixel"].mean() - 1) < 4 * np.sqrt(2 / (24 * pixels))
    assert scores["chi2_per_pixel"].std() == pytest.approx(np.sqrt(2 / pixels), rel=0.5)
    assert abs(scores["residual_autocorrelation"].mean()) < 4 / np.sqrt(2 * 24 * pixels)
    assert abs(scores["residual_whiteness"].mean()) < 4 / np.sqrt(24)

    blurred = consistency(gaussian_filter(sky.hr, (0, 0, 2, 2)), sky)
    assert blurred["chi2_per_pixel"].min() > 1.2
    assert blurred["residual_autocorrelation"].min() > 0.1
    assert blurred["residual_whiteness"].min() > 10
    noisy = consistency(sky.hr_noisy, sky)
    assert noisy["chi2_per_pixel"].mean() > 1.1


def test_whiteness_has_the_false_alarm_rate_of_chi_squared() -> None:
    residual = np.random.default_rng(0).normal(size=(2500, 24, 20))
    scores = of_noise(residual)
    assert scores["residual_whiteness"].mean() == pytest.approx(0, abs=4 / np.sqrt(2500))
    assert scores["residual_whiteness"].std() == pytest.approx(1, abs=0.08)
    assert scores["residual_autocorrelation"].mean() == pytest.approx(0, abs=4 / np.sqrt(2 * 480 * 2500))
    assert scores["residual_autocorrelation"].std() == pytest.approx(1 / np.sqrt(2 * 480), rel=0.06)
    assert scores["chi2_per_pixel"].std() == pytest.approx(np.sqrt(2 / 480), rel=0.05)
    for level in (0.1, 0.01):
        limit = (stats.chi2.ppf(1 - level, len(LAGS)) - len(LAGS)) / np.sqrt(2 * len(LAGS))
        rate = (scores["residual_whiteness"] > limit).mean()
        assert abs(rate - level) < 4 * np.sqrt(level * (1 - level) / 2500)
    again = of_noise(7 * residual)  # a wrong noise level is the matter of chi squared, not of whiteness
    np.testing.assert_allclose(again["residual_whiteness"], scores["residual_whiteness"], atol=1e-9)


def test_correlated_noise_has_its_closed_form() -> None:
    """Each pixel the sum of two neighbours in a row: correlation 1/2 along the row, nothing else."""
    white = np.random.default_rng(1).normal(size=(200, 40, 41))
    scores = of_noise((white[..., 1:] + white[..., :-1]) / np.sqrt(2))
    assert scores["residual_autocorrelation"].mean() == pytest.approx(0.25, abs=0.005)
    # Bartlett 1946: the variance of a correlation is the sum of all squared ones over the pairs, not 1 over them
    correlated = 40 * 39 * 0.5**2
    assert scores["residual_whiteness"].mean() == pytest.approx(correlated / np.sqrt(24), rel=0.03)


def test_consistency_matches_brute_force_with_pixels_that_are_not_real() -> None:
    pairs = blob_pairs(2, lr_size=14)
    operator = ForwardOperator(gaussian_kernel(2, 5)[None], 2)
    rng = np.random.default_rng(2)
    images = pairs.hr + rng.normal(0, 0.1, pairs.hr.shape)
    real = np.ones(images.shape, bool)
    real[1, 0, 11:14, 16] = False
    spoiled = np.where(real, images, np.nan)
    lr, noise = torch.from_numpy(pairs.lr), torch.from_numpy(rng.uniform(0.1, 1, pairs.lr.shape))
    scores = consistency_scores(torch.from_numpy(spoiled), torch.from_numpy(real), lr, noise, operator)

    seen = operator(torch.from_numpy(np.where(real, images, 0))).numpy()
    residual = ((seen - pairs.lr) / noise.numpy())[:, 0]
    margin = operator.margin
    assert margin >= 1
    for image in range(2):
        known = {
            (y, x)
            for y in range(margin, 14 - margin)
            for x in range(margin, 14 - margin)
            if real[image, 0, 2 * (y - margin) : 2 * (y + margin + 1), 2 * (x - margin) : 2 * (x + margin + 1)].all()
        }
        assert (len(known) == (14 - 2 * margin) ** 2) == (image == 0)
        chi2 = np.mean([residual[image][place] ** 2 for place in known])
        total, nearest = 0.0, []
        for dy in range(3):
            for dx in range(-2, 3):
                if dy == 0 and dx <= 0:
                    continue
                pairs_of = [(one, (one[0] + dy, one[1] + dx)) for one in known if (one[0] + dy, one[1] + dx) in known]
                products = [residual[image][one] * residual[image][other] for one, other in pairs_of]
                total += len(products) * (np.mean(products) / chi2) ** 2
                nearest += products if dy + abs(dx) == 1 else []
        assert float(scores["chi2_per_pixel"][image]) == pytest.approx(chi2)
        assert float(scores["residual_autocorrelation"][image]) == pytest.approx(np.mean(nearest) / chi2)
        assert float(scores["residual_whiteness"][image]) == pytest.approx((total - 12) / np.sqrt(24))


def test_images_within_the_margin_have_no_consistency() -> None:
    pairs = blob_pairs(2, lr_size=4)
    assert 2 * forward_operator(pairs).margin >= 4
    assert all(np.isnan(values).all() for values in consistency(pairs.hr, pairs).values())


# -- the macro-model --------------------------------------------------------------------------------------------------


def test_scores_of_substructure_are_their_closed_forms() -> None:
    rng = np.random.default_rng(3)
    macro, imprint, other = torch.from_numpy(rng.normal(size=(3, 1, 1, 8, 8)))
    mask = torch.from_numpy(rng.uniform(size=(1, 1, 8, 8)) < 0.7)
    imprint, other = imprint * mask, other * mask
    other = other - imprint * (other * imprint).sum() / (imprint**2).sum()
    other = other * imprint.norm() / other.norm()

    def scores(image: torch.Tensor) -> list[float]:
        spoiled = torch.where(mask, image, 1e6)
        found = substructure_scores(spoiled, macro + imprint, macro, mask)
        return [float(found["substructure_error"]), float(found["substructure_correlation"])]

    assert scores(macro + imprint) == pytest.approx([0, 1], abs=1e-12)
    assert scores(macro) == pytest.approx([1, 0])
    assert scores(macro + 0.3 * imprint) == pytest.approx([0.7, 1])
    assert scores(macro - imprint) == pytest.approx([2, -1])
    assert scores(macro + other) == pytest.approx([np.sqrt(2), 0], abs=1e-12)
    assert scores(macro + imprint + other) == pytest.approx([1, np.sqrt(0.5)])
    undefined = substructure_scores(macro, macro + imprint, macro * torch.nan, mask)
    assert all(values.isnan().all() for values in undefined.values())


LENSINGS = ["galaxy-galaxy", "quasar", "double-source-plane", "group"]


@pytest.mark.parametrize("lensing", LENSINGS)
@pytest.mark.parametrize("kind", ["axion", "cdm", "fdm", "sidm", "wdm"])
def test_without_substructure_it_is_the_lens_that_the_class_none_has(kind: str, lensing: str) -> None:
    """All that the classes share is drawn first."""
    settings = SceneSettings(lensing=lensing, macro={"multipoles": {}}, lens_light={})
    lens, bare = (draw_scene(one, settings, 3.4, np.random.default_rng(7)) for one in (kind, "none"))
    assert lens.lens_model_list != bare.lens_model_list
    found = without_substructure(lens, settings.lensing)
    ignored = {"kind": "", "draw": {}}
    assert replace(found, **ignored) == replace(bare, **ignored)
    assert without_substructure(bare, settings.lensing) == bare


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the data set that `sky` would be the test split of."""
    folder = tmp_path_factory.mktemp("stored")
    write_manifest(folder, {}, {"kind": "simulated", **provenance(SKY, 5)})
    return folder


def test_parts_of_the_truth_are_what_lenstronomy_renders(sky: Pairs, stored: Path) -> None:
    some = sky.select(np.arange(3))
    parts = render_truth_parts(some, stored, CPU)
    assert [some.classes[one] for one in some.label] == ["axion", "cdm", "none"]
    for row, name in enumerate(some.name):
        scene = Scene.from_json(name)
        peak = some.hr[row].max()
        smooth = without_substructure(scene, SKY.scene.lensing)
        dark = replace(scene, lens_light_model_list=[], kwargs_lens_light=[])
        size = (SKY.hr_size, SKY.scale, SKY.scene.supersampling)
        macro, arcs = (render_pair(one, *instruments(SKY), *size)[0] for one in (smooth, dark))
        np.testing.assert_allclose((some.hr - parts.lens_light)[row, 0], arcs, atol=2e-5 * peak)
        if scene.kind == "none":
            assert np.isnan(parts.macro[row]).all()
        else:
            np.testing.assert_allclose(parts.macro[row, 0], macro, atol=2e-5 * peak)
            assert np.abs(parts.macro[row] - some.hr[row]).max() > 1e-3 * peak


def test_what_cannot_be_rendered_again_is_refused(sky: Pairs, stored: Path, tmp_path: Path) -> None:
    some = sky.select(np.arange(3))
    changed = some.hr.copy()
    changed[1, 0, 0, 0] += 0.01 * some.hr[1].max()
    with pytest.raises(InputError, match=r"sample 1, rendered again, differs from its image by 1\.0e-02"):
        render_truth_parts(replace(some, hr=changed), stored, CPU)
    write_manifest(tmp_path, {}, {"kind": "observed HR, observed LR"})
    with pytest.raises(InputError, match=r"no configuration of a simulation.*without their substructure"):
        render_truth_parts(some, tmp_path, CPU)


# -- spatial frequency ------------------------------------------------------------------------------------------------


def spectra_of(images: np.ndarray, truth: np.ndarray, scale: int) -> Spectra:
    one, other = torch.from_numpy(images), torch.from_numpy(truth)
    return spectra(one, other, torch.ones_like(other, dtype=torch.bool), scale)


@pytest.mark.parametrize(("height", "width", "scale"), [(48, 48, 2), (36, 45, 3), (33, 30, 1)])
def test_spectra_match_brute_force(height: int, width: int, scale: int) -> None:
    truth, images = np.random.default_rng(4).normal(size=(2, 2, 1, height, width))
    images += truth
    found = spectra_of(images, truth, scale)
    position = [(np.arange(size) + 0.5) / size for size in (height, width)]
    ramps = [np.minimum(np.minimum(one, 1 - one) / 0.125, 1) for one in position]
    window = np.outer(*(np.sin(np.pi / 2 * one) ** 2 for one in ramps))
    p, t = (np.fft.fft2(one[:, 0] * window) for one in (images, truth))
    nyquist = scale * 2 * np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    edges = np.append(found.frequency - found.frequency[0], scale)
    assert edges[-2] < scale
    for ring in range(len(found.frequency)):
        inside = (nyquist > edges[ring] - 1e-9) & (nyquist < edges[ring + 1] - 1e-9) & (nyquist > 0)
        assert inside.sum() > 1
        power, truth_power = ((np.abs(one[:, inside]) ** 2).sum(1) for one in (p, t))
        cross = (p[:, inside] * t[:, inside].conj()).sum(1).real
        np.testing.assert_allclose(found.transfer[:, ring], np.sqrt(power / truth_power))
        np.testing.assert_allclose(found.correlation[:, ring], cross / np.sqrt(power * truth_power))


def clumps(count: int, size: int, seed: int = 0) -> np.ndarray:
    """(N,1,size,size) points of light in the middle of the frame, seen through a narrow PSF: power at every scale."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, 1, size, size))
    for image in images[:, 0]:
        for y, x in rng.integers(size // 4, 3 * size // 4, (40, 2)):
            image[y, x] += rng.uniform(1, 2)
    return gaussian_filter(images, (0, 0, 0.7, 0.7))


def test_a_blur_has_its_transfer_and_keeps_the_correlation() -> None:
    truth, sigma = clumps(6, 96), 1.3
    found = spectra_of(gaussian_filter(truth, (0, 0, sigma, sigma), truncate=8), truth, 2)
    cycles_per_pixel = found.frequency / 4
    expected = np.exp(-2 * (np.pi * sigma * cycles_per_pixel) ** 2)
    low = found.frequency < 1.5
    np.testing.assert_allclose(found.transfer[:, low] / expected[low], 1, atol=0.15)  # rings have a width
    assert found.correlation[:, low].min() > 0.97
    np.testing.assert_allclose(spectra_of(0.8 * truth, truth, 2).transfer, 0.8)
    assert spectral_scores(found)["resolved_frequency"].min() > 1.5


def test_noise_raises_the_transfer_and_lowers_the_correlation() -> None:
    truth, sigma = clumps(40, 96), 0.05
    images = truth + np.random.default_rng(5).normal(0, sigma, truth.shape)
    found = spectra_of(images, truth, 2)
    window = np.sin(np.pi / 2 * np.minimum(np.minimum(np.arange(96) + 0.5, 95.5 - np.arange(96)) / 12, 1)) ** 2
    noise_power = sigma**2 * (window**2).sum() ** 2
    frequency = np.fft.fftfreq(96)
    ring = (np.hypot(frequency[:, None], frequency) * 4 * 12 + 1e-9).astype(int)
    tapered = np.abs(np.fft.fft2(truth[:, 0] * np.outer(window, window))) ** 2
    power = np.stack([tapered[:, ring == one].mean(1) for one in range(24)], 1)
    expected = np.sqrt(power / (power + noise_power))
    np.testing.assert_allclose(found.correlation.mean(0)[1:], expected.mean(0)[1:], atol=0.02)
    np.testing.assert_allclose((found.transfer * expected).mean(0)[1:], 1, atol=0.03)

    fell = np.flatnonzero(expected.mean(0) < 0.5)[0]
    resolved = spectral_scores(found)["resolved_frequency"]
    assert found.frequency[fell] - 0.15 < resolved.mean() < found.frequency[fell] + 0.05
    unrelated = spectra_of(np.random.default_rng(6).normal(size=truth.shape), truth, 2)
    assert abs(spectral_scores(unrelated)["correlation_beyond_nyquist"].mean()) < 0.01
    assert np.isfinite(spectra_of(0 * truth, truth, 2).correlation).all()


def test_where_the_correlation_falls() -> None:
    frequency = np.array([0.25, 0.75, 1.25, 1.75])
    correlation = np.array(
        [[1, 0.75, 0.25, 0.9], [1, 0.9, 0.8, 0.7], [0.2, 0.1, 0.6, 0.1], [1, 0.5, 0.5, 0.4], [np.nan] * 4]
    )
    scores = spectral_scores(Spectra(frequency, correlation, correlation))
    np.testing.assert_allclose(scores["resolved_frequency"], [1.0, 1.75, 0.25, 1.25, np.nan])
    np.testing.assert_allclose(scores["correlation_beyond_nyquist"], [0.575, 0.75, 0.35, 0.45, np.nan])


def test_scenes_with_pixels_that_are_not_real_have_no_spectra() -> None:
    truth = torch.from_numpy(clumps(3, 48))
    real = torch.ones_like(truth, dtype=torch.bool)
    real[1, 0, 0, 0] = False
    found = spectra(torch.where(real, truth, torch.nan), truth, real, 2)
    assert np.isnan(found.correlation).all(1).tolist() == [False, True, False]
    summary = summarise_spectra(found, np.random.default_rng(0))
    np.testing.assert_allclose(summary["cross_correlation"]["low"], 1)
    np.testing.assert_allclose(summary["power_transfer"]["mean"], 1)
    nothing = Spectra(found.frequency, found.transfer[1:2], found.correlation[1:2])
    assert summarise_spectra(nothing, np.random.default_rng(0)) == {}


# -- all of them ------------------------------------------------------------------------------------------------------


def test_all_scores_of_simulated_lenses(sky: Pairs, stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = sky.select(np.arange(6))
    parts = render_truth_parts(some, stored, CPU)
    images = gaussian_filter(some.hr_noisy, (0, 0, 1, 1))
    scores, curves = fidelity_scores(images, some, parts)
    monkeypatch.setattr("sr.metrics.CHUNK", 4)
    for name, values in fidelity_scores(images, some, parts)[0].items():
        np.testing.assert_allclose(values, scores[name], rtol=1e-9)
    without = some.label == some.classes.index("none")
    assert np.isnan(scores["substructure_error"]).tolist() == without.tolist()
    assert all(np.isfinite(values).all() for name, values in scores.items() if not name.startswith("substructure"))
    assert curves.correlation.shape == (6, len(curves.frequency))

    lit = fidelity_scores(images, some, None)[0]  # the lens's light counts as arcs
    assert not set(lit) & {"substructure_error", "substructure_correlation"}
    assert np.abs(lit["arc_flux_error"]).max() < np.abs(scores["arc_flux_error"]).max()

    perfect = fidelity_scores(some.hr, some, parts)[0]
    for name in ("arc_flux_error", "centroid_offset_arcsec", "ellipticity_error", "half_light_radius_error"):
        np.testing.assert_allclose(perfect[name], 0, atol=1e-9)
    bare = TruthParts(np.full_like(parts.macro, np.nan), parts.lens_light)
    summary = summarise(fidelity_scores(images, some, bare)[0], np.random.default_rng(0))
    assert "substructure_error" not in summary
    assert summary["centroid_offset_arcsec"]["mean"] == pytest.approx(np.median(scores["centroid_offset_arcsec"]))
    absolute = np.median(np.abs(scores["arc_flux_error"]))
    assert summary["absolute_arc_flux_error"]["mean"] == pytest.approx(absolute)


def test_noise_of_a_drizzled_image_is_correlated_in_the_truth_itself() -> None:
    drizzle = DrizzleSettings(pixfrac=1.0, input_pixel_scale_arcsec=0.1)
    drizzled = load_instrument("euclid-vis").model_copy(update={"drizzle": drizzle})
    pairs = simulated(SKY.model_copy(update={"lr_instrument": drizzled}), 12)
    scores = consistency(pairs.hr, pairs)
    assert scores["chi2_per_pixel"].mean() == pytest.approx(1, abs=0.1)
    assert scores["residual_autocorrelation"].mean() > 0.1


@pytest.mark.parametrize("statistic", [np.mean, np.median])
def test_the_fast_bootstrap_draws_what_the_slow_one_draws(statistic: Callable[..., Any]) -> None:
    values = np.random.default_rng(8).gamma(1.0, size=(30, 2))
    slow = bootstrap_interval(statistic, (values[:, 1],), np.random.default_rng(9))
    fast = [float(one) for one in bootstrap_along(statistic, values[:, 1], np.random.default_rng(9))]
    assert fast == pytest.approx([slow["mean"], slow["low"], slow["high"]])
    both = bootstrap_along(statistic, values, np.random.default_rng(9))
    assert [float(one[1]) for one in both] == pytest.approx(fast)
    with pytest.raises(ValueError, match="found 0"):
        bootstrap_along(statistic, values[:0], np.random.default_rng(9))
