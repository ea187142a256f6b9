"""`pipeline doctor`: is this installation whole, and is it ours that Python finds?"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from simulate.instruments import config_folder
from simulate.provenance import git_revision, package_versions

REQUIRED = (
    "astropy", "h5py", "jinja2", "lenstronomy", "matplotlib", "numpy", "PIL", "pydantic", "yaml", "rich", "safetensors",
    "skimage", "sklearn", "scipy", "tensorboardX", "torch", "typer",
)  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    good: bool
    text: str


def find_shadows(home: Path) -> list[str]:
    """Modules named like ours that Python finds elsewhere than at `home` (other distributions use these names too)."""
    shadows = []
    for name in ("pipeline", "simulate", "sr"):
        found = importlib.util.find_spec(name)
        place = Path(found.origin).resolve() if found is not None and found.origin else None
        if place is None or home not in place.parents:
            shadows.append(f"{name} is found at {place}, not in {home}: another package of that name shadows ours")
    return shadows


def _shipped_models() -> Check:
    from .shipped import describe_shipped, shipped_models

    try:
        models = [f"{name} ({describe_shipped(config)})" for name, config in shipped_models().items()]
    except Exception as error:  # a model is damaged, or a package is broken
        return Check(False, f"shipped models: {error}")
    return Check(True, f"shipped models: {', '.join(models) or 'none; super-resolve needs --model'}")


def examine() -> list[Check]:
    """Check Python, the packages, shadowing, the shipped configurations and the devices."""
    home = Path(__file__).resolve().parent.parent
    checks = [Check(sys.version_info >= (3, 11), f"Python {platform.python_version()} on {platform.platform()}")]
    versions = package_versions()
    for name in REQUIRED:
        try:
            importlib.import_module(name)
            version = versions.get(name, "")
            checks.append(Check(True, f"{name} {version}".strip()))
        except Exception as error:  # a broken package may raise anything when imported
            checks.append(Check(False, f"{name} cannot be imported: {type(error).__name__}: {error}"))
    shadows = find_shadows(home)
    checks += [Check(False, text) for text in shadows] or [Check(True, f"pipeline, simulate and sr are ours ({home})")]
    shipped = sorted(path.stem for path in config_folder().glob("*.yaml"))
    checks.append(Check(bool(shipped), f"configurations: {', '.join(shipped) or 'none found'}"))
    checks.append(Check(True, f"code revision: {git_revision()}"))
    checks.append(
        Check(True, f"{os.cpu_count()} CPU cores, {shutil.disk_usage('.').free / 1e9:.0f} GB of disk free here")
    )
    if "torch" in sys.modules:  # imported above without failing
        import torch

        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU-only build"
        checks += [Check(True, f"torch is {build}"), _shipped_models()]
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        checks.append(Check(True, f"CUDA devices: {', '.join(names) or 'none; everything runs on the CPU'}"))
    return checks
