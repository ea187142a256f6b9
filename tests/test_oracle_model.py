"""The parametric model and its derivatives: against lenstronomy, finite differences and the priors themselves."""

import dataclasses

import numpy as np
import pytest
import torch

from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.lenstronomy_engine import render_pair
from simulate.priors import log_uniform, normal, uniform
from simulate.sample import draw_sample, instruments
from simulate.scene import Scene, SceneSettings
from simulate.sources.sersic import sersic_flux as numpy_sersic_flux
from sr.oracle.imaging import Imager, Optics
from sr.oracle.parameters import Parameters, prior_number, prior_value, scene_parameters, sersic_flux
from sr.oracle.substructure import DeflectionModes

CPU = torch.device("cpu")


def small_settings(
    lens_light: bool = False, classes: tuple[str, ...] = ("none",), hr_size: int = 64, **changes: object
) -> SimulateSettings:
    """Lenses of few pixels, 0.05 and 0.1 arcsec wide, that cost little to render."""
    light = {"magnitude": {"uniform": [20, 22]}, "radius_arcsec": 0.4, "sersic_index": {"uniform": [2, 4]}}
    scene = {
        "supersampling": 2,
        "macro": {"theta_e_arcsec": {"uniform": [0.7, 1.0]}},
        "source": {"magnitude": {"uniform": [21.5, 22.5]}, "radius_arcsec": {"uniform": [0.12, 0.25]}},
        "lens_light": light if lens_light else None,
        **changes,
    }
    content = {"hr_size": hr_size, "classes": classes, "scene": scene, "counts": {"train": 1, "val": 1, "test": 1}}
    return SimulateSettings.model_validate(content).resolve()


def small_optics(settings: SimulateSettings) -> Optics:
    hr, lr = instruments(settings)
    size = settings.hr_size // settings.scale
    return Optics(hr.psf, lr.psf, lr.pixel_scale_arcsec, size, settings.scale, settings.scene.supersampling)


def fine_imager(settings: SimulateSettings, deflection_step: int = 1) -> Imager:
    rays = settings.scene.supersampling * settings.scale
    parameters = scene_parameters(settings.scene)
    return Imager(parameters, small_optics(settings), rays, deflection_step, torch.float64, CPU)


def draw(settings: SimulateSettings, count: int, seed: int = 3) -> tuple[list[Scene], torch.Tensor]:
    """Scenes, and their parameters (count,P)."""
    scenes = [draw_sample(settings, seed, index, "train")[0] for index in range(count)]
    parameters = scene_parameters(settings.scene)
    return scenes, torch.tensor([parameters.of_scene(one) for one in scenes], dtype=torch.float64)


