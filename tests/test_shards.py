"""The on-disk contract: round trips, atomic writes, and damage that is found."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from simulate.errors import InputError
from simulate.shards import IMAGES, read_pairs, read_shard, verify_dataset, write_atomically, write_shard
from tests.conftest import blob_pairs, write_dataset


def test_shard_round_trip_keeps_every_value(tmp_path: Path) -> None:
    pairs = blob_pairs(5)
    write_shard(tmp_path / "a.h5", pairs, {"seed": 3, "config": "seed: 3"})
    back = read_shard(tmp_path / "a.h5")
    for name in (*IMAGES, "label", "index"):
        np.testing.assert_array_equal(getattr(back, name), getattr(pairs, name))
    assert (back.name, back.classes, back.unit, back.kind) == (pairs.name, pairs.classes, pairs.unit, pairs.kind)
    assert back.lr_band.pixel_scale_arcsec == pairs.lr_band.pixel_scale_arcsec
    np.testing.assert_array_equal(back.hr_band.psf, pairs.hr_band.psf)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["seed"] == 3
        assert file["hr"].fletcher32
        assert file["hr"].shuffle


def test_verify_counts_and_select(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": blob_pairs(6), "test": blob_pairs(3, first_index=6)})
    assert verify_dataset(tmp_path) == {"train": 6, "test": 3}
    pairs = read_pairs(tmp_path, "train")
    some = pairs.select(pairs.label == 1)
    assert len(some) == 2
    np.testing.assert_array_equal(some.hr, pairs.hr[[1, 4]])


def test_truncated_and_changed_and_missing_shards_are_named(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": blob_pairs(6)})
    path = tmp_path / "train" / "shard-00000.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"shard-00000.h5: SHA-256 .* changed"):
        verify_dataset(tmp_path)
    with pytest.raises(InputError, match=r"shard-00000.h5: cannot be read as HDF5"):
        read_pairs(tmp_path, "train")
    path.unlink()
    with pytest.raises(InputError, match="missing, but the manifest lists it"):
        verify_dataset(tmp_path)


def test_not_finite_and_repeated_samples_are_found(tmp_path: Path) -> None:
    bad = blob_pairs(3)
    bad.lr[1, 0, 2, 2] = np.nan
    write_dataset(tmp_path / "nan", {"train": bad})
    with pytest.raises(InputError, match="'lr' holds values that are not finite"):
        verify_dataset(tmp_path / "nan")
    write_dataset(tmp_path / "twice", {"train": blob_pairs(3), "test": blob_pairs(3, first_index=2)})
    with pytest.raises(InputError, match="sample 2 is also in another shard"):
        verify_dataset(tmp_path / "twice")


def test_missing_dataset_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", blob_pairs(2), {})
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["lr_noise"]
    with pytest.raises(InputError, match=r"a.h5: incomplete shard.*lr_noise"):
        read_shard(tmp_path / "a.h5")
    with pytest.raises(InputError, match="no data set here"):
        read_pairs(tmp_path, "train")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]
