"""CSV, read strictly: every field is text, kept to the byte; nothing is guessed, what is wrong is named by its line.

The separator is a comma, a semicolon or a tab. The header tells which, or a first line `sep=;`, as Excel writes it.
"""

from __future__ import annotations

import csv
import io
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.tables.contents import seems, text
from salvage.tables.files import write_text

SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?", re.ASCII)
MISSING = {"", "na", "n/a", "nan", "null", "none"}  # of a number that need not be known; nowhere else


def parse(data: bytes, where: str | Path, known: Sequence[str] = ()) -> pd.DataFrame:
    """Return the table that a CSV file's bytes hold, every field as text; a header alone gives no rows.

    Parameters
    ----------
    data : bytes
        The file's contents, not compressed.
    where : str or Path
        What to call it in an error.
    known : sequence of str
        Column names that the caller reads; they decide where a header can be cut in two ways.

    Raises
    ------
    SalvageError
        Naming the line (1 is the first) or the column.
    """
    if not data.strip():
        raise SalvageError(f"{where} is not a readable CSV: it is empty; it needs a header, and a line a row")
    kind = seems(data)
    if kind and not kind.startswith("UTF"):  # which `text` refuses with the advice that helps
        raise SalvageError(f"{where} seems to be {kind}, and no CSV or Parquet table; give such a table")
    told = text(data, where)
    named, skipped = _named(told)
    body = told[skipped:]
    separator = named or _understood(body, where, known)
    lines = _lines(body, separator, where, first=1 + bool(skipped))
    _, header = next(lines)
    _check_header(header, where, known, separator)
    rows = []
    for number, fields in lines:
        if len(fields) != len(header):
            raise SalvageError(_wrong_length(number, fields, header, separator, where))
        rows.append(fields)
    table = pd.DataFrame(rows, columns=header, dtype=str)
    return table.loc[:, [bool(name) for name in header]]  # columns without a name: what an index or Excel leaves


def _named(told: str) -> tuple[str, int]:
    """Return the separator that the first line names, and how many characters that line has."""
    found = re.match(r"sep=([,;\t])(\r\n|\n|\r)", told)
    return (found[1], found.end()) if found else ("", 0)


def _lines(body: str, separator: str, where: str | Path, first: int = 1) -> Iterator[tuple[int, list[str]]]:
    """Yield each record's first line number and its fields; empty lines are passed over."""
    csv.field_size_limit(sys.maxsize)  # 128 KB otherwise
    reader = csv.reader(io.StringIO(body, newline=""), delimiter=separator, strict=True)
    while True:
        number = first + reader.line_num
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise SalvageError(
                f"{where} is not a readable CSV: line {number}: {error}; quote the field, and double each quote in it"
            ) from None
        if fields:
            yield number, fields


def _understood(body: str, where: str | Path, known: Sequence[str]) -> str:
    """Return the separator that cuts the header: into names that are known, else the only one that cuts it at all."""
    cuts = {}
    for separator in SEPARATORS:
        try:
            cuts[separator] = next(_lines(body, separator, where), (1, [""]))[1]
        except SalvageError:  # a quote in mid-field, as another separator sees it
            cuts[separator] = [""]
    right = {separator: len(set(known) & set(fields)) for separator, fields in cuts.items()}
    most = max(right.values())
    able = [s for s, fields in cuts.items() if (right[s] == most if most else len(fields) > 1)]
    if len(able) > 1 and not most:
        told = " or ".join(SEPARATORS[s] for s in able)
        raise SalvageError(f"{where}: the header may be cut at {told}; begin the file with a line sep=, or sep=;")
    return able[0] if able else ","


def _check_header(header: list[str], where: str | Path, known: Sequence[str], separator: str) -> None:
    for name in header:
        if name and header.count(name) > 1:
            raise SalvageError(f"{where}: column {name!r} stands twice; drop one")
        if name not in known and name.strip() in known:
            raise SalvageError(f"{where}: column {name!r} has spaces around its name; drop them")
    if len(header) == 1 and len(known) > 1 and header[0] not in known:
        raise SalvageError(
            f"{where}: its first line is one field, {header[0][:60]!r}; "
            f"give column names, separated by {', '.join(list(SEPARATORS.values())[:-1])} or a tab"
        )


def _wrong_length(number: int, fields: list[str], header: list[str], separator: str, where: str | Path) -> str:
    told = f"{where}: line {number} has {len(fields)} field{'' if len(fields) == 1 else 's'}, the header {len(header)}"
    if separator == "," and len(fields) > len(header):
        return f"{told}; quote fields that hold a comma, and write 0.5 for 0,5"
    return f"{told}; correct the line"


def as_numbers(column: pd.Series, where: str | Path, *, missing: bool = False) -> np.ndarray:
    """Return a column of text as float64 [n].

    Parameters
    ----------
    missing : bool
        Whether a field may be left empty, or say NA; it is NaN then.

    Raises
    ------
    SalvageError
        Naming the row (0 is the first after the header) of what is not a finite number.
    """
    return np.array([_number(value, row, column.name, where, missing) for row, value in enumerate(column)], np.float64)


def _number(value: str, row: int, name: object, where: str | Path, missing: bool) -> float:
    told = value.strip()
    if NUMBER.fullmatch(told) and math.isfinite(number := float(told)):
        return number
    if missing and told.lower() in MISSING:
        return np.nan
    at = f"{where}: row {row}, column {name!r}: {value!r}"
    if DECIMAL_COMMA.fullmatch(told):
        raise SalvageError(f"{at} has a decimal comma; write {told.replace(',', '.')}")
    raise SalvageError(f"{at} is not a finite number; correct or drop it")


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, such that `parse` gives every field back; whole or not at all."""
    told = table.to_csv(index=False, lineterminator="\n")
    if "\r" in told:  # which is quoted only where everything is
        told = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    write_text(path, told)
