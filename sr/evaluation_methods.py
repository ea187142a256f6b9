"""What is evaluated side by side: interpolation, classical methods tuned on the validation split, and networks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from simulate.shards import Pairs

from .classical import (
    BLUR_SIGMAS_LR_PIXELS,
    WIENER_NOISE_TO_SIGNAL,
    blur_control,
    richardson_lucy,
    tune,
    tune_richardson_lucy,
    wiener,
)
from .models import parameter_count
from .plan import INTERPOLATIONS
from .trained_model import TrainedModel, interpolation_model

Method = Callable[[Pairs], np.ndarray]
"""Pairs (N) -> their HR images (N,1,H,W), flux per pixel."""


def evaluation_methods(
    models: list[TrainedModel],
    validation: Pairs,
    data_range: float,
    batch_size: int,
    self_ensemble: bool,
    device: torch.device,
) -> tuple[dict[str, Method], dict[str, dict[str, Any]]]:
    """The methods, and what a row of the table says of each beside its scores; by name, in the order of the table.

    What classical methods have to choose, they choose on `validation`. With `self_ensemble`, each of `models` is there
    a second time as "<name> x8".
    """
    methods: dict[str, Method] = {}
    about: dict[str, dict[str, Any]] = {}

    def add(name: str, model: TrainedModel, kind: str, eightfold: bool = False) -> None:
        methods[name] = partial(
            model.super_resolve_pairs, device=device, batch_size=batch_size, self_ensemble=eightfold
        )
        parameters = parameter_count(model.network)
        about[name] = {"architecture": model.config.architecture, "kind": kind, "parameters": parameters}
        if eightfold:
            about[name]["self_ensemble"] = True

    for name in INTERPOLATIONS:
        add(name, interpolation_model(name, validation), "baseline")
    sigma = tune(blur_control, BLUR_SIGMAS_LR_PIXELS, validation, data_range)
    noise_to_signal = tune(wiener, WIENER_NOISE_TO_SIGNAL, validation, data_range)
    iterations = tune_richardson_lucy(validation, data_range, device)
    classical: dict[str, tuple[Callable[..., np.ndarray], dict[str, float]]] = {
        "blur control": (blur_control, {"sigma_lr_pixels": sigma}),
        "wiener": (wiener, {"noise_to_signal": noise_to_signal}),
        "richardson-lucy": (partial(richardson_lucy, device=device), {"iterations": iterations}),
    }
    for name, (method, chosen) in classical.items():
        methods[name] = partial(method, **chosen)
        about[name] = {"kind": "baseline", "parameters": 0, "chosen": chosen}
    for model in models:
        add(model.name, model, "network")
    for model in models if self_ensemble else ():
        add(f"{model.name} x8", model, "network", eightfold=True)
    return methods, about
