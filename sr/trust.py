"""Can one trust it? What every method makes up, and whether the posteriors of those that have one cover the truth."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field

from simulate.errors import InputError
from simulate.sample import instruments
from simulate.settings import Settings
from simulate.shards import Pairs

from .coverage import coverage_scores
from .hallucination import imprint_scores, lens_features, noise_itself, noise_pairs, noise_scores
from .on_the_fly import stored_simulation
from .posterior import STEPS, can_sample
from .predicted_variance import independent_draws, predicts_sigma
from .shape_metrics import arc_mask
from .trained_model import TrainedModel

if TYPE_CHECKING:
    from .truth_parts import TruthParts

SMOOTH_CLASS = "none"
"""Lenses without substructure, where no macro-model was rendered to tell."""


class UncertaintySettings(Settings):
    """The section `evaluate.uncertainty`: on how much the models' own claims are tested."""

    scenes: int = Field(32, ge=0)
    """Test scenes for which posteriors are drawn; 0: none. A CPU core takes 10 s for 16 draws of one 128 x 128 image by
    the small flow."""
    draws: int = Field(16, ge=4)
    noise_images: int = Field(60, ge=1)
    """Images without any light that every method is given."""


class Trust:
    """Collects for one method after the other what it makes up; all on the same scenes and images of noise."""

    def __init__(
        self, pairs: Pairs, parts: "TruthParts | None", folder: Path, settings: UncertaintySettings, seed: int
    ) -> None:
        """`pairs` are the test scenes, `parts` theirs if they are known, `folder` the data set's: for its noise."""
        self.pairs, self.settings, self.seed = pairs, settings, seed
        self.rows: list[dict[str, Any]] = []
        lens_light = parts.lens_light if parts else 0
        truth, noise, real = (torch.from_numpy(one) for one in (pairs.hr - lens_light, pairs.lr_noise, pairs.hr_mask))
        self._mask = arc_mask(truth, noise, real).numpy()
        if parts:
            self._smooth = ~np.isfinite(parts.macro).all((1, 2, 3))
            self._macro = np.where(self._smooth[:, None, None, None], pairs.hr, parts.macro)
        else:
            self._smooth = np.array([label >= 0 and pairs.classes[label] == SMOOTH_CLASS for label in pairs.label])
            self._macro = pairs.hr
        self._true_feature = self._lens_features(pairs.hr)["largest_feature"] if parts else None
        self._generator = np.random.default_rng(seed)
        rows = np.arange(settings.noise_images) % len(pairs)
        self._noise = noise_pairs(pairs.select(rows), _lr_instrument(folder), self._generator)

    def add(self, name: str, prediction: np.ndarray, method: Callable[[Pairs], np.ndarray]) -> None:
        """A row of a method: `prediction` (N,1,H,W) of the test scenes; of noise it is asked for."""
        self.rows.append({"model": name, **self._scores(prediction, method(self._noise))})

    def content(self, models: list[TrainedModel], device: torch.device) -> dict[str, Any]:
        """Numbers for metrics.json: "rows" of `noise_scores` ("noise") and, where lenses without substructure are among
        the scenes, `imprint_scores` ("lenses"); "references", the truth and the noise itself, of which all is made up;
        "true_imprint", the median feature of true imprints; "coverage", by name, of the `models` that can sample or
        predict their error.
        """
        truth = self._scores(self.pairs.hr, noise_itself(self._noise))
        references = [{"model": "noise itself", "noise": truth["noise"]}]
        if "lenses" in truth:
            references.insert(0, {"model": "truth", "lenses": truth["lenses"]})
        imprints = None if self._true_feature is None else self._true_feature[~self._smooth]
        return {
            "rows": self.rows,
            "references": references,
            "smooth_lenses": int(self._smooth.sum()),
            "noise_images": len(self._noise),
            "true_imprint": float(np.median(imprints)) if imprints is not None and len(imprints) else None,
            "coverage": {model.name: self._coverage(model, device) for model in models if self._has_posterior(model)},
        }

    def _scores(self, prediction: np.ndarray, from_noise: np.ndarray) -> dict[str, Any]:
        scores = {"noise": noise_scores(from_noise, self._noise, self._generator)}
        if self._smooth.any():
            found = self._lens_features(prediction)
            scores["lenses"] = imprint_scores(found, self._true_feature, self._smooth, self._generator)
        return scores

    def _lens_features(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return lens_features(images, self._macro, self.pairs, self._mask)

    def _has_posterior(self, model: TrainedModel) -> bool:
        return self.settings.scenes > 0 and (can_sample(model) or predicts_sigma(model.network))

    def _coverage(self, model: TrainedModel, device: torch.device) -> dict[str, Any]:
        """`coverage_scores` on the first of the test scenes; "independent_pixels" if draws are of predicted errors."""
        some = self.pairs.select(np.arange(min(self.settings.scenes, len(self.pairs))))
        estimate, independent = model.super_resolve_pairs(some, device), predicts_sigma(model.network)
        if independent:
            sigma = model.predicted_sigma_of_pairs(some, device)
            draws = independent_draws(estimate, sigma, self.settings.draws, self.seed)
        else:
            draws = model.sample(some.lr, some.lr_noise, self.settings.draws, self.seed, device, STEPS)
        scores = coverage_scores(draws, estimate, some, self._generator)
        return {**scores, "independent_pixels": independent}


def _lr_instrument(folder: Path) -> Any:
    """The LR instrument that a data set was simulated with; None if it was not, or by another version."""
    try:
        return instruments(stored_simulation(folder)[0])[1]
    except InputError:
        return None
