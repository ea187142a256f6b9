"""Real galaxies without any data: cut out of the Hubble eXtreme Deep Field picture that ships with scikit-image."""

from pathlib import Path

import numpy as np
from astropy.stats import sigma_clipped_stats
from scipy.ndimage import center_of_mass, gaussian_filter, label, sum_labels
from skimage import data

from .fits_images import RealImages
from .psf import gaussian_psf
from .settings import HubbleDeepFieldSettings

CAVEAT = (
    "The high-resolution images are cut out of a display-stretched 8-bit colour JPEG of the Hubble eXtreme Deep Field "
    "(mean of red, green and blue, sky subtracted): real shapes, but no photometry. Pixel scale and PSF are nominal."
)
SMALLEST_AREA_PIXELS = 20


def picture_file() -> Path:
    """Where scikit-image keeps the picture."""
    return Path(data.__file__).parent / "hubble_deep_field.jpg"


def grey_picture() -> np.ndarray:
    """(872,1000) f8 mean of the colours, in display levels."""
    return data.hubble_deep_field().astype("f8").mean(axis=2)


def find_galaxies(picture: np.ndarray, size: int, detection_sigma: float) -> list[tuple[int, int]]:
    """Corners (y, x) of square cut-outs of `size` pixels, each centred on a galaxy; the brightest first.

    No two overlap: each is an object of its own, and no sky is in two of them.
    """
    smooth = gaussian_filter(picture, 1.5)
    _, sky, sigma = sigma_clipped_stats(smooth)
    labels, count = label(smooth > sky + detection_sigma * sigma)
    numbers = np.arange(1, count + 1)
    light = np.clip(picture - sky, 0, None)
    flux = sum_labels(light, labels, numbers)
    area = sum_labels(labels > 0, labels, numbers)
    centres = np.array(center_of_mass(light, labels, numbers)).reshape(-1, 2)
    kept: list[tuple[int, int]] = []
    for number in np.argsort(-flux, kind="stable"):
        y, x = (int(place) for place in np.round(centres[number] - (size - 1) / 2))
        inside = 0 <= y <= picture.shape[0] - size and 0 <= x <= picture.shape[1] - size
        free = all(abs(y - other_y) >= size or abs(x - other_x) >= size for other_y, other_x in kept)
        if area[number] >= SMALLEST_AREA_PIXELS and inside and free:
            kept.append((y, x))
    return kept


def read_hubble_deep_field(settings: HubbleDeepFieldSettings, size: int, margin: int) -> RealImages:
    """The galaxies' cut-outs of `size` pixels, sky subtracted, with up to `margin` pixels of sky around each.

    A cut-out near the edge of the picture has less sky around it, by the same number of pixels on all sides.
    """
    picture = grey_picture()
    _, sky, sigma = sigma_clipped_stats(picture)
    images, objects = [], []
    for y, x in find_galaxies(picture, size, settings.detection_sigma):
        room = min(margin, y, x, picture.shape[0] - size - y, picture.shape[1] - size - x)
        images.append(picture[y - room : y + size + room, x - room : x + size + room] - sky)
        objects.append(f"hdf-y{y + size // 2:04d}-x{x + size // 2:04d}")
    return RealImages(
        file=picture_file().name,
        objects=tuple(objects),
        images=images,
        masks=[np.ones(image.shape, bool) for image in images],
        noises=[np.full(image.shape, sigma) for image in images],
        psf=gaussian_psf(settings.psf_fwhm_arcsec),
        pixel_scale_arcsec=settings.pixel_scale_arcsec,
        instrument="HST (picture)",
        unit="display level",
    )
