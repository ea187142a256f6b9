"""Bring a sharp and a less sharp image of the same sky onto one grid: from their headers, then from their pixels."""

from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from scipy.signal.windows import tukey
from skimage.registration import phase_cross_correlation

from simulate.errors import InputError

from .resampling import blur_and_bin, overlap_matrix, real_pixels, rebin

Corner = tuple[float, float]
"""Where the outer corner (y, x) of the first LR pixel lies, in HR pixels counted from the outer corner of the first."""


@dataclass(frozen=True, eq=False)
class Registered:
    """HR on `scale` times the LR grid (H,W), in LR's flux unit, and what LR should be (h,w) if HR is the truth."""

    hr: np.ndarray
    hr_real: np.ndarray
    prediction: np.ndarray
    real: np.ndarray  # (h,w) where both images are real
    shift_lr_pixels: tuple[float, float]  # (y, x) by which LR lies beside where the headers say
    gain: float
    sky: float  # of LR above HR's, in LR's unit


def corner_from_wcs(hr_wcs: WCS, lr_wcs: WCS, ratio: float, lr_shape: tuple[int, ...], where: str) -> Corner:
    """The corner from both images' WCS. `ratio` = LR pixel / HR pixel.

    Raises `InputError` if the grids are rotated against each other or their pixels are not `ratio`.
    """
    height, width = lr_shape
    x, y = hr_wcs.world_to_pixel(lr_wcs.pixel_to_world([-0.5, width - 0.5, -0.5], [-0.5, -0.5, height - 0.5]))
    along_x, along_y = (x[1] - x[0], y[1] - y[0]), (x[2] - x[0], y[2] - y[0])
    expected = np.array([width * ratio, 0, 0, height * ratio])
    if np.abs(np.array([*along_x, *along_y]) - expected).max() > 0.5:
        raise InputError(
            f"{where}: the images' WCS are rotated or scaled against each other: the LR frame spans {along_x[0]:.1f} x "
            f"{along_y[1]:.1f} HR pixels, expected {expected[0]:.1f} x {expected[3]:.1f}; resample one of them first"
        )
    return float(y[0] + 0.5), float(x[0] + 0.5)


def concentric_corner(hr_shape: tuple[int, ...], lr_shape: tuple[int, ...], ratio: float) -> Corner:
    """The corner if both frames are centred on the same point of the sky."""
    low_y, low_x = ((hr - lr * ratio) / 2 for hr, lr in zip(hr_shape, lr_shape, strict=True))
    return low_y, low_x


def register(
    hr: np.ndarray,
    hr_real: np.ndarray,
    lr: np.ndarray,
    lr_real: np.ndarray,
    ratio: float,
    corner: Corner,
    kernel: np.ndarray,
    scale: int,
) -> Registered:
    """Register `hr` (H,W) to `lr` (h,w), `ratio` HR pixels per LR pixel, starting at `corner`.

    HR is resampled by area overlap (conserving flux) to `scale` pixels per LR pixel, blurred with `kernel` on that
    grid and binned; its shift against LR by cross-correlation (Guizar-Sicairos et al. 2008) corrects the corner until
    it no longer moves. Then LR = gain x HR + sky by least squares; with different bands the gain is a mean colour, so
    colour differences inside the field stay.
    """
    start = np.array(corner)
    place = start.copy()
    for _ in range(8):
        prediction, real = _predict(hr, hr_real, lr.shape, ratio, place, kernel, scale)[:2]
        shift = measure_shift(prediction, lr, real & lr_real)
        place = place - shift * ratio
        if np.abs(shift).max() < 0.005:
            break
    prediction, real, fine, fine_real = _predict(hr, hr_real, lr.shape, ratio, place, kernel, scale)
    real &= lr_real
    design = np.stack([prediction[real], np.ones(np.count_nonzero(real))], axis=1)
    (gain, sky), *_ = np.linalg.lstsq(design, lr[real], rcond=None)
    moved = (start - place) / ratio
    return Registered(
        hr=np.where(fine_real, gain * fine, 0),
        hr_real=fine_real,
        prediction=gain * prediction,
        real=real,
        shift_lr_pixels=(float(moved[0]), float(moved[1])),
        gain=float(gain),
        sky=float(sky),
    )


def _predict(
    hr: np.ndarray,
    hr_real: np.ndarray,
    lr_shape: tuple[int, ...],
    ratio: float,
    corner: np.ndarray,
    kernel: np.ndarray,
    scale: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """HR as LR would show it (h,w) and where that is real, and HR on the fine grid (H,W) and where that is real."""
    step = ratio / scale
    rows, columns = (
        overlap_matrix(count, small * scale, step, offset)
        for count, small, offset in zip(hr.shape, lr_shape, corner, strict=True)
    )
    fine = rebin(hr, rows, columns)
    real = real_pixels(hr_real, rows, columns, step)
    prediction = blur_and_bin(np.where(real, fine, 0), kernel, scale)
    blocks = real.reshape(lr_shape[0], scale, lr_shape[1], scale).all(axis=(1, 3))
    return prediction, np.asarray(blocks), fine, real


def measure_shift(prediction: np.ndarray, observed: np.ndarray, real: np.ndarray) -> np.ndarray:
    """(y, x) in pixels by which `observed` lies beside `prediction`, from their `real` pixels (all (h,w)).

    The images are tapered towards their edges, which do not move: the shift comes out up to a tenth too small.
    """
    inside_y, inside_x = (np.flatnonzero(real.any(axis=axis)) for axis in (1, 0))
    if inside_y.size < 8 or inside_x.size < 8:
        raise InputError("the images overlap by fewer than 8 LR pixels; check pixel scales and offsets")
    box = np.s_[inside_y[0] : inside_y[-1] + 1, inside_x[0] : inside_x[-1] + 1]
    good = real[box]
    window = np.outer(tukey(good.shape[0], 0.4), tukey(good.shape[1], 0.4))
    images = [np.where(good, image[box] - np.median(image[box][good]), 0) * window for image in (observed, prediction)]
    shift, *_ = phase_cross_correlation(*images, upsample_factor=200, normalization=None)
    return np.asarray(shift, "f8")
