"""Rows of an evaluation picked by what they are about, and settings that make few resamples of it."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from salvage.evaluation.protocols import evaluate

FEW: dict[str, Any] = {"resamples": 200, "permutations": 200, "policies": ()}


def picked(rows: list[dict[str, Any]], **where: Any) -> dict[str, float]:
    """Return the rescue by policy of one cell (`all` unless told), scope and protocol."""
    where = {"cell": "all", "scope": "steerable-hard", "protocol": "paper", "k": 1} | where
    return {row["policy"]: row["rescue"] for row in rows if where.items() <= row.items()}


def alone(profiles: pd.DataFrame, **settings: Any) -> list[dict[str, Any]]:
    """Evaluate a profiles file without its attempts."""
    with pytest.warns(UserWarning, match="profiles alone allow only the paper's protocol"):
        return evaluate(profiles, **(FEW | settings))
