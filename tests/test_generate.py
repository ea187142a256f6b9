"""Data sets: the same bytes whatever the workers, shards and restarts; nothing finished is lost."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simulate.errors import InputError
from simulate.generate import SimulateSettings, assemble, simulate_run, simulate_sample
from simulate.shards import IMAGES, read_manifest, read_pairs, verify_dataset

SETTINGS = SimulateSettings(counts={"train": 6, "val": 2, "test": 3}, hr_size=32, shard_size=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished")
    simulate_run(run, SETTINGS, seed=5, resume=True, workers=2)
    return run


def test_data_set_is_complete_and_verifies(finished: Path) -> None:
    assert verify_dataset(finished / "data") == {"train": 6, "val": 2, "test": 3}
    pairs = read_pairs(finished / "data", "train")
    assert pairs.hr.shape == (6, 1, 32, 32)
    assert pairs.lr.shape == (6, 1, 16, 16)
    assert pairs.label.tolist() == [0, 1, 2, 0, 1, 2]
    manifest = read_manifest(finished / "data")
    assert [entry["count"] for entry in manifest["splits"]["train"]] == [4, 2]
    assert manifest["seed"] == 5
    assert "hr_size: 32" in manifest["config"]


def test_samples_do_not_depend_on_workers_or_shards(finished: Path, tmp_path: Path) -> None:
    other = SETTINGS.model_copy(update={"shard_size": 5})
    simulate_run(tmp_path, other, seed=5, resume=True, workers=1)
    for split in ("train", "val", "test"):
        ours, theirs = read_pairs(finished / "data", split), read_pairs(tmp_path / "data", split)
        for name in IMAGES:
            assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()
        assert ours.name == theirs.name
    alone = assemble(SETTINGS.resolve(), [simulate_sample(SETTINGS.resolve(), 5, 3)])
    assert alone.hr.tobytes() == read_pairs(finished / "data", "train").hr[3:4].tobytes()
    assert not np.array_equal(alone.hr, simulate_sample(SETTINGS.resolve(), 6, 3)["hr"][None])


def test_resume_makes_only_what_is_missing_or_damaged(tmp_path: Path) -> None:
    simulate_run(tmp_path, SETTINGS, seed=5, resume=True, workers=1)
    before = read_manifest(tmp_path / "data")
    shard = tmp_path / "data" / "train" / "shard-00001.h5"
    shard.write_bytes(shard.read_bytes()[:2000])
    (tmp_path / "data" / "val" / "shard-00000.h5").unlink()
    assert simulate_run(tmp_path, SETTINGS, seed=5, resume=True, workers=1)["simulated_now"] == 4
    assert read_manifest(tmp_path / "data") == before
    assert simulate_run(tmp_path, SETTINGS, seed=5, resume=True, workers=1)["simulated_now"] == 0


def test_another_configuration_is_not_mixed_in(finished: Path) -> None:
    with pytest.raises(InputError, match=r"another configuration or seed; use --fresh"):
        simulate_run(finished, SETTINGS, seed=6, resume=True, workers=1)


def test_importing_simulate_is_light() -> None:
    code = (
        "import sys, simulate, simulate.generate, simulate.shards; print({'torch', 'lenstronomy'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
