"""How good is an image: MSE, PSNR, SSIM and flux error, over real pixels, with a fixed data range; and how true."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from simulate.shards import Pairs

from .bootstrap import bootstrap_along
from .operators import forward_operator
from .residual_metrics import consistency_scores, substructure_scores
from .shape_metrics import arc_mask, shape_scores
from .spectral_metrics import Spectra, spectra, spectral_scores

if TYPE_CHECKING:
    from .truth_parts import TruthParts

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
CHUNK = 64  # images scored at a time: bounds the memory
MEDIAN_SCORES = ("centroid_offset_arcsec", "ellipticity_error", "substructure_error")
"""Errors without a sign: the few scenes in which there is little to measure would make up most of their mean."""
SIGNED_SCORES = ("flux_error", "arc_flux_error", "half_light_radius_error", "theta_e_error")
"""Relative errors: their mean is the bias, and "absolute_..." is the median of their absolute values."""


def data_range_of(hr: np.ndarray, mask: np.ndarray) -> float:
    """The fixed data range of a data set: the median over its images (N,1,H,W) of the brightest real pixel.

    Take it from the training split and use it for every method and image; never take it from a prediction.
    """
    peaks = np.where(mask, hr, -np.inf).max(axis=(1, 2, 3))
    data_range = float(np.median(peaks))
    if not (np.isfinite(data_range) and data_range > 0):
        raise ValueError(f"the data range is {data_range}: half of the images have no real pixel above zero")
    return data_range


def mean_squared_error(prediction: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over real pixels of the squared difference: (N,1,H,W) -> (N,) float64."""
    prediction, truth, mask = _prepare(prediction, truth, mask)
    return ((prediction - truth) ** 2).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def psnr(
    prediction: torch.Tensor, truth: torch.Tensor, data_range: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range² / MSE): (N,1,H,W) -> (N,); infinite if all is equal."""
    return 10 * torch.log10(data_range**2 / mean_squared_error(prediction, truth, mask))


def ssim(
    prediction: torch.Tensor, truth: torch.Tensor, data_range: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13, 600; K1 0.01, K2 0.03): (N,1,H,W) -> (N,) float64.

    Local moments are taken in an 11x11 Gaussian window of sigma 1.5 whose weights are renormalised over its real
    pixels, so that no other pixel counts; SSIM is the mean over the windows that lie inside the image and whose
    central pixel is real. Without a mask this is the usual definition.
    """
    prediction, truth, mask = _prepare(prediction, truth, mask)
    if min(truth.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels, found {tuple(truth.shape[-2:])}")
    similarity, centres = ssim_map(prediction, truth, mask, data_range)
    return (similarity * centres).sum((1, 2, 3)) / centres.sum((1, 2, 3))


def ssim_map(
    prediction: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor, data_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The similarity in each window of `ssim`, and 1 where its central pixel is real, else 0: (N,1,H-10,W-10) both.

    For images that are zero where they are not real, with the mask as 1 and 0 in their precision. Differentiable.
    """
    moments = (prediction, truth, prediction**2, truth**2, prediction * truth)
    weight = _smooth(mask).clamp(min=torch.finfo(mask.dtype).tiny)  # zero only around pixels that are not real
    mean_p, mean_t, square_p, square_t, product = (_smooth(moment) / weight for moment in moments)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    variances = square_p - mean_p**2 + square_t - mean_t**2
    covariance = product - mean_p * mean_t
    similarity = (2 * mean_p * mean_t + c1) * (2 * covariance + c2)
    margin = SSIM_WINDOW // 2
    centres = mask[..., margin:-margin, margin:-margin]
    return similarity / ((mean_p**2 + mean_t**2 + c1) * (variances + c2)), centres


def flux_error(prediction: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Signed relative error of the total flux over real pixels: (N,1,H,W) -> (N,) float64."""
    prediction, truth, mask = _prepare(prediction, truth, mask)
    return prediction.sum((1, 2, 3)) / truth.sum((1, 2, 3)) - 1


def image_scores(prediction: np.ndarray, pairs: Pairs, data_range: float) -> dict[str, np.ndarray]:
    """Score images (N,1,H,W) against `pairs.hr` on its real pixels: {"mse", "psnr_db", "ssim", "flux_error"}, (N,)."""
    if prediction.shape != pairs.hr.shape:
        raise ValueError(f"the prediction has shape {prediction.shape}, the truth {pairs.hr.shape}")
    chunks: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(pairs), CHUNK):
        part = slice(start, start + CHUNK)
        images = torch.from_numpy(prediction[part]), torch.from_numpy(pairs.hr[part])
        mask = torch.from_numpy(pairs.hr_mask[part])
        chunks.append(
            {
                "mse": mean_squared_error(*images, mask),
                "psnr_db": psnr(*images, data_range, mask),
                "ssim": ssim(*images, data_range, mask),
                "flux_error": flux_error(*images, mask),
            }
        )
    return _concatenate(chunks)


def fidelity_scores(
    prediction: np.ndarray, pairs: Pairs, parts: "TruthParts | None"
) -> tuple[dict[str, np.ndarray], Spectra]:
    """How true images (N,1,H,W) are, as astronomers measure it: scores (N,) by name, and spectra.

    Those of `shape_scores`, `consistency_scores`, `spectral_scores` and, with `parts` (of the same pairs),
    `substructure_scores`; NaN where one is not defined. Without `parts`, light of the lens counts as arcs. Raises
    `InputError` for a truth without light.
    """
    chunks: list[dict[str, torch.Tensor]] = []
    measured: list[Spectra] = []
    for start in range(0, len(pairs), CHUNK):
        part = pairs.select(np.arange(start, min(start + CHUNK, len(pairs))))
        images, truth, real, lr, noise = (
            torch.from_numpy(one)
            for one in (prediction[start : start + CHUNK], part.hr, part.hr_mask, part.lr, part.lr_noise)
        )
        of_chunk = parts.select(slice(start, start + CHUNK)) if parts else None
        lens_light = torch.from_numpy(of_chunk.lens_light) if of_chunk else torch.zeros_like(truth)
        mask = arc_mask(truth - lens_light, noise, real)
        scores = shape_scores(images - lens_light, truth - lens_light, mask, part.hr_band.pixel_scale_arcsec)
        scores |= consistency_scores(images, real, lr, noise, forward_operator(part))
        if of_chunk:
            scores |= substructure_scores(images, truth, torch.from_numpy(of_chunk.macro), mask)
        chunks.append(scores)
        measured.append(spectra(images, truth, real, part.scale))
    whole = Spectra.concatenate(measured)
    return {**_concatenate(chunks), **spectral_scores(whole)}, whole


def _concatenate(chunks: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.cat([chunk[name] for chunk in chunks]).numpy() for name in chunks[0]}


def summarise(scores: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, dict[str, float]]:
    """Mean over images of each score with its 95 % bootstrap interval: {"psnr_db": {"mean", "low", "high"}, ...}.

    MEDIAN_SCORES have their median in its place. "absolute_flux_error" is the median of |flux_error|, and so for all of
    SIGNED_SCORES. Images for which a score is not defined (NaN) are left out, and so is a score that no image has.
    """
    absolute = {f"absolute_{name}": np.abs(scores[name]) for name in SIGNED_SCORES if name in scores}
    summary = {}
    for name, values in {**scores, **absolute}.items():
        defined = values[~np.isnan(values)]
        statistic = np.median if name in absolute or name in MEDIAN_SCORES else np.mean
        if len(defined):
            numbers = zip(("mean", "low", "high"), bootstrap_along(statistic, defined, generator), strict=True)
            summary[name] = {key: float(number) for key, number in numbers}
    return summary


def _prepare(
    prediction: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Float64 images that are zero where they are not real, and the mask as float64."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in shape")
    if mask is None:
        mask = torch.ones_like(truth, dtype=torch.bool)
    if not mask.any(dim=(1, 2, 3)).all():
        raise ValueError("an image has no real pixel to score")
    return (
        torch.where(mask, prediction.double(), 0.0),
        torch.where(mask, truth.double(), 0.0),
        mask.double(),
    )


def _smooth(images: torch.Tensor) -> torch.Tensor:
    """Gaussian-weighted mean in each window that lies inside the image: (N,1,H,W) -> (N,1,H-10,W-10)."""
    offset = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (offset / SSIM_SIGMA) ** 2)
    weights = weights / weights.sum()
    return functional.conv2d(functional.conv2d(images, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
