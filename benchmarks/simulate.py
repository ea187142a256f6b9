"""How fast lenses are simulated, and how exactly: our engine, lenstronomy, caustics and jaxtronomy on the same lenses.

    python -m benchmarks.simulate                      # the whole table: about half an hour on two cores
    python -m benchmarks.simulate --cases 0 100 100@3 --systems lenstronomy sharplens --json speed.json
    python -m benchmarks.simulate --device cuda --cases 100@2 --batch 256
    python -m benchmarks.simulate --quick              # seconds: does it run?

Every lens is made as the full pair: HR 128 x 128 at 0.05", LR 64 x 64 at 0.1", each with PSF, pixels and noise. All
systems get all cores, as one process of one thread a core, and an allocator that keeps its memory; compilation is timed
apart. A system is timed only after its images have agreed with lenstronomy's `ImageModel` on the same lenses.
"""

import argparse
import datetime
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .peers import SYSTEMS
from .peers.base import Task
from .peers.measure import Agreement, Request, available_cores, make_reference, measure

CASES = ("0", "25", "100", "300", "4500", "0@3", "100@3")
PACKAGES = ("numpy", "scipy", "numba", "torch", "lenstronomy", "caustics", "jax", "jaxtronomy", "sharplens")
LIMIT = 1e-3
"""Systems whose images differ by more (relative L2) from lenstronomy's are not timed."""
BASELINES = ("lenstronomy", "lenstronomy-best")
HEADER = (
    "case",
    "system",
    "lenses/s",
    "x lenstronomy",
    "x best lenstronomy",
    "image L2",
    "image max",
    'deflection max (")',
    "compile s",
    "lenses",
)


def cpu_name() -> str:
    """As the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment(device: str, workers: int) -> dict[str, Any]:
    """When, where and with which versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": len(available_cores()) or os.cpu_count(),
        "workers": workers,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": versions,
    }
    if device != "cpu":
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def describe(environment: dict[str, Any]) -> str:
    """One line of `environment`."""
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    machine = f"{environment['cpu']}, {environment['cores']} cores" + (
        f", {environment['gpu']}" if "gpu" in environment else ""
    )
    processes = f"{environment['workers']} worker processes" if environment["workers"] else "one process"
    return f"{environment['date']}; {machine}; {processes}; Python {environment['python']}, {versions}"


