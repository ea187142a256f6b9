"""Light profiles in torch against lenstronomy's."""

from typing import Any

import numpy as np
import pytest
import torch
from lenstronomy.LightModel.light_model import LightModel

from simulate.profiles.light import LIGHT_PROFILES, gaussian_sum

SHAPE = {"e1": 0.3, "e2": -0.4, "center_x": 0.1, "center_y": -0.2}
ROUND = {"center_x": 0.1, "center_y": -0.2}


def lenstronomy_light(names: list[str], kwargs: list[dict[str, Any]], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return LightModel(names).surface_brightness(x.ravel(), y.ravel(), kwargs).reshape(x.shape)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        *[("SERSIC_ELLIPSE", {"amp": 3.0, "R_sersic": 0.3, "n_sersic": n, **SHAPE}) for n in (0.5, 1.0, 2.3, 4.0, 8.0)],
        ("SERSIC", {"amp": 3.0, "R_sersic": 0.3, "n_sersic": 1.5, **ROUND}),
        ("GAUSSIAN", {"amp": 3.0, "sigma": 0.3, **ROUND}),
        ("GAUSSIAN_ELLIPSE", {"amp": 3.0, "sigma": 0.3, **SHAPE}),
    ],
)
def test_closed_forms_are_lenstronomys(name: str, kwargs: dict[str, float]) -> None:
    x, y = np.random.default_rng(0).normal(0, 1, (2, 40, 50))
    x[0, 0], y[0, 0] = kwargs["center_x"] + 2e-5, kwargs["center_y"]  # inside the smoothing radius
    expected = lenstronomy_light([name], [kwargs], x, y)
    found = LIGHT_PROFILES[name](torch.tensor(x), torch.tensor(y), **kwargs)
    assert found.numpy() == pytest.approx(expected, rel=1e-12, abs=1e-100)
    single = LIGHT_PROFILES[name](torch.tensor(x).float(), torch.tensor(y).float(), **kwargs)
    assert single.dtype == torch.float32
    assert single.numpy() == pytest.approx(expected, abs=3e-6 * expected.max())
    columns = {key: torch.tensor([value, value], dtype=torch.float64)[:, None, None] for key, value in kwargs.items()}
    batch = LIGHT_PROFILES[name](torch.tensor(x), torch.tensor(y), **columns)
    assert torch.equal(batch[0], batch[1])
    assert batch[1].numpy() == pytest.approx(found.numpy(), rel=1e-13)


def test_sersic_ends_where_lenstronomys_does() -> None:
    kwargs = {"amp": 1.0, "R_sersic": 1e-3, "n_sersic": 8.0, "e1": 0.0, "e2": 0.0}
    x = np.linspace(0.9, 1.1, 201) + 1e-6
    expected = lenstronomy_light(["SERSIC_ELLIPSE"], [kwargs], x, 0 * x)
    found = LIGHT_PROFILES["SERSIC_ELLIPSE"](torch.tensor(x), torch.zeros(201, dtype=torch.float64), **kwargs)
    assert 0 < np.count_nonzero(expected) < 201
    assert found.numpy() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("shape", [(30, 25), (12, 1)])
def test_images_are_interpolated_as_lenstronomy_does(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0, 0.8, (2, 60, 50))
    image = rng.uniform(size=shape)
    kwargs = {"amp": 2.0, "center_x": 0.1, "center_y": 0.2, "phi_G": 0.7, "scale": 0.05}
    expected = lenstronomy_light(["INTERPOL"], [{"image": image, **kwargs}], x, y)
    assert np.count_nonzero(expected) > 10
    found = LIGHT_PROFILES["INTERPOL"](torch.tensor(x), torch.tensor(y), image=image.tolist(), **kwargs)
    assert found.numpy() == pytest.approx(expected, abs=1e-12)
    other = rng.uniform(size=shape)
    both = LIGHT_PROFILES["INTERPOL"](
        torch.tensor(np.stack([x, x])), torch.tensor(np.stack([y, y])), image=np.stack([other, image]), **kwargs
    )
    assert both[1].numpy() == pytest.approx(expected, abs=1e-12)
    assert both[0].numpy() == pytest.approx(
        lenstronomy_light(["INTERPOL"], [{"image": other, **kwargs}], x, y), abs=1e-12
    )


def test_many_gaussians_are_the_sum_of_each() -> None:
    rng = np.random.default_rng(2)
    count = 70
    x, y = rng.normal(0, 0.6, (2, 3, 400, 30))
    parameters = {
        "amp": rng.uniform(-1, 2, (3, count)),
        "sigma": rng.uniform(0.01, 0.1, (3, count)),
        "center_x": rng.normal(0, 0.2, (3, count)),
        "center_y": rng.normal(0, 0.2, (3, count)),
        "e1": rng.uniform(-0.4, 0.4, (3, count)),
        "e2": rng.uniform(-0.4, 0.4, (3, count)),
    }
    expected = np.stack(
        [
            lenstronomy_light(
                ["GAUSSIAN_ELLIPSE"] * count,
                [{key: value[row, i] for key, value in parameters.items()} for i in range(count)],
                x[row],
                y[row],
            )
            for row in range(3)
        ]
    )
    tensors = {key: torch.tensor(value) for key, value in parameters.items()}
    batch = gaussian_sum(torch.tensor(x), torch.tensor(y), **tensors)
    assert batch.numpy() == pytest.approx(expected, abs=1e-13 * expected.max())
    one = gaussian_sum(torch.tensor(x[1]), torch.tensor(y[1]), **{key: value[1] for key, value in tensors.items()})
    assert torch.equal(one, batch[1])
    single = gaussian_sum(torch.tensor(x).float(), torch.tensor(y).float(), **tensors)
    assert single.numpy() == pytest.approx(expected, abs=2e-6 * expected.max())
