"""How fast networks train, and in how much memory: our loop in its modes beside a plain PyTorch loop, on one device.

    python -m benchmarks.train                               # all models; leaves out what 9 minutes cannot hold
    python -m benchmarks.train --models rcan --loops plain bfloat16 --json speed.json
    python -m benchmarks.train --device cuda --size full --batch 64 --crop 48
    python -m benchmarks.train --quick                       # seconds: does it run?

Every row is one training in a process of its own, on pairs that are simulated first (128 <- 64 pixels; --data takes
those of a run). It gives images (LR crops) a second, the share of the device's matrix peak (measured here, by large
matrix products in the row's precision) that forward and backward amount to, peak memory, the seconds of the first
steps (compilation is in them), and the seconds until the moving average of weights reaches the target PSNR on the
validation pairs (everything but validation counts). The plain loop is `benchmarks/peers/basicsr_loop.py`; both learn by
the same recipe, except that it knows no loss but L1. Adversarial models are left out unless named: what trains here is
their generator alone.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import numpy as np
import torch

from simulate.generate import SimulateSettings, simulate_run
from simulate.shards import read_pairs
from sr.metrics import data_range_of, image_scores
from sr.models import ARCHITECTURES
from sr.trained_model import interpolation_model

from .simulate import environment
from .train_gauges import PRECISIONS, matrix_peak
from .train_rows import LOOPS, PLAIN, Row, in_process, measure_row

TRAIN_PAIRS, VALIDATION_PAIRS = 256, 16
GAIN_DB = 6.0
"""The target PSNR is bicubic interpolation's and so much, if none is given."""
START_SECONDS = 180.0
"""A row may take so much longer than its timed training: to start, to compile, for the first steps."""
LEARNING_RATES = {"small": 2e-3, "full": 2e-4}
HEADER = (
    "model",
    "loop",
    "images/s",
    "x plain",
    "share of peak",
    "memory (MiB)",
    "first steps (s)",
    "seconds to PSNR",
    "x plain",
)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table, by model, and below it a line for each row that could not be measured."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * 2}{'--:|' * (len(HEADER) - 2)}"]
    order = list(dict.fromkeys(row["model"] for row in rows))
    for row in sorted(rows, key=lambda row: order.index(row["model"])):
        if "note" in row:
            continue
        ratio, share, memory = row.get("ratio", {}), row.get("share_of_peak"), row["peak_memory_bytes"]
        reached = row["seconds_to_target"]
        best = "" if row["best_psnr_db"] is None else f"{row['best_psnr_db']:.1f} dB in {row['trained_seconds']:.0f} s"
        cells = [
            row["model"],
            row["loop"],
            f"{float(format(row['images_per_second'], '.3g')):g}",
            f"{ratio['images']:.2f}" if "images" in ratio else "",
            "" if share is None else f"{share:.1%}",
            "" if memory is None else f"{memory / 2**20:.0f}",
            f"{row['warm_up_seconds']:.1f}",
            best if reached is None else f"{reached:.1f}",
            f"{ratio['seconds']:.2f}" if "seconds" in ratio else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- {row['model']}, {row['loop']}: {row['note']}" for row in rows if "note" in row]
    disturbed = [cores for row in rows if (cores := row.get("disturbed_cores") or 0.0) > 0.1]
    if disturbed:
        notes.append(
            f"- The machine was busy with other work: up to {max(disturbed):.1f} cores of it in {len(disturbed)} rows"
        )
    return [*lines, *([""] if notes else []), *notes]


def add_ratios(rows: list[dict[str, Any]], peaks: dict[str, float]) -> None:
    """Share of the peak, and how many times as fast as the plain loop of the same model: in images, and to the PSNR."""
    plain = {row["model"]: row for row in rows if row["loop"] == PLAIN and "note" not in row}
    for row in rows:
        if "note" in row:
            continue
        if row["precision"] in peaks:
            row["share_of_peak"] = row["flops_per_second"] / peaks[row["precision"]]
        if (base := plain.get(row["model"])) and row is not base:
            row["ratio"] = {"images": row["images_per_second"] / base["images_per_second"]}
            if row["seconds_to_target"] and base["seconds_to_target"]:
                row["ratio"]["seconds"] = base["seconds_to_target"] / row["seconds_to_target"]


def make_data(run: Path, quick: bool, seed: int = 0) -> None:
    """Simulate RUN/data: lenses of all classes in the default scenes."""
    counts = {"train": 8, "val": 2, "test": 1} if quick else {"train": TRAIN_PAIRS, "val": VALIDATION_PAIRS, "test": 1}
    content = {"counts": counts, "hr_size": 32 if quick else 128}
    workers = 1 if quick else os.cpu_count() or 1
    simulate_run(run, SimulateSettings.model_validate(content), seed, resume=False, workers=workers, verify=0)


def bicubic_psnr_db(data: Path) -> float:
    """Mean over the validation pairs."""
    train, val = read_pairs(data, "train"), read_pairs(data, "val")
    images = interpolation_model("bicubic", val).super_resolve(val.lr, val.lr_noise, torch.device("cpu"))
    return float(np.mean(image_scores(images, val, data_range_of(train.hr, train.hr_mask))["psnr_db"]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what the device and `--quick` imply."""
    # the plain loop has nothing to tell a network that knows the degradation
    trainable = [name for name, one in ARCHITECTURES.items() if one.trainable and not one.knows_degradation]
    usual = [name for name in trainable if not ARCHITECTURES[name].adversarial]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--models", nargs="+", choices=trainable, metavar="MODEL", help=f"of {', '.join(trainable)}")
    parser.add_argument("--loops", nargs="+", choices=LOOPS, default=list(LOOPS), metavar="LOOP", help=", ".join(LOOPS))
    parser.add_argument("--size", choices=("small", "full"), help="of the models; default: small, on a GPU full")
    parser.add_argument("--batch", type=int, default=16, help="crops in a step")
    parser.add_argument("--crop", type=int, default=24, help="LR pixels along an axis")
    parser.add_argument("--steps", type=int, default=1000, help="of a training's schedule, and at most")
    parser.add_argument("--learning-rate", type=float, help="the highest of the schedule; default: by size")
    parser.add_argument("--seconds", type=float, default=20.0, help="at most for a training, after its first steps")
    parser.add_argument("--target-psnr", type=float, help=f"dB; default: bicubic's and {GAIN_DB:g}")
    parser.add_argument("--workers", type=int, help="that load for the plain loop; default: 1, on a GPU up to 8")
    parser.add_argument("--data", type=Path, metavar="RUN", help="a run with data; default: simulate some")
    parser.add_argument("--minutes", type=float, default=9.0, help="rows that do not begin within these are left out")
    parser.add_argument("--json", type=Path, help="write everything to this file, too")
    parser.add_argument("--quick", action="store_true", help="one model, tiny images, few steps, nothing compiled")
    found = parser.parse_args(arguments)
    if found.device == "auto":
        found.device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = found.device == "cuda"
    found.models = found.models or (["fsrcnn"] if found.quick else usual)
    found.size = found.size or ("full" if gpu and not found.quick else "small")
    found.learning_rate = found.learning_rate or LEARNING_RATES[found.size]
    found.workers = (min(8, os.cpu_count() or 1) if gpu else 1) if found.workers is None else found.workers
    found.interval = 25
    if found.quick:
        found.batch, found.crop, found.steps, found.interval = 2, 8, 20, 3
        found.loops = [name for name in found.loops if "compiled" not in name]
    return found


def measure_all(
    options: argparse.Namespace, data: Path, target_psnr_db: float, deadline: float
) -> Iterator[dict[str, Any]]:
    """The rows, one by one, until `deadline`: of every model the first two loops, one after the other because speeds
    drift, then of all models the next loop, and so on.
    """
    first, others = options.loops[:2], options.loops[2:]
    order = [(model, loop) for model in options.models for loop in first]
    for model, loop in order + [(model, loop) for loop in others for model in options.models]:
        row = Row(
            model, options.size, loop, options.device, data, options.batch, options.crop, options.steps,
            options.learning_rate, options.seconds, target_psnr_db, options.interval, options.workers,
        )  # fmt: skip
        known = {"model": model, "size": options.size, "loop": loop, "device": options.device}
        known["precision"] = LOOPS[loop].get("precision", "float32")
        left = deadline - monotonic()
        if left < 0:
            yield {**known, "note": f"left out: the {options.minutes:g} minutes were over"}
            continue
        try:
            found = in_process(measure_row, row, seconds=min(left, options.seconds + START_SECONDS))
        except RuntimeError as error:  # one row that fails must not cost the others
            found = {"note": f"failed: {error}"}
        yield {**known, **found}


def describe(where: dict[str, Any], options: argparse.Namespace) -> str:
    """Two lines: the machine, and what is trained on it."""
    peaks = ", ".join(f"{name} {peak:.3g}" for name, peak in where["peak_tflops"].items())
    machine = f"{where['cpu']}, {where['cores']} cores" + (f", {where['gpu']}" if "gpu" in where else "")
    return (
        f"{where['date']}; {machine}, load {where['load_before']:.1f} before; {where['threads']} threads; "
        f"Python {where['python']}, torch {where['versions']['torch']}; matrix products of {peaks} TFLOP/s\n"
        f"size {options.size}, batches of {options.batch} crops of {options.crop} LR pixels, at most {options.steps} "
        f"steps; target {where['target_psnr_db']:.2f} dB; the plain loop has {options.workers} loading processes"
    )


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table; returns its rows."""
    began, load = monotonic(), os.getloadavg()[0]
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the pipeline does; the rows' processes inherit it
    options = parse(arguments)
    with ExitStack() as stack:
        run = options.data
        if run is None:
            run = Path(stack.enter_context(TemporaryDirectory()))
            make_data(run, options.quick)
        target = bicubic_psnr_db(run / "data") + GAIN_DB if options.target_psnr is None else options.target_psnr
        peaks = {name: in_process(matrix_peak, options.device, name, seconds=120) for name in PRECISIONS}
        where = {
            **environment(options.device, options.workers),
            "threads": torch.get_num_threads(),
            "peak_tflops": {name: peak / 1e12 for name, peak in peaks.items()},
            "target_psnr_db": target,
            "load_before": load,
            "options": {name: value for name, value in vars(options).items() if name not in ("data", "json")},
        }
        print(describe(where, options), "\n", sep="")
        rows: list[dict[str, Any]] = []
        for row in measure_all(options, run / "data", target, began + 60 * options.minutes):
            rows.append(row)
            add_ratios(rows, peaks)
            print(f"{row['model']}, {row['loop']}: {row.get('note') or _brief(row)}", file=sys.stderr)
            if options.json:
                options.json.write_text(json.dumps({"environment": where, "rows": rows}, indent=1), encoding="utf-8")
    print("\n".join(table(rows)))
    return rows


def _brief(row: dict[str, Any]) -> str:
    reached = "" if row["seconds_to_target"] is None else f", target after {row['seconds_to_target']:.1f} s"
    return f"{row['images_per_second']:.4g} images/s{reached}"


if __name__ == "__main__":
    main()
