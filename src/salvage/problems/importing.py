"""Rollouts that exist already, in any of the forms of `formats.py`, as a rollouts table.

A rollout's tokens are the row's own where it has them, else its text encoded by the specialist's tokenizer. The two can
differ, since a model may spell a text with other tokens than its tokenizer would: bring the ids if you can.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.problems import agreement, chat
from salvage.problems.agreement import Agreement
from salvage.problems.formats import NONE, Record
from salvage.problems.judging import Judge, Verdict
from salvage.problems.sets import as_table, problem
from salvage.project.pool import share
from salvage.tables import schema
from salvage.tables.jsonl import Line

WRONGLY = 3  # texts of a kind, right or wrong, that a verifier must judge otherwise to be refused for that kind alone


@dataclass(frozen=True)
class Tokenizer:
    """The specialist's: text to token ids, without special tokens, and the token that ends a completion."""

    encode: Callable[[str], list[int]]
    end: int | None = None


@dataclass(frozen=True)
class Imported:
    """A file's rollouts as a table (`schema.ROLLOUTS`), in the file's order, and what is not in it.

    Attributes
    ----------
    table : DataFrame
        `seed` is -1: it is not known. A text that is known to have ended has the end token.
    unverified : list of (Record, Verdict)
        The rollouts that have no verdict: neither right nor failures.
    agreement : Agreement or None
        How the file's own verdicts agree with the problems' verifiers; None where it has none.
    """

    table: pd.DataFrame
    unverified: list[tuple[Record, Verdict]]
    agreement: Agreement | None

    def told(self) -> str:
        """Say how many rollouts there are, and whose verdicts they have."""
        parts = [f"{len(self.table)} rollouts of {self.table['problem_id'].nunique()} problems"]
        if self.unverified:
            parts.append(f"{len(self.unverified)} without a verdict, left out")
        if self.agreement:
            known = self.agreement
            parts.append(f"the file's own verdicts, {known.agree} of {known.tried} as the verifier {known.verifier}'s")
        return "; ".join(parts)


def import_rollouts(
    records: list[Record],
    problems: pd.DataFrame,
    cell: str,
    tokenizer: Tokenizer | None,
    *,
    limit: int = 0,
    seconds: float = 10.0,
) -> Imported:
    """Turn the rollouts of a file into a table; those without a verdict are verified here.

    A file's own verdicts are held against the verifiers that later attempts will be judged by.

    Parameters
    ----------
    records : list of Record
        As `formats.records` reads them.
    problems : DataFrame (`schema.PROBLEMS`)
        The problems answered: one's own, or `file_problems`. A record that names none belongs to the one whose prompt
        it has, or whose prompt alone its own contains.
    cell : str
        What to call the specialist on this task.
    tokenizer : Tokenizer or None
        None: every record must have `tokens`.

    limit : int
        Take the rollouts of the first so many problems alone; 0: of all.
    seconds : float
        How long a verifier may take for one text.

    Raises
    ------
    SalvageError
        Naming the file, the line and the column of the first fault; a rollout of no tokens is one, and verdicts that
        mostly disagree with the verifiers.
    """
    records = _numbered(_placed(records, problems))
    problems = problems.head(limit or len(problems))
    records = _of_problems(records, problems)
    rows = [_row(record, cell, tokenizer) for record in records]
    compared = _held(records, problems, seconds)
    verdicts = _verdicts(records, problems, seconds)
    for row, verdict in zip(rows, verdicts, strict=True):
        row["correct"] = verdict.correct
    unknown = sum(record.ended is None and record.tokens is None for record in records)
    if unknown:
        warnings.warn(
            f"{unknown} of {len(records)} rollouts do not say whether they ended, so they have no end token, and its "
            "signals are missing; bring `finish_reason` or tokens if you can",
            stacklevel=2,
        )
    if any(record.ended is not None for record in records):
        for row, record in zip(rows, records, strict=True):
            row["truncated"] = record.ended is False
    judged = [row for row in rows if row["correct"] is not None]  # else it is neither right nor a failure
    table = schema.check(pd.DataFrame(judged), schema.ROLLOUTS, records[0].line.path)
    none = [pair for pair in zip(records, verdicts, strict=True) if pair[1].correct is None]
    return Imported(table, none, compared)


