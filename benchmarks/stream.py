"""How fast the training stream is: pairs a second of HR and LR images with noise, on the device that trains.

    python -m benchmarks.stream [--device cpu] [--workers 2] [--subhalos 100] [--block 64] [--seconds 30]

128 -> 64 pixels, HST and Euclid, a Poisson number of TNFW subhalos. The time starts when the pool of a training would
be full, so that the start of the workers does not count. On a GPU it also says how much memory the blocks were rendered
in, and how fast the workers alone draw scenes.
"""

import argparse
import os
import platform
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from time import perf_counter

import torch

from simulate.generate import SimulateSettings
from simulate.sample import draw_sample
from simulate.stream import open_stream
from simulate.torch_engine.packing import compact, pack_macro, pack_perturbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--subhalos", type=float, default=100.0, help="expected number in a lens")
    parser.add_argument("--supersampling", type=int, default=2)
    parser.add_argument("--block", type=int, default=64, help="pairs")
    parser.add_argument("--memory-gib", type=float, default=4.0, help="for rendering on a GPU")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    scene = {
        "supersampling": arguments.supersampling,
        "populations": {"cdm": {"mean_count": arguments.subhalos}},
    }
    content = {"classes": ["cdm" if arguments.subhalos else "none"], "hr_size": 128, "scene": scene}
    settings = SimulateSettings.model_validate(content).resolve()
    memory_bytes = int(arguments.memory_gib * 2**30)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(f"{name}, torch {torch.__version__}, {arguments.workers} workers on {os.cpu_count()} cores")
    started, count = perf_counter(), 20
    scenes = [draw_sample(settings, 0, index, "train")[0] for index in range(count)]
    print(f"drawing alone: {(perf_counter() - started) / count * 1e3:.2f} ms a scene and core")
    sent = ForkingPickler.dumps([compact(scene) for scene in scenes])
    started = perf_counter()
    received = ForkingPickler.loads(sent)  # as worker processes send them
    pack_macro(received)
    pack_perturbers(received)
    print(f"taking in and packing: {(perf_counter() - started) / count * 1e3:.3f} ms a scene")
    with open_stream(settings, 0, 0, arguments.block, device, arguments.workers, memory_bytes) as stream:
        blocks = stream.blocks()
        started = perf_counter()
        for _ in islice(blocks, 4 + stream.tasks_ahead * 8 // arguments.block):
            pass
        _finish(device)
        print(f"started in {perf_counter() - started:.1f} s")
        started, made = perf_counter(), 0
        while (seconds := perf_counter() - started) < arguments.seconds:
            made += len(next(blocks).index)
            _finish(device)
    print(f"{made} pairs in {seconds:.1f} s: {made / seconds:.1f} pairs a second")
    if device.type == "cuda":
        print(f"at most {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB of the GPU's memory")


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
