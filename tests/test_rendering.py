"""Images against lenstronomy's own ImageModel, and the classic bugs: pixel response, half-pixel shifts, noise."""

from dataclasses import replace

import numpy as np
import pytest
from lenstronomy.SimulationAPI.ObservationConfig.Euclid import Euclid
from scipy import stats

from simulate.generate import SimulateSettings
from simulate.instruments import Instrument, PSFSettings, load_instrument, noise_sigma_njy, psf_kernel
from simulate.lenstronomy_engine import render_pair, render_reference
from simulate.sample import observe_sample, render_scenes
from simulate.scene import Scene, SceneSettings, draw_scene

HR, LR = load_instrument("hst-acs-f814w"), load_instrument("euclid-vis")


def make_scene(kind: str, index: int = 0, **settings: object) -> Scene:
    return draw_scene(kind, SceneSettings(**settings), 2.4, np.random.default_rng([11, index]))


def render(scene: Scene, supersampling: int = 2, seed: int = 0, engine: str = "torch") -> dict[str, np.ndarray]:
    settings = SimulateSettings(engine=engine, scene={"supersampling": supersampling}).resolve()
    images = render_scenes(settings, [scene])[0]
    sample = observe_sample(settings, 0, scene, np.random.default_rng(seed), images)
    return {name: sample[name][0] for name in ("hr", "hr_noisy", "lr", "lr_noise")}


@pytest.mark.parametrize("kind", ["axion", "cdm", "none"])
def test_stored_scene_renders_to_the_same_image_in_lenstronomy(kind: str) -> None:
    scene = make_scene(kind, lens_light={"magnitude": 20.0})
    stored = Scene.from_json(scene.to_json())
    assert stored == scene
    reference, lr_reference = render_reference(stored, HR, 96, 2), render_reference(stored, LR, 48, 4)
    hr, lr = render_pair(stored, HR, LR, 96, 2, 2)
    np.testing.assert_allclose(hr, reference, atol=1e-9 * reference.max())
    np.testing.assert_allclose(lr, lr_reference, atol=1e-9 * lr_reference.max())
    for engine in ("torch", "lenstronomy"):
        pair = render(scene, engine=engine)
        np.testing.assert_allclose(pair["hr"], reference, atol=1e-5 * reference.max())
        residual = (pair["lr"] - lr_reference) / pair["lr_noise"]
        assert stats.kstest(residual.ravel(), "norm").pvalue > 1e-3


def test_reference_takes_kernels_of_any_size() -> None:
    """Nine rays along a pixel: lenstronomy wants kernels that fill an odd number of pixels."""
    scene = make_scene("none")
    wide = LR.model_copy(update={"pixel_scale_arcsec": 0.15, "psf": PSFSettings(fwhm_arcsec=0.2333)})
    reference = render_reference(scene, wide, 32, 9)
    lr = render_pair(scene, HR, wide, 96, 3, 3)[1]
    np.testing.assert_allclose(lr, reference, atol=1e-9 * reference.max())


def test_supersampling_is_converged() -> None:
    """The default of four rays along a pixel is within 0.3 % (L2) of twelve, and closer than two rays are."""
    scene = make_scene("cdm")
    fine = render(scene, 12)["hr"]
    errors = [np.linalg.norm(render(scene, rays)["hr"] - fine) / np.linalg.norm(fine) for rays in (2, 4)]
    assert SceneSettings().supersampling == 4
    assert errors[1] < 3e-3
    assert errors[1] < errors[0]


def test_both_instruments_see_the_same_flux_at_the_same_place() -> None:
    scene = make_scene("none", lens_light={"magnitude": 19.0})
    hr = render(scene)["hr"]
    lr = render_reference(scene, LR, 48, 4)
    assert lr.sum() == pytest.approx(hr.sum(), rel=2e-3)
    binned = hr.reshape(48, 2, 48, 2).sum((1, 3))
    rows, columns = np.indices(lr.shape)
    for axis in (rows, columns):
        assert (lr * axis).sum() / lr.sum() == pytest.approx((binned * axis).sum() / binned.sum(), abs=5e-3)


