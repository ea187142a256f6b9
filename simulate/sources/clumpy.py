"""A star-forming disc: a smooth Sersic disc, logarithmic spiral arms and clumps, all of them lenstronomy profiles.

At redshifts 1 to 2.5 optical filters see ultraviolet light. There, kiloparsec clumps hold 19 % of a galaxy's light on
average (Soto et al. 2017, ApJ 837, 6), 40 % where lensing resolves them (Messa et al. 2022, MNRAS 516, 2420: 18 clumps
in one galaxy), and 15 to 60 % of star-forming galaxies have a clump of more than 8 % (Guo et al. 2015, ApJ 800, 39).
Their luminosity function is L^-2 (Messa et al. 2019, MNRAS 487, 4238), their surface brightnesses are alike (Livermore
et al. 2012, MNRAS 427, 688). Arms are logarithmic spirals that widen with radius, as in 86 % of the 155 spirals of
Savchenko et al. (2020, MNRAS 493, 390); for pitch angles see Diaz-Garcia et al. (2019, A&A 631, A94). The default
priors span these.
"""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import model_validator

from ..priors import Prior, log_uniform, normal, uniform
from ..settings import Settings
from .base import LightModels, Source, Split, flux_njy
from .sersic import clip_ellipticity, sersic_b, sersic_flux

ARM_START, ARM_END = 0.4, 2.2
"""Where arms begin and end, in half-light radii of the disc."""
ARM_STEP = 2.0
"""Distance of the Gaussians along an arm in their standard deviations: the sum is smooth to 1.4 %."""
ARM_UNEVENNESS = 0.3
"""Standard deviation of the natural logarithm of the light of those Gaussians."""
CLUMPS_ON_ARMS = 0.7
"""Share of the clumps that lie on arms, where there are any."""
BRIGHTEST_TO_FAINTEST_CLUMP = 10.0


class ClumpySettings(Settings):
    """Priors of a disc with clumps and spiral arms. Shares are of the whole light; counts are rounded."""

    kind: Literal["clumpy"]
    magnitude: Prior = uniform(22.0, 24.0)
    """Of disc, arms and clumps together."""
    radius_arcsec: Prior = uniform(0.1, 0.35)
    """Half-light radius of the smooth disc, the product average of its axes."""
    sersic_index: Prior = uniform(0.7, 1.5)
    e1: Prior = normal(0.0, 0.2)
    e2: Prior = normal(0.0, 0.2)
    center_x_arcsec: Prior = normal(0.0, 0.1)
    center_y_arcsec: Prior = normal(0.0, 0.1)
    clump_share: Prior = uniform(0.05, 0.4)
    clump_count: Prior = uniform(3.5, 20.5)
    clump_radius_arcsec: Prior = log_uniform(0.01, 0.04)
    """Half-light radius of a clump of average light: 80 to 340 pc at redshift 1.5. Its square goes with the light."""
    arm_share: Prior = uniform(0.0, 0.4)
    arm_count: Prior = uniform(1.5, 3.5)
    arm_pitch_deg: Prior = uniform(12.0, 35.0)
    """Angle between an arm and a circle, in the plane of the disc."""
    arm_width: Prior = uniform(0.1, 0.17)
    """Standard deviation of the light across an arm, in units of the distance to the next arm."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.radius_arcsec.require("radius_arcsec", 1e-3)
        self.sersic_index.require("sersic_index", 0.3, 8)
        self.clump_share.require("clump_share", 0, 1)
        self.arm_share.require("arm_share", 0, 1)
        if (most := self.clump_share.bounds()[1] + self.arm_share.bounds()[1]) > 1:
            raise ValueError(f"clump_share and arm_share must not exceed 1 together, found up to {most:g}")
        self.clump_count.require("clump_count", 1, 1000)
        self.clump_radius_arcsec.require("clump_radius_arcsec", 1e-3)
        self.arm_count.require("arm_count", 1, 12)
        self.arm_pitch_deg.require("arm_pitch_deg", 5, 80)
        self.arm_width.require("arm_width", 0.05, 0.5)
        return self


@dataclass(frozen=True)
class _Disc:
    """The plane in which arms and clumps are drawn, where the disc is round; radii in its half-light radii."""

    radius_arcsec: float
    sersic_index: float
    e1: float
    e2: float
    x_arcsec: float
    y_arcsec: float

    def brightness(self, radii: np.ndarray) -> np.ndarray:
        """Surface brightness of the smooth disc, 1 at the half-light radius."""
        return np.exp(-sersic_b(self.sersic_index) * (radii ** (1 / self.sersic_index) - 1))

    def on_sky(self, radii: np.ndarray, azimuths: np.ndarray) -> list[tuple[float, float]]:
        """Points of the inclined disc, x and y in arcsec: the inverse of lenstronomy's stretch by (e1, e2)."""
        u, v = (radii * wave(azimuths) * self.radius_arcsec for wave in (np.cos, np.sin))
        norm = np.sqrt(1 - self.e1**2 - self.e2**2)
        x = ((1 + self.e1) * u + self.e2 * v) / norm + self.x_arcsec
        y = (self.e2 * u + (1 - self.e1) * v) / norm + self.y_arcsec
        return list(zip(x.tolist(), y.tolist(), strict=True))


