"""The README.md of a model folder: what the model is, how well it does, and where it should not be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulate.shards import write_text

from .models import find_architecture, parameter_count

if TYPE_CHECKING:
    from .trained_model import TrainedModel

CARD_NAME = "README.md"


def write_card(folder: Path, model: TrainedModel, scores: dict[str, Any] | None) -> None:
    """Write the model card; `scores` maps a split to `{score: number or {"mean", "low", "high"}}`."""
    config = model.config
    architecture = find_architecture(config.architecture)
    settings = ", ".join(f"{key} {value}" for key, value in config.settings.items()) or "none"
    training = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in config.training.items())
    text = f"""# {model.name}: {config.architecture}, ×{config.scale} super-resolution

- architecture: {config.architecture} ({architecture.paper}); settings: {settings}
- parameters: {parameter_count(model.network):,}
- input: {config.lr_instrument}, {config.lr_pixel_scale_arcsec:g}" pixels; output: {config.hr_instrument}, \
{config.hr_pixel_scale_arcsec:g}" pixels
- unit: flux per pixel in {config.unit or "the input's unit"}, in and out
- normalisation: LR / a, with a = {config.normalisation_factor:.6g} × the median of the image's 1-σ noise map; \
output × a / {config.scale**2}
- trained towards: `{config.target}` of the data whose manifest has SHA-256 `{config.data_sha256}`

## Measured scores
{_score_table(scores)}

## Training
{training or "- none"}

## Use
    pipeline super-resolve IN.fits OUT.fits --model {folder.name}

## Limits
Learned from the data above: images of other instruments, pixel scales, noise levels or kinds of objects are outside of
what it has seen, and detail it adds is what such data made likely, not a measurement. Whether it helps to tell kinds
of dark matter apart is a question for `pipeline classify-check`, not for the scores above.
"""
    write_text(folder / CARD_NAME, text)


def _score_table(scores: dict[str, Any] | None) -> str:
    if not scores:
        return "None were measured."
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    lines = ["| split | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for split, row in scores.items():
        lines.append(f"| {split} | " + " | ".join(_format_score(row.get(name)) for name in names) + " |")
    return "\n".join(lines)


def _format_score(score: Any) -> str:
    if isinstance(score, dict):
        return f"{score['mean']:.4g} [{score['low']:.4g}, {score['high']:.4g}]"
    return "–" if score is None else f"{score:.4g}"
