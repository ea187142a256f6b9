"""lenstronomy twice over: `ImageModel` for each instrument, as its users do, and rays shot once for both.

Both keep their model classes for as long as the model list stays, and numba's compiled functions are warm.
"""

from abc import ABC, abstractmethod

import numpy as np
import scipy.fft
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel

from simulate.instruments import Instrument, psf_kernel
from simulate.scene import Scene

from .base import Pairs, Task
from .optics import make_optics


def lens_models(task: Task) -> list[str]:
    """The lens model list of all scenes of a task."""
    return ["EPL", "SHEAR", *(["CONVERGENCE", *["TNFW"] * task.subhalos] if task.subhalos else [])]


class _Lenstronomy(ABC):
    """What both ways share: one lens at a time, float64, noise drawn by NumPy."""

    def __init__(self, task: Task, seed: int) -> None:
        self.batch = 1
        self.task, self.optics = task, make_optics(task)
        self.lens = LensModel(lens_model_list=lens_models(task))
        self.source = LightModel(["SERSIC_ELLIPSE"])
        self.x, self.y = (one.ravel() for one in task.ray_positions_arcsec())
        self.rng = np.random.default_rng(seed)

    def prepare(self, scenes: list[Scene]) -> list[Scene]:
        return scenes

    @abstractmethod
    def noiseless(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        """HR and LR."""

    def render(self, prepared: list[Scene]) -> Pairs:
        hr, lr = (np.stack(images) for images in zip(*map(self.noiseless, prepared), strict=True))
        hr_sigma, lr_sigma = self.optics.sigma(hr, lr)
        hr_noisy = hr + hr_sigma * self.rng.standard_normal(hr.shape)
        return Pairs(hr, hr_noisy, lr + lr_sigma * self.rng.standard_normal(lr.shape), lr_sigma)

    def deflection(self, scene: Scene) -> np.ndarray:
        alpha = self.lens.alpha(self.x, self.y, scene.kwargs_lens)
        return np.reshape(alpha, (2, self.task.rays, self.task.rays))


class ImageModelTwice(_Lenstronomy):
    """`ImageModel` for HR and `ImageModel` for LR, each with rays of its own at the same spacing."""

    def __init__(self, task: Task, seed: int) -> None:
        super().__init__(task, seed)
        hr_factor, lr_factor = self.optics.factors
        self.models = (
            self._image_model(task.hr_instrument, task.hr_size, hr_factor),
            self._image_model(task.lr_instrument, task.hr_size // task.scale, lr_factor),
        )

    def _image_model(self, instrument: Instrument, size: int, supersampling: int) -> ImageModel:
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
        numerics = {
            "supersampling_factor": supersampling,
            "supersampling_convolution": True,
            "supersampling_kernel_size": None,
        }
        return ImageModel(data, psf, self.lens, self.source, kwargs_numerics=numerics)

    def noiseless(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        hr, lr = (model.image(scene.kwargs_lens, scene.kwargs_source) for model in self.models)
        return hr, lr


class RaysOnce(_Lenstronomy):
    """lenstronomy's lens and light models on one grid of rays, and PSFs by FFT with precomputed transforms.

    With `epl` EPL_NUMBA the power law, and nothing else, goes through lenstronomy's faster equivalent of EPL.
    """

    def __init__(self, task: Task, seed: int, epl: str = "EPL") -> None:
        super().__init__(task, seed)
        self.lens = LensModel(lens_model_list=[epl, *lens_models(task)[1:]])

    def noiseless(self, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
        rays = self.task.rays
        source_x, source_y = self.lens.ray_shooting(self.x, self.y, scene.kwargs_lens)
        light = self.source.surface_brightness(source_x, source_y, scene.kwargs_source)
        return self.optics.see(np.reshape(light, (rays, rays)) * self.task.spacing_arcsec**2, scipy.fft)
