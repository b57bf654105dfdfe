"""Rescue rate and cost of every operator under every anchor and continuation, side by side.

Usage: python benchmarks/anchors.py [ATTEMPTS]   (a folder or file of attempts; default data/full/attempts)

Only cells that were tried under all of them count, and all operators of a row see the same failures. A cost is in
model-tokens an attempt: a decoded token costs one for each model that runs on it; prefill is apart.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from salvage.tables import schema, vocabulary

WAYS = [(anchor, continuation) for anchor in vocabulary.ANCHORS for continuation in vocabulary.CONTINUATIONS]


def main(path: str) -> None:
    """Print one row an anchor and continuation; no two anchors share a row."""
    attempts = schema.read(path, schema.ATTEMPTS)
    ways = attempts.groupby("cell").apply(lambda rows: len(set(zip(rows["anchor"], rows["continuation"], strict=True))))
    cells = ways.index[ways == len(WAYS)]
    if not len(cells):
        sys.exit(f"{path}: no cell was tried under every anchor and continuation; run the profile `full`")
    attempts = attempts[attempts["cell"].isin(cells)]
    attempts = attempts.assign(cost=attempts["n_tokens"] + attempts["n_ancestor_tokens"])
    grouped = attempts.groupby(["anchor", "continuation", "operator"])[["correct", "cost"]].mean()
    operators = [*vocabulary.OPERATORS, *vocabulary.CONTROLS]
    table = Table(title=f"Rescued, % (model-tokens an attempt), {len(cells)} cells, all failures")
    for name in ("anchor", "continuation", *operators):
        table.add_column(name)
    for way in WAYS:
        told = [grouped.loc[(*way, operator)] for operator in operators]
        table.add_row(*way, *(f"{100 * row['correct']:.1f} ({row['cost']:.0f})" for row in told))
    Console(width=170).print(table)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "data/full/attempts")
