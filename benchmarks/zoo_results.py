"""What `benchmarks.zoo` writes of each model (settings, budget, machine, scores, speed), and of the ceiling."""

import json
import re
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from simulate.provenance import git_revision
from simulate.shards import Pairs, manifest_sha256, read_pairs, write_json
from sr.classical import blur_control, richardson_lucy, wiener
from sr.config import RunConfig
from sr.evaluate import finished_models, models_sha256
from sr.evaluation_methods import Method
from sr.stages import fingerprint, read_metrics
from sr.trained_model import TrainedModel, interpolation_model

from .simulate import environment
from .train_gauges import Disturbance

WARM_UP_BATCHES, LEAST_BATCHES, MOST_BATCHES = 2, 5, 50
ENOUGH_SECONDS = 1.0
ABOUT = ("model", "architecture", "kind", "parameters", "chosen", "self_ensemble", "images_per_second")
"""Keys of a row of evaluation that are no scores."""
CEILING_NAME = "ceiling.json"


@dataclass(frozen=True)
class Origin:
    """Which configuration was run, and with what."""

    config: str
    overrides: tuple[str, ...]
    workers: int

    def folder_name(self, device: torch.device) -> str:
        """Of its results on `device`."""
        return f"{self.config}-{slug(device_name(device))}"


def device_name(device: torch.device) -> str:
    """The kind of device: "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def slug(text: str) -> str:
    """For the name of a file."""
    return re.sub(r"[^\w.]+", "-", text.lower()).strip("-")


def are_written(folder: Path, run: Path, settings: RunConfig, device: torch.device) -> bool:
    """Whether `folder` has the results of exactly the models that are trained by now, evaluated so, on this device."""
    models = finished_models(run, device)
    identity = _identity(run, settings, models, device)
    written = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    found = {one.get("model") for one in written if one.get("identity") == identity}
    return found >= {"bicubic", *(model.name for model in models)}


def _identity(run: Path, settings: RunConfig, models: list[TrainedModel], device: torch.device) -> str:
    weights = json.dumps(models_sha256(run, models))
    data = manifest_sha256(run / "data")
    return fingerprint(settings.evaluate, data=data, seed=settings.seed, weights=weights, device=device_name(device))


def write_results(
    folder: Path, run: Path, settings: RunConfig, metrics: Mapping[str, Any], device: torch.device, origin: Origin
) -> list[Path]:
    """Write FOLDER/MODEL.json for each row of `metrics`, which are `evaluate_run`'s on `device`; times each method.

    Where the ceiling was measured, FOLDER/ceiling.json has the oracle and the bounds, and models have their efficiency.
    """
    models = {model.name: model for model in finished_models(run, device)}
    identity = _identity(run, settings, list(models.values()), device)
    sizes = {model.folder_name: model.size for model in settings.train.models}
    test = read_pairs(run / "data", "test")
    about = {
        "identity": identity,
        "config": origin.config,
        "overrides": list(origin.overrides),
        "data_sha256": metrics["data_sha256"],
        "data_range": metrics["data_range"],
        "counts": settings.simulate.counts.model_dump(),
        "scenes": metrics["scenes"],
        "evaluated_on": device_name(device),
        "machine": environment(str(device), origin.workers),
        "git_revision": git_revision(),
    }
    paths = []
    ceiling, trust = metrics["ceiling"], metrics["trust"]
    by_model = {
        "efficiency": ceiling.get("efficiency", {}),
        "trust": {row["model"]: {key: row[key] for key in row if key != "model"} for row in trust["rows"]},
        "coverage": trust["coverage"],
    }
    if "bounds" in ceiling:
        whole = {key: value for key, value in ceiling.items() if key != "efficiency"}
        write_json(folder / CEILING_NAME, {**about, "kind": "ceiling", **whole})
    for row in metrics["rows"]:
        trained = row["model"].removesuffix(" x8") if row.get("self_ensemble") else row["model"]
        model = models.get(trained)
        method = _method(row, model, test, device, settings.evaluate.batch_size)
        speed = measure_speed(method, test, settings.evaluate.batch_size)
        content = {
            "model": row["model"],
            "mixed": False,
            **{key: row[key] for key in ABOUT[1:] if key in row and key != "images_per_second"},
            **({} if model is None else _training(run, model, sizes.get(trained), device)),
            "scores": {key: value for key, value in row.items() if key not in ABOUT},
            **{key: found[row["model"]] for key, found in by_model.items() if row["model"] in found},
            "images_per_second": {"evaluation": row["images_per_second"], **speed},
            **about,
        }
        paths.append(folder / f"{slug(row['model'])}.json")
        write_json(paths[-1], content)
    return paths


def _training(run: Path, model: TrainedModel, size: str | None, device: torch.device) -> dict[str, Any]:
    """What a model is and how it was trained; it is mixed if on several devices, or on another than scored on."""
    metrics = read_metrics(run / "train" / model.name)
    kinds = {*metrics["devices"], device_name(device)}
    return {
        "mixed": len(kinds) > 1,
        "size": size,
        "settings": model.config.settings,
        "training": model.config.training,
        "training_seconds": metrics["seconds"],
        "trained_on": metrics["devices"],
        "best_step": metrics["best_step"],
        "validation": metrics["validation"],
        "curve": metrics["curve"],
    }


def _method(
    row: Mapping[str, Any], model: TrainedModel | None, test: Pairs, device: torch.device, batch_size: int
) -> Method:
    """What a row of evaluation was made by."""
    classical: dict[str, Callable[..., np.ndarray]] = {
        "blur control": blur_control,
        "wiener": wiener,
        "richardson-lucy": partial(richardson_lucy, device=device),
    }
    if row["model"] in classical:
        return partial(classical[row["model"]], **row["chosen"])
    network = model or interpolation_model(row["model"], test)
    ensemble = row.get("self_ensemble", False)
    return lambda pairs: network.super_resolve_pairs(pairs, device, batch_size, ensemble)


def measure_speed(method: Method, test: Pairs, batch_size: int) -> dict[str, Any]:
    """Images a second, from flux in memory to flux in memory: the median batch, after a warm-up.

    What returns is a numpy array, so the device has done its work by then. "disturbed_cores": how many were busy with
    the machine's other work meanwhile.
    """
    batch = test.select(np.resize(np.arange(len(test)), batch_size))
    for _ in range(WARM_UP_BATCHES):
        method(batch)
    seconds: list[float] = []
    disturbance = Disturbance()
    while len(seconds) < LEAST_BATCHES or (sum(seconds) < ENOUGH_SECONDS and len(seconds) < MOST_BATCHES):
        began = perf_counter()
        method(batch)
        seconds.append(perf_counter() - began)
    return {
        "median": batch_size / statistics.median(seconds),
        "batch_size": batch_size,
        "batches": len(seconds),
        "disturbed_cores": disturbance.cores(),
    }
