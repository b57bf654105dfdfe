"""The studies of regimes and methods, from tables to figures, pictures and a registered classifier."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from salvage.evaluation.groups import NAMED
from salvage.evaluation.resampling import ProblemResamples
from salvage.method.profiles import problem_keys
from salvage.method.profiles import regimes as regimes_by_rates
from salvage.project.settings import Cell, Settings, lab_cells
from salvage.studies import failures as failure_tables
from salvage.studies.failures import Failures

if TYPE_CHECKING:
    from salvage.studies.classifiers import Classifier

REGIMES = Path("metrics/regimes.json")
METHODS = Path("metrics/methods.json")
SEARCHES = Path("data/studies")  # Optuna's store; what is in it is never computed twice
RELIABILITY_BINS = 10
RESAMPLES = 1000


@dataclass(frozen=True)
class Tables:
    """Where a study's tables are; all but the profiles may be missing."""

    profiles: Path
    attempts: Path | None = None
    facts: Path | None = None
    features: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Tables:
        """Return those that params.yaml names."""
        folder = Path(settings["study"]["data"])
        return cls(folder / "profiles", folder / "attempts", folder / "facts", folder / "features")

    def read(self, settings: Settings) -> Failures:
        """Read them, the attempts of the anchor and continuation that params.yaml names."""
        how = {name: settings["intervene"][name] for name in ("anchor", "continuation")}
        return failure_tables.read(self.profiles, self.attempts, self.facts, self.features, **how)


@dataclass(frozen=True)
class Findings:
    """What a study gave: `told` is the JSON file, the rest is for MLflow and the registry."""

    told: dict[str, Any]
    classifier: Classifier | dict[int, Classifier]  # for methods one by the size of the bag
    frozen: dict[str, Any]  # what the registered classifier needs beside itself
    trials: dict[str, list[Any]]
    table: pd.DataFrame


def regimes(settings: Settings, tables: Tables, trials: int, *, quiet: bool = False) -> Findings:
    """Cluster the failures, and search, fit and score classifiers of their regimes."""
    from salvage.studies import clusters
    from salvage.studies import regimes as classifying

    failures = tables.read(settings)
    found = classifying.study(failures, trials=trials, seed=settings.seed, folder=SEARCHES, quiet=quiet)
    clustered, _ = clusters.study(failures.table, seed=settings.seed)
    told = {
        "failures": len(failures.table),
        "labels": "halves of the attempts" if failures.attempts is not None else "all attempts (rates alone)",
        "inputs": list(found.inputs),
        "settings": found.classifier.settings,
        "regimes": found.rows,
        "reliability": reliability(failures.table, found.proba, found.labels, classifying.CLASSES, settings.seed),
        "shares": shares(failures.table, settings.seed),
        "clusters": clustered,
    }
    frozen = {"study": "regimes", "inputs": list(found.inputs)}
    return Findings(told, found.classifier, frozen, found.trials, failures.table)


def methods(settings: Settings, tables: Tables, trials: int, *, quiet: bool = False) -> Findings:
    """Search, fit and judge classifiers of the method that made a checkpoint."""
    from salvage.studies import methods as classifying

    failures = tables.read(settings)
    cells: list[Cell] = [*settings.cells, *lab_cells(settings.raw, settings["study"]["profile"])]
    found = classifying.study(failures, cells, trials=trials, seed=settings.seed, folder=SEARCHES, quiet=quiet)
    told = {
        "failures": len(failures.table),
        "inputs": list(found.inputs),
        "settings": found.classifiers[classifying.MAIN].settings,
        "methods": found.rows,
    }
    frozen = {
        "study": "methods",
        "inputs": list(found.inputs),
        "families": list(found.families),
        "fewest": classifying.FEWEST,
        "accuracy": {str(n): value for n, value in found.accuracy.items()},
    }
    return Findings(told, found.classifiers, frozen, found.trials, failures.table)


def reliability(
    table: pd.DataFrame, proba: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], seed: int
) -> list[dict[str, Any]]:
    """Return, for each regime and bin of told probability, what was told, what came true, and how many there were.

    Parameters
    ----------
    table : DataFrame, n rows
    proba : array, [2, n, classes]
    labels : array of int, [2, n]
        What each is scored against.
    """
    resamples = ProblemResamples.draw(problem_keys(table), RESAMPLES, [seed, 52])
    rows = []
    for c, name in enumerate(classes):
        index = np.minimum((proba[:, :, c] * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
        inside = (index[..., None] == np.arange(RELIABILITY_BINS)).astype(np.float64)  # [2, n, bins]
        n, came = inside.sum(axis=0), (inside * (labels == c)[..., None]).sum(axis=0)
        told = (inside * proba[:, :, c, None]).sum(axis=(0, 1))
        with np.errstate(invalid="ignore"):
            drawn = resamples.of(lambda w: (w @ came) / (w @ n))  # noqa: B023 (called here)
        for b in np.flatnonzero(n.sum(axis=0)):
            low, high = resamples.interval(drawn[:, b])
            total = n[:, b].sum()
            figures = {"told": told[b] / total, "true": came[:, b].sum() / total, "low": low, "high": high}
            rows.append(
                {"regime": name, **{key: round(float(v), 4) for key, v in figures.items()}, "n": int(total / 2)}
            )
    return rows


def shares(table: pd.DataFrame, seed: int) -> list[dict[str, Any]]:
    """Return each family's and method's shares of regimes (by all attempts), with intervals over problems."""
    regime = regimes_by_rates(table)
    parts = table["cell"].str.extract(rf"^{NAMED.pattern}$")
    groups = {"all": np.ones(len(table), bool)}
    for (family, method), rows in table.groupby([parts[0], parts[1]]).groups.items():
        groups[f"{family}-{method}-*"] = table.index.isin(rows)
    found, names = [], np.unique(regime)
    for cells, mask in groups.items():
        resamples = ProblemResamples.draw(problem_keys(table[mask]), RESAMPLES, [seed, 51])
        is_so = (regime[mask][:, None] == names).astype(np.float64)
        drawn = resamples.of(lambda w: (w @ is_so) / w.sum(axis=1, keepdims=True))  # noqa: B023 (called here)
        for name, value, spread in zip(names, is_so.mean(axis=0), drawn.T, strict=True):
            low, high = resamples.interval(spread)
            figures = {"value": round(float(value), 5), "low": round(low, 5), "high": round(high, 5)}
            found.append({"cells": cells, "regime": str(name), "n": int(mask.sum()), **figures})
    return found
