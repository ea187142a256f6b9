"""Accuracy and macro one-vs-rest AUC of class probabilities, resampled over test scenes and training seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

ROC_POINTS = 101

Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Resampling:
    """How often each scene and each seed is drawn in D bootstrap draws; row 0 is the sample as it is.

    One resampling serves all that is compared, so differences are paired by scene and seed. Seeds are drawn like
    scenes because a training run that fell out well is chance too; with a single seed that part stays unseen.
    """

    scenes: np.ndarray  # (D+1,N)
    seeds: np.ndarray  # (D+1,S)

    @classmethod
    def draw(cls, scenes: int, seeds: int, generator: np.random.Generator, draws: int = 2000) -> "Resampling":
        def weights(count: int) -> np.ndarray:
            drawn = generator.multinomial(count, np.full(count, 1 / count), size=draws)
            return np.concatenate([np.ones((1, count)), drawn])

        return cls(weights(scenes), weights(seeds))

    def of_one_seed(self) -> "Resampling":
        """The same draws of scenes, for a method that has no seeds."""
        return Resampling(self.scenes, np.ones((len(self.scenes), 1)))

    def estimates(self, statistic: Statistic, probability: np.ndarray, label: np.ndarray) -> np.ndarray:
        """(D+1,) mean over seeds of `statistic` of the probabilities (S,N,C) and labels (N,), each draw's own."""
        per_seed = np.stack([statistic(one, label, self.scenes) for one in probability], axis=1)
        return (self.seeds * per_seed).sum(1) / self.seeds.sum(1)


def interval(estimates: np.ndarray, level: float = 0.95) -> dict[str, float]:
    """The estimate of the sample itself (entry 0) and the percentile interval of the draws: mean, low, high.

    Draws in which a class is missing have no AUC (NaN) and are left out.
    """
    low, high = np.nanquantile(estimates[1:], [(1 - level) / 2, (1 + level) / 2])
    return {"mean": float(estimates[0]), "low": float(low), "high": float(high)}


def accuracy(probability: np.ndarray, label: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of scenes whose likeliest class is the true one: (N,C), (N,) and weights (D,N) -> (D,)."""
    return weights @ (probability.argmax(1) == label) / weights.sum(1)


def macro_auc(probability: np.ndarray, label: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the one-vs-rest area under the ROC curve: (N,C), (N,) and weights (D,N) -> (D,).

    The area is the chance that a scene of the class scores above one of another class, ties counting half (Hanley &
    McNeil 1982, Radiology 143, 29).
    """
    areas = [_auc(probability[:, one], label == one, weights) for one in range(probability.shape[1])]
    return np.mean(areas, axis=0)


def _auc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    rest = np.sort(score[~positive])
    weight_of_rest = weights[:, ~positive][:, np.argsort(score[~positive], kind="stable")]
    cumulative = np.concatenate([np.zeros((len(weights), 1)), weight_of_rest.cumsum(1)], axis=1)
    below = np.searchsorted(rest, score[positive], "left")
    not_above = np.searchsorted(rest, score[positive], "right")
    beaten = (cumulative[:, below] + cumulative[:, not_above]) / 2
    weight = weights[:, positive]
    pairs_count = weight.sum(1) * cumulative[:, -1]
    won = (weight * beaten).sum(1)
    return np.divide(won, pairs_count, out=np.full(len(weights), np.nan), where=pairs_count > 0)


def curves(probability: np.ndarray, label: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    """ROC curve of each class against the rest (at most ROC_POINTS points) and the confusion matrix (row: truth)."""
    roc = {}
    for number, name in enumerate(classes):
        false_positive, true_positive, _ = roc_curve(label == number, probability[:, number])
        kept = np.unique(np.linspace(0, len(false_positive) - 1, ROC_POINTS).round().astype(int))
        roc[name] = {
            "auc": float(roc_auc_score(label == number, probability[:, number])),
            "false_positive_rate": false_positive[kept].round(5).tolist(),
            "true_positive_rate": true_positive[kept].round(5).tolist(),
        }
    confusion = confusion_matrix(label, probability.argmax(1), labels=range(len(classes)))
    return {"roc": roc, "confusion": confusion.tolist()}
