"""The report: complete, partial and empty runs; its numbers; nothing loaded from elsewhere; nothing unescaped."""

import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from simulate.shards import Pairs, read_pairs, write_json
from sr.classify import ClassifySettings, classify_run
from sr.coverage import coverage_scores
from sr.evaluate import EvaluateSettings, evaluate_run
from sr.report import write_report
from sr.transfer_results import tabulate, write_examples
from sr.verdict import image_verdict, transfer_verdict, with_interval

from .conftest import blob_pairs, write_dataset
from .test_evaluate import save_untrained

CPU = torch.device("cpu")
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what the page would load, its text and its ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read_page(run: Path) -> Page:
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(one.startswith(("#", "data:image/png;base64,")) for one in page.addresses)
    assert not {"script", "link", "iframe"}.intersection(page.tags)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(set(page.ids)) == len(page.ids)
    assert {one[1:] for one in page.addresses if one.startswith("#")} <= set(page.ids)
    return page


def fake_training(run: Path, name: str) -> None:
    curve = [{"step": step, "loss": 0.3 / step, "psnr_db": 30 + step, "ssim": 0.9} for step in (1, 2, 3)]
    content = {"architecture": "fsrcnn", "parameters": 5233, "best_step": 3, "curve": curve, "seconds": 61.0}
    content["validation"] = {"psnr_db": 31.25, "ssim": 0.9127}
    write_json(run / "train" / name / "metrics.json", content)


def fake_transfer(run: Path) -> dict:
    """The stage's own tables and pictures, of predictions that are the truth plus noise."""
    pairs: Pairs = read_pairs(run / "pairs", "observed")
    rng = np.random.default_rng(0)

    def prediction(noise: float) -> np.ndarray:
        return (pairs.hr + rng.normal(0, noise, pairs.hr.shape)).astype("f4")

    predictions = {("-", "bilinear"): prediction(0.4), ("-", "bicubic"): prediction(0.3)}
    for variant, noise in (("zero-shot", 0.2), ("frozen", 0.15), ("fine-tuned", 0.1), ("unpretrained", 0.2)):
        predictions["rcan", variant] = prediction(noise)
    table = tabulate(predictions, pairs, 2.0, seed=0)
    metrics = {"kind": pairs.kind, "objects": len(pairs), "folds": 3, "data_range": 2.0, "seconds": 3.0, **table}
    write_json(run / "transfer" / "metrics.json", metrics)
    write_examples(run / "transfer" / "examples.h5", pairs, predictions, 2.0)
    write_json(
        run / "pairs" / "metrics.json",
        {"kind": pairs.kind, "source": "Hubble & <co>", "caveat": "No photometry here.", "seconds": 2.0},
    )
    return metrics


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    run = tmp_path_factory.mktemp("report") / "run"
    counts = {"train": 24, "val": 6, "test": 9}
    write_dataset(run / "data", {split: blob_pairs(count, seed=count) for split, count in counts.items()})
    write_dataset(run / "pairs", {"observed": blob_pairs(12, kind="real HR, degraded LR")})
    save_untrained(run, "fsrcnn")
    fake_training(run, "fsrcnn")
    (run / "config.yaml").write_text("seed: 1\nnote: <script>alert(1)</script>\n", encoding="utf-8")
    metrics = {
        "evaluate": evaluate_run(run, EvaluateSettings(), 0, CPU, resume=False),
        "classify": classify_run(run, ClassifySettings(epochs=1, width=2, seeds=1), 0, CPU, resume=False),
        "transfer": fake_transfer(run),
    }
    return run, metrics


