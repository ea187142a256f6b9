"""Self-interacting dark matter: the subhalos of CDM, with the cores that scattering makes, or already collapsing.

How far a halo has evolved is its age over its collapse time t_c = 150 / (C (sigma/m) rho_s r_s sqrt(4 pi G rho_s)),
C = 0.75; its scale and core radius then follow from those it would have in CDM (Yang, Nadler, Yu & Zhong 2024,
JCAP 02, 032, eq. 2.2 to 2.5). The density is the cored, truncated pseudo-NFW profile that lenstronomy calls TNFWC
(Gilman et al. 2021, MNRAS 507, 2432), rho ~ 1 / [(r^2 + r_c^2)^(1/2) (r^2 + r_s^2) (r^2 + r_t^2)], with the whole mass
of the CDM subhalo; its r_s is 1.092 times NFW's, so that the circular velocity peaks at the same radius. It bends more
sharply there than NFW: even without a core, some 10 % more of the mass is seen within two scale radii.
"""

from typing import Self

import numpy as np
from pydantic import Field, model_validator

from ..cosmology import GRAVITY_KPC_KM2_S2_MSUN, KPC_KM, LensGeometry
from ..priors import Prior, log_uniform
from .base import LensModels, Substructure, SubstructureContext
from .halos import nfw_density_msun_kpc3
from .subhalos import Subhalos, SubhaloSettings, draw_subhalos

_KPC2_MSUN_PER_CM2_G = 1.98841e33 / (KPC_KM * 1e5) ** 2
_GYR_S = 3.15576e16
_LATEST = 1.1
"""In collapse times: the parametric model is calibrated up to here."""
PEAK_RATIO = 1.0920
"""Where the circular velocity peaks, in scale radii: 2.1626 (NFW) over 1.9803 (pseudo-NFW)."""


class SIDMSettings(SubhaloSettings):
    """Priors of the subhalos and of the particle."""

    cross_section_cm2_g: Prior = log_uniform(10.0, 100.0)
    """Effective cross section over mass at the velocities inside subhalos (some 10 km/s)."""
    halo_age_gyr: float = Field(5.0, gt=0)
    """Since the halos formed: from redshift 2 to 0.5, say."""

    @model_validator(mode="after")
    def _check_particle(self) -> Self:
        self.cross_section_cm2_g.require("cross_section_cm2_g", 1e-3)
        return self


def collapse_time_gyr(
    cross_section_cm2_g: float, scale_radius_kpc: np.ndarray, scale_density_msun_kpc3: np.ndarray
) -> np.ndarray:
    """Time from an NFW halo to the collapse of its core: Yang et al. (2024), eq. 2.2."""
    scatterings = cross_section_cm2_g * _KPC2_MSUN_PER_CM2_G * scale_density_msun_kpc3 * scale_radius_kpc
    rate_per_s = np.sqrt(4 * np.pi * GRAVITY_KPC_KM2_S2_MSUN * scale_density_msun_kpc3) / KPC_KM
    return 150 / 0.75 / (scatterings * rate_per_s * _GYR_S)


def evolved_radii(phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and core radius in units of the initial scale radius, at `phase` collapse times (0 to 1.1).

    Yang et al. (2024), eq. 2.4 and 2.5.
    """
    late = np.log(phase + 0.001) / np.log(0.001)
    scale = 0.7178 - 0.1026 * phase + 0.2474 * phase**2 - 0.4079 * phase**3 + (1 - 0.7178) * late
    core = 2.555 * np.sqrt(phase) - 3.632 * phase + 2.131 * phase**2 - 1.415 * phase**3 + 0.4683 * phase**4
    return scale, core


def _h(t: np.ndarray, b: np.ndarray, x: float) -> np.ndarray:
    """artanh(u) / u with u^2 = (t^2 - b^2) / (t^2 + x^2), for t > b."""
    u = np.sqrt((t**2 - b**2) / (t**2 + x**2))
    return np.log((1 + u) * np.hypot(t, x) / np.hypot(b, x)) / u


def tnfwc_projected_mass(b: np.ndarray, tau: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mass within r_s in projection, and whole mass, in units of 4 pi rho_0 r_s^3; b = r_c / r_s, tau = r_t / r_s.

    The integral of rho = rho_0 / [(x^2 + b^2)^(1/2) (1 + x^2) (1 + x^2 / tau^2)] over a cylinder, for b < 1, b < tau.
    """
    factor = tau**2 / (tau**2 - 1)
    one = np.ones_like(b)
    whole = factor * (_h(tau, b, 0.0) - _h(one, b, 0.0))
    return whole - factor * (_h(tau, b, 1.0) - _h(one, b, 1.0)), whole


def tnfwc_models(subhalos: Subhalos, scale_kpc: np.ndarray, core_kpc: np.ndarray, geometry: LensGeometry) -> LensModels:
    """The subhalos as lenstronomy profiles; `alpha_Rs` is the deflection at the scale radius."""
    tau = subhalos.truncation_kpc / scale_kpc
    tau = np.where(np.abs(tau - 1) < 0.01, np.where(tau < 1, 0.99, 1.01), tau)  # 0/0 in closed forms
    core_kpc = np.clip(core_kpc, 1e-3 * scale_kpc, 0.9 * np.minimum(tau, 1) * scale_kpc)
    inside, whole = tnfwc_projected_mass(core_kpc / scale_kpc, tau)
    scale_arcsec = scale_kpc / geometry.kpc_per_arcsec
    mass_in_critical = subhalos.mass_msun / geometry.critical_surface_density_msun_arcsec2
    columns = (
        scale_arcsec,
        mass_in_critical * inside / whole / (np.pi * scale_arcsec),
        core_kpc / geometry.kpc_per_arcsec,
        tau * scale_arcsec,
        subhalos.x_arcsec,
        subhalos.y_arcsec,
    )
    return [
        ("TNFWC", {"Rs": rs, "alpha_Rs": alpha, "r_core": core, "r_trunc": truncation, "center_x": x, "center_y": y})
        for rs, alpha, core, truncation, x, y in zip(*(column.tolist() for column in columns), strict=True)
    ]


def draw_sidm(settings: SIDMSettings, context: SubstructureContext, rng: np.random.Generator) -> Substructure:
    """Cored, truncated subhalos in the disc around the image."""
    cross_section = settings.cross_section_cm2_g.draw(rng)
    subhalos = draw_subhalos(settings, context, rng)
    density = nfw_density_msun_kpc3(subhalos.concentration, context.geometry)
    collapse_gyr = collapse_time_gyr(cross_section, subhalos.scale_radius_kpc, density)
    phase = np.minimum(settings.halo_age_gyr / collapse_gyr, _LATEST)
    scale, core = (factor * subhalos.scale_radius_kpc for factor in evolved_radii(phase))
    return Substructure(
        tnfwc_models(subhalos, PEAK_RATIO * scale, core, context.geometry),
        subhalos.mean_convergence,
        {"cross_section_cm2_g": cross_section, "subhalo_phase": phase.tolist(), **subhalos.draw()},
    )
