"""A few failed traces as the page shows them: which ones, and their tokens, shades and tables."""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from typing import Any

import numpy as np

from salvage.reports.grid import Grid

SHOWN_TRACES = 6
AROUND = 200  # tokens of a trace, shown on each side of its junction
PROMPT = 750  # characters of a prompt's beginning and of its end
LONGEST = 300  # characters of an attempt: its end, where the answer is
SAMPLED = "sample"  # the operator of a first rollout, before any policy was asked
STATUS = {
    "solved": "✓ solved",
    "spent": "✗ not solved, the budget was spent",
    "stopped": "✗ not solved, the policy stopped",
    "unverified": "? no verdict",
}
VERDICTS = {True: "✓ right", False: "✗ wrong", None: "? no verdict"}


def few(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a few failures, each of what became of them and each cell as often as the others."""
    few: list[dict[str, Any]] = []
    left, had = list(views), Counter[str]()
    while left and len(few) < SHOWN_TRACES:
        view = min(left, key=lambda view: had[view["status"]] + had[view["cell"]])
        left.remove(view)
        few.append(view)
        had.update((view["status"], view["cell"]))
    return few


def trace(view: dict[str, Any]) -> dict[str, Any]:
    """Return a view as the template shows it: tokens with their shade, tables of strings."""
    tokens, junction = view["tokens"], view["junction"]
    j = np.clip(np.nan_to_num(np.asarray(view["j"], dtype=float), posinf=0.0), 0, None)
    # The root, since j at the junction is many times that elsewhere; text stays readable on the darkest.
    shade = 0.75 * np.sqrt(j / max(float(j.max(initial=0)), 1e-12))
    first, last = max(0, junction - AROUND), min(len(tokens), junction + AROUND + 1)
    shades = [f"{s:.2f}" if s >= 0.005 else "" for s in shade]
    shown = [(tokens[i] or "∅", shades[i], i == junction) for i in range(first, last)]
    chosen = next((a["operator"] for a in view["attempts"] if a["operator"] != SAMPLED), "nothing")
    right = next((f" by {a['operator']}" for a in view["attempts"] if a["correct"]), "")
    return {
        **view,
        "prompt": _without_middle(view["prompt"]),
        "shown": shown,
        "before": first,
        "after": len(tokens) - last,
        "chosen": chosen,
        "came": STATUS[view["status"]] + right,
        "features": [(name, f"{value:.3f}") for name, value in view["features"].items()],
        "alternatives": _alternatives(view["alternatives"]),
        "attempts": _attempts(view["attempts"]),
    }


def _without_middle(prompt: str) -> str:
    """Return a prompt that is not too long to be shown: of a chat, the question stands at the end."""
    if len(prompt) <= 2 * PROMPT:
        return prompt
    return f"{prompt[:PROMPT]} … {prompt[-PROMPT:]}"


def _alternatives(models: dict[str, list[Any]]) -> Grid:
    heads = ["rank", *(head for model in models for head in (model, "its chance, %"))]
    rows = []
    for rank, pairs in enumerate(zip_longest(*models.values()), 1):
        told = [(_visible(pair[0]), f"{100 * pair[1]:.1f}") if pair else ("", "") for pair in pairs]
        rows.append([str(rank), *(cell for pair in told for cell in pair)])
    right = frozenset(range(2, len(heads), 2))
    return Grid("What each model would have said at the junction", heads, rows, 1, right)


def _visible(token: str) -> str:
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def _attempts(attempts: list[dict[str, Any]]) -> Grid:
    rows = []
    for number, attempt in enumerate(attempts, 1):
        text = attempt["text"] if len(attempt["text"]) <= LONGEST else f"… {attempt['text'][-LONGEST:]}"
        told = VERDICTS[attempt["correct"]]
        rows.append([str(number), attempt["operator"], told, f"{attempt['model_tokens']:,}", text])
    heads = ["attempt", "operator", "verdict", "model-tokens", "what it said"]
    return Grid("What was tried, in order", heads, rows, 1, frozenset([3]))
