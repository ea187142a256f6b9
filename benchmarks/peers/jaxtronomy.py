"""jaxtronomy 0.1.5: lenstronomy's profiles in JAX, compiled, in float32 (JAX's default).

A batch is rendered lens after lens inside one compiled function (`lax.map`), its subhalos one after the other
(`lax.scan` over jaxtronomy's TNFW): as fast as its `LensModel`, which takes minutes to compile hundreds of subhalos,
and faster than its `LensModelBulk`. PSF, pixels and noise are `optics` in JAX: its `ImageModel` sees one instrument.
"""
# mypy: disable-error-code="import-not-found"

from functools import partial
from typing import Any

import numpy as np

from simulate.scene import Scene

from .base import EPL_COLUMNS, SERSIC_COLUMNS, TNFW_COLUMNS, Pairs, Task, columns
from .optics import make_optics, observe_in_jax, optics_in_jax


class Jaxtronomy:
    """One thread a process; fixed shapes, so that nothing is compiled twice."""

    def __init__(self, task: Task, seed: int) -> None:
        import jax
        from jaxtronomy.LensModel.lens_model import LensModel
        from jaxtronomy.LensModel.Profiles.tnfw import TNFW
        from jaxtronomy.LightModel.light_model import LightModel

        self.jax, self.task, self.batch = jax, task, task.batch()
        self.macro = LensModel(["EPL", "SHEAR", "CONVERGENCE"] if task.subhalos else ["EPL", "SHEAR"])
        self.tnfw, self.source = TNFW, LightModel(["SERSIC_ELLIPSE"])
        self.x, self.y = (jax.numpy.asarray(one.ravel(), dtype=np.float32) for one in task.ray_positions_arcsec())
        self.key = jax.random.key(seed)
        self.light = jax.jit(lambda *arrays: jax.lax.map(lambda one: self._light(*one), arrays))
        self.observe = jax.jit(partial(observe_in_jax, jax, optics_in_jax(jax, make_optics(task))))

    def prepare(self, scenes: list[Scene]) -> tuple[np.ndarray, ...]:
        table = columns(scenes)
        halos = table.tnfw.reshape(len(scenes), -1, len(TNFW_COLUMNS))
        arrays = (table.epl, table.shear, table.kappa, halos, table.sersic)
        return tuple(one.astype(np.float32) for one in arrays)

    def _alpha(self, epl: Any, shear: Any, kappa: Any, halos: Any) -> tuple[Any, Any]:
        models = [dict(zip(EPL_COLUMNS, epl, strict=True)), {"gamma1": shear[0], "gamma2": shear[1]}]
        if not self.task.subhalos:
            return self.macro.alpha(self.x, self.y, models)

        def add(total: tuple[Any, Any], halo: Any) -> tuple[tuple[Any, Any], None]:
            part_x, part_y = self.tnfw.derivatives(self.x, self.y, **dict(zip(TNFW_COLUMNS, halo, strict=True)))
            return (total[0] + part_x, total[1] + part_y), None

        alpha = self.macro.alpha(self.x, self.y, [*models, {"kappa": kappa}])
        return self.jax.lax.scan(add, alpha, halos)[0]

    def _light(self, epl: Any, shear: Any, kappa: Any, halos: Any, sersic: Any) -> Any:
        alpha_x, alpha_y = self._alpha(epl, shear, kappa, halos)
        source = [dict(zip(SERSIC_COLUMNS, sersic, strict=True))]
        light = self.source.surface_brightness(self.x - alpha_x, self.y - alpha_y, source)
        return light.reshape(self.task.rays, self.task.rays) * self.task.spacing_arcsec**2

    def render(self, prepared: tuple[np.ndarray, ...]) -> Pairs:
        self.key, images = self.observe(self.light(*prepared), self.key)
        return Pairs(*map(np.asarray, images))

    def deflection(self, scene: Scene) -> np.ndarray:
        *lens, _ = (one[0] for one in self.prepare([scene]))
        alpha = self.jax.jit(self._alpha)(*lens)
        return np.reshape(np.stack(alpha), (2, self.task.rays, self.task.rays))
