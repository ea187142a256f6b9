"""How good super-resolution of a data set can be: the oracle and the Cramer-Rao bound, lens by lens.

The oracle is the maximum-a-posteriori fit of the true kind of model, from LR images alone; where a lens has
substructure, that is the macro-model and a Gaussian field, or the macro-model alone if the data prefer it. It can be
reached. The Cramer-Rao bound, at the truth, is for an observer who is told the substructure, and cannot be beaten by
any unbiased estimate; the best possible lies between the two. The bound with the field is the error that the best
linear estimate of a Gaussian field has; substructure that is not Gaussian (one vortex) may be found better than that.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.progress import progress_bar
from simulate.sample import instruments
from simulate.scene import Scene
from simulate.settings import Settings
from simulate.shards import Pairs

from .examine import Fit, examine
from .fit import FitSettings, Fitter
from .imaging import Optics
from .objective import Images
from .parameters import scene_parameters
from .substructure import DeflectionModes, draw_deflections, find_modes, light_changes

IMAGES_AT_ONCE = 4
STRENGTHS = (1.0, 0.3)
"""Of the field that the oracle tries, in units of its population's: most lenses have less substructure than the root
mean square, which few massive perturbers make."""
MODE_CELLS = 64
"""Most cells along the frame of the grid on which modes are known."""


class CeilingSettings(Settings):
    """How the ceiling of a data set is measured."""

    scenes: int = Field(60, ge=0)
    """Lenses that are fitted: the first of the split, which has its classes in turn; 0: none. One takes a CPU core some
    five seconds."""
    fit: FitSettings = FitSettings()
    modes: int = Field(300, ge=1)
    """Of the field of substructure."""
    field_draws: int = Field(2000, ge=10)
    """Lenses of a class from which the covariance of its substructure is measured."""


@dataclass(frozen=True, eq=False)
class Ceiling:
    """M lenses; decibels with the data range of the data set's PSNR."""

    rows: np.ndarray
    """(M,) which of the pairs"""
    hr: np.ndarray
    """(M,1,H,W) float32, the oracle's images, flux per HR pixel"""
    hr_sigma: np.ndarray
    """(M,1,H,W) float32, the 1-sigma errors that the oracle gives them"""
    accepted: np.ndarray
    """(M,) bool, the oracle's fit by chi^2"""
    chi2_per_degree: np.ndarray
    """(M,)"""
    strength: np.ndarray
    """(M,) which of `STRENGTHS` the oracle's field of substructure has; 0: it has none"""
    cramer_rao_db: np.ndarray
    """(M,) PSNR of the expected squared error with the substructure known, at the true macro-model and source"""
    cramer_rao_field_db: np.ndarray
    """(M,) the same with the substructure unknown, a Gaussian field (LMMSE); equal for lenses without any"""
    captured: dict[str, float]
    """By class, the share of its substructure's squared deflection that the modes have."""


