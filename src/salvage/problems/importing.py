"""Rollouts that exist already, from the paper's toolkit or from lm-evaluation-harness, as a rollouts table.

The toolkit's form is JSON Lines with `problem_id`, `rollout_idx`, `generated_text` and, where known, `is_correct`.
The harness's is a ``samples_TASK_DATE.jsonl`` that ``--log_samples`` wrote for a task which generates text.

A rollout's tokens are the row's own `tokens` where it has them, else its text encoded by the specialist's tokenizer.
The two can differ, since a model may spell a text with other tokens than its tokenizer would: bring the ids if you can.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.problems.judging import Judge
from salvage.problems.verifiers import check_answer, verifier
from salvage.project.pool import share
from salvage.tables import schema
from salvage.tables.jsonl import Line, read_lines

Encode = Callable[[str], list[int]]

METRICS = ["exact_match", "acc", "math_verify"]
"""The harness's per-sample metrics that say right (1) or wrong (0), the first that a line has is taken."""


@dataclass(frozen=True)
class _Rollout:
    line: Line
    problem_id: str
    rollout: int
    text: str
    correct: bool | None  # None: to be verified here
    tokens: Any = None  # as the line has them


def import_rollouts(
    path: str | Path,
    problems: pd.DataFrame | None,
    cell: str,
    encode: Encode | None,
    *,
    verifier_name: str = "exact",
    metric_filter: str | None = None,
) -> pd.DataFrame:
    """Read rollouts that exist already; those without a verdict are verified here.

    Parameters
    ----------
    path : str or Path
        A file in either of the two forms; the keys of its first line tell which.
    problems : DataFrame (`schema.PROBLEMS`) or None
        The problems answered. None is for the harness's files alone: `lm_eval_problems` then makes them.
    cell : str
        What to call the specialist on this task.
    encode : callable or None
        The specialist's tokenizer, text to token ids, without special tokens. None: every line must have `tokens`.
    verifier_name : str
        The verifier of the problems that the file itself gives (`problems` is None).
    metric_filter : str, optional
        Which of the harness's filters judges, where the file has the metrics of several.

    Returns
    -------
    DataFrame (`schema.ROLLOUTS`)
        In the file's order. `seed` is -1: it is not known.

    Raises
    ------
    SalvageError
        Naming the file, the line and the column of the first fault; a rollout of no tokens is one.
    """
    path = Path(path)
    lines = list(read_lines(path))
    if _is_lm_eval(lines[0]):
        if problems is None:
            problems = lm_eval_problems(path, verifier_name)
        rollouts = _lm_eval_rollouts(lines, metric_filter)
    else:
        if problems is None:
            raise SalvageError(f"{path} has rollouts but no prompts; give the file of its problems too")
        rollouts = [_toolkit_rollout(line) for line in lines]
    _refuse_strangers(rollouts, set(problems["problem_id"]))
    _refuse_repeats(rollouts)
    rows = [_row(rollout, cell, encode) for rollout in rollouts]
    for row, correct in zip(rows, _verdicts(rollouts, problems), strict=True):
        row["correct"] = correct
    judged = [row for row in rows if row["correct"] is not None]  # else it is neither right nor a failure
    return schema.check(pd.DataFrame(judged), schema.ROLLOUTS, path)


def lm_eval_problems(path: str | Path, verifier_name: str = "exact") -> pd.DataFrame:
    """Return the problems that a harness file itself holds.

    Parameters
    ----------
    path : str or Path
        A ``samples_TASK_DATE.jsonl``. The prompt is the text that the harness gave to the model, the answer is
        `target`, and `problem_id` the document's own, else the harness's `doc_id`.
    verifier_name : str
        The verifier of every problem. GSM8K's target is a worked solution, for which ``numeric`` is the one.

    Returns
    -------
    DataFrame (`schema.PROBLEMS`)
    """
    path = Path(path)
    verifier(verifier_name)
    rows: dict[str, dict[str, str]] = {}
    for line in read_lines(path):
        if not _is_lm_eval(line):
            line.refuse("it is no lm-evaluation-harness sample, which has 'doc_id' and 'resps'")
        row = _lm_eval_problem(line, verifier_name)
        if rows.setdefault(row["problem_id"], row) != row:  # each filter repeats its document
            line.refuse(
                f"problem {row['problem_id']!r} has another prompt or target than before; drop one of the lines"
            )
    return schema.check(pd.DataFrame(rows.values()), schema.PROBLEMS, path)


