"""From the postage stamp of a real galaxy to a clean source: no sky, no neighbours, no noise, smooth to zero.

Objects are what stands out of the sky in the smoothed stamp; the one in the middle is kept, the others are blanked.
Noise is smoothed away adaptively: the fainter the light, the wider the kernel, as in ASMOOTH (Ebeling, White &
Rangarajan 2006, MNRAS 368, 65). The noise of every smoothed image is measured in its own sky, so that of correlated
pixels is not underestimated.
"""

from dataclasses import dataclass

import numpy as np

SMOOTHING_PIXELS = 1.5
"""Standard deviation of the Gaussian with which a stamp is smoothed to find objects."""
DETECTION_SIGMA = 2.0
"""Smoothed pixels this far above the sky belong to an object."""
CENTRE_PIXELS = 8
"""The brightest pixel of the galaxy is within this distance of the middle of the stamp."""
BORDER_PIXELS = 4
"""Objects reach this far beyond their detected pixels; there the galaxy fades to zero."""
KERNELS_PIXELS = (0.0, 0.7, 1.0, 1.5, 2.2, 3.2, 4.5)
"""Standard deviations of the Gaussians with which noise is smoothed away."""
TRUSTED_SIGNAL_TO_NOISE = (8.0, 20.0)
"""A smoothed pixel is taken for less than the first share of its noise not at all, for the second wholly."""
FINEST_ZOOM = 2.0
"""Small galaxies are interpolated to pixels this much finer, so that bilinear interpolation shows no facets."""


@dataclass(frozen=True)
class Stamp:
    """A galaxy alone: `image` (n,n), its centroid in the middle, zero at the edge, brightest pixel 1."""

    image: np.ndarray
    radius_pixels: float
    """Radius of the circle around the centroid that holds half the light."""


def sky(values: np.ndarray) -> tuple[float, float]:
    """Median and standard deviation without what is 3 sigma away; of many pixels, every n-th (5000 or more)."""
    values = values[:: max(1, values.size // 5000)]
    for _ in range(4):
        middle = float(np.median(values))
        sigma = 1.4826 * float(np.median(np.abs(values - middle)))
        values = values[np.abs(values - middle) <= 3 * sigma]
    return middle, sigma


def find_galaxy(image: np.ndarray, lowest_signal_to_noise: float) -> tuple[np.ndarray, np.ndarray] | str:
    """Pixels (H,W) of the galaxy in the middle and of everything in the stamp; or why there is no usable galaxy."""
    from scipy.ndimage import gaussian_filter, label

    if not np.isfinite(image).all():
        return "has pixels that are not numbers"
    smooth = gaussian_filter(image, SMOOTHING_PIXELS, mode="nearest")
    middle, sigma = sky(smooth.ravel())
    objects, _ = label(smooth > middle + DETECTION_SIGMA * sigma)
    y, x = (np.arange(size) - (size - 1) / 2 for size in image.shape)
    central = np.hypot(*np.meshgrid(y, x, indexing="ij")) <= CENTRE_PIXELS
    peak = np.where(central, smooth, -np.inf).max()
    if sigma <= 0 or (peak - middle) / sigma < lowest_signal_to_noise:
        return "is too faint"
    galaxy = objects == objects[central & (smooth == peak)][0]
    if smooth[galaxy].max() > peak:
        return "is blended with a brighter neighbour"
    if galaxy[[0, -1]].any() or galaxy[:, [0, -1]].any():
        return "is cut by the edge of the stamp"
    return galaxy, objects > 0


def denoise(image: np.ndarray, background: np.ndarray, electrons_per_unit: float | None) -> np.ndarray:
    """`image` (H,W), sky-subtracted, each pixel smoothed until it stands out of the noise. `background`: pixels of sky.

    With `electrons_per_unit` the noise grows with the light as photon noise does.
    """
    from scipy.ndimage import gaussian_filter

    growth = np.ones_like(image)
    if electrons_per_unit is not None:
        light = np.maximum(gaussian_filter(image, KERNELS_PIXELS[1]), 0)
        growth = np.sqrt(1 + light / electrons_per_unit / sky(image[background])[1] ** 2)
    low, high = TRUSTED_SIGNAL_TO_NOISE
    result = gaussian_filter(image, KERNELS_PIXELS[-1], mode="constant")
    for kernel in reversed(KERNELS_PIXELS[:-1]):
        smooth = gaussian_filter(image, kernel, mode="constant") if kernel else image
        trust = np.clip((smooth / (sky(smooth[background])[1] * growth) - low) / (high - low), 0, 1)
        result = trust * smooth + (1 - trust) * result
    return result


def clean_stamp(
    image: np.ndarray,
    size: int,
    lowest_signal_to_noise: float,
    smallest_radius_pixels: float,
    electrons_per_unit: float | None = None,
) -> Stamp | str:
    """The galaxy in the middle of `image` (H,W) on at most `size` x `size` pixels; or why there is no usable one.

    `smallest_radius_pixels`: of the half-light radius, in pixels of `image`.
    """
    from scipy.ndimage import binary_dilation, gaussian_filter

    found = find_galaxy(image, lowest_signal_to_noise)
    if isinstance(found, str):
        return found
    galaxy, objects = found
    background = ~binary_dilation(objects, iterations=BORDER_PIXELS + 2)
    if background.mean() < 0.1:
        return "leaves no sky to measure the noise in"
    grown = binary_dilation(galaxy, iterations=BORDER_PIXELS)
    others = binary_dilation(objects & ~galaxy, iterations=BORDER_PIXELS) & ~galaxy
    light = np.where(others, 0.0, image - sky(image[background])[0])
    fading = gaussian_filter(grown.astype(float), 0.75 * BORDER_PIXELS, mode="constant")
    fading[fading < 0.01] = 0.0
    clean = np.maximum(denoise(light, background, electrons_per_unit), 0) * fading
    stamp, zoom = _resample(clean, size)
    return stamp if stamp.radius_pixels / zoom >= smallest_radius_pixels else "is hardly resolved"


def _resample(clean: np.ndarray, size: int) -> tuple[Stamp, float]:
    """Cut out around the centroid by a cubic spline (smoothed first if pixels become wider), and the zoom."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    y, x = np.mgrid[: clean.shape[0], : clean.shape[1]]
    row, column = ((axis * clean).sum() / clean.sum() for axis in (y, x))
    inside = clean > 0
    half = float(max(np.abs(y[inside] - row).max(), np.abs(x[inside] - column).max())) + 1
    zoom = min(FINEST_ZOOM, (size - 1) / (2 * half))
    if zoom < 1:
        clean = gaussian_filter(clean, 0.5 * np.sqrt(zoom**-2 - 1), mode="constant")
    count = int(np.ceil(2 * half * zoom - 1e-9)) + 1
    offset = (np.arange(count) - (count - 1) / 2) / zoom
    places = np.meshgrid(row + offset, column + offset, indexing="ij")
    image = map_coordinates(clean, places, order=3, mode="constant")
    image[image < 1e-6 * image.max()] = 0.0
    image[[0, -1]] = image[:, [0, -1]] = 0.0
    axis = np.arange(count) - (count - 1) / 2
    radii = np.hypot(axis[:, None], axis[None, :]).ravel()
    order = np.argsort(radii)
    enclosed = np.cumsum(image.ravel()[order])
    radius = float(np.interp(enclosed[-1] / 2, enclosed, radii[order]))
    return Stamp(image / image.max(), radius), zoom
