"""The noise of real images, from whatever map or number comes with them."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from astropy.stats import sigma_clipped_stats
from scipy.signal import fftconvolve

from simulate.errors import InputError

from .resampling import overlap_matrix

MAP_NAMES = ("RMS", "NOISE", "ERR", "WHT", "EXPMAP")
SHORT = 0.05
"""A correlation length (native pixels) at which neighbours are independent."""


def noise_map(
    image: np.ndarray, real: np.ndarray, header: Mapping[str, Any], maps: Mapping[str, np.ndarray], where: str
) -> tuple[np.ndarray, np.ndarray, str]:
    """1-sigma map (H,W), where it is bad (H,W), and how it was found, for one `image` (H,W) with `real` pixels.

    In this order: RMS, NOISE or ERR map; BKGRMS with EXPMAP or EXPTIME (image in counts per second); the measured sky,
    shaped by a WHT map if there is one.
    """
    for name in ("RMS", "NOISE", "ERR"):
        if name in maps:
            noise, bad = mend_noise(maps[name], f"{where}, map {name}")
            return noise, bad, f"noise from {name}"
    good = np.zeros(image.shape, bool)
    if "BKGRMS" in header:
        exposure, source = maps.get("EXPMAP"), "EXPMAP"
        if exposure is None:
            exposure, source = np.full(image.shape, float(header.get("EXPTIME", np.inf))), "EXPTIME"
        photons = np.clip(image, 0, None) / np.where(exposure > 0, exposure, np.inf)
        note = "noise from BKGRMS" + (f" and {source}" if np.isfinite(exposure).all() else "")
        return np.sqrt(float(header["BKGRMS"]) ** 2 + photons), exposure <= 0, note
    sky = measured_sky(image, real, where)
    if "WHT" in maps:
        # Drizzle weights are inverse variances only up to a factor (often exposure times): the sky sets it.
        weight = maps["WHT"]
        noise, bad = mend_noise(np.where(weight > 0, np.abs(weight) + 1e-300, np.nan) ** -0.5, f"{where}, map WHT")
        return noise * sky / np.median(noise), bad, "noise from WHT, scaled to the measured sky"
    return np.full(image.shape, sky), good, "noise measured on the sky"


def mend_noise(noise: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A noise map with its sentinels (such as 1e16 and 1e-4 in Euclid's) set to the median, and where they were."""
    positive = noise[np.isfinite(noise) & (noise > 0)]
    if not positive.size:
        raise InputError(f"{where}: expected positive noise, found none")
    usual = np.median(positive)
    bad = ~np.isfinite(noise) | (noise < 0.1 * usual) | (noise > 1000 * usual)
    return np.where(bad, usual, noise), bad


def measured_sky(image: np.ndarray, real: np.ndarray, where: str) -> float:
    """1-sigma noise of the sky: clipped standard deviation in the outer tenth of the image on each side."""
    values = image[_edge(image.shape, 1) & real]
    sky = float(sigma_clipped_stats(values)[2]) if values.size >= 16 else 0.0
    if not sky > 0:
        raise InputError(f"{where}: no noise can be measured at the edge of the image; give an RMS map or BKGRMS")
    return sky


def noise_correlation_length(image: np.ndarray, real: np.ndarray, variance: float, scale: int, ratio: float) -> float:
    """How far noise is correlated in the native pixels of `image` (H,W), by `correlated_growth`, and in their unit.

    One pixel of `image` is `ratio` native pixels wide and has the `variance` of independent native noise. What sums of
    `scale` x `scale` pixels have instead is measured on the sky. The length is at most half of such a sum's side: what
    is correlated over more is light.
    """
    height, width = (size // scale for size in image.shape)
    binned, whole = (one.reshape(height, scale, width, scale) for one in (image, real))
    scatter = second_difference_scatter(binned.sum((1, 3)), np.asarray(whole.all((1, 3))))
    lengths, growths = _growths_of_sums(scale, ratio)
    return SHORT if np.isnan(scatter) else float(np.interp(scatter**2 / (scale**2 * variance), growths, lengths))


@cache
def _growths_of_sums(scale: int, ratio: float) -> tuple[np.ndarray, list[float]]:
    """Correlation lengths, and the `correlated_growth` of sums of scale x scale pixels for each."""
    lengths = np.linspace(SHORT, scale * ratio / 2, 40)
    return lengths, [correlated_growth(np.ones((scale, scale)), ratio, length) for length in lengths]


def correlated_growth(weights: np.ndarray, ratio: float, length: float) -> float:
    """Variance of a weighted sum (k,k) of pixels over what it would be if their noise were independent.

    A pixel is the sum of the native ones in its area, of `ratio` a side, whose correlation at a distance r is
    exp(-(r / (2 length))^2), all in native pixels: as of independent noise that a Gaussian of `length` has blurred.
    """
    count = len(weights)
    shares = overlap_matrix(int(np.ceil(count * ratio)), count, ratio, 0.0)
    native = shares.T @ weights @ shares
    pairs = fftconvolve(native, native[::-1, ::-1])  # sums of products of weights, by distance
    correlation = np.exp(-((np.arange(1 - len(native), len(native)) / (2 * length)) ** 2))
    own = (shares**2).sum(axis=1)
    return float(correlation @ pairs @ correlation / (own @ weights**2 @ own))


def second_difference_scatter(image: np.ndarray, real: np.ndarray) -> float:
    """1-sigma noise of the sky of `image` (h,w), not correlated over 2 pixels; NaN if there is no sky.

    The noise is told from the light of galaxies by f(x - 2) - 2 f(x) + f(x + 2) in the outer tenth of the image on each
    side, at least 2 pixels: a gradient cancels, and the median of absolute values is not moved by single sources.
    """
    values, edge = np.where(real, image, np.nan), _edge(image.shape, 2)
    differences = [
        (one[:-4] - 2 * one[2:-2] + one[4:])[part[2:-2]] for one, part in ((values, edge), (values.T, edge.T))
    ]
    sizes = np.abs(np.concatenate(differences))
    sizes = sizes[np.isfinite(sizes)]
    return float(np.median(sizes) / (0.6745 * np.sqrt(6))) if sizes.size >= 32 else float("nan")


def _edge(shape: tuple[int, ...], least: int) -> np.ndarray:
    """(H,W) True in the outer tenth on each side, at least `least` pixels."""
    edge = np.ones(shape, bool)
    height, width = (max(size // 10, least) for size in shape)
    edge[height:-height, width:-width] = False
    return edge