def measure_ceiling(
    pairs: Pairs,
    simulation: SimulateSettings,
    data_range: float,
    settings: CeilingSettings,
    seed: int,
    device: torch.device,
) -> Ceiling:
    """The ceiling of simulated pairs that were made with these (resolved) settings; shows its progress.

    Raises `InputError` if their lenses are not of the parametric kind, their LR noise is correlated by drizzling, or
    each pair has a PSF of its own.
    """
    hr_instrument, lr_instrument = instruments(simulation)
    if lr_instrument.drizzle is not None:
        raise InputError(
            f"{lr_instrument.name}: its images are drizzled and their noise is correlated, which the parametric fit "
            "does not know; measure the ceiling with an instrument without drizzle"
        )
    if simulation.lr_psf_fwhm_arcsec is not None:
        raise InputError(
            "simulate.lr_psf_fwhm_arcsec: each pair has a PSF of its own, and the parametric fit knows one for all; "
            "measure the ceiling of data without this setting"
        )
    optics = Optics(
        hr_psf=hr_instrument.psf,
        lr_psf=lr_instrument.psf,
        lr_pixel_scale_arcsec=lr_instrument.pixel_scale_arcsec,
        lr_size=simulation.hr_size // simulation.scale,
        scale=simulation.scale,
        supersampling=simulation.scene.supersampling,
    )
    parameters = scene_parameters(simulation.scene)
    fitter = Fitter(parameters, optics, settings.fit, torch.Generator().manual_seed(seed), device)
    rows = np.arange(min(settings.scenes, len(pairs)))
    results: dict[int, tuple[Fit, Tensor, Tensor, float]] = {}
    captured = {}
    with progress_bar("ceiling", len(rows)) as advance, _workers(device) as workers:
        for label, name in enumerate(pairs.classes):
            own = rows[pairs.label[rows] == label]
            modes = None
            if name != "none" and len(own):
                modes = _modes(fitter, simulation, name, settings, seed, device)
                captured[name] = modes.captured
            parts = np.split(own, range(IMAGES_AT_ONCE, len(own), IMAGES_AT_ONCE))
            found = workers.map(partial(_measure, fitter, pairs, modes, device), parts)
            for part, measured in zip(parts, found, strict=True):
                results |= zip(part.tolist(), measured, strict=True)
                advance(len(part), name)
    fits, known, unknown, strength = zip(*(results[int(row)] for row in rows), strict=True)
    return Ceiling(
        rows=rows,
        hr=_images([fit.hr for fit in fits]),
        hr_sigma=_images([fit.hr_sigma for fit in fits]),
        accepted=np.array([bool(fit.accepted) for fit in fits]),
        chi2_per_degree=np.array([float(fit.chi2 / fit.degrees_of_freedom) for fit in fits]),
        strength=np.array(strength),
        cramer_rao_db=_decibels(known, data_range),
        cramer_rao_field_db=_decibels(unknown, data_range),
        captured=captured,
    )


def _workers(device: torch.device) -> ThreadPoolExecutor:
    """Threads that each use one core of the CPU, or one for another device.

    One after the other on all cores, lenses took four times the CPU time where the machine was busy: threads that share
    small tensors mostly wait for each other.
    """
    if device.type != "cpu":
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))


def _measure(
    fitter: Fitter, pairs: Pairs, modes: DeflectionModes | None, device: torch.device, rows: np.ndarray
) -> list[tuple[Fit, Tensor, Tensor, float]]:
    """For each row: the oracle, the errors (1,H,W) of both bounds, and the strength of the oracle's field.

    Of the kinds of model, the oracle is the one that makes the data most probable.
    """
    lr, noise = (torch.from_numpy(one[rows, 0]).to(device, torch.float64) for one in (pairs.lr, pairs.lr_noise))
    images = Images(lr, noise)
    truth = [fitter.parameters.of_scene(Scene.from_json(pairs.name[row])) for row in rows]
    numbers = torch.tensor(truth, dtype=torch.float64, device=device)
    smooth = fitter.fit(images)
    candidates = {0.0: smooth}
    unknown = known = examine(fitter.fine, images, numbers).hr_sigma
    if modes is not None:
        unknown = examine(fitter.fine, images, numbers, modes).hr_sigma
        candidates |= {one: fitter.fit_field(images, smooth, modes.times(one)) for one in STRENGTHS}
    best = torch.stack([one.log_evidence for one in candidates.values()]).argmax(0).tolist()
    found = []
    for row, choice in zip(torch.arange(len(rows)).split(1), best, strict=True):
        strength = list(candidates)[choice]
        found.append((candidates[strength].select(row), known[row], unknown[row], strength))
    return found


def _modes(
    fitter: Fitter, simulation: SimulateSettings, kind: str, settings: CeilingSettings, seed: int, device: torch.device
) -> DeflectionModes:
    size = fitter.optics.lr_size
    cells = min(size, MODE_CELLS)
    deflections = draw_deflections(simulation, kind, cells, settings.field_draws, seed, device)
    return find_modes(deflections, light_changes(fitter.library, size, cells), settings.modes)


def _images(images: list[Tensor]) -> np.ndarray:
    return torch.stack(images).float().cpu().numpy()


def _decibels(sigmas: tuple[Tensor, ...], data_range: float) -> np.ndarray:
    mean_square = torch.stack([one.square().mean() for one in sigmas])
    return (10 * torch.log10(data_range**2 / mean_square)).cpu().numpy()
