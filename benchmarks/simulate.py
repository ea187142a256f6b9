"""How fast lenses are simulated: our pair renderer against lenstronomy's ImageModel, same scenes, one process.

    python -m benchmarks.simulate [--lenses 12] [--supersampling 4]

ImageModel shoots the rays once for each instrument; we shoot them once for both. Prints seconds a pair, the ratio, and
the largest difference between the two HR images as a share of the peak.
"""

import argparse
import os
import platform
from time import perf_counter

import numpy as np

from simulate.generate import SimulateSettings
from simulate.instruments import Instrument
from simulate.lenstronomy_engine import render_pair, render_reference
from simulate.scene import draw_scene


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lenses", type=int, default=12, help="lenses of each kind")
    parser.add_argument("--supersampling", type=int, default=4)
    arguments = parser.parse_args()
    settings = SimulateSettings().resolve()
    hr, lr = settings.hr_instrument, settings.lr_instrument
    assert isinstance(hr, Instrument)
    assert isinstance(lr, Instrument)
    rays, size, scale = arguments.supersampling, settings.hr_size, settings.scale
    print(f"{platform.machine()}, {os.cpu_count()} cores, {size} -> {size // scale} pixels, {rays} rays along a pixel")
    print(f"{'kind':8}{'perturbers':>11}{'ours s/pair':>13}{'ImageModel':>12}{'ratio':>8}{'difference':>12}")
    for kind in settings.classes:
        ours, theirs, worst, perturbers = [], [], 0.0, []
        for index in range(arguments.lenses + 1):
            rng = np.random.default_rng([0, index])
            scene = draw_scene(kind, settings.scene, size * hr.pixel_scale_arcsec / np.sqrt(2), rng)
            started = perf_counter()
            pair = render_pair(scene, hr, lr, size, scale, rays, rng)
            middle = perf_counter()
            reference = render_reference(scene, hr, size, rays)
            render_reference(scene, lr, size // scale, rays * scale)
            if index == 0:
                continue  # the first compiles lenstronomy's numba functions
            ours.append(middle - started)
            theirs.append(perf_counter() - middle)
            worst = max(worst, float(np.abs(pair.hr - reference).max() / reference.max()))
            perturbers.append(len(scene.lens_model_list) - 2)
        ratio = np.median(np.array(theirs) / ours)
        times = f"{np.median(ours):13.3f}{np.median(theirs):12.3f}{ratio:8.2f}"
        print(f"{kind:8}{np.mean(perturbers):11.0f}{times}{worst:12.1e}")


if __name__ == "__main__":
    main()