@pytest.mark.parametrize("prior", [normal(1.0, 0.2), uniform(-1.0, 3.0), log_uniform(0.1, 10.0)])
def test_a_standard_normal_number_has_the_priors_distribution(prior):
    drawn = prior_value(prior, torch.randn(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    rng = np.random.default_rng(2)
    wanted = np.sort([prior.draw(rng) for _ in range(20000)])
    shares = np.searchsorted(wanted, drawn.sort().values.numpy()) / 20000
    assert np.abs(shares - np.arange(20000) / 20000).max() < 0.02  # Kolmogorov-Smirnov: 0.0195 at a chance of 1e-3
    for u in (-3.0, -0.4, 0.0, 2.5):
        assert prior_number(prior, float(prior_value(prior, torch.tensor(u, dtype=torch.float64)))) == pytest.approx(u)


def test_a_value_outside_of_its_prior_is_far_but_finite():
    assert prior_number(uniform(0.0, 1.0), 1.1) == 6.0
    assert prior_number(normal(0.0, 0.1), -9.0) == -6.0


def test_fixed_priors_are_no_parameters():
    settings = small_settings(
        macro={"theta_e_arcsec": {"uniform": [0.7, 1.0]}, "slope": 2.0, "e1": {"uniform": [0.1, 0.1]}}
    )
    parameters = scene_parameters(settings.scene)
    assert "macro.slope" not in parameters.names
    assert parameters.fixed == {"macro.slope": 2.0, "macro.e1": 0.1}
    values = parameters.physical(torch.zeros(2, len(parameters.names)))
    assert values["macro.slope"].tolist() == [2.0, 2.0]


def test_the_flux_of_a_sersic_profile_is_that_of_the_simulator():
    found = sersic_flux(*torch.tensor([[0.1, 0.3], [0.8, 4.0]], dtype=torch.float64))
    np.testing.assert_allclose(found, [numpy_sersic_flux(0.1, 0.8), numpy_sersic_flux(0.3, 4.0)], rtol=1e-12)


@pytest.mark.parametrize("lens_light", [False, True])
def test_images_are_lenstronomys(lens_light):
    settings = small_settings(lens_light)
    scenes, u = draw(settings, 3)
    imager = fine_imager(settings)
    light = imager.light(u)
    for row, scene in enumerate(scenes):
        hr, lr = render_pair(scene, *instruments(settings), settings.hr_size, settings.scale, 2)
        np.testing.assert_allclose(imager.lr(light)[row], lr, atol=1e-6 * lr.max())
        np.testing.assert_allclose(imager.hr(light)[row], hr, atol=1e-6 * hr.max())


def test_derivatives_are_finite_differences():
    settings = small_settings(lens_light=True, hr_size=32)
    _, u = draw(settings, 2)
    imager = fine_imager(settings)
    field = torch.tensor([[0.02, -0.01], [0.0, 0.03]], dtype=torch.float64)[..., None, None]
    field = field.expand(2, 2, imager.grid.rays, imager.grid.rays)
    linear = imager.linearise(u, field)
    np.testing.assert_allclose(linear.light, imager.light(u, field), rtol=1e-12)
    step = 1e-5
    for place, name in enumerate(imager.parameters.names):
        move = torch.zeros_like(u)
        move[:, place] = step
        slope = (imager.light(u + move, field) - imager.light(u - move, field)) / (2 * step)
        for look in (imager.lr, imager.hr):
            wanted, found = look(slope).flatten(1), linear.derivatives(look)[..., place]
            tolerance = 1e-5 * float(wanted.abs().max())
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance, msg=f"{name} is wrong")


def test_interpolated_derivatives_of_deflections_are_good_enough():
    settings = small_settings()
    _, u = draw(settings, 3)
    exact, coarse = (fine_imager(settings, step).linearise(u).derivatives(fine_imager(settings).lr) for step in (1, 4))
    assert ((coarse - exact).norm(dim=1) / exact.norm(dim=1)).max() < 0.01


def test_a_field_deflects_as_its_modes_say():
    imager = fine_imager(small_settings())
    y, x = torch.meshgrid(*[torch.linspace(-1.55, 1.55, 32, dtype=torch.float64)] * 2, indexing="ij")
    modes = DeflectionModes(torch.stack([torch.stack([0.01 * x, 0.01 * y]), torch.stack([0.02 * y, 0 * y])]), 1.0)
    field = modes.field(torch.tensor([[1.0, 2.0]], dtype=torch.float64), imager.grid.rays)
    ray_x, ray_y = torch.broadcast_tensors(*imager.grid.xy)
    torch.testing.assert_close(field, torch.stack([0.01 * ray_x + 0.04 * ray_y, 0.01 * ray_y], 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"source": {"kind": "clumpy"}}, "clumpy"),
        ({"lensing": "quasar"}, "quasar"),
        ({"macro": {"multipoles": {}}}, "multipoles"),
    ],
)
def test_populations_that_are_not_parametric_are_refused(changes, found):
    with pytest.raises(InputError, match=found):
        scene_parameters(SceneSettings.model_validate(changes))
    with pytest.raises(InputError, match="preset deeplensesim-model-1"):
        scene_parameters(SceneSettings(preset="deeplensesim-model-1"))


def test_substructure_has_no_part_in_the_parameters():
    settings = small_settings(classes=("cdm",))
    scenes, u = draw(settings, 1)
    smooth = dataclasses.replace(
        scenes[0], lens_model_list=scenes[0].lens_model_list[:2], kwargs_lens=scenes[0].kwargs_lens[:2]
    )
    assert len(scenes[0].lens_model_list) > 3
    parameters: Parameters = scene_parameters(settings.scene)
    assert parameters.of_scene(smooth) == u[0].tolist()
