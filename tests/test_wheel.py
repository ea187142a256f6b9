"""The wheel: exactly our top-level names, and it works away from the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from sr.doctor import find_shadows
from sr.model_folder import save_model
from sr.trained_model import interpolation_model

from .conftest import blob_pairs

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
    shipped = {str(path.relative_to(ROOT)) for path in (ROOT / "sr" / "weights").rglob("*") if path.is_file()}
    assert "sr/weights/README.md" in shipped
    assert shipped == {name for name in names if name.startswith("sr/weights/")}


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


def test_installed_weights_need_no_model_option(wheel: Path, tmp_path: Path) -> None:
    """A model for pixels that no other has, put where the wheel has its own."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    model = interpolation_model("bicubic", blob_pairs(1))
    model.config = model.config.model_copy(update={"lr_pixel_scale_arcsec": 0.777, "lr_instrument": "HSC i"})
    save_model(model, tmp_path / "site" / "sr" / "weights" / "tiny", {"validation": {"psnr_db": 30.0}})
    image = np.random.default_rng(0).normal(0, 1, (30, 40)).astype("f4")
    header = fits.Header({"PIXSCALE": 0.777, "TELESCOP": "Subaru", "INSTRUME": "HSC", "FILTER": "HSC-I"})
    fits.writeto(tmp_path / "in.fits", image, header)
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "env": {"PYTHONPATH": str(tmp_path / "site")}}
    command = [sys.executable, "-m", "pipeline", "super-resolve", "in.fits", "out.fits", "--self-ensemble"]
    done = subprocess.run(command, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert "site/sr/weights/tiny" in done.stdout
    assert fits.getdata(tmp_path / "out.fits").shape == (60, 80)
    header["FILTER"] = "HSC-G"
    fits.writeto(tmp_path / "in.fits", image, header, overwrite=True)
    refused = subprocess.run([*command, "--overwrite", "--model", "tiny"], **options)  # type: ignore[call-overload]
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: in.fits [PRIMARY]: not what model tiny was trained for: ")
    assert refused.stderr.count("\n") == 1


def test_shadowing_is_noticed(tmp_path: Path) -> None:
    assert find_shadows(ROOT) == []
    assert [text.split()[0] for text in find_shadows(tmp_path)] == ["pipeline", "simulate", "sr"]
