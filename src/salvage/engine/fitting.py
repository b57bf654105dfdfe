"""Settings that follow from a pair itself: how long completions are, how many tokens it knows, what memory holds."""

from __future__ import annotations

import statistics
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from salvage.engine.base import Request, Sampling, seed_of
from salvage.engine.opening import open_engine, settled
from salvage.project.machine import gpu, memory
from salvage.project.settings import FITTED, Cell, Settings

FIRST = 16  # problems that are sampled once to see how long completions are
LEAST = 64  # tokens of a completion: some few are longer than all of the first
MOST = 512  # decodes at once
TRIAL = {"max_tokens": 4096, "batch": FIRST, "top_k_cov": 1, "warmup": 0}  # what these are sampled with


@dataclass(frozen=True)
class Fit:
    """What a pair's settings are to be, by name, and a sentence for each that says why."""

    values: dict[str, int]
    reasons: list[str]


def wanted(cell: Cell, settings: Settings) -> list[str]:
    """Return the settings that a cell has neither of its own nor in params.yaml's sections."""
    own = dict(cell.own)
    return [name for name, section in FITTED.items() if settings[section][name] == "auto" and name not in own]


def fitted(cell: Cell, settings: Settings, problems: list[dict[str, Any]]) -> Cell:
    """Return the cell with what is `auto` fitted to it; the same one where nothing is."""
    if not wanted(cell, settings):
        return cell
    return replace(cell, own=(*cell.own, *fit(cell, settings, problems).values.items()))


def fit(cell: Cell, settings: Settings, problems: list[dict[str, Any]], lengths: list[int] | None = None) -> Fit:
    """Return what is `auto` for a cell, fitted to its models and problems.

    Parameters
    ----------
    problems : list of dict
        Rows of its problems table.
    lengths : list of int, optional
        Tokens of rollouts that are there already; without them a few problems are sampled first.
    """
    names = wanted(cell, settings)
    trial = replace(cell, own=(*cell.own, *((name, TRIAL[name]) for name in names)))
    settings = settled(trial, settings)
    given = settings["sample"]["max_tokens"]
    with closing(open_engine(trial, settings, ancestor=False)) as opened:
        engine: Any = opened
        encoded = [engine.prompt(problem) for problem in problems]
        longest = max(map(len, encoded))
        room = engine.context - longest if engine.context else given
        bound = max(1, min(given, room))
        lengths = lengths or _first(engine, encoded, bound, cell, settings)
        most = max(lengths)
        max_tokens = (
            bound if most >= bound or "max_tokens" not in names else min(room, max(LEAST, -(-2 * most // 16) * 16))
        )
        values = {
            "max_tokens": max_tokens,
            "batch": _rows(engine.configs[0], longest + max_tokens, engine.vocabulary),
            "top_k_cov": min(20, max(1, engine.vocabulary // 8)),
            "warmup": min(20, int(statistics.median(lengths)) // 8),
        }
    cut = sum(n >= bound for n in lengths)
    because = {
        "max_tokens": f"the first rollouts took {min(lengths)} to {most} tokens" + f", {cut} were cut" * bool(cut),
        "batch": "what a third of the memory holds, 512 at most",
        "top_k_cov": "an eighth of the vocabulary, 20 at most",
        "warmup": "an eighth of a rollout's tokens, 20 at most",
    }
    return Fit({name: values[name] for name in names}, [f"{name} {values[name]} ({because[name]})" for name in names])


def _first(engine: Any, encoded: list[list[int]], bound: int, cell: Cell, settings: Settings) -> list[int]:
    """Sample a few problems once and return how many tokens that took."""
    some = encoded[:: max(1, len(encoded) // FIRST)][:FIRST]
    requests = [Request(p, seed_of(settings.seed, cell.name, "first", i)) for i, p in enumerate(some)]
    done = engine.decode(requests, sampling=Sampling.of(settings["sample"]), max_tokens=bound)
    return [c.n_tokens for c in done]


def _rows(config: Any, tokens: int, vocabulary: int) -> int:
    """Return how many rows' caches, of two such models, and logits a third of our memory holds: a power of two.

    Not of what is free: that differs from start to start, and other batches give other bits.
    """
    import torch

    from salvage.engine.checkpoint import cache_bytes, saved

    whole = torch.cuda.mem_get_info()[1] if gpu() else memory()[0]
    row = 2 * cache_bytes(config, saved(config)) * tokens + 8 * 4 * vocabulary
    rows = 1
    while rows < MOST and 2 * rows * row <= whole // 3:
        rows *= 2
    return rows
