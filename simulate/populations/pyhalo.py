"""Cold dark matter as pyHalo draws it: subhalos of the lens and every halo along the line of sight, for the multi-plane
lens equation (Gilman et al. 2020, MNRAS 491, 6077).

pyHalo is an optional extra: `pip install sharplens[pyhalo]`. Halos along the line of sight are part of the universe's
mean density, which the distances contain already, so each plane has a sheet of minus their expected convergence. Its
size is ours: pyHalo subtracts all the mass that halos had before they were stripped, wherever they reach (for subhalos
that is 18 times too much); here it is the share of their remaining mass that is seen inside the Einstein ring.
"""

import atexit
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Self

import numpy as np
from pydantic import Field, model_validator

from ..cosmology import LensGeometry
from ..errors import InputError
from ..priors import Prior, log_uniform
from ..settings import Settings
from .base import LensModels, Substructure, SubstructureContext
from .halos import share_in_ring, tnfw_mass_factor

_STRIPPED = 1e-3
"""Halos truncated at less than this many scale radii (pyHalo even gives 0) keep less than 1e-5 of their mass."""
_FARTHEST_SOURCE = 3.9


class PyHaloSettings(Settings):
    """Priors of the subhalos and of the halos along the line of sight."""

    sigma_sub_kpc2: Prior = Prior(fixed=0.05)
    """Amplitude of the subhalos at infall, pivot 1e8, for a host of 1e13 solar masses at redshift 0.5."""
    host_mass_msun: Prior = log_uniform(5e12, 2e13)
    mass_slope: float = -1.9
    mass_min_msun: float = Field(1e7, gt=0)
    mass_max_msun: float = Field(1e10, gt=0)
    line_of_sight: float = Field(1.0, ge=0)
    """Amplitude of the halos along the line of sight in units of Sheth and Tormen's mass function."""
    sigma_8: float = Field(0.81, gt=0)
    omega_b: float = Field(0.049, gt=0)
    spectral_index: float = 0.965

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.sigma_sub_kpc2.require("sigma_sub_kpc2", 0)
        self.host_mass_msun.require("host_mass_msun", 1e11)
        if self.mass_min_msun >= self.mass_max_msun:
            raise ValueError(f"mass_min_msun {self.mass_min_msun:g} must be below mass_max_msun {self.mass_max_msun:g}")
        return self


