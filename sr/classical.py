"""Methods without learning that every table has beside the interpolations; each has one number, tuned on validation.

The blur control (smooth, then interpolate) shows how much of a gain in PSNR is denoising alone; Wiener deconvolution
shows what the known point spread functions give.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from simulate.shards import Band, Pairs

from .metrics import psnr
from .trained_model import interpolation_model

BLUR_SIGMAS_LR_PIXELS = tuple(np.arange(0, 2.01, 0.1).round(2).tolist())
WIENER_NOISE_TO_SIGNAL = tuple(np.logspace(-4, 2, 25).tolist())
EDGE_LR_PIXELS = 8


def blur_control(pairs: Pairs, sigma_lr_pixels: float) -> np.ndarray:
    """Bicubic interpolation of the LR images after Gaussian smoothing: (N,1,H,W) flux per HR pixel."""
    smooth = gaussian_filter(pairs.lr, (0, 0, sigma_lr_pixels, sigma_lr_pixels))
    return interpolation_model("bicubic", pairs).super_resolve(smooth, pairs.lr_noise, torch.device("cpu"))


def wiener(pairs: Pairs, noise_to_signal: float) -> np.ndarray:
    """Wiener deconvolution from the LR to the HR instrument, evaluated at the HR pixels: (N,1,H,W) flux per HR pixel.

    The filter is conj(T) T_hr / (|T|² + k f²): T and T_hr are what the LR and HR instruments (PSF x pixel) transmit, f
    is the frequency in units of the LR Nyquist frequency. The noise-to-signal power rises as f² because images of
    galaxies fade with f, and so the filter keeps the total flux. Edges are mirrored.
    """
    edge = min(EDGE_LR_PIXELS, *pairs.lr.shape[-2:])
    padded = np.pad(pairs.lr, ((0, 0), (0, 0), (edge, edge), (edge, edge)), mode="symmetric")
    frequency_y, frequency_x = (np.fft.fftfreq(size) for size in padded.shape[-2:])  # cycles per LR pixel
    transmitted = _transfer(pairs.lr_band, frequency_y, frequency_x, pairs.lr_band.pixel_scale_arcsec)
    wanted = _transfer(pairs.hr_band, frequency_y, frequency_x, pairs.lr_band.pixel_scale_arcsec)
    power = 4 * (frequency_y[:, None] ** 2 + frequency_x**2)
    spectrum = np.fft.fft2(padded, norm="forward") * np.conj(transmitted) * wanted
    spectrum /= np.abs(transmitted) ** 2 + noise_to_signal * power
    # the Fourier series at the centres of the HR pixels, in LR pixels of the padded image
    y, x = (edge + (np.arange(size) + 0.5) / pairs.scale - 0.5 for size in pairs.hr.shape[-2:])
    result = np.exp(2j * np.pi * np.outer(y, frequency_y)) @ spectrum @ np.exp(2j * np.pi * np.outer(frequency_x, x))
    return (result.real / pairs.scale**2).astype(np.float32)


def _transfer(band: Band, frequency_y: np.ndarray, frequency_x: np.ndarray, unit_arcsec: float) -> np.ndarray:
    """Fourier transform of PSF and square pixel at frequencies in cycles per `unit_arcsec`: (h,w) or (N,1,h,w)."""
    pixel = band.pixel_scale_arcsec / unit_arcsec
    step = band.psf_pixel_scale_arcsec / unit_arcsec
    position = (np.arange(band.psf.shape[-1]) - band.psf.shape[-1] // 2) * step
    phase_y = np.exp(-2j * np.pi * np.outer(frequency_y, position))
    phase_x = np.exp(-2j * np.pi * np.outer(position, frequency_x))
    transfer = phase_y @ band.psf @ phase_x
    # a PSF sampled at `step` says nothing beyond its own Nyquist frequency
    known = (np.abs(frequency_y)[:, None] * step <= 0.5) & (np.abs(frequency_x) * step <= 0.5)
    transfer = transfer * known * np.sinc(pixel * frequency_y)[:, None] * np.sinc(pixel * frequency_x)
    return transfer if band.psf.ndim == 2 else transfer[:, None]


def tune(
    method: Callable[[Pairs, float], np.ndarray], values: Sequence[float], validation: Pairs, data_range: float
) -> float:
    """The value with which `method` has the highest mean PSNR on the validation split."""
    truth, mask = torch.from_numpy(validation.hr), torch.from_numpy(validation.hr_mask)
    scores = [
        float(psnr(torch.from_numpy(method(validation, value)), truth, data_range, mask).mean()) for value in values
    ]
    return values[int(np.argmax(scores))]
