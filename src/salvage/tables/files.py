"""Files written beside and then renamed, so that no half file is ever seen; and files that grow by lines."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salvage.errors import SalvageError


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield where to write; what was written there takes the path's place when the block ends well.

    A folder that is missing is made. A device or a pipe (/dev/stdout) is written as it is: it has no place to take.

    Raises
    ------
    SalvageError
        Where it cannot be written, with what the system said.
    """
    with writing(path):
        if path.absolute().parent == Path("/dev") or (path.exists() and not path.is_file() and not path.is_dir()):
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            yield part
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what the system says against writing a path into one sentence."""
    try:
        yield
    except OSError as error:
        raise SalvageError(f"{path} cannot be written: {error.strerror or error}; {_advice(error)}") from error


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, or write elsewhere"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "check the folder's permissions"
    return "check the path"


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with beside(path) as part:
        part.write_text(text, encoding="utf-8")


def whole_lines(path: Path) -> list[str]:
    """Return the lines of a file that grows, none where there is no file; a torn last line is cut off."""
    whole, _, torn = (path.read_bytes() if path.exists() else b"").rpartition(b"\n")
    if torn:
        os.truncate(path, len(whole) + 1 if whole else 0)
    return whole.decode().split("\n") if whole else []


def write_json(path: Path, value: Any) -> None:
    """Write JSON, a list of rows with a line a row."""
    write_text(path, _json(value) + "\n")


def _json(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f" {json.dumps(name)}: {_json(inside)}" for name, inside in value.items()) + "\n}"
    return json.dumps(value)
