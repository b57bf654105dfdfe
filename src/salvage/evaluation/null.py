"""The null line: what would be seen if every operator were only retry (method.md, "An honest protocol")."""

from __future__ import annotations

from typing import Any

import numpy as np

from salvage.evaluation.groups import ALL
from salvage.evaluation.sheet import INTERVENE, View
from salvage.method.profiles import STEERABLE_HARD, Tallies

WORLDS = 200  # redrawn for the null line


def null_line(
    correct: np.ndarray, tried: np.ndarray, cell: np.ndarray, names: np.ndarray, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Redraw all attempts from each failure's retry rate and do as the paper's protocol does.

    Parameters
    ----------
    correct, tried : array, [failures, operators]

    Returns
    -------
    list of dict
        For each cell and over all: the rescue that retry, a random operator and the oracle would show on the failures
        called steerable-hard, and as `n` how many would be called so (the mean over the worlds).
    """
    truth = correct[:, :1] / tried[:, :1]
    places = [*range(len(names)), None]
    seen = np.full((WORLDS, len(places), 4), np.nan)
    for world in range(WORLDS):
        rates = rng.binomial(tried.astype(int), np.broadcast_to(truth, tried.shape)) / tried
        redrawn = Tallies(rates, np.ones_like(rates))
        hard = View(redrawn, redrawn).mask(STEERABLE_HARD)
        best = rates[:, INTERVENE].max(1)
        shown = np.stack([rates[:, 0], rates[:, INTERVENE].mean(1), best], axis=1)
        for g, which in enumerate(places):
            inside = hard if which is None else hard & (cell == which)
            seen[world, g, 0] = inside.sum()
            if inside.any():
                seen[world, g, 1:] = shown[inside].mean(0)
    rows = []
    for g, which in enumerate(places):
        n = round(float(seen[:, g, 0].mean()))
        for i, policy in enumerate(("retry", "random", "oracle"), start=1):
            got = seen[:, g, i][~np.isnan(seen[:, g, i])]
            low, high = np.percentile(got, [2.5, 97.5]) if len(got) else (None, None)
            name = ALL if which is None else str(names[which])
            row: dict[str, Any] = {"cell": name, "scope": STEERABLE_HARD, "protocol": "paper"}
            row |= {"policy": f"null: {policy}", "k": 1, "budget": None, "n": n}
            row |= {"rescue": float(got.mean()) if len(got) else None}
            row |= {"low": None if low is None else float(low), "high": None if high is None else float(high)}
            row |= dict.fromkeys(f"{base}{end}" for base in ("over_retry", "over_best_fixed") for end in ("", *_ENDS))
            rows.append({**row, "tokens": None, "per_1000": None, "p_value": None})
    return rows


_ENDS = ("_low", "_high")
