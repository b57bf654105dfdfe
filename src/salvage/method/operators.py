"""Failure and operator to what is decoded: plain data, no model (method.md, "Operators", "Where an operator acts")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from salvage.engine.base import COV, PATH, Intervention, Request, seed_of

# Nats below the quantile at which `online` acts. A decode that goes a failed rollout's way again meets its very j, but
# for rounding (float32 tables; up to 1e-4 between engines), which must not decide whether it acts.
TIE = 1e-3
_KIND = {
    "retry": "none",
    "sparse_steer": "sparse",
    "sparse_steer_random": "sparse",
    "sparse_steer_matched": "sparse",
    "sparse_steer_wrong": "sparse",
    "local_temp": "local_temp",
    "dense_steer": "dense",
}


@dataclass(frozen=True)
class FailedRollout:
    """What an operator needs of one failed rollout: its tokens, its junction, and the mix at every position."""

    tokens: list[int]
    junction: int
    mixes: np.ndarray  # PATH or COV, one a token


@dataclass(frozen=True)
class Failure:
    """One problem that its specialist failed at least once."""

    problem_id: str
    prompt: list[int]
    rollouts: list[FailedRollout]
    threshold: float  # of j, for anchor `online`


def failures(
    prompts: dict[str, list[int]],
    rollouts: pd.DataFrame,
    signals: pd.DataFrame,
    features: pd.DataFrame,
    quantile: float,
) -> list[Failure]:
    """Gather a cell's failures, in the order of the problems.

    Parameters
    ----------
    prompts : dict
        Token ids of each problem's prompt.
    rollouts, signals, features : DataFrame
        The cell's tables; signals and features hold the failed rollouts, and features which part of each counts.
    quantile : float
        Of j over that part of a problem's failed rollouts: the threshold of anchor `online`, less `TIE`.
    """
    key = ["cell", "problem_id", "rollout"]
    part = [name for name in ("part_start", "part_end") if name in features]
    joined = signals.merge(features[[*key, "junction", *part]], on=key).merge(rollouts[[*key, "tokens"]], on=key)
    found = []
    for problem_id, rows in joined.groupby("problem_id", sort=False):
        failed = [
            FailedRollout(
                tokens=[int(t) for t in tokens],
                junction=int(junction),
                mixes=np.where(np.maximum(delta, 0) >= np.maximum(gap, 0), PATH, COV),
            )
            for tokens, junction, delta, gap in zip(
                rows["tokens"], rows["junction"], rows["delta_path"], rows["g_cov"], strict=True
            )
        ]
        spans = zip(*(rows[name] for name in part), strict=True) if part else [(0, None)] * len(rows)
        seen = [j[start:end] for j, (start, end) in zip(rows["j"], spans, strict=True)]
        high = float(np.quantile(np.concatenate(seen), quantile))
        threshold = max(high - TIE, high / 2)  # or it would act at any j where all are tiny
        found.append(Failure(str(problem_id), prompts[str(problem_id)], failed, threshold))
    order = {problem_id: i for i, problem_id in enumerate(prompts)}
    return sorted(found, key=lambda failure: order[failure.problem_id])


def request(
    failure: Failure,
    operator: str,
    attempt: int,
    *,
    cell: str,
    anchor: str,
    continuation: str,
    donors: list[int],
    seed: int,
    settings: dict[str, Any],
) -> Request:
    """Turn a failure and an operator into one decode.

    Attempts take turns on the problem's failed rollouts, and those of local_temp on the local temperatures.

    Parameters
    ----------
    donors : list of int
        Junctions of the cell's other problems, for sparse_steer_matched.
    seed : int
        Of the whole run; the request's own depends on (cell, problem, operator, attempt) alone.
    settings : dict
        params.yaml's `intervene`: alpha, warmup, local_temperatures, dense_decode.
    """
    own_seed = seed_of(seed, cell, failure.problem_id, operator, attempt)
    rollout = failure.rollouts[attempt % len(failure.rollouts)]
    at = _position(operator, rollout, donors, own_seed)
    watch = anchor == "online" and operator in ("sparse_steer", "sparse_steer_wrong", "local_temp")
    temperatures = settings["local_temperatures"]
    kind = _KIND[operator]
    acts_once = kind in ("sparse", "local_temp")
    intervention = Intervention(
        kind=kind,
        threshold=failure.threshold if watch else None,
        warmup=settings["warmup"],
        position=at if acts_once and not watch else None,
        # decoded afresh and watched, the mix is decided by what is decoded; else the failed rollout has decided it
        mix=int(rollout.mixes[at]) if kind == "dense" or (kind == "sparse" and not watch) else None,
        wrong=operator == "sparse_steer_wrong",
        alpha=settings["alpha"],
        local_temperature=temperatures[attempt % len(temperatures)],
        greedy=kind == "dense" and settings["dense_decode"] == "argmax",
    )
    return Request(
        prompt=failure.prompt,
        seed=own_seed,
        prefix=rollout.tokens[:at] if anchor == "replay" else [],
        intervention=intervention,
        greedy=continuation == "greedy",
    )


def _position(operator: str, rollout: FailedRollout, donors: list[int], seed: int) -> int:
    """Return the index of the failed rollout at which an operator acts."""
    rng = np.random.default_rng(seed_of(seed, "position"))
    if operator == "sparse_steer_random":
        return int(rng.integers(len(rollout.tokens)))
    if operator == "sparse_steer_matched" and donors:
        return min(donors[int(rng.integers(len(donors)))], len(rollout.tokens) - 1)
    return rollout.junction
