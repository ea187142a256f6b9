"""The fit: what it finds from prior starts, its chi^2, its errors, and what it says of images it cannot explain."""

import numpy as np
import pytest
import torch

from sr.oracle.descent import levenberg_marquardt
from sr.oracle.examine import examine, physical_covariance
from sr.oracle.fit import FitSettings, Fitter
from sr.oracle.objective import Images
from sr.oracle.parameters import scene_parameters

from .test_oracle_model import CPU, draw, small_optics, small_settings


def make_fitter(lens_light: bool = False, **settings: int) -> Fitter:
    simulation = small_settings(lens_light)
    how = FitSettings(**{"draws": 256, **settings})
    generator = torch.Generator().manual_seed(5)
    return Fitter(scene_parameters(simulation.scene), small_optics(simulation), how, generator, CPU)


@pytest.fixture(scope="module")
def fitter() -> Fitter:
    return make_fitter()


def noisy_images(fitter: Fitter, u: torch.Tensor, signal_to_noise: float, seed: int = 0) -> tuple[Images, torch.Tensor]:
    """LR images of this peak signal-to-noise, and the true HR images."""
    light = fitter.fine.light(u)
    lr = fitter.fine.lr(light)
    sigma = (lr.amax((1, 2), keepdim=True) / signal_to_noise).expand_as(lr)
    noise = sigma * torch.randn(lr.shape, dtype=lr.dtype, generator=torch.Generator().manual_seed(seed))
    return Images(lr + noise, sigma), fitter.fine.hr(light)


