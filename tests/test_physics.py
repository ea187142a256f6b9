"""Masses, lengths and deflections against closed forms, astropy and lenstronomy called directly."""

import numpy as np
import pytest
from astropy import units
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from scipy import integrate, stats

from simulate.cosmology import CosmologySettings, LensGeometry
from simulate.populations import POPULATIONS, AxionSettings, CDMSettings, PopulationSettings, SubstructureContext
from simulate.populations.axion import de_broglie_wavelength_kpc, vortex_line
from simulate.populations.cdm import concentration, draw_masses_msun, mean_mass_msun, tnfw_kwargs
from simulate.priors import Prior
from simulate.scene import SceneSettings, draw_scene, sersic_flux

COSMOLOGY = CosmologySettings()
GEOMETRY = LensGeometry(COSMOLOGY, 0.5, 1.0)
LENS_COSMO = LensCosmo(0.5, 1.0, FlatLambdaCDM(H0=70, Om0=0.3))


def test_distances_equal_astropy_and_do_not_subtract() -> None:
    astropy = FlatLambdaCDM(H0=70, Om0=0.3)
    between = astropy.angular_diameter_distance(1.0) - astropy.angular_diameter_distance(0.5)
    assert GEOMETRY.distance_lens_source_mpc == pytest.approx(LENS_COSMO.dds, rel=1e-9)
    assert GEOMETRY.distance_lens_source_mpc > 1.5 * between.to_value(units.Mpc)


def test_einstein_radius_of_a_point_mass() -> None:
    # Luminosity distances would give 1.281". lenstronomy rounds its constants of nature at the fourth digit.
    assert GEOMETRY.einstein_radius_arcsec(1e12) == pytest.approx(1.665, abs=1e-3)
    assert GEOMETRY.critical_surface_density_msun_arcsec2 == pytest.approx(LENS_COSMO.sigma_crit_angle, rel=5e-4)
    assert GEOMETRY.velocity_dispersion_km_s(1.3) == pytest.approx(LENS_COSMO.sis_theta_E2sigma_v(1.3), rel=1e-5)


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


def test_subhalo_count_is_poisson_and_holds_the_mass_it_should() -> None:
    settings = CDMSettings(f_sub=0.02, mass_min_msun=1e8)
    context = SubstructureContext(GEOMETRY, 1.0, 2.4)
    draws = [POPULATIONS["cdm"](settings, context, np.random.default_rng([5, i])) for i in range(600)]
    counts = np.array([len(draw.lens_models) for draw in draws])
    area = np.pi * 2.4**2
    expected_mass = 0.01 * GEOMETRY.critical_surface_density_msun_arcsec2 * area
    expected_count = expected_mass / mean_mass_msun(-1.9, 1e8, 1e10)
    assert counts.mean() == pytest.approx(expected_count, abs=4 * np.sqrt(expected_count / 600))
    assert counts.var() == pytest.approx(expected_count, rel=0.25)
    masses = np.array([sum(draw.draw["subhalo_mass_msun"]) for draw in draws])
    assert masses.mean() == pytest.approx(expected_mass, abs=4 * masses.std() / np.sqrt(600))


def test_subhalo_deflection_far_out_is_that_of_its_whole_mass() -> None:
    masses = np.array([1e8, 1e9])
    for mass, kwargs in zip(masses, tnfw_kwargs(masses, masses**0.3 / 600, masses**0.3 / 150, GEOMETRY), strict=True):
        deflection = LensModel(["TNFW"]).alpha(500.0, 0.0, [{**kwargs, "center_x": 0, "center_y": 0}])[0]
        point_mass = GEOMETRY.einstein_radius_arcsec(mass) ** 2 / 500.0
        assert deflection == pytest.approx(point_mass, rel=2e-3)


def test_untruncated_limit_is_lenstronomys_nfw() -> None:
    mass, c = 1e9, 12.0
    scale, alpha = LENS_COSMO.nfw_physical2angle(mass, c)
    scale_kpc = scale * GEOMETRY.kpc_per_arcsec
    truncation = 1e5
    # The whole mass of an almost untruncated halo: m_200 (ln tau - 1 + ...) / m(c), as tau grows (BMO 2009, eq. A.4).
    whole = mass * (np.log(truncation) - 1) / (np.log(1 + c) - c / (1 + c))
    kwargs = tnfw_kwargs(np.array([whole]), np.array([scale_kpc]), np.array([truncation * scale_kpc]), GEOMETRY)[0]
    assert kwargs["Rs"] == pytest.approx(scale, rel=1e-9)
    assert kwargs["alpha_Rs"] == pytest.approx(alpha, rel=5e-4)


def test_concentration_at_the_pivot() -> None:
    # Dutton & Maccio (2014), table 3: log10 c_200 = 0.905 at 1e12 solar masses / h, z = 0, slope -0.101.
    assert concentration(np.array([1e12 / 0.7]), 0.0, 0.7)[0] == pytest.approx(10**0.905)
    assert concentration(np.array([1e9 / 0.7]), 0.0, 0.7)[0] == pytest.approx(10 ** (0.905 + 0.303))


