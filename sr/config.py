"""One experiment, one configuration: the sections of a YAML file, each a settings class beside its owner."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field

from simulate.errors import InputError
from simulate.generate import SimulateSettings
from simulate.instruments import config_folder
from simulate.provenance import settings_yaml
from simulate.settings import Settings, apply_overrides, parse_settings, read_yaml
from simulate.shards import write_text

from .classify import ClassifySettings
from .evaluate import EvaluateSettings
from .models import resolve_settings
from .observed import PairsSettings
from .plan import TrainSettings
from .transfer import TransferSettings

CONFIG_NAME = "config.yaml"


class RunConfig(Settings):
    """Everything about one run that is not a path."""

    seed: int = Field(1, ge=0)
    simulate: SimulateSettings = SimulateSettings()
    pairs: PairsSettings = PairsSettings()
    train: TrainSettings = TrainSettings()
    transfer: TransferSettings = TransferSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    classify: ClassifySettings = ClassifySettings()


def find_config(name: Path) -> Path:
    """A configuration file by its path, or by the name of a shipped one ("quickstart")."""
    shipped = config_folder() / f"{name}.yaml"
    return shipped if not name.exists() and not name.suffix and shipped.is_file() else name


def load_config(config: Path | None, run: Path, overrides: Sequence[str], seed: int | None) -> RunConfig:
    """The configuration of a run: from `config`, or the one kept in the run folder; then overrides; then the seed.

    Raises `InputError` if anything in it is wrong.
    """
    kept = run / CONFIG_NAME
    if config is not None:
        path = find_config(config)
    elif kept.is_file():
        path = kept
    else:
        raise InputError(f"{run}: no {CONFIG_NAME} here yet; give one with --config (for example --config quickstart)")
    content = apply_overrides(read_yaml(path), overrides)
    if seed is not None:
        content["seed"] = seed
    settings = parse_settings(RunConfig, content, str(path))
    settings.simulate.resolve()
    for model in settings.train.models:
        resolve_settings(model.architecture, model.size, model.settings)
    return settings


def keep_config(settings: RunConfig, run: Path) -> None:
    """Write RUN/config.yaml, every default written out: what the run's finished stages were made with."""
    text, kept = settings_yaml(settings), run / CONFIG_NAME
    if not kept.is_file() or kept.read_text(encoding="utf-8") != text:
        write_text(kept, text)


def check_sections(settings: RunConfig) -> None:
    """Raise `InputError` if sections cannot work together, before hours are spent on the first of them."""
    simulate, pairs, train, transfer = settings.simulate, settings.pairs, settings.train, settings.transfer
    names = [model.folder_name for model in train.models]
    missing = [name for name in transfer.models if name not in names]
    sizes = {"train": simulate.hr_size // simulate.scale, "transfer": pairs.hr_size // pairs.scale}
    wrong = []
    if pairs.scale != simulate.scale:
        wrong.append(f"pairs.scale is {pairs.scale}, simulate.scale {simulate.scale}")
    if missing:
        wrong.append(f"transfer.models names {missing[0]!r}, which train.models does not train ({', '.join(names)})")
    for name, crop in (("train", train.crop_size), ("transfer", transfer.crop_size)):
        if crop is not None and crop > sizes[name]:
            wrong.append(f"{name}.crop_size is {crop}, its LR images have {sizes[name]} pixels")
    for split, count in simulate.counts.model_dump().items():
        if count < len(simulate.classes):
            wrong.append(f"simulate.counts.{split} is {count}, fewer than the {len(simulate.classes)} classes")
    if wrong:
        raise InputError("configuration: " + "; ".join(wrong))


def find_device(name: str) -> torch.device:
    """ "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N". Raises `InputError` if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not usable here: {str(error).splitlines()[0]}") from None
    return device
