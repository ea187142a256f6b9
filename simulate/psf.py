"""Point-spread functions as data: reading them from FITS, mending wrong ones, and resampling them to any pixel scale.

A PSF image measured on stars contains the response of the detector's pixel; the simulator applies that response itself
when it sums fine pixels to coarse ones. `optical_kernel` therefore takes it out first, so that it enters exactly once.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .errors import InputError

SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))
PIXEL_SCALE_KEYWORDS = ("PIXSCALE", "PIXELSCL", "PIXSCL")
TRANSFER_NOISE = 1e-4
"""Transfer below which a PSF image is taken for noise when the pixel is divided out; 1 is the whole flux."""
CUT_FLUX = 0.01
"""Negative flux of `optical_kernel` from which on it warns."""


class PSFWarning(UserWarning):
    """A PSF was wrong in a way that could be mended."""


@dataclass(frozen=True, eq=False)
class Psf:
    """A sampled PSF. `image` (k,l) f8 sums to 1 and is not negative; `centre` (y, x) is its centroid in pixels."""

    image: np.ndarray
    centre: tuple[float, float]
    pixel_scale_arcsec: float
    includes_pixel: bool
    """True if the response of the image's own pixel is part of it, as in a PSF measured on stars."""
    notes: tuple[str, ...] = ()
    """What was mended."""
    where: str = "the PSF"
    """File and HDU, for messages."""

    @property
    def fwhm_arcsec(self) -> float:
        """Diameter of the circle with the area above half of the peak (5 times finer by cubic interpolation)."""
        from scipy.ndimage import zoom

        fine = zoom(self.image, 5, order=3, mode="grid-constant", grid_mode=True)
        area = np.count_nonzero(fine >= 0.5 * fine.max()) * (self.pixel_scale_arcsec / 5) ** 2
        return float(2 * np.sqrt(area / np.pi))

    def transfer(self, frequency_y: np.ndarray, frequency_x: np.ndarray) -> np.ndarray:
        """Fourier transform about the centre at `frequency_y` (m,), `frequency_x` (n,) in 1/arcsec: (m,n) complex.

        If frequencies beyond the Nyquist frequency of the PSF's own sampling are asked for, the PSF is taken as the
        cubic spline through its pixels: a sharp end of the transfer would ring around every star.
        """
        rows = self._waves(frequency_y, 0)
        columns = self._waves(frequency_x, 1)
        return rows @ self.image @ columns.T

    def _waves(self, frequency: np.ndarray, axis: int) -> np.ndarray:
        position = (np.arange(self.image.shape[axis]) - self.centre[axis]) * self.pixel_scale_arcsec
        waves = np.exp(-2j * np.pi * np.outer(frequency, position))
        cycles = frequency * self.pixel_scale_arcsec  # per pixel of the PSF
        if np.abs(cycles).max() <= 0.5 * (1 + 1e-3):
            return waves
        # Unser 1999, IEEE Signal Processing Magazine 16, 22: Fourier transform of the cardinal cubic spline
        spline = 3 * np.sinc(cycles) ** 4 / (2 + np.cos(2 * np.pi * cycles))
        return waves * spline[:, None]


def read_psf(
    path: Path, hdu: str | int | None, plane: int | None, pixel_scale_arcsec: float | None, includes_pixel: bool
) -> Psf:
    """The PSF in a FITS file, mended; what was mended is shown as one `PSFWarning`.

    `hdu` None: `PSF`, or else the first image; `plane` of a cube, None averages its sound planes; `pixel_scale_arcsec`
    None: from the header (PIXSCALE, PIXELSCL, PIXSCL). Raises `InputError` that names file and HDU.
    """
    data, header, where = _read_fits(path, hdu)
    if plane is not None:
        if data.ndim != 3 or plane >= len(data):
            raise InputError(f"{where}: expected a cube with a plane {plane}, found an array of shape {data.shape}")
        data, where = data[plane], f"{where[:-1]}, plane {plane}]"
    if pixel_scale_arcsec is None:
        found = [header[key] for key in PIXEL_SCALE_KEYWORDS if key in header]
        if not found or not isinstance(found[0], int | float) or found[0] <= 0:
            raise InputError(
                f"{where}: the pixel scale is not known: expected {', '.join(PIXEL_SCALE_KEYWORDS)} in the header, "
                f"found {found[0] if found else 'none of them'}; set fits_pixel_scale_arcsec"
            )
        pixel_scale_arcsec = float(found[0])
    psf = mend_psf(data, pixel_scale_arcsec, includes_pixel, where)
    if psf.notes:
        _warn(f"{where}: {'; '.join(psf.notes)}")
    return psf


def _warn(message: str) -> None:
    """One line; `warnings.warn` would add a line of source code to it."""
    warnings.warn_explicit(message, PSFWarning, __name__, 1)


