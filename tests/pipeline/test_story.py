"""The last screen of a run: forty lines of a hundred columns, whatever there is to tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from figures import arm_rows
from salvage.pipeline import story
from salvage.pipeline.story import Figures, Version, told
from salvage.tables.vocabulary import FEATURES, OPERATORS

FIGURES = Path(__file__).parents[2] / "docs/figures"
GATE = {"policy": "portfolio", "gate.difference": "0.021", "gate.low": "0.013", "gate.high": "0.03"}
GATE |= {"gate.champion": "rule", "gate.failures": "1973", "gate.measure": "rescue of one attempt"}


def profiles(cells: int, each: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = cells * each
    table = pd.DataFrame({"cell": [f"qwen3-sft-{i % cells}|digits" for i in range(n)]})
    table[FEATURES], table[OPERATORS] = rng.normal(size=(n, 3)), rng.integers(0, 5, (n, 5)) / 4
    return table


def default() -> Figures:
    rows, rescue = (json.loads((FIGURES / f"{name}.json").read_text()) for name in ("evaluate", "rescue"))
    asked = {f"qwen3-sft-{i}|digits": 240 for i in range(12)}
    return Figures(profiles(12, 160), asked, rows, rescue, Version(1, {"policy": "rule"}))


def own() -> Figures:
    return Figures(profiles(1, 5), {"sft[lora]|gsm8k": 20}, [], [], None)


def printed(figures: Figures, width: int = 100) -> list[str]:
    return told(figures, Console(width=width)).splitlines()


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("figures", [default, own, lambda: Figures(profiles(4, 20), rescue=arm_rows(0.0))])
def test_it_is_one_screen(figures: Any, width: int) -> None:
    lines = printed(figures(), width)
    assert len(lines) <= 40 and max(map(len, lines)) <= min(width, story.WIDEST)


def test_a_run_tells_problems_regimes_the_comparison_the_champion_and_the_rule() -> None:
    text = " ".join(" ".join(printed(default())).split())
    assert "12 cells (a specialist on a task) met 2,880 problems, 240 each; 1,920 of them (67%)" in text
    assert "retry-solvable" in text and "steerable-hard" in text and "beyond reach" in text
    for arm in ("rule", "calibrated", "portfolio"):
        row = next(r for r in default().rescue if (r["cells"], r["arm"], r["budget"]) == ("all", arm, 16))
        assert f"{100 * row['same_tokens']:+.1f} [" in text
    assert "rule, version 1 of salvage-router: the first that was registered" in text
    assert "cross-fitted" in text and "salvage evaluate" in text and "report/index.html" in text


def test_ones_own_cells_are_told_what_is_not_there() -> None:
    text = " ".join(" ".join(printed(own())).split())
    assert "No policy was compared with retrying here" in text and "1 cell (a specialist on a task) met 20" in text
    assert "No router is registered as champion" in text and "It was not scored" in text


def test_ones_own_cells_are_told_what_their_attempts_say() -> None:
    rows = [row for row in default().rows if row["cell"] == "all"]
    lines = printed(Figures(profiles(1, 60), {"mine|t": 80}, rows, [], None))
    table = [line for line in lines if line.split()[:1] == ["portfolio"]]
    gain = next(r for r in rows if (r["policy"], r["budget"], r["protocol"]) == ("portfolio", 16, "cross-fitted"))
    assert len(table) == 1 and f"{100 * gain['over_retry']:+.1f} [" in table[0]
    assert "Ship the portfolio" in " ".join(lines) and len(lines) <= 40


def test_many_truncated_rollouts_are_told_and_few_are_not() -> None:
    few, many = (Figures(profiles(1, 5), truncated=(n, 1000)) for n in (100, 101))
    assert "truncated" not in " ".join(printed(few))
    text = " ".join(" ".join(printed(many)).split())
    assert "101 of 1,000 rollouts (10%) are truncated: they met sample.max_tokens before an end. Raise it" in text


def test_what_has_no_verdict_is_told_in_a_line_where_there_is_any() -> None:
    assert "verdict" not in " ".join(printed(own()))
    text = " ".join(" ".join(printed(replace(own(), unverified={"rollouts": 3, "attempts": 1200}))).split())
    assert "Without a verdict: 3 rollouts (left out), 1,200 attempts (counted as not rescued); see data/*/*.unv" in text


def test_a_name_is_not_taken_for_markup() -> None:
    rows = [row | {"arm": "models:/[red]mine[/red]@x"} if row["arm"] != "retry" else row for row in arm_rows(0.05)]
    assert "models:/[red]mine[/red]@x"[:20] in "\n".join(printed(Figures(profiles(4, 20), rescue=rows)))


def test_the_champion_is_told_with_what_the_gate_saw() -> None:
    better = story.champion(Version(3, GATE | {"gate.better": "True"}), None, "portfolio")
    assert "portfolio, version 3 of salvage-router: it beat the champion before it, +2.1 points [+1.3, +3.0]" in better
    assert "against rule, in rescue of one attempt over 1,973 failures" in better and "To ship" not in better
    challenged = story.champion(Version(1, {"policy": "rule"}), Version(2, GATE), "portfolio")
    assert "Version 2, portfolio, stays the challenger" in challenged and "To ship" not in challenged
    assert "To ship the portfolio: salvage register --policy portfolio" in story.champion(
        Version(1, {"policy": "rule"}), None, "portfolio"
    )


def test_a_narrow_screen_leaves_out_the_small_budgets_and_says_so() -> None:
    lines = printed(default(), 60)
    assert max(map(len, lines)) <= 60 and any("In the report too: budgets 4" in line for line in lines)
