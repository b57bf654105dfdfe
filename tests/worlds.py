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


def uneven(cells: list[str], each: int, tries: list[int], seed: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return profiles, attempts and facts; cells share problems, attempts differ in number and in length.

    Parameters
    ----------
    tries : list of int, [operators]
        The fewest attempts; every other failure has one more.
    """
    rng = np.random.default_rng(seed)
    rows, tried = [], []
    for cell in cells:
        for p in sorted(rng.permutation(each + 3)[:each].tolist()):
            name = {"cell": cell, "problem_id": f"p{p}"}
            truth = rng.beta(1, [3, 1.5, 1.5, 1.5, 1.5])  # retry rescues less, so that most are steerable-hard
            right = [rng.random(n + rng.integers(2)) < rate for n, rate in zip(tries, truth, strict=True)]
            row = {**name, "model": "m", "task": "t", "n_failed_rollouts": 3}
            row |= zip(FEATURES, rng.normal(size=3), strict=True)
            rows.append(row | {o: outcomes.mean() for o, outcomes in zip(OPERATORS, right, strict=True)})
            for o, outcomes in zip(OPERATORS, right, strict=True):
                for a, outcome in enumerate(outcomes):
                    made = {"operator": o, "anchor": "online", "continuation": "temperature", "attempt": a}
                    spent = {"n_tokens": int(rng.integers(8, 20)), "n_ancestor_tokens": 30 * (o != "retry")}
                    tried.append({**name, **made, "correct": outcome, **spent, "n_prefill": 5, "position": 1})
    profiles, n = pd.DataFrame(rows), len(rows)
    facts = profiles[["cell", "problem_id"]].assign(failed_share=rng.random(n), n_tokens=9.0, entropy=0.5, kl=0.1)
    return profiles, pd.DataFrame(tried), facts.assign(junction=rng.random(n), agreement=0.5)


def pointing(n: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return features and truth of n failures: the largest feature names what rescues at the high rate."""
    best = np.random.default_rng(3).integers(3, size=n)
    features = np.random.default_rng(4).normal(size=(n, 3)) * 0.1
    features[np.arange(n), best] += 2
    truth = np.full((n, 5), low)
    truth[np.arange(n), [OPERATORS.index(("dense_steer", "sparse_steer", "local_temp")[b]) for b in best]] = high
    return features, truth


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
