"""The README.md of a model folder: what the model is, how well it does, and where it should not be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulate.shards import write_text

from .domain import BACKGROUND_SIGMAS, PIXEL_SCALE_TOLERANCE
from .models import find_architecture, parameter_count

if TYPE_CHECKING:
    from .trained_model import ModelConfig, TrainedModel

CARD_NAME = "README.md"


NOT_IN_CARD = ("compile", "log_interval", "checkpoint_interval", "validation_interval")
"""Settings of a training that a user of the model need not know; config.json has them."""


def write_card(folder: Path, model: TrainedModel, scores: dict[str, Any] | None) -> None:
    """Write the model card; `scores` maps a split to `{score: number or {"mean", "low", "high"}}`."""
    config = model.config
    architecture = find_architecture(config.architecture)
    settings = ", ".join(f"{key} {value}" for key, value in config.settings.items()) or "none"
    training = "\n".join(
        f"- {key.replace('_', ' ')}: {_plain(value)}"
        for key, value in config.training.items()
        if value is not None and key not in NOT_IN_CARD
    )
    seen = ""
    if config.training_range is not None:
        low, high = config.training_range.peak_signal_to_noise
        seen = f", brightest pixels of {low:.3g} to {high:.3g} sigma (98 % of the training images), \
an LR PSF of {config.training_range.describe_fwhm()} FWHM"
    scales = " and ".join(f"×{scale}" for scale in model.scales)
    pixels = " or ".join(f'{config.lr_pixel_scale_arcsec / scale:g}"' for scale in model.scales)
    divisor = config.scale**2 if len(model.scales) == 1 else "scale²"
    text = f"""# {model.name}: {config.architecture}, {scales} super-resolution

- architecture: {config.architecture} ({architecture.paper}); settings: {settings}
- parameters: {parameter_count(model.network):,}
- input: {config.lr_instrument}, {config.lr_pixel_scale_arcsec:g}" pixels; output: {config.hr_instrument}, \
{pixels} pixels
- unit: flux per pixel in {config.unit or "the input's unit"}, in and out
- normalisation: LR / a, with a = {config.normalisation_factor:.6g} × the median of the image's 1-σ noise map; \
output × a / {divisor}
- {_describe_data(config)}

## Measured scores
{_score_table(scores)}

## Training
{training or "- none"}

## Use
    pipeline super-resolve IN.fits OUT.fits --model {folder.name}{" [--scale N]" if len(model.scales) > 1 else ""}

## Limits
What it saw: {config.lr_instrument}, {config.lr_pixel_scale_arcsec:g}" pixels{seen}.
`pipeline super-resolve` refuses images of another instrument, of another pixel scale (by more than \
{PIXEL_SCALE_TOLERANCE:.0%})
or with a background of more than {BACKGROUND_SIGMAS:g} sigma, unless it is told to `--force`. It notes a peak outside
of what the model saw; other kinds of objects and other PSFs it does not notice. Detail the model adds is what such data
made likely, not a measurement. Whether it helps to tell kinds of dark matter apart is a question for
`pipeline classify-check`, not for the scores above.
"""
    write_text(folder / CARD_NAME, text)


def _describe_data(config: ModelConfig) -> str:
    """Where the model comes from: stored data, lenses simulated while it was trained, or no data at all."""
    if config.data_sha256 is None:
        return "not trained"
    stored = f"data whose manifest has SHA-256 `{config.data_sha256}`"
    target = f"trained towards: `{config.target}`"
    if config.training.get("data") == "on-the-fly":
        return f"{target} of lenses simulated on the fly; normalised and validated on the {stored}"
    return f"{target} of the {stored}"


def _plain(value: Any) -> str:
    """A setting as one writes it: `l1 1, ssim 0.1` for a mapping."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


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
