"""Does one set of weights serve several scales? Its scores at each of them, beside networks of that scale alone.

    python -m benchmarks.scales runs/scales --other runs/seeings

For each scale that a finished model of RUN serves, prints a Markdown table on RUN's test split, whose HR pixels are
summed to that scale: of all models of RUN that serve it, and of the models of this scale of the other runs, which were
trained on the same lenses, PSFs and exposures. Columns and differences are those of `benchmarks.seeings`. Below, of the
networks that predict their error, the root mean square of the error over that of the predicted one.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from simulate.shards import Pairs, read_pairs
from sr.evaluate import finished_models
from sr.metrics import data_range_of
from sr.operators import matching_kernels
from sr.predicted_variance import predicts_sigma
from sr.trained_model import TrainedModel, interpolation_model

from .seeings import fwhms_arcsec, groups_of, markdown, score

CPU = torch.device("cpu")


def predict(model: TrainedModel, pairs: Pairs) -> tuple[np.ndarray, np.ndarray | None]:
    """Images of `pairs`, and the errors that the network predicts, if it does."""
    if not predicts_sigma(model.network):
        return model.super_resolve_pairs(pairs, CPU), None
    kernels = matching_kernels(pairs.hr_band, pairs.lr_band)
    return model.at_scale(pairs.scale).super_resolve_and_sigma(pairs.lr, pairs.lr_noise, CPU, kernels=kernels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables. Raises `InputError`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder with data and trained models")
    parser.add_argument("--other", type=Path, action="append", default=[], help="run folder with more trained models")
    options = parser.parse_args(arguments)
    test, train = (read_pairs(options.run / "data", split) for split in ("test", "train"))
    own_psfs = test.lr_band.psf.ndim == 3
    groups = groups_of(fwhms_arcsec(test)) if own_psfs else {"all": np.ones(len(test), bool)}
    models = finished_models(options.run, CPU)
    several = [model.name for model in models if len(model.scales) > 1]
    networks = {model.name: model for model in models}
    for folder in options.other:
        networks |= {f"{folder.name}/{model.name}": model for model in finished_models(folder, CPU)}
    for scale in sorted({scale for model in models for scale in model.scales}):
        pairs, coarse = test.at_scale(scale), train.at_scale(scale)
        images = {"truth": pairs.hr, "bicubic": interpolation_model("bicubic", pairs).super_resolve_pairs(pairs, CPU)}
        ratios = {}
        for name, model in networks.items():
            if scale in model.scales:
                images[name], sigma = predict(model, pairs)
                if sigma is not None:
                    ratios[name] = np.sqrt(np.mean((images[name] - pairs.hr) ** 2) / np.mean(sigma**2))
        print(f"\nx{scale}\n")
        print(markdown(score(images, pairs, data_range_of(coarse.hr, coarse.hr_mask)), several, groups))
        print("\nerror over predicted error: " + ", ".join(f"`{name}` {ratio:.2f}" for name, ratio in ratios.items()))


if __name__ == "__main__":
    main()
