"""A telescope, camera and exposure: one small YAML each in configs/instruments. PSF, noise and depth follow from it.

Fluxes are in nanojansky. The throughput of optics, filter, atmosphere and detector is contained in the zero point.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from .errors import InputError
from .psf import optical_kernel, read_psf
from .settings import Settings, parse_settings, read_yaml

NANOJANSKY_ZERO_POINT = 31.4
"""AB magnitude of a source of one nanojansky."""
MOFFAT_FLUX = 0.97
"""Share of a Moffat's flux that its kernel holds at least."""
PSF_KEYS: dict[str, tuple[set[str], set[str]]] = {
    "gaussian": ({"fwhm_arcsec"}, set()),
    "moffat": ({"fwhm_arcsec", "moffat_beta"}, set()),
    "airy": ({"fwhm_arcsec"}, {"airy_obscuration"}),
    "fits": ({"fits", "includes_pixel_response"}, {"hdu", "plane", "fits_pixel_scale_arcsec", "pixel_response_arcsec"}),
}
"""Keys that a kind of PSF needs, and keys that it may have."""


class PSFSettings(Settings):
    """The optical point-spread function, without the response of the pixel."""

    kind: Literal["gaussian", "moffat", "airy", "fits"] = "gaussian"
    fwhm_arcsec: float | None = Field(None, gt=0)
    moffat_beta: float | None = Field(None, ge=1.4)
    """Steepness of the wings; below 1.4 they hold too much of the flux to be cut off."""
    airy_obscuration: float | None = Field(None, ge=0, lt=1)
    """Diameter of the central obscuration in units of the aperture's; None: 0."""
    fits: str | None = None
    """Path of the file: absolute, or relative to the YAML that names it, or else to the current folder."""
    hdu: str | int | None = None
    """None: `PSF`, or else the first image."""
    plane: int | None = Field(None, ge=0)
    """Plane of a cube; None: the average of its sound planes."""
    fits_pixel_scale_arcsec: float | None = Field(None, gt=0)
    """None: PIXSCALE, PIXELSCL or PIXSCL of the header."""
    includes_pixel_response: bool | None = None
    """True for a PSF measured on stars ("effective"), false for one of the optics alone; then it is taken out."""
    pixel_response_arcsec: float | None = Field(None, gt=0)
    """Width of the pixel that the PSF includes; None: its own pixels, which is wrong if it is supersampled."""

    @model_validator(mode="after")
    def _check(self) -> "PSFSettings":
        needed, possible = PSF_KEYS[self.kind]
        given = {key for key in type(self).model_fields if key != "kind" and getattr(self, key) is not None}
        if missing := needed - given:
            raise ValueError(f"kind: {self.kind} needs {', '.join(sorted(missing))}")
        if extra := given - needed - possible:
            raise ValueError(f"{', '.join(sorted(extra))} does not belong to kind: {self.kind}")
        if self.pixel_response_arcsec is not None and not self.includes_pixel_response:
            raise ValueError("pixel_response_arcsec belongs to includes_pixel_response: true")
        return self


class DrizzleSettings(Settings):
    """Many dithered exposures combined by drizzling (Fruchter & Hook 2002, PASP 114, 144)."""

    pixfrac: float = Field(gt=0, le=1)
    """Size of the drops in units of the input pixel."""
    input_pixel_scale_arcsec: float = Field(gt=0)