def _read_fits(path: Path, hdu: str | int | None) -> tuple[np.ndarray, dict[str, object], str]:
    """Pixels f8, header (the HDU's own before the primary one's) and "file [HDU]" for messages."""
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        try:
            with fits.open(path, memmap=False) as file:
                names = [one.name or str(number) for number, one in enumerate(file)]
                images = [number for number, one in enumerate(file) if one.is_image and one.header.get("NAXIS", 0)]
                wanted: str | int = hdu if hdu is not None else "PSF"
                if isinstance(wanted, int):
                    chosen = wanted if wanted < len(file) else None
                else:
                    upper = [name.upper() for name in names]
                    chosen = upper.index(wanted.upper()) if wanted.upper() in upper else None
                if chosen is None and hdu is None and images:
                    chosen = images[0]
                if chosen is None or chosen not in images:
                    asked = "an HDU with an image" if hdu is None else f"an image in HDU {hdu!r}"
                    raise InputError(f"{path}: expected {asked}, found the HDUs {', '.join(names)}; set psf.hdu")
                header = {**file[0].header, **file[chosen].header}
                return np.asarray(file[chosen].data, "f8"), header, f"{path} [{names[chosen]}]"
        except (OSError, TypeError, EOFError) as error:
            raise InputError(f"{path}: cannot be read as FITS: {error}") from None


def mend_psf(image: ArrayLike, pixel_scale_arcsec: float, includes_pixel: bool, where: str) -> Psf:
    """Normalise and centre a PSF image (k,l) or the average of a cube (n,k,l) of them; odd or even, any byte order.

    What was mended is in `notes`. Raises `InputError` that names `where` (file and HDU) if there is no PSF to save.
    """
    planes = np.asarray(image, "f8")
    planes = planes[None] if planes.ndim == 2 else planes
    if planes.ndim != 3 or min(planes.shape[1:]) < 3:
        raise InputError(f"{where}: expected a PSF image (k,k) or a cube of them, found shape {np.shape(image)}")
    notes = []
    height, width = planes.shape[1:]
    filled = [_fill_gaps(plane) for plane in planes]
    if len(planes) > 1:
        sound = [plane / plane.sum() for plane, bad, _ in filled if not bad and plane.min() > -0.02 * plane.max()]
        if not sound:
            raise InputError(f"{where}: every one of the {len(planes)} PSFs has strongly negative pixels or holes")
        notes.append(f"average of {len(sound)} of {len(planes)} PSFs (others have strongly negative pixels)")
        psf = np.mean(sound, axis=0)
    else:
        psf, bad, note = filled[0]
        if bad:
            raise InputError(f"{where}: {note}; give a PSF without holes")
        notes += [note] if note else []
    total = psf.sum()
    negative = -psf[psf < 0].sum()
    if total <= 0 or negative > 0.1 * total:
        raise InputError(
            f"{where}: not a PSF: its pixels sum to {total:.4g}, of which {-negative:.4g} is negative; "
            "expected a star-like image with a positive sum"
        )
    row, column = (int(place) for place in np.unravel_index(int(psf.argmax()), psf.shape))
    if row in (0, height - 1) or column in (0, width - 1):
        raise InputError(
            f"{where}: not a PSF: expected the brightest pixel near the middle, found it on the edge at ({row}, "
            f"{column}) of {height} x {width}; if the file is in the order of an FFT, shift it with numpy.fft.fftshift"
        )
    if negative > 1e-3 * total:
        notes.append(f"negative pixels ({negative / total:.2%} of the flux) set to 0")
    if abs(total - 1) > 0.01:
        notes.append(f"normalised (the sum was {total:.4g})")
    if height != width:
        notes.append(f"not square ({height} x {width}): what lies outside counts as 0")
    if height % 2 == 0 or width % 2 == 0:
        notes.append(f"even-sized ({height} x {width}): resampled about its centre")
    psf = np.clip(psf, 0, None)
    psf /= psf.sum()
    centre = _windowed_centroid(psf)
    offset = np.hypot(*(np.array(centre) - (np.array(psf.shape) - 1) / 2))
    if offset > 0.1:
        notes.append(f"re-centred by {offset:.2f} of its pixels")
    return Psf(psf, centre, pixel_scale_arcsec, includes_pixel, tuple(notes), where)


def _fill_gaps(plane: np.ndarray) -> tuple[np.ndarray, bool, str]:
    """`plane` without NaN and infinities, whether it is beyond saving, and what was done or found.

    In the wings (neighbours below 0.1 % of the peak) they become 0, as in PSFs that are masked to a circle; on the
    shoulders a lone one is the mean of its neighbours; in the core nothing tells what it was.
    """
    bad = ~np.isfinite(plane)
    if not bad.any():
        return plane, False, ""
    filled = np.where(bad, 0, plane)
    size = np.array(plane.shape)
    shifts = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    around = np.array([np.pad(filled, 1)[y : y + size[0], x : x + size[1]] for y, x in shifts])
    known = np.array([np.pad(~bad, 1)[y : y + size[0], x : x + size[1]] for y, x in shifts]).sum(0)
    brightest = around.max(0)
    inside = bad & (brightest > 1e-3 * filled.max())
    if (inside & ((brightest > 0.1 * filled.max()) | (known < 7))).any():
        return filled, True, f"{np.count_nonzero(inside)} pixels that are not finite in or around the core"
    notes = []
    if inside.any():
        filled = np.where(inside, around.sum(0) / np.maximum(known, 1), filled)
        notes.append(f"{np.count_nonzero(inside)} pixels that are not finite interpolated")
    if np.count_nonzero(bad & ~inside):
        notes.append(f"{np.count_nonzero(bad & ~inside)} pixels that are not finite set to 0")
    return filled, False, "; ".join(notes)


