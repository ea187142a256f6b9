"""What every simulator is asked to do: the cases, the scenes, and the full pair of images of each."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from simulate.cosmology import LensGeometry
from simulate.instruments import Instrument, load_instrument
from simulate.populations.halos import concentration, r200_kpc, tnfw_alpha_rs, truncation_kpc
from simulate.populations.subhalos import draw_masses_msun
from simulate.scene import Scene, SceneSettings, draw_scene

MASS_SLOPE = -1.9
MASS_MAX_MSUN = 1e10
MANY_SUBHALOS = 1000
"""From here on masses start at 1e6 instead of 1e8 solar masses."""
CONCENTRATION_SCATTER_DEX = 0.11
HOST_DEPTH_KPC = 100.0
EPL_COLUMNS = ("theta_E", "gamma", "e1", "e2", "center_x", "center_y")
TNFW_COLUMNS = ("Rs", "alpha_Rs", "r_trunc", "center_x", "center_y")
SERSIC_COLUMNS = ("amp", "R_sersic", "n_sersic", "e1", "e2", "center_x", "center_y")


@dataclass(frozen=True)
class Task:
    """One case: `subhalos` TNFW perturbers, `supersampling` rays along an HR pixel, and two instruments."""

    subhalos: int
    supersampling: int
    hr_instrument: Instrument
    lr_instrument: Instrument
    hr_size: int = 128
    scale: int = 2

    @classmethod
    def from_name(cls, name: str, hr_size: int = 128) -> "Task":
        """'100@3' is 100 subhalos at supersampling 3; '100' is at 1. HST at 0.05" and Euclid VIS at 0.1" look."""
        subhalos, _, supersampling = name.partition("@")
        hr, lr = load_instrument("hst-acs-f814w"), load_instrument("euclid-vis")
        return cls(int(subhalos), int(supersampling or 1), hr, lr, hr_size)

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{f'{self.subhalos} TNFW' if self.subhalos else 'no substructure'}, ss {self.supersampling}"

    @property
    def rays(self) -> int:
        """Rays along one axis."""
        return self.hr_size * self.supersampling

    @property
    def spacing_arcsec(self) -> float:
        """Distance of neighbouring rays."""
        return self.hr_instrument.pixel_scale_arcsec / self.supersampling

    def ray_positions_arcsec(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of the rays, each (rays,rays), rows along y."""
        axis = (np.arange(self.rays) - (self.rays - 1) / 2) * self.spacing_arcsec
        y, x = np.meshgrid(axis, axis, indexing="ij")
        return x, y

    def batch(self, most: int = 8) -> int:
        """Lenses to render at once: `most` where a lens is cheap, one where it takes a tenth of a second or so."""
        return most if self.subhalos * self.supersampling**2 <= 300 else 1


@dataclass(frozen=True)
class Pairs:
    """N lenses through both instruments, nJy per pixel: HR (N,H,W), LR (N,h,w); `lr_noise` is the 1-sigma map.

    NumPy arrays, or torch tensors that stay on a GPU.
    """

    hr: Any
    hr_noisy: Any
    lr: Any
    lr_noise: Any


class System(Protocol):
    """A simulator, made for one task. Only `render` is timed."""

    batch: int
    """Lenses that `render` is given at once."""

    def prepare(self, scenes: list[Scene]) -> Any:
        """The scenes in the simulator's own parameters; for our engine and lenstronomy, the scenes themselves."""

    def render(self, prepared: Any) -> Pairs:
        """The full pair of each lens; returns when the images are there."""

    def deflection(self, scene: Scene) -> np.ndarray:
        """(2,rays,rays) deflection along x and y on the rays, in arcsec."""


def draw_lens(task: Task, seed: int, index: int) -> Scene:
    """Lens `index` of a case: the generator's priors of everything smooth, and exactly `task.subhalos` subhalos.

    Subhalos lie anywhere in the frame, the sheet that compensates their mean mass is there, as in the generator.
    """
    rng = np.random.default_rng([seed, task.subhalos, index])
    settings = SceneSettings()
    width_arcsec = task.hr_size * task.hr_instrument.pixel_scale_arcsec
    scene = draw_scene("none", settings, width_arcsec / np.sqrt(2), rng)
    if not task.subhalos:
        return scene
    geometry = LensGeometry(settings.cosmology, scene.z_lens, scene.z_source)
    count = task.subhalos
    masses = draw_masses_msun(MASS_SLOPE, 1e6 if count >= MANY_SUBHALOS else 1e8, MASS_MAX_MSUN, count, rng)
    x, y = rng.uniform(-width_arcsec / 2, width_arcsec / 2, (2, count))
    depth_kpc = rng.uniform(-HOST_DEPTH_KPC, HOST_DEPTH_KPC, count)
    scatter = 10 ** (CONCENTRATION_SCATTER_DEX * rng.standard_normal(count))
    scale_kpc = r200_kpc(masses, geometry) / (concentration(masses, scene.z_lens, settings.cosmology) * scatter)
    cut_kpc = truncation_kpc(masses, np.hypot(np.hypot(x, y) * geometry.kpc_per_arcsec, depth_kpc))
    arcsec = geometry.kpc_per_arcsec
    alpha = tnfw_alpha_rs(masses, scale_kpc, cut_kpc, geometry)
    table = np.stack([scale_kpc / arcsec, alpha, cut_kpc / arcsec, x, y], 1).tolist()
    mean_convergence = float(masses.sum() / geometry.critical_surface_density_msun_arcsec2 / width_arcsec**2)
    return replace(
        scene,
        lens_model_list=[*scene.lens_model_list, "CONVERGENCE", *["TNFW"] * count],
        kwargs_lens=[
            *scene.kwargs_lens,
            {"kappa": -mean_convergence, "ra_0": 0.0, "dec_0": 0.0},
            *(dict(zip(TNFW_COLUMNS, row, strict=True)) for row in table),
        ],
    )


@dataclass(frozen=True)
class Columns:
    """The scenes of a task as arrays of numbers in lenstronomy's parameters, for simulators that want arrays."""

    epl: np.ndarray  # (N, EPL_COLUMNS)
    shear: np.ndarray  # (N,2)
    kappa: np.ndarray  # (N,)
    tnfw: np.ndarray  # (N, subhalos, TNFW_COLUMNS)
    sersic: np.ndarray  # (N, SERSIC_COLUMNS)


def columns(scenes: list[Scene]) -> Columns:
    """Scenes of `draw_lens` as arrays; all have the same number of subhalos."""
    by_name = [
        {
            name: [kwargs for one, kwargs in zip(scene.lens_model_list, scene.kwargs_lens, strict=True) if one == name]
            for name in ("EPL", "SHEAR", "CONVERGENCE", "TNFW")
        }
        for scene in scenes
    ]
    return Columns(
        epl=np.array([[one["EPL"][0][key] for key in EPL_COLUMNS] for one in by_name]),
        shear=np.array([[one["SHEAR"][0][key] for key in ("gamma1", "gamma2")] for one in by_name]),
        kappa=np.array([one["CONVERGENCE"][0]["kappa"] if one["CONVERGENCE"] else 0.0 for one in by_name]),
        tnfw=np.array([[[halo[key] for key in TNFW_COLUMNS] for halo in one["TNFW"]] for one in by_name]),
        sersic=np.array([[scene.kwargs_source[0][key] for key in SERSIC_COLUMNS] for scene in scenes]),
    )
