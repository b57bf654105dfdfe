"""A user's failures, read and checked strictly, and what the rule answers for each: in a file, and in a request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.routing import Rule, choose, decide_by_cell, margin
from salvage.schema import FEATURES

COLUMNS = ["operator", *(f"z_{name}" for name in FEATURES), "margin"]


def answer(rule: Rule, table: pd.DataFrame, where: str) -> dict[str, list[Any]]:
    """Return the answer's columns (`COLUMNS`), one entry a row of the table.

    The same as `salvage.routing.decide`, without its tables: one row is answered in microseconds.

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


def numbers(table: pd.DataFrame, name: str, where: str) -> np.ndarray:
    """Return one feature's column as [n] float64, or name the first row that is not a finite number."""
    if name not in table:
        raise SalvageError(f"{where}: row 0, column {name!r} is missing; {_NEED}")
    values = table[name].tolist()
    if not set(map(type, values)) <= {int, float}:
        row = next(i for i, value in enumerate(values) if type(value) not in (int, float))
        raise SalvageError(f"{where}: row {row}, column {name!r}: {values[row]!r} is not a number; {_NEED}")
    try:
        column = np.array(values, dtype=np.float64)
    except OverflowError:  # an integer beyond any double
        column = np.array([value if abs(value) < 1e300 else np.inf for value in values], dtype=np.float64)
    finite = np.isfinite(column)
    if not finite.all():
        row = int(np.argmin(finite))
        shown = "NaN or null" if np.isnan(column[row]) else "infinite"
        raise SalvageError(f"{where}: row {row}, column {name!r} is {shown}; {_NEED}")
    return column


_NEED = f"each row needs a finite number in {', '.join(FEATURES)}"


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a user's table: CSV or Parquet, or a folder of Parquet files; columns are not checked here."""
    path = Path(path)
    if path.is_dir() and (files := sorted(path.glob("*.parquet"))):
        return pd.concat([read_table(file) for file in files], ignore_index=True)
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, encoding="utf-8")
    except FileNotFoundError:
        raise SalvageError(f"{path}: there is no such file; correct the path") from None
    except UnicodeDecodeError as error:
        raise SalvageError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # pandas' and Arrow's parse errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise SalvageError(f"{path} is not a readable CSV or Parquet table ({reason}); correct it") from None
    if table.empty:
        raise SalvageError(f"{path}: the table has no rows; give it at least one failure")
    for name in FEATURES:  # one bad field makes pandas read the whole column as text: give the good ones back
        if name in table and not pd.api.types.is_numeric_dtype(table[name]):
            table[name] = pd.Series([_parsed(value) for value in table[name]], dtype=object)
    return table


def _parsed(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value
