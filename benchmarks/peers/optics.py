"""PSF, pixels and noise for simulators that have none of their own, in any array library with NumPy's manners."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from lenstronomy.SimulationAPI.observation_api import SingleBand
from scipy.fft import next_fast_len

from simulate.instruments import Instrument, psf_kernel

from .base import Task


@dataclass(frozen=True)
class Optics:
    """What a task's two instruments do to light on the rays."""

    rays: int
    padded: int
    """Size of the periodic grid of the convolution; nothing wraps round into the frame."""
    factors: tuple[int, int]
    """Rays along an HR and an LR pixel."""
    transfer: tuple[Any, Any]
    """(padded, padded // 2 + 1) Fourier transforms of the PSFs, in the array library's complex type."""
    variance: tuple[tuple[float, float], tuple[float, float]]
    """Noise variance (nJy^2) of an empty pixel, and its increase for 1 nJy."""

    def see(self, flux: Any, fft: Any) -> tuple[Any, Any]:
        """Noiseless HR and LR images (...,H,W) of `flux` (...,rays,rays) in nJy; `fft` has rfft2 and irfft2."""
        shape = (self.padded, self.padded)
        spectrum = fft.rfft2(flux, s=shape)
        hr, lr = (
            _bin_sum(fft.irfft2(spectrum * transfer, s=shape)[..., : self.rays, : self.rays], factor)
            for transfer, factor in zip(self.transfer, self.factors, strict=True)
        )
        return hr, lr

    def sigma(self, hr: Any, lr: Any) -> tuple[Any, Any]:
        """1-sigma noise maps of noiseless images."""
        (hr_empty, hr_slope), (lr_empty, lr_slope) = self.variance
        return (hr_empty + hr_slope * hr.clip(min=0)) ** 0.5, (lr_empty + lr_slope * lr.clip(min=0)) ** 0.5


def make_optics(task: Task) -> Optics:
    """In NumPy and float64; put `transfer` into another library's type with `dataclasses.replace`."""
    instruments = (task.hr_instrument, task.lr_instrument)
    kernels = [psf_kernel(one.psf, task.spacing_arcsec) for one in instruments]
    padded = next_fast_len(task.rays + max(len(one) // 2 for one in kernels), real=True)
    transfers = []
    for kernel in kernels:
        image = np.zeros((padded, padded))
        image[: len(kernel), : len(kernel)] = kernel
        transfers.append(np.fft.rfft2(np.roll(image, (-(len(kernel) // 2),) * 2, (0, 1))))
    return Optics(
        task.rays,
        padded,
        (task.supersampling, task.supersampling * task.scale),
        (transfers[0], transfers[1]),
        (_variance(instruments[0]), _variance(instruments[1])),
    )


def optics_in_jax(jax: Any, optics: Optics) -> Optics:
    """The same for single-precision JAX."""
    hr, lr = (jax.numpy.asarray(one.astype(np.complex64)) for one in optics.transfer)
    return replace(optics, transfer=(hr, lr))


def observe_in_jax(jax: Any, optics: Optics, flux: Any, key: Any) -> tuple[Any, tuple[Any, ...]]:
    """A key for the next call, and the fields of `Pairs`, from flux (N,rays,rays) in nJy on the rays.

    To be compiled on its own: in one function with the light, XLA computes the light several times over.
    """
    hr, lr = optics.see(flux, jax.numpy.fft)
    hr_sigma, lr_sigma = optics.sigma(hr, lr)
    following, first, second = jax.random.split(key, 3)
    hr_noisy = hr + hr_sigma * jax.random.normal(first, hr.shape)
    return following, (hr, hr_noisy, lr + lr_sigma * jax.random.normal(second, lr.shape), lr_sigma)


def _bin_sum(image: Any, factor: int) -> Any:
    size = image.shape[-1] // factor
    return image.reshape(*image.shape[:-2], size, factor, size, factor).sum((-3, -1))


def _variance(instrument: Instrument) -> tuple[float, float]:
    """Variance of an empty pixel and its slope with flux, by lenstronomy's `SingleBand`."""
    band = SingleBand(
        pixel_scale=instrument.pixel_scale_arcsec,
        exposure_time=instrument.exposure_time_s,
        num_exposures=instrument.num_exposures,
        magnitude_zero_point=instrument.magnitude_zero_point,
        read_noise=instrument.read_noise_electrons,
        sky_brightness=instrument.sky_brightness_mag_arcsec2,
        psf_type="NONE",
        data_count_unit="e-",
    )
    unit = instrument.nanojansky_per_electron_s
    return float(band.background_noise * unit) ** 2, float(band.flux_noise(1 / unit) * unit) ** 2
