"""Does super-resolution bias lens models? The Einstein radius of the parametric lens fitted to HR images.

Fits start at the scene's true macro-model and source: the question is where the best fit to an image lies, not whether
it is found. Where a lens has substructure, which the fitted model has not, the truth itself has an error.
"""

from math import gcd
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.sample import instruments
from simulate.scene import Scene
from simulate.shards import Pairs

from .on_the_fly import stored_simulation
from .oracle.descent import levenberg_marquardt
from .oracle.imaging import Imager, Optics
from .oracle.objective import Images, MacroObjective
from .oracle.parameters import Parameters, scene_parameters

RAYS_PER_PIXEL = 2
"""Along an axis of an HR pixel, in float32. What they miss of the pixels at the truth is added: `_missed_light`.

For 12 lenses by a small RCAN, theta_E was off by 2.2e-3 in the median, by 2.4e-3 with 4 rays, and no lens by more than
7e-4 from that; in a quarter of the time. The truth of lenses without substructure is off by less than 1e-4.
"""
DEFLECTION_STEP = 4
NOISE_SHARE = 0.1
"""Of the LR image's noise, with which HR images count: else the priors would pull theta_E of a lens of peak S/N 10 by
some 5e-4. They are left to decide what an image says nothing about."""
ITERATIONS = 12
TOLERANCE = 1.0
"""Of chi^2 + |u|^2: with `NOISE_SHARE`, a tenth of the standard deviation by the LR image's noise."""
FIRST_DAMPING = 1e-5
AT_ONCE = 8
THETA_E = "macro.theta_e_arcsec"


class EinsteinRadiusFits:
    """Fits to images of some scenes, all seen by the HR instrument."""

    def __init__(self, pairs: Pairs, simulation: SimulateSettings, rows: np.ndarray, device: torch.device) -> None:
        """Of the simulated `pairs` (N), those at `rows` are fitted; `simulation` are their resolved settings.

        The noise of an HR pixel is uniform, and of such variance that scale^2 of them have that of the median LR pixel,
        times `NOISE_SHARE`.
        """
        self._shape, self._rows, self._device = pairs.hr.shape, np.asarray(rows), device
        self._parameters = _fitted_parameters(simulation)
        if self._parameters is None:
            return
        sigma = np.median(pairs.lr_noise, axis=(1, 2, 3)) / pairs.scale
        cut = _dark_border(pairs.hr, sigma)
        size = simulation.hr_size - 2 * cut
        self._inside = (slice(cut, cut + size), slice(cut, cut + size))
        hr, _ = instruments(simulation)
        samples = simulation.scene.supersampling
        optics = Optics(hr.psf, hr.psf, hr.pixel_scale_arcsec, size, 1, samples)  # it is the HR instrument that looks
        step = gcd(DEFLECTION_STEP, RAYS_PER_PIXEL * size)
        self._imager = Imager(self._parameters, optics, RAYS_PER_PIXEL, step, torch.float32, device)
        start = [self._parameters.of_scene(Scene.from_json(pairs.name[row])) for row in self._rows]
        self._start = torch.tensor(start, dtype=torch.float64, device=device)
        self._theta_e_arcsec = self._parameters.physical(self._start)[THETA_E]
        self._missed = self._missed_light(Imager(self._parameters, optics, samples, 1, torch.float64, device))
        noise = torch.from_numpy(NOISE_SHARE * sigma[self._rows]).to(device, torch.float64)
        self._noise = noise[:, None, None].expand_as(self._missed)

    @torch.no_grad()
    def errors(self, images: np.ndarray) -> np.ndarray:
        """Signed relative error of theta_E of HR images (N,1,H,W) of all pairs: (N,), fitted / true - 1.

        NaN where a scene is not fitted, is no power law in shear with Sersic light, or the image is not finite.
        """
        if images.shape != self._shape:
            raise ValueError(f"images: expected the shape {self._shape}, found {images.shape}")
        errors = np.full(len(images), np.nan)
        chosen = np.flatnonzero(np.isfinite(images[self._rows]).all((1, 2, 3)))
        if self._parameters is None or not len(chosen):
            return errors
        rows, at = self._rows[chosen], torch.from_numpy(chosen).to(self._device)
        seen = torch.from_numpy(images[(rows, 0, *self._inside)]).to(self._device, torch.float64)
        objective = MacroObjective(
            self._imager, Images(seen - self._missed[at], self._noise[at]), torch.arange(len(at), device=self._device)
        )
        found = levenberg_marquardt(objective, self._start[at], ITERATIONS, TOLERANCE, FIRST_DAMPING)
        relative = self._parameters.physical(found.u)[THETA_E] / self._theta_e_arcsec[at] - 1
        errors[rows] = relative.cpu().numpy()
        return errors

    @torch.no_grad()
    def _missed_light(self, fine: Imager) -> Tensor:
        """(n,h,w) what the simulator's own rays give the HR pixels more than the few of the fit, at the truth.

        It changes little near there, so that fits are nearly those with all rays.
        """
        parts = [
            fine.lr(fine.light(u)) - self._imager.lr(self._imager.light(u)).double() for u in self._start.split(AT_ONCE)
        ]
        return torch.cat(parts)


def fits_of_first_scenes(pairs: Pairs, folder: Path, scenes: int, device: torch.device) -> EinsteinRadiusFits | None:
    """Fits to the first `scenes` of `pairs`, of the data set in `folder`.

    None where `scenes` is 0, and where it is not known how the lenses were simulated.
    """
    if scenes == 0:
        return None
    try:
        simulation, _ = stored_simulation(folder)
    except InputError:
        return None
    return EinsteinRadiusFits(pairs, simulation, np.arange(min(scenes, len(pairs))), device)


def _fitted_parameters(simulation: SimulateSettings) -> Parameters | None:
    """Those of the population; None if no parametric model describes its lenses, or theta_E is known beforehand."""
    try:
        parameters = scene_parameters(simulation.scene)
    except InputError:
        return None
    return parameters if THETA_E in parameters.free else None


def _dark_border(hr: np.ndarray, sigma: np.ndarray) -> int:
    """HR pixels at each edge in which none of the images (N,1,H,W) is brighter than its noise (N,): not fitted."""
    bright = (hr[:, 0] > sigma[:, None, None]).any(0)
    border = np.minimum(*np.indices(bright.shape))
    border = np.minimum(border, border[::-1, ::-1])
    return int(border[bright].min())
