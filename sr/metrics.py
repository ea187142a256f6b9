"""How good is an image: MSE, PSNR, SSIM and flux error, over real pixels, with a fixed data range."""

import numpy as np
import torch
from torch.nn import functional

from simulate.shards import Pairs

from .bootstrap import bootstrap_interval

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
CHUNK = 64  # images scored at a time: bounds the memory


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
    return {name: torch.cat([chunk[name] for chunk in chunks]).numpy() for name in chunks[0]}


def summarise(scores: dict[str, np.ndarray], generator: np.random.Generator) -> dict[str, dict[str, float]]:
    """Mean over images of each score with its 95 % bootstrap interval: {"psnr_db": {"mean", "low", "high"}, ...}.

    "absolute_flux_error" is the median of |flux_error|.
    """
    summary = {name: bootstrap_interval(np.mean, (values,), generator) for name, values in scores.items()}
    if "flux_error" in scores:
        absolute = np.abs(scores["flux_error"])
        summary["absolute_flux_error"] = bootstrap_interval(np.median, (absolute,), generator)
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