@dataclass(frozen=True)
class _Arms:
    """Logarithmic spirals: radius = exp((azimuth - phase) winding); width = standard deviation / radius."""

    phases: np.ndarray
    winding: float
    width: float
    step: float
    """Of the logarithm of the radius from one Gaussian to the next."""

    def azimuth(self, radii: np.ndarray) -> np.ndarray:
        """Where the arm of phase 0 is."""
        return np.log(radii) / self.winding


def _draw_arms(settings: ClumpySettings, rng: np.random.Generator) -> _Arms:
    count, pitch = round(settings.arm_count.draw(rng)), np.radians(settings.arm_pitch_deg.draw(rng))
    width = settings.arm_width.draw(rng) * 2 * np.pi / count * np.sin(pitch)
    even = np.arange(count) + rng.normal(0, 0.04, count)
    return _Arms(
        phases=rng.uniform(0, 2 * np.pi) + 2 * np.pi / count * even,
        winding=float(np.tan(pitch) * rng.choice([-1.0, 1.0])),
        width=width,
        step=ARM_STEP * width * np.sin(pitch),
    )


def _arm_models(arms: _Arms, disc: _Disc, flux: float, rng: np.random.Generator) -> LightModels:
    """Chains of Gaussians that are round in the disc; their light follows the disc's and fades at both ends."""
    radii = np.exp(np.arange(np.log(ARM_START), np.log(ARM_END), arms.step))
    fading = np.sqrt(np.sin(np.pi * (np.arange(len(radii)) + 0.5) / len(radii)))
    light = radii**2 * disc.brightness(radii) * fading
    amplitudes = light * np.exp(rng.normal(0, ARM_UNEVENNESS, (len(arms.phases), len(radii))))
    amplitudes *= flux / amplitudes.sum()
    shape = {"e1": disc.e1, "e2": disc.e2}
    sigmas = (arms.width * radii * disc.radius_arcsec).tolist()
    return [
        ("GAUSSIAN_ELLIPSE", {"amp": amp, "sigma": sigma, **shape, "center_x": x, "center_y": y})
        for phase, row in zip(arms.phases, amplitudes.tolist(), strict=True)
        for amp, sigma, (x, y) in zip(row, sigmas, disc.on_sky(radii, arms.azimuth(radii) + phase), strict=True)
    ]


def _clump_models(
    settings: ClumpySettings, disc: _Disc, arms: _Arms | None, flux: float, rng: np.random.Generator
) -> LightModels:
    """Round Gaussians, spread as the disc's light out to where arms end, most of them along the arms."""
    count = round(settings.clump_count.draw(rng))
    grid = np.linspace(0, ARM_END, 200)
    cumulative = np.cumsum(grid * disc.brightness(grid))
    radii = np.interp(rng.uniform(size=count), cumulative / cumulative[-1], grid)
    azimuths = rng.uniform(0, 2 * np.pi, count)
    if arms is not None:
        on_arm = (rng.uniform(size=count) < CLUMPS_ON_ARMS) & (radii > ARM_START)
        along = arms.azimuth(radii) + rng.choice(arms.phases, count) + rng.normal(0, 0.1, count)
        azimuths = np.where(on_arm, along, azimuths)
    light = 1 / (1 - rng.uniform(size=count) * (1 - 1 / BRIGHTEST_TO_FAINTEST_CLUMP))  # L^-2 between 1 and that
    sizes = np.sqrt(light / light.mean()) / np.sqrt(2 * np.log(2))  # L ~ R^2; from half-light radius to sigma
    light *= flux / light.sum()
    return [
        (
            "GAUSSIAN",
            {
                "amp": amp,
                "sigma": settings.clump_radius_arcsec.draw(rng) * size,
                "center_x": x,
                "center_y": y,
            },
        )
        for amp, size, (x, y) in zip(light.tolist(), sizes.tolist(), disc.on_sky(radii, azimuths), strict=True)
    ]


def draw_clumpy(settings: ClumpySettings, split: Split, rng: np.random.Generator) -> Source:  # noqa: ARG001
    """One disc with its arms and clumps, drawn face-on and inclined as the disc is."""
    magnitude, radius, index = (
        prior.draw(rng) for prior in (settings.magnitude, settings.radius_arcsec, settings.sersic_index)
    )
    e1, e2 = clip_ellipticity(settings.e1.draw(rng), settings.e2.draw(rng))
    x, y = settings.center_x_arcsec.draw(rng), settings.center_y_arcsec.draw(rng)
    disc = _Disc(radius, index, e1, e2, x, y)
    clump_share, arm_share = settings.clump_share.draw(rng), settings.arm_share.draw(rng)
    flux = flux_njy(magnitude)
    amp = flux * (1 - clump_share - arm_share) / sersic_flux(radius, index)
    smooth = {"amp": amp, "R_sersic": radius, "n_sersic": index, "e1": e1, "e2": e2, "center_x": x, "center_y": y}
    models: LightModels = [("SERSIC_ELLIPSE", smooth)]
    arms = _draw_arms(settings, rng) if arm_share > 0 else None
    if arms is not None:
        models += _arm_models(arms, disc, flux * arm_share, rng)
    if clump_share > 0:
        models += _clump_models(settings, disc, arms, flux * clump_share, rng)
    draw = {"source_magnitude": magnitude, "source_clump_share": clump_share, "source_arm_share": arm_share}
    return Source(models, {"source_kind": "clumpy", **draw})
