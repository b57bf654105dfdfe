"""Attempts and features to profiles, one row a failure, and their recoverability regimes (method.md, Eq. 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.tables import vocabulary

RETRY_SOLVABLE, STEERABLE_HARD, BEYOND_REACH = "retry-solvable", "steerable-hard", "beyond reach"


def regimes(profiles: pd.DataFrame) -> np.ndarray:
    """Return each failure's regime: retry-solvable, steerable-hard or beyond reach.

    Parameters
    ----------
    profiles : DataFrame, n rows
        With the columns of the rescue rates.

    Returns
    -------
    array of str, [n]
    """
    rates = profiles[vocabulary.INTERVENTIONS].to_numpy(np.float64)
    return regimes_of(profiles["retry"].to_numpy(np.float64), rates)


def regimes_of(retry: np.ndarray, interventions: np.ndarray) -> np.ndarray:
    """Return regimes [...] from rates: retry [...] and interventions [..., 4] (method.md, Eq. 2)."""
    best = interventions.max(axis=-1)
    # in plain floats, as the authors count: 0.45 - 0.4 falls short of 0.05
    hard = (best - retry >= 0.05) & (1 - retry >= 0.50)
    return np.where(hard, STEERABLE_HARD, np.where(best <= 0, BEYOND_REACH, RETRY_SOLVABLE))


def make_profiles(features: pd.DataFrame, attempts: pd.DataFrame, *, anchor: str, continuation: str) -> pd.DataFrame:
    """Gather features and attempts into profiles.

    Parameters
    ----------
    features : DataFrame
        schema.FEATURE_ROWS: one row a failed rollout; a failure's features are the means over its rollouts.
    attempts : DataFrame
        schema.ATTEMPTS; only those of this anchor and continuation count.

    Raises
    ------
    SalvageError
        Where a failure has no attempt under one of the operators.
    """
    key = ["cell", "problem_id"]
    grouped = features.groupby(key, sort=False)
    profiles = grouped[vocabulary.FEATURES].mean()
    profiles.insert(0, "n_failed_rollouts", grouped.size())
    chosen = made_by(attempts, anchor, continuation)
    rates = chosen.pivot_table(index=key, columns="operator", values="correct", aggfunc="mean", observed=True)
    profiles = profiles.join(rates.reindex(columns=vocabulary.OPERATORS)).reset_index()
    lacking = profiles[vocabulary.OPERATORS].isna()
    if lacking.to_numpy().any():
        row, column = np.argwhere(lacking.to_numpy())[0]
        problem, operator = profiles["problem_id"].iloc[row], vocabulary.OPERATORS[column]
        raise SalvageError(
            f"attempts: problem {problem!r} of cell {profiles['cell'].iloc[row]!r} has none of {operator} "
            f"({anchor}, {continuation}); intervene first"
        )
    parts = profiles["cell"].str.partition("|")
    return profiles.assign(model=parts[0], task=parts[2])[vocabulary.PROFILE]


def made_by(attempts: pd.DataFrame, anchor: str, continuation: str) -> pd.DataFrame:
    """Return the attempts of one anchor and continuation: no two of them share a table row."""
    return attempts[(attempts["anchor"] == anchor) & (attempts["continuation"] == continuation)]


@dataclass(frozen=True)
class Tallies:
    """What the attempts on each failure gave, [failures, operators] each, in the order of vocabulary.OPERATORS.

    Attributes
    ----------
    correct, tried : array of float
        Right attempts, and all of them. From rates alone: the rate, and 1.
    tokens : array of float or None
        Mean model-tokens an attempt spent, the specialist's and the ancestor's together.
    """

    correct: np.ndarray
    tried: np.ndarray
    tokens: np.ndarray | None = None

    @property
    def rates(self) -> np.ndarray:
        """Return the share that was right."""
        return self.correct / self.tried

    def take(self, rows: np.ndarray) -> Tallies:
        """Return those of some failures, by index or mask."""
        return Tallies(self.correct[rows], self.tried[rows], None if self.tokens is None else self.tokens[rows])


def from_rates(profiles: pd.DataFrame) -> Tallies:
    """Return the tallies that profiles alone tell: rates, without counts or tokens."""
    rates = profiles[vocabulary.OPERATORS].to_numpy(np.float64)
    return Tallies(rates, np.ones_like(rates))


def tally(
    profiles: pd.DataFrame, attempts: pd.DataFrame, part: np.ndarray | None = None, parts: int = 1
) -> list[Tallies]:
    """Count each failure's attempts under each operator, in one piece or in parts.

    Parameters
    ----------
    profiles : DataFrame, n rows
    attempts : DataFrame
        schema.ATTEMPTS of one anchor and continuation; other failures and operators are left out.
    part : array of int, optional
        Which part each row of `attempts` belongs to.
    """
    n, m = len(profiles), len(vocabulary.OPERATORS)
    slot, known = slots(profiles, attempts)
    where = slot[known] if part is None else part[known] * n * m + slot[known]
    rows = attempts[known]
    spent = rows["n_tokens"].to_numpy(np.float64) + rows["n_ancestor_tokens"].to_numpy(np.float64)

    def sums(weights: np.ndarray | None) -> np.ndarray:
        return np.bincount(where, weights, minlength=parts * n * m).reshape(parts, n, m).astype(np.float64)

    tried, correct, tokens = sums(None), sums(rows["correct"].to_numpy(np.float64)), sums(spent)
    with np.errstate(invalid="ignore"):
        return [Tallies(correct[i], tried[i], tokens[i] / tried[i]) for i in range(parts)]


def slots(profiles: pd.DataFrame, attempts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return where each attempt counts, as failure * operators + operator, and whether it counts at all."""
    index = pd.MultiIndex.from_frame(profiles[["cell", "problem_id"]].astype(str))
    failure = index.get_indexer(pd.MultiIndex.from_frame(attempts[["cell", "problem_id"]].astype(str)))
    operator = pd.Index(vocabulary.OPERATORS).get_indexer(pd.Index(attempts["operator"]))
    return failure * len(vocabulary.OPERATORS) + operator, (failure >= 0) & (operator >= 0)


def problem_keys(failures: pd.DataFrame) -> np.ndarray:
    """Return what tells problems apart, [n] str: failures of several cells on one problem share it."""
    task = failures["task"] if "task" in failures else failures["cell"].str.partition("|")[2]
    return (task.astype(str) + "/" + failures["problem_id"].astype(str)).to_numpy(str)


def problem_folds(failures: pd.DataFrame, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Deal problems into folds at random, [n]: all failures of a problem, whatever their cell, into one."""
    keys, index = np.unique(problem_keys(failures), return_inverse=True)
    return rng.permutation(len(keys))[index] % folds
