"""Exact area-overlap resampling of images between pixel grids, and blurring with binning in one step."""

import numpy as np
from scipy.signal import fftconvolve
from scipy.sparse import csr_array


def overlap_matrix(input_count: int, output_count: int, ratio: float, offset: float) -> np.ndarray:
    """(output_count, input_count) share of each input pixel that falls into each output pixel, along one axis.

    Output pixel i covers [offset + i ratio, offset + (i + 1) ratio] in input pixels, whose pixel j covers [j, j + 1].
    Columns that lie wholly inside the output sum to 1: flux is conserved.
    """
    low = offset + ratio * np.arange(output_count)[:, None]
    pixel = np.arange(input_count)[None, :]
    return np.clip(np.minimum(low + ratio, pixel + 1) - np.maximum(low, pixel), 0, None)


def rebin(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Resample `image` (H,W) with the overlap matrices of its two axes."""
    return np.asarray(csr_array(rows) @ image @ csr_array(columns).T)


def real_pixels(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray, ratio: float) -> np.ndarray:
    """Which output pixels are wholly covered by input pixels that are real."""
    covered: np.ndarray = rebin(mask.astype("f8"), rows, columns)
    return covered > ratio**2 * (1 - 1e-6)


def blur_and_bin(image: np.ndarray, kernel: np.ndarray, scale: int, power: int = 1) -> np.ndarray:
    """Convolve `image` (H,W) with `kernel` (k,k), k odd, and sum blocks of scale x scale: (H/scale, W/scale).

    With `power=2` the weights are squared: what a map of the variance of independent pixels becomes.
    The image is mirrored at its edges.
    """
    weights = fftconvolve(kernel, np.ones((scale, scale))) ** power
    radius = len(kernel) // 2
    padded = np.pad(image, radius, mode="symmetric")
    return fftconvolve(padded, weights, mode="valid")[::scale, ::scale]
