"""The routing rule (method.md, "The routing rule"): from three features to an operator, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.tables import vocabulary

TARGETS = np.array(["dense_steer", "sparse_steer", "local_temp"])  # in the features' order
FALLBACK = "sparse_steer_random"


@dataclass(frozen=True)
class Rule:
    """The rule with its reference frozen, so that a single request scores the same as a batch.

    Attributes
    ----------
    mean_, std_ : array, [3]
        Of the reference population (ddof 0), in the order of vocabulary.FEATURES.
    fallback : bool
        Whether a failure with no z above 0 goes to sparse_steer_random rather than to its largest z.

    Examples
    --------
    >>> reference = pd.DataFrame({"spread": [0.1, 0.3], "concentration": [1.0, 2.0], "logit_dispersion": [-1.0, 0.0]})
    >>> Rule.fit(reference).route(reference).tolist()
    ['sparse_steer_random', 'dense_steer']
    """

    mean_: np.ndarray
    std_: np.ndarray
    fallback: bool = True

    @classmethod
    def fit(cls, profiles: pd.DataFrame, fallback: bool = True) -> Rule:
        """Learn the reference from a population of at least two failures.

        Raises
        ------
        SalvageError
            Where a feature is not finite, or there is one failure alone: its z-scores are undefined.
        """
        x = feature_matrix(profiles)
        if len(x) < 2:
            raise SalvageError(
                f"{len(x)} failure{'' if len(x) == 1 else 's'}: z-scores are undefined without a reference population; "
                "give at least two failures, or a frozen reference"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = x.mean(axis=0), x.std(axis=0)
        if not np.isfinite(std).all():
            name = vocabulary.FEATURES[int(np.argmin(np.isfinite(std)))]
            raise SalvageError(f"column {name!r} has values too large to scale; correct them")
        constant = (x == x[0]).all(axis=0)  # rounding may leave a constant column a std of 1e-17
        return cls(mean, np.where(constant, 0.0, std), fallback)

    def scores(self, profiles: pd.DataFrame) -> np.ndarray:
        """Return the z-scores [n, 3]; a feature constant over the reference has z = 0."""
        return self.z(feature_matrix(profiles))

    def z(self, x: np.ndarray) -> np.ndarray:
        """Return the z-scores [n, 3] of a feature matrix [n, 3]."""
        scale = np.where(self.std_ > 0, self.std_, 1.0)
        with np.errstate(over="ignore"):
            z = np.where(self.std_ > 0, (x - self.mean_) / scale, 0.0)
        if not np.isfinite(z).all():  # two infinities would have no margin, and no largest
            row, column = np.argwhere(~np.isfinite(z))[0]
            where = f"row {row}, column {vocabulary.FEATURES[column]!r}"
            raise SalvageError(f"{where}: {x[row, column]} is too far from the reference to be scaled; correct it")
        return z

    def route(self, profiles: pd.DataFrame) -> np.ndarray:
        """Return the operator's name [n] for each failure."""
        return choose(self.scores(profiles), self.fallback)

    def to_dict(self) -> dict[str, Any]:
        """Return the frozen reference as JSON takes it."""
        reference = {
            name: {"mean": float(m), "std": float(s)}
            for name, m, s in zip(vocabulary.FEATURES, self.mean_, self.std_, strict=True)
        }
        return {"policy": "rule", "fallback": self.fallback, "reference": reference}

    @classmethod
    def from_dict(cls, frozen: dict[str, Any]) -> Rule:
        """Return the rule that `to_dict` described."""
        reference = [frozen["reference"][name] for name in vocabulary.FEATURES]
        mean, std = (np.array([entry[key] for entry in reference], np.float64) for key in ("mean", "std"))
        return cls(mean, std, bool(frozen["fallback"]))


def feature_matrix(profiles: pd.DataFrame) -> np.ndarray:
    """Return the three features as [n, 3], or say which row and column is not a finite number."""
    for name in vocabulary.FEATURES:
        if name not in profiles:
            raise SalvageError(f"column {name!r} is missing; routing needs {', '.join(vocabulary.FEATURES)}")
    try:
        x = profiles[vocabulary.FEATURES].to_numpy(np.float64)
    except (TypeError, ValueError):
        raise SalvageError(f"the columns {', '.join(vocabulary.FEATURES)} must be numbers; correct the table") from None
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        name = vocabulary.FEATURES[column]
        raise SalvageError(f"row {row}, column {name!r}: {x[row, column]} is not a finite number; correct or drop it")
    return x


def choose(z: np.ndarray, fallback: bool) -> np.ndarray:
    """Return the operator [n] of the largest z [n, 3]; ties go to the first."""
    best = TARGETS[z.argmax(axis=1)]
    return np.where((z.max(axis=1) <= 0) & fallback, FALLBACK, best)


def margin(z: np.ndarray) -> np.ndarray:
    """Return the largest z less the second [n]."""
    ordered = np.sort(z, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def route_batch(profiles: pd.DataFrame, fallback: bool = True) -> np.ndarray:
    """Route a batch scaled over itself, as in the paper; a `Rule` freezes the reference instead."""
    return Rule.fit(profiles, fallback).route(profiles)


def decide(profiles: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """Return operator, z_<feature> and margin for every failure, in order: what the served router answers."""
    z = rule.scores(profiles)
    columns = {f"z_{name}": z[:, i] for i, name in enumerate(vocabulary.FEATURES)}
    return pd.DataFrame({"operator": choose(z, rule.fallback), **columns, "margin": margin(z)}, index=profiles.index)


def decide_by_cell(profiles: pd.DataFrame, fallback: bool = True) -> pd.DataFrame:
    """Decide with the reference fitted on the failures themselves, cell by cell (all one cell where none is named).

    Raises
    ------
    SalvageError
        Where a cell has one failure alone.
    """
    if "cell" not in profiles:
        return decide(profiles, Rule.fit(profiles, fallback))
    feature_matrix(profiles)  # errors name the row of the whole table, not of a cell
    parts = []
    for cell, rows in profiles.groupby("cell", sort=False):
        if len(rows) < 2:
            raise SalvageError(
                f"row {rows.index[0]}: cell {cell!r} has one failure alone, and z-scores are undefined without a "
                "reference population; give one with --reference FILE or --model URI"
            )
        parts.append(decide(rows, Rule.fit(rows, fallback)))
    return pd.concat(parts).loc[profiles.index]
