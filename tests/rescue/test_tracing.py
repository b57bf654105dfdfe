"""Traces of the closed loop in a store of MLflow's own: what a trace holds, and which problems get one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import SpanType

from salvage.project import tracking
from salvage.rescue import tracing
from salvage.rescue.loop import Attempt, Outcome

LOOK = {
    "tokens": list("1+2=4"),
    "j": [0.0, 0.2, 0.0, 0.1, 3.0],
    "junction": 4,
    "alternatives": {"specialist": [["4", 0.6], ["3", 0.4]], "ancestor": [["3", 0.8], ["4", 0.2]]},
    "features": {"spread": 0.6, "concentration": 1.2, "logit_dispersion": -0.5},
}
WHY = {"policy": "portfolio", "operator": "dense_steer", "margin": 1.25, "regime": {"steerable-hard": 0.7}}
T = 10**18
TIMES = [
    ("sample", T, T + 5),
    ("verify", T + 5, T + 6),
    ("score", T + 6, T + 9),
    ("route", T + 10, T + 11),
    ("intervene", T + 11, T + 18),
    ("verify", T + 18, T + 19),
]


def outcome(**changes: Any) -> Outcome:
    told: dict[str, Any] = {
        "cell": "a|digits",
        "problem_id": "p1",
        "prompt": "1+2:",
        "reference": "3",
        "status": "solved",
        "answer": "1+2=3",
        "operator": "dense_steer",
        "attempts": [Attempt("sample", False, 5, -1, "1+2=4"), Attempt("dense_steer", True, 10, 2, "1+2=3")],
        "model_tokens": 15,
        "scored_tokens": 18,
        "why": WHY,
        "failure": LOOK,
        "times": TIMES,
    }
    return Outcome(**(told | changes))


@pytest.fixture()
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLflow write into a folder: a database would take seconds to make."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    tracking.connect()


def traced(told: Outcome) -> tuple[Any, dict[str, Any]]:
    """Return a trace as it is stored, and its spans by the order of their start, numbered from the root."""
    found = mlflow.get_trace(tracing.trace(told))
    assert found is not None
    root = next(span for span in found.data.spans if span.parent_id is None)
    rest = [span for span in found.data.spans if span.parent_id is not None]
    assert {span.parent_id for span in rest} == {root.span_id}
    return found, dict(enumerate([root, *sorted(rest, key=lambda span: (span.start_time_ns, span.end_time_ns))]))


def told_of(span: Any) -> dict[str, Any]:
    """Return what a span was given beside its inputs and outputs."""
    return {name: value for name, value in span.attributes.items() if not name.startswith("mlflow.")}


def test_a_trace_tells_what_was_done_and_why(store: None) -> None:
    trace, spans = traced(outcome())
    assert {"salvage.status": "solved", "salvage.cell": "a|digits"}.items() <= trace.info.tags.items()
    assert [(s.name, s.span_type, s.start_time_ns - T, s.end_time_ns - T) for s in spans.values()] == [
        ("rescue p1", SpanType.CHAIN, 0, 19),
        ("sample", SpanType.LLM, 0, 5),
        ("verify", SpanType.EVALUATOR, 5, 6),
        ("score", SpanType.PARSER, 6, 9),
        ("route", SpanType.TOOL, 10, 11),
        ("intervene: dense_steer", SpanType.LLM, 11, 18),
        ("verify", SpanType.EVALUATOR, 18, 19),
    ]
    scores = {
        "spread": 0.6, "concentration": 1.2, "logit_dispersion": -0.5, "junction": 4, "junction_token": "4",
        "tokens": 5, "scored_tokens": 18, "j_max": 3.0,
        "specialist would say": [["4", 0.6], ["3", 0.4]], "ancestor would say": [["3", 0.8], ["4", 0.2]],
    }  # fmt: skip
    right, wrong = {"completion": "1+2=3"}, {"completion": "1+2=4"}
    assert [(s.inputs, s.outputs, told_of(s)) for s in spans.values()] == [
        (
            {"problem": "1+2:", "answer": "3"},
            {"status": "solved", "completion": "1+2=3"},
            {"cell": "a|digits", "policy": "portfolio", "status": "solved", "operator": "dense_steer", "attempts": 2,
             "regime": {"steerable-hard": 0.7}, "model_tokens": 15, "scored_tokens": 18},
        ),
        ({"problem": "1+2:"}, wrong, {"operator": "sample", "model_tokens": 5, "position": -1}),
        (wrong, {"correct": False}, {"correct": "False", "reference": "3"}),
        (wrong, scores, scores),
        (LOOK["features"], WHY, WHY),
        ({"problem": "1+2:"}, right, {"operator": "dense_steer", "model_tokens": 10, "position": 2}),
        (right, {"correct": True}, {"correct": "True", "reference": "3"}),
    ]  # fmt: skip


def test_a_retry_that_nobody_asked_for_knows_no_policy(store: None) -> None:
    attempts = [Attempt("sample", False, 5, -1, "a"), Attempt("retry", None, 6, -1, "b")]
    told = outcome(status="unverified", answer=None, operator=None, attempts=attempts, why={}, failure={},
                   trouble="it broke", times=[*TIMES[:2], *TIMES[4:]])  # fmt: skip
    _, spans = traced(told)
    about = told_of(spans[0])
    assert (about["policy"], about["operator"], about["regime"], about["attempts"]) == ("retry", "none", {}, 2)
    assert spans[0].outputs == {"status": "unverified", "completion": None}
    assert [s.name for s in spans.values()][1:] == ["sample", "verify", "intervene: retry", "verify"]
    assert told_of(spans[2]) == {"correct": "False", "reference": "3"}  # this one had its verdict
    assert told_of(spans[4]) == {"correct": "None", "reference": "3", "trouble": "it broke"}


def test_a_failure_without_a_look_has_scores_of_its_own_nowhere() -> None:
    told = list(tracing.spans(outcome(failure={})))
    assert told[2] == ("score", T + 6, T + 9, {"completion": "1+2=4"}, {}, {})
    assert told[3] == ("route", T + 10, T + 11, {}, WHY, WHY)


def test_what_was_done_before_a_job_was_resumed_takes_no_time(store: None) -> None:
    before = [(name, 0, 0) for name, *_ in TIMES[:4]]
    _, spans = traced(outcome(times=before + TIMES[4:]))
    assert (spans[0].start_time_ns, spans[0].end_time_ns) == (T + 11, T + 19)
    known = [(s.name, s.start_time_ns - T, s.end_time_ns - T) for s in spans.values()]
    assert sorted(known[1:5]) == [(name, 11, 11) for name in ("route", "sample", "score", "verify")]
    assert known[5:] == [("intervene: dense_steer", 11, 18), ("verify", 18, 19)]
    assert tracing.trace(outcome(times=before)) == ""  # all of it was


def test_the_share_that_is_traced_is_the_same_in_every_run() -> None:
    some = [outcome(problem_id=f"p{i}") for i in range(400)]
    chosen = [tracing.chosen(o, 0.25) for o in some]
    assert chosen == [tracing.chosen(o, 0.25) for o in some] and 60 < sum(chosen) < 140
    assert all(tracing.chosen(o, 1.0) for o in some) and not any(tracing.chosen(o, 0.0) for o in some)
    half = [tracing.chosen(o, 0.5) for o in some]
    assert 160 < sum(half) < 240 and not any(few and not more for few, more in zip(chosen, half, strict=True))
    assert chosen != [tracing.chosen(outcome(problem_id=o.problem_id, cell="b|digits"), 0.25) for o in some]
