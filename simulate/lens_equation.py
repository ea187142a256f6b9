"""Where a point source appears: all solutions of the lens equation beta = theta - alpha(theta), and their brightness.

A grid of rays is refined wherever a cell, mapped to the source plane, may cover the source; Newton's method goes from
the smallest cells to the solutions. Positions and deflections are complex numbers, x + i y, in arcsec.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Deflection = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_CORNERS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
_REACH = 1.5
"""A cell may cover the source if that is nearer to its mapped centre than this many times its farthest corner."""
_STEP_ARCSEC = 2e-6
"""Of the central differences. Their error is its square times the third derivative of the deflection."""
_TOLERANCE_ARCSEC = 1e-11
_MERGE_ARCSEC = 1e-5
_MOST_STEPS = 12
"""Of Newton's method. The best start of an image needs four; those that need many are at a singular centre."""


@dataclass(frozen=True)
class PointImages:
    """The images of a point, brightest first; each (I,). The magnification of a saddle point is negative."""

    x_arcsec: np.ndarray
    y_arcsec: np.ndarray
    magnification: np.ndarray


def find_point_images(
    deflection: Deflection,
    source_x_arcsec: float,
    source_y_arcsec: float,
    window_arcsec: float,
    minimum_magnification: float = 0.01,
    cells: int = 50,
    levels: int = 3,
) -> PointImages:
    """All images of a point source that are magnified by more than `minimum_magnification`, to about 1e-9".

    `deflection` maps x and y, each (N,) in float64 arcsec, to alpha_x and alpha_y. It is asked at cells^2 points over
    `window_arcsec` to either side of the origin, then, where images may be, at points 2^levels times as close, and at
    some hundred around every image. The central image of a singular lens has no or next to no light and is left out, as
    are images of perturbers far from the lensed ones, which are as faint. Images nearer to each other than 1e-5" (a
    source on a caustic) count as one.
    """
    source = complex(source_x_arcsec, source_y_arcsec)

    def offset(position: np.ndarray) -> np.ndarray:
        """From the source to where a ray meets its plane."""
        alpha_x, alpha_y = deflection(position.real.ravel(), position.imag.ravel())
        return position - source - (np.asarray(alpha_x) + 1j * np.asarray(alpha_y)).reshape(position.shape)

    start = _candidates(offset, window_arcsec, cells, levels)
    found, determinant = _newton(offset, start, 2 * window_arcsec / cells)
    bright = np.abs(determinant) * minimum_magnification < 1
    found, determinant = found[bright], determinant[bright]
    order = np.argsort(np.abs(determinant), kind="stable")
    found, determinant = found[order], determinant[order]
    again = np.tril(np.abs(found[:, None] - found) < _MERGE_ARCSEC, -1).any(1)
    return PointImages(found[~again].real, found[~again].imag, 1 / determinant[~again])


def _candidates(
    offset: Callable[[np.ndarray], np.ndarray], window_arcsec: float, count: int, levels: int
) -> np.ndarray:
    """(N,) centres of the finest cells that may hold an image.

    Cells are at whole multiples of the finest one, so that neighbours share rays.
    """
    width, fine_arcsec = 2**levels, 2 * window_arcsec / count / 2**levels
    # Shifted by an odd part of the finest cell, so that no corner falls on the centre of a singular lens at the origin.
    origin_arcsec = (0.37 * fine_arcsec - window_arcsec) * (1 + 1j)
    cells = width * np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).reshape(-1, 2)
    while True:
        corners = cells[:, None] + width * _CORNERS
        key, place = np.unique(corners[..., 0] << 32 | corners[..., 1], return_inverse=True)
        ray = offset(origin_arcsec + fine_arcsec * ((key >> 32) + 1j * (key & 0xFFFFFFFF)))
        mapped = ray[place.reshape(-1, 4)]
        middle = mapped.mean(1)
        cells = cells[np.abs(middle) <= _REACH * np.abs(mapped - middle[:, None]).max(1)]
        if width == 1:
            return origin_arcsec + fine_arcsec * (cells[:, 0] + 0.5 + 1j * (cells[:, 1] + 0.5))
        width //= 2
        cells = (cells[:, None] + width * _CORNERS).reshape(-1, 2)


def _cross(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.imag(np.conj(one) * other)


def _newton(
    offset: Callable[[np.ndarray], np.ndarray], position: np.ndarray, longest_step_arcsec: float
) -> tuple[np.ndarray, np.ndarray]:
    """Solutions that Newton's method reaches from `position` (N,), and det d(beta)/d(theta) there; each (S,).

    A step that leads away from the source is tried again at a quarter of its length.
    """
    stencil = _STEP_ARCSEC * np.array([0, 1, -1, 1j, -1j])[:, None]
    solved, determinants = [], []
    values, damping = offset(position + stencil), np.ones(len(position))
    for _ in range(_MOST_STEPS):
        here, right, left, up, down = values
        along_x, along_y = (right - left) / (2 * _STEP_ARCSEC), (up - down) / (2 * _STEP_ARCSEC)
        determinant = _cross(along_x, along_y)
        done = np.abs(here) < _TOLERANCE_ARCSEC
        solved.append(position[done])
        determinants.append(determinant[done])
        going = ~done & np.isfinite(determinant) & (determinant != 0)
        position, values, damping = position[going], values[:, going], damping[going]
        if not len(position):
            break
        towards_x = _cross(-here, along_y)[going] / determinant[going]
        towards_y = _cross(along_x, -here)[going] / determinant[going]
        step = towards_x + 1j * towards_y
        step *= damping * np.minimum(1, longest_step_arcsec / np.abs(step))
        tried = offset(position + step + stencil)
        better = np.abs(tried[0]) < np.abs(values[0])
        position, values = np.where(better, position + step, position), np.where(better, tried, values)
        damping = np.where(better, np.minimum(1, 2 * damping), damping / 4)
    return np.concatenate(solved), np.concatenate(determinants)
