"""Axion dark matter: finite vortex lines of the superfluid halo.

The model of Alexander, Gleyzer, McDonough, Toomey & Usai (2020, ApJ 893, 15): a straight line of constant mass per
length in the lens plane. Its length follows from the de Broglie wavelength lambda = h / (m v) of the axion in the
lens's own halo (v: the velocity dispersion that its Einstein radius implies), and its core is smooth. The line is a
chain of Gaussians one core radius apart, so that any lens code renders it; away from the core its deflection is the
closed form of a thin line, alpha* = (theta_E^2 / L) e^(-i phi) ln[(z - z1) / (z - z2)].
"""

from typing import Self

import numpy as np
from pydantic import Field, model_validator

from ..cosmology import KPC_KM, LIGHT_KM_S, PLANCK_EV_S
from ..priors import Prior, log_uniform
from ..settings import Settings
from .base import LensModels, Substructure, SubstructureContext


class AxionSettings(Settings):
    """Priors of the vortices."""

    axion_mass_ev: Prior = log_uniform(1e-23, 4e-23)
    vortex_count: Prior = Prior(fixed=1)
    """Rounded to a whole number; with `poisson`, the expectation of a Poisson distribution."""
    poisson: bool = False
    vortex_mass_msun: Prior = log_uniform(1e9, 1e10)
    """Of each vortex."""
    length_in_wavelengths: float = Field(1.0, gt=0)
    core_in_lengths: float = Field(0.05, ge=0.005, le=0.5)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.axion_mass_ev.require("axion_mass_ev", 1e-26)
        self.vortex_count.require("vortex_count", 0, 1000)
        self.vortex_mass_msun.require("vortex_mass_msun", 0)
        return self


def de_broglie_wavelength_kpc(axion_mass_ev: float, velocity_km_s: float) -> float:
    """lambda = h / (m v) of a particle of mass m (eV/c^2): 0.6 kpc at 1e-22 eV and 200 km/s."""
    return PLANCK_EV_S / axion_mass_ev * (LIGHT_KM_S / velocity_km_s) * LIGHT_KM_S / KPC_KM


def vortex_line(
    mass_msun_in_critical: float, length_arcsec: float, core_arcsec: float, angle_rad: float, x: float, y: float
) -> LensModels:
    """A vortex centred on (x, y) arcsec as Gaussians of standard deviation `core_arcsec`, at most that far apart.

    `mass_msun_in_critical` is mass / Sigma_crit in square arcseconds; each Gaussian carries an equal share (`amp`).
    """
    count = int(np.ceil(length_arcsec / core_arcsec))
    along = ((np.arange(count) + 0.5) / count - 0.5) * length_arcsec
    amplitude = mass_msun_in_critical / count
    return [
        (
            "GAUSSIAN",
            {
                "amp": amplitude,
                "sigma": core_arcsec,
                "center_x": float(x + step * np.cos(angle_rad)),
                "center_y": float(y + step * np.sin(angle_rad)),
            },
        )
        for step in along
    ]


def draw_axion(settings: AxionSettings, context: SubstructureContext, rng: np.random.Generator) -> Substructure:
    """Vortices, their centres uniform in a disc so wide that the expected convergence is flat out to 1.5 theta_E."""
    geometry = context.geometry
    axion_mass_ev = settings.axion_mass_ev.draw(rng)
    mean_count = settings.vortex_count.draw(rng)
    count = int(rng.poisson(mean_count)) if settings.poisson else round(mean_count)
    masses = [settings.vortex_mass_msun.draw(rng) for _ in range(count)]

    velocity_km_s = geometry.velocity_dispersion_km_s(context.theta_e_arcsec)
    wavelength_kpc = de_broglie_wavelength_kpc(axion_mass_ev, velocity_km_s)
    length_arcsec = settings.length_in_wavelengths * wavelength_kpc / geometry.kpc_per_arcsec
    core_arcsec = settings.core_in_lengths * length_arcsec
    disc_radius_arcsec = 1.5 * context.theta_e_arcsec + length_arcsec / 2
    radius = disc_radius_arcsec * np.sqrt(rng.uniform(size=count))
    azimuth, angle = rng.uniform(0, 2 * np.pi, count), rng.uniform(0, np.pi, count)
    x, y = (radius * np.cos(azimuth)).tolist(), (radius * np.sin(azimuth)).tolist()
    in_critical = [mass / geometry.critical_surface_density_msun_arcsec2 for mass in masses]
    return Substructure(
        lens_models=[
            model
            for place in zip(in_critical, angle.tolist(), x, y, strict=True)
            for model in vortex_line(place[0], length_arcsec, core_arcsec, *place[1:])
        ],
        mean_convergence=sum(in_critical) / (np.pi * disc_radius_arcsec**2),
        draw={
            "axion_mass_ev": axion_mass_ev,
            "de_broglie_wavelength_kpc": wavelength_kpc,
            "vortex_length_arcsec": length_arcsec,
            "vortex_core_arcsec": core_arcsec,
            "vortex_mass_msun": masses,
            "vortex_angle_rad": angle.tolist(),
            "vortex_x_arcsec": x,
            "vortex_y_arcsec": y,
        },
    )
