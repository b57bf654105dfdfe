"""Text files written beside and then renamed, so that no half file is ever seen."""

from __future__ import annotations

import os
from pathlib import Path

from salvage.errors import SalvageError


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises
    ------
    SalvageError
        Where the folder cannot be made or written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise SalvageError(f"{path} cannot be written: {why}; check the folder's permissions") from error
