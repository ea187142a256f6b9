"""What a method makes up: imprints of substructure on lenses that have none, and sources in images of mere noise.

Features are measured in units of what the noise of the LR image is after the same filter, so that one of them is what
an observer with the LR image alone could not tell from noise. A method that blurs makes nothing up and misses what is
there; so on lenses the whole error counts, whichever of the two it is, and `imprint_scores` asks for both at once: a
residual where there is substructure and none where there is not. In images of noise a blur cannot but look good.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.signal import fftconvolve
from scipy.stats import binomtest, rankdata

from simulate.instruments import Instrument, draw_noise
from simulate.psf import Psf
from simulate.shards import Pairs

from .bootstrap import bootstrap_along, bootstrap_interval
from .operators import matching_kernels

ERROR_SIGMA = 3.0
"""A pixel of an arc with a larger error, in units of the LR noise at the same surface brightness, is wrong."""
ALARM_SIGMA = 4.0
"""A brighter feature in an image of noise is a false source."""

Numbers = dict[str, Any]


def feature_kernel(pairs: Pairs, beyond_lr: bool) -> np.ndarray:
    """The filter for compact features: the HR PSF with its pixel, (N,k,k) on the HR grid; N is 1 if all share it.

    With `beyond_lr`, less what the LR instrument sees of the same, K - K * M with M of `operators.matching_kernels`:
    it sums to zero, and an error that is smooth at the LR resolution gives next to nothing.
    """
    pixel, step = pairs.hr_band.pixel_scale_arcsec, pairs.hr_band.psf_pixel_scale_arcsec
    psfs = pairs.hr_band.psf.reshape(-1, *pairs.hr_band.psf.shape[-2:])
    middle = int(np.ceil(psfs.shape[-1] // 2 * step / pixel)) + 1
    frequency = np.fft.fftfreq(2 * middle + 1, pixel)
    response = np.outer(*[np.sinc(pixel * frequency)] * 2)
    centre = (float(psfs.shape[-1] // 2),) * 2
    spectra = [Psf(one, centre, step, includes_pixel=False).transfer(frequency, frequency) * response for one in psfs]
    kernels = np.fft.fftshift(np.fft.ifft2(spectra).real, axes=(1, 2))
    if not beyond_lr:
        return kernels
    seen = matching_kernels(pairs.hr_band, pairs.lr_band)
    hidden = -seen
    hidden[:, seen.shape[1] // 2, seen.shape[2] // 2] += 1
    return fftconvolve(kernels, hidden, axes=(1, 2))


def features(images: np.ndarray, pairs: Pairs, kernel: np.ndarray) -> np.ndarray:
    """(N,1,H,W) images -> (N,H,W): filtered, in units of the LR noise after the same filter.

    An LR image of independent noise, each pixel drawn as scale x scale HR pixels, has a mean square of 1.
    """
    triangle = 1 - np.abs(np.arange(1 - pairs.scale, pairs.scale)) / pairs.scale  # what the HR pixels of one share
    correlated = fftconvolve(kernel, np.outer(triangle, triangle)[None], mode="same", axes=(1, 2))
    gain = np.sqrt((kernel * correlated).sum((1, 2), keepdims=True))
    return fftconvolve(images[:, 0].astype("f8"), kernel, mode="same", axes=(1, 2)) / (gain * noise_unit(pairs)[:, 0])


def noise_unit(pairs: Pairs) -> np.ndarray:
    """(N,1,H,W): the LR noise as surface brightness of HR pixels."""
    return np.kron(pairs.lr_noise, np.ones((pairs.scale, pairs.scale), "f4")) / pairs.scale**2


# -- lenses -----------------------------------------------------------------------------------------------------------


def lens_features(images: np.ndarray, macro: np.ndarray, pairs: Pairs, mask: np.ndarray) -> dict[str, np.ndarray]:
    """What (N,1,H,W) `images` have within `mask` that the lens without substructure, `macro`, has not: (N,) each.

    "share_wrong": share of pixels that differ by more than ERROR_SIGMA; "largest_feature": the largest modulus of a
    compact feature of the difference (`feature_kernel` beyond LR).
    """
    difference = np.where(pairs.hr_mask, images - macro, 0)
    wrong = mask & (np.abs(difference) > ERROR_SIGMA * noise_unit(pairs))
    compact = np.abs(features(difference, pairs, feature_kernel(pairs, beyond_lr=True)))
    return {
        "share_wrong": wrong.sum((1, 2, 3)) / mask.sum((1, 2, 3)),
        "largest_feature": np.where(mask[:, 0], compact, 0).max((1, 2)),
    }


def imprint_scores(
    found: dict[str, np.ndarray], true_feature: np.ndarray | None, smooth: np.ndarray, generator: np.random.Generator
) -> Numbers:
    """Scores of a method from its `lens_features`, with 95 % intervals; `smooth` (N,) says which lenses have no
    substructure, `true_feature` (N,) is the "largest_feature" of the truth where it is known, else None.

    On smooth lenses: "share_wrong" (mean), "largest_feature" (median), "false_imprint_rate" (share with a feature that
    is larger than that of half of the true imprints). On all lenses: "imprint_auc", the chance that a lens with
    substructure has a larger feature than one without. The true macro-model is subtracted, which no observer knows: a
    real search does worse. An image of the macro-model has 0, 0, 0 and 0.5, the truth 0, 0, 0 and 1.
    """
    feature = found["largest_feature"]
    scores: Numbers = {
        "share_wrong": _interval(np.mean, found["share_wrong"][smooth], generator),
        "largest_feature": _interval(np.median, feature[smooth], generator),
    }
    if true_feature is not None and not smooth.all():
        threshold = np.median(true_feature[~smooth])
        scores["false_imprint_rate"] = rate(feature[smooth] > threshold)
        scores["imprint_auc"] = bootstrap_interval(_auc, (feature, smooth), generator)
    return scores


def _auc(feature: np.ndarray, smooth: np.ndarray) -> float:
    """Area under the ROC curve (Mann & Whitney 1947); ties count half; NaN if there is only one kind."""
    positive, negative = (~smooth).sum(), smooth.sum()
    if not (positive and negative):
        return float("nan")
    ranks = rankdata(feature)[~smooth].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


# -- noise ------------------------------------------------------------------------------------------------------------


def noise_pairs(pairs: Pairs, instrument: Instrument | None, generator: np.random.Generator) -> Pairs:
    """`pairs` without any light: LR images of the noise of the sky, which is the smallest of each image's noise map.

    With the LR `instrument` it is correlated as that of its images (drizzle), without it is independent.
    """
    sky = np.broadcast_to(pairs.lr_noise.min((1, 2, 3), keepdims=True), pairs.lr_noise.shape).copy()
    if instrument:
        noise = draw_noise(instrument, sky, generator)
    else:
        noise = sky * generator.standard_normal(sky.shape, dtype="f4")
    return replace(pairs, lr=noise, lr_noise=sky, hr=np.zeros_like(pairs.hr), hr_noisy=np.zeros_like(pairs.hr))


def noise_scores(images: np.ndarray, noise: Pairs, generator: np.random.Generator) -> Numbers:
    """What (N,1,H,W) `images`, made from `noise_pairs`, show that is not there, with 95 % intervals.

    "peak": mean over images of the brightest feature (`feature_kernel`), in units of the LR noise; "alarm_rate": share
    of images with one above ALARM_SIGMA, and "made_up_flux" the mean of the flux in there, in units of the noise of an
    LR pixel. "own_peak" and "own_alarm_rate": the same in units of the scatter (1.4826 x median absolute deviation) of
    the features of the image itself, which is what a catalogue from the SR image alone would use. A network that takes
    noise away leaves little of it, and what it leaves may look like sources beside so quiet a sky.
    """
    found = features(images, noise, feature_kernel(noise, beyond_lr=False))
    peak = found.max((1, 2))
    middle = np.median(found, axis=(1, 2), keepdims=True)
    scatter = 1.4826 * np.median(np.abs(found - middle), axis=(1, 2))
    own_peak = (peak - middle[:, 0, 0]) / scatter.clip(1e-9)
    flux = np.where(found > ALARM_SIGMA, images[:, 0], 0).sum((1, 2)) / noise.lr_noise[:, 0, 0, 0]
    return {
        "peak": _interval(np.mean, peak, generator),
        "alarm_rate": rate(peak > ALARM_SIGMA),
        "made_up_flux": _interval(np.mean, flux, generator),
        "own_peak": _interval(np.median, own_peak, generator),
        "own_alarm_rate": rate(own_peak > ALARM_SIGMA),
    }


def noise_itself(noise: Pairs) -> np.ndarray:
    """The LR images as they are, each pixel as scale x scale HR pixels: whose false alarms are those of the noise."""
    return np.kron(noise.lr, np.ones((noise.scale, noise.scale), "f4")) / noise.scale**2


def rate(events: np.ndarray) -> dict[str, float]:
    """Share of true among `events` (N,), with Wilson's 95 % interval, which says something of no events as well."""
    interval = binomtest(int(events.sum()), len(events)).proportion_ci(method="wilson")
    return {"mean": float(events.mean()), "low": float(interval.low), "high": float(interval.high)}


def _interval(statistic: Any, values: np.ndarray, generator: np.random.Generator) -> dict[str, float]:
    numbers = bootstrap_along(statistic, values, generator)
    return dict(zip(("mean", "low", "high"), map(float, numbers), strict=True))