def test_numbers_of_other_data_are_called_stale(complete: tuple[Path, dict[str, dict]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(complete[0], run)
    assert "run it again" not in read_page(run).text
    write_dataset(run / "data", {split: blob_pairs(6, seed=5) for split in ("train", "val", "test")})
    text = read_page(run).text
    assert "The numbers of evaluate are of other data or networks" in text
    assert "The numbers of classify-check are of other data or networks" in text
    assert "The numbers of transfer" not in text


def test_complete_run(complete: tuple[Path, dict[str, dict]]) -> None:
    run, metrics = complete
    page = read_page(run)
    for row in metrics["evaluate"]["rows"]:
        assert with_interval(row["psnr_db"], 2) in page.text
        assert with_interval(row["ssim"], 4) in page.text
    for row in metrics["transfer"]["rows"]:
        assert f"{row['variant']} {with_interval(row['psnr_db'], 2)}" in page.text
    for row in metrics["classify"]["representations"]:
        assert f"{row['name']} {row['kind']}" in page.text
        assert with_interval(row["auc"], 3) in page.text
    for sentence in (
        *image_verdict(metrics["evaluate"]),
        *transfer_verdict(metrics["transfer"]),
        *metrics["classify"]["verdict"],
    ):
        assert sentence in page.text
    assert "train 8 8 8 24" in page.text  # lenses of each class in the training split
    assert "31.25" in page.text
    assert "No photometry here." in page.text
    assert "the scenes have no theta_E" in page.text  # why a control was skipped
    assert metrics["evaluate"]["models_sha256"]["fsrcnn"] in page.text
    assert page.tags.count("figure") == 10
    truth = metrics["evaluate"]["references"][0]
    for row in (*metrics["evaluate"]["rows"], truth):
        assert with_interval(row["chi2_per_pixel"], 2) in page.text
        assert with_interval(row["residual_whiteness"], 2) in page.text
    assert "Nothing can be said of the substructure's imprint" in page.text  # blobs are not rendered from scenes
    assert "substructure error" not in page.text
    assert "Not run" not in page.text
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "Hubble & <co>" in page.text


def test_empty_run_says_what_is_missing(tmp_path: Path) -> None:
    page = read_page(tmp_path)
    assert page.tags.count("figure") == 0
    for command in ("simulate", "pairs", "train", "evaluate", "transfer", "classify-check"):
        assert f"Not run: the stage {command} has left nothing here yet" in page.text


def test_run_that_has_data_and_one_finished_model(blob_run: Callable[..., Path]) -> None:
    run = blob_run()
    fake_training(run, "one")
    page = read_page(run)
    assert page.tags.count("figure") == 2  # the data and the training curves
    assert "Not run: the stage train" not in page.text
    assert "Not run: the stage evaluate" in page.text


def test_lost_images_and_numbers_of_an_earlier_version_are_no_reason_to_fail(
    complete: tuple[Path, dict[str, dict]], tmp_path: Path
) -> None:
    run = tmp_path / "copy"
    shutil.copytree(complete[0], run)
    later = ("references", "macro_model_missing", "spectra", "trust")
    kept = {key: value for key, value in complete[1]["evaluate"].items() if key not in later}
    write_json(run / "evaluate" / "metrics.json", kept)
    (run / "evaluate" / "examples.h5").unlink()
    (run / "transfer" / "examples.h5").unlink()
    page = read_page(run)
    assert "The example images are missing." in page.text
    assert "How true are the images?" not in page.text
    assert "Can one trust it?" not in page.text
    assert page.tags.count("figure") == 5


def test_made_up_detail_and_posteriors_are_shown(complete: tuple[Path, dict[str, dict]], tmp_path: Path) -> None:
    """The tables' numbers are those of metrics.json; draws without any spread spoil nothing."""
    run, trust = tmp_path / "run", complete[1]["evaluate"]["trust"]
    pairs = read_pairs(complete[0] / "data", "test")
    noise = np.random.default_rng(0).normal(0, 0.01, (len(pairs), 6, *pairs.hr.shape[2:]))
    scores = coverage_scores((pairs.hr + noise).astype("f4"), pairs.hr, pairs, np.random.default_rng(0))
    still = coverage_scores(np.repeat(pairs.hr, 6, axis=1), pairs.hr, pairs, np.random.default_rng(0))
    content = {**complete[1]["evaluate"], "trust": {**trust, "coverage": {"one": scores, "still": still}}}
    write_json(run / "evaluate" / "metrics.json", content)
    page = read_page(run)
    for row in trust["rows"]:
        assert with_interval(row["noise"]["peak"], 2) in page.text
        assert with_interval(row["lenses"]["largest_feature"], 2) in page.text
    assert "imprint AUC" not in page.text  # no macro-models here
    assert "one 9 × 6" in page.text
    assert with_interval(scores["pixels"]["light"]["error_over_sigma"], 2) in page.text
    assert "coverage-" in (run / "report.html").read_text(encoding="utf-8")  # ids of the figure


def gain(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.5, "high": mean + 0.5}


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        (2.0, "by rcan gains +2.00 [+1.50, +2.50] dB"),
        (-2.0, "loses: −2.00"),
        (0.1, "No evidence that super-resolution"),
    ],
)
def test_image_verdict(mean: float, words: str) -> None:
    rows = [
        {"model": "bicubic", "kind": "baseline", "psnr_gain_db": gain(0)},
        {"model": "blur control", "kind": "baseline", "psnr_gain_db": gain(0.7)},
        {"model": "rcan", "kind": "network", "psnr_gain_db": gain(mean)},
    ]
    first, second = image_verdict({"rows": rows, "best_model": "rcan", "scenes": 150})
    assert words in first
    assert "blur control, changes it by +0.70 [+0.20, +1.20] dB" in second


@pytest.mark.parametrize(
    ("mean", "words"),
    [
        (2.0, "Pretraining on simulations helps rcan"),
        (-2.0, "Pretraining on simulations harms rcan"),
        (0.1, "No evidence that pretraining on simulations helps rcan"),
    ],
)
def test_transfer_verdict(mean: float, words: str) -> None:
    differences = [
        {"model": "rcan", "variant": "fine-tuned", "minus": other, "psnr_db": gain(value)}
        for other, value in (("unpretrained", mean), ("bicubic", 5.0))
    ]
    (sentence,) = transfer_verdict({"differences": differences, "objects": 300, "kind": "real HR, degraded LR"})
    assert sentence.startswith(words)
    assert "by +5.00 [+4.50, +5.50] dB from bicubic, on 300 held-out objects (real HR, degraded LR)." in sentence