def test_pixel_response_enters_once() -> None:
    """A tiny source through a Gaussian PSF: variance = PSF variance + pixel width^2 / 12, and nothing more."""
    source = {"magnitude": 22, "radius_arcsec": 0.004, "sersic_index": 0.5, "e1": 0, "e2": 0}
    centre = {"center_x_arcsec": 0.0, "center_y_arcsec": 0.0}
    macro = {"theta_e_arcsec": 0.001, "slope": 2.0, "e1": 0, "e2": 0, "gamma1": 0, "gamma2": 0, **centre}
    light = {**source, **centre}
    scene = draw_scene("none", SceneSettings(source=light, macro=macro), 2.4, np.random.default_rng(0))
    hidden = replace(
        scene,
        source_model_list=[],
        kwargs_source=[],
        lens_light_model_list=scene.source_model_list,
        kwargs_lens_light=scene.kwargs_source,
    )
    image = render(hidden, supersampling=10)["hr"]
    axis = (np.arange(96) - 47.5) * 0.05
    variance = (image.sum(0) * axis**2).sum() / image.sum()
    own = (np.array(0.09) / 2.354820045) ** 2 + 0.05**2 / 12
    tiny = 0.004**2 / (2 * 0.6931)  # a Gaussian with this half-light radius
    assert variance == pytest.approx(own + tiny, rel=0.01)


def test_noise_is_that_of_the_instrument() -> None:
    flux = np.array([[0.0, 10.0, 1000.0]])
    electrons = flux / LR.nanojansky_per_electron_s * 566 * 4
    sky = 10 ** (-0.4 * (22.3 - 25.72)) * 0.1**2 * 566 * 4
    by_hand = np.sqrt(electrons + sky + 4 * 4.2**2) / (566 * 4) * LR.nanojansky_per_electron_s
    np.testing.assert_allclose(noise_sigma_njy(LR, flux), by_hand, rtol=1e-9)
    # Two realisations differ, the same seed repeats.
    scene = make_scene("none")
    first, again, other = (render(scene, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first["lr"], again["lr"])
    assert not np.array_equal(first["lr"], other["lr"])
    residual = (first["hr_noisy"] - first["hr"]) / noise_sigma_njy(HR, first["hr"])
    assert stats.kstest(residual.ravel(), "norm").pvalue > 1e-3


def test_euclid_is_lenstronomys_configuration() -> None:
    theirs = Euclid(band="VIS").kwargs_single_band()
    assert LR.exposure_time_s == theirs["exposure_time"]
    assert LR.num_exposures == theirs["num_exposures"]
    assert LR.magnitude_zero_point == theirs["magnitude_zero_point"]
    assert LR.sky_brightness_mag_arcsec2 == theirs["sky_brightness"]
    assert LR.read_noise_electrons == theirs["read_noise"]
    assert LR.psf.fwhm_arcsec == theirs["seeing"]
    assert LR.pixel_scale_arcsec == pytest.approx(theirs["pixel_scale"], rel=0.011)


def test_hsc_reaches_the_depth_of_the_survey() -> None:
    """5 sigma in a 2" aperture: i = 25.9 (Aihara et al. 2018)."""
    hsc = load_instrument("hsc-i")
    pixels = np.pi / hsc.pixel_scale_arcsec**2
    sigma = noise_sigma_njy(hsc, np.zeros((1, 1)))[0, 0] * np.sqrt(pixels)
    assert 31.4 - 2.5 * np.log10(5 * sigma) == pytest.approx(25.9, abs=0.15)


@pytest.mark.parametrize(
    "psf", [PSFSettings(fwhm_arcsec=0.2), PSFSettings(kind="moffat", fwhm_arcsec=0.6, moffat_beta=3.0)]
)
def test_psf_is_normalised_centred_and_as_wide_as_it_says(psf: PSFSettings) -> None:
    kernel = psf_kernel(psf, 0.02)
    assert kernel.shape[0] % 2 == 1
    assert kernel.sum() == pytest.approx(1)
    assert np.array_equal(kernel, kernel[::-1, ::-1])
    middle = len(kernel) // 2
    profile = kernel[middle] / kernel[middle, middle]
    width = 2 * np.interp(-0.5, -profile[middle:], np.arange(middle + 1) * 0.02)
    assert width == pytest.approx(psf.fwhm_arcsec, rel=0.01)


def test_every_shipped_instrument_loads() -> None:
    settings = SimulateSettings(hr_instrument="hst-acs-f814w-0042", lr_instrument="hsc-i", scale=4).resolve()
    assert isinstance(settings.lr_instrument, Instrument)
    assert settings.lr_instrument.psf.kind == "moffat"
