"""The numbers of a lens and its light, mapped so that each is a standard normal number before any data are seen.

A normal prior is shifted and stretched; a uniform one is the normal distribution function of the number. So the
logarithm of the prior is -|u|^2 / 2 whatever the priors are, no bound can be left, and a fit is a sum of squares.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simulate.deflectors import MacroSettings
from simulate.errors import InputError
from simulate.instruments import NANOJANSKY_ZERO_POINT
from simulate.lensing import GalaxyGalaxySettings
from simulate.priors import Prior
from simulate.scene import Scene, SceneSettings
from simulate.sources import SersicSettings

MACRO = ("theta_e_arcsec", "slope", "e1", "e2", "gamma1", "gamma2", "center_x_arcsec", "center_y_arcsec")
SERSIC = ("magnitude", "radius_arcsec", "sersic_index", "e1", "e2", "center_x_arcsec", "center_y_arcsec")
ELLIPTICITY_LIMIT = 0.6
"""Longest (e1, e2), as in `simulate.sources.sersic.clip_ellipticity`."""
FARTHEST = 6.0
"""Numbers farther than this from zero count as this far: the priors do not go there."""


@dataclass(frozen=True)
class Slots:
    """Arguments of the profiles of B lenses, as the torch engine takes them, each (B,arguments)."""

    power_law: Tensor
    """EPL: theta_E, gamma, e1, e2, center_x, center_y."""
    shear: Tensor
    """SHEAR: gamma1, gamma2."""
    source: Tensor
    """SERSIC_ELLIPSE: amp, R_sersic, n_sersic, e1, e2, center_x, center_y."""
    lens_light: Tensor | None
    """The same, of the lens."""


@dataclass(frozen=True)
class Parameters:
    """P free parameters with priors, in order, and those that are fixed. `names`: "macro.slope", "source.e1", ..."""

    free: Mapping[str, Prior]
    fixed: Mapping[str, float]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the free parameters."""
        return tuple(self.free)

    @property
    def has_lens_light(self) -> bool:
        """Whether the lens shines."""
        return "lens_light.magnitude" in self.free or "lens_light.magnitude" in self.fixed

    def physical(self, u: Tensor) -> dict[str, Tensor]:
        """All parameters (...) in the priors' own units, from u (...,P)."""
        values = {name: prior_value(prior, u[..., place]) for place, (name, prior) in enumerate(self.free.items())}
        return values | {name: torch.full_like(u[..., 0], value) for name, value in self.fixed.items()}

    def standardise(self, values: Mapping[str, float]) -> list[float]:
        """u (P,) of one lens, the inverse of `physical`."""
        return [prior_number(prior, values[name]) for name, prior in self.free.items()]

    def slots(self, u: Tensor) -> Slots:
        """Arguments of the profiles from u (...,P); differentiable."""
        values = self.physical(u)
        lens_light = _sersic_arguments(values, "lens_light") if self.has_lens_light else None
        macro = {name: values[f"macro.{name}"] for name in MACRO}
        e1, e2 = _clip(macro["e1"], macro["e2"])
        centre = (macro["center_x_arcsec"], macro["center_y_arcsec"])
        return Slots(
            power_law=torch.stack([macro["theta_e_arcsec"], macro["slope"], e1, e2, *centre], -1),
            shear=torch.stack([macro["gamma1"], macro["gamma2"]], -1),
            source=_sersic_arguments(values, "source"),
            lens_light=lens_light,
        )

    def slot_jacobian(self, u: Tensor) -> Tensor:
        """Derivatives (B,A,P) of all arguments, side by side in the order of `Slots`, by u (B,P)."""
        with torch.enable_grad():
            numbers = u.detach().requires_grad_()
            slots = self.slots(numbers)
            parts = [slots.power_law, slots.shear, slots.source, slots.lens_light]
            arguments = torch.cat([part for part in parts if part is not None], -1).sum(0)  # lenses do not mix
            rows = [torch.autograd.grad(one, numbers, retain_graph=True)[0] for one in arguments.unbind()]
        return torch.stack(rows, 1)

    def of_scene(self, scene: Scene) -> list[float]:
        """u (P,) of a simulated lens: of its macro-model and light, without its substructure."""
        lens = dict(zip(scene.lens_model_list[:2], scene.kwargs_lens[:2], strict=True))
        macro, shear = lens["EPL"], lens["SHEAR"]
        values = {"macro.theta_e_arcsec": macro["theta_E"], "macro.slope": macro["gamma"]}
        values |= {f"macro.{name}": macro[name] for name in ("e1", "e2")}
        values |= {f"macro.{name}": shear[name] for name in ("gamma1", "gamma2")}
        values |= {f"macro.{name}_arcsec": macro[name] for name in ("center_x", "center_y")}
        lights = {"source": scene.kwargs_source[0]}
        if scene.kwargs_lens_light:
            lights["lens_light"] = scene.kwargs_lens_light[0]
        for group, light in lights.items():
            values |= _sersic_values(light, group)
        return self.standardise(values)


