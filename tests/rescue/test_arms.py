"""Which arms are compared, what they are refused, and what is read off their table; no model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.rescue import comparison, solving
from salvage.rescue.loop import Outcome


def test_arms_are_retry_files_uris_and_policies_fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[int] = []
    monkeypatch.setattr(comparison.policy_uri, "load", lambda name: f"loaded {name}")
    monkeypatch.setattr(comparison, "first_failures", lambda settings: learnt.append(1) or ("failures", "tallies"))
    fit = staticmethod(lambda name, *known: (name, *known[:2]))
    monkeypatch.setattr(comparison, "Fitted", SimpleNamespace(fit=fit))
    names = ["retry", "models:/a/1", "b.json", "rule", "portfolio"]
    assert comparison.fit_arms({}, names) == {  # type: ignore[arg-type]
        "retry": None,
        "models:/a/1": "loaded models:/a/1",
        "b.json": "loaded b.json",
        "rule": ("rule", "failures", "tallies"),
        "portfolio": ("portfolio", "failures", "tallies"),
    }
    assert learnt == [1]
    with pytest.raises(SalvageError, match="arm 'none' is not one of retry, rule"):
        comparison.fit_arms({}, ["none"])  # type: ignore[arg-type]


def test_every_arm_but_retry_is_asked_whether_it_saw_the_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(problems: Any) -> None:
        raise SalvageError(f"seen {problems}")

    arms = {"retry": None, "mine": SimpleNamespace(refuse_seen=refuse)}
    asked: list[list[str]] = []
    monkeypatch.setattr(comparison, "fit_arms", lambda settings, names: asked.append(names) or arms)
    with pytest.raises(SalvageError, match="seen table"):
        comparison.compare({}, {"c": (None, "table")}, ["mine", "mine"], Path("x"))  # type: ignore[arg-type, dict-item]
    assert asked == [["retry", "mine"]]


def test_rows_by_hand() -> None:
    told = []
    for problem, retry, mine in (("p", "spent", "solved"), ("q", "solved", "solved"), ("r", "spent", "spent")):
        for arm, budget, status, tokens in (
            ("retry", 1, "spent", 10),
            ("retry", 2, retry, 20),
            ("mine", 2, mine, 15),
        ):
            told.append(
                {"cell": "c", "problem_id": problem, "arm": arm, "budget": budget, "status": status}
                | {"model_tokens": tokens, "scored_tokens": 3, "attempts": budget, "operator": ""}
            )
    found = comparison.rows(pd.DataFrame(told), [2], resamples=50, seed=1)
    assert [(r["cells"], r["arm"], r["budget"], r["problems"]) for r in found] == [
        ("all", "retry", 2, 3),
        ("all", "mine", 2, 3),
    ]
    retry, mine = found
    assert retry["solved"] == pytest.approx(1 / 3) and retry["over_retry"] is None
    assert mine["solved"] == pytest.approx(2 / 3) and mine["over_retry"] == pytest.approx(1 / 3)
    assert mine["same_tokens"] == pytest.approx(2 / 3 - 1 / 6)
    assert (mine["model_tokens"], mine["scored_tokens"], mine["attempts"]) == (15, 3, 2)
    assert mine["low"] <= mine["solved"] <= mine["high"]


def outcome(status: str, tokens: int, operator: str | None = None) -> Outcome:
    made = {"status": status, "model_tokens": tokens, "operator": operator, "problem_id": "p", "trouble": "no verdict"}
    return SimpleNamespace(**made)  # type: ignore[return-value]


def test_so_far_counts_the_solved_and_all_tokens() -> None:
    assert solving._so_far([outcome("solved", 700), outcome("spent", 500)]) == "1 solved, 1,200 model-tokens"
    assert solving._so_far([]) == "0 solved, 0 model-tokens"


@pytest.mark.parametrize(("share", "chosen", "traced"), [(0.5, True, 1), (0.5, False, 0), (0, True, 0), (1, True, 1)])
def test_a_share_is_traced(monkeypatch: pytest.MonkeyPatch, share: float, chosen: bool, traced: int) -> None:
    from salvage.rescue import tracing

    seen: list[Any] = []
    monkeypatch.setattr(tracing, "chosen", lambda o, s: chosen)
    monkeypatch.setattr(tracing, "trace", seen.append)
    solving._trace(outcome("solved", 1), share)
    assert len(seen) == traced
