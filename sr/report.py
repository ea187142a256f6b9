"""One page that a person wants to read: what was asked, what was found, and how it was made."""

import json
import math
import os
import platform
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from simulate.provenance import git_revision, package_versions
from simulate.shards import MANIFEST_NAME, file_sha256, read_manifest, read_shard, write_text

from .model_folder import WEIGHTS_NAME
from .report_ceiling import efficiency_by_parameters
from .report_figures import auc_intervals, confusion_matrices, roc_curves, spectra_by_scale, training_curves
from .report_images import data_strip, example_pictures, transfer_pictures
from .report_trust import coverage_curves
from .stages import METRICS_NAME, read_metrics
from .verdict import image_verdict, transfer_verdict, with_interval

REPORT_NAME = "report.html"
TEMPLATE_NAME = "report_template.html.j2"
STAGES = {  # folder -> the command that fills it
    "data": "simulate",
    "pairs": "pairs",
    "train": "train",
    "transfer": "transfer",
    "evaluate": "evaluate",
    "classify": "classify-check",
}


def write_report(run: Path) -> Path:
    """Write RUN/report.html from what the stages left; a stage that has not run is said to be missing.

    The page is self-contained: figures are inside it and nothing is loaded from elsewhere.
    """
    stages = {name: _metrics(run / name) for name in STAGES}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"interval": with_interval, "duration": _duration, "scientific": _scientific}
    environment.filters["nearest"] = _nearest
    template = environment.from_string(resources.files(__package__).joinpath(TEMPLATE_NAME).read_text("utf-8"))
    page = template.render(
        name=run.resolve().name,
        commands=STAGES,
        stages=stages,
        answer=_answer(stages),
        stale=_stale(run, stages),
        data=_describe_data(run / "data"),
        pairs=_describe_data(run / "pairs"),
        models=_trained_models(run / "train"),
        figures=_figures(run, stages),
        provenance=_provenance(run),
    )
    path = run / REPORT_NAME
    write_text(path, page)
    return path


def _metrics(folder: Path) -> dict[str, Any] | None:
    return read_metrics(folder) if (folder / METRICS_NAME).is_file() else None


def _answer(stages: dict[str, Any]) -> dict[str, list[str]]:
    """The findings in sentences, by question; empty where the stage has not run."""
    evaluate, transfer, classify = stages["evaluate"], stages["transfer"], stages["classify"]
    return {
        "Do the images get better?": image_verdict(evaluate) if evaluate else [],
        "Does it carry over to real observations?": transfer_verdict(transfer) if transfer else [],
        "Does it help to tell dark matter apart?": classify["verdict"] if classify else [],
    }


def _stale(run: Path, stages: dict[str, Any]) -> list[str]:
    """A sentence for each stage whose numbers are of data or networks that are no longer those in the run folder."""
    manifest = run / "data" / MANIFEST_NAME
    sentences = []
    for name, command in STAGES.items():
        metrics = stages[name] or {}
        models = metrics.get("models_sha256", {})
        weights = {model: run / "train" / model / WEIGHTS_NAME for model in models}
        same_data = "data_sha256" not in metrics or (
            manifest.is_file() and file_sha256(manifest) == metrics["data_sha256"]
        )
        same_models = all(path.is_file() and file_sha256(path) == models[model] for model, path in weights.items())
        if not (same_data and same_models):
            sentences.append(
                f"The numbers of {command} are of other data or networks than this run folder holds now; run it again."
            )
    return sentences


def _describe_data(folder: Path) -> dict[str, Any] | None:
    """Counts, instruments, priors and hashes of a data set; None if there is none."""
    if not (folder / MANIFEST_NAME).is_file():
        return None
    manifest = read_manifest(folder)
    classes = list(manifest.get("classes", []))
    counts = {}
    for split, entries in manifest["splits"].items():
        labels = []
        for entry in entries:
            with h5py.File(folder / entry["file"]) as file:
                labels.append(file["label"][()])
        label = np.concatenate(labels)
        counts[split] = {name: int((label == number).sum()) for number, name in enumerate(classes)}
        counts[split]["total"] = len(label)
    first = read_shard(folder / next(iter(manifest["splits"].values()))[0]["file"])
    config = yaml.safe_load(manifest.get("config", "{}")) or {}
    return {
        "manifest": manifest,
        "sha256": file_sha256(folder / MANIFEST_NAME),
        "classes": classes,
        "counts": counts,
        "bands": {"HR": (first.hr_band, first.hr.shape[-1]), "LR": (first.lr_band, first.lr.shape[-1])},
        "unit": first.unit,
        "priors": list(_flatten(config.get("scene", {}))),
        "versions": json.loads(manifest.get("versions", "{}")),
    }


