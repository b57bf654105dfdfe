"""A failure as the classifiers see it: what is known of it before any attempt, in one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.method.facts import with_facts
from salvage.method.profiles import made_by
from salvage.tables import schema, vocabulary
from salvage.tables.numbers import numbers
from salvage.tables.profile_files import read_profiles

SIGNALS = ["entropy", "kl", "junction", "delta_path", "g_cov", "j_max"]  # means over the failed rollouts
SAMPLING = ["failed_share", "n_tokens", "agreement"]
KNOWN = {"features": vocabulary.FEATURES, "signals": SIGNALS, "facts": SAMPLING}
INPUTS = [name for group in KNOWN.values() for name in group]
QUANTILES = (0.1, 0.5, 0.9)  # of a bag's failures, an input each
_LONG_TAILED = ("entropy", "kl", "j_max")  # never negative
_BOTH_WAYS = ("delta_path", "g_cov")


@dataclass(frozen=True)
class Failures:
    """The tables of a study, put together.

    Attributes
    ----------
    table : DataFrame
        One row a failure: schema.PROFILES and the inputs that are known.
    inputs : tuple of str
        Which inputs are known, in the order of `INPUTS`. Where no facts were given, `failed_share` is
        n_failed_rollouts over the largest of them.
    attempts : DataFrame or None
        Those of one anchor and continuation.
    """

    table: pd.DataFrame
    inputs: tuple[str, ...]
    attempts: pd.DataFrame | None


def read(
    profiles: Path,
    attempts: Path | None,
    facts: Path | None,
    features: Path | None,
    *,
    anchor: str,
    continuation: str,
) -> Failures:
    """Read the tables of a study; each but the profiles may be None."""
    tried = schema.read(attempts, schema.ATTEMPTS) if attempts else None
    return put_together(
        read_profiles(profiles),
        None if tried is None else made_by(tried, anchor, continuation),
        schema.read(facts, schema.FACT_ROWS) if facts else None,
        schema.read(features, schema.FEATURE_ROWS) if features else None,
    )


def put_together(
    profiles: pd.DataFrame,
    attempts: pd.DataFrame | None = None,
    facts: pd.DataFrame | None = None,
    features: pd.DataFrame | None = None,
) -> Failures:
    """Put what is known of each failure beside its profile."""
    table = with_facts(profiles, facts)
    if facts is None:
        table = table.assign(failed_share=table["n_failed_rollouts"] / table["n_failed_rollouts"].max())
    if features is not None:
        key = ["cell", "problem_id"]
        means = features.groupby(key, sort=False)[["delta_path", "g_cov", "j_max"]].mean().reset_index()
        table = table.merge(means, on=key, how="left", validate="one_to_one")
        if table["j_max"].isna().any():
            row = int(table["j_max"].isna().argmax())
            raise SalvageError(
                f"features: problem {table['problem_id'].iloc[row]!r} of cell {table['cell'].iloc[row]!r} has none; "
                "give the features that these profiles were made from"
            )
    return Failures(table, tuple(name for name in INPUTS if name in table), attempts)


def matrix(table: pd.DataFrame, inputs: Sequence[str], where: str = "failures") -> np.ndarray:
    """Return the inputs [n, inputs] on scales a linear model can use: logarithms, and cube roots where signs differ.

    Raises
    ------
    SalvageError
        Naming the column that is missing, or the row and column that is no finite number or may not be negative.
    """
    columns = []
    for name in inputs:
        x = numbers(table, name, where, inputs)
        if name in (*_LONG_TAILED, *SAMPLING) and (x < 0).any():
            row = int((x < 0).argmax())
            raise SalvageError(f"{where}: row {row}, column {name!r}: {x[row]} is below 0; correct it")
        if name in _LONG_TAILED:
            x = np.log10(x + 1e-6)
        columns.append(np.cbrt(x) if name in _BOTH_WAYS else x)
    return np.column_stack(columns)


def bag_statistics(bags: np.ndarray) -> np.ndarray:
    """Return what tells of each bag [bags, n, inputs]: mean, standard deviation and three quantiles, [bags, 5 inputs].

    Of a bag of one failure, the failure itself, [bags, inputs].
    """
    if bags.shape[1] == 1:
        return bags[:, 0]
    return np.hstack([bags.mean(axis=1), bags.std(axis=1), *np.quantile(bags, QUANTILES, axis=1)])
