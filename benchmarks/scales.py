"""Does one set of weights serve several scales? Its scores at each of them, beside networks of that scale alone.

    python -m benchmarks.scales runs/scales --other runs/seeings

For each scale that a finished model of RUN serves, prints a Markdown table on RUN's test split, whose HR pixels are
summed to that scale: of all models of RUN that serve it, and of the models of this scale of the other runs, which were
trained on the same lenses, PSFs and exposures. Columns and differences are those of `benchmarks.seeings`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from simulate.shards import read_pairs
from sr.evaluate import finished_models
from sr.metrics import data_range_of
from sr.trained_model import interpolation_model

from .seeings import fwhms_arcsec, groups_of, markdown, score

CPU = torch.device("cpu")


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
    several = [model.name for model in models if len(model.config.scales) > 1]
    for scale in sorted({scale for model in models for scale in model.config.scales}):
        pairs, coarse = test.at_scale(scale), train.at_scale(scale)
        images = {"truth": pairs.hr, "bicubic": interpolation_model("bicubic", pairs).super_resolve_pairs(pairs, CPU)}
        for model in models:
            if scale in model.config.scales:
                images[model.name] = model.at_scale(scale).super_resolve_pairs(pairs, CPU)
        for folder in options.other:
            for model in finished_models(folder, CPU):
                if scale == model.config.scale:
                    images[f"{folder.name}/{model.name}"] = model.super_resolve_pairs(pairs, CPU)
        print(f"\nx{scale}\n")
        print(markdown(score(images, pairs, data_range_of(coarse.hr, coarse.hr_mask)), several, groups))


if __name__ == "__main__":
    main()
