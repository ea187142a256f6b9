"""The noise of real images, from whatever map or number comes with them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from astropy.stats import sigma_clipped_stats

from simulate.errors import InputError

MAP_NAMES = ("RMS", "NOISE", "ERR", "WHT", "EXPMAP")


def noise_map(
    image: np.ndarray, real: np.ndarray, header: Mapping[str, Any], maps: Mapping[str, np.ndarray], where: str
) -> tuple[np.ndarray, np.ndarray, str]:
    """1-sigma map (H,W), where it is bad (H,W), and how it was found, for one `image` (H,W) with `real` pixels.

    In this order: RMS, NOISE or ERR map; BKGRMS with EXPMAP or EXPTIME (image in counts per second); the measured sky,
    shaped by a WHT map if there is one.
    """
    for name in ("RMS", "NOISE", "ERR"):
        if name in maps:
            noise, bad = mend_noise(maps[name], f"{where}, map {name}")
            return noise, bad, f"noise from {name}"
    good = np.zeros(image.shape, bool)
    if "BKGRMS" in header:
        exposure, source = maps.get("EXPMAP"), "EXPMAP"
        if exposure is None:
            exposure, source = np.full(image.shape, float(header.get("EXPTIME", np.inf))), "EXPTIME"
        photons = np.clip(image, 0, None) / np.where(exposure > 0, exposure, np.inf)
        note = "noise from BKGRMS" + (f" and {source}" if np.isfinite(exposure).all() else "")
        return np.sqrt(float(header["BKGRMS"]) ** 2 + photons), exposure <= 0, note
    sky = measured_sky(image, real, where)
    if "WHT" in maps:
        # Drizzle weights are inverse variances only up to a factor (often exposure times): the sky sets it.
        weight = maps["WHT"]
        noise, bad = mend_noise(np.where(weight > 0, np.abs(weight) + 1e-300, np.nan) ** -0.5, f"{where}, map WHT")
        return noise * sky / np.median(noise), bad, "noise from WHT, scaled to the measured sky"
    return np.full(image.shape, sky), good, "noise measured on the sky"


def mend_noise(noise: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A noise map with its sentinels (such as 1e16 and 1e-4 in Euclid's) set to the median, and where they were."""
    positive = noise[np.isfinite(noise) & (noise > 0)]
    if not positive.size:
        raise InputError(f"{where}: expected positive noise, found none")
    usual = np.median(positive)
    bad = ~np.isfinite(noise) | (noise < 0.1 * usual) | (noise > 1000 * usual)
    return np.where(bad, usual, noise), bad


def measured_sky(image: np.ndarray, real: np.ndarray, where: str) -> float:
    """1-sigma noise of the sky: clipped standard deviation in the outer tenth of the image on each side."""
    frame = np.ones(image.shape, bool)
    height, width = (max(size // 10, 1) for size in image.shape)
    frame[height:-height, width:-width] = False
    values = image[frame & real]
    sky = float(sigma_clipped_stats(values)[2]) if values.size >= 16 else 0.0
    if not sky > 0:
        raise InputError(f"{where}: no noise can be measured at the edge of the image; give an RMS map or BKGRMS")
    return sky
