"""Rendering with lenstronomy, the reference: the only module that imports it.

`render_pair` shoots rays once on a fine grid and looks at the result through both instruments; `render_reference` is
lenstronomy's own `ImageModel`, which audits both engines. The surface brightness is sampled at the centres of
sub-pixels, convolved there with the PSF (which has no pixel response) and summed to pixels, which is where the pixel
response enters, once.
"""

import warnings
from typing import Any

import numpy as np
from astropy.cosmology import FlatLambdaCDM, default_cosmology
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.PointSource.point_source import PointSource
from scipy.signal import fftconvolve

from .instruments import Instrument, psf_kernel
from .scene import Scene


def pixel_centres_arcsec(size: int, pixel_scale_arcsec: float) -> tuple[np.ndarray, np.ndarray]:
    """x and y, each (size,size), of the centres of pixels around the origin."""
    axis = (np.arange(size) - (size - 1) / 2) * pixel_scale_arcsec
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x, y


def lens_model(scene: Scene) -> LensModel:
    """The scene's `LensModel`, of several planes if its lens models have redshifts of their own."""
    if not scene.lens_redshift_list:
        return LensModel(lens_model_list=scene.lens_model_list)
    with default_cosmology.set(FlatLambdaCDM(**scene.cosmology)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cosmology is provided")  # lenstronomy's own call warns, always
        return LensModel(
            lens_model_list=scene.lens_model_list,
            z_source=scene.z_source,
            lens_redshift_list=scene.lens_redshift_list,
            multi_plane=True,
        )


def source_model(scene: Scene) -> LightModel:
    """The scene's sources as a `LightModel`."""
    scaling = scene.source_deflection_scaling or None
    return LightModel(scene.source_model_list, deflection_scaling_list=scaling)


def _lenstronomy_kwargs(kwargs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Images as arrays, where the scene has nested lists."""
    return [{**one, "image": np.array(one["image"])} if "image" in one else one for one in kwargs]


def surface_brightness(scene: Scene, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Surface brightness of the lensed sources and the lenses at x, y (arcsec), in nJy per square arcsecond."""
    x, y, shape = x.ravel(), y.ravel(), x.shape
    alpha_x, alpha_y = lens_model(scene).alpha(x, y, scene.kwargs_lens)
    light = np.zeros(x.shape)
    scaling = scene.source_deflection_scaling or [1.0] * len(scene.source_model_list)
    sources = zip(scaling, scene.source_model_list, _lenstronomy_kwargs(scene.kwargs_source), strict=True)
    for factor, name, kwargs in sources:
        light += LightModel([name]).surface_brightness(x - factor * alpha_x, y - factor * alpha_y, [kwargs])
    if scene.lens_light_model_list:
        own = LightModel(scene.lens_light_model_list)
        light += own.surface_brightness(x, y, _lenstronomy_kwargs(scene.kwargs_lens_light))
    return np.reshape(light, shape)


def bin_sum(image: np.ndarray, factor: int) -> np.ndarray:
    """Sum blocks of factor x factor pixels: (H,W) -> (H/factor, W/factor)."""
    height, width = image.shape
    return image.reshape(height // factor, factor, width // factor, factor).sum((1, 3))


def render_pair(
    scene: Scene, hr_instrument: Instrument, lr_instrument: Instrument, hr_size: int, scale: int, supersampling: int
) -> tuple[np.ndarray, np.ndarray]:
    """Noiseless images in nJy per pixel, as both instruments see one lens: (hr_size, hr_size), and `scale` times fewer
    pixels, `scale` times as wide. Images of point sources are lenstronomy's own rendering."""
    fine_scale = hr_instrument.pixel_scale_arcsec / supersampling
    x, y = pixel_centres_arcsec(hr_size * supersampling, fine_scale)
    fine_flux = surface_brightness(scene, x, y) * fine_scale**2
    images = []
    for instrument, factor in ((hr_instrument, supersampling), (lr_instrument, supersampling * scale)):
        seen = bin_sum(fftconvolve(fine_flux, psf_kernel(instrument.psf, fine_scale), mode="same"), factor)
        if scene.kwargs_ps:
            model = image_model(scene, instrument, len(seen), factor)
            seen = seen + model.point_source(scene.kwargs_ps, scene.kwargs_lens)
        images.append(seen)
    return images[0], images[1]


def _whole_pixels(kernel: np.ndarray, supersampling: int) -> np.ndarray:
    """The kernel with zeros around it, so that it fills an odd number of pixels: lenstronomy fails on others where
    `supersampling` is odd."""
    if supersampling % 2 == 0:
        return kernel
    pixels = -(-len(kernel) // supersampling)
    return np.pad(kernel, ((pixels + 1 - pixels % 2) * supersampling - len(kernel)) // 2)


def image_model(scene: Scene, instrument: Instrument, size: int, supersampling: int) -> ImageModel:
    """lenstronomy's `ImageModel` of a scene through one instrument, `supersampling`² rays a pixel."""
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
        kernel_point_source=_whole_pixels(psf_kernel(instrument.psf, pixel / supersampling), supersampling),
        point_source_supersampling_factor=supersampling,
        kernel_point_source_normalisation=True,
    )
    return ImageModel(
        data,
        psf,
        lens_model_class=lens_model(scene),
        source_model_class=source_model(scene),
        lens_light_model_class=LightModel(scene.lens_light_model_list),
        point_source_class=PointSource(scene.point_source_model_list),
        kwargs_numerics={
            "supersampling_factor": supersampling,
            "supersampling_convolution": True,
            "supersampling_kernel_size": None,  # the default convolves the PSF's outskirts on the coarse grid
        },
    )


def render_reference(scene: Scene, instrument: Instrument, size: int, supersampling: int) -> np.ndarray:
    """(size,size) noiseless image in nJy per pixel by lenstronomy's `ImageModel`, without the scene's point sources."""
    return image_model(scene, instrument, size, supersampling).image(
        scene.kwargs_lens,
        _lenstronomy_kwargs(scene.kwargs_source),
        _lenstronomy_kwargs(scene.kwargs_lens_light),
        point_source_add=False,
    )
