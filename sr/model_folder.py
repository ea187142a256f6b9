"""The folder of a trained model: weights, configuration and a card with measured scores. No pickle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from simulate.errors import InputError
from simulate.settings import parse_settings
from simulate.shards import Band, write_atomically, write_json

from .degradation import UsualKernel
from .model_card import write_card
from .models import build_network
from .trained_model import ModelConfig, TrainedModel

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
KERNEL_KEY = "degradation.kernel"  # beside the network's own tensors
HR_PSF_KEY = "degradation.hr_psf"
HR_PSF_STEP_KEY = "degradation.hr_psf_pixel_scale_arcsec"


def save_model(model: TrainedModel, folder: Path, scores: dict[str, Any] | None) -> None:
    """Write the model's folder. `scores` maps a split to `{score: number or {"mean", "low", "high"}}`; the card shows
    them, and config.json keeps them in place of those of `model.config`.

    `config.json` makes a folder a model: it is removed first and written last, so a killed run leaves the old model,
    no model or the new one, never a mixture.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).unlink(missing_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    if model.kernel is not None:
        tensors |= _kernel_tensors(model.kernel)
    write_atomically(folder / WEIGHTS_NAME, lambda path: save_file(tensors, path))
    write_card(folder, model, scores)
    write_json(folder / CONFIG_NAME, {**model.config.model_dump(mode="json"), "scores": scores or {}})


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model's folder. Raises `InputError` that names the file if it is missing or damaged."""
    path = folder / CONFIG_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: not a model folder ({CONFIG_NAME} is missing); run `pipeline train` first"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    return parse_settings(ModelConfig, content, str(path))


def load_model(folder: Path, device: torch.device) -> TrainedModel:
    """Read a model's folder. Raises `InputError` that names the file if it is missing, damaged or does not fit."""
    path, config = folder / CONFIG_NAME, read_config(folder)
    settings = config.architecture_settings(str(path))
    network = build_network(config.architecture, settings, config.scale, config.channels)
    weights = folder / WEIGHTS_NAME
    try:
        tensors = load_file(weights)
        kernel = _read_kernel(tensors, config)
        network.load_state_dict(tensors)
    except FileNotFoundError:
        raise InputError(f"{weights}: missing; train the model again, or restore the file") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{weights}: damaged ({error}); train the model again, or restore the file") from None
    except RuntimeError as error:
        raise InputError(f"{weights}: does not fit {path}: {error}") from None
    return TrainedModel(folder.resolve().name, network.to(device).eval(), config, kernel)


def _kernel_tensors(kernel: UsualKernel) -> dict[str, Tensor]:
    tensors = {KERNEL_KEY: torch.from_numpy(kernel.kernel)}
    tensors |= {f"{KERNEL_KEY}_x{scale}": torch.from_numpy(other) for scale, other in kernel.others.items()}
    if kernel.hr_band is not None:
        tensors[HR_PSF_KEY] = torch.from_numpy(np.ascontiguousarray(kernel.hr_band.psf))
        tensors[HR_PSF_STEP_KEY] = torch.tensor(kernel.hr_band.psf_pixel_scale_arcsec, dtype=torch.float64)
    return tensors


def _read_kernel(tensors: dict[str, Tensor], config: ModelConfig) -> UsualKernel | None:
    """Takes its tensors out of `tensors`; models of older versions have no HR PSF."""
    kernel, psf, step = (tensors.pop(key, None) for key in (KERNEL_KEY, HR_PSF_KEY, HR_PSF_STEP_KEY))
    if kernel is None:
        return None
    band = None
    if psf is not None and step is not None:
        band = Band(config.hr_instrument, config.hr_pixel_scale_arcsec, psf.numpy(), float(step))
    others = {scale: tensors.pop(f"{KERNEL_KEY}_x{scale}", None) for scale in config.scales}
    return UsualKernel(kernel.numpy(), band, {key: one.numpy() for key, one in others.items() if one is not None})
