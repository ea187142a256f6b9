"""What a fit minimises: chi^2 of the LR images and the squares of the parameters as standard normal numbers."""

from dataclasses import dataclass

import torch
from torch import Tensor

from simulate.torch_engine.imaging import bin_sum

from .imaging import Imager
from .substructure import DeflectionModes

RAYS_AT_ONCE = 2**18
"""Of all lenses that are derived together; each takes some 30 numbers."""


@dataclass(frozen=True, eq=False)
class Images:
    """B LR images on one device, float64."""

    lr: Tensor  # (B,h,w) flux per pixel
    noise: Tensor  # (B,h,w) 1-sigma; infinite where a pixel does not count

    def __len__(self) -> int:
        return len(self.lr)

    def select(self, rows: Tensor) -> "Images":
        """Those at `rows`."""
        return Images(self.lr[rows], self.noise[rows])


class MacroObjective:
    """Of images under the parametric model alone: a `descent.Objective` of P parameters."""

    def __init__(self, imager: Imager, images: Images, image_of: Tensor) -> None:
        """Problem n is about image `image_of[n]`."""
        self._imager, self._image_of = imager, image_of
        self._weight = 1 / images.noise.flatten(1)
        self._target = images.lr.flatten(1) * self._weight
        self._at_once = max(1, RAYS_AT_ONCE // imager.grid.rays**2)

    def cost(self, u: Tensor, rows: Tensor) -> Tensor:
        """See `descent.Objective`."""
        costs = []
        for part, image in self._parts(u, rows):
            residual = self._residual(self._imager.light(part), image)
            costs.append(residual.square().sum(1) + part.square().sum(1))
        return torch.cat(costs)

    def normal_equations(self, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `descent.Objective`."""
        found = []
        for part, image in self._parts(u, rows):
            linear = self._imager.linearise(part)
            jacobian = linear.derivatives(self._imager.lr).double() * self._weight[image, :, None]
            found.append(_equations(jacobian, self._residual(linear.light, image), part))
        cost, gradient, normal = (torch.cat(one) for one in zip(*found, strict=True))
        return cost, gradient, normal

    def _parts(self, u: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(u.split(self._at_once), self._image_of[rows].split(self._at_once), strict=True))

    def _residual(self, light: Tensor, image: Tensor) -> Tensor:
        return self._imager.lr(light).flatten(1).double() * self._weight[image] - self._target[image]


class FieldObjective:
    """Of images under the parametric model and a field of substructure: P + K parameters, those of the field last.

    The residuals are those of the fine grid of rays; derivatives by the field are computed on the coarse one, with the
    light of the fine rays in a coarse cell brought together.
    """

    def __init__(self, fine: Imager, coarse: Imager, images: Images, modes: DeflectionModes) -> None:
        self._fine, self._coarse = fine, coarse
        self._macro = len(fine.parameters.names)
        self._modes, self._coarse_maps = modes, modes.on_rays(coarse.grid.rays).to(coarse.dtype)
        self._weight = 1 / images.noise.flatten(1)
        self._target = images.lr.flatten(1) * self._weight

    def cost(self, u: Tensor, rows: Tensor) -> Tensor:
        """See `descent.Objective`."""
        costs = []
        for one, row in zip(u.split(1), rows.split(1), strict=True):
            residual = self._residual(self._fine.light(*self._split(one)), row)
            costs.append(residual.square().sum(1) + one.square().sum(1))
        return torch.cat(costs)

    def normal_equations(self, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `descent.Objective`."""
        found = []
        step = self._fine.grid.rays // self._coarse.grid.rays
        for one, row in zip(u.split(1), rows.split(1), strict=True):
            linear = self._fine.linearise(*self._split(one))
            gradient = bin_sum(linear.by_source_place[0], step).to(self._coarse.dtype)
            by_mode = self._coarse.lr(-(self._coarse_maps * gradient).sum(1)).flatten(1).double().T
            jacobian = torch.cat([linear.derivatives(self._fine.lr)[0], by_mode], 1) * self._weight[row, :, None]
            found.append(_equations(jacobian, self._residual(linear.light, row), one))
        cost, slope, normal = (torch.cat(one) for one in zip(*found, strict=True))
        return cost, slope, normal

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor]:
        field = self._modes.field(u[:, self._macro :], self._fine.grid.rays)
        return u[:, : self._macro], field.to(self._fine.dtype)

    def _residual(self, light: Tensor, row: Tensor) -> Tensor:
        return self._fine.lr(light).flatten(1) * self._weight[row] - self._target[row]


def _equations(jacobian: Tensor, residual: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cost (B,), half its gradient (B,P) and J^T J (B,P,P), from J (B,N,P) and residuals (B,N), with the prior."""
    gradient = (jacobian.mT @ residual[:, :, None]).squeeze(2) + u
    normal = jacobian.mT @ jacobian + torch.eye(u.shape[1], dtype=u.dtype, device=u.device)
    return residual.square().sum(1) + u.square().sum(1), gradient, normal