class Instrument(Settings):
    """An instrument and observation, in the quantities of lenstronomy's `SingleBand`."""

    name: str
    pixel_scale_arcsec: float = Field(gt=0)
    psf: PSFSettings
    exposure_time_s: float = Field(gt=0)
    num_exposures: int = Field(1, ge=1)
    magnitude_zero_point: float
    """AB magnitude of a source of one electron a second."""
    sky_brightness_mag_arcsec2: float
    read_noise_electrons: float = Field(ge=0)
    """Of one exposure of one pixel; of the fitted slope for an infrared detector that is read many times."""
    gain_electrons_per_adu: float | None = Field(None, gt=0)
    """Only if the read noise does not contain the rounding to whole ADU; a read noise that was measured does."""
    drizzle: DrizzleSettings | None = None
    """None: noise is independent from pixel to pixel, and every pixel is read once an exposure."""

    @property
    def nanojansky_per_electron_s(self) -> float:
        """Flux density of a source of one electron a second."""
        return float(10 ** (-0.4 * (self.magnitude_zero_point - NANOJANSKY_ZERO_POINT)))

    @property
    def njy_per_electron(self) -> float:
        """Flux density of a source of one electron in all exposures together."""
        return self.nanojansky_per_electron_s / (self.exposure_time_s * self.num_exposures)

    @property
    def noise_per_read_electrons(self) -> float:
        """1-sigma noise that reading adds to a pixel in one exposure: read noise and rounding to whole ADU.

        A drizzled pixel has the share of an input pixel's read variance that its area is of the input pixel's.
        """
        variance = self.read_noise_electrons**2 + (self.gain_electrons_per_adu or 0.0) ** 2 / 12
        share = self.pixel_scale_arcsec / self.drizzle.input_pixel_scale_arcsec if self.drizzle else 1.0
        return float(np.sqrt(variance) * share)

    @property
    def noise_correlation_ratio(self) -> float:
        """R: noise of a wide area over what independent pixels of the same noise would give; 1 without drizzle.

        Casertano et al. 2000, AJ 120, 2747, appendix A; Fruchter & Hook 2002, PASP 114, 144, eqs. 9 and 10.
        """
        if self.drizzle is None:
            return 1.0
        ratio = self.drizzle.pixfrac * self.drizzle.input_pixel_scale_arcsec / self.pixel_scale_arcsec
        return ratio / (1 - 1 / (3 * ratio)) if ratio > 1 else 1 / (1 - ratio / 3)

    @property
    def background_sigma_njy(self) -> float:
        """1-sigma noise of one pixel of empty sky. Drizzle hands part of it to neighbours, hence 1 / R of the whole."""
        seconds = self.exposure_time_s * self.num_exposures
        sky_njy = 10 ** (-0.4 * (self.sky_brightness_mag_arcsec2 - NANOJANSKY_ZERO_POINT)) * self.pixel_scale_arcsec**2
        electrons = self.num_exposures * self.noise_per_read_electrons**2
        electrons += sky_njy / self.nanojansky_per_electron_s * seconds
        return float(np.sqrt(electrons) * self.njy_per_electron / self.noise_correlation_ratio)


def noise_sigma_njy(instrument: Instrument, flux_njy: Any) -> Any:
    """1-sigma noise of pixels of noiseless flux `flux_njy`, a NumPy array or a torch tensor of any shape (kept).

    Background and Poisson noise: sigma^2 = background^2 + max(flux, 0) * (flux of one electron), as lenstronomy's
    `SingleBand`; for drizzled images both are divided by R.
    """
    poisson = instrument.njy_per_electron / instrument.noise_correlation_ratio**2
    return (instrument.background_sigma_njy**2 + (flux_njy + abs(flux_njy)) * (0.5 * poisson)) ** 0.5


def noise_correlation_kernel(instrument: Instrument) -> np.ndarray:
    """(k,k) kernel, k odd, whose squares sum to 1: independent noise convolved with it is correlated as drizzle does.

    The variance of a pixel stays, that of a wide area becomes R^2 times as large (the kernel sums to R).
    """
    taps = _correlation_taps(instrument)
    return np.outer(taps, taps)


