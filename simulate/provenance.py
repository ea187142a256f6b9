"""Where data came from: what to write down so that they can be made again."""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import yaml

from .settings import Settings

PACKAGES = ("astropy", "h5py", "lenstronomy", "numpy", "scipy", "sharplens", "torch")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers, without importing them."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def git_revision() -> str:
    """The commit this code is at, with "-dirty" if it was changed since; "unknown" outside a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        top = subprocess.run(  # noqa: S603
            [*command[:3], "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=False
        )
        if top.returncode != 0:
            return "unknown"  # installed inside somebody else's checkout
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def settings_yaml(settings: Settings) -> str:
    """Resolved settings as YAML, every default written out; it reads back as the same settings."""
    return yaml.safe_dump(_plain(settings), sort_keys=False)


def _plain(value: Any) -> Any:
    """Settings as plain mappings, without the keys that are None by default."""
    if isinstance(value, Settings):
        fields = type(value).model_fields
        found = {name: getattr(value, name) for name in fields}
        return {name: _plain(one) for name, one in found.items() if one is not None or fields[name].default is not None}
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def provenance(settings: Settings, seed: int) -> dict[str, str | int]:
    """Root attributes of a shard and head of a manifest."""
    config = settings_yaml(settings)
    return {
        "config": config,
        "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        "seed": seed,
        "versions": json.dumps(package_versions()),
        "git_revision": git_revision(),
    }
