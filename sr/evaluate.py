"""Score every trained model and baseline on the test split: one code path, one data range, bootstrap intervals."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import h5py
import numpy as np
import torch
from pydantic import Field

from simulate.errors import InputError
from simulate.progress import progress_bar
from simulate.settings import Settings
from simulate.shards import Pairs, file_sha256, manifest_sha256, read_pairs, write_atomically

from .ceiling import ceiling_content, ceiling_of_run
from .classical import (
    BLUR_SIGMAS_LR_PIXELS,
    WIENER_NOISE_TO_SIGNAL,
    blur_control,
    richardson_lucy,
    tune,
    tune_richardson_lucy,
    wiener,
)
from .einstein_radius import EinsteinRadiusFits
from .metrics import data_range_of, fidelity_scores, image_scores, summarise
from .models import ARCHITECTURES, parameter_count
from .on_the_fly import stored_simulation
from .oracle.ceiling import Ceiling, CeilingSettings
from .signal_to_noise import signal_to_noise_groups
from .spectral_metrics import summarise_spectra
from .stages import METRICS_NAME, fingerprint, finished_metrics, write_metrics
from .trained_model import CONFIG_NAME, WEIGHTS_NAME, TrainedModel, interpolation_model, load_model
from .trust import Trust, UncertaintySettings
from .truth_parts import TruthParts, render_truth_parts

EXAMPLES_NAME = "examples.h5"
EXAMPLE_QUANTILES = (0.5, 0.1, 0.9)

Method = Callable[[Pairs], np.ndarray]


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
    folder = run / "evaluate"
    models = finished_models(run, device)
    hashes = models_sha256(run, models)
    data_sha256 = manifest_sha256(run / "data")
    identity = fingerprint(settings, data=data_sha256, seed=seed, models=json.dumps(hashes))
    if metrics := finished_metrics(folder, identity, resume):
        return metrics

    train = read_pairs(run / "data", "train")
    data_range = data_range_of(train.hr, train.hr_mask)
    del train
    validation, test = read_pairs(run / "data", "val"), read_pairs(run / "data", "test")
    networks = [interpolation_model(name, test) for name in ("bilinear", "bicubic")] + models
    methods: dict[str, Method] = {model.name: _super_resolve(model, device, settings.batch_size) for model in networks}
    sigma = tune(blur_control, BLUR_SIGMAS_LR_PIXELS, validation, data_range)
    noise_to_signal = tune(wiener, WIENER_NOISE_TO_SIGNAL, validation, data_range)
    methods["blur control"] = partial(blur_control, sigma_lr_pixels=sigma)
    methods["wiener"] = partial(wiener, noise_to_signal=noise_to_signal)
    iterations = tune_richardson_lucy(validation, data_range, device)
    methods["richardson-lucy"] = partial(richardson_lucy, iterations=iterations, device=device)
    about: dict[str, dict[str, Any]] = {
        model.name: {
            "architecture": model.config.architecture,
            "kind": "network" if model in models else "baseline",
            "parameters": parameter_count(model.network),
        }
        for model in networks
    }
    about["blur control"] = {"kind": "baseline", "parameters": 0, "chosen": {"sigma_lr_pixels": sigma}}
    about["wiener"] = {"kind": "baseline", "parameters": 0, "chosen": {"noise_to_signal": noise_to_signal}}
    about["richardson-lucy"] = {"kind": "baseline", "parameters": 0, "chosen": {"iterations": iterations}}
    doubles = {f"{model.name} x8": model for model in models if settings.self_ensemble}
    for name, model in doubles.items():
        methods[name] = _super_resolve(model, device, settings.batch_size, self_ensemble=True)
        about[name] = {**about[model.name], "self_ensemble": True}
    baselines = [name for name in methods if about[name]["kind"] == "baseline"]
    order = [*baselines, *(model.name for model in models), *doubles]

    parts, missing = _truth_parts(test, run / "data", device)
    trust = Trust(test, parts, run / "data", settings.uncertainty, seed)
    fits = _einstein_radius_fits(test, run / "data", settings.refitted_scenes, device)
    ceiling, no_ceiling = _ceiling(run, test, data_range, settings.ceiling, seed, device, data_sha256)
    scores, speed, spectra = {}, {}, {}
    with progress_bar("evaluate", len(order)) as advance:
        for name in order:
            methods[name](test.select(np.arange(min(2, len(test)))))  # the first call of a method is slower
            clock = perf_counter()
            prediction = methods[name](test)
            speed[name] = len(test) / (perf_counter() - clock)
            fidelity, spectra[name] = fidelity_scores(prediction, test, parts)
            scores[name] = {**image_scores(prediction, test, data_range), **fidelity}
            if fits:
                scores[name]["theta_e_error"] = fits.errors(prediction)
            trust.add(name, prediction, methods[name])
            advance(note=name)
    generator = np.random.default_rng(seed)
    best = _best_model(models, methods, validation, data_range)
    paired = {"psnr_gain_db": scores["bicubic"]["psnr_db"]}
    if best:
        paired["psnr_against_best_db"] = scores[best]["psnr_db"]
    rows = [
        {
            "model": name,
            **about[name],
            "images_per_second": round(speed[name], 1),
            **_summary(scores[name], paired, test, generator),
        }
        for name in order
    ]
    gain = scores[best or "bicubic"]["psnr_db"] - (scores["bicubic"]["psnr_db"] if best else 0)
    _write_examples(folder / EXAMPLES_NAME, methods, order, test, gain)
    content = {
        "rows": rows,
        "references": _references(test, parts, fits, generator),
        "macro_model_missing": missing,
        "spectra": {
            "lr_nyquist_cycles_per_arcsec": 0.5 / test.lr_band.pixel_scale_arcsec,
            "frequency_lr_nyquist": spectra["bicubic"].frequency.tolist(),
            "methods": {name: summarise_spectra(spectra[name], generator) for name in order},
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


def _super_resolve(model: TrainedModel, device: torch.device, batch_size: int, self_ensemble: bool = False) -> Method:
    return lambda pairs: model.super_resolve_pairs(pairs, device, batch_size, self_ensemble)


def _truth_parts(pairs: Pairs, folder: Path, device: torch.device) -> tuple[TruthParts | None, str | None]:
    """The truth's parts, or the reason why the data do not give them."""
    try:
        return render_truth_parts(pairs, folder, device), None
    except InputError as error:
        return None, str(error)


