"""Score every trained model and baseline on the test split: one code path, one data range, bootstrap intervals."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from pydantic import Field

from simulate.errors import InputError
from simulate.progress import progress_bar
from simulate.settings import Settings
from simulate.shards import Pairs, file_sha256, manifest_sha256, read_pairs

from .ceiling import ceiling_content, ceiling_or_reason
from .einstein_radius import EinsteinRadiusFits, fits_of_first_scenes
from .evaluation_examples import EXAMPLES_NAME, write_examples
from .evaluation_methods import Method, evaluation_methods
from .metrics import data_range_of, fidelity_scores, image_scores, summarise
from .model_folder import CONFIG_NAME, WEIGHTS_NAME, load_model
from .models import ARCHITECTURES
from .oracle.ceiling import CeilingSettings
from .signal_to_noise import signal_to_noise_groups
from .spectral_metrics import summarise_spectra
from .stages import METRICS_NAME, fingerprint, finished_metrics, write_metrics
from .trained_model import TrainedModel
from .trust import Trust, UncertaintySettings
from .truth_parts import TruthParts, truth_parts_or_reason


class EvaluateSettings(Settings):
    """How to evaluate; what is evaluated is every finished model of the run."""

    batch_size: int = Field(32, ge=1)
    self_ensemble: bool = False
    """Also score the mean of each network's answers over the 8 symmetries of the square, as "<name> x8"."""
    uncertainty: UncertaintySettings = UncertaintySettings()
    ceiling: CeilingSettings = CeilingSettings()
    refitted_scenes: int = Field(60, ge=0)
    """Scenes, the first of the split, in which a lens is fitted to each method's image, for its Einstein radius; 0:
    none. A fit takes a CPU core a tenth of a second."""


def finished_models(run: Path, device: torch.device) -> list[TrainedModel]:
    """All models of RUN/train that finished training, in the registry's order.

    Raises `InputError` if one was trained on other data than RUN/data: its test scenes may be scenes it learned from.
    """
    folders = [path.parent for path in (run / "train").glob(f"*/{CONFIG_NAME}")]
    models = [load_model(folder, device) for folder in folders if (folder / METRICS_NAME).is_file()]
    data_sha256 = manifest_sha256(run / "data")
    for model in models:
        if model.config.data_sha256 != data_sha256:
            raise InputError(
                f"{run / 'train' / model.name}: was trained on other data than {run / 'data'}; "
                "train it again with --fresh, or remove its folder"
            )
    order = list(ARCHITECTURES)
    return sorted(models, key=lambda model: (order.index(model.config.architecture), model.name))


def models_sha256(run: Path, models: list[TrainedModel]) -> dict[str, str]:
    """Hash of each model's weights."""
    return {model.name: file_sha256(run / "train" / model.name / WEIGHTS_NAME) for model in models}


