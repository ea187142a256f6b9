"""Scores against torchmetrics, closed forms and brute force; the bootstrap against its nominal coverage."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from sr.bootstrap import bootstrap_interval
from sr.metrics import data_range_of, flux_error, image_scores, mean_squared_error, psnr, ssim, summarise

from .conftest import blob_pairs


def image_pair(count: int = 3, height: int = 24, width: int = 31) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    truth = torch.from_numpy(rng.gamma(2.0, 1.0, (count, 1, height, width)))
    return truth + torch.from_numpy(rng.normal(0, 0.3, truth.shape)), truth


def holes(truth: torch.Tensor) -> torch.Tensor:
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[0, 0, 5:14, 3:20] = False
    mask[1, 0, :, :9] = False
    return mask


def test_psnr_matches_torchmetrics() -> None:
    prediction, truth = image_pair()
    expected = [peak_signal_noise_ratio(p, t, data_range=5.0) for p, t in zip(prediction, truth, strict=True)]
    torch.testing.assert_close(psnr(prediction, truth, 5.0), torch.stack(expected).double())


def test_ssim_matches_torchmetrics() -> None:
    prediction, truth = image_pair()
    _, similarity = structural_similarity_index_measure(
        prediction, truth, gaussian_kernel=True, sigma=1.5, data_range=5.0, return_full_image=True
    )
    inside = similarity[..., 5:-5, 5:-5]  # without the windows that torchmetrics completes by reflection
    torch.testing.assert_close(ssim(prediction, truth, 5.0), inside.mean((1, 2, 3)).double())


def test_ssim_matches_scikit_image() -> None:
    prediction, truth = image_pair()
    expected = [
        structural_similarity(
            p[0].numpy(), t[0].numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=5.0
        )
        for p, t in zip(prediction, truth, strict=True)
    ]
    np.testing.assert_allclose(ssim(prediction, truth, 5.0), expected, rtol=1e-6)


def test_scores_of_a_constant_offset_are_their_closed_forms() -> None:
    _, truth = image_pair()
    np.testing.assert_allclose(mean_squared_error(truth + 0.5, truth), 0.25)
    np.testing.assert_allclose(psnr(truth + 0.5, truth, 5.0), 20 * np.log10(5.0 / 0.5))
    np.testing.assert_allclose(flux_error(1.1 * truth, truth), 0.1)
    np.testing.assert_allclose(flux_error(0.8 * truth, truth), -0.2)
    np.testing.assert_allclose(ssim(truth, truth, 5.0), 1.0)
    flat = torch.full((1, 1, 16, 16), 2.0)
    luminance = (2 * 2.0 * 3.0 + (0.01 * 5) ** 2) / (2.0**2 + 3.0**2 + (0.01 * 5) ** 2)
    np.testing.assert_allclose(ssim(flat + 1, flat, 5.0), luminance)


def test_scores_are_float64_one_an_image() -> None:
    prediction, truth = image_pair()
    for scores in (
        mean_squared_error(prediction.float(), truth.float()),
        psnr(prediction.float(), truth.float(), 5.0),
        ssim(prediction.float(), truth.float(), 5.0),
        flux_error(prediction.float(), truth.float()),
    ):
        assert scores.shape == (3,)
        assert scores.dtype == torch.float64


def test_a_full_mask_changes_nothing() -> None:
    prediction, truth = image_pair()
    mask = torch.ones_like(truth, dtype=torch.bool)
    assert torch.equal(ssim(prediction, truth, 5.0, mask), ssim(prediction, truth, 5.0))
    assert torch.equal(mean_squared_error(prediction, truth, mask), mean_squared_error(prediction, truth))


def test_pixels_that_are_not_real_do_not_count() -> None:
    prediction, truth = image_pair()
    mask = holes(truth)
    spoiled, hidden = prediction.clone(), truth.clone()
    spoiled[~mask] = float("nan")
    hidden[~mask] = 1e6
    for score in (mean_squared_error, flux_error):
        torch.testing.assert_close(score(spoiled, hidden, mask), score(prediction, truth, mask))
    for score in (psnr, ssim):
        torch.testing.assert_close(score(spoiled, hidden, 5.0, mask), score(prediction, truth, 5.0, mask))
    expected = [float(((p - t)[m] ** 2).mean()) for p, t, m in zip(prediction, truth, mask, strict=True)]
    np.testing.assert_allclose(mean_squared_error(prediction, truth, mask), expected)


def test_masked_ssim_matches_brute_force() -> None:
    prediction, truth = image_pair(1, 18, 17)
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[0, 0, 7:12, 3:9] = False
    p, t, m = (one[0, 0].numpy() for one in (prediction, truth, mask))
    axis = np.arange(-5, 6)
    window = np.exp(-(axis[:, None] ** 2 + axis[None] ** 2) / (2 * 1.5**2))
    c1, c2 = (0.01 * 5) ** 2, (0.03 * 5) ** 2
    values = []
    for row in range(5, 18 - 5):
        for column in range(5, 17 - 5):
            if not m[row, column]:
                continue
            part = np.s_[row - 5 : row + 6, column - 5 : column + 6]
            weight = window * m[part]
            weight = weight / weight.sum()
            mean_p, mean_t = (weight * p[part]).sum(), (weight * t[part]).sum()
            variance_p, variance_t = (weight * (p[part] - mean_p) ** 2).sum(), (weight * (t[part] - mean_t) ** 2).sum()
            covariance = (weight * (p[part] - mean_p) * (t[part] - mean_t)).sum()
            similarity = (2 * mean_p * mean_t + c1) * (2 * covariance + c2)
            values.append(similarity / ((mean_p**2 + mean_t**2 + c1) * (variance_p + variance_t + c2)))
    assert 0 < len(values) < 8 * 7
    assert float(ssim(prediction, truth, 5.0, mask)) == pytest.approx(np.mean(values), rel=1e-9)


def test_unusable_images_are_refused() -> None:
    prediction, truth = image_pair()
    with pytest.raises(ValueError, match="differ in shape"):
        psnr(prediction[..., 1:], truth, 5.0)
    with pytest.raises(ValueError, match="no real pixel"):
        psnr(prediction, truth, 5.0, torch.zeros_like(truth, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ssim(prediction[..., :10], truth[..., :10], 5.0)


def test_data_range_is_the_median_peak_of_real_pixels() -> None:
    hr = np.zeros((3, 1, 4, 4), "f4")
    hr[:, 0, 1, 1] = [2.0, 5.0, 3.0]
    hr[0, 0, 0, 0] = 100.0
    mask = np.ones(hr.shape, bool)
    mask[:, 0, 0, 0] = False
    assert data_range_of(hr, mask) == 3.0
    with pytest.raises(ValueError, match=r"data range is 0\.0"):
        data_range_of(np.zeros_like(hr), mask)


def test_image_scores_and_summary_agree_with_the_single_scores() -> None:
    pairs = blob_pairs(70)  # more than one chunk
    prediction = pairs.hr_noisy
    scores = image_scores(prediction, pairs, 1.5)
    assert {name: values.shape for name, values in scores.items()} == dict.fromkeys(
        ("mse", "psnr_db", "ssim", "flux_error"), (70,)
    )
    images = torch.from_numpy(prediction), torch.from_numpy(pairs.hr)
    np.testing.assert_allclose(scores["psnr_db"], psnr(*images, 1.5))
    np.testing.assert_allclose(scores["ssim"], ssim(*images, 1.5))
    assert scores["mse"].mean() == pytest.approx(0.02**2, rel=0.02)  # the noise that blob_pairs adds

    summary = summarise(scores, np.random.default_rng(0))
    assert set(summary) == {"mse", "psnr_db", "ssim", "flux_error", "absolute_flux_error"}
    assert summary["psnr_db"]["mean"] == pytest.approx(scores["psnr_db"].mean())
    assert summary["absolute_flux_error"]["mean"] == pytest.approx(np.median(np.abs(scores["flux_error"])))
    for interval in summary.values():
        assert interval["low"] <= interval["mean"] <= interval["high"]
    assert summary == summarise(scores, np.random.default_rng(0))
    with pytest.raises(ValueError, match="the prediction has shape"):
        image_scores(prediction[:, :, 1:], pairs, 1.5)


# -- bootstrap --------------------------------------------------------------------------------------------------------


def test_bootstrap_covers_a_known_mean_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(3)
    trials = 400
    covered = 0
    for _ in range(trials):
        interval = bootstrap_interval(np.mean, (rng.normal(2.0, 1.0, 60),), rng, draws=300)
        covered += interval["low"] <= 2.0 <= interval["high"]
    # the percentile interval is a little narrow at 60 values; 3.5 standard deviations of a binomial about 0.945
    assert abs(covered / trials - 0.945) < 3.5 * np.sqrt(0.945 * 0.055 / trials)


def test_bootstrap_width_matches_the_standard_error() -> None:
    values = np.random.default_rng(4).normal(0, 3.0, 900)
    interval = bootstrap_interval(np.mean, (values,), np.random.default_rng(5), draws=4000, level=0.9)
    assert interval["mean"] == pytest.approx(values.mean())
    assert interval["high"] - interval["low"] == pytest.approx(2 * 1.6449 * values.std() / 30, rel=0.05)


def test_bootstrap_draws_the_same_rows_of_every_array() -> None:
    values = np.random.default_rng(6).normal(0, 10.0, 50)

    def difference(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean(first - second))

    interval = bootstrap_interval(difference, (values + 1.0, values), np.random.default_rng(7))
    assert interval["low"] == pytest.approx(1.0)
    assert interval["high"] == pytest.approx(1.0)


def test_bootstrap_leaves_out_draws_without_a_statistic() -> None:
    def mean_of_positive(values: np.ndarray) -> float:
        return float(values[values > 0].mean()) if (values > 0).any() else float("nan")

    interval = bootstrap_interval(mean_of_positive, (np.array([1.0, -1.0]),), np.random.default_rng(8))
    assert interval == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_bootstrap_refuses_arrays_it_cannot_pair() -> None:
    with pytest.raises(ValueError, match=r"found \[3, 2\]"):
        bootstrap_interval(np.mean, (np.ones(3), np.ones(2)), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"found \[0\]"):
        bootstrap_interval(np.mean, (np.ones(0),), np.random.default_rng(0))
