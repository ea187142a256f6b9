"""Vortices, warm and self-interacting dark matter: closed forms, quadrature and lenstronomy called directly."""

from typing import Any

import numpy as np
import pytest
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Profiles.nfw_core_truncated import TNFWC
from scipy import integrate, optimize, stats

from simulate.cosmology import CosmologySettings
from simulate.populations.axion import de_broglie_wavelength_kpc, vortex_line
from simulate.populations.halos import concentration
from simulate.populations.sidm import PEAK_RATIO, collapse_time_gyr, evolved_radii
from simulate.populations.wdm import concentration_factor, half_mode_mass_msun, survival

from .test_populations import GEOMETRY, deflection, draw


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
    assert far.sum() > 300
    np.testing.assert_allclose(deflection(chain, x[far], y[far]), line[far], atol=3e-5)


def test_vortex_is_smooth_across_its_core() -> None:
    chain = vortex_line(0.05, 0.8, 0.04, 0.0, 0.0, 0.0)
    x = np.linspace(-0.15, 0.15, 200)
    kappa = LensModel([name for name, _ in chain]).kappa(x, np.zeros_like(x), [kwargs for _, kwargs in chain])
    peak = 0.05 / 0.8 / (np.sqrt(2 * np.pi) * 0.04)
    np.testing.assert_allclose(kappa, peak, rtol=1e-6)


def test_de_broglie_wavelength() -> None:
    # Hui et al. (2017), eq. 1: lambda / 2 pi = 1.92 kpc (1e-22 eV / m) (10 km/s / v).
    assert de_broglie_wavelength_kpc(1e-22, 10.0) / (2 * np.pi) == pytest.approx(1.92, rel=2e-3)


def test_vortices_of_any_number() -> None:
    three = draw("axion", 1, vortex_count=3)
    assert len(three.draw["vortex_mass_msun"]) == len(set(three.draw["vortex_angle_rad"])) == 3
    assert len(three.lens_models) == 3 * 20
    total = sum(kwargs["amp"] for _, kwargs in three.lens_models) * GEOMETRY.critical_surface_density_msun_arcsec2
    assert total == pytest.approx(sum(three.draw["vortex_mass_msun"]), rel=1e-9)
    counts = [len(draw("axion", i, vortex_count=2, poisson=True).draw["vortex_mass_msun"]) for i in range(400)]
    assert np.mean(counts) == pytest.approx(2, abs=4 * np.sqrt(2 / 400))
    assert draw("axion", 0, vortex_count=0).lens_models == []


def test_half_mode_mass_is_where_the_transfer_function_is_half() -> None:
    """T(k) = [1 + (a k)^2.24]^(-5/1.12), a of Schneider et al. (2012): a root, not their formula for it."""
    a = 0.049 * 3.3**-1.11 * (0.3 / 0.25) ** 0.11 / 0.7
    k = optimize.brentq(lambda k: (1 + (a * k) ** 2.24) ** (-5 / 1.12) - 0.5, 1, 1000)
    matter = FlatLambdaCDM(H0=70, Om0=0.3).critical_density0.to_value(units.Msun / units.Mpc**3) * 0.3
    expected = 4 / 3 * np.pi * matter * (np.pi / k) ** 3
    assert half_mode_mass_msun(3.3, CosmologySettings()) == pytest.approx(expected, rel=1e-6)
    # Gilman et al. (2020, MNRAS 491, 6077), eq. 7: 5e8 (3 keV / m)^3.33
    assert expected == pytest.approx(5e8 * (3 / 3.3) ** 3.33, rel=0.2)


