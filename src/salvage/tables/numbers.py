"""Numbers from outside, taken strictly: a text, a NaN or an infinity is named by its row, never converted."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.tables.vocabulary import FEATURES


class NotFiniteError(ValueError):
    """Where the first value stands that is not a finite number (`at`), and the end of a sentence on it (`told`)."""

    def __init__(self, at: int, told: str) -> None:
        super().__init__(at, told)
        self.at, self.told = at, told


def finite(values: Any) -> np.ndarray:
    """Return a list or array [n] of numbers as float64, at the speed of numpy; text and truth values are not converted.

    Raises
    ------
    NotFiniteError
        At the first value that is not a finite number.
    """
    if isinstance(values, np.ndarray) and not (values.dtype.kind in "iuf" and values.ndim == 1):
        values = values.tolist()
    if isinstance(values, np.ndarray) or all(map(_numeric, set(map(type, values)))):
        try:
            column = np.array(values, dtype=np.float64)
        except OverflowError:  # an integer beyond any double
            column = np.array([np.nan])
        if np.isfinite(column).all():
            return column
    raise next(fault for fault in map(_fault, range(len(values)), values) if fault)


def _numeric(kind: type) -> bool:
    return kind in (int, float) or issubclass(kind, (np.integer, np.floating))


def _fault(at: int, value: Any) -> NotFiniteError | None:
    if value is None:
        return NotFiniteError(at, " is NaN or null")
    if not _numeric(type(value)):
        return NotFiniteError(at, f": {reprlib.repr(value)} is not a number")
    try:
        if math.isfinite(value):
            return None
    except OverflowError:
        return NotFiniteError(at, " is infinite")
    return NotFiniteError(at, " is NaN or null" if math.isnan(value) else " is infinite")


def numbers(table: pd.DataFrame, name: str, where: str, needed: Sequence[str] = FEATURES) -> np.ndarray:
    """Return one feature's column as [n] float64, or name the first row that is not a finite number."""
    need = f"each row needs a finite number in {', '.join(needed)}"
    if name not in table:
        raise SalvageError(f"{where}: row 0, column {name!r} is missing; {need}")
    try:
        return finite(table[name].tolist())
    except NotFiniteError as fault:
        raise SalvageError(f"{where}: row {fault.at}, column {name!r}{fault.told}; {need}") from None
