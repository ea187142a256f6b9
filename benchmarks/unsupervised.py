"""What each part of the unsupervised network brings: its encoder's lens, the refinement, and the data step.

    python -m benchmarks.unsupervised runs/signal-to-noise edsr unrolled unrolled-medium

Prints a Markdown table of RUN/train/lens_encoder with and without its parts, of what needs no training, and of the
models named, on the validation scenes: mean PSNR, overall and by S/N, and that of the worst scene; chi^2/N of
A(SR) - LR over all LR pixels; CPU seconds an image. Below, how many lenses do not fit before the data step.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import numpy as np
import torch
from torch import Tensor, nn

from simulate.shards import Pairs, read_pairs
from sr.degradation import Degradation
from sr.metrics import data_range_of, image_scores
from sr.model_folder import load_model
from sr.models import ARCHITECTURES
from sr.models.interpolation import Interpolation
from sr.models.lens_encoder import DATA_TERM, DataTerm, LensEncoder, LensEncoderSettings, excess_spread
from sr.operators import forward_operator
from sr.signal_to_noise import signal_to_noise_groups
from sr.trained_model import TrainedModel, interpolation_model

CPU = torch.device("cpu")
DOES_NOT_FIT = 1.15
"""chi^2/N of a lens that ended elsewhere; noise alone scatters it by 0.02 on 64 x 64 LR pixels."""
ENCODED, REFINED = "the encoder's lens", "refined lens"
PARTS: dict[str, dict[str, int]] = {
    f"{ENCODED} alone": {"refinements": 0, "iterations": 0},
    f"{ENCODED}, then the data step": {"refinements": 0},
    f"{REFINED}, no data step": {"iterations": 0},
    f"**`lens_encoder`: {REFINED} and data step**": {},
}
"""Settings of `LensEncoder` in which a part of it is left out."""


class BicubicDataStep(nn.Module):
    """The data step of `LensEncoder` from the bicubic image in place of a lens."""

    knows_degradation = True

    def __init__(self, scale: int, iterations: int) -> None:
        super().__init__()
        self.bicubic, self.iterations = Interpolation("bicubic", scale), iterations

    def forward(self, lr: Tensor, degradation: Degradation) -> Tensor:
        """(B,C,h,w) -> (B,C,scale*h,scale*w) float32."""
        data = DataTerm(lr, degradation, DATA_TERM)
        image = self.bicubic(data.lr)
        return data.solve(image, excess_spread(image, data), self.iterations)


@dataclass(frozen=True)
class Row:
    """Scores (N,) of one method, how many HR images it learnt from, and the CPU time that an image takes."""

    hr_images: int
    psnr_db: np.ndarray
    chi2_per_pixel: np.ndarray
    seconds: float


def methods(run: Path, names: Sequence[str], pairs: Pairs) -> dict[str, TrainedModel]:
    """Everything that is scored, by the name of its row. Raises `InputError` if a model is missing."""
    trained = load_model(run / "train" / "lens_encoder", CPU)
    settings = trained.config.architecture_settings()
    assert isinstance(settings, LensEncoderSettings)
    found = {
        "bicubic": interpolation_model("bicubic", pairs),
        "bicubic, then the same data step (no lens)": replace(
            trained, network=BicubicDataStep(pairs.scale, settings.iterations)
        ),
    }
    for name, change in PARTS.items():
        part = load_model(run / "train" / "lens_encoder", CPU)
        assert isinstance(part.network, LensEncoder)
        part.network.settings = settings.model_copy(update=change)
        found[name] = part
    return found | {f"`{name}`": load_model(run / "train" / name, CPU) for name in names}


def chi2_per_pixel(images: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(N,) mean of ((A(image) - LR) / noise)^2 over all LR pixels, of images (N,1,H,W) that are real everywhere."""
    seen = forward_operator(pairs)(torch.from_numpy(images).double()).numpy()
    return (((seen - pairs.lr) / pairs.lr_noise) ** 2).mean((1, 2, 3))


def score(model: TrainedModel, pairs: Pairs, train: Pairs) -> Row:
    """The row of `model` on `pairs`; `train` gives the data range."""
    started = process_time()
    images = model.super_resolve_pairs(pairs, CPU)
    seconds = (process_time() - started) / len(pairs)
    architecture = ARCHITECTURES[model.config.architecture]
    supervised = architecture.trainable and not architecture.unsupervised
    psnr_db = image_scores(images, pairs, data_range_of(train.hr, train.hr_mask))["psnr_db"]
    return Row(len(train) if supervised else 0, psnr_db, chi2_per_pixel(images, pairs), seconds)


def markdown(rows: dict[str, Row], groups: dict[str, np.ndarray]) -> str:
    """The table, and below it the lenses that do not fit."""
    head = ["", "HR images", "PSNR", *groups, "worst", "χ²/N, mean [least, most]", "CPU s an image"]
    lines = [head, ["---", "---", *["--:"] * (len(groups) + 2), "---", "--:"]]
    for name, row in rows.items():
        quality = [row.psnr_db.mean(), *(row.psnr_db[own].mean() for own in groups.values())]
        cells = [*(f"{one:.2f}" for one in quality), f"{row.psnr_db.min():.1f}"]
        least, mean, most = row.chi2_per_pixel.min(), row.chi2_per_pixel.mean(), row.chi2_per_pixel.max()
        chi2 = f"{mean:.3f} [{least:.2f}, {most:.2f}]"
        lines.append([name, str(row.hr_images or "none"), *cells, chi2, f"{row.seconds:.2f}"])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    counts = [
        f"{(rows[name].chi2_per_pixel > DOES_NOT_FIT).sum()} of {len(rows[name].chi2_per_pixel)} ({name})"
        for name, change in PARTS.items()
        if change.get("iterations") == 0
    ]
    return f"{table}\n\nLenses with χ²/N above {DOES_NOT_FIT}: {', '.join(counts)}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table. Raises `InputError`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder with data and a trained lens_encoder")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="of the run, to compare with")
    options = parser.parse_args(arguments)
    train, pairs = (read_pairs(options.run / "data", split) for split in ("train", "val"))
    rows = {name: score(model, pairs, train) for name, model in methods(options.run, options.models, pairs).items()}
    print(markdown(rows, signal_to_noise_groups(pairs)))


if __name__ == "__main__":
    main()