def test_vortex_deflection_is_the_closed_form_of_a_line() -> None:
    """alpha* = (theta_E^2 / L) e^(-i phi) ln[(z - z1) / (z - z2)] beyond the core, but for the ends of the chain:
    the midpoint rule's error, spacing^2 / 24 times the change of the integrand's slope."""
    theta_e_squared, length, angle, x0, y0 = 0.02, 0.8, 0.7, 0.1, -0.2
    chain = vortex_line(np.pi * theta_e_squared, length, 0.04, angle, x0, y0)
    rng = np.random.default_rng(2)
    x, y = rng.uniform(-2, 2, (2, 400))
    half = length / 2 * np.exp(1j * angle)
    z, centre = x + 1j * y, x0 + 1j * y0
    along = ((z - centre) * np.exp(-1j * angle)).real.clip(-length / 2, length / 2)
    far = np.abs(z - centre - along * np.exp(1j * angle)) > 0.28
    line = np.conj(theta_e_squared / length * np.exp(-1j * angle) * np.log((z - centre + half) / (z - centre - half)))
    alpha_x, alpha_y = LensModel([name for name, _ in chain]).alpha(x[far], y[far], [kwargs for _, kwargs in chain])
    assert far.sum() > 300
    np.testing.assert_allclose(alpha_x + 1j * alpha_y, line[far], atol=3e-5)


def test_vortex_is_smooth_across_its_core() -> None:
    chain = vortex_line(0.05, 0.8, 0.04, 0.0, 0.0, 0.0)
    x = np.linspace(-0.15, 0.15, 200)
    kappa = LensModel([name for name, _ in chain]).kappa(x, np.zeros_like(x), [kwargs for _, kwargs in chain])
    peak = 0.05 / 0.8 / (np.sqrt(2 * np.pi) * 0.04)
    np.testing.assert_allclose(kappa, peak, rtol=1e-6)


def test_de_broglie_wavelength() -> None:
    # Hui et al. (2017), eq. 1: lambda / 2 pi = 1.92 kpc (1e-22 eV / m) (10 km/s / v).
    assert de_broglie_wavelength_kpc(1e-22, 10.0) / (2 * np.pi) == pytest.approx(1.92, rel=2e-3)


@pytest.mark.parametrize("kind", ["axion", "cdm"])
def test_mean_mass_is_compensated(kind: str) -> None:
    """The mean radial deflection on the ring is zero with the sheet, and clearly not without it."""
    populations = PopulationSettings(cdm=CDMSettings(f_sub=0.05, mass_min_msun=3e8), axion=AxionSettings())
    context = SubstructureContext(GEOMETRY, 1.0, 3.4)
    settings = {"cdm": populations.cdm, "axion": populations.axion}[kind]
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    x, y = np.cos(angle), np.sin(angle)
    radial, sheets = [], []
    for i in range(500):
        draw = POPULATIONS[kind](settings, context, np.random.default_rng([7, i]))
        alpha = LensModel([name for name, _ in draw.lens_models]).alpha(
            x, y, [kwargs for _, kwargs in draw.lens_models]
        )
        radial.append(np.mean(alpha[0] * x + alpha[1] * y))
        sheets.append(draw.mean_convergence)
    compensated = np.array(radial) - np.array(sheets)
    error = compensated.std() / np.sqrt(len(compensated))
    assert abs(compensated.mean()) < 3 * error
    assert np.mean(radial) > 5 * error


def test_kinds_share_everything_but_the_substructure() -> None:
    scenes = {kind: draw_scene(kind, SceneSettings(), 2.4, np.random.default_rng([3, 4])) for kind in POPULATIONS}
    for scene in scenes.values():
        assert scene.kwargs_lens[:2] == scenes["none"].kwargs_lens
        assert scene.kwargs_source == scenes["none"].kwargs_source
        assert (scene.z_lens, scene.z_source) == (scenes["none"].z_lens, scenes["none"].z_source)
    assert scenes["cdm"].lens_model_list[2:4] == ["CONVERGENCE", "TNFW"]
    assert set(scenes["axion"].lens_model_list[3:]) == {"GAUSSIAN"}
    uncompensated = draw_scene("cdm", SceneSettings(compensate_mean_mass=False), 2.4, np.random.default_rng([3, 4]))
    assert "CONVERGENCE" not in uncompensated.lens_model_list


def test_source_magnitude_is_its_total_flux() -> None:
    axis = np.linspace(-12, 12, 3001)
    x, y = np.meshgrid(axis, axis)
    for index in (0.8, 1.0, 2.0):
        kwargs = {"amp": 1, "R_sersic": 0.5, "n_sersic": index, "e1": 0.2, "e2": -0.1, "center_x": 0.003, "center_y": 0}
        image = LightModel(["SERSIC_ELLIPSE"]).surface_brightness(x, y, [kwargs])
        assert image.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(sersic_flux(0.5, index), rel=2e-3)
    settings = SceneSettings(source={"magnitude": 23.9, "radius_arcsec": 0.2, "sersic_index": 1.0})
    source = draw_scene("none", settings, 2.4, np.random.default_rng(0)).kwargs_source[0]
    assert source["amp"] * sersic_flux(0.2, 1.0) == pytest.approx(1000.0)  # 23.9 AB is one microjansky


def test_priors_draw_what_they_say() -> None:
    rng = np.random.default_rng(0)
    draws = np.array([Prior(log_uniform=(1, 100)).draw(rng) for _ in range(4000)])
    assert stats.kstest(np.log10(draws) / 2, "uniform").pvalue > 0.01
    draws = np.array([Prior(normal=(3, 0.5)).draw(rng) for _ in range(4000)])
    assert stats.kstest((draws - 3) / 0.5, "norm").pvalue > 0.01
    assert Prior.model_validate(1.5).draw(rng) == 1.5