class Bowl:
    """|A u - b|^2 + |u|^2, or that of a bent valley: (10 (u2 - u1^2), 1 - u1)."""

    def __init__(self, matrix: torch.Tensor | None = None, target: torch.Tensor | None = None) -> None:
        self.matrix, self.target = matrix, target

    def _linear(self, u: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.matrix is not None:
            prior = torch.eye(u.shape[1], dtype=u.dtype).expand(len(u), -1, -1)
            residual = (self.matrix[rows] @ u[..., None]).squeeze(-1) - self.target[rows]
            return torch.cat([residual, u], 1), torch.cat([self.matrix[rows], prior], 1)
        first, second = u.unbind(1)
        zero = torch.zeros_like(first)
        slopes = [torch.stack([-20 * first, 10 + zero], 1), torch.stack([zero - 1, zero], 1)]
        return torch.stack([10 * (second - first**2), 1 - first], 1), torch.stack(slopes, 1)

    def cost(self, u: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return self._linear(u, rows)[0].square().sum(1)

    def normal_equations(self, u, rows):
        residual, slope = self._linear(u, rows)
        return residual.square().sum(1), (slope.mT @ residual[..., None]).squeeze(-1), slope.mT @ slope


def test_descent_solves_linear_problems_side_by_side():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(4, 9, 3, dtype=torch.float64, generator=generator)
    target = torch.randn(4, 9, dtype=torch.float64, generator=generator)
    found = levenberg_marquardt(Bowl(matrix, target), torch.zeros(4, 3, dtype=torch.float64), 30, 1e-16)
    normal = matrix.mT @ matrix + torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(found.u, torch.linalg.solve(normal, (matrix.mT @ target[..., None])[..., 0]))
    assert found.converged.all()


def test_descent_follows_a_bent_valley():
    starts = torch.tensor([[-1.2, 1.0], [2.0, -3.0]], dtype=torch.float64)
    found = levenberg_marquardt(Bowl(), starts, 100, 1e-12)
    torch.testing.assert_close(found.u, torch.ones(2, 2, dtype=torch.float64), atol=1e-4, rtol=0)
    stopped = levenberg_marquardt(Bowl(), starts, 1, 1e-12)
    assert not stopped.converged.any()
    assert (stopped.cost <= Bowl().cost(starts, torch.arange(2))).all()


def test_noiseless_lenses_are_recovered_from_prior_starts(fitter):
    _, u = draw(small_settings(), 2)
    images, truth = noisy_images(fitter, u, 1e5)
    clean = Images(fitter.fine.lr(fitter.fine.light(u)), images.noise)
    found = fitter.fit(clean)
    error = (found.hr - truth).square().mean((1, 2)).sqrt() / truth.amax((1, 2))
    assert error.max() < 1e-5
    assert (found.u - u).abs().max() < 0.05  # in standard deviations of the priors, which pull


def test_noisy_fits_have_the_chi2_and_the_errors_that_they_claim(fitter):
    _, u = draw(small_settings(), 10, seed=8)
    images, truth = noisy_images(fitter, u, 200.0)
    found = fitter.fit(images)
    assert found.accepted.all()
    pixels, count = images.lr[0].numel(), len(u)
    determined = pixels - found.degrees_of_freedom
    assert (determined > 8).all()
    assert (determined < u.shape[1]).all()
    ratio = found.chi2.sum() / found.degrees_of_freedom.sum()
    assert abs(ratio - 1) < 4 * np.sqrt(2 / (pixels * count))
    # chi^2 of all parameters together, with the whole covariance, has as many degrees of freedom as they are
    step = found.u - u
    distance = (step * torch.linalg.solve(found.covariance, step)).sum(1)
    assert abs(distance.mean() / u.shape[1] - 1) < 4 * np.sqrt(2 / (u.shape[1] * count))
    pulls = (found.hr - truth) / found.hr_sigma
    assert 0.7 < pulls.square().mean().sqrt() < 1.3
    repeated = fitter.fit(images)
    torch.testing.assert_close(repeated.u, found.u, atol=0, rtol=0)


def test_the_light_of_the_lens_is_told_from_the_source():
    fitter = make_fitter(lens_light=True)
    _, u = draw(small_settings(lens_light=True), 2, seed=4)
    images, truth = noisy_images(fitter, u, 100.0)
    found = fitter.fit(images)
    assert found.accepted.all()
    pulls = (found.hr - truth) / found.hr_sigma
    assert pulls.square().mean().sqrt() < 2


def test_pixels_of_infinite_noise_do_not_count(fitter):
    _, u = draw(small_settings(), 1, seed=2)
    images, _ = noisy_images(fitter, u, 50.0)
    noise = images.noise.clone()
    noise[:, :4] = torch.inf
    spoilt = images.lr.clone()
    spoilt[:, :4] = 1e4
    first, second = fitter.fit(Images(images.lr, noise)), fitter.fit(Images(spoilt, noise))
    torch.testing.assert_close(first.u, second.u, atol=0, rtol=0)
    assert first.degrees_of_freedom.item() == pytest.approx(28 * 32, abs=16)
    assert first.accepted.all()


def test_images_of_another_kind_are_not_accepted(fitter):
    _, u = draw(small_settings(), 1, seed=6)
    images, _ = noisy_images(fitter, u, 60.0)
    second_source = images.lr + images.lr.flip(1)
    found = make_fitter(rounds=1, starts=1, iterations=10).fit(Images(second_source, images.noise))
    assert not found.accepted.any()
    too_sure = examine(fitter.fine, Images(images.lr, 0.9 * images.noise), u)
    assert not too_sure.accepted.any()  # chi^2 is 1.23 a pixel, in 1024 of them


def test_covariance_in_the_priors_units(fitter):
    _, u = draw(small_settings(), 2)
    covariance = torch.eye(u.shape[1], dtype=torch.float64).expand(2, -1, -1) * 1e-8
    found = physical_covariance(fitter.parameters, u, covariance).diagonal(dim1=1, dim2=2).sqrt()
    above, below = (fitter.parameters.physical(u + sign * 1e-4) for sign in (1, -1))
    for place, name in enumerate(fitter.parameters.names):
        np.testing.assert_allclose(found[:, place], (above[name] - below[name]).abs() / 2, rtol=1e-5)
