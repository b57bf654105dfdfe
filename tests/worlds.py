"""Worlds whose truth is known: failures and attempts drawn from rescue rates that were planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from salvage.project.settings import FITTED
from salvage.studies.failures import Failures, put_together
from salvage.tables.vocabulary import FEATURES, OPERATORS


def in_place_of_auto(raw: dict[str, Any]) -> dict[str, Any]:
    """Put the lab's numbers where params.yaml says `auto`, which `salvage run` would fit to a pair first."""
    for name, section in FITTED.items():
        raw[section][name] = raw["lab"][name]
    return raw


def planted(
    truth: np.ndarray, *, attempts: int = 12, cells: int = 1, seed: int = 0, features: Any = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return profiles and attempts drawn from true rescue rates [failures, operators]."""
    rng = np.random.default_rng(seed)
    n, m = truth.shape
    correct = rng.random((n, m, attempts)) < truth[:, :, None]
    cell = np.array([f"m{i % cells}|t" for i in range(n)])
    problem = np.array([f"p{i}" for i in range(n)])
    profiles = pd.DataFrame({"cell": cell, "model": "m", "task": "t", "problem_id": problem, "n_failed_rollouts": 3})
    profiles[FEATURES] = rng.normal(size=(n, 3)) if features is None else features
    profiles[OPERATORS] = correct.mean(2)
    tried = pd.DataFrame(
        {
            "cell": np.repeat(cell, m * attempts),
            "problem_id": np.repeat(problem, m * attempts),
            "operator": np.tile(np.repeat(OPERATORS, attempts), n),
            "anchor": "online",
            "continuation": "temperature",
            "attempt": np.tile(np.arange(attempts), n * m),
            "correct": correct.ravel(),
            **dict.fromkeys(("n_tokens", "n_ancestor_tokens", "n_prefill"), 9),
            "position": 1,
        }
    )
    return profiles, tried


def world(seed: int, *, cells: int = 6, problems: int = 80, telling: bool = True, attempts: int = 12) -> Failures:
    """Draw failures whose rescue rates depend on the problem; `failed_share` tells them, or nothing does."""
    rng = np.random.default_rng(seed)
    ease = np.tile(rng.beta(0.5, 0.8, problems), cells)
    n = cells * problems
    truth = np.clip(ease[:, None] + rng.normal(0, 0.15, (n, 5)) * (ease > 0.1)[:, None], 0, 1)
    names = [f"{'ab'[c % 2]}-sft-{c // 2}|t" for c in range(cells)]
    cell = np.repeat(names, problems)
    problem = np.tile([f"p{i}" for i in range(problems)], cells)
    correct = rng.random((n, 5, attempts)) < truth[:, :, None]
    profiles = pd.DataFrame({"cell": cell, "model": "m", "task": "t", "problem_id": problem, "n_failed_rollouts": 3})
    profiles[FEATURES] = rng.normal(size=(n, 3))
    profiles[OPERATORS] = correct.mean(axis=2)
    tried = pd.DataFrame(
        {
            "cell": np.repeat(cell, 5 * attempts),
            "problem_id": np.repeat(problem, 5 * attempts),
            "operator": np.tile(np.repeat(OPERATORS, attempts), n),
            "attempt": np.tile(np.arange(attempts), 5 * n),
            "correct": correct.ravel(),
            "n_tokens": 9,
            "n_ancestor_tokens": 9,
        }
    )
    share = 1 - ease if telling else np.tile(rng.random(problems), cells)
    facts = pd.DataFrame({"cell": cell, "problem_id": problem, "failed_share": share, "n_tokens": 20.0, "entropy": 0.1,
                          "kl": 0.2, "junction": 0.5, "agreement": 1.0})  # fmt: skip
    return put_together(profiles, tried, facts)
