"""Granules and soliton of fuzzy dark matter: statistics of random waves, mass relations, compensation."""

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Cosmo.lens_cosmo import LensCosmo
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Profiles.uldm import Uldm
from scipy import integrate

from simulate.cosmology import CosmologySettings, LensGeometry
from simulate.populations import SubstructureContext
from simulate.populations.fdm import (
    FDMSettings,
    draw_fdm,
    granule_variance,
    soliton_core_kpc,
    soliton_density_msun_kpc3,
)
from simulate.populations.halos import concentration

COSMOLOGY = CosmologySettings()
GEOMETRY = LensGeometry(COSMOLOGY, 0.5, 1.0)
HOST_MSUN = 1e13


def test_projected_waves_have_the_variance_and_correlation_that_granules_are_given() -> None:
    """The theory itself: waves with random phases and Maxwellian velocities, l = hbar / (m sigma) = 1, squared and
    projected over a depth of 128: variance sqrt(pi) l / depth, correlation exp(-r^2 / l^2)."""
    rng = np.random.default_rng(0)
    cell, shape = 0.25, (128, 512)
    k = [2 * np.pi * np.fft.fftfreq(size, cell) for size in shape]
    amplitude = np.exp(-(k[0][:, None] ** 2 + k[1] ** 2) / 4)
    mean = 2 * (amplitude**2).sum() / amplitude.size**2
    correlation = np.zeros(13)
    for _ in range(60):
        noise = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        column = (np.abs(np.fft.ifft2(amplitude * noise)) ** 2).mean(1)
        contrast = column / mean - 1
        correlation += [np.mean(contrast * np.roll(contrast, lag)) / 60 for lag in range(13)]
    expected = np.sqrt(np.pi) / (512 * cell) * np.exp(-((cell * np.arange(13)) ** 2))
    np.testing.assert_allclose(correlation, expected, atol=0.06 * expected[0])


def _nfw_density_squared(radius_kpc: float, edge_kpc: float) -> float:
    """Integral of rho^2 along the line of sight by adaptive quadrature, with lenstronomy's NFW parameters."""
    c = float(concentration(np.array(HOST_MSUN), 0.5, COSMOLOGY))
    density, scale, *_ = LensCosmo(0.5, 1.0, FlatLambdaCDM(H0=70, Om0=0.3)).nfwParam_physical(HOST_MSUN, c)
    density, scale = density / 1e9, scale * 1e3

    def squared(depth: float) -> float:
        x = np.hypot(radius_kpc, depth) / scale
        return (density / (x * (1 + x) ** 2)) ** 2

    start = np.sqrt(max(edge_kpc**2 - radius_kpc**2, 0))
    return 2 * integrate.quad(squared, start, 50 * scale, limit=500, points=[start + radius_kpc, start + scale])[0]


@pytest.mark.parametrize("radius_kpc", [0.1, 1.0, 2.0, 6.0, 15.0])
def test_granule_variance_is_the_integral_of_the_hosts_density_squared(radius_kpc: float) -> None:
    length_kpc, edge_kpc = 0.5, 1.5
    critical = GEOMETRY.critical_surface_density_msun_arcsec2 / GEOMETRY.kpc_per_arcsec**2
    expected = np.sqrt(np.pi) * length_kpc * _nfw_density_squared(radius_kpc, edge_kpc) / critical**2
    found = granule_variance(np.array([radius_kpc]), edge_kpc, HOST_MSUN, length_kpc, GEOMETRY)[0]
    assert found == pytest.approx(expected, rel=2e-3)


