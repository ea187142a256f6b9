"""All results of a configuration, in slices that resume: simulate, train, evaluate, one results file a model.

    python -m benchmarks.zoo --config paper --out runs/paper                      # a slice of at most 8.5 minutes
    python -m benchmarks.zoo --config paper --out runs/paper --models edsr rdn    # some models; others elsewhere
    python -m benchmarks.zoo --config paper --out runs/paper --evaluate           # results of what is trained by now

Exit codes: 0 all is finished, 3 there is more to do, 2 the input is wrong, 1 failed. This does all of it, and stops at
the first failure:

    until python -m benchmarks.zoo --config paper --out runs/paper; do [ $? -eq 3 ] || break; done

Two calls may train different models of one run at the same time, once its data are there; the last to finish
evaluates. A slice must be longer than a shard of the data and the evaluation take, which cannot be cut further (the
evaluation begins only where at least half of a slice is left). The results go to docs/results/CONFIG-DEVICE/MODEL.json;
`docs/make_results.py` makes tables and figures of them. A training that goes on on another kind of device, and a model
evaluated on another kind than it was trained on, are marked as mixed: their times mean nothing, and no table has them.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from simulate.errors import InputError
from simulate.generate import simulate_run
from simulate.provenance import provenance
from simulate.shards import MANIFEST_NAME, read_manifest
from sr.checkpoint import CHECKPOINT_NAME
from sr.config import RunConfig, find_device, keep_config, load_config
from sr.evaluate import evaluate_run
from sr.plan import ModelSettings
from sr.stages import METRICS_NAME, read_metrics
from sr.trainer import OutOfTimeError
from sr.training import train_run

from .zoo_results import Origin, are_written, write_results

FINISHED, WRONG_INPUT, MORE_TO_DO = 0, 2, 3


@contextmanager
def time_limit(deadline: float, what: str) -> Iterator[None]:
    """Raise `OutOfTimeError` in the block at `deadline` (of `time.monotonic`), where the system has such alarms."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise OutOfTimeError(what)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, deadline - monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def is_trained(run: Path, model: ModelSettings) -> bool:
    return (run / "train" / model.folder_name / METRICS_NAME).is_file()


def choose_models(settings: RunConfig, names: Sequence[str] | None) -> tuple[ModelSettings, ...]:
    """Those called `names`, or all. Raises `InputError` for a name that the configuration does not have."""
    known = {model.folder_name: model for model in settings.train.models}
    for name in names or ():
        if name not in known:
            raise InputError(f"--models {name}: the configuration trains {', '.join(known)}")
    return tuple(known[name] for name in names) if names else settings.train.models


def is_simulated(run: Path, settings: RunConfig) -> bool:
    """Whether RUN/data is complete and of these settings, without reading it, which takes long for large data."""
    if not (run / "data" / MANIFEST_NAME).is_file():
        return False
    origin = provenance(settings.simulate.resolve(), settings.seed)
    manifest = read_manifest(run / "data")
    return all(manifest.get(key) == origin[key] for key in ("config_sha256", "seed"))


def train_slice(
    run: Path, settings: RunConfig, chosen: Sequence[ModelSettings], device: torch.device, workers: int, deadline: float
) -> None:
    """Simulate what is missing and train `chosen` models, until all are finished or `OutOfTimeError` is raised."""
    if not is_simulated(run, settings):
        with time_limit(deadline, "simulating; the shards that are written are kept"):
            simulate_run(run, settings.simulate, settings.seed, True, workers, device)
    part = settings.train.model_copy(update={"models": tuple(chosen)})
    train_run(run, part, settings.seed, device, resume=True, workers=workers, deadline=deadline)
    if len(part.models) < len(settings.train.models) and all(is_trained(run, one) for one in settings.train.models):
        train_run(
            run, settings.train, settings.seed, device, resume=True, workers=workers
        )  # so that the report has all
    keep_config(settings, run)


def evaluate_slice(run: Path, settings: RunConfig, device: torch.device, origin: Origin, folder: Path) -> None:
    """Score all trained models, unless the results of just these are written, and write the results."""
    if are_written(folder, run, settings, device):
        return
    metrics = evaluate_run(run, settings.evaluate, settings.seed, device, resume=False)
    for path in write_results(folder, run, settings, metrics, device, origin):
        print(f"results: {path}")


def describe_progress(run: Path, settings: RunConfig) -> str:
    """What is done and what remains, of all models of the configuration."""
    done, remaining = [], []
    for model in settings.train.models:
        folder = run / "train" / model.folder_name
        if is_trained(run, model):
            score = read_metrics(folder)["validation"]["psnr_db"]
            done.append(f"{model.folder_name} ({score:.2f} dB in validation)")
        else:
            begun = " (begun)" if (folder / CHECKPOINT_NAME).is_file() else ""
            remaining.append(model.folder_name + begun)
    return f"trained: {', '.join(done) or 'none'}; to train: {', '.join(remaining) or 'none'}"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("paper"), help="YAML file, or the name of a shipped one")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="in place of the file's")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="train only these of the configuration")
    parser.add_argument("--evaluate", action="store_true", help="train nothing; score what is trained")
    parser.add_argument("--minutes", type=float, default=8.5, help="of this slice")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--workers", type=int, default=0, help="processes that simulate; 0: one a CPU core")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), metavar="FOLDER")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """One slice; returns the exit code. Raises `InputError`."""
    options = parse(arguments)
    begun = monotonic()
    deadline = begun + 60 * options.minutes
    run, settings = options.out, load_config(options.config, options.out, options.set, None)
    chosen = choose_models(settings, options.models)
    device = find_device(options.device)
    workers = options.workers or os.cpu_count() or 1
    origin = Origin(options.config.stem, tuple(options.set), workers)
    folder = options.results / origin.folder_name(device)
    if not options.evaluate:
        try:
            train_slice(run, settings, chosen, device, workers, deadline)
        except OutOfTimeError as error:
            print(f"out of time: {error}\n{describe_progress(run, settings)}")
            return MORE_TO_DO
        if not all(is_trained(run, model) for model in settings.train.models):
            print(f"trained what was asked for\n{describe_progress(run, settings)}")
            return FINISHED
        if monotonic() > begun + 30 * options.minutes and not are_written(folder, run, settings, device):
            print(f"{describe_progress(run, settings)}; to evaluate: all of them")
            return MORE_TO_DO
    evaluate_slice(run, settings, device, origin, folder)
    print(f"{describe_progress(run, settings)}; results: {folder}")
    return FINISHED


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the pipeline does
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
