"""Real galaxies, from a FITS cube of postage stamps. No galaxy is in two splits."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ..errors import InputError
from ..priors import Prior, normal, uniform
from ..settings import Settings
from .base import Source, Split, flux_njy
from .cube import Cube, read_cube
from .stamps import clean_stamp


class SplitFractions(Settings):
    """How galaxies are shared out, by a hash of their names: more data in the cube moves none of them."""

    train: float = Field(0.7, ge=0)
    val: float = Field(0.15, ge=0)
    test: float = Field(0.15, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError(f"train, val and test must add up to 1, found {self.train + self.val + self.test:g}")
        return self


class GalaxySettings(Settings):
    """Galaxies of a FITS file, scaled to the drawn size and magnitude, turned and flipped at random."""

    kind: Literal["galaxy"]
    path: Path
    """FITS file with a cube (galaxy, row, column)."""
    hdu: int | str | None = None
    """Where the cube is; None: the first HDU that has one."""
    id_column: str | None = None
    """Column, in any table of the file, that names the galaxies; None: their pixels do (a SHA-256)."""
    magnitude: Prior = uniform(22.0, 24.0)
    radius_arcsec: Prior = uniform(0.05, 0.25)
    """Radius of the circle that holds half the light."""
    center_x_arcsec: Prior = normal(0.0, 0.1)
    center_y_arcsec: Prior = normal(0.0, 0.1)
    split_by_galaxy: bool = True
    """False: all splits draw from all galaxies, so that a network is tested on sources it has seen."""
    fractions: SplitFractions = SplitFractions()
    least_galaxies: int = Field(5, ge=1)
    """Fewer usable galaxies in a split are an error."""
    lowest_signal_to_noise: float = Field(20.0, gt=3)
    """Of the brightest pixel of the smoothed stamp. Fainter galaxies are left out."""
    smallest_radius_pixels: float = Field(4.0, gt=0)
    """Half-light radius in pixels of the stamp. Galaxies that look smaller, hardly resolved, are left out."""
    electrons_per_unit: float | None = Field(None, gt=0)
    """Electrons per unit of the pixels (exposure time, of electrons a second), for the photon noise of bright galaxies;
    None: the noise of the sky alone."""
    image_size: int = Field(64, ge=16, le=512)
    """The most pixels of a source's image along a side; it is written into every scene."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.radius_arcsec.require("radius_arcsec", 1e-3)
        return self


def split_of(name: str, fractions: SplitFractions) -> Split:
    """The split of a galaxy of this name: where its SHA-256, as a number from 0 to 1, falls."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    if place < fractions.train:
        return "train"
    return "val" if place < fractions.train + fractions.val else "test"


@dataclass(frozen=True)
class Galaxy:
    """A usable galaxy: its name and row in the cube, and its image as a scene stores it."""

    name: str
    row: int
    image: list[list[float]]
    radius_pixels: float


@lru_cache(maxsize=8)
def _usable_galaxies(settings: GalaxySettings, split: Split, cube: Cube) -> tuple[Galaxy, ...]:
    galaxies, left_out, shared = [], Counter[str](), 0
    for row, (name, stamp) in enumerate(zip(cube.names, cube.stamps, strict=True)):
        if settings.split_by_galaxy and split_of(name, settings.fractions) != split:
            continue
        shared += 1
        image = stamp.astype(np.float64)
        found = clean_stamp(
            image,
            settings.image_size,
            settings.lowest_signal_to_noise,
            settings.smallest_radius_pixels,
            settings.electrons_per_unit,
        )
        if isinstance(found, str):
            left_out[found] += 1
            continue
        rounded = [[float(f"{value:.5g}") for value in line] for line in found.image.tolist()]
        galaxies.append(Galaxy(name, row, rounded, found.radius_pixels))
    if len(galaxies) < settings.least_galaxies:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items())) or "none is left out"
        raise InputError(
            f"{cube.path}: split {split!r} has {len(galaxies)} usable galaxies, expected at least least_galaxies = "
            f"{settings.least_galaxies}; {shared} of {len(cube.names)} fall to it ({reasons}); give a larger cube, "
            f"raise fractions.{split}, or lower lowest_signal_to_noise or smallest_radius_pixels"
        )
    return tuple(galaxies)


def usable_galaxies(settings: GalaxySettings, split: Split) -> tuple[Galaxy, ...]:
    """The galaxies of one split, cleaned: about 10 ms each, once in a process.

    Raises `InputError` if the file is no cube of galaxies, or fewer than `least_galaxies` are usable.
    """
    return _usable_galaxies(settings, split, read_cube(settings.path, settings.hdu, settings.id_column))


def draw_galaxy(settings: GalaxySettings, split: Split, rng: np.random.Generator) -> Source:
    """One galaxy of the split, as lenstronomy's INTERPOL: bilinear between pixels, so its flux is exact."""
    galaxies = usable_galaxies(settings, split)
    magnitude, radius = settings.magnitude.draw(rng), settings.radius_arcsec.draw(rng)
    galaxy = galaxies[rng.integers(len(galaxies))]
    angle, flipped = rng.uniform(0, 2 * np.pi), bool(rng.integers(2))
    scale = radius / galaxy.radius_pixels
    kwargs = {
        "image": [row[::-1] for row in galaxy.image] if flipped else galaxy.image,
        "amp": flux_njy(magnitude) / (float(np.sum(galaxy.image)) * scale**2),
        "center_x": settings.center_x_arcsec.draw(rng),
        "center_y": settings.center_y_arcsec.draw(rng),
        "phi_G": angle,
        "scale": scale,
    }
    draw = {"source_magnitude": magnitude, "source_radius_arcsec": radius}
    return Source(
        [("INTERPOL", kwargs)],
        {"source_kind": "galaxy", **draw, "source_galaxy": galaxy.name, "source_row": galaxy.row},
    )
