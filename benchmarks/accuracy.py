"""How far the torch engine's approximation is from the exact sum of closed forms, by the number of halos.

    python -m benchmarks.accuracy

For each number of TNFW halos, and for the other populations at their default settings: the largest deflection error on
the rays, the relative L2 error of the noiseless HR image in float64 and in float32 (both against the exact sum in
float64), and how far float32 is from float64 (of the peak).
128 x 128 pixels of 0.05", 2 rays along a pixel (1 for 4500 halos).
"""

from collections.abc import Iterator

import numpy as np
import torch

from simulate.instruments import load_instrument
from simulate.scene import Scene, SceneSettings, draw_scene
from simulate.torch_engine.ray_shooting import deflection_field
from simulate.torch_engine.render import View, render_batch

from .peers.base import Task, draw_lens

HALOS = (0, 25, 100, 300, 4500)
POPULATIONS = ("axion", "fdm", "sidm", "wdm")
LENSES = 3


def cases() -> Iterator[tuple[str, list[Scene]]]:
    """What to render: halos as in the speed benchmark, and the populations."""
    for count in HALOS:
        task = Task.from_name(f"{count}@2")
        yield f"{count} TNFW", [draw_lens(task, 0, index) for index in range(1 if count > 1000 else LENSES)]
    for kind in POPULATIONS:
        scenes = [draw_scene(kind, SceneSettings(), 4.53, np.random.default_rng([0, index])) for index in range(LENSES)]
        yield kind, scenes


COLUMNS = ("lens", "perturbers", 'deflection max (")', "L2, float64", "L2, float32", "float32 − float64, of peak")


def main() -> None:
    hr, lr = load_instrument("hst-acs-f814w"), load_instrument("euclid-vis")
    cpu, double = torch.device("cpu"), torch.float64
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for name, scenes in cases():
        view = View(hr, lr, 128, 2, 1 if name == "4500 TNFW" else 2)  # the exact sum of so many takes its time
        grid = view.grid(double, cpu)
        worst = np.zeros(4)
        for scene in scenes:
            exact, fast = (deflection_field([scene], grid, exact) for exact in (True, False))
            reference = render_batch([scene], view, double, cpu, exact=True)[0]
            own = render_batch([scene], view, double, cpu)[0]
            single = render_batch([scene], view, torch.float32, cpu)[0].double()
            errors = [
                torch.hypot(fast[0] - exact[0], fast[1] - exact[1]).max(),
                (own - reference).norm() / reference.norm(),
                (single - reference).norm() / reference.norm(),
                (single - own).abs().max() / own.max(),
            ]
            worst = np.maximum(worst, [float(one) for one in errors])
        smooth = ("EPL", "SHEAR", "CONVERGENCE")
        count = np.mean([sum(one not in smooth for one in scene.lens_model_list) for scene in scenes])
        print(f"| {name} | {count:.0f} | " + " | ".join(f"{one:.1e}" for one in worst) + " |", flush=True)


if __name__ == "__main__":
    main()
