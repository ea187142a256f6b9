"""Distances, masses, fluxes and priors against closed forms, astropy and lenstronomy called directly."""

import numpy as np
import pytest
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from lenstronomy.LightModel.light_model import LightModel
from pydantic import ValidationError
from scipy import stats

from simulate.cosmology import GRAVITY_KPC_KM2_S2_MSUN, KPC_KM, PLANCK_EV_S, CosmologySettings, LensGeometry
from simulate.populations import POPULATIONS
from simulate.priors import Prior
from simulate.scene import SceneSettings, draw_scene
from simulate.sources.sersic import sersic_flux

GEOMETRY = LensGeometry(CosmologySettings(), 0.5, 1.0)
LENS_COSMO = LensCosmo(0.5, 1.0, FlatLambdaCDM(H0=70, Om0=0.3))


@pytest.mark.parametrize(("h0", "omega_m"), [(70.0, 0.3), (67.4, 0.315), (50.0, 0.05), (70.0, 0.9), (70.0, 1.0)])
def test_distances_and_densities_equal_astropy(h0: float, omega_m: float) -> None:
    cosmology, astropy = CosmologySettings(h0_km_s_mpc=h0, omega_m=omega_m), FlatLambdaCDM(H0=h0, Om0=omega_m)
    for z in (1e-3, 0.01, 0.1, 0.5, 1.0, 3.0, 10.0):
        assert cosmology.comoving_distance_mpc(z) == pytest.approx(astropy.comoving_distance(z).value, rel=1e-9)
        density = astropy.critical_density(z).to_value(units.Msun / units.kpc**3)
        assert cosmology.critical_density_msun_kpc3(z) == pytest.approx(density, rel=1e-9)
        assert cosmology.omega_m_at(z) == pytest.approx(astropy.Om(z), rel=1e-9)
    geometry = LensGeometry(cosmology, 0.3, 1.7)
    between = (astropy.comoving_distance(1.7).value - astropy.comoving_distance(0.3).value) / 2.7
    assert geometry.distance_lens_source_mpc == pytest.approx(between, rel=1e-9)
    assert geometry.kpc_per_arcsec == pytest.approx(1 / astropy.arcsec_per_kpc_proper(0.3).value, rel=1e-9)


def test_constants_of_nature() -> None:
    gravity = constants.G.to_value(units.kpc * units.km**2 / units.s**2 / units.Msun)
    assert gravity == pytest.approx(GRAVITY_KPC_KM2_S2_MSUN, rel=1e-9)
    assert constants.h.to_value(units.eV * units.s) == pytest.approx(PLANCK_EV_S, rel=1e-9)
    assert (1 * units.kpc).to_value(units.km) == pytest.approx(KPC_KM, rel=1e-9)


def test_distances_do_not_subtract() -> None:
    astropy = FlatLambdaCDM(H0=70, Om0=0.3)
    between = astropy.angular_diameter_distance(1.0) - astropy.angular_diameter_distance(0.5)
    assert GEOMETRY.distance_lens_source_mpc == pytest.approx(LENS_COSMO.dds, rel=1e-9)
    assert GEOMETRY.distance_lens_source_mpc > 1.5 * between.to_value(units.Mpc)


def test_a_universe_without_matter_is_refused() -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        CosmologySettings(omega_m=0.0)


def test_einstein_radius_of_a_point_mass() -> None:
    # Luminosity distances would give 1.281". lenstronomy rounds its constants of nature at the fourth digit.
    assert GEOMETRY.einstein_radius_arcsec(1e12) == pytest.approx(1.665, abs=1e-3)
    assert GEOMETRY.critical_surface_density_msun_arcsec2 == pytest.approx(LENS_COSMO.sigma_crit_angle, rel=5e-4)
    assert GEOMETRY.velocity_dispersion_km_s(1.3) == pytest.approx(LENS_COSMO.sis_theta_E2sigma_v(1.3), rel=1e-5)


def test_kinds_share_everything_but_the_substructure() -> None:
    kinds = sorted(set(POPULATIONS) - {"pyhalo"})
    scenes = {kind: draw_scene(kind, SceneSettings(), 2.4, np.random.default_rng([3, 4])) for kind in kinds}
    for scene in scenes.values():
        assert scene.kwargs_lens[:2] == scenes["none"].kwargs_lens
        assert scene.kwargs_source == scenes["none"].kwargs_source
        assert (scene.z_lens, scene.z_source) == (scenes["none"].z_lens, scenes["none"].z_source)
    assert scenes["cdm"].lens_model_list[2:4] == ["CONVERGENCE", "TNFW"]
    assert set(scenes["axion"].lens_model_list[3:]) == {"GAUSSIAN"}
    assert scenes["fdm"].lens_model_list[2:4] == ["ULDM", "GAUSSIAN"]
    assert scenes["sidm"].lens_model_list[2:4] == ["CONVERGENCE", "TNFWC"]
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
