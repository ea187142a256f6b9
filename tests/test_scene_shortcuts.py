"""The classes differ in substructure alone: total flux, ring radius or macro-model by themselves tell nothing.

Drawn scenes, no images: the flux is the source's own, the ring radius follows from the mean deflection on the ring.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from simulate.populations import POPULATIONS
from simulate.profiles.cored import CORED_PROFILES
from simulate.profiles.macro import MACRO_PROFILES
from simulate.profiles.radial import RADIAL_PROFILES
from simulate.scene import Scene, SceneSettings, draw_scene
from simulate.sources.sersic import sersic_flux

COUNT = 600
SIGMA = np.sqrt((2 * COUNT + 1) / (12 * COUNT**2))
"""Of the AUC of two undecidable classes of COUNT each (Hanley & McNeil 1982, Radiology 143, 29)."""
CLASSES = sorted(set(POPULATIONS) - {"none", "pyhalo"})


def draw_scenes(kind: str, settings: SceneSettings) -> list[Scene]:
    seed = sorted(POPULATIONS).index(kind)
    return [draw_scene(kind, settings, 3.4, np.random.default_rng([29, seed, index])) for index in range(COUNT)]


@cache
def default_scenes(kind: str) -> list[Scene]:
    # Few granules make the same convergence field in the mean and in its variance, and are drawn quickly.
    return draw_scenes(kind, SceneSettings(populations={"fdm": {"max_granules": 200}}))


def source_flux(scenes: Sequence[Scene]) -> np.ndarray:
    sources = [scene.kwargs_source[0] for scene in scenes]
    return np.log([[one["amp"] * sersic_flux(one["R_sersic"], one["n_sersic"])] for one in sources])


def macro_parameters(scenes: Sequence[Scene]) -> np.ndarray:
    return np.array([[*scene.kwargs_lens[0].values(), *scene.kwargs_lens[1].values()] for scene in scenes])


def radial_deflection(name: str, kwargs: list[dict[str, float]], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """(M,) deflection of M models of one profile away from the mean of the points (M,24), on average over them."""

    def columns(names: Sequence[str]) -> list[torch.Tensor]:
        return [torch.tensor([[one[parameter]] for one in kwargs], dtype=torch.float64) for parameter in names]

    if name in MACRO_PROFILES:
        macro = MACRO_PROFILES[name]
        alpha_x, alpha_y = macro.deflection(x, y, *columns(macro.parameters))
    else:
        profile = {**RADIAL_PROFILES, **CORED_PROFILES}[name]
        center_x, center_y = columns(("center_x", "center_y"))
        radius = torch.hypot(x - center_x, y - center_y)
        size = profile.deflection(radius, *columns(profile.parameters)) / radius
        alpha_x, alpha_y = size * (x - center_x), size * (y - center_y)
    outward_x, outward_y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return ((alpha_x * outward_x + alpha_y * outward_y) / torch.hypot(outward_x, outward_y)).mean(1)


def ring_radius(scenes: Sequence[Scene]) -> np.ndarray:
    """(N,1) radius inside which the mean convergence is one.

    What all but the power law adds inside theta_E follows from its mean radial deflection there (Gauss); it counts as
    uniform, which is right to first order. The power law's own mean convergence is (r / theta_E)^(1 - gamma).
    """
    names = ("theta_E", "gamma", "center_x", "center_y")
    theta_e, gamma, center_x, center_y = (np.array([one.kwargs_lens[0][name] for one in scenes]) for name in names)
    angle = np.arange(24) * (2 * np.pi / 24)
    x, y = theta_e[:, None] * np.cos(angle) + center_x[:, None], theta_e[:, None] * np.sin(angle) + center_y[:, None]
    found: dict[str, list[tuple[int, dict[str, float]]]] = defaultdict(list)
    for row, scene in enumerate(scenes):
        for name, kwargs in zip(scene.lens_model_list[1:], scene.kwargs_lens[1:], strict=True):
            found[name].append((row, kwargs))
    convergence = np.zeros(len(scenes))
    for name, models in found.items():
        rows = [row for row, _ in models]
        radial = radial_deflection(name, [kwargs for _, kwargs in models], torch.tensor(x[rows]), torch.tensor(y[rows]))
        np.add.at(convergence, rows, radial.numpy() / theta_e[rows])
    return (theta_e * (1 - convergence) ** (-1 / (gamma - 1)))[:, None]


def area_under_curve(features: Callable[[Sequence[Scene]], np.ndarray], one: list[Scene], other: list[Scene]) -> float:
    """Mean over five folds of the AUC of a logistic regression on the features, their squares and products."""
    model = make_pipeline(StandardScaler(), PolynomialFeatures(2), LogisticRegression(max_iter=2000))
    values, label = np.concatenate([features(one), features(other)]), np.repeat([0, 1], COUNT)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(model, values, label, cv=folds, scoring="roc_auc").mean())


@pytest.mark.parametrize("features", [source_flux, ring_radius, macro_parameters])
@pytest.mark.parametrize("kind", CLASSES)
def test_shortcuts_are_at_chance(kind: str, features: Callable[[Sequence[Scene]], np.ndarray]) -> None:
    found = area_under_curve(features, default_scenes(kind), default_scenes("none"))
    assert found == pytest.approx(0.5, abs=3 * SIGMA)


@pytest.mark.parametrize("kind", CLASSES)
def test_rings_are_as_wide_as_without_substructure(kind: str) -> None:
    """On average, to within three standard errors: a few parts in ten thousand."""
    scenes = default_scenes(kind)
    wider = ring_radius(scenes)[:, 0] / [scene.kwargs_lens[0]["theta_E"] for scene in scenes] - 1
    assert 0 < wider.std() / np.sqrt(COUNT) < 1e-3
    assert abs(wider.mean()) < 3 * wider.std() / np.sqrt(COUNT)


@pytest.mark.parametrize("compensated", [True, False])
def test_ring_radius_would_tell_the_class_without_compensation(compensated: bool) -> None:
    """The check can fail: with a tenth of the mass in subhalos, on top of the macro-model, it does."""
    populations = {"cdm": {"f_sub": 0.1, "mass_min_msun": 1e9}}
    scenes = draw_scenes("cdm", SceneSettings(compensate_mean_mass=compensated, populations=populations))
    found = area_under_curve(ring_radius, scenes, default_scenes("none"))
    assert abs(found - 0.5) < 3 * SIGMA if compensated else found > 0.5 + 5 * SIGMA


def test_another_prior_of_the_macro_model_would_tell_the_class() -> None:
    scenes = draw_scenes("cdm", SceneSettings(macro={"e1": {"normal": [0.0, 0.15]}}))
    assert area_under_curve(macro_parameters, scenes, default_scenes("none")) > 0.5 + 3 * SIGMA


def test_ring_radius_follows_the_added_mass() -> None:
    """Of a sheet: 1 / (1 - kappa) times as wide. Isothermal spheres inside each other add their radii."""
    round_lens = {name: 0.0 for name in ("e1", "e2", "gamma1", "gamma2", "center_x_arcsec", "center_y_arcsec")}
    settings = SceneSettings(macro={**round_lens, "theta_e_arcsec": 1.0, "slope": 2.0})
    scenes = [draw_scene("none", settings, 3.4, np.random.default_rng(0)) for _ in range(2)]
    scenes[0].lens_model_list.append("CONVERGENCE")
    scenes[0].kwargs_lens.append({"kappa": 0.05, "ra_0": 0.0, "dec_0": 0.0})
    scenes[1].lens_model_list.append("SIS")
    scenes[1].kwargs_lens.append({"theta_E": 0.02, "center_x": 0.0, "center_y": 0.0})
    sheet, sphere = ring_radius(scenes)[:, 0]
    assert sheet == pytest.approx(1 / 0.95, rel=1e-9)
    assert sphere == pytest.approx(1.02, abs=1e-3)
