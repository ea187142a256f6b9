"""The wheel: exactly our top-level names, and it works away from the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sr.doctor import find_shadows

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("sharplens-*.whl"))


def test_wheel_has_exactly_our_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"pipeline.py", "simulate", "sr"}
    assert "simulate/configs/quickstart.yaml" in names
    assert any(name.endswith(".html.j2") for name in names)


def test_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True, "env": {"PYTHONPATH": str(site)}}
    doctor = subprocess.run([sys.executable, "-m", "pipeline", "doctor"], **options)  # type: ignore[call-overload]
    assert f"ours ({site.resolve()})" in doctor.stdout
    assert "quickstart" in doctor.stdout
    arguments = ["--config", "quickstart", "--out", "run", "--workers", "1", "--set", "simulate.scene.supersampling=1"]
    counts = ["--set", "simulate.counts={train: 3, val: 3, test: 3}"]
    simulate = [sys.executable, "-m", "pipeline", "simulate", *arguments, *counts]
    subprocess.run(simulate, **options)  # type: ignore[call-overload]
    assert (tmp_path / "run" / "data" / "manifest.json").is_file()


def test_shadowing_is_noticed(tmp_path: Path) -> None:
    assert find_shadows(ROOT) == []
    assert [text.split()[0] for text in find_shadows(tmp_path)] == ["pipeline", "simulate", "sr"]