def scene_parameters(settings: SceneSettings) -> Parameters:
    """The parameters of a population: power law in shear, Sersic source and, if the population has it, lens light.

    Raises `InputError` if its lenses are not made of these: then there is no parametric model to fit.
    """
    asked = None
    if settings.preset is not None:
        asked = f"preset {settings.preset}"
    elif not isinstance(settings.source, SersicSettings):
        asked = f"a source of kind {settings.source.kind}"
    elif not isinstance(settings.lensing, GalaxyGalaxySettings):
        asked = f"lensing of kind {settings.lensing.kind}"
    elif settings.macro.multipoles is not None:
        asked = "multipoles in the macro-model"
    if asked is not None:
        raise InputError(
            f"scene: the parametric fit knows a power law in shear and Sersic light, found {asked}; "
            "simulate a population without it to measure the ceiling"
        )
    assert isinstance(settings.source, SersicSettings)
    return make_parameters(settings.macro, settings.source, settings.lens_light)


def make_parameters(macro: MacroSettings, source: SersicSettings, lens_light: SersicSettings | None) -> Parameters:
    """Parameters with these priors; `lens_light` None: the lens is dark."""
    priors = {f"macro.{name}": getattr(macro, name) for name in MACRO}
    for group, light in (("source", source), ("lens_light", lens_light)):
        if light is not None:
            priors |= {f"{group}.{name}": getattr(light, name) for name in SERSIC}
    for name, prior in priors.items():
        if prior.choice is not None:
            raise InputError(f"{name}: the parametric fit needs a continuous prior, found choice; give a range")
    fixed = {name: prior.bounds()[0] for name, prior in priors.items() if prior.bounds()[0] == prior.bounds()[1]}
    return Parameters({name: prior for name, prior in priors.items() if name not in fixed}, fixed)


def prior_value(prior: Prior, u: Tensor) -> Tensor:
    """The number that the prior has where a standard normal one is `u`."""
    if prior.normal is not None:
        return prior.normal[0] + prior.normal[1] * u
    low, high = prior.bounds()
    if prior.log_uniform is not None:
        return torch.exp(math.log(low) + math.log(high / low) * torch.special.ndtr(u))
    return low + (high - low) * torch.special.ndtr(u)


def prior_number(prior: Prior, value: float) -> float:
    """The inverse of `prior_value`, at most `FARTHEST` from zero."""
    if prior.normal is not None:
        u = (value - prior.normal[0]) / prior.normal[1]
    else:
        low, high = prior.bounds()
        share = math.log(value / low) / math.log(high / low) if prior.log_uniform else (value - low) / (high - low)
        u = float(torch.special.ndtri(torch.tensor(share, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)))
    return min(max(u, -FARTHEST), FARTHEST)


def sersic_flux(radius_arcsec: Tensor, index: Tensor) -> Tensor:
    """`simulate.sources.sersic.sersic_flux` of tensors."""
    b = 1.9992 * index - 0.3271
    log_shape = b - 2 * index * torch.log(b) + torch.lgamma(2 * index)
    return 2 * math.pi * index * radius_arcsec**2 * torch.exp(log_shape)


def _clip(e1: Tensor, e2: Tensor) -> tuple[Tensor, Tensor]:
    shorten = ELLIPTICITY_LIMIT / torch.sqrt(e1 * e1 + e2 * e2 + 1e-30).clamp(min=ELLIPTICITY_LIMIT)
    return e1 * shorten, e2 * shorten


def _sersic_arguments(values: Mapping[str, Tensor], group: str) -> Tensor:
    own = {name: values[f"{group}.{name}"] for name in SERSIC}
    e1, e2 = _clip(own["e1"], own["e2"])
    flux = torch.exp(-0.4 * math.log(10) * (own["magnitude"] - NANOJANSKY_ZERO_POINT))
    amp = flux / sersic_flux(own["radius_arcsec"], own["sersic_index"])
    shape = (own["radius_arcsec"], own["sersic_index"], e1, e2, own["center_x_arcsec"], own["center_y_arcsec"])
    return torch.stack([amp, *shape], -1)


def _sersic_values(light: Mapping[str, Any], group: str) -> dict[str, float]:
    radius, index = light["R_sersic"], light["n_sersic"]
    flux = light["amp"] * float(sersic_flux(*torch.tensor([[radius], [index]], dtype=torch.float64)))
    values = {"magnitude": NANOJANSKY_ZERO_POINT - 2.5 * math.log10(flux), "radius_arcsec": radius}
    values |= {"sersic_index": index, "e1": light["e1"], "e2": light["e2"]}
    values |= {"center_x_arcsec": light["center_x"], "center_y_arcsec": light["center_y"]}
    return {f"{group}.{name}": value for name, value in values.items()}
