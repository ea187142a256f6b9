"""Cored torch profiles against lenstronomy, over what the populations draw and beyond."""

import numpy as np
import pytest
import torch
from lenstronomy.LensModel.lens_model import LensModel

from simulate.cosmology import CosmologySettings, LensGeometry
from simulate.populations import PopulationSettings, SubstructureContext, draw_substructure
from simulate.profiles.cored import CORED_PROFILES

RADIUS = np.geomspace(1e-3, 20, 120)


def _random_parameters(name: str, rng: np.random.Generator) -> dict[str, float]:
    if name == "ULDM":
        slope = rng.choice([8.0, rng.uniform(3.5, 10)])
        return {"kappa_0": 10 ** rng.uniform(-3, 1), "theta_c": 10 ** rng.uniform(-3, 0), "slope": slope}
    scale = 10 ** rng.uniform(-3, 0.3)
    shape = {"Rs": scale, "alpha_Rs": 10 ** rng.uniform(-5, -1), "r_core": scale * 10 ** rng.uniform(-3, -0.05)}
    truncation = rng.choice([10 ** rng.uniform(-1, 2), 1 + rng.choice([-1, 1]) * 10 ** rng.uniform(-3, -1)])
    return {**shape, "r_trunc": scale * truncation}


def _drawn_parameters(name: str) -> list[dict[str, float]]:
    kind = {"ULDM": "fdm", "TNFWC": "sidm"}[name]
    populations = PopulationSettings(sidm={"mean_count": 30, "mass_min_msun": 1e6}, fdm={"max_granules": 100})
    found = []
    for i in range(6):
        context = SubstructureContext(LensGeometry(CosmologySettings(), 0.3 + 0.08 * i, 1.5), 1.0, 3.4)
        drawn = draw_substructure(kind, populations, context, np.random.default_rng(i))
        found += [kwargs for model, kwargs in drawn.lens_models if model == name]
    return found


def _evaluate(name: str, kwargs: dict[str, float], dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    profile = CORED_PROFILES[name]
    parameters = [torch.tensor(kwargs[key], dtype=dtype) for key in profile.parameters]
    radius = torch.tensor(RADIUS, dtype=dtype)
    found = profile.deflection(radius, *parameters), profile.convergence(radius, *parameters)
    assert all(one.dtype == dtype for one in found)
    return found[0].double().numpy(), found[1].double().numpy()


@pytest.mark.parametrize("name", CORED_PROFILES)
def test_profiles_equal_lenstronomy(name: str) -> None:
    rng = np.random.default_rng(0)
    drawn = _drawn_parameters(name)
    assert len(drawn) > 5
    lens = LensModel([name])
    for kwargs in drawn + [_random_parameters(name, rng) for _ in range(100)]:
        centred = {**kwargs, "center_x": 0.0, "center_y": 0.0}
        alpha, kappa = _evaluate(name, kwargs, torch.float64)
        expected = lens.alpha(RADIUS, 0 * RADIUS, [centred])[0]
        np.testing.assert_allclose(alpha, expected, rtol=0, atol=1e-9)
        reference = lens.kappa(RADIUS, 0 * RADIUS, [centred])
        np.testing.assert_allclose(kappa, reference, rtol=1e-6, atol=1e-9 * reference.max())
        alpha_single, _ = _evaluate(name, kwargs, torch.float32)
        np.testing.assert_allclose(alpha_single, expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("ULDM", {"kappa_0": 0.4, "theta_c": 0.1, "slope": 8.0}),
        ("TNFWC", {"Rs": 0.1, "alpha_Rs": 0.01, "r_core": 0.1, "r_trunc": 0.1}),  # lenstronomy: 0 / 0
        ("TNFWC", {"Rs": 0.1, "alpha_Rs": 0.01, "r_core": 0.5, "r_trunc": 0.3}),
    ],
)
def test_convergence_is_the_divergence_of_the_deflection(name: str, kwargs: dict[str, float]) -> None:
    profile = CORED_PROFILES[name]
    parameters = [torch.tensor(kwargs[key], dtype=torch.float64) for key in profile.parameters]
    radius = torch.tensor(RADIUS, dtype=torch.float64, requires_grad=True)
    alpha = profile.deflection(radius, *parameters)
    (slope,) = torch.autograd.grad(alpha.sum(), radius)
    half_divergence = ((slope + alpha / radius) / 2).detach().numpy()
    kappa = profile.convergence(radius, *parameters).detach().numpy()
    np.testing.assert_allclose(kappa, half_divergence, rtol=1e-5, atol=1e-7 * kappa.max())
