"""The x8 self-ensemble: equivariant to the last bit, nothing new for a network that is equivariant itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simulate.shards import manifest_sha256, read_pairs, write_json
from sr.evaluate import EvaluateSettings, evaluate_run
from sr.metrics import data_range_of
from sr.model_folder import save_model
from sr.samples import transform
from sr.self_ensemble import mean_over_symmetries
from sr.tiles import super_resolve_image
from sr.trained_model import interpolation_model

from .conftest import blob_pairs, write_dataset
from .test_trained_model import tiny_model

CPU = torch.device("cpu")


def symmetries(images: np.ndarray) -> list[np.ndarray]:
    """The 8 symmetries of (...,h,w), as rotations with and without a mirror."""
    turned = [np.rot90(images, quarter, axes=(-2, -1)) for quarter in range(4)]
    return [np.ascontiguousarray(one) for image in turned for one in (image, image[..., ::-1])]


@pytest.mark.parametrize("architecture", ["srresnet", "rcan"])
def test_turning_the_input_turns_the_answer_to_the_last_bit(architecture: str) -> None:
    model = tiny_model(architecture)
    lr = np.random.default_rng(0).normal(0, 3, (2, 1, 11, 17))
    noise = np.full_like(lr, 0.3)
    plain = symmetries(model.super_resolve(lr, noise, CPU))
    whole = symmetries(model.super_resolve(lr, noise, CPU, self_ensemble=True))
    for turned, answer, plain_answer in zip(symmetries(lr), whole, plain, strict=True):
        sizes = np.full_like(turned, 0.3)
        np.testing.assert_array_equal(model.super_resolve(turned, sizes, CPU, self_ensemble=True), answer)
        if not np.array_equal(turned, lr):  # the network itself is not equivariant
            assert np.abs(model.super_resolve(turned, sizes, CPU) - plain_answer).max() > 1e-3 * np.abs(lr).max()


def test_it_is_the_mean_of_the_networks_eight_answers() -> None:
    model = tiny_model("srresnet")
    lr = np.random.default_rng(1).normal(0, 3, (3, 1, 12, 9))
    noise = np.random.default_rng(2).uniform(0.2, 0.4, lr.shape)
    answers = []
    for quarter in range(4):
        for mirror in (1, -1):
            turned = (np.rot90(images, quarter, axes=(-2, -1))[..., ::mirror] for images in (lr, noise))
            answer = model.super_resolve(*(np.ascontiguousarray(one) for one in turned), CPU)
            answers.append(np.rot90(answer[..., ::mirror], -quarter, axes=(-2, -1)))
    result = model.super_resolve(lr, noise, CPU, self_ensemble=True)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, np.mean(answers, axis=0), rtol=0, atol=1e-5 * np.abs(result).max())


def test_the_symmetries_are_those_of_the_augmentation() -> None:
    """A network that weights the rows: the mean weights by what `transform` makes of the rows over the group."""
    lr = torch.rand(1, 1, 6, 6)

    def by_row(images: Tensor) -> Tensor:
        return images * torch.arange(6.0).view(1, 1, 6, 1)

    weights = transform(torch.arange(6.0).view(1, 1, 6, 1).expand(8, 1, 6, 6), torch.arange(8)).mean(0, keepdim=True)
    torch.testing.assert_close(mean_over_symmetries(by_row, lr), lr * weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
@pytest.mark.parametrize("scale", [2, 3])
def test_an_equivariant_network_gains_nothing(name: str, scale: int) -> None:
    pairs = blob_pairs(2, scale=scale)
    model = interpolation_model(name, pairs)
    lr, noise = pairs.lr[..., :13], pairs.lr_noise[..., :13]
    plain = model.super_resolve(lr, noise, CPU)
    np.testing.assert_allclose(model.super_resolve(lr, noise, CPU, self_ensemble=True), plain, rtol=0, atol=1e-6)


def test_tiles_of_it_give_what_one_piece_gives() -> None:
    model = tiny_model("srresnet")
    image = np.random.default_rng(3).normal(0, 1, (70, 45)).astype("f4")
    whole = model.super_resolve(image[None, None], np.ones((1, 1, 70, 45)), CPU, self_ensemble=True)[0, 0]
    tiled = super_resolve_image(model, image, 1.0, CPU, 64, self_ensemble=True)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_evaluation_scores_each_network_with_and_without(tmp_path: Path) -> None:
    counts = {"train": 6, "val": 4, "test": 5}
    write_dataset(tmp_path / "data", {split: blob_pairs(count, seed=count) for split, count in counts.items()})
    model = tiny_model("srresnet", read_pairs(tmp_path / "data", "test"))
    model.config = model.config.model_copy(update={"data_sha256": manifest_sha256(tmp_path / "data")})
    save_model(model, tmp_path / "train" / "srresnet", None)
    write_json(tmp_path / "train" / "srresnet" / "metrics.json", {"fingerprint": "one"})
    settings = EvaluateSettings(self_ensemble=True)
    metrics = evaluate_run(tmp_path, settings, seed=0, device=CPU, resume=False)
    rows = {row["model"]: row for row in metrics["rows"]}
    assert list(rows)[-2:] == ["srresnet", "srresnet x8"]
    assert (rows["srresnet x8"]["kind"], rows["srresnet x8"]["self_ensemble"]) == ("network", True)
    assert metrics["best_model"] == "srresnet"
    train, test = read_pairs(tmp_path / "data", "train"), read_pairs(tmp_path / "data", "test")
    prediction = model.super_resolve(test.lr, test.lr_noise, CPU, self_ensemble=True)
    error = ((prediction - test.hr) ** 2).mean((1, 2, 3))
    psnr_db = 10 * np.log10(data_range_of(train.hr, train.hr_mask) ** 2 / error).mean()
    assert rows["srresnet x8"]["psnr_db"]["mean"] == pytest.approx(psnr_db, abs=1e-4)
    assert rows["srresnet"]["psnr_db"]["mean"] != rows["srresnet x8"]["psnr_db"]["mean"]
    plain = evaluate_run(tmp_path, EvaluateSettings(), seed=0, device=CPU, resume=True)
    assert not any(" x8" in row["model"] for row in plain["rows"])
