"""The benchmark of training: what its plain loop learns, what its gauges read, and the table it prints."""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.peers.basicsr_loop import PairedImages, PlainLoop, Recipe
from benchmarks.train import HEADER, add_ratios, main, measure_all, parse, table
from benchmarks.train_gauges import LEAST_WINDOWS, WARM_UP_STEPS, Enough, Watch, training_flops
from benchmarks.train_rows import in_process

CPU = torch.device("cpu")


def write_images(folder: Path, count: int = 3, size: int = 12, scale: int = 2) -> None:
    """LR pixels that are all different, and HR pixels equal to the LR pixel that they lie in."""
    lr = np.arange(count * size**2, dtype="f4").reshape(count, 1, size, size)
    np.save(folder / "lr.npy", lr)
    np.save(folder / "hr.npy", lr.repeat(scale, 2).repeat(scale, 3))


def test_crops_of_the_plain_loop_show_the_same_sky_in_all_eight_orientations(tmp_path: Path) -> None:
    write_images(tmp_path)
    dataset = PairedImages(tmp_path, 8, seed=1)
    seen, corners = set(), set()
    for draw in range(400):
        crop = dataset[draw % 3]
        assert (crop["lq"].shape, crop["gt"].shape, crop["lq"].dtype) == ((1, 8, 8), (1, 16, 16), torch.float32)
        assert torch.equal(crop["gt"], crop["lq"].repeat_interleave(2, 1).repeat_interleave(2, 2))
        values = crop["lq"][0].numpy()
        assert set(values.ravel() // 144) == {draw % 3}
        corners.add(divmod(int(values.min()) % 144, 12))
        seen.add((values[1, 0] - values[0, 0], values[0, 1] - values[0, 0]))
    assert seen == {(a, b) for a, b in ((12, 1), (1, 12)) for a in (a, -a) for b in (b, -b)}
    assert corners == {(top, left) for top in range(5) for left in range(5)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_step_of_the_plain_loop_is_adam_and_its_average_follows(tmp_path: Path, workers: int) -> None:
    write_images(tmp_path)
    network = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        network[1].weight.fill_(0.9)
        network[1].bias.fill_(-1.0)  # every pixel comes out too faint, so the loss falls with both
    recipe = Recipe(2, 4, 8, lambda step: 0.01 * step, lambda step: 1 - 0.5**step, gradient_clip=math.inf)
    loop = PlainLoop(network, tmp_path, recipe, CPU, workers, seed=0)
    weights, averages, steps = [], [], []

    def validate(average: nn.Module) -> dict[str, float]:
        weights.append(network[1].bias.item())
        averages.append(average.get_parameter("1.bias").item())
        return {}

    loop.run(steps.append, validate, 1)
    assert steps == [0, 1, 1]
    # with gradients that do not change, each step of Adam is the learning rate (Kingma & Ba 2015, section 2.1)
    assert weights == pytest.approx([-0.99, -0.97], abs=1e-6)
    assert averages == pytest.approx([-0.995, 0.75 * -0.995 + 0.25 * -0.97], abs=1e-6)
    assert len(loop.losses) == 2


def test_the_watch_times_training_but_not_validation() -> None:
    time_now, scores = [0.0], iter([20.0, 31.0, 33.0, *[34.0] * LEAST_WINDOWS])

    def score(network: nn.Module) -> float:
        time_now[0] += 100.0
        return next(scores)

    watch = Watch(score, lambda: None, seconds=1e6, target_psnr_db=33.0, clock=lambda: time_now[0])
    watch.advance(0)
    ended = False
    for step in range(1, 1000):
        time_now[0] += 3.0 if step <= WARM_UP_STEPS else 0.5 if step % 7 else 4.0  # now and then a slow one
        watch.advance(1)
        if step % 5 == 0:
            try:
                watch.validate(nn.Identity())
            except Enough:
                ended = True
                break
    assert ended
    assert watch.warm_up_seconds == 3.0 * WARM_UP_STEPS
    # validations at steps 5, 10, 15; of steps 6 to 15 two are multiples of 7
    assert watch.seconds_to_target == pytest.approx(15.0 + 8 * 0.5 + 2 * 4.0)
    assert watch.best_psnr_db == 34.0
    assert len(watch.windows) == LEAST_WINDOWS
    assert watch.steps_per_second == pytest.approx(5 / 6.0)  # the usual window holds one slow step

    watch = Watch(score, lambda: None, seconds=10.0, target_psnr_db=99.0, clock=lambda: time_now[0])
    for _ in range(WARM_UP_STEPS + 20):
        time_now[0] += 0.5
        watch.advance(1)
    time_now[0] += 0.5
    with pytest.raises(Enough):
        watch.advance(1)
    assert watch.windows == [(21, 10.5)]
    assert watch.seconds_to_target is None


def test_floating_point_operations_are_those_of_the_convolutions_there_and_back() -> None:
    network = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1), nn.PixelShuffle(2))
    first, second = (2 * 9 * inputs * outputs * 6 * 7 for inputs, outputs in ((1, 5), (5, 4)))
    # each convolution there, its weights' gradient, and its input's gradient, which the first does not need
    assert training_flops(network, torch.randn(1, 1, 6, 7)) == 2 * first + 3 * second


