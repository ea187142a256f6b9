import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import sr.transfer
from simulate.errors import InputError
from simulate.shards import Pairs, read_pairs
from sr.cross_validation import assign_folds, object_means
from sr.degradation import usual_kernel
from sr.metrics import image_scores
from sr.model_folder import load_model, save_model
from sr.trained_model import TrainedModel, interpolation_model
from sr.trainer import Trainer
from sr.transfer import TransferSettings, cross_validate, transfer_run
from sr.transfer_variants import VariantTrainer

from .conftest import blob_pairs, write_dataset
from .test_trained_model import CPU, TINY, tiny_model
from .test_training import Killed, ignore

SETTINGS = TransferSettings(frozen_steps=2, finetune_steps=3, folds=2, batch_size=4, crop_size=10)
SCORES = ("psnr_db", "ssim", "mse", "absolute_flux_error")


def two_bands(objects: int = 6, **options: Any) -> Pairs:
    """Observed pairs, two images of each object, not side by side."""
    pairs = blob_pairs(2 * objects, kind="real HR, degraded LR", **options)
    return replace(pairs, name=tuple(f"galaxy-{row % objects}" for row in range(2 * objects)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with observed pairs and (hardly) trained models."""
    for name in ("rcan", "srresnet"):
        save_model(tiny_model(name, blob_pairs(4, seed=5)), tmp_path / "train" / name, None)
    write_dataset(tmp_path / "pairs", {"observed": two_bands()})
    return tmp_path


def test_all_images_of_an_object_share_a_fold() -> None:
    names = tuple(f"object-{number}" for number in np.random.default_rng(0).integers(0, 23, 200))
    fold = assign_folds(names, 5, np.random.default_rng(1))
    folds_of = {name: set(fold[[other == name for other in names]]) for name in names}
    assert all(len(folds) == 1 for folds in folds_of.values())
    sizes = np.bincount([next(iter(folds)) for folds in folds_of.values()])
    assert len(sizes) == 5
    assert np.ptp(sizes) <= 1
    assert not np.array_equal(fold, assign_folds(names, 5, np.random.default_rng(2)))


def test_more_folds_than_objects_are_refused() -> None:
    with pytest.raises(InputError, match=r"transfer\.folds: expected at most 3.*found 4"):
        assign_folds(("a", "b", "c", "a"), 4, np.random.default_rng(0))


def test_scores_are_averaged_over_the_images_of_an_object() -> None:
    scores = {"psnr_db": np.array([1.0, 2.0, 5.0]), "flux_error": np.array([0.1, 0.3, -0.1])}
    means = object_means(scores, ("b", "a", "b"))
    np.testing.assert_allclose(means["psnr_db"], [2, 3])
    np.testing.assert_allclose(means["flux_error"], [0.3, 0.1])


def test_training_the_frozen_stage_leaves_features_and_statistics_bit_identical() -> None:
    trainer = VariantTrainer(SETTINGS, 0, CPU, ignore)
    model = tiny_model("srresnet")
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    trainer.train_frozen(model, two_bands(), "here")
    after = model.network.state_dict()
    assert all(torch.equal(after[name], before[name]) != name.startswith("upsampling.") for name in before)
    trainer.finetune(model, two_bands(), "here")
    for name, tensor in model.network.state_dict().items():
        assert not tensor.is_floating_point() or not torch.equal(tensor, before[name]), name


def test_the_layers_to_train_while_the_others_are_frozen_can_be_named() -> None:
    names = ("head", "body.1")
    trainer = VariantTrainer(SETTINGS.model_copy(update={"trainable": names}), 0, CPU, ignore)
    model = tiny_model("srresnet")
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    trainer.train_frozen(model, two_bands(), "here")
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.startswith(("head.", "body.1.")), name


def test_adapters_change_little_of_each_layer_and_leave_a_plain_network() -> None:
    pretrained = tiny_model("srresnet")
    before = {name: tensor.clone() for name, tensor in pretrained.network.state_dict().items()}
    adapted, pairs = copy.deepcopy(pretrained), two_bands()
    trainer = VariantTrainer(SETTINGS.model_copy(update={"adapter_rank": 1}), 0, CPU, ignore)
    trainer.train_adapters(adapted, pairs, "here", 1)
    after = adapted.network.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        change = (tensor - before[name]).double()
        assert bool(change.any()) == (change.ndim > 1), name  # biases, slopes and batch statistics stay
        if change.ndim > 1:
            assert np.linalg.matrix_rank(change.flatten(1).numpy(), tol=1e-4 * float(change.norm())) == 1
    predicted = trainer.predict_held_out(pretrained, pairs, pairs, 0)
    assert list(predicted) == list(trainer.settings.variants)
    assert len({images.tobytes() for images in predicted.values()}) == 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in pretrained.network.state_dict().items())


def test_the_unpretrained_model_takes_nothing_from_the_pretrained_one() -> None:
    results = []
    for seed in (0, 1):
        model, held_out = tiny_model("rcan", seed=seed), two_bands(seed=3)
        model.config = model.config.model_copy(update={"normalisation_factor": 7.0 + seed})
        trainer = VariantTrainer(SETTINGS, 0, CPU, ignore)
        results.append(trainer.predict_held_out(model, two_bands(), held_out, 0))
    assert np.array_equal(results[0]["unpretrained"], results[1]["unpretrained"])
    assert not np.array_equal(results[0]["fine-tuned"], results[1]["fine-tuned"])


def test_both_ways_of_training_have_the_same_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, float]] = []
    init = Trainer.__init__

    def note(self: Trainer, network: Any, samples: Any, settings: Any, *rest: Any, **more: Any) -> None:
        trained.append((settings.steps, settings.learning_rate))
        init(self, network, samples, settings, *rest, **more)

    monkeypatch.setattr(Trainer, "__init__", note)
    pairs = two_bands()
    VariantTrainer(SETTINGS, 0, CPU, ignore).predict_held_out(tiny_model("rcan"), pairs, pairs, 0)
    assert trained == [(2, 1e-3), (3, 2e-4), (5, 2e-3)]
    trained.clear()
    settings = SETTINGS.model_copy(update={"adapter_rank": 2, "adapter_learning_rate": 7e-3})
    VariantTrainer(settings, 0, CPU, ignore).predict_held_out(tiny_model("rcan"), pairs, pairs, 0)
    assert trained == [(2, 1e-3), (3, 2e-4), (5, 7e-3), (5, 2e-3)]


def test_what_is_held_out_is_not_seen(tmp_path: Path) -> None:
    pairs, model = two_bands(), tiny_model("srresnet")
    fold_of = assign_folds(pairs.name, 2, np.random.default_rng(0))
    own = np.array([name == "galaxy-1" for name in pairs.name])
    spoiled = replace(pairs, hr=np.where(own[:, None, None, None], -pairs.hr, pairs.hr))
    # batches that no object can be missing from
    trainer = VariantTrainer(SETTINGS.model_copy(update={"batch_size": 32}), 0, CPU, ignore)
    clean = cross_validate(trainer, model, pairs, fold_of, tmp_path / "a", "x")
    changed = cross_validate(trainer, model, spoiled, fold_of, tmp_path / "b", "x")
    other_fold = fold_of != fold_of[own][0]
    for variant in ("frozen", "fine-tuned", "unpretrained"):
        assert np.array_equal(clean[variant][own], changed[variant][own])
        assert not np.array_equal(clean[variant][other_fold], changed[variant][other_fold])


def test_a_transfer_leaves_all_it_promises(run: Path) -> None:
    metrics = transfer_run(run, SETTINGS, 0, CPU, resume=False)
    folder, pairs = run / "transfer", read_pairs(run / "pairs", "observed")
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert metrics["objects"] == 6
    assert metrics["kind"] == "real HR, degraded LR"
    data_range = float(np.median(pairs.hr.max((1, 2, 3))))
    assert metrics["data_range"] == pytest.approx(data_range)
    rows = {(row["model"], row["variant"]): row for row in metrics["rows"]}
    expected = {(model, variant) for model in ("rcan", "srresnet") for variant in SETTINGS.variants}
    assert set(rows) == expected | {("-", "bilinear"), ("-", "bicubic")}
    for row in rows.values():
        assert all(row[score]["low"] <= row[score]["mean"] <= row[score]["high"] for score in SCORES)

    def mean_psnr(model: TrainedModel) -> float:
        images = model.super_resolve(pairs.lr, pairs.lr_noise, CPU)
        return float(image_scores(images, pairs, data_range)["psnr_db"].mean())

    for name in ("rcan", "srresnet"):
        zero_shot = mean_psnr(load_model(run / "train" / name, CPU))
        assert rows[name, "zero-shot"]["psnr_db"]["mean"] == pytest.approx(zero_shot, rel=1e-6)
        final = load_model(folder / name, CPU)
        assert final.config.normalisation == load_model(run / "train" / name, CPU).config.normalisation
        assert final.config.data_sha256 != "ab" * 32
        card = (folder / name / "README.md").read_text(encoding="utf-8")
        assert f"{rows[name, 'fine-tuned']['psnr_db']['mean']:.4g}" in card
        assert json.loads((folder / name / "metrics.json").read_text())["rows"] == [
            row for row in metrics["rows"] if row["model"] == name
        ]
    assert rows["-", "bicubic"]["psnr_db"]["mean"] == pytest.approx(mean_psnr(interpolation_model("bicubic", pairs)))
    assert [(one["model"], one["minus"]) for one in metrics["differences"]] == [
        (name, other) for name in ("rcan", "srresnet") for other in ("unpretrained", "bicubic")
    ]
    gain = rows["rcan", "fine-tuned"]["psnr_db"]["mean"] - rows["-", "bicubic"]["psnr_db"]["mean"]
    assert metrics["differences"][1]["psnr_db"]["mean"] == pytest.approx(gain)
    with h5py.File(folder / "examples.h5") as file:
        assert len(set(file["object"].asstr()[()])) == 4
        held = [int(np.flatnonzero(pairs.index == index)[0]) for index in file["index"][()]]
        np.testing.assert_array_equal(file["hr"][()], pairs.hr[held])
        zero_shot = load_model(run / "train/rcan", CPU).super_resolve(pairs.lr, pairs.lr_noise, CPU)
        np.testing.assert_allclose(file["prediction/rcan/zero-shot"][()], zero_shot[held], atol=1e-5)
        assert {f"{model}/{variant}" for model in file["prediction"] for variant in file["prediction"][model]} == {
            "/".join(key) for key in rows
        }
        own = image_scores(file["prediction/-/bicubic"][()], pairs.select(np.array(held)), data_range)["psnr_db"]
        np.testing.assert_allclose(file["prediction/-/bicubic"].attrs["psnr_db"], own)
    assert not (folder / ".folds").exists()


@pytest.mark.parametrize("changes", [{}, {"adapter_rank": 2}, {"adapter_rank": 2, "final_model": False}], ids=str)
def test_adapters_are_tabled_and_the_progress_bar_ends_at_its_end(
    run: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[list[int]] = []

    @contextmanager
    def note(_: str, total: int) -> Iterator[Callable[..., None]]:
        bars.append([total, 0])

        def advance(steps: int, note: str = "") -> None:
            bars[-1][1] += steps

        yield advance

    monkeypatch.setattr(sr.transfer, "progress_bar", note)
    settings = SETTINGS.model_copy(update={"models": ("rcan",), **changes})
    metrics = transfer_run(run, settings, 0, CPU, resume=False)
    per_fold = 15 if "adapter_rank" in changes else 10
    total = 2 * per_fold + (0 if "final_model" in changes else 5)
    assert bars == [[total, total]]
    rows = {row["variant"]: row["psnr_db"]["mean"] for row in metrics["rows"] if row["model"] == "rcan"}
    assert tuple(rows) == settings.variants
    gains = {one["minus"]: one["psnr_db"]["mean"] for one in metrics["differences"]}
    if "adapter_rank" in changes:
        assert gains["lora"] == pytest.approx(rows["fine-tuned"] - rows["lora"])
        with h5py.File(run / "transfer" / "examples.h5") as file:
            assert "lora" in file["prediction/rcan"]
    else:
        assert set(gains) == {"unpretrained", "bicubic"}


def test_a_killed_transfer_goes_on_with_the_next_fold(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = transfer_run(run, SETTINGS, 0, CPU, resume=False)
    trained: list[tuple[str, int]] = []
    predict = VariantTrainer.predict_held_out

    def kill(trainer: VariantTrainer, model: TrainedModel, training: Pairs, held_out: Pairs, fold: int) -> Any:
        if trained == [("rcan", 0), ("rcan", 1), ("srresnet", 0)]:
            trained.append(("killed", 0))
            raise Killed
        trained.append((model.name, fold))
        return predict(trainer, model, training, held_out, fold)

    monkeypatch.setattr(VariantTrainer, "predict_held_out", kill)
    with pytest.raises(Killed):
        transfer_run(run, SETTINGS, 0, CPU, resume=False)
    with pytest.raises(InputError, match=r"rcan-0\.h5: from other settings"):
        transfer_run(run, SETTINGS.model_copy(update={"frozen_steps": 1}), 0, CPU, resume=True)
    resumed = transfer_run(run, SETTINGS, 0, CPU, resume=True)
    assert trained[4:] == [("srresnet", 1)]
    assert resumed["rows"] == straight["rows"]

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished transfer was done again")

    monkeypatch.setattr(sr.transfer, "cross_validate", refuse)
    assert transfer_run(run, SETTINGS, 0, CPU, resume=True) == resumed
    with pytest.raises(InputError, match=r"holds a transfer of other settings.*--fresh"):
        transfer_run(run, SETTINGS, 1, CPU, resume=True)


def test_pairs_of_another_scale_are_refused(run: Path) -> None:
    write_dataset(run / "pairs", {"observed": two_bands(scale=4)})
    with pytest.raises(InputError, match=r"model 'rcan' enlarges 2 times.*factor of 4"):
        transfer_run(run, SETTINGS, 0, CPU, resume=False)


@pytest.fixture
def lens_encoder(monkeypatch: pytest.MonkeyPatch) -> TrainedModel:
    """A (hardly) trained network that only sees whole images, and no HR image when it learns."""
    monkeypatch.setitem(TINY, "lens_encoder", {"features": 4, "hidden": 8, "refinements": 1, "supersampling": 1})
    pairs = blob_pairs(4, seed=5)
    model = tiny_model("lens_encoder", pairs)
    model.kernel = usual_kernel(model.network, pairs)
    return model


def test_a_network_of_whole_images_learns_from_whole_lr_images_whatever_the_crops(lens_encoder: TrainedModel) -> None:
    pairs, held_out = two_bands(), two_bands(seed=3)
    other = replace(pairs, hr=7 - 2 * pairs.hr, hr_noisy=0 * pairs.hr)

    def predict(crop_size: int | None, training: Pairs) -> dict[str, np.ndarray]:
        settings = SETTINGS.model_copy(update={"crop_size": crop_size, "adapter_rank": 1})
        return VariantTrainer(settings, 0, CPU, ignore).predict_held_out(lens_encoder, training, held_out, 0)

    whole = predict(None, pairs)
    assert len({images.tobytes() for images in whole.values()}) == 5  # every variant learns something of its own
    for found in (predict(10, pairs), predict(24, other)):
        assert all(np.array_equal(found[variant], images) for variant, images in whole.items())


def test_crops_larger_than_the_images_are_only_refused_where_they_are_cut(
    run: Path, lens_encoder: TrainedModel
) -> None:
    save_model(lens_encoder, run / "train" / "lens_encoder", None)
    settings = SETTINGS.model_copy(update={"models": ("lens_encoder", "rcan"), "crop_size": 24})
    with pytest.raises(InputError, match=r"transfer\.crop_size: expected at most 16.*found 24"):
        transfer_run(run, settings, 0, CPU, resume=False)
    assert not (run / "transfer").exists()
    transfer_run(run, settings.model_copy(update={"models": ("lens_encoder",)}), 0, CPU, resume=False)
    assert load_model(run / "transfer" / "lens_encoder", CPU).config.training["crop_size"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ("edsr",)}, "edsr: not a model folder.*pipeline train"),
        ({"models": ("rcan", "rcan")}, "named twice"),
        ({"crop_size": 24}, r"transfer\.crop_size: expected at most 16.*found 24"),
        ({"folds": 7}, r"transfer\.folds: expected at most 6"),
        (
            {"trainable": ("upsampling", "body.layer.0")},
            r"transfer\.trainable: model 'rcan': no layers called 'body\.layer\.0' can learn: "
            r"did you mean 'body\.layers\.0'\? the parts of this network are head, body, upsampling$",
        ),
        ({"trainable": ("upsampling.1",)}, r"no layers called 'upsampling\.1' can learn"),  # a pixel shuffle
    ],
)
def test_wrong_settings_are_found_before_anything_is_trained(run: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        transfer_run(run, SETTINGS.model_copy(update=changes), 0, CPU, resume=False)
    assert not (run / "transfer").exists()


def test_a_run_without_observed_pairs_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no data set here"):
        transfer_run(tmp_path / "empty", SETTINGS, 0, CPU, resume=False)
