"""Benchmarks that score the models of a run: the parts of the unsupervised network, and networks paired by scene."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.paired import held
from benchmarks.paired import main as paired
from benchmarks.unsupervised import PARTS, main, methods, score
from simulate.shards import read_pairs
from sr.degradation import Degradation
from sr.metrics import data_range_of
from sr.model_folder import load_model
from sr.models.lens_encoder import DATA_TERM, DataTerm
from sr.normalisation import as_tensor
from sr.operators import forward_operator
from sr.plan import TrainSettings
from sr.training import train_run

CPU = torch.device("cpu")


@pytest.fixture
def run(blob_run: Callable[..., Path]) -> Path:
    """Blobs, a network that learns without HR images, and one that learns from them."""
    folder = blob_run(train=6, val=3, test=4)
    tiny = {"architecture": "lens_encoder", "settings": {"features": 4, "hidden": 8, "refinements": 3}}
    recipe = {"steps": 2, "batch_size": 2, "crop_size": 8, "models": [tiny, {"architecture": "srcnn"}]}
    train_run(folder, TrainSettings.model_validate(recipe), 4, CPU, resume=True)
    return folder


def test_parts_are_those_of_the_network(run: Path) -> None:
    """Each against the network's own methods, called in its domain."""
    train, pairs = (read_pairs(run / "data", split) for split in ("train", "val"))
    found = {name: one.super_resolve_pairs(pairs, CPU) for name, one in methods(run, [], pairs).items()}
    model = load_model(run / "train" / "lens_encoder", CPU)
    normalisation, network = model.config.normalisation, model.network
    noise = as_tensor(pairs.lr_noise, CPU)
    amplitude = normalisation.amplitude(noise)
    operator = forward_operator(pairs).to(CPU, torch.float32)
    with torch.inference_mode():
        data = DataTerm(as_tensor(pairs.lr, CPU) / amplitude, Degradation(noise / amplitude, operator), DATA_TERM)
        start = network.start(data)
        expected = [network.render(u, data, 2) for u in (start, network.refine(start, data))]
    encoded, _, refined, whole = (found[name] for name in PARTS)
    for image, wanted in zip((encoded, refined), expected, strict=True):
        flux = (wanted * amplitude / 4).numpy()
        np.testing.assert_allclose(image, flux, atol=1e-5 * flux.max())
    np.testing.assert_array_equal(whole, model.super_resolve_pairs(pairs, CPU))
    scores = {name: score(one, pairs, train) for name, one in methods(run, ["srcnn"], pairs).items()}
    assert {name: one.hr_images for name, one in scores.items() if one.hr_images} == {"`srcnn`": 6}
    chi2 = [one.chi2_per_pixel.mean() for one in scores.values()]
    assert chi2[1] < chi2[0]  # bicubic
    assert chi2[3] < chi2[2] > chi2[4] > chi2[5]


def test_tables_have_the_scores_of_the_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, pairs = (read_pairs(run / "data", split) for split in ("train", "val"))
    main([str(run), "srcnn"])
    printed = capsys.readouterr().out
    image = load_model(run / "train" / "srcnn", CPU).super_resolve_pairs(pairs, CPU).astype("f8")
    error = ((image - pairs.hr) ** 2).mean((1, 2, 3))
    psnr_db = 10 * np.log10(data_range_of(train.hr, train.hr_mask) ** 2 / error)
    assert f"| `srcnn` | 6 | {psnr_db.mean():.2f} | " in printed
    assert f"| {psnr_db.min():.1f} | " in printed
    assert "Lenses with χ²/N above 1.15: " in printed
    paired([str(run), "srcnn", "lens_encoder"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[-3:]] == ["| `truth`", "| `srcnn`", "| `lens_encoder`"]


def test_share_of_scenes_that_hold_the_noise() -> None:
    assert held(np.array([0.94, 0.96, 1.0, 1.04])) == "75 %, 0.985 [0.940, 1.040]"
