"""MLflow traces of the closed loop: a trace a problem, a span for each thing that was done for it.

Traces are made from outcomes, after the fact and with the times that were taken: the loop itself knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlflow
from mlflow.entities import SpanType

from salvage.engine.base import seed_of
from salvage.rescue.loop import Outcome

KINDS = {"sample": SpanType.LLM, "intervene": SpanType.LLM, "verify": SpanType.EVALUATOR, "score": SpanType.PARSER}


def chosen(outcome: Outcome, share: float) -> bool:
    """Tell whether a problem is among the share that is traced; the same problems in every run."""
    return seed_of("trace", outcome.cell, outcome.problem_id) < share * 2**63


def trace(outcome: Outcome) -> str:
    """Log a problem's way as a trace of the experiment; return its id."""
    known = [time for time in outcome.times if time[1]]
    if not known:
        return ""  # all of it was done before the job was resumed
    first, last = known[0][1], known[-1][2]
    root = mlflow.start_span_no_context(
        f"rescue {outcome.problem_id}",
        span_type=SpanType.CHAIN,
        inputs={"problem": outcome.prompt, "answer": outcome.reference},
        attributes=_about(outcome),
        tags={"salvage.status": outcome.status, "salvage.cell": outcome.cell},
        start_time_ns=first,
    )
    for name, start, end, inputs, outputs, attributes in spans(outcome):
        span = mlflow.start_span_no_context(
            name,
            span_type=KINDS.get(name.partition(":")[0], SpanType.TOOL),
            parent_span=root,
            inputs=inputs,
            attributes=attributes,
            start_time_ns=start or first,
        )
        span.end(outputs=outputs, end_time_ns=end or first)
    root.end(outputs={"status": outcome.status, "completion": outcome.answer}, end_time_ns=last)
    return str(root.trace_id)


def _about(outcome: Outcome) -> dict[str, Any]:
    return {
        "cell": outcome.cell,
        "policy": outcome.why.get("policy", "retry"),
        "status": outcome.status,
        "operator": outcome.operator or "none",
        "regime": outcome.why.get("regime", {}),
        "attempts": len(outcome.attempts),
        "model_tokens": outcome.model_tokens,
        "scored_tokens": outcome.scored_tokens,
    }


def spans(outcome: Outcome) -> Iterable[tuple[str, int, int, Any, Any, dict[str, Any]]]:
    """Yield name, start, end, inputs, outputs and attributes of everything that was done for a problem, in order."""
    attempts = iter(outcome.attempts)
    attempt = outcome.attempts[0]
    for name, start, end in outcome.times:
        if name in ("sample", "intervene"):
            attempt = next(attempts)
            about = {"operator": attempt.operator, "model_tokens": attempt.model_tokens, "position": attempt.position}
            title = name if name == "sample" else f"intervene: {attempt.operator}"
            yield title, start, end, {"problem": outcome.prompt}, {"completion": attempt.text}, about
        elif name == "verify":
            yield (
                name,
                start,
                end,
                {"completion": attempt.text},
                {"correct": attempt.correct},
                _verdict(outcome, attempt),
            )
        elif name == "score":
            told = _scores(outcome)
            yield name, start, end, {"completion": attempt.text}, told, told
        else:
            yield name, start, end, outcome.failure.get("features", {}), outcome.why, outcome.why


def _verdict(outcome: Outcome, attempt: Any) -> dict[str, Any]:
    trouble = {"trouble": outcome.trouble} if attempt.correct is None else {}
    return {"correct": str(attempt.correct), "reference": outcome.reference, **trouble}


def _scores(outcome: Outcome) -> dict[str, Any]:
    look = outcome.failure
    if not look:
        return {}
    told = look["features"] | {"junction": look["junction"], "junction_token": look["tokens"][look["junction"]]}
    told |= {"tokens": len(look["tokens"]), "scored_tokens": outcome.scored_tokens, "j_max": max(look["j"])}
    return told | {f"{name} would say": some for name, some in look["alternatives"].items()}