@cache
def _load() -> Any:
    """pyHalo's CDM model. Raises `InputError` if it is missing or does not fit the other packages."""
    try:
        colossus_settings: Any = import_module("colossus.settings")
        # It keeps tables in files: each process has its own, and none is left in the home directory.
        colossus_settings.BASE_DIR = tempfile.mkdtemp(prefix="sharplens-colossus-")
        atexit.register(shutil.rmtree, colossus_settings.BASE_DIR, ignore_errors=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("pyHalo.PresetModels.cdm").CDM
    except ImportError as error:
        raise InputError(
            f"the population 'pyhalo' needs pyHalo 1.3.5 and colossus, but {error}; "
            "install them with: pip install 'sharplens[pyhalo]'"
        ) from None


def _has_two_halo_term(geometry: LensGeometry) -> bool:
    """Whether the plane that pyHalo takes for the lens's own has a thickness.

    It rounds thicknesses to 0.01 in redshift; of a lens that close behind another plane it is 0, and so is the length
    by which pyHalo divides to find the two-halo term.
    """
    planes: Any = import_module("pyHalo.utilities").generate_lens_plane_redshifts
    redshifts, thicknesses = planes(geometry.z_lens, geometry.z_source)
    return bool(thicknesses[np.abs(np.array(redshifts) - geometry.z_lens).argmin()] > 0)


@contextmanager
def _global_numpy_random(rng: np.random.Generator) -> Iterator[None]:
    """Seed numpy's global state, which pyHalo draws from, with `rng`; afterwards it is as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(rng.integers(2**32, dtype=np.uint32))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _realization(
    settings: PyHaloSettings, context: SubstructureContext, host_mass_msun: float, sigma_sub: float
) -> Any:
    preset, geometry, cosmology = _load(), context.geometry, context.geometry.cosmology
    models = ["concentration_model", "truncation_model"]
    fresh = [f"kwargs_{model}_{kind}" for model in models for kind in ("subhalos", "fieldhalos")]
    return preset(
        geometry.z_lens,
        geometry.z_source,
        sigma_sub=sigma_sub,
        log_mlow=float(np.log10(settings.mass_min_msun)),
        log_mhigh=float(np.log10(settings.mass_max_msun)),
        shmf_log_slope=settings.mass_slope,
        cone_opening_angle_arcsec=2 * context.field_radius_arcsec,
        log_m_host=float(np.log10(host_mass_msun)),
        LOS_normalization=settings.line_of_sight,
        kwargs_cosmo={
            "H0": cosmology.h0_km_s_mpc,
            "Om0": cosmology.omega_m,
            "Ob0": settings.omega_b,
            "sigma8": settings.sigma_8,
            "ns": settings.spectral_index,
            "flat": True,
            "power_law": False,
        },
        two_halo_contribution=_has_two_halo_term(geometry),
        kwargs_infall_model={},
        **{name: {} for name in fresh},  # pyHalo changes its default arguments
    )


@dataclass(frozen=True)
class _Halos:
    """Truncated NFW halos; each array (N,)."""

    redshift: np.ndarray
    scale_radius_kpc: np.ndarray
    tau: np.ndarray
    mass_msun: np.ndarray
    formed_msun: np.ndarray
    """Before any of it was stripped."""

    def __getitem__(self, which: np.ndarray) -> "_Halos":
        return _Halos(**{name: column[which] for name, column in vars(self).items()})

    def share_seen(self, ring_kpc: float, disc_kpc: float) -> float:
        """Of the mass of such halos as they formed, thrown onto a disc: what is still theirs and seen in a ring."""
        if not len(self.tau):
            return 0.0
        share = share_in_ring(ring_kpc, disc_kpc, self.scale_radius_kpc, self.tau)
        return float(self.mass_msun @ share / self.formed_msun.sum())


def _structure(realization: Any, redshift: Any, kwargs: list[dict[str, Any]], geometry: LensGeometry) -> _Halos:
    redshifts = np.array(redshift, float)
    scale, alpha, truncation = (np.array([one[key] for one in kwargs], float) for key in ("Rs", "alpha_Rs", "r_trunc"))
    tau = np.maximum(truncation / scale, _STRIPPED)
    planes, at = np.unique(redshifts, return_inverse=True)
    plane_geometry = [LensGeometry(geometry.cosmology, z, geometry.z_source) for z in planes.tolist()]
    sigma = np.array([one.critical_surface_density_msun_arcsec2 for one in plane_geometry])[at]
    return _Halos(
        redshift=redshifts,
        scale_radius_kpc=scale * np.array([one.kpc_per_arcsec for one in plane_geometry])[at],
        tau=tau,
        mass_msun=np.pi * scale * alpha * tnfw_mass_factor(tau) / (1 + np.log(0.5)) * sigma,
        formed_msun=np.array([halo.mass for halo in realization.halos], float),
    )


def _formed(realization: Any, settings: PyHaloSettings) -> dict[str, list[tuple[float, float]]]:
    """Expected convergence of all the mass that halos had as they formed: (redshift, kappa) by kind of halos."""
    limits = np.log10(settings.mass_min_msun), np.log10(settings.mass_max_msun)
    planes = {}
    for kind in realization.rendering_classes:
        if kind.name == "TWO_HALO_TERM":  # pyHalo has no sheet for it
            z_lens = realization.lens_cosmo.z_lens
            mass = kind._get_mass_function_model(z_lens, kind._delta_z).first_moment
            area = realization.geometry.angle_to_physical_area(0.5 * realization.geometry.cone_opening_angle, z_lens)
            planes[kind.name] = [(z_lens, mass / realization.lens_cosmo.sigma_crit_mass(z_lens, area))]
        else:
            sheets, _, redshifts = kind.convergence_sheet_correction(1.0, *limits)
            planes[kind.name] = [(float(z), -sheet["kappa"]) for z, sheet in zip(redshifts, sheets, strict=True)]
    return planes


def draw_pyhalo(settings: PyHaloSettings, context: SubstructureContext, rng: np.random.Generator) -> Substructure:
    """Subhalos and line-of-sight halos in a double cone that is as wide as the image at the lens; seconds a lens.

    Raises `InputError` if pyHalo is missing or the source is farther than it goes.
    """
    geometry = context.geometry
    if geometry.z_source > _FARTHEST_SOURCE:
        raise InputError(f"pyHalo goes out to redshift {_FARTHEST_SOURCE}, found a source at {geometry.z_source:.3g}")
    sigma_sub, host_mass_msun = settings.sigma_sub_kpc2.draw(rng), settings.host_mass_msun.draw(rng)
    with _global_numpy_random(rng), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        realization = _realization(settings, context, host_mass_msun, sigma_sub)
        names, redshift, kwargs, _ = realization.lensing_quantities(add_mass_sheet_correction=False)
        formed = _formed(realization, settings)
        cone = {z: realization.geometry.rendering_scale(z) for planes in formed.values() for z, _ in planes}
    assert set(names) <= {"TNFW"}, names
    halos = _structure(realization, redshift, kwargs, geometry)
    is_subhalo = np.array([halo.is_subhalo for halo in realization.halos], bool)
    subhalos, field_halos = halos[is_subhalo], halos[~is_subhalo]

    def expected(kind: str, drawn: _Halos) -> list[tuple[float, float]]:
        """Redshift and expected convergence inside the ring, which narrows towards the source as the cone does."""
        planes = []
        for z, kappa in formed[kind]:
            kpc = cone[z] * LensGeometry(geometry.cosmology, z, geometry.z_source).kpc_per_arcsec
            planes.append(
                (z, kappa * drawn.share_seen(kpc * context.theta_e_arcsec, kpc * context.field_radius_arcsec))
            )
        return planes

    sheets = expected("LINE_OF_SIGHT", field_halos)
    at_lens = expected("SUBHALOS", subhalos)
    if two_halo_term := "TWO_HALO_TERM" in formed:
        at_lens += expected("TWO_HALO_TERM", field_halos)
    kept = halos.tau > _STRIPPED
    lens_models: LensModels = [
        ("TNFW", {key: float(value) for key, value in kwargs[row].items()}) for row in np.flatnonzero(kept)
    ]
    lens_models += [("CONVERGENCE", {"kappa": -kappa, "ra_0": 0.0, "dec_0": 0.0}) for _, kappa in sheets]
    return Substructure(
        lens_models=lens_models,
        mean_convergence=float(sum(kappa for _, kappa in at_lens)),
        draw={
            "sigma_sub_kpc2": sigma_sub,
            "host_mass_msun": host_mass_msun,
            "two_halo_term": two_halo_term,
            "subhalo_mass_msun": halos.mass_msun[kept & is_subhalo].tolist(),
            "line_of_sight_halo_mass_msun": halos.mass_msun[kept & ~is_subhalo].tolist(),
        },
        redshifts=halos.redshift[kept].tolist() + [z for z, _ in sheets],
    )
