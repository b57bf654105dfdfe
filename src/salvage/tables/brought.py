"""Tables that a user brings: CSV or Parquet, told by content, read by one strict reader whatever the command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from salvage.tables import csv_tables, parquet_tables
from salvage.tables.contents import PARQUET, contents


def read(path: str | Path, texts: Sequence[str], numbers: Sequence[str], *, missing: bool = False) -> pd.DataFrame:
    """Read a table, or every Parquet file of a folder in name order.

    Parameters
    ----------
    texts : sequence of str
        Columns of identifiers: text, kept to the byte.
    numbers : sequence of str
        Columns that a CSV's text becomes float64 in; a Parquet file's are left as they are.
    missing : bool
        Whether a CSV's number may be left empty, and is NaN then.

    Raises
    ------
    SalvageError
        Naming the file and the line or row and column.
    """
    path = Path(path)
    if path.is_dir():
        return pd.concat([parquet_tables.read(file, texts) for file in parquet_tables.files(path)], ignore_index=True)
    data = contents(path)
    if data.startswith(PARQUET):
        return parquet_tables.from_bytes(data, path, texts)
    table = csv_tables.parse(data, path, [*texts, *numbers])
    for name in (name for name in numbers if name in table):
        table[name] = csv_tables.as_numbers(table[name], path, missing=missing)
    return table
