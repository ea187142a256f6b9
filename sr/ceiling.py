"""How near methods come to the physical ceiling: what `evaluate` says of the oracle, the bounds and the efficiency."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from simulate.errors import InputError
from simulate.shards import Pairs, write_atomically

from .bootstrap import bootstrap_interval
from .einstein_radius import EinsteinRadiusFits
from .metrics import fidelity_scores, image_scores, summarise
from .on_the_fly import stored_simulation
from .oracle.ceiling import Ceiling, CeilingSettings, measure_ceiling
from .signal_to_noise import signal_to_noise_groups
from .stages import fingerprint
from .truth_parts import TruthParts

CEILING_NAME = "ceiling.h5"
ORACLE, BOUND, BOUND_WITH_FIELD = "oracle", "Cramér–Rao", "Cramér–Rao, substructure unknown"

Scores = dict[str, np.ndarray]


def ceiling_or_reason(
    run: Path, test: Pairs, data_range: float, settings: CeilingSettings, seed: int, device: torch.device, data: str
) -> tuple[Ceiling | None, str | None]:
    """`ceiling_of_run`, or the reason why there is none."""
    if settings.scenes == 0:
        return None, "evaluate.ceiling.scenes is 0"
    try:
        return ceiling_of_run(run, test, data_range, settings, seed, device, data), None
    except InputError as error:
        return None, str(error)


def ceiling_of_run(
    run: Path, test: Pairs, data_range: float, settings: CeilingSettings, seed: int, device: torch.device, data: str
) -> Ceiling:
    """The ceiling of RUN/data's test split, whose hash is `data`; kept in RUN/evaluate, since models do not change it.

    Raises `InputError` where the data set has no parametric model, or was simulated by another version.
    """
    path = run / "evaluate" / CEILING_NAME
    identity = fingerprint(settings, data=data, seed=seed, data_range=data_range)
    if (found := _read(path, identity)) is not None:
        return found
    simulation, _ = stored_simulation(run / "data", "its lenses cannot be fitted")
    ceiling = measure_ceiling(test, simulation, data_range, settings, seed, device)

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "w") as file:
            for name, value in asdict(ceiling).items():
                if isinstance(value, np.ndarray):
                    file.create_dataset(name, data=value)
            file.attrs["captured"] = json.dumps(ceiling.captured)
            file.attrs["identity"] = identity

    write_atomically(path, write)
    return ceiling


def _read(path: Path, identity: str) -> Ceiling | None:
    """What was kept; None if it is of other settings or data, or damaged."""
    try:
        with h5py.File(path) as file:
            if file.attrs["identity"] != identity:
                return None
            arrays = {name: dataset[()] for name, dataset in file.items()}
            return Ceiling(**arrays, captured=json.loads(file.attrs["captured"]))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def ceiling_content(
    ceiling: Ceiling,
    scores: dict[str, Scores],
    test: Pairs,
    parts: TruthParts | None,
    fits: EinsteinRadiusFits | None,
    data_range: float,
    generator: np.random.Generator,
) -> dict[str, Any]:
    """Numbers for metrics.json, of the scenes of `ceiling`; `scores` are those of each method on all of `test`.

    "bounds": rows of the oracle, with every score that methods have, and of both Cramer-Rao bounds, overall and
    "per_signal_to_noise"; "efficiency": of each method, "all" and by S/N, `efficiency`; "groups": scenes in each.
    """
    some = test.select(ceiling.rows)
    of_some = parts.select(ceiling.rows) if parts else None
    oracle = {**image_scores(ceiling.hr, some, data_range), **fidelity_scores(ceiling.hr, some, of_some)[0]}
    if fits:
        everywhere = np.full(test.hr.shape, np.nan, np.float32)
        everywhere[ceiling.rows] = ceiling.hr
        oracle["theta_e_error"] = fits.errors(everywhere)[ceiling.rows]
    bounds = {
        ORACLE: oracle,
        BOUND: {"psnr_db": ceiling.cramer_rao_db},
        BOUND_WITH_FIELD: {"psnr_db": ceiling.cramer_rao_field_db},
    }
    groups = {"all": np.ones(len(some), bool), **signal_to_noise_groups(some)}
    psnr_db = {name: one["psnr_db"][ceiling.rows] for name, one in scores.items()}
    return {
        "scenes": len(some),
        "groups": {name: int(own.sum()) for name, own in groups.items()},
        "accepted": float(ceiling.accepted.mean()),
        "with_field": float((ceiling.strength > 0).mean()),
        "captured": ceiling.captured,
        "bounds": [
            {
                "model": name,
                **summarise(one, generator),
                "per_signal_to_noise": {
                    group: summarise({key: values[own] for key, values in one.items()}, generator)
                    for group, own in groups.items()
                    if group != "all"
                },
            }
            for name, one in bounds.items()
        ],
        "efficiency": {
            name: {
                group: efficiency(own_db[own], psnr_db["bicubic"][own], oracle["psnr_db"][own], generator)
                for group, own in groups.items()
            }
            for name, own_db in psnr_db.items()
        },
    }


def efficiency(
    model_db: np.ndarray, bicubic_db: np.ndarray, oracle_db: np.ndarray, generator: np.random.Generator
) -> dict[str, float]:
    """eta = (PSNR - bicubic) / (oracle - bicubic), of mean PSNRs over scenes (N,), with its bootstrap interval.

    Gains are averaged before they are divided, so that a scene in which the oracle gains nothing does not decide.
    """

    def ratio(model: np.ndarray, bicubic: np.ndarray, oracle: np.ndarray) -> float:
        return float((model - bicubic).mean() / (oracle - bicubic).mean())

    return bootstrap_interval(ratio, (model_db, bicubic_db, oracle_db), generator)
