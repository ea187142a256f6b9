"""Axion dark matter: a finite vortex line of the superfluid halo.

The model of Alexander, Gleyzer, McDonough, Toomey & Usai (2020, ApJ 893, 15): a straight line of constant mass per
length in the lens plane. Its length follows from the de Broglie wavelength lambda = h / (m v) of the axion in the
lens's own halo (v: the velocity dispersion that its Einstein radius implies), and its core is smooth. The line is a
chain of Gaussians one core radius apart, so that any lens code renders it; away from the core its deflection is the
closed form of a thin line, alpha* = (theta_E^2 / L) e^(-i phi) ln[(z - z1) / (z - z2)].
"""

import numpy as np
from astropy import constants, units
from pydantic import model_validator

from ..priors import Prior, log_uniform
from ..settings import Settings
from .base import Substructure, SubstructureContext

_PLANCK_EV_S = constants.h.to_value(units.eV * units.s)
_LIGHT_KM_S = constants.c.to_value(units.km / units.s)
_LIGHT_KPC_S = constants.c.to_value(units.kpc / units.s)


class AxionSettings(Settings):
    """Priors of the vortex."""

    axion_mass_ev: Prior = log_uniform(1e-23, 4e-23)
    vortex_mass_msun: Prior = log_uniform(1e9, 1e10)
    length_in_wavelengths: float = 1.0
    core_in_lengths: float = 0.05

    @model_validator(mode="after")
    def _check(self) -> "AxionSettings":
        self.axion_mass_ev.require("axion_mass_ev", 1e-26)
        self.vortex_mass_msun.require("vortex_mass_msun", 0)
        if not 0.005 <= self.core_in_lengths <= 0.5:
            raise ValueError(f"core_in_lengths must lie between 0.005 and 0.5, found {self.core_in_lengths}")
        if self.length_in_wavelengths <= 0:
            raise ValueError(f"length_in_wavelengths must be positive, found {self.length_in_wavelengths}")
        return self


def de_broglie_wavelength_kpc(axion_mass_ev: float, velocity_km_s: float) -> float:
    """lambda = h / (m v) of a particle of mass m (eV/c^2): 0.6 kpc at 1e-22 eV and 200 km/s."""
    return float(_PLANCK_EV_S / axion_mass_ev * (_LIGHT_KM_S / velocity_km_s) * _LIGHT_KPC_S)


def vortex_line(
    mass_msun_in_critical: float, length_arcsec: float, core_arcsec: float, angle_rad: float, x: float, y: float
) -> list[tuple[str, dict[str, float]]]:
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
    """One vortex, its centre uniform in a disc so wide that the expected convergence is flat out to 1.5 theta_E."""
    geometry = context.geometry
    axion_mass_ev = settings.axion_mass_ev.draw(rng)
    mass_msun = settings.vortex_mass_msun.draw(rng)
    velocity_km_s = geometry.velocity_dispersion_km_s(context.theta_e_arcsec)
    wavelength_kpc = de_broglie_wavelength_kpc(axion_mass_ev, velocity_km_s)
    length_arcsec = settings.length_in_wavelengths * wavelength_kpc / geometry.kpc_per_arcsec
    core_arcsec = settings.core_in_lengths * length_arcsec
    disc_radius_arcsec = 1.5 * context.theta_e_arcsec + length_arcsec / 2
    radius = disc_radius_arcsec * np.sqrt(rng.uniform())
    azimuth, angle = rng.uniform(0, 2 * np.pi), rng.uniform(0, np.pi)
    mass_in_critical = mass_msun / geometry.critical_surface_density_msun_arcsec2
    x, y = float(radius * np.cos(azimuth)), float(radius * np.sin(azimuth))
    return Substructure(
        lens_models=vortex_line(mass_in_critical, length_arcsec, core_arcsec, angle, x, y),
        mean_convergence=mass_in_critical / (np.pi * disc_radius_arcsec**2),
        draw={
            "axion_mass_ev": axion_mass_ev,
            "de_broglie_wavelength_kpc": wavelength_kpc,
            "vortex_mass_msun": mass_msun,
            "vortex_length_arcsec": float(length_arcsec),
            "vortex_core_arcsec": float(core_arcsec),
            "vortex_angle_rad": float(angle),
            "vortex_x_arcsec": x,
            "vortex_y_arcsec": y,
        },
    )
