"""Small data sets that need no simulator: smooth blobs, seen sharp and seen blurred."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from simulate.shards import Band, Pairs, describe_shard, write_manifest, write_shard

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as pipeline.main does, before torch starts

CLASSES = ("axion", "cdm", "none")
OBSERVED = Path(__file__).resolve().parents[2] / "shared" / "observed"


@pytest.fixture
def observed_images() -> Path:
    """Folder of real telescope images; tests that need it are skipped where it is absent."""
    if not OBSERVED.is_dir():
        pytest.skip(f"real telescope images are not at {OBSERVED}")
    return OBSERVED


def gaussian_kernel(fwhm_pixels: float, size: int = 11) -> np.ndarray:
    axis = np.arange(size) - size // 2
    profile = np.exp(-0.5 * (axis * 2.3548 / fwhm_pixels) ** 2)
    kernel = np.outer(profile, profile)
    return kernel / kernel.sum()


def blob_pairs(
    count: int, scale: int = 2, lr_size: int = 16, seed: int = 0, kind: str = "simulated", first_index: int = 0
) -> Pairs:
    """`count` pairs of two random Gaussian blobs each; LR = blurred, binned (flux is summed), noise of sigma 0.05."""
    rng = np.random.default_rng(seed)
    size = scale * lr_size
    y, x = np.mgrid[:size, :size]
    hr = np.zeros((count, 1, size, size))
    for image in hr[:, 0]:
        for _ in range(2):
            centre = rng.uniform(0.25, 0.75, 2) * size
            width = rng.uniform(0.04, 0.12) * size
            image += rng.uniform(0.5, 2) * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * width**2))
    blurred = gaussian_filter(hr, (0, 0, 0.6 * scale, 0.6 * scale))
    lr = blurred.reshape(count, 1, lr_size, scale, lr_size, scale).sum((3, 5))
    return Pairs(
        hr=hr.astype("f4"),
        hr_noisy=(hr + rng.normal(0, 0.02, hr.shape)).astype("f4"),
        hr_mask=np.ones(hr.shape, bool),
        lr=(lr + rng.normal(0, 0.05, lr.shape)).astype("f4"),
        lr_noise=np.full(lr.shape, 0.05, "f4"),
        label=(np.arange(count) % 3).astype("i1") if kind == "simulated" else np.full(count, -1, "i1"),
        index=np.arange(first_index, first_index + count),
        name=tuple("{}" if kind == "simulated" else f"object-{row}" for row in range(count)),
        classes=CLASSES,
        unit="nJy",
        hr_band=Band("sharp", 0.05, gaussian_kernel(2), 0.05),
        lr_band=Band("blurred", 0.05 * scale, gaussian_kernel(2), 0.05 * scale),
        kind=kind,
    )


def write_dataset(folder: Path, splits: dict[str, Pairs]) -> None:
    entries = {}
    for split, pairs in splits.items():
        path = folder / split / "shard-00000.h5"
        write_shard(path, pairs, {"seed": 0})
        entries[split] = [describe_shard(folder, path, pairs.index)]
    write_manifest(folder, entries, {"kind": next(iter(splits.values())).kind, "classes": list(CLASSES)})


@pytest.fixture
def blob_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder whose data/ holds train, val and test blobs and whose pairs/ holds observed blobs."""

    def make(train: int = 24, val: int = 6, test: int = 9, observed: int = 12, **options: int) -> Path:
        run = tmp_path / "run"
        counts = {"train": train, "val": val, "test": test}
        splits, first = {}, 0
        for seed, (split, count) in enumerate(counts.items()):
            splits[split] = blob_pairs(count, seed=seed, first_index=first, **options)
            first += count
        write_dataset(run / "data", splits)
        pairs = blob_pairs(observed, seed=9, kind="real HR, degraded LR", **options)
        write_dataset(run / "pairs", {"observed": pairs})
        return run

    return make
