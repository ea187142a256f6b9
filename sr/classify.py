"""The check: does super-resolution help to tell dark matter apart, or does it only look better?

One classifier is trained and tested on each representation of the same scenes, with the same budget, seeds and
preprocessing. Controls look for ways to the answer that need no substructure.
"""

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from pydantic import Field

from simulate.errors import InputError
from simulate.progress import progress_bar
from simulate.shards import Pairs, manifest_sha256, read_pairs

from .classification_scores import Resampling, accuracy, curves, interval, macro_auc
from .classifier import ClassifierSettings, predict, train_classifier
from .evaluate import finished_models, models_sha256
from .shortcuts import SHORTCUTS, predict_from
from .stages import fingerprint, finished_metrics, write_metrics
from .trained_model import TrainedModel, interpolation_model
from .verdict import classification_verdict

SPLITS = ("train", "val", "test")
REFERENCE = "lr"
SHUFFLED = "hr noiseless"  # where a leak would show most

NOTES = (
    "The super-resolution networks were trained on the same training split as the classifier (without labels): the "
    "images it learns from are in-sample for them, those it is tested on are not. All test scenes are unseen.",
    "Every classifier keeps the epoch with the lowest validation loss; the test split chooses nothing.",
    "Intervals are 95 % percentile bootstrap over test scenes and the classifier's seeds; few seeds show little of the "
    "luck of training it, and each super-resolution network was trained once.",
)


class ClassifySettings(ClassifierSettings):
    """The classifier's budget, and how often it is trained anew."""

    seeds: int = Field(3, ge=1)