def test_what_fails_in_a_process_of_its_own_says_why() -> None:
    assert in_process(math.factorial, 5, seconds=60) == 120
    with pytest.raises(RuntimeError, match="ValueError: invalid literal for int"):
        in_process(int, "x", seconds=60)
    with pytest.raises(RuntimeError, match=r"its process died \(exit code 3\)"):
        in_process(os._exit, 3, seconds=60)
    with pytest.raises(RuntimeError, match="stopped after 0 s"):
        in_process(time.sleep, 60, seconds=0.2)


def test_a_row_that_cannot_be_measured_does_not_cost_the_others(tmp_path: Path) -> None:
    options = parse(["--quick", "--loops", "plain", "bfloat16", "--device", "cpu"])
    rows = list(measure_all(options, tmp_path / "nothing", 30.0, time.monotonic() + 60))
    assert [row["loop"] for row in rows] == ["plain", "bfloat16"]
    assert all(row["note"].startswith("failed: InputError:") for row in rows)
    late, _ = measure_all(options, tmp_path, 30.0, time.monotonic() - 1)
    assert late["note"] == "left out: the 9 minutes were over"
    assert table([late])[-1] == "- fsrcnn, plain: left out: the 9 minutes were over"


def test_ratios_are_to_the_plain_loop_of_the_same_model_and_shares_to_the_peak_of_the_precision() -> None:
    rows = [
        {"model": "a", "loop": "plain", "precision": "float32", "images_per_second": 10.0, "flops_per_second": 2e9,
         "seconds_to_target": 30.0},
        {"model": "a", "loop": "bfloat16", "precision": "bfloat16", "images_per_second": 25.0, "flops_per_second": 5e9,
         "seconds_to_target": 15.0},
        {"model": "b", "loop": "float32", "precision": "float32", "images_per_second": 7.0, "flops_per_second": 1e9,
         "seconds_to_target": None},
    ]  # fmt: skip
    add_ratios(rows, {"float32": 1e10, "bfloat16": 2e10})
    assert [row["share_of_peak"] for row in rows] == pytest.approx([0.2, 0.25, 0.1])
    assert [row.get("ratio") for row in rows] == [None, {"images": 2.5, "seconds": 2.0}, None]


def test_quick_table_has_finite_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(["--quick", "--device", "cpu", "--target-psnr", "5", "--json", str(tmp_path / "speed.json")])
    printed = capsys.readouterr().out
    assert " | ".join(HEADER) in printed
    assert "matrix products of float32" in printed
    assert [row["loop"] for row in rows] == ["plain", "bfloat16", "float32"]
    for row in rows:
        assert row.get("note") is None
        assert f"| {row['model']} | {row['loop']} |" in printed
        assert row["steps"] == sum(steps for steps, _ in row["windows"]) + WARM_UP_STEPS
        for name in ("images_per_second", "seconds_to_target", "best_psnr_db", "share_of_peak", "warm_up_seconds"):
            assert math.isfinite(row[name])
            assert row[name] > 0
        assert row["share_of_peak"] < 1.5
        assert row["peak_memory_bytes"] is None or 2**20 < row["peak_memory_bytes"] < 2**31
    assert all(row["ratio"]["images"] > 0 for row in rows[1:])
    assert json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["rows"] == rows
