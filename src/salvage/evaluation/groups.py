"""Cells by name: the family and method that a name tells, and the groups they make."""

from __future__ import annotations

import re

import numpy as np

ALL = "all"  # as a scope: every failure; as a cell: all of them together
NAMED = re.compile(r"(\w+)-(\w+)-\d+\|.*")  # family-method-seed|task


def family_of(cells: np.ndarray) -> np.ndarray:
    """Return each cell's family, [n], where it is called family-method-seed|task; else an empty name."""
    names, index = np.unique(np.asarray(cells, str), return_inverse=True)
    told = [NAMED.fullmatch(name) for name in names]
    return np.array([match[1] if match else "" for match in told])[index]


def groups(names: np.ndarray) -> dict[str, list[int]]:
    """Return groups of cells by name: `all`, and each family and method of cells called family-method-seed|task."""
    found: dict[str, list[int]] = {ALL: list(range(len(names)))}
    for i, name in enumerate(names):
        parts = NAMED.fullmatch(str(name))
        if parts:
            found.setdefault(f"{parts[1]}-*", []).append(i)
            found.setdefault(f"*-{parts[2]}-*", []).append(i)
    return {name: cells for name, cells in found.items() if name == ALL or 1 < len(cells) < len(names)}
