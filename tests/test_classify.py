"""The check: scores against scikit-learn, the classifier on toys, the controls, and the wording of the verdict."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from simulate.errors import InputError
from simulate.shards import Pairs, read_pairs
from sr.classification_scores import Resampling, accuracy, curves, interval, macro_auc
from sr.classifier import ClassifierSettings, SmallResNet, initialise, predict, train_classifier
from sr.classify import ClassifySettings, classify_run, preprocess
from sr.shortcuts import SHORTCUTS, macro_parameters, predict_from
from sr.verdict import classification_verdict

from .conftest import CLASSES, blob_pairs, write_dataset
from .test_evaluate import save_untrained

CPU = torch.device("cpu")
FAST = ClassifierSettings(epochs=6, batch_size=16, learning_rate=0.01)


def test_auc_and_accuracy_equal_scikit_learns_with_and_without_weights() -> None:
    rng = np.random.default_rng(0)
    probability, label = rng.dirichlet([1, 1, 1], 60).round(1), rng.integers(3, size=60)  # with ties
    weights = np.concatenate([np.ones((1, 60)), rng.multinomial(60, np.full(60, 1 / 60), size=4)])
    for row, weight in enumerate(weights):
        expected = np.mean([roc_auc_score(label == one, probability[:, one], sample_weight=weight) for one in range(3)])
        assert macro_auc(probability, label, weights)[row] == pytest.approx(expected, abs=1e-12)
        expected = accuracy_score(label, probability.argmax(1), sample_weight=weight)
        assert accuracy(probability, label, weights)[row] == pytest.approx(expected, abs=1e-12)


def test_a_draw_without_a_class_has_no_auc_and_is_left_out() -> None:
    probability, label = np.eye(3), np.arange(3)
    weights = np.array([[1.0, 1, 1], [3, 0, 0], [1, 1, 1]])
    estimates = macro_auc(probability, label, weights)
    assert np.isnan(estimates).tolist() == [False, True, False]
    assert interval(estimates) == {"mean": 1.0, "low": 1.0, "high": 1.0}


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Accuracy of a coin of known bias: of 200 intervals of 80 scenes, 95 % should cover it."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        label = rng.integers(3, size=80)
        right = rng.uniform(size=80) < 0.6
        probability = np.eye(3)[np.where(right, label, (label + 1) % 3)][None]
        found = interval(Resampling.draw(80, 1, rng, draws=400).estimates(accuracy, probability, label))
        covered += found["low"] <= 0.6 <= found["high"]
    assert 180 <= covered <= 199


def test_intervals_are_wider_when_seeds_disagree() -> None:
    rng = np.random.default_rng(2)
    label = np.arange(90) % 3
    good, bad = np.eye(3)[label], np.eye(3)[rng.integers(3, size=90)]
    resampling = Resampling.draw(90, 2, rng)

    def width(probability: list[np.ndarray]) -> float:
        found = interval(resampling.estimates(accuracy, np.stack(probability), label))
        return found["high"] - found["low"]

    assert width([good, bad]) > 2 * max(width([good, good]), width([bad, bad]))


def test_curves_are_short_and_end_in_the_corners() -> None:
    rng = np.random.default_rng(3)
    probability, label = rng.dirichlet([1, 1, 1], 500), rng.integers(3, size=500)
    found = curves(probability, label, CLASSES)
    assert np.sum(found["confusion"]) == 500
    assert found["confusion"][1][2] == np.sum((label == 1) & (probability.argmax(1) == 2))
    for number, name in enumerate(CLASSES):
        roc = found["roc"][name]
        x, y = roc["false_positive_rate"], roc["true_positive_rate"]
        assert len(x) <= 101
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
        area = np.trapezoid(y, x)
        assert area == pytest.approx(roc_auc_score(label == number, probability[:, number]), abs=0.01)


def test_network_has_the_blocks_of_resnet_18_and_starts_undecided() -> None:
    network = SmallResNet(3, 64)
    initialise(network, torch.Generator().manual_seed(0))
    convolutions = [one for one in network.modules() if isinstance(one, torch.nn.Conv2d) and one.kernel_size != (1, 1)]
    assert len(convolutions) == 17  # with the head: 18 layers
    assert network(torch.randn(2, 1, 40, 40)).tolist() == [[0, 0, 0]] * 2


def toy(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Stripes of three widths in noise; the phase and the direction are random."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 3
    phase = np.arange(24) * np.array([0.5, 1.0, 2.0])[label][:, None] + rng.uniform(0, 6, (count, 1))
    images = np.sin(phase)[:, None, None, :] + rng.normal(0, 0.5, (count, 1, 24, 24))
    return images.astype("f4"), label


def test_classifier_learns_a_toy_but_not_shuffled_labels() -> None:
    train, val, test = toy(150, 0), toy(30, 1), toy(150, 2)
    itself = np.ones((1, 150))

    def auc(train_label: np.ndarray, val_label: np.ndarray) -> float:
        network = train_classifier((train[0], train_label), (val[0], val_label), 3, FAST, seed=5, device=CPU)
        return float(macro_auc(predict(network, test[0], CPU), test[1], itself)[0])

    rng = np.random.default_rng(3)
    assert auc(train[1], val[1]) > 0.95
    # 0.08 is three standard deviations of the AUC of 150 undecidable scenes
    assert abs(auc(rng.permutation(train[1]), rng.permutation(val[1])) - 0.5) < 0.08


def test_training_follows_from_the_seed_alone() -> None:
    settings = FAST.model_copy(update={"epochs": 1})
    train, val = toy(33, 0), toy(9, 1)
    first, second, other = (
        predict(train_classifier(train, val, 3, settings, seed, CPU), val[0], CPU) for seed in (1, 1, 2)
    )
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(first - other).max() > 1e-4


def test_preprocessing_uses_one_factor_for_all_representations_and_no_unit() -> None:
    pairs = blob_pairs(3)
    flux = preprocess(pairs.hr, pairs)
    np.testing.assert_allclose(np.sinh(flux[0]), pairs.hr[0] * 4 / 0.05, rtol=1e-4, atol=1e-5)
    microjansky = dataclasses.replace(pairs, hr=pairs.hr / 1000, lr=pairs.lr / 1000, lr_noise=pairs.lr_noise / 1000)
    np.testing.assert_allclose(preprocess(microjansky.hr, microjansky), flux, rtol=1e-4)


def with_scenes(pairs: Pairs, leak: float) -> Pairs:
    """Scenes with a macro-model whose Einstein radius gives the class away by `leak`."""
    rng = np.random.default_rng(4)
    scenes = []
    for label in pairs.label:
        smooth = {key: rng.normal() for key in ("gamma", "e1", "e2", "center_x", "center_y")}
        theta_e = 1 + rng.normal(0, 0.1) + leak * int(label)
        shear = {"gamma1": rng.normal(), "gamma2": rng.normal(), "ra_0": 0.0, "dec_0": 0.0}
        scenes.append(json.dumps({"kwargs_lens": [{"theta_E": theta_e, **smooth}, shear, {"theta_E": 9.0}]}))
    return dataclasses.replace(pairs, name=tuple(scenes))


@pytest.mark.parametrize(("leak", "low", "high"), [(0.0, 0.4, 0.6), (0.5, 0.95, 1.0)])
def test_macro_parameters_find_a_leak_and_nothing_where_there_is_none(leak: float, low: float, high: float) -> None:
    pairs = with_scenes(blob_pairs(450), leak)
    train, test = pairs.select(np.arange(300)), pairs.select(np.arange(300, 450))
    probability = predict_from(macro_parameters, train, test)
    assert low <= roc_auc_score(test.label, probability, multi_class="ovr") <= high


def test_scenes_without_a_macro_model_say_so() -> None:
    with pytest.raises(ValueError, match="the scenes have no theta_E, gamma"):
        macro_parameters(blob_pairs(3))


def test_run_leaves_every_representation_and_control(tmp_path: Path) -> None:
    counts = {"train": 24, "val": 6, "test": 12}
    write_dataset(tmp_path / "data", {split: blob_pairs(count, seed=count) for split, count in counts.items()})
    save_untrained(tmp_path, "fsrcnn")
    settings = ClassifySettings(epochs=1, width=4, seeds=2)
    metrics = classify_run(tmp_path, settings, seed=0, device=CPU, resume=False)
    rows = {row["name"]: row for row in metrics["representations"]}
    assert list(rows) == ["lr", "fsrcnn", "hr observed", "hr noiseless"]
    assert {row["kind"] for row in rows.values()} == {"interpolated", "super-resolved", "high resolution"}
    for row in rows.values():
        assert row["auc"]["low"] <= row["auc"]["mean"] <= row["auc"]["high"]
        assert row["auc"]["mean"] == pytest.approx(np.mean(row["auc_per_seed"]))
        assert np.sum(row["confusion"]) == 12
        expected = row["auc"]["mean"] - rows["lr"]["auc"]["mean"]
        assert row["auc_difference_from_lr"]["mean"] == pytest.approx(expected)
    controls = {control["name"]: control for control in metrics["controls"]}
    assert list(controls) == ["shuffled labels", *SHORTCUTS]
    assert controls["macro parameters"]["skipped"].startswith("the scenes have no")
    assert metrics["chance"] == {"accuracy": pytest.approx(1 / 3), "auc": 0.5}
    assert classify_run(tmp_path, settings, seed=0, device=CPU, resume=True) == metrics


def test_a_split_without_a_class_is_refused(blob_run: Callable[..., Path]) -> None:
    run = blob_run(test=2)
    with pytest.raises(InputError, match=r"test split has no scene of class none.*simulate\.counts\.test"):
        classify_run(run, ClassifySettings(), seed=0, device=CPU, resume=False)
    assert len(read_pairs(run / "data", "test")) == 2


# ---- the wording of the verdict


def numbers(mean: float, half_width: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width}


def representation(name: str, kind: str, auc: float, difference: float, half_width: float, joint: float) -> dict:
    jointly = {"low_jointly": difference - joint, "high_jointly": difference + joint}
    return {
        "name": name,
        "kind": kind,
        "auc": numbers(auc, 0.04),
        "auc_difference_from_lr": {**numbers(difference, half_width), **jointly},
    }


def check(lr: float, sr: float, hr: float, control: float = 0.5, joint: float = 0.04) -> str:
    rows = [
        representation("lr", "interpolated", lr, 0, 0, 0),
        representation("rcan", "super-resolved", sr, sr - lr, 0.03, joint),
        representation("hr noiseless", "high resolution", hr, hr - lr, 0.03, 0.03),
    ]
    controls = [
        {"name": "shuffled labels", "auc": numbers(control, 0.04)},
        {"name": "total flux", "auc": numbers(0.5, 0.04)},
        {"name": "macro parameters", "skipped": "no scenes"},
    ]
    content = {"representations": rows, "controls": controls, "scenes": {"test": 150}, "seeds": 2}
    return " ".join(classification_verdict(content))


def test_verdict_on_a_clear_gain() -> None:
    text = check(lr=0.6, sr=0.7, hr=0.9)
    assert (
        "Super-resolution helps this classifier: rcan +0.100 [+0.070, +0.130] in AUC against interpolated LR." in text
    )
    assert "Images as sharp as HR help, so there is room: hr noiseless +0.300" in text
    assert "o evidence" not in text
    assert "Caution" not in text


def test_verdict_on_a_clear_loss() -> None:
    text = check(lr=0.7, sr=0.6, hr=0.9)
    assert "Super-resolution harms this classifier: rcan −0.100 [−0.130, −0.070]" in text
    assert "Super-resolution helps" not in text


def test_verdict_on_a_null() -> None:
    text = check(lr=0.50, sr=0.51, hr=0.52)
    assert "No representation is distinguishable from chance at this size (150 test scenes, 2 training seeds)" in text
    assert "No evidence that super-resolution helps: rcan +0.010 [−0.020, +0.040]" in text
    assert "Not even true high resolution is shown to help (hr noiseless +0.020 [−0.010, +0.050]" in text
    assert "Super-resolution helps" not in text


def test_verdict_between_intervals_claims_nothing() -> None:
    """Clear for one model by itself, not for all at a time; and a gain from below chance to chance is no help."""
    assert "Suggestive, but no evidence once 1 models" in check(lr=0.65, sr=0.685, hr=0.9)
    assert "Super-resolution changes the AUC, but not to above chance: rcan" in check(lr=0.42, sr=0.51, hr=0.9)


@pytest.mark.parametrize("control", [0.55, 0.45])
def test_verdict_warns_when_shuffled_labels_are_not_at_chance(control: float) -> None:
    assert check(lr=0.6, sr=0.7, hr=0.9, control=control).startswith("Caution: trained on shuffled labels")


def test_verdict_warns_of_shortcuts() -> None:
    rows = [representation("lr", "interpolated", 0.9, 0, 0, 0)]
    controls = [{"name": "total flux", "auc": numbers(0.8, 0.04)}]
    content = {"representations": rows, "controls": controls, "scenes": {"test": 150}, "seeds": 1}
    text = " ".join(classification_verdict(content))
    assert text.startswith("Caution: total flux alone tells the classes apart with AUC 0.800 [0.760, 0.840]")
    assert "No trained network was there to check." in text
