"""The bounds against brute force and closed forms, the field of substructure, and the ceiling of a data set."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from simulate.errors import InputError
from simulate.generate import SimulateSettings, assemble
from simulate.sample import draw_sample, simulate_sample
from simulate.shards import Pairs
from simulate.torch_engine.direct_sum import scene_deflection
from sr.metrics import image_scores
from sr.oracle.ceiling import STRENGTHS, CeilingSettings, measure_ceiling
from sr.oracle.examine import examine
from sr.oracle.fit import FitSettings, Fitter
from sr.oracle.objective import Images
from sr.oracle.parameters import scene_parameters
from sr.oracle.substructure import DeflectionModes, draw_deflections, find_modes
from sr.trained_model import interpolation_model

from .test_oracle_model import CPU, draw, fine_imager, small_optics, small_settings


def slopes(render, count: int, step: float = 1e-5) -> np.ndarray:
    """(pixels, count) derivatives of `render(numbers)` at zero, by central differences."""
    columns = []
    for place in range(count):
        move = torch.zeros(1, count, dtype=torch.float64)
        move[0, place] = step
        columns.append(((render(move) - render(-move)) / (2 * step)).flatten().numpy())
    return np.stack(columns, 1)


def smooth_modes(cells: int, count: int, size_arcsec: float) -> DeflectionModes:
    """Waves of random directions."""
    generator = torch.Generator().manual_seed(4)
    y, x = torch.meshgrid(*[torch.linspace(-0.5, 0.5, cells, dtype=torch.float64)] * 2, indexing="ij")
    waves = torch.randn(count, 2, 3, generator=generator, dtype=torch.float64)
    angle = 8 * (waves[..., 0, None, None] * x + waves[..., 1, None, None] * y) + 3 * waves[..., 2, None, None]
    return DeflectionModes(size_arcsec * angle.sin(), 1.0)


def test_the_cramer_rao_value_is_the_error_of_the_best_estimate_in_a_linear_world():
    settings = small_settings(hr_size=32)
    _, u = draw(settings, 1)
    imager = fine_imager(settings)
    lr = imager.lr(imager.light(u))
    sigma = float(lr.max()) / 20
    found = examine(imager, Images(lr, torch.full_like(lr, sigma)), u)
    by_lr, by_hr = (
        slopes(lambda move, look=look: look(imager.light(u + move)), u.shape[1]) for look in (imager.lr, imager.hr)
    )
    rng, draws = np.random.default_rng(0), 4000
    truth = rng.standard_normal((draws, u.shape[1]))
    data = truth @ by_lr.T + sigma * rng.standard_normal((draws, len(by_lr)))
    # the posterior's maximum: least squares of the data and, as further data, of the prior
    design = np.concatenate([by_lr / sigma, np.eye(u.shape[1])])
    estimate = np.linalg.lstsq(design, np.concatenate([data / sigma, np.zeros_like(truth)], 1).T, rcond=None)[0].T
    square = (((estimate - truth) @ by_hr.T) ** 2).mean(1)
    scatter = square.std() / np.sqrt(draws)
    assert abs(square.mean() - float(found.hr_sigma.square().mean())) < 4 * scatter
    assert scatter < 0.02 * square.mean()


def test_the_field_bound_is_the_closed_form_of_the_best_linear_estimate():
    settings = small_settings(hr_size=32)
    _, u = draw(settings, 1)
    imager = fine_imager(settings)
    modes = smooth_modes(16, 12, 0.02)
    lr = imager.lr(imager.light(u))
    sigma = float(lr.max()) / 50
    found = examine(imager, Images(lr, torch.full_like(lr, sigma)), u, modes)

    def render(look, move):
        field = modes.field(move[:, u.shape[1] :], imager.grid.rays)
        return look(imager.light(u + move[:, : u.shape[1]], field))

    count = u.shape[1] + 12
    by_lr, by_hr = (slopes(lambda move, look=look: render(look, move), count, 1e-4) for look in (imager.lr, imager.hr))
    # E|x - x_hat|^2 = tr(S_xx - S_xy S_yy^-1 S_yx), S_yy = G G^T + N: the form in data space
    weights = np.linalg.solve(by_lr @ by_lr.T + sigma**2 * np.eye(len(by_lr)), by_lr @ by_hr.T)
    variance = (by_hr**2).sum(1) - ((by_hr @ by_lr.T) * weights.T).sum(1)
    np.testing.assert_allclose(found.hr_sigma.flatten() ** 2, variance, rtol=2e-3, atol=1e-4 * variance.max())
    without = examine(imager, Images(lr, torch.full_like(lr, sigma)), u)
    assert (found.hr_sigma >= 0.999 * without.hr_sigma).all()
    assert found.covariance.shape == without.covariance.shape


def test_modes_have_the_covariance_of_their_draws():
    generator = torch.Generator().manual_seed(0)
    wanted = smooth_modes(12, 5, 0.1).maps
    draws = torch.einsum("nk,kcyx->ncyx", torch.randn(4000, 5, generator=generator, dtype=torch.float64), wanted)
    weight = torch.ones(12, 12, dtype=torch.float64)
    weight[:, :2] = 0
    modes = find_modes(draws, weight, 60)
    assert modes.captured == pytest.approx(1, abs=1e-6)  # 5 maps under 8 symmetries are at most 40
    found, truth = modes.maps.flatten(1), wanted.flatten(1)
    power = (truth**2).sum(0).view(2, 12, 12)
    power = torch.stack([torch.rot90(one, turn, (1, 2)) for one in (power, power.flip(0).mT) for turn in range(4)])
    # the trace of both components is the same under a turn, which changes one into the other
    np.testing.assert_allclose((found**2).sum(0).view(2, 12, 12).sum(0), power.sum(1).mean(0), rtol=0.1)
    assert find_modes(draws, weight, 3).captured < 0.9


def test_modes_are_symmetric_as_vectors_are():
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 8, dtype=torch.float64)] * 2, indexing="ij")
    outwards = torch.stack([x, y])[None] * torch.tensor([1.0, -0.5])[:, None, None, None]
    modes = find_modes(outwards, torch.ones(8, 8, dtype=torch.float64), 1)
    assert modes.captured == pytest.approx(1)  # a radial field is the same under every symmetry
    torch.testing.assert_close(modes.maps[0].abs(), outwards[0].abs() * np.sqrt(1.25 / 2), atol=1e-12, rtol=0)


def test_drawn_deflections_are_those_of_the_substructure_alone():
    settings = small_settings(classes=("cdm",))
    found = draw_deflections(settings, "cdm", 16, 2, 7, CPU)
    scene, _ = draw_sample(settings, 7, settings.total_count + 1, "train")
    axis = (np.arange(16) - 7.5) * 0.2
    x, y = np.meshgrid(axis, axis)
    rest = replace(scene, lens_model_list=scene.lens_model_list[2:], kwargs_lens=scene.kwargs_lens[2:])
    np.testing.assert_allclose(found[1], np.stack(scene_deflection(rest, x, y)), atol=2e-5)


def simulated(settings: SimulateSettings, count: int) -> Pairs:
    return assemble(settings, [simulate_sample(settings, 11, index) for index in range(count)])


def test_the_ceiling_of_a_data_set():
    settings = small_settings(classes=("cdm", "none"), populations={"cdm": {"f_sub": 0.05}})
    pairs = simulated(settings, 4)
    how = CeilingSettings(scenes=4, fit=FitSettings(draws=256), modes=60, field_draws=200)
    data_range = float(pairs.hr.max())
    ceiling = measure_ceiling(pairs, settings, data_range, how, 1, CPU)
    scores = image_scores(ceiling.hr, pairs, data_range)["psnr_db"]
    bicubic = interpolation_model("bicubic", pairs).super_resolve(pairs.lr, pairs.lr_noise, CPU)
    smooth = pairs.label == 1
    assert (scores > image_scores(bicubic, pairs, data_range)["psnr_db"] + 5).all()
    assert ceiling.accepted[smooth].all()
    assert np.abs(scores - ceiling.cramer_rao_db)[smooth].max() < 8
    assert (ceiling.cramer_rao_field_db[~smooth] < ceiling.cramer_rao_db[~smooth]).all()
    np.testing.assert_array_equal(ceiling.cramer_rao_field_db[smooth], ceiling.cramer_rao_db[smooth])
    assert not ceiling.strength[smooth].any()
    assert set(ceiling.strength.tolist()) <= {0.0, *STRENGTHS}
    assert ceiling.captured["cdm"] > 0.97
    assert ceiling.hr.shape == pairs.hr.shape


def test_a_field_explains_what_a_macro_model_cannot():
    settings = small_settings(classes=("cdm",), populations={"cdm": {"f_sub": 0.05}})
    pairs = simulated(settings, 1)
    lr, noise = (torch.from_numpy(one[:, 0]).double() for one in (pairs.lr, pairs.lr_noise))
    generator = torch.Generator().manual_seed(5)
    fitter = Fitter(scene_parameters(settings.scene), small_optics(settings), FitSettings(draws=256), generator, CPU)
    smooth = fitter.fit(Images(lr, noise))
    modes = find_modes(draw_deflections(settings, "cdm", 32, 300, 3, CPU), torch.ones(32, 32).double(), 100)
    field = fitter.fit_field(Images(lr, noise), smooth, modes)
    assert field.cost.item() < smooth.cost.item()
    assert field.log_evidence.item() > smooth.log_evidence.item() + 5
    truth = torch.from_numpy(pairs.hr[:, 0]).double()
    assert (field.hr - truth).square().mean() < (smooth.hr - truth).square().mean()
    assert field.degrees_of_freedom.item() < smooth.degrees_of_freedom.item()


def test_drizzled_noise_is_refused():
    settings = small_settings()
    pairs = simulated(settings, 1)
    lr = settings.lr_instrument.model_copy(update={"drizzle": {"pixfrac": 0.8, "input_pixel_scale_arcsec": 0.1}})
    with pytest.raises(InputError, match="correlated"):
        measure_ceiling(pairs, settings.model_copy(update={"lr_instrument": lr}), 1.0, CeilingSettings(), 1, CPU)
