"""Methods without learning that every table has beside the interpolations; each has one number, tuned on validation.

The blur control (smooth, then interpolate) shows how much of a gain in PSNR is denoising alone; Wiener deconvolution
shows what the known point spread functions give, and Richardson-Lucy what they give to images that cannot be negative.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from simulate.shards import Band, Pairs

from .metrics import CHUNK, psnr
from .operators import forward_operator
from .trained_model import interpolation_model

BLUR_SIGMAS_LR_PIXELS = tuple(np.arange(0, 2.01, 0.1).round(2).tolist())
WIENER_NOISE_TO_SIGNAL = tuple(np.logspace(-4, 2, 25).tolist())
EDGE_LR_PIXELS = 8
RICHARDSON_LUCY_ITERATIONS = (1, 2, 3, 5, 7, 10, 14, 20, 28, 40, 56, 80, 113, 160, 226, 320)
OFFSET_SIGMAS = 25.0
"""The background that `richardson_lucy` adds, in units of the noise. For counts of electrons it is their noise on empty
sky: about 25 for half of the instruments in `configs/instruments`."""


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


def richardson_lucy(pairs: Pairs, iterations: int, device: torch.device) -> np.ndarray:
    """Richardson-Lucy deconvolution to the HR pixels, seen through the HR instrument: (N,1,H,W) flux per HR pixel.

    Richardson 1972, JOSA 62, 55; Lucy 1974, AJ 79, 745: x <- x A^T(n / (A x + o)) / A^T(1) for counts n = lr + o. The
    known background o, OFFSET_SIGMAS x the median noise, makes counts of sky-subtracted pixels below zero, with the
    Gaussian noise of sky and detector as their Poisson noise (Snyder, Hammoud & White 1993, JOSA A 10, 1014).

    Without a background these steps keep the flux, and so x is scaled to the LR image's flux after each: as expectation
    maximisation with that constraint (Shepp & Vardi 1982, IEEE TMI 1, 113), every step raises the likelihood and leaves
    no pixel below zero. Few iterations leave an image smooth, many fit the noise.
    """
    parts = [pairs.select(np.arange(start, min(start + CHUNK, len(pairs)))) for start in range(0, len(pairs), CHUNK)]
    images = [next(image for done, image in _richardson_lucy(part, device) if done == iterations) for part in parts]
    return torch.cat(images).cpu().numpy()


def _richardson_lucy(pairs: Pairs, device: torch.device) -> Iterator[tuple[int, torch.Tensor]]:
    """The number of iterations done, 0 ..., and the images (N,1,H,W) after them, without an end."""
    operator = forward_operator(pairs).to(device, torch.float32)
    lr, noise = (torch.from_numpy(one).to(device, torch.float32) for one in (pairs.lr, pairs.lr_noise))
    offset = OFFSET_SIGMAS * noise.flatten(1).median(1).values.view(-1, 1, 1, 1)
    counts = (lr + offset).clamp(min=0)
    flux = _total(lr).maximum(_total(noise**2).sqrt())  # an empty image has at least that of its noise
    reached = operator.adjoint(torch.ones_like(lr))  # less than 1 where light leaves the frame
    image = operator.adjoint(lr).maximum(1e-3 * offset)  # smooth; what is zero stays so
    for done in count():
        image = image * (flux / _total(image))
        yield done, image / reached
        expected = (operator(image / reached) + offset).maximum(0.01 * offset)  # kernels may have wings below zero
        image = image / reached * operator.adjoint(counts / expected).clamp(min=0)


def _total(images: torch.Tensor) -> torch.Tensor:
    return images.sum((1, 2, 3), keepdim=True)


def tune_richardson_lucy(validation: Pairs, data_range: float, device: torch.device) -> int:
    """The number of iterations with the highest mean PSNR on the validation split, all from one run.

    Ends after twice as many as were best: from there on only noise is fitted.
    """
    best, best_psnr_db = 0, -np.inf
    for iterations, images in _richardson_lucy(validation, device):
        if iterations in RICHARDSON_LUCY_ITERATIONS:
            score = _mean_psnr(images.cpu(), validation, data_range)
            if score > best_psnr_db:
                best, best_psnr_db = iterations, score
        if iterations >= min(2 * best, RICHARDSON_LUCY_ITERATIONS[-1]) and best:
            break
    return best


def tune(
    method: Callable[[Pairs, float], np.ndarray], values: Sequence[float], validation: Pairs, data_range: float
) -> float:
    """The value with which `method` has the highest mean PSNR on the validation split."""
    scores = [_mean_psnr(torch.from_numpy(method(validation, value)), validation, data_range) for value in values]
    return values[int(np.argmax(scores))]


def _mean_psnr(images: torch.Tensor, pairs: Pairs, data_range: float) -> float:
    truth, mask = torch.from_numpy(pairs.hr), torch.from_numpy(pairs.hr_mask)
    return float(psnr(images, truth, data_range, mask).mean())