def evaluate_run(
    run: Path, settings: EvaluateSettings, seed: int, device: torch.device, resume: bool
) -> dict[str, Any]:
    """Score the baselines and all finished models on RUN/data's test split; write RUN/evaluate.

    Each row of metrics.json has means over scenes with 95 % bootstrap intervals, overall, per class and by S/N, and the
    difference in PSNR to bicubic and to the best network, paired by scene. "references" are rows of the truth itself
    and of the truth without substructure; "ceiling" is `ceiling_content`, what could be reached at best; "spectra" has
    curves; "trust" is `Trust.content`, on made-up detail and posteriors. Whatever has to be chosen (sigma of the blur
    control, noise of the Wiener filter, iterations of Richardson-Lucy, `best_model`) is chosen on the validation split.
    """
    started = perf_counter()
    folder, data = run / "evaluate", run / "data"
    models = finished_models(run, device)
    hashes = models_sha256(run, models)
    data_sha256 = manifest_sha256(data)
    identity = fingerprint(settings, data=data_sha256, seed=seed, models=json.dumps(hashes))
    if metrics := finished_metrics(folder, identity, resume):
        return metrics

    train = read_pairs(data, "train")
    data_range = data_range_of(train.hr, train.hr_mask)
    del train
    validation, test = read_pairs(data, "val"), read_pairs(data, "test")
    methods, about = evaluation_methods(
        models, validation, data_range, settings.batch_size, settings.self_ensemble, device
    )
    parts, no_parts = truth_parts_or_reason(test, data, device)
    trust = Trust(test, parts, data, settings.uncertainty, seed)
    fits = fits_of_first_scenes(test, data, settings.refitted_scenes, device)
    ceiling, no_ceiling = ceiling_or_reason(run, test, data_range, settings.ceiling, seed, device, data_sha256)
    scores, speed, spectra = {}, {}, {}
    with progress_bar("evaluate", len(methods)) as advance:
        for name, method in methods.items():
            method(test.select(np.arange(min(2, len(test)))))  # the first call of a method is slower
            clock = perf_counter()
            prediction = method(test)
            speed[name] = len(test) / (perf_counter() - clock)
            fidelity, spectra[name] = fidelity_scores(prediction, test, parts)
            scores[name] = {**image_scores(prediction, test, data_range), **fidelity}
            if fits:
                scores[name]["theta_e_error"] = fits.errors(prediction)
            trust.add(name, prediction, method)
            advance(note=name)

    generator = np.random.default_rng(seed)
    best = _best_model(models, methods, validation, data_range)
    bicubic_db = scores["bicubic"]["psnr_db"]
    paired = {"psnr_gain_db": bicubic_db}
    if best:
        paired["psnr_against_best_db"] = scores[best]["psnr_db"]
    groups = {
        "per_class": {name: test.label == label for label, name in enumerate(test.classes)},
        "per_signal_to_noise": signal_to_noise_groups(test),
    }
    rows = [
        {
            "model": name,
            **about[name],
            "images_per_second": round(speed[name], 1),
            **_summary(scores[name], paired, groups, generator),
        }
        for name in methods
    ]
    gain_db = scores[best]["psnr_db"] - bicubic_db if best else bicubic_db
    write_examples(folder / EXAMPLES_NAME, methods, test, gain_db)
    content = {
        "rows": rows,
        "references": _references(test, parts, fits, generator),
        "macro_model_missing": no_parts,
        "spectra": {
            "lr_nyquist_cycles_per_arcsec": 0.5 / test.lr_band.pixel_scale_arcsec,
            "frequency_lr_nyquist": spectra["bicubic"].frequency.tolist(),
            "methods": {name: summarise_spectra(spectra[name], generator) for name in methods},
        },
        "trust": trust.content(models, device),
        "ceiling": ceiling_content(ceiling, scores, test, parts, fits, data_range, generator)
        if ceiling
        else {"missing": no_ceiling},
        "best_model": best,
        "data_range": data_range,
        "scenes": len(test),
        "data_sha256": data_sha256,
        "models_sha256": hashes,
        "device": str(device),
        "examples": EXAMPLES_NAME,
    }
    return write_metrics(folder, identity, perf_counter() - started, content)


def _references(
    pairs: Pairs, parts: TruthParts | None, fits: EinsteinRadiusFits | None, generator: np.random.Generator
) -> list[dict[str, Any]]:
    """How the truth itself scores against the LR images, and an image that knows all but the substructure."""
    scores = fidelity_scores(pairs.hr, pairs, parts)[0]
    if fits:
        scores["theta_e_error"] = fits.errors(pairs.hr)
    rows = [{"model": "truth", **summarise(scores, generator)}]
    if parts:
        chosen = np.flatnonzero(np.isfinite(parts.macro).all((1, 2, 3)))
        some = TruthParts(parts.macro[chosen], parts.lens_light[chosen])
        if len(chosen):
            scores, _ = fidelity_scores(some.macro, pairs.select(chosen), some)
            rows.append({"model": "truth without substructure", **summarise(scores, generator)})
    return rows


def _summary(
    scores: dict[str, np.ndarray],
    paired: dict[str, np.ndarray],
    groups: dict[str, dict[str, np.ndarray]],
    generator: np.random.Generator,
) -> dict[str, Any]:
    """Means and intervals over all scenes, and the same over those of each kind of `groups`, by kind and name.

    `paired` has PSNRs by the name of the difference to them.
    """
    everything = {**scores, **{name: scores["psnr_db"] - psnr_db for name, psnr_db in paired.items()}}
    return summarise(everything, generator) | {
        kind: {
            name: summarise({key: values[rows] for key, values in everything.items()}, generator)
            for name, rows in some.items()
            if rows.any()
        }
        for kind, some in groups.items()
    }


def _best_model(
    models: list[TrainedModel], methods: dict[str, Method], validation: Pairs, data_range: float
) -> str | None:
    """The network with the highest PSNR on the validation split; the test split must not choose."""
    quality = {
        model.name: image_scores(methods[model.name](validation), validation, data_range)["psnr_db"].mean()
        for model in models
    }
    return max(quality, key=lambda name: quality[name]) if quality else None
