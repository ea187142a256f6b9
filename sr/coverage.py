"""Do posterior draws cover the truth as often as they say? Pixel by pixel, by TARP, and as standard deviations.

If truth and draws come from the same posterior, the truth is the k-th smallest of them with the same chance for all k.
So of K draws the j-th smallest and the j-th largest hold the truth between them with a chance of (K + 1 - 2j)/(K + 1),
exactly, whatever the posterior and however few the draws. That is true on average over lenses and noise, for pixels
that were chosen by the LR image alone: among pixels that are bright in the truth, many are so because they are brighter
than the LR image says, and even a perfect posterior misses them too often. Where there is light, then, is read from the
model's own point estimate (`lit_pixels`).
"""

import numpy as np
import torch
from scipy.stats import t as student_t
from torch.nn import functional

from simulate.shards import Pairs

from .bootstrap import bootstrap_along, bootstrap_interval
from .shape_metrics import arc_mask

CELL_LR_PIXELS = 4
"""TARP's summaries are fluxes in cells of so many LR pixels a side."""
REFERENCES = 16
"""Reference points that TARP draws a scene."""
SIGMA_BINS = 8
Z_EDGES = np.arange(-5, 5.1, 0.5)
"""Scores beyond the ends count in the last bins."""

NO_SIGMA = 1e-12
"""In units of the LR noise: what draws without any spread count as."""