def _ceiling(
    run: Path, test: Pairs, data_range: float, settings: CeilingSettings, seed: int, device: torch.device, data: str
) -> tuple[Ceiling | None, str | None]:
    """The ceiling of the test split, or the reason why there is none."""
    if settings.scenes == 0:
        return None, "evaluate.ceiling.scenes is 0"
    try:
        return ceiling_of_run(run, test, data_range, settings, seed, device, data), None
    except InputError as error:
        return None, str(error)


def _einstein_radius_fits(pairs: Pairs, data: Path, scenes: int, device: torch.device) -> EinsteinRadiusFits | None:
    """Fits to the first scenes; None for none, and where it is not known how the lenses were simulated."""
    if scenes == 0:
        return None
    try:
        simulation, _ = stored_simulation(data)
    except InputError:
        return None
    return EinsteinRadiusFits(pairs, simulation, np.arange(min(scenes, len(pairs))), device)


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
    scores: dict[str, np.ndarray], paired: dict[str, np.ndarray], pairs: Pairs, generator: np.random.Generator
) -> dict[str, Any]:
    """Means and intervals over all scenes, and the same in "per_class" and "per_signal_to_noise".

    `paired` has PSNRs by the name of the difference to them.
    """
    everything = {**scores, **{name: scores["psnr_db"] - psnr_db for name, psnr_db in paired.items()}}
    groups = {
        "per_class": {name: pairs.label == label for label, name in enumerate(pairs.classes)},
        "per_signal_to_noise": signal_to_noise_groups(pairs),
    }
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


def choose_examples(label: np.ndarray, gain: np.ndarray, quantile: float) -> list[int]:
    """For each class the scene at `quantile` of the gain, so that nobody picks the pretty one: rows of the data."""
    chosen = []
    for one in np.unique(label):
        rows = np.flatnonzero(label == one)
        ranked = rows[np.argsort(gain[rows], kind="stable")]
        chosen.append(int(ranked[round(quantile * (len(ranked) - 1))]))
    return chosen


def _write_examples(path: Path, methods: dict[str, Method], order: list[str], test: Pairs, gain: np.ndarray) -> None:
    """HDF5 with a scene per class at each of EXAMPLE_QUANTILES of the PSNR gain: lr, hr, lr_noise, sr/<method>, ..."""
    chosen = [(row, quantile) for quantile in EXAMPLE_QUANTILES for row in choose_examples(test.label, gain, quantile)]
    pairs = test.select(np.array([row for row, _ in chosen]))

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name in ("lr", "lr_noise", "hr", "label", "index"):
                file.create_dataset(name, data=getattr(pairs, name))
            file.create_dataset("quantile", data=np.array([quantile for _, quantile in chosen]))
            file.create_dataset("psnr_gain_db", data=gain[[row for row, _ in chosen]])
            for name in order:
                file.create_dataset(f"sr/{name}", data=methods[name](pairs), compression="gzip", shuffle=True)
            file.attrs["classes"] = list(pairs.classes)
            file.attrs["methods"] = order
            file.attrs["unit"] = pairs.unit
            file.attrs["lr_pixel_scale_arcsec"] = pairs.lr_band.pixel_scale_arcsec
            file.attrs["hr_pixel_scale_arcsec"] = pairs.hr_band.pixel_scale_arcsec

    write_atomically(path, write)
