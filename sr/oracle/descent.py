"""Least squares for many independent problems at once: Levenberg-Marquardt, each with its own damping."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .parameters import FARTHEST

LONGEST_STEP = 1.5
"""In any parameter, in standard deviations of its prior: the model is not linear over more."""
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e-9, 1e9


class Objective(Protocol):
    """n problems: sums of squares of P parameters each."""

    def cost(self, u: Tensor, rows: Tensor) -> Tensor:
        """(m,) the sums of squares of problems `rows` (m,) at u (m,P), float64."""
        ...

    def normal_equations(self, u: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Costs (m,), half their gradients (m,P) and J^T J (m,P,P), float64."""
        ...


@dataclass(frozen=True)
class Found:
    """Where n problems have come to."""

    u: Tensor  # (n,P)
    cost: Tensor  # (n,)
    converged: Tensor  # (n,) bool


def levenberg_marquardt(
    objective: Objective, u: Tensor, iterations: int, tolerance: float, first_damping: float = FIRST_DAMPING
) -> Found:
    """Minimise from u (n,P); a problem has converged when its Newton step promises to lower the cost by less than
    `tolerance`.

    Marquardt 1963, SIAM J. 11, 431: the diagonal of J^T J is raised by a factor that falls with every step that lowers
    the cost, and rises until one does. A step that is too long is shortened.
    """
    u = u.clone()
    rows = torch.arange(len(u), device=u.device)
    cost, gradient, normal = objective.normal_equations(u, rows)
    damping = torch.full_like(cost, first_damping)
    converged = torch.zeros_like(cost, dtype=torch.bool)
    for _ in range(iterations):
        rows = torch.nonzero(~converged).squeeze(1)
        newton = solve_positive(normal[rows], gradient[rows])
        converged[rows] = ((gradient[rows] * newton).sum(1) < tolerance) | (damping[rows] >= MOST_DAMPING)
        rows = rows[~converged[rows]]
        if not len(rows):
            break
        damped = normal[rows] + torch.diag_embed(damping[rows, None] * normal[rows].diagonal(dim1=1, dim2=2))
        step = -solve_positive(damped, gradient[rows])
        step = step * (LONGEST_STEP / step.abs().amax(1, keepdim=True)).clamp(max=1)
        trial = (u[rows] + step).clamp(-FARTHEST, FARTHEST)
        lowered = objective.cost(trial, rows) < cost[rows]
        damping[rows] = (damping[rows] * torch.where(lowered, 0.2, 5.0)).clamp(LEAST_DAMPING, MOST_DAMPING)
        better = rows[lowered]
        if len(better):
            u[better] = trial[lowered]
            cost[better], gradient[better], normal[better] = objective.normal_equations(u[better], better)
    return Found(u, cost, converged)


def solve_positive(matrix: Tensor, vector: Tensor) -> Tensor:
    """(n,P) the solutions for positive definite matrices (n,P,P), by Cholesky factors; waits for no device.

    What is not positive definite has a solution that is none: a step that lowers no cost.
    """
    return torch.cholesky_solve(vector[:, :, None], torch.linalg.cholesky_ex(matrix).L).squeeze(2)
