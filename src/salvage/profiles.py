"""Attempts and features to profiles, one row a failure, and their recoverability regimes (method.md, Eq. 2)."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from salvage import schema
from salvage.errors import SalvageError

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
    rates = profiles[schema.INTERVENTIONS].to_numpy(np.float64)
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
    profiles = grouped[schema.FEATURES].mean()
    profiles.insert(0, "n_failed_rollouts", grouped.size())
    chosen = made_by(attempts, anchor, continuation)
    rates = chosen.pivot_table(index=key, columns="operator", values="correct", aggfunc="mean", observed=True)
    profiles = profiles.join(rates.reindex(columns=schema.OPERATORS)).reset_index()
    lacking = profiles[schema.OPERATORS].isna()
    if lacking.to_numpy().any():
        row, column = np.argwhere(lacking.to_numpy())[0]
        problem, operator = profiles["problem_id"].iloc[row], schema.OPERATORS[column]
        raise SalvageError(
            f"attempts: problem {problem!r} of cell {profiles['cell'].iloc[row]!r} has none of {operator} "
            f"({anchor}, {continuation}); intervene first"
        )
    parts = profiles["cell"].str.partition("|")
    return profiles.assign(model=parts[0], task=parts[2])[list(schema.PROFILES.columns)]


def made_by(attempts: pd.DataFrame, anchor: str, continuation: str) -> pd.DataFrame:
    """Return the attempts of one anchor and continuation: no two of them share a table row."""
    return attempts[(attempts["anchor"] == anchor) & (attempts["continuation"] == continuation)]


@dataclass(frozen=True)
class Tallies:
    """What the attempts on each failure gave, [failures, operators] each, in the order of schema.OPERATORS.

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
    rates = profiles[schema.OPERATORS].to_numpy(np.float64)
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
    n, m = len(profiles), len(schema.OPERATORS)
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
    operator = pd.Index(schema.OPERATORS).get_indexer(pd.Index(attempts["operator"]))
    return failure * len(schema.OPERATORS) + operator, (failure >= 0) & (operator >= 0)


def problem_keys(failures: pd.DataFrame) -> np.ndarray:
    """Return what tells problems apart, [n] str: failures of several cells on one problem share it."""
    task = failures["task"] if "task" in failures else failures["cell"].str.partition("|")[2]
    return (task.astype(str) + "/" + failures["problem_id"].astype(str)).to_numpy(str)


def problem_folds(failures: pd.DataFrame, folds: int, rng: np.random.Generator) -> np.ndarray:
    """Deal problems into folds at random, [n]: all failures of a problem, whatever their cell, into one."""
    keys, index = np.unique(problem_keys(failures), return_inverse=True)
    return rng.permutation(len(keys))[index] % folds


def read_profiles(path: str | Path) -> pd.DataFrame:
    """Read a profiles file, CSV (the authors' form) or Parquet, or a folder of Parquet files, and check it.

    Raises
    ------
    SalvageError
        Naming the file, the row (0 is the first after the header) and the column.
    """
    path = Path(path)
    table = _read_csv(path) if path.suffix == ".csv" else schema.read(path, schema.PROFILES)
    if table.empty:
        raise SalvageError(f"{path} has no rows; give it at least one failure")
    return schema.check(table, schema.PROFILES, path)


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        # all as text: pandas would guess that a problem "NA" is missing and that a model "01" is 1; and the header as a
        # row, since pandas would rename a name that stands twice and take a field too many for an index
        rows = pd.read_csv(io.StringIO(text), header=None, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise SalvageError(f"{path}: there is no such table; check the path") from None
    except OSError as error:
        raise SalvageError(f"{path} cannot be read: {error.strerror or error}; check the path") from None
    except UnicodeDecodeError as error:
        raise SalvageError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise SalvageError(f"{path} is not a readable CSV ({str(error).strip()}); correct it") from None
    names = rows.iloc[0].tolist()
    twice = [name for name in schema.PROFILES.columns if names.count(name) > 1]
    if twice:
        raise SalvageError(f"{path}: column {twice[0]!r} stands twice; drop one")
    table = rows.iloc[1:].set_axis(names, axis=1).reset_index(drop=True)
    for name in (n for n in ("n_failed_rollouts", *schema.FEATURES, *schema.OPERATORS) if n in table):
        table[name] = _numbers(table[name], path)
    return table


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    # ahead of the schema, which cannot tell the row of a text among numbers
    values = pd.to_numeric(column, errors="coerce").astype(np.float64)
    bad = ~np.isfinite(values.to_numpy())
    if bad.any():
        row = int(np.argmax(bad))
        told = f"{path}: row {row}, column {column.name!r}: {column.iloc[row]!r}"
        raise SalvageError(f"{told} is not a finite number; correct or drop it")
    return values