def _correlation_taps(instrument: Instrument) -> np.ndarray:
    """(k,) the kernel along one axis; drizzle with square drops is separable.

    With dithers all over the pixel, a drop of width d reaches an output pixel of width s with the weight of their
    overlap, a trapezoid: box(s) * box(d). The covariance of output pixels is its autocorrelation at multiples of s.
    """
    if instrument.drizzle is None:
        return np.ones(1)
    drop = instrument.drizzle.pixfrac * instrument.drizzle.input_pixel_scale_arcsec / instrument.pixel_scale_arcsec
    reach = int(np.ceil(1 + drop))
    lag = np.arange(-reach, reach + 1)
    # box(1) * box(1) * box(d) * box(d): fourth integral of delta functions at the corners (one-sided cubic powers)
    corners = np.array([-1 - drop, -1, -1 + drop, -drop, 0, drop, 1 - drop, 1, 1 + drop])
    weights = np.array([1, -2, 1, -2, 4, -2, 1, -2, 1])
    covariance = np.clip(lag[:, None] - corners, 0, None) ** 3 @ weights
    size = 256
    spectrum = np.cos(2 * np.pi * np.outer(np.arange(size), lag) / size) @ (covariance / covariance[reach])
    taps = np.fft.fftshift(np.fft.ifft(np.sqrt(np.clip(spectrum, 0, None))).real)
    half = int(np.flatnonzero(np.abs(taps[size // 2 :]) > 1e-3 * taps.max())[-1])
    taps = taps[size // 2 - half : size // 2 + half + 1]
    return taps / np.sqrt((taps**2).sum())


def draw_noise(instrument: Instrument, sigma_njy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise (..., H, W) of 1-sigma `sigma_njy` (..., H, W), in its precision; correlated if the image is drizzled."""
    dtype = np.float32 if sigma_njy.dtype == np.float32 else np.float64
    taps = _correlation_taps(instrument).astype(dtype)
    margin = len(taps) - 1
    *batch, height, width = sigma_njy.shape
    noise = rng.standard_normal((*batch, height + margin, width + margin), dtype=dtype)
    if margin:
        noise = sum(tap * noise[..., shift : shift + height, :] for shift, tap in enumerate(taps))
        noise = sum(tap * noise[..., shift : shift + width] for shift, tap in enumerate(taps))
    noise *= sigma_njy
    return noise


def psf_kernel(psf: PSFSettings, pixel_scale_arcsec: float) -> np.ndarray:
    """(k,k) odd-sized, centred PSF of the optics sampled at pixels of this scale, sum 1.

    Out to 3 FWHM (Airy: 10; Moffat: 5, or 97 % of the flux), or as far as the FITS image goes. Raises `InputError` for
    a FITS file that is no PSF; one that could be mended is shown as a `PSFWarning` when it is first read.
    """
    if psf.kind == "fits":
        path = Path(psf.fits or "").resolve()
        changed = path.stat().st_mtime_ns if path.is_file() else 0
        return _fits_kernel(psf, pixel_scale_arcsec, path, changed).copy()
    assert psf.fwhm_arcsec is not None
    pixel_fwhm = pixel_scale_arcsec / psf.fwhm_arcsec
    if psf.moffat_beta is not None:
        beta = psf.moffat_beta
        core_fwhm = 0.5 / np.sqrt(2 ** (1 / beta) - 1)  # beyond x of it lies a share (1 + x^2)^(1 - beta) of the flux
        reach_fwhm = max(5.0, core_fwhm * np.sqrt((1 - MOFFAT_FLUX) ** (1 / (1 - beta)) - 1))
        kernel = (1 + _squared_radius(reach_fwhm, pixel_fwhm) / core_fwhm**2) ** -beta
    elif psf.kind == "airy":
        kernel = _airy(np.sqrt(_squared_radius(10.0, pixel_fwhm)), psf.airy_obscuration or 0.0)
    else:
        kernel = np.exp(-4 * np.log(2) * _squared_radius(3.0, pixel_fwhm))
    return kernel / kernel.sum()


def _squared_radius(reach: float, step: float) -> np.ndarray:
    """(k,k) squared distance from the middle of a grid of this step, out to at least `reach` along each axis."""
    half = int(np.ceil(reach / step))
    axis = np.arange(-half, half + 1) * step
    return axis[:, None] ** 2 + axis[None, :] ** 2


def _airy(radius_fwhm: np.ndarray, obscuration: float) -> np.ndarray:
    """Diffraction by a round aperture with a round obscuration (Born & Wolf, Principles of Optics, sect. 8.6.2)."""
    from scipy.special import j1

    def intensity(v: np.ndarray) -> np.ndarray:
        v = np.maximum(v, 1e-6)
        amplitude = 2 * j1(v) / v - obscuration**2 * (2 * j1(obscuration * v) / (obscuration * v) if obscuration else 0)
        return (amplitude / (1 - obscuration**2)) ** 2

    v = np.linspace(0, 2, 20001)  # half of the peak is at v = 1.62 without obscuration, nearer with one
    half_maximum = np.interp(-0.5, -intensity(v), v)
    return intensity(2 * half_maximum * radius_fwhm)


@lru_cache(maxsize=64)
def _fits_kernel(psf: PSFSettings, pixel_scale_arcsec: float, path: Path, _changed: int) -> np.ndarray:
    includes = bool(psf.includes_pixel_response)
    data = read_psf(path, psf.hdu, psf.plane, psf.fits_pixel_scale_arcsec, includes)
    response = (psf.pixel_response_arcsec or data.pixel_scale_arcsec) if includes else 0.0
    return optical_kernel(data, pixel_scale_arcsec, response)


def pixel_psf(instrument: Instrument) -> np.ndarray:
    """(k,k) image of a point source of flux 1 in the middle of a pixel: the PSF with the response of the pixel."""
    fine = 7
    kernel = psf_kernel(instrument.psf, instrument.pixel_scale_arcsec / fine)
    half = int(np.ceil((len(kernel) / fine - 1) / 2))
    kernel = np.pad(kernel, ((2 * half + 1) * fine - len(kernel)) // 2)
    return kernel.reshape(2 * half + 1, fine, 2 * half + 1, fine).sum((1, 3))


def point_source_depth_mag(instrument: Instrument, sigmas: float = 5.0) -> float:
    """AB magnitude of a point source on empty sky measured at `sigmas` with its PSF as the weight."""
    noise = instrument.background_sigma_njy * instrument.noise_correlation_ratio
    flux = sigmas * noise / np.sqrt((pixel_psf(instrument) ** 2).sum())
    return float(NANOJANSKY_ZERO_POINT - 2.5 * np.log10(flux))


def aperture_depth_mag(instrument: Instrument, diameter_arcsec: float = 2.0, sigmas: float = 5.0) -> float:
    """AB magnitude of the flux inside a round aperture on empty sky that is measured at `sigmas`."""
    pixels = np.pi / 4 * diameter_arcsec**2 / instrument.pixel_scale_arcsec**2
    noise = instrument.background_sigma_njy * instrument.noise_correlation_ratio * np.sqrt(pixels)
    return float(NANOJANSKY_ZERO_POINT - 2.5 * np.log10(sigmas * noise))


def config_folder() -> Path:
    """Where the shipped configurations are: inside the installed package, or at the top of a checkout."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def load_instrument(name: str | dict[str, Any]) -> Instrument:
    """An instrument by the name of its shipped YAML, by the path of one, or from its settings themselves."""
    if isinstance(name, dict):
        return parse_settings(Instrument, name, "instrument")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = config_folder() / "instruments" / f"{name}.yaml"
        if not path.is_file():
            known = sorted(one.stem for one in path.parent.glob("*.yaml"))
            raise InputError(f"unknown instrument {name!r}; known: {', '.join(known)}, or the path of a YAML file")
    content = read_yaml(path)
    psf = content.get("psf")
    if isinstance(psf, dict) and isinstance(psf.get("fits"), str) and (path.parent / psf["fits"]).is_file():
        content = {**content, "psf": {**psf, "fits": str((path.parent / psf["fits"]).resolve())}}
    return parse_settings(Instrument, content, str(path))
