"""Data sets: the same bytes whatever the workers, shards and restarts; nothing finished is lost."""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from simulate import audit
from simulate.errors import InputError
from simulate.generate import SimulateSettings, _samples, assemble, simulate_run
from simulate.sample import simulate_sample
from simulate.shards import IMAGES, TRUTH_UNITS, read_manifest, read_pairs, verify_dataset

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
    simulate_run(tmp_path, SETTINGS, seed=5, resume=True, workers=1, verify=0)
    before = read_manifest(tmp_path / "data")
    shard = tmp_path / "data" / "train" / "shard-00001.h5"
    shard.write_bytes(shard.read_bytes()[:2000])
    (tmp_path / "data" / "val" / "shard-00000.h5").unlink()
    assert simulate_run(tmp_path, SETTINGS, seed=5, resume=True, workers=1, verify=0)["simulated_now"] == 4
    assert read_manifest(tmp_path / "data") == before
    assert simulate_run(tmp_path, SETTINGS, seed=5, resume=True, workers=1, verify=0)["simulated_now"] == 0


def test_another_configuration_is_not_mixed_in(finished: Path) -> None:
    with pytest.raises(InputError, match=r"another configuration or seed; use --fresh"):
        simulate_run(finished, SETTINGS, seed=6, resume=True, workers=1)


def test_engines_share_scenes_and_noise(finished: Path) -> None:
    ours = read_pairs(finished / "data", "train")
    reference = SETTINGS.model_copy(update={"engine": "lenstronomy"}).resolve()
    for row in range(3):
        theirs = simulate_sample(reference, 5, row)
        assert theirs["name"] == ours.name[row]
        for name in ("hr", "hr_noisy", "lr", "lr_noise"):
            one, other = getattr(ours, name)[row], theirs[name]
            np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())


def test_every_shard_carries_its_audit(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = audit.read_audits(finished / "data")
    assert found["samples"] == 4
    assert 0 < found["hr_relative_l2"] < 1e-5
    assert 0 < found["lr_of_peak"] < 1e-4
    with h5py.File(finished / "data" / "train" / "shard-00001.h5") as file:
        assert '"samples": [4]' in file.attrs["audit"]
    monkeypatch.setattr(audit, "TOLERANCE", 1e-9)
    with pytest.raises(
        RuntimeError, match=r"sample 0: its hr image differs from lenstronomy's by \d\.\de-0\d \(relative L2\)"
    ):
        simulate_run(tmp_path, SETTINGS, seed=5, resume=True, workers=1)
    assert not list(tmp_path.rglob("*.h5"))


def test_truth_maps_are_stored_beside_the_images(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"truth_maps": True})
    simulate_run(tmp_path, settings, seed=5, resume=True, workers=1, verify=0)
    pairs = read_pairs(tmp_path / "data", "train")
    assert set(pairs.truth) == set(TRUTH_UNITS)
    assert pairs.truth["deflection"].shape == (6, 2, 32, 32)
    assert pairs.truth["convergence_substructure"][pairs.label == 2].max() == 0
    last = pairs.select(np.array([5]))
    np.testing.assert_array_equal(last.truth["source"][0], pairs.truth["source"][5])
    assert audit.read_audits(tmp_path / "data") == {"samples": 0}
    with h5py.File(tmp_path / "data" / "train" / "shard-00000.h5") as file:
        assert file["truth_convergence_macro"].attrs["unit"] == "critical surface density"


def test_samples_rendered_in_batches_do_not_depend_on_which_are_wanted(finished: Path) -> None:
    """The way of a GPU, on the CPU: workers draw, whole blocks are rendered at once."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        arguments = (pool, SETTINGS.resolve(), 5)
        every = list(_samples(*arguments, list(range(11)), torch.device("cpu"), 2))
        some = list(_samples(*arguments, [3, 7], torch.device("cpu"), 2))
    assert [one["index"] for one in every] == list(range(11))
    for one in some:
        assert one["hr"].tobytes() == every[one["index"]]["hr"].tobytes()
        assert one["lr"].tobytes() == every[one["index"]]["lr"].tobytes()
    stored = read_pairs(finished / "data", "train")
    for row in range(6):
        np.testing.assert_allclose(every[row]["hr"], stored.hr[row], atol=1e-5 * stored.hr[row].max())


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    wrong = SimulateSettings(classes=["wdm"], scene={"preset": "deeplensesim-model-1"}, hr_size=32)
    with pytest.raises(InputError, match=r"change simulate\.classes, or leave out simulate\.scene\.preset"):
        simulate_run(tmp_path, wrong, seed=5, resume=True, workers=1)
    assert not list(tmp_path.rglob("*"))


def test_importing_simulate_is_light() -> None:
    code = (
        "import sys, simulate, simulate.generate, simulate.shards; print({'torch', 'lenstronomy'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
