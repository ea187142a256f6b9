"""Our own torch engine. On the CPU as the data generator runs it: lens by lens, noise from NumPy's generator.

On a GPU, `batch` lenses at once, noise from torch, and the images stay where they are, as for training.
"""

import numpy as np
import torch

from simulate.instruments import draw_noise, noise_sigma_njy
from simulate.scene import Scene
from simulate.torch_engine.packing import compact
from simulate.torch_engine.ray_shooting import deflection_field
from simulate.torch_engine.render import View, render_batch

from .base import Pairs, Task


class Sharplens:
    """`exact` sums the closed forms of all subhalos instead of the fast field."""

    def __init__(
        self,
        task: Task,
        seed: int,
        dtype: str = "float32",
        device: str = "cpu",
        batch: int = 1,
        exact: bool = False,
    ) -> None:
        self.task, self.batch, self.exact = task, batch, exact
        self.dtype, self.device = getattr(torch, dtype), torch.device(device)
        self.view = View(task.hr_instrument, task.lr_instrument, task.hr_size, task.scale, task.supersampling)
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def prepare(self, scenes: list[Scene]) -> list[Scene]:
        """For a GPU as worker processes send them."""
        return scenes if self.device.type == "cpu" else [compact(scene) for scene in scenes]

    @torch.inference_mode()
    def render(self, prepared: list[Scene]) -> Pairs:
        hr, lr = render_batch(prepared, self.view, self.dtype, self.device, self.exact)
        hr_instrument, lr_instrument = self.task.hr_instrument, self.task.lr_instrument
        if self.device.type != "cpu":
            hr_sigma, lr_sigma = noise_sigma_njy(hr_instrument, hr), noise_sigma_njy(lr_instrument, lr)
            pairs = Pairs(hr, hr + hr_sigma * self._normal(hr), lr + lr_sigma * self._normal(lr), lr_sigma)
            torch.cuda.synchronize(self.device)
            return pairs
        clean_hr, clean_lr = hr.numpy(), lr.numpy()
        lr_noise = noise_sigma_njy(lr_instrument, clean_lr)
        hr_noisy = clean_hr + draw_noise(hr_instrument, noise_sigma_njy(hr_instrument, clean_hr), self.rng)
        return Pairs(clean_hr, hr_noisy, clean_lr + draw_noise(lr_instrument, lr_noise, self.rng), lr_noise)

    def _normal(self, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=self.generator)

    def deflection(self, scene: Scene) -> np.ndarray:
        alpha = deflection_field([scene], self.view.grid(self.dtype, self.device), self.exact)
        return np.stack([one[0].cpu().numpy() for one in alpha])
