"""What every stage shares: when is its work already done, and where does it leave its numbers."""

import hashlib
import json
from pathlib import Path
from typing import Any

from simulate.errors import InputError
from simulate.settings import Settings
from simulate.shards import write_json

METRICS_NAME = "metrics.json"


def fingerprint(settings: Settings, **inputs: str | int | float) -> str:
    """Hex SHA-256 of a stage's settings and of what it reads (hashes of data and models, seed): its identity."""
    text = json.dumps({"settings": settings.model_dump(mode="json"), "inputs": inputs}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def finished_metrics(folder: Path, identity: str, resume: bool) -> dict[str, Any] | None:
    """The metrics of `folder` if `resume` and the same work was finished there; None if it is still to be done."""
    path = folder / METRICS_NAME
    if not resume or not path.is_file():
        return None
    metrics = read_metrics(folder)
    return metrics if metrics.get("fingerprint") == identity else None


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a stage's `metrics.json`. Raises `InputError` if the stage has not run or the file is damaged."""
    path = folder / METRICS_NAME
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: missing; run the stage that writes it first") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


def write_metrics(folder: Path, identity: str, seconds: float, content: dict[str, Any]) -> dict[str, Any]:
    """Write a finished stage's numbers, atomically, with its identity and duration; returns what was written."""
    metrics = {"fingerprint": identity, "seconds": round(seconds, 2), **content}
    write_json(folder / METRICS_NAME, metrics)
    return metrics