def file_problems(records: list[Record], verifier_name: str = "exact") -> pd.DataFrame:
    """Return the problems that a file of rollouts itself holds.

    Parameters
    ----------
    verifier_name : str
        The verifier of every problem. GSM8K's target is a worked solution, for which ``numeric`` is the one.

    Returns
    -------
    DataFrame (`schema.PROBLEMS`)
        `problem_id` is the file's own, else made of the prompt.

    Raises
    ------
    SalvageError
        Where the file holds no prompts or no answers, or a problem twice with another of them.
    """
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        for name, value in (("prompt", record.prompt), ("answer", record.answer)):
            if value is None:
                record.line.refuse(f"it has rollouts but no {name}s; give the file of its problems too (--problems)")
        row = problem(_as_problem(record, verifier_name))
        if rows.setdefault(row["problem_id"], row) != row:  # each filter, epoch or repeat has its problem again
            record.line.refuse(
                f"problem {row['problem_id']!r} has another prompt or target than before; drop one of the lines"
            )
    return as_table(list(rows.values()), records[0].line.path)


def _as_problem(record: Record, verifier_name: str) -> Line:
    """Return a record's problem as a line of a problem file."""
    fields = {
        "problem_id": record.problem_id or _id(record.prompt),
        "task": record.task or record.line.path.stem,
        "messages" if isinstance(record.prompt, list) else "prompt": record.prompt,
        "answer": record.answer,
        "verifier": verifier_name,
    }
    line = type(record.line)(record.line.path, record.line.number, fields)
    return line


def _id(prompt: Any) -> str:
    """Return a name for a problem that has none."""
    return hashlib.blake2b(json.dumps(prompt).encode(), digest_size=6).hexdigest()


# ------------------------------------------------------------------ which problem, which number


def _placed(records: list[Record], problems: pd.DataFrame) -> list[Record]:
    """Return the records with the problem of each."""
    known = dict.fromkeys(problems["problem_id"])
    by_prompt = {chat.question(row): str(row["problem_id"]) for row in problems.to_dict("records")}
    return [replace(record, problem_id=_problem_of(record, known, by_prompt)) for record in records]


def _problem_of(record: Record, known: dict[str, None], by_prompt: dict[str, str]) -> str:
    if record.problem_id in known:
        return record.problem_id
    several = re.fullmatch(r"(.+)[-_:/.#]\d+", record.problem_id)  # of a batch, whose ids must differ
    if several and several[1] in known:
        return several[1]
    if record.problem_id and record.prompt is None:
        record.line.refuse(f"problem {record.problem_id!r} is not among the problems; add it there or drop the line")
    own = record.problem_id or _id(record.prompt)
    if own in known:
        return own
    text = record.prompt[-1]["content"] if isinstance(record.prompt, list) and record.prompt else record.prompt
    if text in by_prompt:
        return by_prompt[text]
    inside = [name for prompt, name in by_prompt.items() if isinstance(text, str) and prompt in text]
    if len(inside) != 1:
        told = "is not among the problems" if not inside else f"holds the prompts of {len(inside)} problems"
        named = f"problem {record.problem_id!r}" if record.problem_id else f"the prompt {str(text)[:60]!r}"
        record.line.refuse(f"{named} {told}; add it there or drop the line")
    return inside[0]


def _numbered(records: list[Record]) -> list[Record]:
    """Number the rollouts that have no number, in the file's order, and refuse a number that stands twice."""
    seen: dict[tuple[str, int], Line] = {}
    next_one: dict[str, int] = defaultdict(int)
    numbered = []
    for record in records:
        name = record.problem_id
        number = next_one[name] if record.rollout is None else record.rollout
        if (name, number) in seen:
            first = seen[name, number]
            record.line.refuse(
                f"rollout {number} of problem {name!r} stands in {first.kind} {first.number} already; "
                "number it anew or drop one"
            )
        seen[name, number] = record.line
        next_one[name] = max(next_one[name], number + 1)
        numbered.append(replace(record, rollout=number))
    return numbered


def _of_problems(records: list[Record], problems: pd.DataFrame) -> list[Record]:
    """Return the records of some problems."""
    known = set(problems["problem_id"])
    some = [record for record in records if record.problem_id in known]
    if not some:
        raise SalvageError(
            f"{records[0].line.path} has no rollout of the first {len(problems)} problems; raise --limit"
        )
    return some


# ------------------------------------------------------------------ tokens, verdicts


def _row(record: Record, cell: str, tokenizer: Tokenizer | None) -> dict[str, Any]:
    tokens = _tokens(record, tokenizer)
    if not tokens:
        record.line.refuse(
            f"rollout {record.rollout} of problem {record.problem_id!r} has no tokens, and so no signal; drop it"
        )
    return {
        "cell": cell,
        "problem_id": record.problem_id,
        "rollout": record.rollout,
        "tokens": np.asarray(tokens, dtype=np.int32),
        "text": record.text,
        "n_tokens": len(tokens),
        "seed": -1,
    }


