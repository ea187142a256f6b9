"""Images of a point against closed forms, lenstronomy's own solver, and a search so fine that it can miss nothing."""

from collections.abc import Callable

import numpy as np
import pytest
from lenstronomy.LensModel.lens_model import LensModel
from lenstronomy.LensModel.Solver.lens_equation_solver import LensEquationSolver

from simulate.cosmology import CosmologySettings, LensGeometry
from simulate.lens_equation import PointImages, find_point_images
from simulate.populations import CDMSettings, SubstructureContext
from simulate.populations.cdm import draw_cdm

LensModels = list[tuple[str, dict[str, float]]]
SMOOTH: LensModels = [
    ("SIE", {"theta_E": 1.1, "e1": 0.12, "e2": -0.07, "center_x": 0.02, "center_y": -0.01}),
    ("SHEAR", {"gamma1": 0.03, "gamma2": 0.02}),
]


def by_lenstronomy(models: LensModels) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    lens, kwargs = LensModel([name for name, _ in models]), [kwargs for _, kwargs in models]
    return lambda x, y: lens.alpha(x, y, kwargs)


def assert_same_images(found: PointImages, models: LensModels, source: tuple[float, float], count: int) -> None:
    """Positions to 1e-6", magnifications to 1e-4 of lenstronomy's."""
    lens, kwargs = LensModel([name for name, _ in models]), [kwargs for _, kwargs in models]
    x, y = LensEquationSolver(lens).image_position_from_source(
        *source, kwargs, min_distance=0.01, search_window=5, precision_limit=1e-12, magnification_limit=0.01
    )
    assert len(x) == len(found.x_arcsec) == count
    magnification = lens.magnification(x, y, kwargs)
    nearest = np.abs((x + 1j * y)[:, None] - (found.x_arcsec + 1j * found.y_arcsec)).argmin(0)
    assert sorted(nearest) == list(range(count))
    np.testing.assert_allclose(found.x_arcsec, x[nearest], atol=1e-6)
    np.testing.assert_allclose(found.y_arcsec, y[nearest], atol=1e-6)
    np.testing.assert_allclose(found.magnification, magnification[nearest], rtol=1e-4)


@pytest.mark.parametrize("distance", [0.01, 0.3, 2.0])
def test_point_mass_has_its_two_images(distance: float) -> None:
    """theta = (beta +- sqrt(beta^2 + 4 theta_E^2)) / 2, mu = 1 / (1 - (theta_E / theta)^4)."""
    angle = 0.6
    found = find_point_images(
        by_lenstronomy([("POINT_MASS", {"theta_E": 0.9, "center_x": 0.0, "center_y": 0.0})]),
        distance * np.cos(angle),
        distance * np.sin(angle),
        3.4,
        minimum_magnification=1e-4,
    )
    theta = (distance + np.array([1, -1]) * np.sqrt(distance**2 + 4 * 0.9**2)) / 2
    np.testing.assert_allclose(found.x_arcsec, theta * np.cos(angle), atol=1e-9)
    np.testing.assert_allclose(found.y_arcsec, theta * np.sin(angle), atol=1e-9)
    np.testing.assert_allclose(found.magnification, 1 / (1 - (0.9 / theta) ** 4), rtol=1e-6)


@pytest.mark.parametrize(("distance", "count"), [(0.4, 2), (0.999, 2), (1.2, 1)])
def test_isothermal_sphere_has_two_images_inside_its_cut_and_one_outside(distance: float, count: int) -> None:
    """theta = beta +- theta_E, mu = 1 / (1 - theta_E / |theta|); the faint image at the cut is found too."""
    found = find_point_images(
        by_lenstronomy([("SIS", {"theta_E": 1.0, "center_x": 0.3, "center_y": 0.1})]),
        0.3 + distance,
        0.1,
        3.4,
        minimum_magnification=1e-4,
    )
    theta = np.array([distance + 1, distance - 1])[:count]
    np.testing.assert_allclose(found.x_arcsec, 0.3 + theta, atol=1e-9)
    np.testing.assert_allclose(found.y_arcsec, 0.1, atol=1e-9)
    np.testing.assert_allclose(found.magnification, 1 / (1 - 1 / theta / np.sign(theta)), rtol=1e-5)


def test_faint_images_are_left_out() -> None:
    lens = by_lenstronomy([("SIS", {"theta_E": 1.0, "center_x": 0.0, "center_y": 0.0})])
    assert len(find_point_images(lens, 0.98, 0.0, 3.4).x_arcsec) == 2  # the second has magnification -0.0204
    assert len(find_point_images(lens, 0.98, 0.0, 3.4, minimum_magnification=0.03).x_arcsec) == 1


@pytest.mark.parametrize(
    ("source", "count"), [((0.05, 0.02), 4), ((0.02, -0.015), 4), ((0.3, -0.2), 2), ((-0.1, 0.35), 2)]
)
def test_smooth_lens_equals_lenstronomys_solver(source: tuple[float, float], count: int) -> None:
    assert_same_images(find_point_images(by_lenstronomy(SMOOTH), *source, 2.5), SMOOTH, source, count)


@pytest.mark.parametrize(
    ("seed", "source", "count"), [(1, (0.05, 0.02), 4), (2, (0.25, -0.1), 2), (3, (0.02, 0.03), 4)]
)
def test_lens_with_subhalos_equals_lenstronomys_solver(seed: int, source: tuple[float, float], count: int) -> None:
    context = SubstructureContext(LensGeometry(CosmologySettings(), 0.5, 1.5), 1.1, 2.5)
    settings = CDMSettings(f_sub=0.08, mass_min_msun=3e8)
    halos = draw_cdm(settings, context, np.random.default_rng(seed)).lens_models[:30]
    assert len(halos) == 30
    models = [*SMOOTH, *halos]
    found = find_point_images(by_lenstronomy(models), *source, 2.5)
    assert_same_images(found, models, source, count)
    smooth = find_point_images(by_lenstronomy(SMOOTH), *source, 2.5)
    assert np.abs(found.x_arcsec[0] - smooth.x_arcsec).min() > 1e-4  # the subhalos do move the images


def test_nothing_is_missed() -> None:
    """Near caustics and heavy subhalos, a search on a grid four times as fine finds the same images."""
    rng = np.random.default_rng(8)
    context = SubstructureContext(LensGeometry(CosmologySettings(), 0.5, 1.5), 1.1, 2.0)
    counts = []
    for _ in range(12):
        halos = draw_cdm(CDMSettings(f_sub=0.1, mass_min_msun=2e9), context, rng).lens_models
        deflection = by_lenstronomy([*SMOOTH, *halos])
        source = rng.normal(0, 0.1, 2)
        quick, fine = (find_point_images(deflection, *source, 2.2, cells=cells) for cells in (50, 200))
        assert len(quick.x_arcsec) == len(fine.x_arcsec)
        np.testing.assert_allclose(quick.magnification, fine.magnification, rtol=1e-6)
        counts.append(len(fine.x_arcsec))
    assert {2, 4} <= set(counts)
