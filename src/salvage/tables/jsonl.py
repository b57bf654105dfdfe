"""JSON lines, read so that every fault is named by its file and line number (1 is the first)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from salvage.errors import SalvageError
from salvage.tables.contents import contents, seems


class Line:
    """One object of a JSON Lines file, which knows where it stands."""

    kind = "line"

    def __init__(self, path: Path, number: int, fields: dict[str, Any]) -> None:
        self.path, self.number, self.fields = path, number, fields

    def refuse(self, problem: str, cause: Exception | None = None) -> NoReturn:
        """Raise a `SalvageError` that names this line."""
        raise SalvageError(f"{self.path}, {self.kind} {self.number}: {problem}") from cause

    def text(self, column: str, default: str | None = None, *, numbers: bool = False, empty: bool = False) -> str:
        """Return a column's text.

        Parameters
        ----------
        column : str
            The field; without a `default` it is required. A null counts as missing.
        numbers : bool
            Whether a number is taken too, as the text Python writes for it (7 gives ``7``, 0.50 gives ``0.5``).
        empty : bool
            Whether a text without a visible character is taken.
        """
        value = self.fields.get(column)
        if value is None:
            if default is None:
                self.refuse(f"column {column!r} is missing; give it a text")
            return default
        if numbers and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            value = str(value)
        if not isinstance(value, str):
            wanted = "a text or a number" if numbers else "a text"
            self.refuse(f"column {column!r} is {json.dumps(value)[:60]}, but must be {wanted}; correct it")
        if not empty and not value.strip():
            self.refuse(f"column {column!r} is empty; fill it in or drop the line")
        if not _writable(value):
            self.refuse(f"column {column!r} has half of a surrogate pair, which is no text; correct it")
        return value


def read_lines(path: str | Path, *, growing: bool = False) -> Iterator[Line]:
    """Yield the objects of a JSON Lines file, compressed or not; blank lines are passed over.

    Parameters
    ----------
    growing : bool
        Whether the file may still be written: a last line that is torn is passed over.

    Raises
    ------
    SalvageError
        Where the file is missing, a folder, empty or unreadable, or a line is not UTF-8, not JSON or not an object.
    """
    path = Path(path)
    data = contents(path)
    kind = seems(data)
    if kind and kind not in ("JSON Lines", "JSON", "JSON that ends too early"):
        raise SalvageError(f"{path} seems to be {kind}, and no JSON Lines; give a file of one JSON object a line")
    if growing:
        whole, end, last = data.rpartition(b"\n")
        data = data if not last or last.rstrip().endswith(b"}") else whole + end or b" "
    some = False
    # only \n ends a line: str.splitlines would also cut at U+2028, which JSON allows inside a text
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if raw.strip():
            some = True
            yield Line(path, number, _object(path, number, raw))
    if not some:
        told = "has no whole line yet" if growing and data else "is empty"
        raise SalvageError(f"{path} {told}; it needs one JSON object a line")


def _object(path: Path, number: int, raw: bytes) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        fields = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise SalvageError(f"{where}, byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise SalvageError(
            f"{where}, character {error.colno} is not JSON ({error.msg}); write one object a line"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits, a field twice
        raise SalvageError(f"{where} cannot be read: {error}; correct the line") from None
    if not isinstance(fields, dict):
        raise SalvageError(f"{where} is no JSON object but {json.dumps(fields)[:60]}; write one object a line")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):  # JSON would let the last one win in silence
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} stands twice")
    return fields


def _writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
