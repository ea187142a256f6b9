"""The stage `transfer`: trained models go on to observed pairs, and every way of doing so is scored side by side.

Each object is held out once (K-fold by object). For each model, on the held-out objects:
zero-shot     the trained model as it is;
frozen        its `trainable` layers (the upsampling) trained, all else frozen, batch statistics too;
fine-tuned    from there, all layers trained at a smaller learning rate;
lora          with `adapter_rank`: its weights frozen, low-rank adapters of all layers trained for as many steps;
unpretrained  the same network from random weights, for as many steps as the two stages together.
All variants of a pretrained model keep its normalisation; the unpretrained one takes its own from its training folds.
There is no validation split here: the averaged weights of the last step are used, so that nothing is chosen on
held-out data.
"""

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from simulate.errors import InputError
from simulate.progress import progress_bar
from simulate.shards import Pairs, file_sha256, manifest_sha256, read_manifest, read_pairs, write_atomically

from .cross_validation import assign_folds, load_fold, save_fold
from .degradation import usual_kernel
from .domain import seen_range
from .metrics import data_range_of
from .model_folder import CONFIG_NAME, WEIGHTS_NAME, load_model, save_model
from .models import find_submodules, parameter_count
from .plan import INTERPOLATIONS
from .stages import METRICS_NAME, fingerprint, finished_metrics, write_metrics
from .trained_model import TrainedModel, describe_model, interpolation_model
from .training import derive_seed
from .transfer_results import BASELINE, EXAMPLES_NAME, Key, tabulate, write_examples
from .transfer_variants import TransferSettings, VariantTrainer

FOLDS_NAME = ".folds"  # no name of a model's folder begins with a dot
SETTINGS_IN_CARD = {
    "frozen_steps",
    "trainable",
    "frozen_learning_rate",
    "finetune_steps",
    "finetune_learning_rate",
    "batch_size",
    "loss",
}


def transfer_run(
    run: Path, settings: TransferSettings, seed: int, device: torch.device, resume: bool
) -> dict[str, Any]:
    """Transfer the models of RUN/train onto RUN/pairs; leaves RUN/transfer/metrics.json, examples and model folders.

    Scores are over held-out objects, with one data range for all: the median peak of the observed HR images. Intervals
    are bootstrapped over objects; those of "differences" are of paired differences. `examples.h5` has, for a few
    images n: `lr`, `lr_noise` (n,1,h,w), `hr`, `hr_mask` (n,1,H,W), `object` (n,), and
    `prediction/<model>/<variant>` (n,1,H,W) with attribute `psnr_db` (n,), the model being "-" for interpolation.
    With `resume`, finished folds are not trained again. Raises `InputError`, before anything is trained, if models or
    pairs are missing or do not fit, or the folder holds other work.
    """
    folder = run / "transfer"
    pairs = read_pairs(run / "pairs", "observed")
    found = {name: load_model(run / "train" / name, device) for name in settings.models}
    check_models(settings, found, pairs)
    pretrained = {name: model.at_scale(pairs.scale) for name, model in found.items()}
    sha256 = manifest_sha256(run / "pairs")
    inputs = {
        f"{name}/{file}": file_sha256(run / "train" / name / file)
        for name in pretrained
        for file in (WEIGHTS_NAME, CONFIG_NAME)
    }
    identity = fingerprint(settings, data=sha256, seed=seed, **inputs)
    finished = finished_metrics(folder, identity, resume)
    if finished is not None:
        return finished
    if not resume:
        for made in (FOLDS_NAME, *pretrained):
            if (folder / made).exists():
                shutil.rmtree(folder / made)
        (folder / METRICS_NAME).unlink(missing_ok=True)
    elif (folder / METRICS_NAME).is_file():
        raise InputError(
            f"{folder}: holds a transfer of other settings, data or models; "
            f"use --fresh to do it again, or another --out to keep both"
        )
    begun = perf_counter()
    fold_of = assign_folds(pairs.name, settings.folds, np.random.default_rng(derive_seed(seed, "folds")))
    predictions: dict[Key, np.ndarray] = {}
    for name in INTERPOLATIONS:
        images = interpolation_model(name, pairs).super_resolve(pairs.lr, pairs.lr_noise, device)
        predictions[BASELINE, name] = images
    data_range = data_range_of(pairs.hr, pairs.hr_mask)
    final_steps = settings.pretrained_steps if settings.final_model else 0
    total = len(pretrained) * (settings.folds * settings.fold_steps + final_steps)
    with progress_bar("transfer", total) as advance:
        trainer = VariantTrainer(settings, seed, device, advance)
        for name, model in pretrained.items():
            held_out = cross_validate(trainer, model, pairs, fold_of, folder / FOLDS_NAME, identity)
            predictions.update({(name, variant): images for variant, images in held_out.items()})
        table = tabulate(predictions, pairs, data_range, derive_seed(seed, "scores"))
        if settings.final_model:
            for name, model in pretrained.items():
                rows = [row for row in table["rows"] if row["model"] == name]
                leave_model(trainer, model, pairs, folder / name, rows, sha256, identity)
    write_atomically(folder / EXAMPLES_NAME, lambda path: write_examples(path, pairs, predictions, data_range))
    content = {
        "kind": pairs.kind,
        "source": read_manifest(run / "pairs").get("source"),
        "objects": len(set(pairs.name)),
        "images": len(pairs),
        "folds": settings.folds,
        "trainable": list(settings.trainable),
        "data_range": data_range,
        **table,
        "examples": EXAMPLES_NAME,
    }
    metrics = write_metrics(folder, identity, perf_counter() - begun, content)
    shutil.rmtree(folder / FOLDS_NAME)
    return metrics