def _tokens(record: Record, tokenizer: Tokenizer | None) -> list[int]:
    own = record.tokens
    if own is None and tokenizer is None:
        record.line.refuse("column 'tokens' is missing; give it, or the specialist's tokenizer (--tokenizer)")
    if own is None:
        assert tokenizer is not None
        tokens = [int(token) for token in tokenizer.encode(record.text)]
        return [*tokens, tokenizer.end] if record.ended and tokenizer.end is not None else tokens
    if not isinstance(own, list) or not all(type(token) is int and 0 <= token < 2**31 for token in own):
        record.line.refuse("column 'tokens' must be a list of token ids, whole numbers from 0; correct it")
    return own


def _held(records: list[Record], problems: pd.DataFrame, seconds: float) -> Agreement | None:
    """Hold the file's own verdicts against the problems' verifiers, and refuse them where they mostly disagree.

    That is where less than half agree; or less than half of those that are right, or wrong, in the file: of 90 wrong
    and 10 right ones, a verifier that accepts nothing agrees on 90.
    """
    known = [record.correct for record in records]
    if all(verdict is None for verdict in known):
        return None
    ids, texts = [record.problem_id for record in records], [record.text for record in records]
    found = agreement.own(problems, ids, texts, known, seconds=seconds, workers=share())
    if not found.others:
        return found
    first = records[found.others[0]]
    answer = str(problems.set_index("problem_id")["answer"][first.problem_id])
    names = [name for name in agreement.candidates(problems) if name != found.verifier]
    others = agreement.compare(problems, ids, texts, known, names=names, seconds=seconds)
    others = [other for other in others if other.share > found.share and not _takes_none(other, known)]
    told = (
        f"{first.line.path}: the verifier {found.verifier} agrees with the file's own verdicts on {found.agree} of "
        f"{found.tried} rollouts ({_percent(found)}), {_also(others)}; the first of the others, "
        f"{first.line.kind} {first.line.number}, is {'right' if first.correct else 'wrong'} in the file: "
        f"{agreement.told(first.problem_id, answer, first.text)}"
    )
    if _mostly(found, known):
        raise SalvageError(
            f"{told}; later attempts would be judged otherwise than these: name another verifier (in the problem file, "
            f"or --verifier), or another of the file's verdicts (--metric), or have every text verified here "
            f"(--metric {NONE})"
        )
    warnings.warn(told, stacklevel=3)
    return found


def _mostly(found: Agreement, known: list[bool | None]) -> bool:
    """Tell whether a verifier disagrees on most of the texts, or of the right ones, or of the wrong ones."""
    if found.share < 0.5:
        return True
    counts = [
        (sum(known[i] is kind for i in found.others), sum(known[i] is kind for i in found.at)) for kind in (True, False)
    ]
    return any(lost >= WRONGLY and 2 * lost > n for lost, n in counts)


def _percent(found: Agreement) -> str:
    return "less than 1%" if 0 < found.share < 0.01 else f"{int(100 * found.share)}%"  # never 100% where one differs


def _takes_none(other: Agreement, known: list[bool | None]) -> bool:
    """Tell whether a verifier accepts none of the right texts: where most are wrong, it agrees on many all the same."""
    right = {i for i in other.at if known[i]}
    return bool(right) and right <= set(other.others)


def _also(others: list[Agreement]) -> str:
    if not others:
        return "and no other verifier on more"
    return ", ".join(f"{other.verifier} on {other.agree} of {other.tried}" for other in others)


def _verdicts(records: list[Record], problems: pd.DataFrame, seconds: float) -> list[Verdict]:
    unknown = [i for i, record in enumerate(records) if record.correct is None]
    verdicts = [Verdict(record.correct) for record in records]
    with Judge(problems, seconds=seconds, workers=share()) as judge:
        found = judge.verify([records[i].problem_id for i in unknown], [records[i].text for i in unknown])
    for i, verdict in zip(unknown, found, strict=True):
        verdicts[i] = verdict
    none = [i for i, verdict in enumerate(verdicts) if verdict.correct is None]
    if none:
        line, trouble = records[none[0]].line, verdicts[none[0]].trouble
        if len(none) == len(records):
            line.refuse(f"no rollout has a verdict: {trouble}; correct that")
        warnings.warn(
            f"{line.path}: {len(none)} of {len(records)} rollouts have no verdict and are left out; the first, "
            f"{line.kind} {line.number}, of problem {records[none[0]].problem_id!r}: {trouble}",
            stacklevel=3,
        )
    return verdicts
