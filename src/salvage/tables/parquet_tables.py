"""Parquet, told by its content: identifiers become text, and what only looks like an identifier is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as parquet
import pyarrow.types as kinds

from salvage.errors import SalvageError
from salvage.tables.contents import PARQUET, contents, is_parquet, seems


def files(path: Path) -> list[Path]:
    """Return the Parquet files of a folder in name order, or the file itself.

    Raises
    ------
    SalvageError
        Where there is none.
    """
    if not path.exists():
        raise SalvageError(f"{path}: there is no such table; check the path, or run the stage that writes it")
    found = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not found:
        raise SalvageError(f"{path}: there is no such table: the folder has no Parquet file; name another")
    return found


def read(path: Path, texts: Sequence[str] = ()) -> pd.DataFrame:
    """Read one Parquet file, whatever its name, compressed as a whole or not.

    Parameters
    ----------
    texts : sequence of str
        The columns that hold identifiers: text, or whole numbers, which become their digits.

    Raises
    ------
    SalvageError
        Where it is no Parquet file (what it seems to be is told), or an identifier is of another type.
    """
    if is_parquet(path):  # read by its path: a large one is not held twice
        return from_bytes(None, path, texts)
    data = contents(path)
    if not data.startswith(PARQUET):
        told = seems(data) or ("text, perhaps a CSV" if data.strip() and b"\0" not in data else "nothing of the kind")
        what = f"it seems to be {told}" if data else "it is empty"
        raise SalvageError(f"{path} is not a readable Parquet file: {what}; give the table that a stage wrote")
    return from_bytes(data, path, texts)


def from_bytes(data: bytes | None, path: Path, texts: Sequence[str] = ()) -> pd.DataFrame:
    """Return the table of a Parquet file's bytes, or of the file itself where they are None."""
    try:
        # no partitioning: a folder above called `lr=1e-5` would become a column
        table = parquet.read_table(path if data is None else arrow.BufferReader(data), partitioning=None)
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise SalvageError(f"{path} is not a readable Parquet file: {reason}; fetch or make it again") from error
    twice = next((name for name in table.column_names if table.column_names.count(name) > 1), None)
    if twice is not None:
        raise SalvageError(f"{path}: column {twice!r} stands twice; drop one")
    for name in (name for name in texts if name in table.column_names):
        at = table.column_names.index(name)
        table = table.set_column(at, name, _as_text(table.column(name), f"{path}: column {name!r}"))
    return table.to_pandas()


def _as_text(column: arrow.ChunkedArray, where: str) -> arrow.ChunkedArray:
    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    known = (kinds.is_string, kinds.is_large_string, kinds.is_string_view, kinds.is_integer)
    binary = kinds.is_binary(kind) or kinds.is_large_binary(kind)
    if not (binary or any(is_so(kind) for is_so in known)):
        raise SalvageError(f"{where} is of type {kind}, in which an identifier has lost its spelling; write it as text")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise SalvageError(f"{where}, row {row} is null; give it a text or drop the row")
    if kinds.is_string(column.type) or kinds.is_large_string(column.type):
        return column
    try:
        return column.cast(arrow.string())
    except arrow.ArrowInvalid as error:
        raise SalvageError(f"{where} is no text ({error}); write it as text") from None
