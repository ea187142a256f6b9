"""A seeing of its own for each lens: the LR instrument's PSF with another FWHM."""

from collections.abc import Sequence

import numpy as np

from .errors import InputError
from .instruments import Instrument, PSFSettings, psf_kernel
from .priors import Prior
from .scene import Scene

KERNEL_FLUX = 1 - 1e-6
"""Share of the broadest PSF that stored kernels hold: what noise would show of the rest is nothing."""


def under_seeing(lr_instrument: Instrument, scene: Scene) -> Instrument:
    """The LR instrument with the FWHM that the scene asks for; itself if it asks for none.

    Raises `InputError` for a PSF that is not given by its FWHM.
    """
    if scene.lr_psf_fwhm_arcsec is None:
        return lr_instrument
    check_seeing(lr_instrument)
    return lr_instrument.model_copy(update={"psf": _with_fwhm(lr_instrument.psf, scene.lr_psf_fwhm_arcsec)})


def check_seeing(lr_instrument: Instrument) -> None:
    """Raise `InputError` if the instrument's PSF has no FWHM that could be replaced."""
    if lr_instrument.psf.fwhm_arcsec is None:
        raise InputError(
            f"simulate.lr_psf_fwhm_arcsec: the PSF of {lr_instrument.name} must be gaussian, moffat or airy, found "
            f"{lr_instrument.psf.kind}; take another lr_instrument, or leave the setting out"
        )


def seeing_kernels(
    psf: PSFSettings, fwhms_arcsec: Sequence[float], prior: Prior, pixel_scale_arcsec: float
) -> np.ndarray:
    """(N,k,k) float32 PSFs with these FWHMs as `psf_kernel` gives them, each summing to 1, one size for all of `prior`.

    The size is that in which the broadest PSF of the prior has KERNEL_FLUX; smaller kernels have zeros around them.
    """
    broadest = psf_kernel(_with_fwhm(psf, prior.bounds()[1]), pixel_scale_arcsec)
    middle = len(broadest) // 2
    held = [_cut(broadest, half).sum() for half in range(middle + 1)]
    half = int(np.argmax(np.array(held) >= KERNEL_FLUX * broadest.sum()))
    kernels = [_cut(psf_kernel(_with_fwhm(psf, one), pixel_scale_arcsec), half) for one in fwhms_arcsec]
    return np.stack([kernel / kernel.sum() for kernel in kernels]).astype(np.float32)


def _with_fwhm(psf: PSFSettings, fwhm_arcsec: float) -> PSFSettings:
    return psf.model_copy(update={"fwhm_arcsec": fwhm_arcsec})


def _cut(kernel: np.ndarray, half: int) -> np.ndarray:
    """(2 half + 1, 2 half + 1): the middle of an odd-sized kernel, with zeros around it where it is smaller."""
    middle = len(kernel) // 2
    inside = kernel[max(middle - half, 0) : middle + half + 1, max(middle - half, 0) : middle + half + 1]
    return np.pad(inside, half - len(inside) // 2)