def check_models(settings: TransferSettings, pretrained: dict[str, TrainedModel], pairs: Pairs) -> None:
    """Raise `InputError` if the models, what of them is to learn, or the crop size do not fit the observed pairs."""
    smallest = min(pairs.lr.shape[-2:])
    for name, model in pretrained.items():
        if pairs.scale not in model.scales:
            served = " or ".join(map(str, model.scales))
            raise InputError(
                f"model {name!r} enlarges {served} times, the observed pairs differ by a factor of "
                f"{pairs.scale}; make the pairs with scale {served}, or train for {pairs.scale}"
            )
        try:
            find_submodules(model.network, settings.trainable)
        except InputError as error:
            raise InputError(f"transfer.trainable: model {name!r}: {error}") from None
        crop_size = settings.crop_size_of(model.config.architecture)
        if crop_size is not None and crop_size > smallest:
            raise InputError(
                f"transfer.crop_size: expected at most {smallest}, the size of the observed LR images in pixels, "
                f"found {crop_size} (null trains on whole images)"
            )
    if len(set(settings.models)) < len(settings.models):
        raise InputError(f"transfer.models: a model is named twice in {', '.join(settings.models)}")


def cross_validate(
    trainer: VariantTrainer, model: TrainedModel, pairs: Pairs, fold_of: np.ndarray, cache: Path, identity: str
) -> dict[str, np.ndarray]:
    """Predictions (N,1,H,W) of each variant of one model, each image by networks that have not seen its object."""
    settings = trainer.settings
    predictions = {variant: np.empty(pairs.hr.shape, np.float32) for variant in settings.variants}
    for fold in range(settings.folds):
        path, held_out = cache / f"{model.name}-{fold}.h5", fold_of == fold
        found = load_fold(path, identity)
        if found is None:
            found = trainer.predict_held_out(model, pairs.select(~held_out), pairs.select(held_out), fold)
            save_fold(path, found, identity)
        else:
            trainer.advance(settings.fold_steps)
        for variant in settings.variants:
            predictions[variant][held_out] = found[variant]
    return predictions


def leave_model(
    trainer: VariantTrainer,
    pretrained: TrainedModel,
    pairs: Pairs,
    folder: Path,
    rows: list[dict[str, Any]],
    sha256: str,
    identity: str,
) -> None:
    """Fine-tune `pretrained` on all objects and write its folder, with the cross-validated scores in its card."""
    settings, old, begun = trainer.settings, pretrained.config, perf_counter()
    if finished_metrics(folder, identity, resume=True) is not None:
        trainer.advance(settings.pretrained_steps)
        return
    tuned = copy.deepcopy(pretrained)
    trainer.train_frozen(tuned, pairs, "all objects")
    trainer.finetune(tuned, pairs, "all objects")
    training = {
        "pretrained_on_sha256": old.data_sha256,
        **settings.model_dump(mode="json", include=SETTINGS_IN_CARD),
        "crop_size": settings.crop_size_of(old.architecture),
        "seed": trainer.seed,
        "kept_weights": "moving average at the last step",
    }
    tuned.config = describe_model(
        old.architecture,
        old.architecture_settings(),
        pairs,
        old.normalisation,
        data_sha256=sha256,
        training=training,
        training_range=seen_range(pairs),
    )
    kernel = usual_kernel(tuned.network, pairs)
    tuned.kernel = kernel and replace(kernel, others={})  # it was tuned at this scale alone
    row = next(row for row in rows if row["variant"] == "fine-tuned")
    scores = {name: row[name] for name in ("psnr_db", "ssim", "absolute_flux_error")}
    save_model(tuned, folder, {f"held-out objects, {settings.folds} folds": scores})
    content = {"architecture": old.architecture, "parameters": parameter_count(tuned.network), "rows": rows}
    write_metrics(folder, identity, perf_counter() - begun, content)
