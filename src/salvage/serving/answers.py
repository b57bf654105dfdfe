"""A user's failures, read and checked strictly, and what the rule answers for each: in a file, and in a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.method.traces import SIGNALS, featurised
from salvage.policies.fitted import Fitted
from salvage.policies.policy import KnowsRates, Plans, pick
from salvage.policies.rule import Rule, choose, decide_by_cell, margin
from salvage.tables import brought
from salvage.tables.numbers import numbers
from salvage.tables.vocabulary import FACTS, FEATURES

COLUMNS = ["operator", *(f"z_{name}" for name in FEATURES), "margin"]


def answer(rule: Rule, table: pd.DataFrame, where: str) -> dict[str, list[Any]]:
    """Return the answer's columns (`COLUMNS`), one entry a row of the table.

    The same as `salvage.policies.rule.decide`, without its tables: one row is answered in microseconds.

    Parameters
    ----------
    rule : Rule
        A fitted rule.
    table : DataFrame
        One row a failure, with the three features.
    where : str
        What to call the table in an error, normally its file.

    Raises
    ------
    SalvageError
        Naming the first row (0 is the first) and column that is not a finite number.
    """
    z = rule.z(np.column_stack([numbers(table, name, where) for name in FEATURES]))
    columns = [choose(z, rule.fallback).tolist(), *z.T.tolist(), margin(z).tolist()]
    return dict(zip(COLUMNS, columns, strict=True))


def answer_fitted(fitted: Fitted, table: pd.DataFrame, where: str) -> dict[str, list[Any]]:
    """Return the same for any fitted policy, and what it knows beyond the z-scores.

    Added are the policy, its version, the expected rescue of the chosen operator with its 95% interval (None where the
    policy knows none), and for a portfolio the plan: the operators in the order to be tried.

    Rows may have per-token signals instead of features (`salvage.method.traces`). Where one does, what was computed
    from them is added too: the features and the junction, None for the other rows.
    """
    computed: dict[str, list[Any]] = {}
    if any(name in table for name in SIGNALS):
        table, computed = featurised(table, where)
    told = answer(fitted.rule, table, where)
    n, policy = len(table), fitted.policy
    known: dict[str, list[Any]] = {"expected": [None] * n, "expected_low": [None] * n, "expected_high": [None] * n}
    if policy is not None:
        failures = _failures(table, where)
        worth = policy.expected(failures)
        if isinstance(policy, Plans):
            near = policy.neighbours(failures)
            order = policy.order(near, policy.plan(near))
            known["plan"] = [" ".join(policy.choices[o] for o in row if o >= 0) for row in order]
            told["operator"] = [plan.partition(" ")[0] or "stop" for plan in known["plan"]]
        else:
            told["operator"] = pick(worth, policy.choices).tolist()
        if isinstance(policy, KnowsRates):
            known |= _chosen(policy, worth, failures, [o if o != "stop" else "retry" for o in told["operator"]])
    return told | {"policy": [fitted.name] * n, "policy_version": [fitted.version] * n} | known | computed


def _chosen(policy: KnowsRates, worth: np.ndarray, failures: pd.DataFrame, told: list[str]) -> dict[str, list[Any]]:
    at, column = np.arange(len(failures)), [policy.choices.index(name) for name in told]
    low, high = policy.interval(failures)[at, column].T
    found = {"expected": worth[at, column], "expected_low": low, "expected_high": high}
    return {name: values.tolist() for name, values in found.items()}


def _failures(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return what a policy reads: features, and as far as the table has them the cell and the facts."""
    read = {name: numbers(table, name, where) for name in FEATURES}
    for name in (name for name in ("n_failed_rollouts", *FACTS) if name in table):
        unknown = table[name].isna().to_numpy()
        filled = numbers(pd.DataFrame({name: table[name].astype(object).where(~unknown, 0.0)}), name, where)
        read[name] = np.where(unknown, np.nan, filled)
    failures = pd.DataFrame(read)
    if "cell" in table:
        failures["cell"] = table["cell"].astype(str).to_numpy()
    return failures


def answer_by_cell(table: pd.DataFrame, where: str, fallback: bool = True) -> dict[str, list[Any]]:
    """Return the same with no frozen rule: each cell of the table is its own reference."""
    checked = features(table, where)
    if "cell" in table:
        checked["cell"] = table["cell"].astype(str).to_numpy()
    try:
        told: dict[str, list[Any]] = decide_by_cell(checked, fallback).to_dict("list")
    except SalvageError as error:
        raise SalvageError(f"{where}: {error}") from None
    return told


def fit(table: pd.DataFrame, where: str, fallback: bool = True) -> Rule:
    """Return the rule fitted on a user's table."""
    try:
        return Rule.fit(features(table, where), fallback)
    except SalvageError as error:
        raise SalvageError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None


def features(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Return the three features alone, each a finite float64."""
    return pd.DataFrame({name: numbers(table, name, where) for name in FEATURES})


def beside(table: pd.DataFrame, told: dict[str, list[Any]]) -> pd.DataFrame:
    """Return the answers beside the columns that say whose they are, as far as the table has them."""
    named = [name for name in ("cell", "problem_id") if name in table]
    return pd.concat([table[named].reset_index(drop=True), pd.DataFrame(told)], axis=1)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a user's table: CSV or Parquet by its content, or a folder of Parquet files; columns are not checked."""
    known = ("n_failed_rollouts", *FEATURES, *FACTS)
    table = brought.read(path, ("cell", "problem_id"), known, missing=True)
    if table.empty:
        raise SalvageError(f"{path}: the table has no rows; give it at least one failure")
    return table