def _is_lm_eval(line: Line) -> bool:
    if {"doc_id", "resps"} <= line.fields.keys():
        return True
    if {"problem_id", "generated_text"} <= line.fields.keys():
        return False
    line.refuse(
        "rollouts need problem_id, rollout_idx and generated_text, or lm-evaluation-harness's doc_id, target, "
        f"arguments and resps; this line has {', '.join(line.fields) or 'no field'}"
    )


def _toolkit_rollout(line: Line) -> _Rollout:
    index = line.fields.get("rollout_idx")
    if type(index) is not int or index < 0:
        line.refuse(f"column 'rollout_idx' is {json.dumps(index)[:60]}; give a whole number from 0")
    correct = line.fields.get("is_correct")
    if correct is not None and not isinstance(correct, bool):
        line.refuse(f"column 'is_correct' is {json.dumps(correct)[:60]}; write true or false, or leave it out")
    problem_id = line.text("problem_id", numbers=True)
    text = line.text("generated_text", empty=True)
    return _Rollout(line, problem_id, index, text, correct, line.fields.get("tokens"))


def _lm_eval_rollouts(lines: list[Line], metric_filter: str | None) -> list[_Rollout]:
    for line in lines:
        if not _is_lm_eval(line):
            line.refuse("it is no lm-evaluation-harness sample as the first line is; keep one form a file")
    filters = list(dict.fromkeys(str(line.fields.get("filter", "none")) for line in lines))
    if metric_filter is None and len(filters) > 1:
        raise SalvageError(
            f"{lines[0].path} has every sample once for each of the filters {', '.join(filters)}, which may judge "
            "differently; name the one to go by (metric_filter)"
        )
    chosen = metric_filter or filters[0]
    if chosen not in filters:
        raise SalvageError(f"{lines[0].path} has no filter {chosen!r}; it has {', '.join(filters)}")
    kept = [line for line in lines if str(line.fields.get("filter", "none")) == chosen]
    return [rollout for line in kept for rollout in _lm_eval_sample(line)]


def _lm_eval_sample(line: Line) -> list[_Rollout]:
    texts = line.fields["resps"]
    if not isinstance(texts, list) or len(texts) != 1 or not isinstance(texts[0], list) or not texts[0]:
        line.refuse("column 'resps' must be a list of one list of texts; only tasks that generate text can be imported")
    if not all(isinstance(text, str) for text in texts[0]):
        line.refuse("column 'resps' holds log-likelihoods, not text; only tasks that generate text can be imported")
    problem_id = _lm_eval_id(line)
    correct = _metric(line) if len(texts[0]) == 1 else None  # over several responses a metric is their mean or vote
    return [_Rollout(line, problem_id, index, text, correct) for index, text in enumerate(texts[0])]


def _metric(line: Line) -> bool | None:
    name = next((name for name in METRICS if line.fields.get(name) is not None), None)
    if name is None:
        return None
    value = line.fields[name]
    if value not in (0, 1):
        line.refuse(f"column {name!r} is {json.dumps(value)[:60]}, neither 0 nor 1; drop it to have the text verified")
    return bool(value)


def _lm_eval_id(line: Line) -> str:
    doc = line.fields.get("doc")
    if isinstance(doc, dict) and doc.get("problem_id") is not None:
        return Line(line.path, line.number, doc).text("problem_id", numbers=True)
    return line.text("doc_id", numbers=True)