def lit_pixels(estimate: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Where `arc_mask` finds light in a point estimate (N,1,H,W), which the LR images alone decide: bool (N,1,H,W)."""
    images, noise, real = (torch.from_numpy(one) for one in (estimate, pairs.lr_noise, pairs.hr_mask))
    return arc_mask(images, noise, real).numpy()


def interval_coverage(draws: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many pixels of `mask` have the truth (N,1,H,W) within the central intervals of `draws` (N,K,H,W).

    Returns the intervals' levels (K//2,), ascending, and the share of pixels of each scene (N,K//2); NaN for a scene
    without pixels.
    """
    count = draws.shape[1]
    below = (draws < truth).sum(1, keepdims=True)
    places = np.arange(count // 2, 0, -1)
    pixels = mask.sum((1, 2, 3))
    inside = [(mask & (below >= place) & (below <= count - place)).sum((1, 2, 3)) for place in places]
    share = np.stack(inside, 1) / np.where(pixels, pixels, np.nan)[:, None]
    return (count + 1 - 2 * places) / (count + 1), share


def cell_fluxes(images: np.ndarray, mask: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Flux of (N,M,H,W) within `mask` (N,1,H,W) in cells of CELL_LR_PIXELS, in units of the LR noise (N,1,h,w) there.

    (N,M,D) float64; cells without pixels of the mask have 0, and so have what is left over at the frame's end.
    """
    scale = mask.shape[-1] // noise.shape[-1]
    size = min(CELL_LR_PIXELS, *noise.shape[-2:]) * scale
    variance = np.kron(noise.astype("f8") ** 2, np.ones((scale, scale))) / scale**2

    def total(values: np.ndarray) -> np.ndarray:
        masked = torch.from_numpy(np.where(mask, values, 0.0))
        return functional.avg_pool2d(masked, size, divisor_override=1).flatten(2).numpy()

    sigma = np.sqrt(total(variance))
    return total(images) / np.where(sigma > 0, sigma, 1.0)


def tarp_coverage(
    draws: np.ndarray, truth: np.ndarray, centre: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """TARP (Lemos et al. 2023, arXiv:2302.03026, algorithm 2): levels (K,), and how often each scene is within (N,K).

    Of summaries `draws` (N,K,D) and `truth` (N,D) the distances to a random point are compared: the truth is within the
    region of level j / (K + 1) around the point if fewer than j draws are nearer to it. The points are normal around
    `centre` (N,D), which must follow from the LR image alone, with a standard deviation of 1; REFERENCES of them are
    averaged. Summaries should be in units of what the posterior's width might be. Points far away from it would only
    see it from one side: then draws that are too narrow are within too often at low levels and too seldom at high ones.
    With points among the draws they are within too seldom at all levels, and draws that are too wide are so too often.
    """
    count = draws.shape[1]
    nearer = np.empty((REFERENCES, len(draws)), int)
    for place in range(REFERENCES):
        point = centre + generator.standard_normal(centre.shape)
        distance = np.linalg.norm(draws - point[:, None], axis=2)
        nearer[place] = (distance < np.linalg.norm(truth - point, axis=1)[:, None]).sum(1)
    places = np.arange(1, count + 1)
    return places / (count + 1), (nearer[..., None] < places).mean(0)


def coverage_scores(
    draws: np.ndarray, estimate: np.ndarray, pairs: Pairs, generator: np.random.Generator
) -> dict[str, object]:
    """Everything above for draws (N,K,H,W) of `pairs` and the same model's point estimate (N,1,H,W), K at least 4.

    "pixels": of the light ("light") and of the empty sky ("sky"), curves {"expected", "observed", "low", "high"};
    "at_68" (observed at an expected 0.683) and what `sigma_scores` gives. "tarp": curve, "at_68", on `cell_fluxes` of
    the light: some 30 numbers a scene, each a sum of many pixels. In the 16 000 pixels of an image, distances to any
    point are all but equal, and a cell's sum has what pixels do not show: whether errors of neighbours hang together.
    Intervals are 95 % bootstrap intervals over scenes.
    """
    light = lit_pixels(estimate, pairs)
    regions = {"light": light, "sky": pairs.hr_mask & ~light}
    unit = np.kron(pairs.lr_noise, np.ones((pairs.scale, pairs.scale), "f4")) / pairs.scale**2
    pixels = {}
    for name, mask in regions.items():
        if mask.any():
            levels, share = interval_coverage(draws, pairs.hr, mask)
            scores = sigma_scores(draws / unit, pairs.hr / unit, mask, generator)
            pixels[name] = {**_curve(levels, share[~np.isnan(share[:, 0])], generator), **scores}
    fluxes = [cell_fluxes(one, light, pairs.lr_noise) for one in (draws, pairs.hr, estimate)]
    levels, share = tarp_coverage(fluxes[0], fluxes[1][:, 0], fluxes[2][:, 0], generator)
    cells = float((fluxes[2] != 0).sum(2).mean())
    return {
        "scenes": len(pairs),
        "draws": draws.shape[1],
        "pixels": pixels,
        "tarp": {**_curve(levels, share, generator), "cells": cells},
    }


def _curve(levels: np.ndarray, share: np.ndarray, generator: np.random.Generator) -> dict[str, object]:
    """Mean of `share` (N,levels) over scenes, with intervals; and at an expected level of one sigma."""
    mean, low, high = bootstrap_along(np.mean, share, generator)
    one_sigma = [np.interp(0.683, levels, values) for values in (mean, low, high)]
    return {
        "expected": levels.tolist(),
        "observed": {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()},
        "at_68": dict(zip(("mean", "low", "high"), map(float, one_sigma), strict=True)),
    }


def sigma_scores(
    draws: np.ndarray, truth: np.ndarray, mask: np.ndarray, generator: np.random.Generator
) -> dict[str, object]:
    """The standard deviation of `draws` (N,K,H,W) in a pixel against the error made there, over `mask` (N,1,H,W).

    "sigma": root mean squares {"predicted", "actual"} in SIGMA_BINS equal groups of pixels by predicted sigma; "slope":
    of log actual against log predicted, 1 if large sigmas are as right as small ones; "error_over_sigma": actual over
    predicted, all pixels together, above 1 for draws that are too narrow; None, both of them, for draws without spread.
    One half of the draws groups the pixels, the other one is compared with the truth, or else chance would put pixels
    into groups. What the mean of k draws errs by itself, 1/k of their variance, is taken out.

    "z": shares of pixels by z = (truth - mean) / (sigma sqrt(1 + 1/K)) between Z_EDGES, and of Student's t with K - 1
    degrees of freedom, which it is if posteriors are Gaussian.
    """
    grouping, compared = draws[:, ::2], draws[:, 1::2]
    sigma, variance = grouping.std(1, ddof=1)[mask[:, 0]], compared.var(1, ddof=1)[mask[:, 0]].astype("f8")
    error = ((truth[:, 0] - compared.mean(1)) ** 2)[mask[:, 0]] - variance / compared.shape[1]
    scene = np.broadcast_to(np.arange(len(mask))[:, None, None], mask[:, 0].shape)[mask[:, 0]]
    group = np.searchsorted(np.quantile(sigma, np.arange(1, SIGMA_BINS) / SIGMA_BINS), sigma)
    place = scene * SIGMA_BINS + group

    def sums(weights: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights, len(mask) * SIGMA_BINS).reshape(len(mask), SIGMA_BINS)

    table = np.stack([sums(np.ones_like(error)), sums(variance), sums(error)], 1)
    predicted, actual = np.sqrt((table.sum(0)[1:] / table.sum(0)[0].clip(1)).clip(0))
    return {
        "sigma": {"predicted": predicted.tolist(), "actual": actual.tolist()},
        "slope": bootstrap_interval(_slope, (table,), generator) if np.isfinite(_slope(table)) else None,
        "error_over_sigma": bootstrap_interval(_ratio, (table,), generator) if np.isfinite(_ratio(table)) else None,
        "z": _z_scores(draws, truth, mask),
    }


def _slope(table: np.ndarray) -> float:
    """Least squares through the groups of (N,3,groups) sums, each with the weight of its pixels."""
    pixels, variance, error = table.sum(0)
    used = (pixels > 0) & (variance > 0) & (error > 0)
    if used.sum() < 2:
        return float("nan")
    x, y = np.log(variance[used] / pixels[used]), np.log(error[used] / pixels[used])
    return float(np.polyfit(x, y, 1, w=np.sqrt(pixels[used]))[0])


def _ratio(table: np.ndarray) -> float:
    _, variance, error = table.sum((0, 2))
    return float(np.sqrt(error / variance)) if variance > 0 and error > 0 else float("nan")


def _z_scores(draws: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> dict[str, list[float]]:
    count = draws.shape[1]
    error, sigma = (truth[:, 0] - draws.mean(1))[mask[:, 0]], draws.std(1, ddof=1)[mask[:, 0]]
    z = error / (sigma * np.sqrt(1 + 1 / count)).clip(NO_SIGMA)
    shares = np.histogram(z.clip(Z_EDGES[0], Z_EDGES[-1]), Z_EDGES)[0] / len(z)
    cumulated = student_t.cdf([-np.inf, *Z_EDGES[1:-1], np.inf], count - 1)
    return {"edges": Z_EDGES.tolist(), "observed": shares.tolist(), "expected": np.diff(cumulated).tolist()}
