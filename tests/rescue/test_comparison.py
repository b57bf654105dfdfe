"""What the comparison asks for, arm by arm, and how it reads the answer; no model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from salvage.engine.base import Sampling
from salvage.rescue import comparison
from salvage.rescue.comparison import _against_retry, _interpolated, _keep_looks, _retry_ahead, _timed
from salvage.rescue.loop import Outcome


def outcome(problem: str, status: str = "spent", tokens: int = 30, **more: Any) -> Outcome:
    made = {"cell": "c", "problem_id": problem, "status": status, "model_tokens": tokens, "scored_tokens": 0}
    made |= {"operator": None, "attempts": [], "prompt": "p", "failure": None, "times": []}
    return SimpleNamespace(**(made | more))  # type: ignore[return-value]


def test_retry_is_followed_four_budgets_beyond_the_largest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Any, int]] = []
    ahead: list[tuple[list[str], int]] = []
    written: list[pd.DataFrame] = []

    class Loop:
        def __init__(self, problems: Any, waves: Any, arm: Any, budget: Any, *, first: int) -> None:
            asked.append((arm, budget.amount))

        def run(self) -> list[Outcome]:
            return [outcome("a", tokens=30), outcome("b", "solved", tokens=900)]

    monkeypatch.setattr(comparison, "open_engine", lambda *a, **k: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(comparison, "Judge", lambda *a, **k: nullcontext())
    monkeypatch.setattr(comparison, "Shared", lambda engine: engine)
    monkeypatch.setattr(comparison, "Waves", lambda *a, **k: None)
    monkeypatch.setattr(comparison, "Loop", Loop)
    monkeypatch.setattr(comparison, "fingerprint", lambda *a, **k: "mark")
    monkeypatch.setattr(comparison.schema, "fingerprint", lambda path: None)
    monkeypatch.setattr(comparison.schema, "write", lambda table, *a: written.append(table))
    monkeypatch.setattr(comparison, "_retry_ahead", lambda *a: ahead.append(([o.problem_id for o in a[4]], a[5])))
    monkeypatch.setattr(comparison, "_keep_looks", lambda *a: None)
    monkeypatch.setattr(comparison, "_timed", lambda o, sampled: o)
    settings = {"rescue": {"rollouts": 1, "verify_seconds": 1, "shown": 2}}
    cell = SimpleNamespace(file="c.parquet", name="c")
    arm = SimpleNamespace(version="v")
    made = comparison._compare(cell, settings, None, {"retry": None, "mine": arm}, [4, 8], tmp_path)  # type: ignore[arg-type]
    assert made
    assert ahead == [(["a"], 12)]
    # the first look, then the shown arm, then retry; a retry is worth what a failure costs (30), not what all do
    assert [(who is arm, amount) for who, amount in asked[1:]] == [
        (True, 240),
        (True, 120),
        *((False, 30 * budget) for budget in range(12, 0, -1)),
    ]
    told = written[0]
    assert sorted(told.loc[told["arm"] == "retry", "budget"].unique()) == list(range(1, 13))
    assert sorted(told.loc[told["arm"] == "mine", "budget"].unique()) == [4, 8]


def test_retries_are_decoded_a_quarter_first_and_the_rest_for_what_still_fails() -> None:
    waves: list[list[tuple[str, int]]] = []

    class Shared:
        encode = staticmethod(lambda prompt: [1])
        text = staticmethod(lambda tokens: "")

        def decode(self, requests: list[Any], **how: Any) -> list[Any]:
            assert how == {"sampling": Sampling(0.7, 0.9, 5), "max_tokens": 9}
            waves.append([])
            assert len({r.seed for r in requests}) == len(requests)
            return [SimpleNamespace(tokens=[])] * len(requests)

    class Judge:
        def verify(self, problems: list[str], texts: list[str]) -> list[Any]:
            waves[-1] = sorted((p, problems.count(p)) for p in set(problems))
            return [SimpleNamespace(correct=p == "a" and i == 1) for i, p in enumerate(problems)]

    settings = type("S", (dict,), {"seed": 0})({"sample": asdict(Sampling(0.7, 0.9, 5)) | {"max_tokens": 9}})
    cell = SimpleNamespace(name="c")
    _retry_ahead(Shared(), Judge(), cell, settings, [outcome("a"), outcome("b")], 9)  # type: ignore[arg-type]
    assert waves == [[("a", 2), ("b", 2)], [("b", 7)]]


def test_between_points_a_curve_is_a_line_and_beyond_them_unknown() -> None:
    xs, ys = np.array([[1.0, 3.0, 7.0]] * 6), np.array([[0.0, 1.0, 3.0]] * 6)
    told = _interpolated(np.array([1.0, 2.0, 3.0, 6.0, 7.0, 7.1]), xs, ys)
    np.testing.assert_allclose(told, [0, 0.5, 1, 2.5, 3, np.nan])
    assert np.isnan(_interpolated(np.array([0.9]), xs[:1], ys[:1])).all()


def test_an_arm_is_held_against_retry_at_the_budget_and_at_its_tokens() -> None:
    arms = [("retry", 1), ("retry", 2), ("mine", 1)]
    one = [[0.2, 10.0], [0.4, 20.0], [0.5, 15.0]]
    told = _against_retry(np.array([one] * 9), arms, "mine", 1, 50)
    assert told["solved"] == 0.5 and told["low"] == told["high"] == 0.5 and told["model_tokens"] == 15
    assert told["over_retry"] == pytest.approx(0.3) and told["same_tokens"] == pytest.approx(0.2)
    alone = _against_retry(np.array([one] * 9), arms, "retry", 2, 50)
    assert alone["solved"] == 0.4 and alone["over_retry"] is None and "same_tokens" not in alone
    one[2][1] = 21.0  # more than retry was ever followed to
    assert "same_tokens" not in _against_retry(np.array([one] * 9), arms, "mine", 1, 50)


def test_the_first_rollouts_two_times_are_those_it_took() -> None:
    made: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "replace", lambda o, times: made.append(times))
        _timed(outcome("a", times=[0, 0, 5, 6]), outcome("a", times=[1, 2, 3]))
    assert made == [[1, 2, 5, 6]]


def test_steered_solutions_are_shown_first_then_steered_failures_then_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(name: str, tried: str, by: str | None, failure: Any = True) -> Any:
        attempts = [SimpleNamespace(operator=tried)]
        return outcome(name, attempts=attempts, operator=by, failure=failure, line=lambda: f'{{"id": "{name}"}}')

    steered = comparison.vocabulary.INTERVENTIONS[0]
    rows = [
        one("retried", "retry", "retry"),
        one("unsolved", steered, None),
        one("steered", steered, steered),
        one("right", "retry", None, failure=None),
        one("also", steered, steered),
    ]
    monkeypatch.setattr(comparison, "TIMES", tmp_path / "times")
    _keep_looks(tmp_path / "tables" / "c.parquet", rows, 4)
    lines = (tmp_path / "tables" / "c.jsonl").read_text().splitlines()
    assert lines == [f'{{"id": "{name}"}}' for name in ("steered", "also", "unsolved", "retried")]
    assert (tmp_path / "times" / "c.jsonl").read_text().count('"times"') == 4
    _keep_looks(tmp_path / "tables" / "c.parquet", rows, 1)
    assert (tmp_path / "tables" / "c.jsonl").read_text() == '{"id": "steered"}\n'
