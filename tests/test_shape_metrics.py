"""Shapes against closed forms of elliptical Gaussians and rings, anywhere in a pixel; images that are no galaxies."""

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad, quad
from scipy.optimize import brentq
from torch import Tensor

from simulate.errors import InputError
from sr.shape_metrics import FAINT_SHARE, arc_mask, light_shapes, shape_scores

SIZE = 96
WIDE = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
RNG = np.random.default_rng(0)


def gaussian(
    x: float, y: float, sigma: float = 6.0, axis_ratio: float = 0.6, angle: float = 0.4, flux: float = 1.0
) -> Tensor:
    """(1,1,96,96): an elliptical Gaussian of standard deviation sigma along its major axis, (x, y) off the middle."""
    axis = torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2
    dx, dy = axis[None, :] - x, axis[:, None] - y
    along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
    light = torch.exp(-0.5 * (along**2 + (across / axis_ratio) ** 2) / sigma**2)
    return (flux * light / (2 * np.pi * axis_ratio * sigma**2))[None, None]


def ellipticity(axis_ratio: float, angle: float) -> np.ndarray:
    """lenstronomy's e1, e2."""
    return (1 - axis_ratio) / (1 + axis_ratio) * np.array([np.cos(2 * angle), np.sin(2 * angle)])


def half_light_radius(sigma: float, axis_ratio: float, limit: float = np.inf) -> float:
    """Radius of the circle with half of the light that is within the isophote of semi-major axis `limit` sigma."""

    def share(radius: float) -> float:  # in the circle and the isophote, by angles at which both are round or not
        def of_angle(angle: float) -> float:
            stretched = np.cos(angle) ** 2 + (np.sin(angle) / axis_ratio) ** 2
            reach = min(radius**2 * stretched / sigma**2, limit**2)
            return (1 - np.exp(-reach / 2)) / stretched

        return quad(of_angle, 0, np.pi / 2, epsabs=1e-10)[0]

    return brentq(lambda radius: share(radius) - share(1e3) / 2, 0.01, 50 * sigma)


PLACES = [(0.0, 0.0), (0.5, 0.5), (0.27, -0.41), (3.13, -5.77)]


@pytest.mark.parametrize(("x", "y"), PLACES)
@pytest.mark.parametrize(("axis_ratio", "angle"), [(1.0, 0.0), (0.6, 0.4), (0.4, -1.1)])
def test_an_elliptical_gaussian_anywhere_in_a_pixel(x: float, y: float, axis_ratio: float, angle: float) -> None:
    shape = light_shapes(gaussian(x, y, axis_ratio=axis_ratio, angle=angle, flux=7.0), WIDE)
    assert float(shape.flux) == pytest.approx(7.0, rel=1e-9)
    np.testing.assert_allclose(shape.centroid[0], [x, y], atol=1e-9)
    np.testing.assert_allclose(shape.ellipticity[0], ellipticity(axis_ratio, angle), atol=1e-9)
    assert float(shape.half_light_radius) == pytest.approx(half_light_radius(6.0, axis_ratio), rel=4e-3)


def test_the_closed_form_of_the_half_light_radius_is_right() -> None:
    assert half_light_radius(3.0, 1.0) == pytest.approx(3.0 * np.sqrt(2 * np.log(2)), rel=1e-9)
    radius = half_light_radius(1.0, 0.5)
    inside = dblquad(
        lambda y, x: np.exp(-0.5 * (x**2 + 4 * y**2)) / np.pi,
        -radius,
        radius,
        lambda x: -np.sqrt(radius**2 - x**2),
        lambda x: np.sqrt(radius**2 - x**2),
    )[0]
    assert inside == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("x", "y"), PLACES)
def test_a_mask_by_brightness_keeps_the_ellipticity(x: float, y: float) -> None:
    """It cuts at an isophote; what is left is the pixels that it cuts off whole."""
    axis_ratio, angle, limit = 0.6, 0.4, 2.0
    image = gaussian(x, y, axis_ratio=axis_ratio, angle=angle)
    shape = light_shapes(image, image > image.max() * np.exp(-(limit**2) / 2))
    np.testing.assert_allclose(shape.centroid[0], [x, y], atol=0.03)
    np.testing.assert_allclose(shape.ellipticity[0], ellipticity(axis_ratio, angle), atol=5e-3)
    assert float(shape.half_light_radius) == pytest.approx(half_light_radius(6.0, axis_ratio, limit), rel=5e-3)


def test_a_ring_has_its_own_radius_and_no_ellipticity() -> None:
    radius = torch.hypot(*torch.meshgrid(*[torch.arange(SIZE, dtype=torch.float64) - 47.5] * 2, indexing="ij"))
    shape = light_shapes(torch.exp(-0.5 * ((radius - 20.3) / 2) ** 2)[None, None], WIDE)
    np.testing.assert_allclose(shape.ellipticity[0], 0, atol=1e-12)

    def flux(limit: float) -> float:
        return quad(lambda r: r * np.exp(-0.5 * ((r - 20.3) / 2) ** 2), 0, limit, points=[20.3])[0]

    expected = brentq(lambda limit: flux(limit) - flux(45.0) / 2, 10, 30)
    assert float(shape.half_light_radius) == pytest.approx(expected, rel=1e-3)


