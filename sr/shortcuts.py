"""Can the classes be told apart without looking for substructure? Then a classifier's success would prove nothing."""

import json
from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from simulate.shards import Pairs

MACRO_KEYS = ("theta_E", "gamma", "e1", "e2", "gamma1", "gamma2", "center_x", "center_y")


def total_flux(pairs: Pairs) -> np.ndarray:
    """(N,1) total flux of the noiseless image."""
    return pairs.hr.sum((1, 2, 3), dtype=np.float64)[:, None]


def ring_radius(pairs: Pairs) -> np.ndarray:
    """(N,1) flux-weighted mean distance from the image's centre, in HR pixels, of the noiseless image."""
    height, width = pairs.hr.shape[-2:]
    y, x = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    flux = pairs.hr[:, 0].astype(np.float64)
    return ((flux * np.hypot(y[:, None], x)).sum((1, 2)) / flux.sum((1, 2)))[:, None]


def macro_parameters(pairs: Pairs) -> np.ndarray:
    """(N,8) parameters of the smooth lens (the first lens models of each scene that have them).

    Raises `ValueError` that says which are missing, as for data that were not simulated here.
    """
    rows = []
    for name in pairs.name:
        models = json.loads(name).get("kwargs_lens", [])
        macro: dict[str, float] = {}
        for kwargs in models[:2]:
            macro = {**kwargs, **macro}
        if "theta_E" in macro:
            macro.setdefault("gamma", 2.0)  # of an SIE
        missing = [key for key in MACRO_KEYS if key not in macro]
        if missing:
            raise ValueError(f"the scenes have no {', '.join(missing)}")
        rows.append([float(macro[key]) for key in MACRO_KEYS])
    return np.array(rows)


SHORTCUTS: dict[str, Callable[[Pairs], np.ndarray]] = {
    "total flux": total_flux,
    "ring radius": ring_radius,
    "macro parameters": macro_parameters,
}


def predict_from(features: Callable[[Pairs], np.ndarray], train: Pairs, test: Pairs) -> np.ndarray:
    """Class probabilities (N,C) of the test scenes by logistic regression on `features`, their squares and products."""
    model = make_pipeline(StandardScaler(), PolynomialFeatures(2), LogisticRegression(max_iter=2000))
    model.fit(features(train), train.label)
    return model.predict_proba(features(test))
