"""The maximum-a-posteriori fit of the parametric model to LR images: many images and starts at once."""

import torch
from pydantic import Field
from torch import Generator, Tensor

from simulate.settings import Settings

from .descent import levenberg_marquardt
from .examine import Fit, examine
from .imaging import Imager, Optics
from .objective import FieldObjective, Images, MacroObjective
from .parameters import Parameters
from .starts import choose_starts, draw_library
from .substructure import DeflectionModes

COARSE_TOLERANCE, FINE_TOLERANCE = 0.1, 1e-3
"""Of chi^2 + |u|^2: a fit has converged when a Newton step would lower it by less."""
FINE_DAMPING = 1e-5
SAME_MINIMUM = 1.0
"""Of an image's starts, one that ends no lower than this below those before, in chi^2 + |u|^2, is not followed on."""


class FitSettings(Settings):
    """How widely and how finely the fit looks."""

    draws: int = Field(1024, ge=1)
    """Lenses drawn from the prior, among which starts are chosen."""
    starts: int = Field(2, ge=1)
    """Followed in one round; the best goes on to the fine rays, unless an earlier round ended there."""
    rounds: int = Field(8, ge=1)
    """An image gets new starts until its fit is accepted, or these are over."""
    iterations: int = Field(30, ge=1)
    coarse_rays: int = Field(2, ge=1)
    """Rays along an LR pixel while starts compete."""


class Fitter:
    """Fits of one population through one instrument; draws from the prior are rendered once for all images."""

    def __init__(
        self,
        parameters: Parameters,
        optics: Optics,
        settings: FitSettings,
        generator: Generator,
        device: torch.device,
    ) -> None:
        """`generator` (of the CPU) draws the lenses from which fits start."""
        self.parameters, self.optics, self.settings = parameters, optics, settings
        self.coarse = Imager(parameters, optics, settings.coarse_rays, settings.coarse_rays, torch.float32, device)
        rays = optics.supersampling * optics.scale
        self.fine = Imager(parameters, optics, rays, rays, torch.float64, device)
        self.library = draw_library(self.coarse, settings.draws, generator)

    @torch.no_grad()
    def fit(self, images: Images) -> Fit:
        """The best fit of each image that was found, accepted or not."""
        settings, count = self.settings, len(images)
        flat, weight = images.lr.flatten(1), images.noise.flatten(1) ** -2
        starts = choose_starts(self.library, self.parameters, flat, weight, settings.starts * settings.rounds)
        rows = torch.arange(count, device=flat.device)
        lowest = torch.full((count,), torch.inf, dtype=flat.dtype, device=flat.device)
        best: Fit | None = None
        for tried in starts.split(settings.starts, 1):
            u, cost = self._compete(images.select(rows), tried[rows])
            new = cost < lowest[rows] - SAME_MINIMUM
            lowest[rows] = torch.minimum(lowest[rows], cost)
            if new.any():
                found = self._finish(images.select(rows[new]), u[new])
                if best is None:
                    best = found
                else:
                    better = found.accepted | (found.cost < best.cost[rows[new]])
                    best = best.replace(rows[new][better], found.select(better))
            assert best is not None
            rows = rows[~best.accepted[rows]]
            if not len(rows):
                break
        assert best is not None
        return best

    @torch.no_grad()
    def fit_field(self, images: Images, fit: Fit, modes: DeflectionModes) -> Fit:
        """The best fits with a field of substructure besides, from those without."""
        objective = FieldObjective(self.fine, self.coarse, images, modes)
        start = torch.cat([fit.u, fit.u.new_zeros(len(fit.u), len(modes.maps))], 1)
        u = levenberg_marquardt(objective, start, self.settings.iterations, COARSE_TOLERANCE, FINE_DAMPING).u
        macro = fit.u.shape[1]
        return examine(self.fine, images, u[:, :macro], modes, u[:, macro:])

    def _compete(self, images: Images, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Where the best of starts (B,K,P) ends on the coarse rays: u (B,P), and its cost (B,)."""
        batch, count, _ = starts.shape
        row = torch.arange(batch, device=starts.device)
        objective = MacroObjective(self.coarse, images, row.repeat_interleave(count))
        found = levenberg_marquardt(objective, starts.flatten(0, 1), self.settings.iterations, COARSE_TOLERANCE)
        cost, first = found.cost.view(batch, count).min(1)
        return found.u.view(batch, count, -1)[row, first], cost

    def _finish(self, images: Images, u: Tensor) -> Fit:
        """From u (B,P), on the fine rays."""
        objective = MacroObjective(self.fine, images, torch.arange(len(u), device=u.device))
        u = levenberg_marquardt(objective, u, self.settings.iterations, FINE_TOLERANCE, FINE_DAMPING).u
        return examine(self.fine, images, u)
