"""Locks that the operating system frees when their holder ends, however it ends: two writers of one file never meet."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salvage.errors import SalvageError
from salvage.tables.files import writing


@contextmanager
def locked(path: Path, taken: str) -> Iterator[int]:
    """Hold a file's lock while the block runs; yield its descriptor, for children that are to hold it too.

    Parameters
    ----------
    path : Path
        Made where it is not there; nothing is written to it.
    taken : str
        The sentence where somebody else holds it.

    Raises
    ------
    SalvageError
        Where somebody else holds it, or the file cannot be made.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(held, taken)
        yield held
    finally:
        os.close(held)


def _take(held: int, taken: str) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SalvageError(taken) from None
    except OSError:  # a file system without locks: as it was before there were any
        return