def test_scores_of_a_shifted_and_dimmed_and_stretched_galaxy() -> None:
    truth = gaussian(0.2, 0.1)
    turned = gaussian(0.2, 0.1, axis_ratio=0.8, angle=0.1)
    images = torch.cat([truth, gaussian(0.5, 0.5), 0.9 * truth, turned])
    truth, wide = truth.expand(4, -1, -1, -1), WIDE.expand(4, -1, -1, -1)
    scores = {name: values.numpy() for name, values in shape_scores(images, truth, wide, 0.05).items()}
    np.testing.assert_allclose(scores["arc_flux_error"], [0, 0, -0.1, 0], atol=1e-9)
    np.testing.assert_allclose(scores["centroid_offset_arcsec"], [0, 0.025, 0, 0], atol=1e-9)
    change = np.hypot(*(ellipticity(0.8, 0.1) - ellipticity(0.6, 0.4)))
    np.testing.assert_allclose(scores["ellipticity_error"], [0, 0, 0, change], atol=1e-9)
    larger = half_light_radius(6.0, 0.8) / half_light_radius(6.0, 0.6) - 1
    np.testing.assert_allclose(scores["half_light_radius_error"], [0, 0, 0, larger], atol=4e-3)


def test_noise_below_zero_biases_nothing() -> None:
    """Pixels below zero count, so the errors of many noisy images are around zero, and as small as the noise allows."""
    truth = gaussian(0.3, -0.2, flux=1000.0).expand(200, -1, -1, -1)
    sigma = 1.0
    mask = truth > sigma / 2
    images = truth + sigma * torch.from_numpy(RNG.normal(size=truth.shape))
    assert float((images[mask] < 0).double().mean()) > 0.05
    scores = shape_scores(images, truth, mask, 1.0)
    pixels = int(mask[0].sum())
    assert float(scores["arc_flux_error"].std()) == pytest.approx(sigma * pixels**0.5 / 1000, rel=0.15)
    for name in ("arc_flux_error", "half_light_radius_error"):
        assert abs(float(scores[name].mean())) < 4 * float(scores[name].std()) / 200**0.5 + 1e-4


@pytest.mark.parametrize("factor", [0.0, -1.0, 1e-30])
def test_images_that_are_no_galaxies_have_finite_scores(factor: float) -> None:
    truth = gaussian(0.0, 0.0)
    noise = torch.from_numpy(RNG.normal(size=truth.shape))
    cancelling = gaussian(-3, 0) - gaussian(3, 0)
    for image in (factor * truth, noise, noise * 1e12, cancelling, cancelling + 1e-9 * truth):
        for name, values in shape_scores(image, truth, truth > 1e-5, 0.05).items():
            assert values.isfinite().all(), name
        assert float(light_shapes(image, WIDE).ellipticity.norm()) <= 1 + 1e-12


# -- where the arcs are -----------------------------------------------------------------------------------------------


def test_the_mask_is_what_is_brighter_than_the_noise_of_its_lr_pixel() -> None:
    truth = torch.from_numpy(RNG.uniform(0, 1, (2, 1, 12, 12)))
    noise = torch.from_numpy(RNG.uniform(0.5, 2, (2, 1, 4, 4)))
    truth[0, 0, 0, 0], truth[1, 0, 0, 0] = 20.0, 20.0  # so that no image counts as faint
    real = torch.ones_like(truth, dtype=torch.bool)
    real[1, 0, :, :5] = False
    expected = truth.numpy() * 9 > np.repeat(np.repeat(noise.numpy(), 3, 2), 3, 3)
    truth[1, 0, 0, 8] = 30.0
    expected[1, 0, 0, 8] = True
    assert (arc_mask(truth, noise, real).numpy() == (expected & real.numpy())).all()


def test_faint_arcs_have_a_mask_of_their_own() -> None:
    truth = gaussian(0.0, 0.0)
    noise = torch.full((1, 1, SIZE // 2, SIZE // 2), 100.0)
    mask = arc_mask(truth, noise, WIDE)
    assert torch.equal(mask, truth > FAINT_SHARE * truth.max())
    assert mask.any()


def test_a_truth_without_light_is_refused() -> None:
    truth = torch.cat([gaussian(0, 0), torch.zeros(1, 1, SIZE, SIZE)])
    noise = torch.ones(2, 1, SIZE // 2, SIZE // 2)
    with pytest.raises(InputError, match=r"sample 1 .* no light"):
        arc_mask(truth, noise, WIDE.expand(2, -1, -1, -1))