def measure_row(request: Request, workers: int, reference: Any, limit: float) -> dict[str, Any]:
    """Agreement and speed of one system on one case; what went wrong, if it did, is in `note`."""
    row: dict[str, Any] = {
        "case": request.task.name,
        "subhalos": request.task.subhalos,
        "supersampling": request.task.supersampling,
        "system": request.system,
    }
    entry = SYSTEMS[request.system]
    if entry.missing:
        return {**row, "note": f"{', '.join(entry.missing)} not installed: {entry.install}"}
    try:
        agreement, speed = measure(request, workers, reference, limit)
    except Exception as error:  # one system that fails must not cost the table of the others
        return {**row, "note": f"failed: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
    row["agreement"] = asdict(agreement)
    if speed is None:
        return {**row, "note": f"not timed: {agreement.complaint(limit)}"}
    return {**row, "speed": {**asdict(speed), "lenses_per_second": speed.lenses_per_second}}


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Speed in units of each of `BASELINES` in the same case, where there is one."""
    rates = {(row["case"], row["system"]): row["speed"]["lenses_per_second"] for row in rows if "speed" in row}
    for row in rows:
        for baseline in BASELINES:
            if "speed" in row and (row["case"], baseline) in rates:
                ratio = row["speed"]["lenses_per_second"] / rates[row["case"], baseline]
                row.setdefault("ratio", {})[baseline] = ratio


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table, and below it a line for each system that could not be timed."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * 2}{'--:|' * (len(HEADER) - 2)}"]
    for row in rows:
        if "speed" in row:
            agreement, speed = Agreement(**row["agreement"]), row["speed"]
            ratios = [row.get("ratio", {}).get(baseline) for baseline in BASELINES]
            cells = [
                row["case"],
                row["system"],
                f"{speed['lenses_per_second']:.3g}",
                *("" if ratio is None else f"{ratio:.3g}" for ratio in ratios),
                f"{agreement.image_l2:.1e}",
                f"{agreement.image_max:.1e}",
                f"{agreement.deflection_max_arcsec:.1e}",
                f"{speed['compile_seconds']:.1f}",
                str(speed["lenses"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- {row['system']}, {row['case']}: {row['note']}" for row in rows if "note" in row]
    for row in rows:
        if "peak_gpu_bytes" in row:
            memory = f"batches of {row['batch']}, at most {row['peak_gpu_bytes'] / 2**30:.2f} GiB of GPU memory"
            notes.append(f"- {row['system']}, {row['case']}: {memory}")
    disturbed = [row for row in rows if "peak_gpu_bytes" not in row and row.get("speed", {"busy": 1})["busy"] < 0.9]
    if disturbed:
        least = min(row["speed"]["busy"] for row in disturbed)
        notes.append(f"- The machine was busy with other work: {len(disturbed)} rows had down to {least:.0%} of a core")
    return [*lines, *([""] if notes else []), *notes]


def _case(text: str) -> str:
    if not re.fullmatch(r"\d+(@[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"expected SUBHALOS or SUBHALOS@SUPERSAMPLING such as 100@3, found {text!r}")
    return text


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with what `--quick` and `--device` imply."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", type=_case, help=f"SUBHALOS@SUPERSAMPLING; default: {' '.join(CASES)}")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: all")
    parser.add_argument("--seconds", type=float, default=5.0, help="to time each system and case for")
    parser.add_argument("--most-lenses", type=int, default=20000, help="never more than these")
    parser.add_argument("--workers", type=int, help="processes; 0: this one. Default: one a core")
    parser.add_argument("--compare", type=int, default=3, help="lenses of each case that are compared")
    parser.add_argument("--size", type=int, default=128, help="HR pixels along one axis")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write everything to this file, too")
    parser.add_argument("--device", default="cpu", help="of our engine: cpu or cuda")
    parser.add_argument("--batch", type=int, help="lenses that our engine renders at once; default: 1, on a GPU 128")
    parser.add_argument("--quick", action="store_true", help="small images, few lenses, in this process")
    found = parser.parse_args(arguments)
    gpu = found.device != "cpu"
    if found.quick:
        found.seconds, found.compare, found.size = 0.1, 2, 32
    if found.workers is None:
        found.workers = 0 if found.quick or gpu else len(available_cores()) or os.cpu_count() or 1
    if gpu and found.workers:
        parser.error("--device cuda runs in one process: leave --workers out")
    ours = ["sharplens", "sharplens-float64-exact"]
    found.cases = found.cases or (["25"] if found.quick else ["0", "100@2"] if gpu else list(CASES))
    everything = ["lenstronomy", "lenstronomy-best", *ours] if found.quick else list(SYSTEMS)
    found.systems = found.systems or (["sharplens"] if gpu else everything)
    found.batch = found.batch or (128 if gpu else 1)
    return found


def case_rows(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one case, reported on stderr one by one."""
    task = Task.from_name(name, options.size)
    reference = make_reference(task, options.seed, min(options.compare, 2 if task.subhalos > 1000 else options.compare))
    gpu = options.device != "cpu"
    rows = []
    for system in options.systems:
        ours = system.startswith("sharplens")
        own = {"device": options.device, "batch": options.batch} if ours else {}
        if gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
        request = Request(system, task, options.seed, options.seconds, options.most_lenses, own)
        row = {**measure_row(request, options.workers, reference, LIMIT), **own}
        if gpu and ours:
            row["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
        rows.append(row)
        print(f"{row['case']}, {system}: {row.get('speed', row.get('note'))}", file=sys.stderr)
    add_ratios(rows)
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table; returns its rows."""
    options = parse(arguments)
    where = environment(options.device, options.workers)
    print(describe(where), "\n", sep="")
    rows: list[dict[str, Any]] = []
    for name in options.cases:
        rows += case_rows(name, options)
        if options.json:
            options.json.write_text(json.dumps({"environment": where, "rows": rows}, indent=1), encoding="utf-8")
    print("\n".join(table(rows)))
    return rows


if __name__ == "__main__":
    main()
