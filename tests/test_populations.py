"""Populations of substructure: numbers, masses and compensation against quadrature and lenstronomy called directly."""

from typing import Any

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from lenstronomy.LensModel.lens_model import LensModel
from scipy import integrate, stats

from simulate.cosmology import CosmologySettings, LensGeometry
from simulate.errors import InputError
from simulate.populations import POPULATIONS, PopulationSettings, Substructure, SubstructureContext, draw_substructure
from simulate.populations.cdm import tnfw_models
from simulate.populations.halos import (
    concentration,
    nfw_density_msun_kpc3,
    r200_kpc,
    share_in_ring,
    tnfw_alpha_rs,
    tnfw_projected_share,
)
from simulate.populations.subhalos import Subhalos, SubhaloSettings, draw_masses_msun, draw_subhalos, mean_mass_msun
from simulate.settings import parse_settings

GEOMETRY = LensGeometry(CosmologySettings(), 0.5, 1.0)
LENS_COSMO = LensCosmo(0.5, 1.0, FlatLambdaCDM(H0=70, Om0=0.3))
CONTEXT = SubstructureContext(GEOMETRY, 1.0, 2.4)


def draw(kind: str, seed: int, context: SubstructureContext = CONTEXT, **settings: Any) -> Substructure:
    populations = PopulationSettings(**({} if kind == "none" else {kind: settings}))
    return draw_substructure(kind, populations, context, np.random.default_rng([5, seed]))


def deflection(models: list[tuple[str, dict[str, float]]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """alpha_x + i alpha_y by lenstronomy."""
    alpha_x, alpha_y = LensModel([name for name, _ in models]).alpha(x, y, [kwargs for _, kwargs in models])
    return alpha_x + 1j * alpha_y


def test_every_kind_with_settings_has_a_section_in_the_configuration() -> None:
    assert set(POPULATIONS) >= {"axion", "cdm", "fdm", "none", "pyhalo", "sidm", "wdm"}
    assert set(PopulationSettings.model_fields) == set(POPULATIONS) - {"none"}
    assert draw("none", 0) == Substructure()
    assert draw("cdm", 1) == draw("cdm", 1) != draw("cdm", 2)


def test_mass_function_has_the_slope_and_the_mean() -> None:
    rng = np.random.default_rng(1)
    masses = draw_masses_msun(-1.9, 1e7, 1e10, 20000, rng)

    def cumulative(mass: np.ndarray) -> np.ndarray:
        return (mass**-0.9 - 1e7**-0.9) / (1e10**-0.9 - 1e7**-0.9)

    assert stats.kstest(masses, cumulative).pvalue > 0.01
    # The published simulators' slope of -0.9 must fail the same test.
    assert stats.kstest(draw_masses_msun(-0.9, 1e7, 1e10, 2000, rng), cumulative).pvalue < 1e-6
    total = integrate.quad(lambda u: np.exp(u) ** -0.9 * np.exp(u), np.log(1e7), np.log(1e10))[0]
    count = integrate.quad(lambda u: np.exp(u) ** -1.9 * np.exp(u), np.log(1e7), np.log(1e10))[0]
    assert mean_mass_msun(-1.9, 1e7, 1e10) == pytest.approx(total / count, rel=1e-7)
    assert mean_mass_msun(-2.0, 1e7, 1e10) == pytest.approx(1e7 * np.log(1e3) / (1 - 1e-3), rel=1e-9)


@pytest.mark.parametrize("amplitude", [{"f_sub": 0.02}, {"sigma_sub_kpc2": 0.01}, {"mean_count": 40}])
def test_subhalo_count_is_poisson_with_the_amplitude_asked_for(amplitude: dict[str, float]) -> None:
    area_kpc2 = np.pi * (2.4 * GEOMETRY.kpc_per_arcsec) ** 2
    mass_function = [integrate.quad(lambda m, p=p: 1e-8 * (m / 1e8) ** -1.9 * m**p, 1e8, 1e10)[0] for p in (0, 1)]
    sigma = GEOMETRY.critical_surface_density_msun_arcsec2 * np.pi * 2.4**2
    expected = {
        "f_sub": 0.01 * sigma * mass_function[0] / mass_function[1],
        "sigma_sub_kpc2": 0.01 * area_kpc2 * mass_function[0],
        "mean_count": 40,
    }[next(iter(amplitude))]
    draws = [draw("cdm", i, **amplitude) for i in range(600)]
    counts = np.array([len(one.lens_models) for one in draws])
    assert counts.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected / 600))
    assert counts.var() == pytest.approx(expected, rel=0.25)
    masses = np.array([sum(one.draw["subhalo_mass_msun"]) for one in draws])
    expected_mass = expected * mass_function[1] / mass_function[0]
    assert masses.mean() == pytest.approx(expected_mass, abs=4 * masses.std() / np.sqrt(600))