def _flatten(content: dict[str, Any], prefix: str = "") -> Any:
    """(dotted key, text) of every prior and number of a section of settings."""
    for key, value in content.items():
        if not isinstance(value, dict):
            yield f"{prefix}{key}", _plain(value)
        elif len(value) == 1 and (name := next(iter(value))) in ("fixed", "uniform", "log_uniform", "normal", "choice"):
            yield f"{prefix}{key}", f"{name.replace('_', '-')} {_plain(value[name])}"
        else:
            yield from _flatten(value, f"{prefix}{key}.")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(_plain(one) for one in value) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trained_models(folder: Path) -> dict[str, dict[str, Any]]:
    """The metrics of every finished model, also of a run in which others are not finished; the smallest first."""
    models = {path.parent.name: read_metrics(path.parent) for path in sorted(folder.glob(f"*/{METRICS_NAME}"))}
    return dict(sorted(models.items(), key=lambda item: item[1]["parameters"]))


def _figures(run: Path, stages: dict[str, Any]) -> dict[str, Markup]:
    """The figures for which there is something to show."""
    figures = {}
    models = _trained_models(run / "train")
    entries = read_manifest(run / "data")["splits"] if (run / "data" / MANIFEST_NAME).is_file() else {}
    if "test" in entries:
        figures["data"] = data_strip(read_shard(run / "data" / entries["test"][0]["file"]))
    if models:
        baselines = (stages["train"] or {}).get("baselines", {})
        figures["training"] = training_curves(models, baselines.get("bicubic", {}).get("psnr_db"))
    if spectra := (stages["evaluate"] or {}).get("spectra"):
        names = [stages["evaluate"]["best_model"], "bicubic", "blur control"]
        if shown := [name for name in names if spectra["methods"].get(name)]:
            figures["spectra"] = spectra_by_scale(spectra, shown)
    if "efficiency" in (ceiling := (stages["evaluate"] or {}).get("ceiling", {})):
        figures["efficiency"] = efficiency_by_parameters(ceiling, stages["evaluate"]["rows"])
    if coverage := (stages["evaluate"] or {}).get("trust", {}).get("coverage"):
        figures["coverage"] = coverage_curves(coverage)
    examples = run / "evaluate" / "examples.h5"
    if stages["evaluate"] and examples.is_file():
        figures["median"] = example_pictures(examples, 0.5, "median")
        figures["worse"] = example_pictures(examples, 0.1, "worse")
        figures["better"] = example_pictures(examples, 0.9, "better")
    examples = run / "transfer" / "examples.h5"
    if stages["transfer"] and examples.is_file():
        figures["transfer"] = transfer_pictures(examples)
    if classify := stages["classify"]:
        rows, classes = classify["representations"], classify["classes"]
        figures["auc"] = auc_intervals(rows, classify["controls"])
        figures["roc"] = roc_curves(rows, classes)
        figures["confusion"] = confusion_matrices(rows, classes)
    return figures


def _provenance(run: Path) -> dict[str, Any]:
    config = run / "config.yaml"
    return {
        "config": config.read_text(encoding="utf-8") if config.is_file() else None,
        "versions": package_versions(),
        "git_revision": git_revision(),
        "machine": platform.platform(),
        "cpu_count": os.cpu_count(),
    }


def _nearest(rows: list[dict[str, Any]], key: str, ideal: float) -> str:
    """The method whose number is nearest to what the truth itself would have."""
    return min(rows, key=lambda row: abs(row[key]["mean"] - ideal))["model"]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _scientific(value: float) -> Markup:
    """ "1.23×10⁻⁴" as HTML."""
    if value == 0:
        return Markup("0")
    exponent = math.floor(math.log10(abs(value)))
    return Markup("{:.2f}×10<sup>{}</sup>").format(value / 10**exponent, str(exponent).replace("-", "−"))
