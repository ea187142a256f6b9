"""caustics 1.7, by its functional interface, on torch (subhalos fused by `torch.compile`) or on JAX (all in one `jit`).

caustics has PSF and pixels, but neither a second instrument nor noise: light on the rays is caustics', the rest is
`optics` in the same array library. The elliptical power law runs with `chunk_size=1`, which is several times as fast as
its default. In float32, which is caustics' own default.
"""
# mypy: disable-error-code="import-not-found"

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from simulate.cosmology import CosmologySettings, LensGeometry
from simulate.populations.halos import tnfw_mass_factor
from simulate.scene import Scene

from .base import Columns, Pairs, Task, columns
from .optics import make_optics, observe_in_jax, optics_in_jax

EPL_TERMS = 18
"""caustics' own default."""


def caustics_parameters(scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Macro (N,9), subhalos (N,5,subhalos), source (N,7) and distances (N,2) in caustics' conventions, float32.

    Ellipticities become axis ratios and angles; a Sersic radius R / sqrt(q); a TNFW's whole mass, scale radius and
    tau. Distances: to the lens in Mpc, and lens-source over source.
    """
    table: Columns = columns(scenes)
    geometries = [
        LensGeometry(
            CosmologySettings(h0_km_s_mpc=one.cosmology["H0"], omega_m=one.cosmology["Om0"]), one.z_lens, one.z_source
        )
        for one in scenes
    ]
    theta_e, gamma, e1, e2, x, y = table.epl.T
    q, angle = _axis_ratio_and_angle(e1, e2)
    macro = np.stack([x, y, q, angle, theta_e, gamma - 1, *table.shear.T, table.kappa], 1)
    amp, radius, index, e1, e2, x, y = table.sersic.T
    q, angle = _axis_ratio_and_angle(e1, e2)
    source = np.stack([x, y, q, angle, index, radius / np.sqrt(q), amp], 1)
    halos = np.zeros((len(scenes), 5, 0))
    if table.tnfw.size:
        scale, alpha, truncation, x, y = np.moveaxis(table.tnfw, 2, 0)
        critical = np.array([[one.critical_surface_density_msun_arcsec2] for one in geometries])
        tau = truncation / scale
        mass = np.pi * alpha * scale * tnfw_mass_factor(tau) / (1 + np.log(0.5)) * critical
        halos = np.stack([x, y, mass, scale, tau], 1)
    distances = [(one.distance_lens_mpc, one.distance_lens_source_mpc / one.distance_source_mpc) for one in geometries]
    arrays = (macro, halos, source, np.array(distances))
    return tuple(one.astype(np.float32) for one in arrays)  # type: ignore[return-value]


def _axis_ratio_and_angle(e1: np.ndarray, e2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = np.hypot(e1, e2)
    return (1 - size) / (1 + size), np.arctan2(e2, e1) / 2


def _use_backend(name: str) -> None:
    from caustics.backend_obj import backend

    backend.backend = name


def macro_deflection(macro: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """Elliptical power law, shear and sheet; x and y (rays,rays)."""
    from caustics.lenses import func

    epl = func.reduced_deflection_angle_epl(*macro[:6], x, y, EPL_TERMS, 1)
    shear = func.reduced_deflection_angle_external_shear(0.0, 0.0, macro[6], macro[7], x, y)
    sheet = func.reduced_deflection_angle_mass_sheet(0.0, 0.0, macro[8], x, y)
    return epl[0] + shear[0] + sheet[0], epl[1] + shear[1] + sheet[1]


def halo_deflection(halo: Any, distances: Any, x: Any, y: Any) -> tuple[Any, Any]:
    """TNFW halos with parameters (5,...) that broadcast against x and y."""
    from caustics.lenses import func

    mass = func.M0_totmass_tnfw(halo[2], halo[4])
    physical_x, physical_y = func.physical_deflection_angle_tnfw(
        halo[0], halo[1], halo[3], halo[4], x, y, mass, distances[0]
    )
    return physical_x * distances[1], physical_y * distances[1]


def source_light(source: Any, x: Any, y: Any) -> Any:
    """Sersic surface brightness at source-plane positions."""
    from caustics.light import func

    return func.brightness_sersic(*source, x, y, func.k_lenstronomy(source[4]))


class CausticsTorch:
    """Lens by lens, one thread; everything but the power law's complex numbers is compiled (inductor has none)."""

    def __init__(self, task: Task, seed: int) -> None:
        import torch

        _use_backend("torch")
        self.torch, self.task, self.batch = torch, task, task.batch()
        optics = make_optics(task)
        first, second = (torch.from_numpy(one).to(torch.complex64) for one in optics.transfer)
        self.optics = replace(optics, transfer=(first, second))
        self.x, self.y = (torch.from_numpy(one).float() for one in task.ray_positions_arcsec())
        self.generator = torch.Generator().manual_seed(seed)
        self.add_halos = torch.compile(self._add_halos, dynamic=False)
        self.light = torch.compile(self._light, dynamic=False)

    def prepare(self, scenes: list[Scene]) -> list[tuple[Any, ...]]:
        arrays = [self.torch.from_numpy(one) for one in caustics_parameters(scenes)]
        return list(zip(*arrays, strict=True))

    def _add_halos(self, alpha_x: Any, alpha_y: Any, halos: Any, distances: Any) -> tuple[Any, Any]:
        part_x, part_y = halo_deflection(halos[:, :, None, None], distances, self.x, self.y)
        return alpha_x + part_x.sum(0), alpha_y + part_y.sum(0)

    def _light(self, alpha_x: Any, alpha_y: Any, source: Any) -> Any:
        return source_light(source, self.x - alpha_x, self.y - alpha_y) * self.task.spacing_arcsec**2

    def _alpha(self, macro: Any, halos: Any, distances: Any) -> tuple[Any, Any]:
        alpha = macro_deflection(macro, self.x, self.y)
        return self.add_halos(*alpha, halos, distances) if self.task.subhalos else alpha

    def render(self, prepared: list[tuple[Any, ...]]) -> Pairs:
        torch = self.torch
        with torch.inference_mode():
            flux = torch.stack(
                [self.light(*self._alpha(macro, halos, far), source) for macro, halos, source, far in prepared]
            )
            hr, lr = self.optics.see(flux, torch.fft)
            hr_sigma, lr_sigma = self.optics.sigma(hr, lr)
            hr_noisy = hr + hr_sigma * torch.randn(hr.shape, generator=self.generator)
            lr = lr + lr_sigma * torch.randn(lr.shape, generator=self.generator)
        return Pairs(hr.numpy(), hr_noisy.numpy(), lr.numpy(), lr_sigma.numpy())

    def deflection(self, scene: Scene) -> np.ndarray:
        ((macro, halos, _, distances),) = self.prepare([scene])
        with self.torch.inference_mode():
            return np.stack([one.numpy() for one in self._alpha(macro, halos, distances)])


class CausticsJax:
    """Lens after lens inside one compiled function (`lax.map`), which JAX runs faster on a CPU than `vmap`."""

    def __init__(self, task: Task, seed: int) -> None:
        import jax

        _use_backend("jax")
        self.jax, self.task, self.batch = jax, task, task.batch()
        self.optics = optics_in_jax(jax, make_optics(task))
        self.x, self.y = (jax.numpy.asarray(one, dtype=np.float32) for one in task.ray_positions_arcsec())
        self.key = jax.random.key(seed)
        self.light = jax.jit(lambda *arrays: jax.lax.map(lambda one: self._light(*one), arrays))
        self.observe = jax.jit(partial(observe_in_jax, jax, self.optics))

    def prepare(self, scenes: list[Scene]) -> tuple[np.ndarray, ...]:
        return caustics_parameters(scenes)

    def _alpha(self, macro: Any, halos: Any, distances: Any) -> tuple[Any, Any]:
        def add(total: tuple[Any, Any], halo: Any) -> tuple[tuple[Any, Any], None]:
            part_x, part_y = halo_deflection(halo, distances, self.x, self.y)
            return (total[0] + part_x, total[1] + part_y), None

        alpha = macro_deflection(macro, self.x, self.y)
        return self.jax.lax.scan(add, alpha, halos.T)[0] if self.task.subhalos else alpha

    def _light(self, macro: Any, halos: Any, source: Any, distances: Any) -> Any:
        alpha_x, alpha_y = self._alpha(macro, halos, distances)
        return source_light(source, self.x - alpha_x, self.y - alpha_y) * self.task.spacing_arcsec**2

    def render(self, prepared: tuple[np.ndarray, ...]) -> Pairs:
        self.key, images = self.observe(self.light(*prepared), self.key)
        return Pairs(*map(np.asarray, images))

    def deflection(self, scene: Scene) -> np.ndarray:
        macro, halos, _, distances = (one[0] for one in self.prepare([scene]))
        return np.stack(self.jax.jit(self._alpha)(macro, halos, distances))