def _convergence(models: list[tuple[str, dict[str, float]]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(Y,X) convergence of equally wide Gaussians on a grid."""
    assert {name for name, _ in models} == {"GAUSSIAN"}
    sigma = models[0][1]["sigma"]
    at = np.array([[kwargs["center_x"], kwargs["center_y"], kwargs["amp"]] for _, kwargs in models])
    at = at[(np.abs(at[:, 0] - x.mean()) < 5 * sigma + x.max() - x.mean()) & (np.abs(at[:, 1]) < 5 * sigma + y.max())]
    along_x, along_y = (
        np.exp(-(((axis - place[:, None]) / sigma) ** 2) / 2) for axis, place in ((x, at[:, 0]), (y, at[:, 1]))
    )
    return np.einsum("i,iy,ix->yx", at[:, 2] / (2 * np.pi * sigma**2), along_y, along_x, optimize=True)


def test_granules_are_lenstronomys_gaussians() -> None:
    context = SubstructureContext(GEOMETRY, 1.0, 2.4)
    models = draw_fdm(FDMSettings(soliton=False, max_granules=100), context, np.random.default_rng(0)).lens_models
    axis = np.linspace(-0.5, 0.5, 5)
    x, y = np.meshgrid(axis, axis)
    kappa = LensModel(["GAUSSIAN"] * len(models)).kappa(x.ravel(), y.ravel(), [kwargs for _, kwargs in models])
    np.testing.assert_allclose(_convergence(models, axis, axis).ravel(), kappa, atol=1e-4 * np.abs(kappa).max())


@pytest.mark.parametrize("max_granules", [1000, 3000])
def test_granules_have_the_power_spectrum_of_the_waves(max_granules: int) -> None:
    """A patch far from the centre of a wide lens: P(k) = pi l^2 s^2 exp(-k^2 l^2 / 4) seen through the patch's window,
    whether the Gaussians are many or few."""
    context = SubstructureContext(GEOMETRY, 2.0, 10.0, center_x_arcsec=-0.5)
    settings = FDMSettings(
        axion_mass_ev=1e-23,
        host_mass_msun=HOST_MSUN,
        soliton=False,
        disc_in_theta_e=1.3,
        granules_per_area=8.0,
        max_granules=max_granules,
    )
    size, width, draws = 24, 0.8, 300
    axis = (np.arange(size) - (size - 1) / 2) * width / size
    taper = np.hanning(size + 2)[1:-1]
    window = np.outer(taper, taper)
    power, variance = np.zeros((size, size)), 0.0
    for i in range(draws):
        drawn = draw_fdm(settings, context, np.random.default_rng([1, i]))
        kappa = _convergence(drawn.lens_models, 1.5 + axis, axis)
        power += np.abs(np.fft.fft2(window * kappa)) ** 2 / draws
        variance += np.average(kappa**2, weights=window**2) / draws
    length_kpc = drawn.draw["de_broglie_length_kpc"]
    length = length_kpc / GEOMETRY.kpc_per_arcsec
    assert drawn.lens_models[0][1]["sigma"] == pytest.approx(length / 2)
    critical = GEOMETRY.critical_surface_density_msun_arcsec2 / GEOMETRY.kpc_per_arcsec**2
    squared = [_nfw_density_squared((2.0 + one) * GEOMETRY.kpc_per_arcsec, 0.0) for one in axis]
    expected_variance = np.sqrt(np.pi) * length_kpc * np.average(squared, weights=taper**2) / critical**2
    assert variance == pytest.approx(expected_variance, rel=0.1)

    lag = width / size * np.fft.fftfreq(2 * size, 1 / (2 * size))
    correlation = expected_variance * np.exp(-(lag[:, None] ** 2 + lag**2) / length**2)
    padded = np.fft.ifft2(np.abs(np.fft.fft2(window, (2 * size, 2 * size))) ** 2).real
    expected = np.fft.fft2(correlation * padded).real[::2, ::2]
    k = 2 * np.pi * np.hypot(*np.meshgrid(*[np.fft.fftfreq(size, width / size)] * 2))
    for low, high in [(0.5, 1.5), (1.5, 2.5), (2.5, 3.5)]:
        ring = (k * length > low) & (k * length < high)
        assert ring.sum() >= 4
        assert power[ring].sum() == pytest.approx(expected[ring].sum(), rel=0.12)
    ring = (k * length > 1) & (k * length < 2)
    unsmoothed = np.pi * length**2 * expected_variance * np.exp(-((k * length) ** 2) / 4)
    area = (width / size) ** 2
    assert expected[ring].mean() * area / (window**2).sum() == pytest.approx(unsmoothed[ring].mean(), rel=0.1)


def test_granules_have_no_mean_and_stay_within_their_number() -> None:
    context = SubstructureContext(GEOMETRY, 1.0, 2.4)
    drawn = [draw_fdm(FDMSettings(soliton=False), context, np.random.default_rng(i)) for i in range(40)]
    assert all(one.mean_convergence == 0 for one in drawn)
    sums = np.array([sum(kwargs["amp"] for _, kwargs in one.lens_models) for one in drawn])
    assert abs(sums.mean()) < 3 * sums.std() / np.sqrt(40)
    heavy = draw_fdm(FDMSettings(axion_mass_ev=1e-21), context, np.random.default_rng(0))
    assert abs(heavy.draw["granule_count"] - 5000) < 5 * np.sqrt(5000)


def test_soliton_follows_the_core_halo_relation() -> None:
    """Schive et al. (2014, PRL), eq. 6, M_c = (1/4) a^(-1/2) (zeta(z) / zeta(0))^(1/6) (M_h / M_0)^(1/3) M_0, is the
    mass inside the core radius; it and eq. 7 are given to two digits."""
    context = SubstructureContext(GEOMETRY, 1.0, 2.4)
    for axion_mass_ev, host_msun in [(1e-23, 1e13), (2e-23, 3e12), (1e-22, 1e13)]:
        settings = FDMSettings(axion_mass_ev=axion_mass_ev, host_mass_msun=host_msun, max_granules=100)
        drawn = draw_fdm(settings, context, np.random.default_rng(0))
        name, kwargs = drawn.lens_models[0]
        assert name == "ULDM"
        shape = {key: kwargs[key] for key in ("kappa_0", "theta_c", "slope")}
        inside = Uldm().mass_3d(kwargs["theta_c"], **shape) * GEOMETRY.critical_surface_density_msun_arcsec2
        omega = 0.3 * 1.5**3 / (0.3 * 1.5**3 + 0.7)
        zeta = [(18 * np.pi**2 + 82 * (one - 1) - 39 * (one - 1) ** 2) / one for one in (omega, 0.3)]
        smallest = 4.4e7 * (axion_mass_ev / 1e-22) ** -1.5
        expected = 0.25 * 1.5**0.5 * (zeta[0] / zeta[1]) ** (1 / 6) * (host_msun / smallest) ** (1 / 3) * smallest
        assert inside == pytest.approx(expected, rel=0.1)
        core_kpc = soliton_core_kpc(axion_mass_ev, host_msun, COSMOLOGY, 0.5)
        central = soliton_density_msun_kpc3(axion_mass_ev, core_kpc)
        angular = GEOMETRY.critical_surface_density_msun_arcsec2 / GEOMETRY.kpc_per_arcsec**3
        assert Uldm().density_lens(0.0, **shape) * angular == pytest.approx(central, rel=1e-9)
        assert Uldm().density_lens(kwargs["theta_c"], **shape) * angular == pytest.approx(central / 2, rel=1e-9)
        whole = Uldm.alpha_radial(1e4, **shape) * 1e4 * np.pi * GEOMETRY.critical_surface_density_msun_arcsec2
        assert drawn.draw["soliton_mass_msun"] == pytest.approx(whole, rel=1e-9)


def test_soliton_is_compensated_at_the_ring() -> None:
    context = SubstructureContext(GEOMETRY, 1.0, 2.4, center_x_arcsec=0.05, center_y_arcsec=-0.03)
    settings = FDMSettings(axion_mass_ev=1e-23, host_mass_msun=1e13)
    models = draw_fdm(settings, context, np.random.default_rng(0)).lens_models[:2]
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    for radius, largest in [(1.0, 1e-4), (1.5, 1e-4)]:
        x, y = 0.05 + radius * np.cos(angle), -0.03 + radius * np.sin(angle)
        alpha = LensModel(["ULDM", "GAUSSIAN"]).alpha(x, y, [kwargs for _, kwargs in models])
        assert np.hypot(*alpha).max() < largest
    alone = LensModel(["ULDM"]).alpha(x, y, [models[0][1]])
    assert np.hypot(*alone).min() > 0.02