def preprocess(images: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(N,1,H,W) flux per HR pixel -> what the classifier sees: asinh of surface brightness over the median LR noise.

    The same factor for every representation of a scene, so none is given away by its own noise or contrast.
    """
    noise = np.median(pairs.lr_noise, axis=(1, 2, 3), keepdims=True)
    return np.arcsinh(images * (pairs.scale**2 / noise)).astype(np.float32)


def classify_run(
    run: Path, settings: ClassifySettings, seed: int, device: torch.device, resume: bool
) -> dict[str, Any]:
    """Run the check on RUN/data with every finished model of RUN/train; write RUN/classify/metrics.json.

    Raises `InputError` if a split has no scene of one of the classes.
    """
    started = perf_counter()
    folder = run / "classify"
    models = finished_models(run, device)
    hashes = models_sha256(run, models)
    data_sha256 = manifest_sha256(run / "data")
    identity = fingerprint(settings, data=data_sha256, seed=seed, models=json.dumps(hashes))
    if metrics := finished_metrics(folder, identity, resume):
        return metrics

    data = {split: read_pairs(run / "data", split) for split in SPLITS}
    _require_every_class(data, run / "data")
    test = data["test"]
    seeds = [int(np.random.SeedSequence([seed, one]).generate_state(1)[0]) for one in range(settings.seeds)]
    generator = np.random.default_rng(seed)
    resampling = Resampling.draw(len(test), len(seeds), generator)
    shuffled = {split: generator.permutation(data[split].label) for split in ("train", "val")}

    rows: list[dict[str, Any]] = []
    auc: dict[str, np.ndarray] = {}
    representations = _representations(models, device)
    with _seed_workers(device) as pool, progress_bar("classify", (len(representations) + 1) * len(seeds)) as advance:

        def learn(images: dict[str, np.ndarray], label: dict[str, np.ndarray], name: str) -> np.ndarray:
            """(S,N,C) test probabilities, one classifier a seed."""
            train, val = ((images[split], label[split]) for split in ("train", "val"))

            def learn_once(one: int) -> np.ndarray:
                network = train_classifier(train, val, len(test.classes), settings, one, device)
                probability = predict(network, images["test"], device)
                advance(note=name)
                return probability

            return np.stack(list(pool.map(learn_once, seeds)))

        for name, (kind, represent) in representations.items():
            images = {split: preprocess(represent(pairs), pairs) for split, pairs in data.items()}
            probability = learn(images, {split: data[split].label for split in ("train", "val")}, name)
            auc[name] = resampling.estimates(macro_auc, probability, test.label)
            rows.append({"name": name, "kind": kind, **_scores(probability, test, resampling)})
            if name == SHUFFLED:
                control = learn(images, shuffled, "shuffled labels")
    for row in rows:
        row["auc_difference_from_lr"] = _difference(auc[row["name"]], auc[REFERENCE], row["kind"], len(models))

    controls = [{"name": "shuffled labels", "of": SHUFFLED, **_scores(control, test, resampling)}]
    controls += [_shortcut(name, data, resampling.of_one_seed()) for name in SHORTCUTS]
    content: dict[str, Any] = {
        "classes": list(test.classes),
        "scenes": {split: len(pairs) for split, pairs in data.items()},
        "seeds": len(seeds),
        "chance": {"accuracy": 1 / len(test.classes), "auc": 0.5},
        "representations": rows,
        "controls": controls,
        "notes": list(NOTES),
        "data_sha256": data_sha256,
        "models_sha256": hashes,
        "device": str(device),
    }
    content["verdict"] = classification_verdict(content)
    return write_metrics(folder, identity, perf_counter() - started, content)


def _seed_workers(device: torch.device) -> ThreadPoolExecutor:
    """Trains seeds side by side: layers this small gain little from a second thread, and two trainings do."""
    if device.type == "cuda":
        return ThreadPoolExecutor(1)
    return ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,))


def _representations(
    models: list[TrainedModel], device: torch.device
) -> dict[str, tuple[str, Callable[[Pairs], np.ndarray]]]:
    """name -> (kind, images (N,1,H,W) of pairs), in the order of the tables."""

    def super_resolved(model: TrainedModel) -> Callable[[Pairs], np.ndarray]:
        return lambda pairs: model.super_resolve_pairs(pairs, device)

    def interpolated(pairs: Pairs) -> np.ndarray:
        return interpolation_model("bicubic", pairs).super_resolve(pairs.lr, pairs.lr_noise, device)

    return {
        REFERENCE: ("interpolated", interpolated),
        **{model.name: ("super-resolved", super_resolved(model)) for model in models},
        "hr observed": ("high resolution", lambda pairs: pairs.hr_noisy),
        SHUFFLED: ("high resolution", lambda pairs: pairs.hr),
    }


def _require_every_class(data: dict[str, Pairs], folder: Path) -> None:
    for split, pairs in data.items():
        missing = [name for number, name in enumerate(pairs.classes) if not (pairs.label == number).any()]
        if missing:
            raise InputError(
                f"{folder}: the {split} split has no scene of class {', '.join(missing)}; "
                f"make more data (simulate.counts.{split}), at least one scene of each class"
            )


def _scores(probability: np.ndarray, test: Pairs, resampling: Resampling) -> dict[str, Any]:
    """Scores of (S,N,C) probabilities: means over seeds with intervals; curves of the seeds' mean probability."""
    itself = np.ones((1, len(test)))
    return {
        "auc": interval(resampling.estimates(macro_auc, probability, test.label)),
        "accuracy": interval(resampling.estimates(accuracy, probability, test.label)),
        "auc_per_seed": [float(macro_auc(one, test.label, itself)[0]) for one in probability],
        "auc_of_mean_probability": float(macro_auc(probability.mean(0), test.label, itself)[0]),
        **curves(probability.mean(0), test.label, test.classes),
    }


def _difference(auc: np.ndarray, reference: np.ndarray, kind: str, model_count: int) -> dict[str, float]:
    """AUC minus that of interpolated LR; "jointly" holds for all models at once at 95 % (Bonferroni)."""
    difference = auc - reference
    comparisons = model_count if kind == "super-resolved" else 2  # the two of high resolution
    jointly = interval(difference, 1 - 0.05 / comparisons)
    return {**interval(difference), "low_jointly": jointly["low"], "high_jointly": jointly["high"]}


def _shortcut(name: str, data: dict[str, Pairs], resampling: Resampling) -> dict[str, Any]:
    try:
        probability = predict_from(SHORTCUTS[name], data["train"], data["test"])[None]
    except ValueError as error:
        return {"name": name, "skipped": str(error)}
    label = data["test"].label
    return {
        "name": name,
        "auc": interval(resampling.estimates(macro_auc, probability, label)),
        "accuracy": interval(resampling.estimates(accuracy, probability, label)),
    }
