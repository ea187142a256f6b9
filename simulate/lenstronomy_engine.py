"""Rendering with lenstronomy: the only module that imports it.

`render_pair` shoots rays once on a fine grid and looks at the result through both instruments; `render_reference` is
lenstronomy's own `ImageModel`, to audit it. The surface brightness is sampled at the centres of sub-pixels, convolved
there with the PSF (which has no pixel response) and summed to pixels, which is where the pixel response enters, once.
"""

from dataclasses import dataclass

import numpy as np
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.SimulationAPI.observation_api import SingleBand
from scipy.signal import fftconvolve

from .instruments import Instrument, psf_kernel
from .scene import Scene


@dataclass(frozen=True)
class RenderedPair:
    """One lens through two instruments, in nJy per pixel; each (H,W) or (h,w)."""

    hr: np.ndarray
    hr_noisy: np.ndarray
    lr: np.ndarray
    lr_noise: np.ndarray


def pixel_centres_arcsec(size: int, pixel_scale_arcsec: float) -> tuple[np.ndarray, np.ndarray]:
    """x and y, each (size,size), of the centres of pixels around the origin."""
    axis = (np.arange(size) - (size - 1) / 2) * pixel_scale_arcsec
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x, y


def surface_brightness(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Surface brightness of the lensed source and the lens at x, y (arcsec), in nJy per square arcsecond."""
    lens = LensModel(lens_model_list=scene.lens_model_list)
    source_x, source_y = lens.ray_shooting(x.ravel(), y.ravel(), scene.kwargs_lens)
    light = LightModel(scene.source_model_list).surface_brightness(source_x, source_y, scene.kwargs_source)
    if scene.lens_light_model_list:
        own = LightModel(scene.lens_light_model_list)
        light = light + own.surface_brightness(x.ravel(), y.ravel(), scene.kwargs_lens_light)
    return np.reshape(light, x.shape)


def bin_sum(image: np.ndarray, factor: int) -> np.ndarray:
    """Sum blocks of factor x factor pixels: (H,W) -> (H/factor, W/factor)."""
    height, width = image.shape
    return image.reshape(height // factor, factor, width // factor, factor).sum((1, 3))


def noise_sigma(instrument: Instrument, flux_njy: np.ndarray) -> np.ndarray:
    """1-sigma noise of each pixel (nJy) for a noiseless image: read noise, sky and Poisson noise by lenstronomy."""
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
    return np.hypot(band.background_noise, band.flux_noise(flux_njy / unit)) * unit


def render_pair(
    scene: Scene,
    hr_instrument: Instrument,
    lr_instrument: Instrument,
    hr_size: int,
    scale: int,
    supersampling: int,
    rng: np.random.Generator,
) -> RenderedPair:
    """One lens as both instruments see it: hr_size pixels, and hr_size / scale pixels `scale` times as wide."""
    fine_scale = hr_instrument.pixel_scale_arcsec / supersampling
    x, y = pixel_centres_arcsec(hr_size * supersampling, fine_scale)
    fine_flux = surface_brightness(scene, x, y) * fine_scale**2
    images = []
    for instrument, factor in ((hr_instrument, supersampling), (lr_instrument, supersampling * scale)):
        seen = fftconvolve(fine_flux, psf_kernel(instrument.psf, fine_scale), mode="same")
        images.append(bin_sum(seen, factor))
    hr, lr = images
    lr_noise = noise_sigma(lr_instrument, lr)
    hr_noisy = hr + noise_sigma(hr_instrument, hr) * rng.standard_normal(hr.shape)
    return RenderedPair(hr=hr, hr_noisy=hr_noisy, lr=lr + lr_noise * rng.standard_normal(lr.shape), lr_noise=lr_noise)


def render_reference(scene: Scene, instrument: Instrument, size: int, supersampling: int) -> np.ndarray:
    """(size,size) noiseless image in nJy per pixel by lenstronomy's `ImageModel`, `supersampling`² rays a pixel."""
    pixel = instrument.pixel_scale_arcsec
    corner = -(size - 1) / 2 * pixel
    data = ImageData(
        image_data=np.zeros((size, size)),
        background_rms=1.0,
        exposure_time=1.0,
        transform_pix2angle=np.eye(2) * pixel,
        ra_at_xy_0=corner,
        dec_at_xy_0=corner,
    )
    psf = PSF(
        psf_type="PIXEL",
        kernel_point_source=psf_kernel(instrument.psf, pixel / supersampling),
        point_source_supersampling_factor=supersampling,
        kernel_point_source_normalisation=True,
    )
    model = ImageModel(
        data,
        psf,
        lens_model_class=LensModel(lens_model_list=scene.lens_model_list),
        source_model_class=LightModel(scene.source_model_list),
        lens_light_model_class=LightModel(scene.lens_light_model_list),
        kwargs_numerics={
            "supersampling_factor": supersampling,
            "supersampling_convolution": True,
            "supersampling_kernel_size": None,  # the default convolves the PSF's outskirts on the coarse grid
        },
    )
    return model.image(scene.kwargs_lens, scene.kwargs_source, scene.kwargs_lens_light)