def test_one_amplitude_alone_is_taken() -> None:
    assert SubhaloSettings().f_sub is not None
    assert SubhaloSettings(mean_count=100).f_sub is None
    assert SubhaloSettings.model_validate(SubhaloSettings().model_dump()) == SubhaloSettings()
    with pytest.raises(
        InputError, match=r"one of f_sub, sigma_sub_kpc2, mean_count .* found \['f_sub', 'mean_count'\]"
    ):
        parse_settings(PopulationSettings, {"cdm": {"f_sub": 0.1, "mean_count": 3}}, "config.yaml")
    with pytest.raises(InputError, match=r"unknown key 'sidm.cross_section' \(did you mean 'cross_section_cm2_g'"):
        parse_settings(PopulationSettings, {"sidm": {"cross_section": 3}}, "config.yaml")


def test_subhalo_deflection_far_out_is_that_of_its_whole_mass() -> None:
    masses = np.array([1e8, 1e9])
    zeros = np.zeros(2)
    halos = Subhalos(masses, zeros, masses**0.3 / 600, masses**0.3 / 150, zeros, zeros, 0.0)
    for mass, model in zip(masses, tnfw_models(halos, GEOMETRY), strict=True):
        far = deflection([model], np.array([500.0]), np.zeros(1)).real[0]
        assert far == pytest.approx(GEOMETRY.einstein_radius_arcsec(mass) ** 2 / 500.0, rel=2e-3)


def test_untruncated_limit_is_lenstronomys_nfw() -> None:
    mass, c = np.array(1e9), np.array(12.0)
    scale, alpha = LENS_COSMO.nfw_physical2angle(1e9, 12.0)
    scale_kpc = r200_kpc(mass, GEOMETRY) / c
    truncation = 1e5
    # The whole mass of an almost untruncated halo: m_200 (ln tau - 1 + ...) / m(c), as tau grows (BMO 2009, eq. A.4).
    whole = mass * (np.log(truncation) - 1) / (np.log(1 + c) - c / (1 + c))
    assert scale_kpc / GEOMETRY.kpc_per_arcsec == pytest.approx(scale, rel=5e-4)
    assert tnfw_alpha_rs(whole, scale_kpc, truncation * scale_kpc, GEOMETRY) == pytest.approx(alpha, rel=5e-4)
    density, *_ = LENS_COSMO.nfwParam_physical(1e9, 12.0)
    assert nfw_density_msun_kpc3(c, GEOMETRY) == pytest.approx(density / 1e9, rel=1e-3)


def test_concentration_at_the_pivot() -> None:
    # Dutton & Maccio (2014), table 3: log10 c_200 = 0.905 at 1e12 solar masses / h, z = 0, slope -0.101.
    cosmology = CosmologySettings()
    assert concentration(np.array([1e12 / 0.7]), 0.0, cosmology)[0] == pytest.approx(10**0.905)
    assert concentration(np.array([1e9 / 0.7]), 0.0, cosmology)[0] == pytest.approx(10 ** (0.905 + 0.303))


@pytest.mark.parametrize("tau", [0.3, 1.02, 8.0])
def test_projected_share_is_lenstronomys_deflection(tau: float) -> None:
    x = np.geomspace(0.01, 100, 200)
    alpha = deflection([("TNFW", {"Rs": 1.0, "alpha_Rs": 1.0, "r_trunc": tau})], x, 0 * x).real
    share = tnfw_projected_share(x, np.full(200, tau))
    np.testing.assert_allclose(alpha * x / share, (alpha * x / share)[0], rtol=1e-9)
    assert tnfw_projected_share(np.array([1e5]), np.array([tau]))[0] == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(("ring", "disc"), [(1.0, 3.4), (1.3, 2.2), (1.0, 0.8)])
def test_share_in_ring_is_the_mean_over_positions(ring: float, disc: float) -> None:
    """The ring's mean radial deflection times pi ring is the mass inside (Gauss), averaged over where the halo is."""
    models = [("TNFW", {"Rs": 0.4, "alpha_Rs": 0.05, "r_trunc": 2.0})]
    distance = disc * np.sqrt((np.arange(600) + 0.5) / 600)
    angle = 2 * np.pi * (np.arange(128) + 0.5) / 128
    x, y = (distance[:, None] + ring * np.cos(angle)).ravel(), np.tile(ring * np.sin(angle), 600)
    radial = (deflection(models, x, y) * np.exp(-1j * np.tile(angle, 600))).real.mean()
    whole = deflection(models, np.array([1e5]), np.zeros(1)).real[0] * 1e5
    share = share_in_ring(ring, disc, np.array([0.4]), np.array([5.0]))[0]
    assert share == pytest.approx(radial * ring / whole * (disc / ring) ** 2, rel=5e-3)
    assert share < 0.97


