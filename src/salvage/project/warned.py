"""Warnings of ours as lines for people, in the program and in its worker processes alike."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from salvage.errors import shown

PACKAGE = Path(__file__).parents[1]


def in_our_words() -> None:
    """Have this process show warnings of ours as `salvage: ...`, on one line; those of libraries as Python does."""
    default = warnings.showwarning

    def show(message: Any, category: Any, filename: str, *rest: Any) -> None:
        if PACKAGE in Path(filename).parents:
            print(f"salvage: {shown(str(message))}", file=sys.stderr, flush=True)
        else:
            default(message, category, filename, *rest)

    warnings.showwarning = show  # type: ignore[assignment]