def _windowed_centroid(image: np.ndarray) -> tuple[float, float]:
    """Centroid within a Gaussian window that follows it (as in SExtractor's XWIN_IMAGE); wings cut off do not pull."""
    y, x = np.indices(image.shape)
    cy, cx = (float(place) for place in np.unravel_index(int(image.argmax()), image.shape))
    width = np.sqrt(np.count_nonzero(image >= 0.5 * image.max()) / np.pi) + 0.5
    for _ in range(50):
        weight = image * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
        step_y, step_x = (2 * float((weight * (axis - c)).sum() / weight.sum()) for axis, c in ((y, cy), (x, cx)))
        cy, cx = cy + step_y, cx + step_x
        if abs(step_y) + abs(step_x) < 1e-8:
            break
    return cy, cx


def optical_kernel(psf: Psf, pixel_scale_arcsec: float, pixel_response_arcsec: float = 0.0) -> np.ndarray:
    """The PSF (k,k) without the pixel: odd, centred, sum 1, point-sampled at pixels of `pixel_scale_arcsec`.

    `pixel_response_arcsec` is the width of the square pixel that the PSF image contains (0: none). The result is the
    cubic spline s whose average over such a pixel around the centre of each pixel of the image is that pixel's value
    (Unser 1999, IEEE Signal Processing Magazine 16, 22: samples of box * B-spline give a linear system that an FFT
    solves). Where the pixel passes little, that system would amplify noise: it is solved as Wiener did, with
    `TRANSFER_NOISE` for the noise and the image itself for the power, so that what is far above the noise is divided
    by the pixel's response exactly and what is below it, such as anything beyond the band limit of the optics, is left.
    """
    width = pixel_response_arcsec / psf.pixel_scale_arcsec
    margin = 8 + int(np.ceil(width))  # for the ringing of the division
    padded = np.pad(psf.image, margin)
    spectrum = np.fft.rfft2(padded)
    columns = _sampled_response(np.fft.rfftfreq(padded.shape[1]), width)
    response = np.outer(_sampled_response(np.fft.fftfreq(padded.shape[0]), width), columns)
    if width:
        power = np.abs(spectrum) ** 2
        spectrum = spectrum * response * power / (response**2 * power + TRANSFER_NOISE**2)
    else:
        spectrum = spectrum / response
    coefficients = np.fft.irfft2(spectrum, padded.shape)

    ratio = pixel_scale_arcsec / psf.pixel_scale_arcsec
    reach = max(max(c, n - 1 - c) for c, n in zip(psf.centre, psf.image.shape, strict=True)) + 0.5
    half = int(np.ceil(reach / ratio))
    offset = np.arange(-half, half + 1) * ratio
    basis = [
        _cubic_spline((margin + centre + offset)[:, None] - np.arange(count))
        for centre, count in zip(psf.centre, padded.shape, strict=True)
    ]
    kernel = basis[0] @ coefficients @ basis[1].T
    cut = -kernel[kernel < 0].sum() / kernel.sum()
    if cut > CUT_FLUX:
        _warn(
            f"{psf.where}: too sharp for its sampling of {psf.pixel_scale_arcsec:g} arcsec: taking its pixel out "
            f"leaves {cut:.1%} of the flux negative, set to 0; a PSF that is sampled more finely is better"
        )
    kernel = np.clip(kernel, 0, None)
    return kernel / kernel.sum()


def _cubic_spline(x: np.ndarray) -> np.ndarray:
    """The centred cubic B-spline."""
    distance = np.abs(x)
    return np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6)


def _sampled_response(frequency: np.ndarray, width: float) -> np.ndarray:
    """Spectrum at `frequency` (cycles a pixel) of the integer samples of a cubic B-spline averaged over `width`."""
    reach = int(np.ceil(2 + width / 2))
    position = np.arange(-reach, reach + 1)
    if width:
        edges = position[:, None] + np.array([-0.5, 0.5]) * width
        powers = np.clip(edges[..., None] + 2 - np.arange(5), 0, None) ** 4 / 24  # integral of the B-spline
        integral = powers @ np.array([1, -4, 6, -4, 1])
        samples = (integral[:, 1] - integral[:, 0]) / width
    else:
        samples = _cubic_spline(position)
    return np.cos(2 * np.pi * np.outer(frequency, position)) @ samples
