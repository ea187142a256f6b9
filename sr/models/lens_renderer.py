"""Strong lenses as differentiable images on the HR pixel grid: a power law in shear, and a Sersic source behind it.

Lengths are in LR pixels from the middle of the frame, y along rows; nothing waits for the device. Parameters are
numbers u with a standard normal prior each, as in `sr.oracle.parameters`, whose default priors for an image of which
nothing is known are these: wide, and scaled to the frame, not to a data set.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from simulate.priors import Prior, log_uniform, normal
from simulate.profiles.light import sersic_ellipse
from simulate.profiles.macro import epl_deflection

from ..oracle.parameters import prior_value

MACRO = ("theta_e", "slope", "e1", "e2", "gamma1", "gamma2", "center_x", "center_y")
SOURCE = ("source_radius", "source_index", "source_e1", "source_e2", "source_x", "source_y")
PARAMETERS = MACRO + SOURCE
"""In the order of u. The source's brightness enters images linearly: it is solved for."""
LONGEST_LENS_ELLIPTICITY, LONGEST_SOURCE_ELLIPTICITY = 0.4, 0.6
SERIES_TERMS = 9
"""Of the power law's series in the ellipticity: what is left out is below 1e-5 of the deflection."""
ROUND = 1e-6
"""Nothing is rounder: the angle of what is quite round has no derivative."""
FARTHEST = 5.0
"""Numbers farther than this from zero count as this far."""
DIFFERENCE = 2e-3
"""Of u, for derivatives by differences."""

Values = dict[str, Tensor]


def lens_priors(height: int, width: int) -> dict[str, Prior]:
    """The prior of each of `PARAMETERS`, for frames of so many LR pixels."""
    half_width = min(height, width) / 2
    centre, place = normal(0.0, 2.0), normal(0.0, 0.1 * half_width)
    lens_ellipticity, shear, source_ellipticity = normal(0.0, 0.15), normal(0.0, 0.05), normal(0.0, 0.2)
    macro = (log_uniform(2.0, max(2.1, 0.9 * half_width)), normal(2.0, 0.1), lens_ellipticity, lens_ellipticity)
    source = (log_uniform(0.2, max(0.3, 0.3 * half_width)), log_uniform(0.5, 4.0), source_ellipticity)
    priors = (*macro, shear, shear, centre, centre, *source, source_ellipticity, place, place)
    return dict(zip(PARAMETERS, priors, strict=True))


@dataclass(frozen=True)
class LensRenderer:
    """Images of lenses as the HR instrument sees them, of frames of `height` x `width` LR pixels."""

    height: int
    width: int
    scale: int
    supersampling: int
    """Rays along an axis of an HR pixel."""
    psf_fwhm: float
    """Of the HR instrument's PSF, a Gaussian, in HR pixels."""

    def __call__(self, u: Tensor) -> Tensor:
        """u (B,P) -> (B,1,scale*height,scale*width) float32: surface brightness, 1 at half-light radius."""
        values = self.physical(u)
        return self._see(self._light(*self._trace(values), values))

    def derivatives(self, u: Tensor) -> Tensor:
        """(B,P,scale*height,scale*width) of the images by u: differences, as `inference_mode` has no others."""
        values = self.physical(u)
        place = self._trace(values)
        light, columns = self._light(*place, values), []
        for number, name in enumerate(PARAMETERS):
            moved = u.clone()
            moved[:, number] += DIFFERENCE
            new = self.physical(moved)
            seen = self._light(*(self._trace(new) if name in MACRO else place), new)
            columns.append(self._see((seen - light) / DIFFERENCE))
        return torch.cat(columns, 1)

    def physical(self, u: Tensor) -> Values:
        """Each of `PARAMETERS` (B,1,1), lengths in LR pixels, from u (B,P)."""
        numbers = u.float().clamp(-FARTHEST, FARTHEST)[:, :, None, None].unbind(1)
        priors = lens_priors(self.height, self.width).items()
        values = {name: prior_value(prior, one) for (name, prior), one in zip(priors, numbers, strict=True)}
        for prefix, longest in (("", LONGEST_LENS_ELLIPTICITY), ("source_", LONGEST_SOURCE_ELLIPTICITY)):
            e1, e2 = values[f"{prefix}e1"], values[f"{prefix}e2"]
            shorten = longest / torch.sqrt(e1 * e1 + e2 * e2 + 1e-12).clamp(min=longest)
            values[f"{prefix}e1"], values[f"{prefix}e2"] = e1 * shorten + ROUND, e2 * shorten
        return values

    def _trace(self, values: Values) -> tuple[Tensor, Tensor]:
        """Where rays meet the source plane, (B,rays,rays) each."""
        device = values["theta_e"].device
        x, y = self._rays(self.width, device)[None, None, :], self._rays(self.height, device)[None, :, None]
        power_law = (values[name] for name in MACRO if name not in ("gamma1", "gamma2"))
        alpha_x, alpha_y = epl_deflection(x, y, *power_law, terms=SERIES_TERMS)
        gamma1, gamma2 = values["gamma1"], values["gamma2"]
        return x - alpha_x - gamma1 * x - gamma2 * y, y - alpha_y - gamma2 * x + gamma1 * y

    def _light(self, x: Tensor, y: Tensor, values: Values) -> Tensor:
        return sersic_ellipse(x, y, 1.0, *(values[name] for name in SOURCE))

    def _see(self, light: Tensor) -> Tensor:
        """(B,1,H,W) of (B,rays,rays): rays as points of light, through the Gaussian PSF and the pixel."""
        with torch.autocast("cuda" if light.is_cuda else "cpu", enabled=False):
            return (self._blur(self.height, light.device) @ light @ self._blur(self.width, light.device).mT)[:, None]

    def _rays(self, size: int, device: torch.device) -> Tensor:
        per_pixel = self.scale * self.supersampling
        return (torch.arange(size * per_pixel, device=device) + 0.5) / per_pixel - size / 2

    def _blur(self, size: int, device: torch.device) -> Tensor:
        """(HR pixels, rays) along an axis of `size` LR pixels: the share of a ray's light that falls into a pixel."""
        edges = torch.arange(self.scale * size + 1, device=device)
        rays = (torch.arange(self.scale * size * self.supersampling, device=device) + 0.5) / self.supersampling
        reached = torch.special.ndtr((edges[:, None] - rays) * (math.sqrt(8 * math.log(2)) / self.psf_fwhm))
        return reached.diff(dim=0) / self.supersampling
