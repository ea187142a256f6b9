"""Down to which scale is an image true: its power and its correlation with the truth, by spatial frequency."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .bootstrap import bootstrap_along

TAPER = 0.125
"""Share of the frame at each edge over which a cosine takes the image to zero: frames have edges, spectra must not."""
RINGS_PER_NYQUIST = 12
"""Rings of frequencies up to the Nyquist frequency of the LR image; fewer for small images, two modes wide at least."""
RESOLVED = 0.5
"""The correlation down to which a frequency counts as resolved."""
LEAST_TRANSFER = 1e-3
"""Less counts as this in the mean of logarithms."""


@dataclass(frozen=True)
class Spectra:
    """Of N images against the truth, in K rings of spatial frequency."""

    frequency: np.ndarray
    """(K,) middle of each ring, in units of the LR Nyquist frequency."""
    transfer: np.ndarray
    """(N,K) sqrt(P_image / P_truth): 1 for the truth; below for an image too smooth, above for one with noise."""
    correlation: np.ndarray
    """(N,K) P_cross / sqrt(P_image P_truth), the Fourier ring correlation (Saxton & Baumeister 1982, J. Microsc. 127,
    127): 1 for the truth, and nearly so for the truth through a round blur, however strong."""

    @classmethod
    def concatenate(cls, parts: list["Spectra"]) -> "Spectra":
        """Spectra of images of one size, one after another."""
        joined = (np.concatenate([getattr(one, name) for one in parts]) for name in ("transfer", "correlation"))
        return cls(parts[0].frequency, *joined)


def spectra(images: Tensor, truth: Tensor, real: Tensor, scale: int) -> Spectra:
    """Spectra of (N,1,H,W) images; `scale` HR pixels are one LR pixel. NaN for scenes with pixels that are not real.

    P are sums over all modes in a ring |k|, up to the HR Nyquist frequency, of the tapered images (without k = 0).
    P_cross is the real part. An image that has nothing in a ring has transfer 0 and correlation 0 there.
    """
    height, width = images.shape[-2:]
    window = _taper(height)[:, None] * _taper(width)
    whole = real.all((1, 2, 3))[:, None, None]
    found, wanted = (
        torch.fft.rfft2(torch.where(whole, one[:, 0].double(), 0.0) * window.to(one.device)).flatten(1)
        for one in (images, truth)
    )
    frequency_y = torch.fft.fftfreq(height, dtype=torch.float64)
    frequency_x = torch.fft.rfftfreq(width, dtype=torch.float64)
    radius = 2 * scale * torch.hypot(frequency_y[:, None], frequency_x)
    rings = max(1, min(RINGS_PER_NYQUIST, min(height, width) // (4 * scale)))
    ring, count = (radius * rings + 1e-9).long(), rings * scale  # a mode between two rings is in the outer one
    twice = 2.0 - ((frequency_x == 0) | (frequency_x == 0.5)).double()  # modes whose conjugate is not in the half plane
    membership = twice[:, None] * (ring[..., None] == torch.arange(count)) * (radius > 0)[..., None]
    membership = membership.flatten(0, 1).to(images.device)
    power, truth_power = (one.abs().square() @ membership for one in (found, wanted))
    cross = (found * wanted.conj()).real @ membership
    tiny = torch.finfo(power.dtype).tiny
    transfer = (power / truth_power.clamp(min=tiny)).sqrt()
    correlation = cross / (power * truth_power).clamp(min=tiny).sqrt()
    middle = (np.arange(count) + 0.5) / rings
    return Spectra(
        middle, *(torch.where(whole[..., 0], one, torch.nan).cpu().numpy() for one in (transfer, correlation))
    )


def spectral_scores(measured: Spectra) -> dict[str, np.ndarray]:
    """Two numbers of each image's correlation, float64 (N,).

    "resolved_frequency": where it first falls below RESOLVED, in units of the LR Nyquist frequency, by linear
    interpolation between rings; the middle of the last ring if it never does, of the first if it always is.
    "correlation_beyond_nyquist": its mean over the rings above the LR Nyquist frequency, the scales that an LR image
    does not have; NaN if the scale is 1.
    """
    frequency, correlation = measured.frequency, measured.correlation
    below = correlation < RESOLVED
    last = np.where(below.any(1), below.argmax(1), len(frequency) - 1)
    before = np.maximum(last - 1, 0)
    row = np.arange(len(correlation))
    first, second = correlation[row, before], correlation[row, last]
    fall = np.where(first > second, first - second, np.inf)
    step = np.where(below.any(1), np.clip((first - RESOLVED) / fall, 0, 1), 1)
    resolved = frequency[before] + step * (frequency[last] - frequency[before])
    beyond = correlation[:, frequency > 1]
    return {
        "resolved_frequency": np.where(np.isnan(correlation).any(1), np.nan, resolved),
        "correlation_beyond_nyquist": beyond.mean(1) if beyond.size else np.full(len(correlation), np.nan),
    }


def summarise_spectra(measured: Spectra, generator: np.random.Generator) -> dict[str, dict[str, list[float]]]:
    """Mean over scenes of both spectra in each ring, with 95 % bootstrap intervals: {"power_transfer": {"mean", "low",
    "high"}, "cross_correlation": ...}, lists of K; the mean of the transfer is the geometric one. Empty if no scene has
    a spectrum.
    """
    whole = ~np.isnan(measured.correlation).any(1)
    if not whole.any():
        return {}
    names = ("mean", "low", "high")
    logarithm = np.log(np.maximum(measured.transfer[whole], LEAST_TRANSFER))
    transfer = [np.exp(one).tolist() for one in bootstrap_along(np.mean, logarithm, generator)]
    correlation = [one.tolist() for one in bootstrap_along(np.mean, measured.correlation[whole], generator)]
    return {
        "power_transfer": dict(zip(names, transfer, strict=True)),
        "cross_correlation": dict(zip(names, correlation, strict=True)),
    }


def _taper(size: int) -> Tensor:
    """(size,) float64: 1 in the middle, falling as a cosine to 0 at both edges (Tukey's window)."""
    inside = torch.arange(size, dtype=torch.float64) + 0.5
    edge = torch.minimum(inside, size - inside) / (TAPER * size)
    return (1 - torch.cos(torch.pi * edge.clamp(max=1))) / 2
