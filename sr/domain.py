"""What a model was trained for: the range that it saw, and whether an image belongs to it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from astropy.io import fits
from astropy.stats import sigma_clipped_stats

from simulate.psf import Psf
from simulate.settings import Settings
from simulate.shards import Pairs

from .observed.fits_images import pixel_scale_arcsec
from .telescopes import Telescope, agrees, recognise, telescope_of

if TYPE_CHECKING:
    from .trained_model import ModelConfig

PIXEL_SCALE_TOLERANCE = 0.05
BACKGROUND_SIGMAS = 5.0


class SeenRange(Settings):
    """What a model saw while it was trained, as far as it can be told from an image or is worth knowing."""

    peak_signal_to_noise: tuple[float, float]
    """1st and 99th percentile over the LR images of the brightest pixel over the median noise."""
    lr_fwhm_arcsec: float
    """Of the mean LR PSF of the optics."""
    lr_fwhm_range_arcsec: tuple[float, float] | None = None
    """Least and most, where each image had a PSF of its own."""

    def describe_fwhm(self) -> str:
        """ "0.16"", or "0.12" to 0.24""."""
        widths = self.lr_fwhm_range_arcsec or (self.lr_fwhm_arcsec,)
        return " to ".join(f'{width:.3g}"' for width in widths)


@dataclass(frozen=True)
class Observation:
    """What can be measured on an image that a model is asked to super-resolve."""

    pixel_scale_arcsec: float | None
    telescope: Telescope
    background: float  # at the edges of the image, in its unit
    background_sigmas: float
    peak_signal_to_noise: float


def seen_range(pairs: Pairs) -> SeenRange:
    """What a model that learns from `pairs` sees."""
    peak = pairs.lr.max(axis=(1, 2, 3)) / np.median(pairs.lr_noise, axis=(1, 2, 3))
    low, high = (float(value) for value in np.percentile(peak, [1, 99]))
    kernels, step = pairs.lr_band.psf, pairs.lr_band.psf_pixel_scale_arcsec
    if kernels.ndim == 2:
        return SeenRange(peak_signal_to_noise=(low, high), lr_fwhm_arcsec=_fwhm_arcsec(kernels, step))
    widths = [_fwhm_arcsec(kernel, step) for kernel in kernels]
    return SeenRange(
        peak_signal_to_noise=(low, high),
        lr_fwhm_arcsec=_fwhm_arcsec(kernels.mean(0), step),
        lr_fwhm_range_arcsec=(min(widths), max(widths)),
    )


def _fwhm_arcsec(kernel: np.ndarray, pixel_scale_arcsec: float) -> float:
    middle = ((kernel.shape[0] - 1) / 2, (kernel.shape[1] - 1) / 2)
    return Psf(kernel, middle, pixel_scale_arcsec, includes_pixel=False).fwhm_arcsec


def observe(
    image: np.ndarray, real: np.ndarray, noise_sigma: float, header: fits.Header, description: fits.Header
) -> Observation:
    """Measure an `image` (h,w) with `real` pixels; `description` is `header` with what the primary header adds.

    The background is the clipped median of the outer tenth on each side, where light of a lens in the middle is least.
    """
    try:
        pixel_scale = pixel_scale_arcsec(header, {})
    except (TypeError, ValueError):  # PIXSCALE is no number
        pixel_scale = None
    if pixel_scale is not None and not (np.isfinite(pixel_scale) and pixel_scale > 0):
        pixel_scale = None
    edge = np.ones(image.shape, bool)
    height, width = (max(size // 10, 1) for size in image.shape)
    edge[height:-height, width:-width] = False
    values = image[edge & real]
    background = float(sigma_clipped_stats(values if values.size else image[real])[1])
    return Observation(
        pixel_scale_arcsec=pixel_scale,
        telescope=telescope_of(description),
        background=background,
        background_sigmas=background / noise_sigma,
        peak_signal_to_noise=float(image[real].max()) / noise_sigma,
    )


def scale_fits(pixel_scale: float, config: "ModelConfig") -> bool:
    """Whether pixels of `pixel_scale` arcsec are those the model was trained on, within `PIXEL_SCALE_TOLERANCE`."""
    return abs(pixel_scale / config.lr_pixel_scale_arcsec - 1) <= PIXEL_SCALE_TOLERANCE


def objections(config: "ModelConfig", found: Observation) -> list[str]:
    """Why the model must not be used on the image: a sentence each; empty if it may."""
    expected, sentences = config.lr_pixel_scale_arcsec, []
    if found.pixel_scale_arcsec is None:
        sentences.append(f'the pixel scale is not in the header (PIXSCALE or a WCS), the model expects {expected:.4g}"')
    elif not scale_fits(found.pixel_scale_arcsec, config):
        sentences.append(f'the pixels are {found.pixel_scale_arcsec:.4g}", the model was trained on {expected:.4g}"')
    if agrees(found.telescope, recognise(config.lr_instrument)) is False:
        sentences.append(f"the image is from {found.telescope.text}, the model was trained on {config.lr_instrument}")
    if abs(found.background_sigmas) > BACKGROUND_SIGMAS:
        sentences.append(
            f"the background at the edges is {found.background:.4g} ({found.background_sigmas:.3g} sigma), "
            f"expected below {BACKGROUND_SIGMAS:g} sigma: subtract the sky first"
        )
    return sentences


def remarks(config: "ModelConfig", found: Observation) -> list[str]:
    """What the user should know before trusting the result, and what is no reason to refuse the image."""
    sentences = []
    if not found.telescope.text:
        sentences.append(f"the header names no telescope or filter; the model was trained on {config.lr_instrument}")
    elif agrees(found.telescope, recognise(config.lr_instrument)) is None:
        sentences.append(f"whether {found.telescope.text} is what the model knows as {config.lr_instrument} is open")
    if config.training_range is not None:
        low, high = config.training_range.peak_signal_to_noise
        peak = found.peak_signal_to_noise
        if not low <= peak <= high:
            sentences.append(f"the brightest pixel is {peak:.3g} sigma, in training it was {low:.3g} to {high:.3g}")
    return sentences
