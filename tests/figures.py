"""Rows of an evaluation and of the closed loop, as their JSON files have them, with a gain that is told."""

from __future__ import annotations

from typing import Any


def arm_rows(gain: float, *, solved: float = 0.5, step: float = 0.1) -> list[dict[str, Any]]:
    """Return rows of the closed loop: retry, and one arm that solves more by a gain, for as many tokens."""
    rows = []
    for cells in ("all", "*-sft-*"):
        for arm in ("retry", "portfolio"):
            for b, budget in enumerate((4, 8, 16)):
                at = solved + step * b + (gain if arm != "retry" else 0)
                row = {"cells": cells, "arm": arm, "budget": budget, "problems": 240, "solved": at, "low": at - 0.02}
                row |= {"high": at + 0.02, "model_tokens": 30.0 + 25 * b, "attempts": 2.0, "scored_tokens": 9.0}
                for name in ("over_retry", "same_tokens"):
                    ends = {name: gain, f"{name}_low": gain, f"{name}_high": gain}
                    row |= ends if arm != "retry" else dict.fromkeys(ends)
                rows.append(row)
    return rows


def budget_rows(gain: float) -> list[dict[str, Any]]:
    """Return rows of budgets: retry, and a portfolio that rescues more by a gain."""
    rows = []
    for cell in ("all", "*-sft-*"):
        for policy in ("retry", "portfolio"):
            for budget in range(2, 17):
                lift = None if policy == "retry" else gain
                at = 0.2 + 0.03 * budget + (lift or 0)
                row = {"cell": cell, "scope": "all", "protocol": "cross-fitted", "policy": policy, "k": None}
                row |= {"budget": budget, "n": 240, "rescue": at, "low": at - 0.02, "high": at + 0.02, "tokens": 50.0}
                row |= {"over_retry": lift, "over_retry_low": lift, "over_retry_high": lift, "per_1000": 6.0}
                rows.append(row | dict.fromkeys(("over_best_fixed", "over_best_fixed_low", "p_value")))
    return rows
