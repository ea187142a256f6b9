"""Is the stored LR noise of observed pairs the scatter of their sky?

    python -m benchmarks.observed_noise runs/observed

Prints, over all images of RUN/pairs, the 10th, 50th and 90th percentile of the robust scatter in the outermost tenth of
the LR image over the median of its noise map there: 1 if the map is right, more where there is light in it too.
"""

import sys
from pathlib import Path

import numpy as np

from simulate.shards import read_pairs


def main() -> None:
    pairs = read_pairs(Path(sys.argv[1]) / "pairs", "observed")
    size = pairs.lr.shape[-1]
    border = np.ones((size, size), bool)
    border[size // 10 : -(size // 10), size // 10 : -(size // 10)] = False
    sky, noise = pairs.lr[:, 0, border], pairs.lr_noise[:, 0, border]
    scatter = 1.4826 * np.median(np.abs(sky - np.median(sky, axis=1, keepdims=True)), axis=1)
    ratio = np.percentile(scatter / np.median(noise, axis=1), [10, 50, 90])
    print(f"{len(pairs)} images: sky scatter / stored noise = {ratio[1]:.2f} ({ratio[0]:.2f} to {ratio[2]:.2f})")


if __name__ == "__main__":
    main()