def test_host_nfw_spreads_subhalos_as_the_host() -> None:
    settings = SubhaloSettings(mean_count=40000, host_nfw={"host_mass_msun": 2e12, "core_in_scale_radii": 0.2})
    context = SubstructureContext(GEOMETRY, 1.0, 12.0)  # far beyond the core, so that the profile shows
    halos = draw_subhalos(settings, context, np.random.default_rng(3))
    mass = np.array(2e12)
    edge = float(r200_kpc(mass, GEOMETRY))
    scale = edge / float(concentration(mass, 0.5, CosmologySettings()))

    def density(radius: float) -> float:
        x = max(radius, 0.2 * scale) / scale
        return 1 / (x * (1 + x) ** 2)

    radius = np.linspace(0, 12.0 * GEOMETRY.kpc_per_arcsec, 40)
    surface = [integrate.quad(lambda z, r=r: density(np.hypot(r, z)), 0, edge, limit=200)[0] for r in radius]
    within = integrate.cumulative_simpson(np.array(surface) * radius, x=radius, initial=0)
    found = np.hypot(halos.x_arcsec, halos.y_arcsec) * GEOMETRY.kpc_per_arcsec
    assert stats.kstest(found, lambda r: np.interp(r, radius, within / within[-1])).pvalue > 0.01
    assert stats.kstest(found**2 / radius[-1] ** 2, "uniform").pvalue < 1e-6
    ring = np.interp(GEOMETRY.kpc_per_arcsec, radius, within) * 12**2 / within[-1]
    even = draw_subhalos(SubhaloSettings(mean_count=40000), context, np.random.default_rng(3))
    assert halos.mean_convergence / even.mean_convergence == pytest.approx(ring, rel=0.03)
    # Depths: the tidal radius gives the distance to the host's centre back.
    distance = 50 * (halos.truncation_kpc / 1.4 / np.cbrt(halos.mass_msun / 1e7)) ** 1.5
    near = found < 0.15 * scale
    depth = np.sqrt(distance[near] ** 2 - found[near] ** 2)
    z = np.linspace(0, edge, 4000)
    cumulative = integrate.cumulative_trapezoid([density(np.hypot(0.1 * scale, one)) for one in z], z, initial=0)
    assert stats.kstest(depth, lambda d: np.interp(d, z, cumulative / cumulative[-1])).pvalue > 0.01


@pytest.mark.parametrize("host", [{}, {"host_core_kpc": 40.0}, {"host_nfw": {}}])
def test_expected_convergence_is_that_of_many_subhalos(host: dict[str, Any]) -> None:
    """To 2 %, where the subhalos' mass over the disc's area alone is 8 % too much: they reach out of the disc."""
    context = SubstructureContext(GEOMETRY, 1.0, 2.4)
    halos = draw_subhalos(SubhaloSettings(mean_count=60000, **host), context, np.random.default_rng(1))
    distance = np.hypot(halos.x_arcsec, halos.y_arcsec)
    scale, tau = halos.scale_radius_kpc / GEOMETRY.kpc_per_arcsec, halos.truncation_kpc / halos.scale_radius_kpc
    radial = np.zeros_like(distance)
    for angle in 2 * np.pi * (np.arange(24) + 0.5) / 24:
        x, y = np.cos(angle) - distance, np.sin(angle)
        share = tnfw_projected_share(np.hypot(x, y) / scale, tau)
        radial += share * (x * np.cos(angle) + y * np.sin(angle)) / (np.pi * np.hypot(x, y) ** 2) / 24
    convergence = halos.mass_msun * radial / GEOMETRY.critical_surface_density_msun_arcsec2
    error = np.sqrt((convergence**2).sum())
    assert error < 0.02 * halos.mean_convergence
    assert convergence.sum() == pytest.approx(halos.mean_convergence, abs=3 * error)
    evenly = halos.mass_msun.sum() / (GEOMETRY.critical_surface_density_msun_arcsec2 * np.pi * 2.4**2)
    assert halos.mean_convergence < 0.96 * evenly


COMPENSATED: dict[str, dict[str, Any]] = {
    "axion": {},
    "axion, many": {"vortex_count": 3, "poisson": True},
    "cdm": {"f_sub": 0.05, "mass_min_msun": 6e8},
    "cdm, host": {"f_sub": 0.05, "mass_min_msun": 6e8, "host_nfw": {}},
    "sidm": {"f_sub": 0.05, "mass_min_msun": 6e8},
    "wdm": {"f_sub": 0.1, "mass_min_msun": 6e8, "relic_mass_kev": 3.0},
}


@pytest.mark.parametrize("name", COMPENSATED)
def test_mean_mass_is_compensated(name: str) -> None:
    """The mean radial deflection on the ring is zero with the sheet, and clearly not without it."""
    context = SubstructureContext(GEOMETRY, 1.0, 3.4)
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    radial, sheets = [], []
    for i in range(250):
        one = draw(name.split(",")[0], i, context, **COMPENSATED[name])
        if one.lens_models:
            alpha = deflection(one.lens_models, np.cos(angle), np.sin(angle))
            radial.append(np.mean(alpha * np.exp(-1j * angle)).real)
        else:
            radial.append(0.0)
        sheets.append(one.mean_convergence)
    compensated = np.array(radial) - np.array(sheets)
    error = compensated.std() / np.sqrt(len(compensated))
    assert abs(compensated.mean()) < 3 * error
    assert np.mean(radial) > 5 * error
