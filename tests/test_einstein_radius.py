"""theta_E by refitting: the truth, images that are larger or broader, and lenses of other parameters by lenstronomy."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from simulate.generate import SimulateSettings
from simulate.lenstronomy_engine import render_pair
from simulate.sample import draw_sample, instruments
from simulate.scene import Scene
from simulate.shards import Pairs
from sr.einstein_radius import EinsteinRadiusFits

from .conftest import blob_pairs
from .test_oracle_model import CPU, small_settings

COUNT = 3
SIGNAL_TO_NOISE = 100.0


def hr_image(scene: Scene, settings: SimulateSettings) -> np.ndarray:
    """(H,W) by lenstronomy."""
    return render_pair(scene, *instruments(settings), settings.hr_size, settings.scale, settings.scene.supersampling)[0]


def lens_pairs(settings: SimulateSettings, count: int = COUNT) -> Pairs:
    """Noiseless HR images; of the LR side only the noise is as it should be."""
    scenes = [draw_sample(settings, 3, index, "train")[0] for index in range(count)]
    rendered = [
        render_pair(scene, *instruments(settings), settings.hr_size, settings.scale, settings.scene.supersampling)
        for scene in scenes
    ]
    hr, lr = (np.stack(images)[:, None].astype("f4") for images in zip(*rendered, strict=True))
    noise = np.broadcast_to(lr.max((1, 2, 3), keepdims=True) / SIGNAL_TO_NOISE, lr.shape)
    names = tuple(scene.to_json() for scene in scenes)
    return replace(blob_pairs(count, lr_size=lr.shape[-1]), hr=hr, lr=lr, lr_noise=noise, name=names)


@pytest.fixture(scope="module")
def lenses() -> tuple[Pairs, EinsteinRadiusFits]:
    settings = small_settings()
    pairs = lens_pairs(settings)
    return pairs, EinsteinRadiusFits(pairs, settings, np.arange(COUNT), CPU)


def test_the_truth_has_its_own_einstein_radius(lenses: tuple[Pairs, EinsteinRadiusFits]) -> None:
    pairs, fits = lenses
    errors = fits.errors(pairs.hr)
    assert errors.shape == (COUNT,)
    assert np.abs(errors).max() < 1e-4


@pytest.mark.parametrize("growth", [0.98, 1.02])
def test_an_image_that_is_magnified_has_a_larger_one(lenses: tuple[Pairs, EinsteinRadiusFits], growth: float) -> None:
    """About the middle of the frame: lens and source with all lengths changed, which changes the image so."""
    pairs, fits = lenses
    images = []
    for name in pairs.name:
        scene = copy.deepcopy(Scene.from_json(name))
        for arguments in (*scene.kwargs_lens, *scene.kwargs_source):
            for length in ("theta_E", "center_x", "center_y", "R_sersic"):
                if length in arguments:
                    arguments[length] *= growth
        images.append(hr_image(scene, small_settings()))
    np.testing.assert_allclose(fits.errors(np.stack(images)[:, None].astype("f4")), growth - 1, atol=2e-4)


@pytest.mark.parametrize("change", [-0.05, 0.03])
def test_lenses_of_another_einstein_radius_by_lenstronomy(
    lenses: tuple[Pairs, EinsteinRadiusFits], change: float
) -> None:
    """theta_E alone is changed, and the fit has to tell it from slope, shear and the size of the source."""
    pairs, fits = lenses
    images = []
    for name in pairs.name:
        scene = Scene.from_json(name)
        lens = copy.deepcopy(scene.kwargs_lens)
        lens[scene.lens_model_list.index("EPL")]["theta_E"] *= 1 + change
        images.append(hr_image(replace(scene, kwargs_lens=lens), small_settings()))
    errors = fits.errors(np.stack(images)[:, None].astype("f4"))
    np.testing.assert_allclose(errors, change, atol=5e-4)


def test_a_blurred_image_has_an_error_far_above_that_of_the_truth(lenses: tuple[Pairs, EinsteinRadiusFits]) -> None:
    pairs, fits = lenses
    errors = fits.errors(gaussian_filter(pairs.hr, (0, 0, 1.5, 1.5)))
    assert np.abs(errors).min() > 1e-3
    assert np.abs(errors).max() < 0.2


def test_substructure_moves_the_einstein_radius_of_the_truth_a_little() -> None:
    settings = small_settings(classes=("cdm",))
    pairs = lens_pairs(settings)
    errors = EinsteinRadiusFits(pairs, settings, np.arange(COUNT), CPU).errors(pairs.hr)
    assert (np.abs(errors) > 1e-4).all()
    assert (np.abs(errors) < 0.05).all()


def test_the_light_of_the_lens_is_fitted_too() -> None:
    settings = small_settings(lens_light=True)
    pairs = lens_pairs(settings, 2)
    assert np.abs(EinsteinRadiusFits(pairs, settings, np.arange(2), CPU).errors(pairs.hr)).max() < 1e-4


def test_only_the_rows_that_are_asked_for_and_can_be_fitted_have_an_error(
    lenses: tuple[Pairs, EinsteinRadiusFits],
) -> None:
    pairs, fits = lenses
    settings = small_settings()
    images = pairs.hr * np.float32(1.01)
    whole = fits.errors(images)
    some = EinsteinRadiusFits(pairs, settings, np.array([2, 0]), CPU)
    found = some.errors(images)
    np.testing.assert_array_equal(np.isnan(found), [False, True, False])
    np.testing.assert_allclose(found[[0, 2]], whole[[0, 2]], rtol=1e-3, atol=1e-6)
    images[2, 0, 5, 5] = np.nan
    np.testing.assert_array_equal(np.isnan(some.errors(images)), [False, True, True])
    with pytest.raises(ValueError, match=r"expected the shape \(3, 1, 64, 64\), found \(3, 1, 32, 32\)"):
        some.errors(pairs.lr)


@pytest.mark.parametrize(
    "changes", [{"source": {"kind": "clumpy"}}, {"macro": {"theta_e_arcsec": 0.9, "slope": {"uniform": [1.9, 2.1]}}}]
)
def test_lenses_of_another_kind_have_none(changes: dict[str, object]) -> None:
    pairs = blob_pairs(COUNT, lr_size=32)
    fits = EinsteinRadiusFits(pairs, small_settings(**changes), np.arange(COUNT), CPU)
    assert np.isnan(fits.errors(pairs.hr)).all()


def test_fits_do_not_depend_on_their_neighbours(lenses: tuple[Pairs, EinsteinRadiusFits]) -> None:
    pairs, fits = lenses
    images = gaussian_filter(pairs.hr, (0, 0, 1, 1))
    alone = [EinsteinRadiusFits(pairs, small_settings(), np.array([row]), CPU).errors(images)[row] for row in range(3)]
    np.testing.assert_allclose(fits.errors(images), alone, rtol=1e-3)
    assert torch.is_grad_enabled()