def test_warm_subhalos_are_fewer_and_less_concentrated() -> None:
    settings = {"mean_count": 3000, "mass_min_msun": 1e7, "concentration_scatter_dex": 0.0}
    warm, cold = draw("wdm", 1, relic_mass_kev=4.0, **settings), draw("cdm", 1, **settings)
    half_mode = warm.draw["half_mode_mass_msun"]
    log_mass = np.linspace(np.log(1e7), np.log(1e10), 4000)
    number = np.exp(-0.9 * log_mass) * (1 + (4.2 * half_mode / np.exp(log_mass)) ** 2.5) ** -0.2
    cumulative = integrate.cumulative_trapezoid(number, log_mass, initial=0)
    expected = 3000 * cumulative[-1] / integrate.trapezoid(np.exp(-0.9 * log_mass), log_mass)
    masses = np.array(warm.draw["subhalo_mass_msun"])
    assert len(masses) == pytest.approx(expected, abs=4 * np.sqrt(expected))
    assert stats.kstest(np.log(masses), lambda u: np.interp(u, log_mass, cumulative / cumulative[-1])).pvalue > 0.01
    assert stats.kstest(cold.draw["subhalo_mass_msun"], masses).pvalue < 1e-6
    ratio = np.array(warm.draw["subhalo_concentration"]) / concentration(masses, 0.5, CosmologySettings())
    np.testing.assert_allclose(ratio, (1 + 60 * half_mode / masses) ** -0.17 * 1.5 ** (0.013 - 0.04), rtol=1e-12)
    assert survival(np.array(1e13), half_mode) == pytest.approx(1, abs=1e-6)
    assert concentration_factor(np.array(1e16), half_mode, 0.0) == pytest.approx(1, abs=1e-4)


def test_collapse_time_and_evolution_of_a_self_interacting_halo() -> None:
    """Yang et al. (2024), eq. 2.2, in other units; no evolution at phase 0, a deep collapse at 1."""
    density, scale = 2e7 * units.Msun / units.kpc**3, 1.5 * units.kpc
    inverse = 5 * units.cm**2 / units.g * density * scale * np.sqrt(4 * np.pi * constants.G * density)
    expected = (150 / 0.75 / inverse).to_value(units.Gyr)
    assert collapse_time_gyr(5.0, np.array(1.5), np.array(2e7)) == pytest.approx(expected, rel=1e-4)
    scale_factor, core = evolved_radii(np.array([0.0, 0.1, 0.2, 1.0]))
    assert scale_factor[0] == pytest.approx(1)
    assert core[0] == 0
    assert core[2] > core[1] > 0.3
    assert core[3] < 0.3 * core[2]


def test_pseudo_nfw_peaks_where_nfw_does() -> None:
    def peak(mass: Any) -> float:
        return float(optimize.minimize_scalar(lambda x: -mass(x) / x, bounds=(1, 4), method="bounded").x)

    pseudo = {"Rs": 1.0, "alpha_Rs": 1.0, "r_core": 1e-4, "r_trunc": 1e4}
    ratio = peak(lambda x: np.log1p(x) - x / (1 + x)) / peak(lambda x: TNFWC().mass_3d_lens(x, **pseudo))
    assert ratio == pytest.approx(PEAK_RATIO, rel=1e-3)


def test_self_interacting_subhalos_keep_their_mass_and_have_cores() -> None:
    one = draw("sidm", 2, mean_count=60, mass_min_msun=1e7, cross_section_cm2_g={"log_uniform": [1, 200]})
    cross_section, phases = one.draw["cross_section_cm2_g"], np.array(one.draw["subhalo_phase"])
    assert cross_section > 1
    assert phases.min() < 0.3
    profile = TNFWC()
    for (name, kwargs), mass in zip(one.lens_models, one.draw["subhalo_mass_msun"], strict=True):
        assert name == "TNFWC"
        shape = {key: kwargs[key] for key in ("Rs", "alpha_Rs", "r_core", "r_trunc")}
        whole = integrate.quad(
            lambda u, shape=shape: 4 * np.pi * np.exp(u) ** 3 * profile.density_lens(np.exp(u), **shape),
            -18,
            14,
            limit=200,
        )[0]
        assert whole * GEOMETRY.critical_surface_density_msun_arcsec2 == pytest.approx(mass, rel=1e-6)
        assert 1e-3 * kwargs["Rs"] <= kwargs["r_core"] <= 0.9 * min(kwargs["Rs"], kwargs["r_trunc"])
        assert abs(kwargs["r_trunc"] / kwargs["Rs"] - 1) > 0.009
    # With hardly any scattering, there is hardly a core; with much, some halos collapse.
    cold = draw("sidm", 2, mean_count=60, cross_section_cm2_g=1e-3)
    assert max(kwargs["r_core"] / kwargs["Rs"] for _, kwargs in cold.lens_models) < 0.02
    late = draw("sidm", 2, mean_count=60, cross_section_cm2_g=3000.0)
    assert max(late.draw["subhalo_phase"]) == 1.1