def _lm_eval_problem(line: Line, verifier_name: str) -> dict[str, str]:
    task = re.match(r"samples_(.+?)_\d{4}-\d\d-\d\dT", line.path.name)
    answer = line.text("target", numbers=True, empty=True)
    try:
        check_answer(verifier_name, answer)
    except SalvageError as error:
        line.refuse(f"column 'target': {error}", error)
    return {
        "problem_id": _lm_eval_id(line),
        "task": task[1] if task else line.path.stem,
        "prompt": _lm_eval_prompt(line),
        "answer": answer,
        "verifier": verifier_name,
        "metadata": "{}",
    }


def _lm_eval_prompt(line: Line) -> str:
    # two layouts: [[prompt, settings]] in memory and of old, {"gen_args_0": {"arg_0": prompt, ...}} since 0.4.3
    prompt = line.fields.get("arguments")
    for key in ("gen_args_0", "arg_0"):
        if isinstance(prompt, dict):
            prompt = prompt.get(key)
        elif isinstance(prompt, list) and prompt:
            prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt.strip():
        line.refuse("column 'arguments' has no prompt's text (chat messages?); give the file of the problems too")
    return prompt


def _refuse_strangers(rollouts: list[_Rollout], known: set[str]) -> None:
    for rollout in rollouts:
        if rollout.problem_id not in known:
            rollout.line.refuse(
                f"problem {rollout.problem_id!r} is not among the problems; add it there or drop the line"
            )


def _refuse_repeats(rollouts: list[_Rollout]) -> None:
    seen: dict[tuple[str, int], int] = {}
    for rollout in rollouts:
        first = seen.setdefault((rollout.problem_id, rollout.rollout), rollout.line.number)
        if first != rollout.line.number:
            rollout.line.refuse(
                f"rollout {rollout.rollout} of problem {rollout.problem_id!r} stands in line {first} already; "
                "number it anew or drop one"
            )


def _row(rollout: _Rollout, cell: str, encode: Encode | None) -> dict[str, Any]:
    tokens = _tokens(rollout, encode)
    if not tokens:
        rollout.line.refuse(
            f"rollout {rollout.rollout} of problem {rollout.problem_id!r} has no tokens, and so no signal; drop it"
        )
    return {
        "cell": cell,
        "problem_id": rollout.problem_id,
        "rollout": rollout.rollout,
        "tokens": np.asarray(tokens, dtype=np.int32),
        "text": rollout.text,
        "n_tokens": len(tokens),
        "seed": -1,
    }


def _tokens(rollout: _Rollout, encode: Encode | None) -> list[int]:
    own = rollout.tokens
    if own is None and encode is None:
        rollout.line.refuse("column 'tokens' is missing; give it, or the specialist's tokenizer")
    if own is None:
        return [int(token) for token in encode(rollout.text)] if encode else []
    if not isinstance(own, list) or not all(type(token) is int and 0 <= token < 2**31 for token in own):
        rollout.line.refuse("column 'tokens' must be a list of token ids, whole numbers from 0; correct it")
    return own


def _verdicts(rollouts: list[_Rollout], problems: pd.DataFrame) -> list[bool | None]:
    unknown = [i for i, rollout in enumerate(rollouts) if rollout.correct is None]
    verdicts = [rollout.correct for rollout in rollouts]
    with Judge(problems, workers=share()) as judge:
        found = judge.verify([rollouts[i].problem_id for i in unknown], [rollouts[i].text for i in unknown])
    for i, verdict in zip(unknown, found, strict=True):
        verdicts[i] = verdict.correct
    troubles = [(i, verdict.trouble) for i, verdict in zip(unknown, found, strict=True) if verdict.correct is None]
    if troubles:
        i, trouble = troubles[0]
        if len(troubles) == len(rollouts):
            rollouts[i].line.refuse(f"no rollout has a verdict: {trouble}; correct that")
        warnings.warn(
            f"{rollouts[i].line.path}: {len(troubles)} of {len(rollouts)} rollouts have no verdict and are left out; "
            f"the first, line {rollouts[i].line.number}: {trouble}",
            stacklevel=2,
        )
    return verdicts
