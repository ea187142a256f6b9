"""The published generator's scenes against astropy, its own formulas, and lenstronomy called as its scripts call it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM
from lenstronomy.Data.imaging_data import ImageData
from lenstronomy.Data.psf import PSF
from lenstronomy.ImSim.image_model import ImageModel
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LightModel.light_model import LightModel
from lenstronomy.SimulationAPI.observation_api import SingleBand
from lenstronomy.SimulationAPI.ObservationConfig.HST import HST
from lenstronomy.SimulationAPI.sim_api import SimAPI
from scipy import stats

from simulate.errors import InputError
from simulate.instruments import Instrument, config_folder
from simulate.legacy import LEGACY_PRESETS, draw_legacy_scene, legacy_einstein_radius_arcsec
from simulate.lenstronomy_engine import render_reference
from simulate.scene import Scene
from simulate.settings import parse_settings, read_yaml
from sr.config import check_sections, load_config

KINDS = ("axion", "cdm", "none")
PUBLISHED_COSMOLOGY = FlatLambdaCDM(H0=70, Om0=0.3, Ob0=0.05)
PYHALO_COSMOLOGY = FlatLambdaCDM(H0=69.7, Om0=0.2814, Ob0=0.0464)
EUCLID_OF_2022 = {
    "exposure_time": 565.0,
    "sky_brightness": 22.35,
    "magnitude_zero_point": 24.0,
    "num_exposures": 4,
    "seeing": 0.16,
    "psf_type": "GAUSSIAN",
    "read_noise": 4.2,
    "pixel_scale": 0.101,
    "ccd_gain": 3.1,
}


def scenes(preset: str, kind: str, count: int) -> list[Scene]:
    return [draw_legacy_scene(preset, kind, np.random.default_rng([7, index])) for index in range(count)]


def published_theta_e_arcsec(mass_msun: np.ndarray | float) -> np.ndarray:
    lens, source = (PUBLISHED_COSMOLOGY.luminosity_distance(z) for z in (0.5, 1.0))
    square = 4 * constants.G * constants.M_sun / constants.c**2 * (source - lens) / (lens * source)
    return np.sqrt(square.to_value(units.dimensionless_unscaled) * np.asarray(mass_msun)) * 206265


def hr_instrument(preset: str) -> Instrument:
    section = read_yaml(config_folder() / f"{preset}.yaml")["simulate"]
    return parse_settings(Instrument, section["hr_instrument"], preset)


def single_band(instrument: Instrument) -> SingleBand:
    return SingleBand(
        pixel_scale=instrument.pixel_scale_arcsec,
        exposure_time=instrument.exposure_time_s,
        num_exposures=instrument.num_exposures,
        magnitude_zero_point=instrument.magnitude_zero_point,
        read_noise=instrument.read_noise_electrons,
        sky_brightness=instrument.sky_brightness_mag_arcsec2,
        psf_type="NONE",
    )


def test_einstein_radii_come_from_luminosity_distances() -> None:
    assert legacy_einstein_radius_arcsec(1e12) == pytest.approx(1.281, abs=1e-3)  # right: 1.665
    assert legacy_einstein_radius_arcsec(3e8) == pytest.approx(float(published_theta_e_arcsec(3e8)), rel=1e-5)
    assert scenes("deeplensesim-model-1", "none", 1)[0].kwargs_lens[0]["theta_E"] == pytest.approx(1.2815, abs=1e-4)


def test_nothing_but_the_source_position_varies_in_the_smooth_lens() -> None:
    for preset in LEGACY_PRESETS:
        drawn = [scene for kind in KINDS for scene in scenes(preset, kind, 3)]
        assert all(scene.kwargs_lens[:2] == drawn[0].kwargs_lens[:2] for scene in drawn)
        assert {(scene.z_lens, scene.z_source) for scene in drawn} == {(0.5, 1.0)}
    sources = [scene.kwargs_source[0] for scene in scenes("deeplensesim-model-1", "none", 400)]
    assert len({tuple(source[key] for key in ("amp", "R_sersic", "n_sersic", "e1", "e2")) for source in sources}) == 1
    for axis in ("center_x", "center_y"):
        assert stats.kstest([source[axis] for source in sources], stats.uniform(-0.35, 0.7).cdf).pvalue > 0.01


def test_always_25_subhalos_too_heavy_and_too_central() -> None:
    drawn = scenes("deeplensesim-model-1", "cdm", 200)
    assert {len(scene.lens_model_list) - 2 for scene in drawn} == {25}
    halos = [kwargs for scene in drawn for kwargs in scene.kwargs_lens[2:]]
    masses = 1e12 * np.array([halo["theta_E"] for halo in halos]) ** 2 / published_theta_e_arcsec(1e12) ** 2
    assert np.allclose(masses, np.concatenate([scene.draw["subhalo_mass_msun"] for scene in drawn]), rtol=1e-4)

    def cumulative(mass: np.ndarray, slope: float) -> np.ndarray:
        power = slope + 1
        return (mass**power - 1e6**power) / (1e10**power - 1e6**power)

    assert stats.kstest(masses, lambda mass: cumulative(mass, -0.9)).pvalue > 0.01
    assert stats.kstest(masses, lambda mass: cumulative(mass, -1.9)).pvalue < 1e-6
    observed_mean_msun = (1e10**0.1 - 1e6**0.1) / 0.1 / ((1e6**-0.9 - 1e10**-0.9) / 0.9)
    assert masses.mean() / observed_mean_msun == pytest.approx(111, rel=0.06)
    radius = np.hypot(*(np.array([halo[key] for halo in halos]) for key in ("center_x", "center_y")))
    assert stats.kstest(radius, stats.uniform(0.25, 1.75).cdf).pvalue > 0.01


def test_vortex_is_100_equal_beads_on_a_line_through_the_centre() -> None:
    drawn = scenes("deeplensesim-model-1", "axion", 200)
    for scene in drawn:
        beads = scene.kwargs_lens[2:]
        assert scene.lens_model_list[2:] == ["POINT_MASS"] * 100
        squares = np.array([bead["theta_E"] for bead in beads]) ** 2
        assert np.ptp(squares) == 0
        assert squares.sum() / published_theta_e_arcsec(1e12) ** 2 == pytest.approx(0.03, rel=1e-4)  # 3e10 of 1e12
        positions = np.array([(bead["center_x"], bead["center_y"]) for bead in beads])
        assert np.allclose(positions.mean(0), 0, atol=1e-12)
        assert np.linalg.svd(positions, compute_uv=False)[1] < 1e-12
        length_arcsec = np.hypot(*(positions[-1] - positions[0]))
        assert length_arcsec * scene.draw["axion_mass_ev"] == pytest.approx(0.06e-22, rel=1e-9)
    log_masses = np.log10([scene.draw["axion_mass_ev"] for scene in drawn])
    assert stats.kstest(log_masses, stats.uniform(-24, 2).cdf).pvalue > 0.01


@pytest.mark.parametrize("kind", ["axion", "cdm"])
def test_added_mass_is_not_compensated(kind: str) -> None:
    scene = scenes("deeplensesim-model-1", kind, 1)[0]
    angle = np.arange(4096) * 2 * np.pi / 4096
    x, y = 3.2 * np.cos(angle), 3.2 * np.sin(angle)  # outside of all substructure
    radial = []
    for stop in (2, None):
        alpha_x, alpha_y = LensModel(scene.lens_model_list[:stop]).alpha(x, y, scene.kwargs_lens[:stop])
        radial.append(np.mean(alpha_x * np.cos(angle) + alpha_y * np.sin(angle)))
    added_msun = 3e10 if kind == "axion" else sum(scene.draw["subhalo_mass_msun"])
    assert (radial[1] - radial[0]) * 3.2 == pytest.approx(float(published_theta_e_arcsec(added_msun)) ** 2, rel=1e-4)


def published_lens_models(scene: Scene) -> list[dict[str, float]]:
    """What the scripts write down, from the masses and the positions of the scene."""
    macro = [
        {"theta_E": float(published_theta_e_arcsec(1e12)), "e1": 0.1, "e2": 0, "center_x": 0, "center_y": 0},
        {"gamma1": 0.05, "gamma2": 0},
    ]
    masses = scene.draw.get("subhalo_mass_msun", [3e8] * (len(scene.lens_model_list) - 2))
    return macro + [
        {**kwargs, "theta_E": float(published_theta_e_arcsec(mass))}
        for mass, kwargs in zip(masses, scene.kwargs_lens[2:], strict=True)
    ]


def published_image_njy(preset: str, scene: Scene) -> np.ndarray:
    """The noiseless image by the calls of lenstronomy that the published functions make."""
    center = {key: scene.kwargs_source[0][key] for key in ("center_x", "center_y")}
    source: dict[str, Any] = {"R_sersic": 0.25, "n_sersic": 1, "e1": -0.1, "e2": 0.1, **center}
    if preset == "deeplensesim-model-1":
        corner = -149 / 2 * 0.05
        data = ImageData(
            np.zeros((150, 150)), ra_at_xy_0=corner, dec_at_xy_0=corner, transform_pix2angle=np.eye(2) * 0.05
        )
        psf = PSF(psf_type="GAUSSIAN", fwhm=0.087, pixel_size=0.05, truncation=3)
        numerics = {"supersampling_factor": 1, "supersampling_convolution": False}
        lens, light = LensModel(scene.lens_model_list), LightModel(["SERSIC_ELLIPSE"])
        model = ImageModel(data, psf, lens, light, kwargs_numerics=numerics)
        return model.image(published_lens_models(scene), [{"amp": 20, **source}])
    band = EUCLID_OF_2022 if preset == "deeplensesim-model-2" else HST("WFC3_F160W", "GAUSSIAN").kwargs_single_band()
    simulation = SimAPI(
        64,
        band,
        {
            "lens_model_list": scene.lens_model_list,
            "lens_redshift_list": [0.5] * len(scene.lens_model_list),
            "source_light_model_list": ["SERSIC_ELLIPSE"],
            "source_redshift_list": [1.0],
            "cosmo": PYHALO_COSMOLOGY,
            "z_source_convention": 2.5,
            "z_source": 1.0,
        },
    )
    _, kwargs_source, _ = simulation.magnitude2amplitude(None, [{"magnitude": 20, **source}])
    image = simulation.image_model_class().image(published_lens_models(scene), kwargs_source, None)
    return image * 10 ** (-0.4 * (band["magnitude_zero_point"] - 31.4))


@pytest.mark.filterwarnings("ignore:Cosmology is provided")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", LEGACY_PRESETS)
def test_image_is_the_one_that_the_published_calls_of_lenstronomy_give(preset: str, kind: str) -> None:
    scene = Scene.from_json(scenes(preset, kind, 2)[1].to_json())
    size = read_yaml(config_folder() / f"{preset}.yaml")["simulate"]["hr_size"]
    ours = render_reference(scene, hr_instrument(preset), size, supersampling=1)
    theirs = published_image_njy(preset, scene)
    assert np.abs(ours - theirs).max() < 3e-4 * theirs.max()  # Model I cuts the PSF at 3 sigma


def test_rings_of_models_2_and_3_are_smaller_than_written_down() -> None:
    scene = scenes("deeplensesim-model-2", "none", 1)[0]
    ratio = [
        PYHALO_COSMOLOGY.angular_diameter_distance(0.5, z) / PYHALO_COSMOLOGY.angular_diameter_distance(z)
        for z in (1.0, 2.5)
    ]
    assert scene.draw["published_theta_e_arcsec"] == pytest.approx(1.2815, abs=1e-4)
    assert scene.kwargs_lens[0]["theta_E"] == pytest.approx(1.2815 * float(ratio[0] / ratio[1]), abs=1e-4)
    assert scene.kwargs_lens[0]["theta_E"] == pytest.approx(0.813, abs=1e-3)


def test_noise_of_model_1_has_the_published_variance() -> None:
    rng = np.random.default_rng(2)
    band = single_band(hr_instrument("deeplensesim-model-1"))
    for flux in (0.06, 0.2):
        exposure_s = 10 ** rng.uniform(3, 3.5, 400_000)
        noisy = flux + np.sqrt(flux / exposure_s) * rng.standard_normal(400_000) + 0.01 * rng.standard_normal(400_000)
        published = rng.poisson((exposure_s * noisy).clip(min=0)) / exposure_s
        ours = np.hypot(band.background_noise, band.flux_noise(flux))
        assert ours == pytest.approx(published.std(), rel=0.01)
    assert band.background_noise == pytest.approx(0.01, rel=1e-4)


def test_noise_of_models_2_and_3_is_lenstronomys() -> None:
    hst = HST("WFC3_F160W", "GAUSSIAN").kwargs_single_band()
    for preset, theirs in (("deeplensesim-model-2", EUCLID_OF_2022), ("deeplensesim-model-3", hst)):
        band, published = single_band(hr_instrument(preset)), SingleBand(**theirs)
        assert band.background_noise == pytest.approx(published.background_noise, rel=1e-9)
        assert band.flux_noise(3.0) == pytest.approx(published.flux_noise(3.0), rel=1e-9)


@pytest.mark.parametrize("preset", LEGACY_PRESETS)
def test_configuration_makes_pairs_of_the_preset(preset: str, tmp_path: Path) -> None:
    settings = load_config(Path(preset), tmp_path, [], None)
    check_sections(settings)
    assert settings.simulate.scene.model_dump()["preset"] == preset
    assert settings.simulate.scale == 2


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown preset 'model-4'; known: deeplensesim-model-1"):
        draw_legacy_scene("model-4", "cdm", np.random.default_rng(1))
    with pytest.raises(InputError, match=r"has no class 'wdm'.*axion, cdm, none"):
        draw_legacy_scene("deeplensesim-model-1", "wdm", np.random.default_rng(1))


def test_importing_it_loads_neither_torch_nor_lenstronomy() -> None:
    code = "import sys, simulate.legacy; sys.exit(any(name in sys.modules for name in ('torch', 'lenstronomy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
