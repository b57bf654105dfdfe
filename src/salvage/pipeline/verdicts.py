"""Verdicts of the stages: completions without one are kept apart, and where none is right a run stops with advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from salvage.errors import SalvageError
from salvage.problems import agreement
from salvage.problems.formats import Record
from salvage.problems.judging import Verdict
from salvage.project.settings import DATA, LAB_PROBLEMS, Cell, Settings, problem_file
from salvage.reports.words import MEANING
from salvage.tables import schema
from salvage.tables.files import whole_lines, write_text

ENOUGH = 100  # rollouts of which none is right, to stop without knowing a better verifier
FEW = 0.01  # share of the rollouts that are right, below which other verifiers are tried
MANY = 0.05  # share that another one would accept, from which on it is not the problems that are hard
SHOWN = 3  # texts beside their answers


class Unverified:
    """Completions of a table that have no verdict, a line of JSON each, in a file beside it that is there where any is.

    Parameters
    ----------
    table : Path
        The table's file.
    mark : str
        Its fingerprint; what was written for another one goes.
    """

    def __init__(self, table: Path, mark: str) -> None:
        self.path, self._mark = beside(table), mark
        lines = _lines(self.path)
        if lines and lines[0] != {"mark": mark}:
            self.path.unlink()

    def note(self, keys: list[dict[str, Any]], texts: list[str], verdicts: list[Verdict]) -> None:
        """Write down those of a shard that have no verdict; one that was noted before a kill is noted once."""
        found = {
            json.dumps(key): {**key, "text": text, "trouble": verdict.trouble}
            for key, text, verdict in zip(keys, texts, verdicts, strict=True)
            if verdict.correct is None
        }
        if found:
            names = keys[0].keys()
            known = {json.dumps({name: line[name] for name in names}): line for line in _lines(self.path)[1:]}
            lines = [{"mark": self._mark}, *(known | found).values()]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in whole_lines(path)] if path.exists() else []


def beside(table: Path) -> Path:
    """Return where completions of a table without a verdict are written down."""
    return table.with_suffix(".unverified.jsonl")


def unverified(table: Path) -> list[dict[str, Any]]:
    """Return the completions of a table that have no verdict."""
    return _lines(beside(table))[1:]


def counted() -> dict[str, int]:
    """Return how many rollouts and attempts of this project have no verdict, where any has none."""
    counts = {
        folder: sum(len(_lines(path)) - 1 for path in (DATA / folder).glob("*.unverified.jsonl"))
        for folder in ("rollouts", "attempts")
    }
    return {folder: n for folder, n in counts.items() if n}


def keep(table: Path, none: list[tuple[Record, Verdict]]) -> None:
    """Write down those of a table that was imported, in place of what was there."""
    beside(table).unlink(missing_ok=True)
    keys = [{"problem_id": record.problem_id, "rollout": record.rollout} for record, _ in none]
    Unverified(table, "").note(keys, [record.text for record, _ in none], [verdict for _, verdict in none])


def tell(stage: str, folder: str, settings: Settings) -> None:
    """Say of each cell how many completions have no verdict, and the first one's trouble."""
    for cell in settings.cells:
        path = DATA / folder / cell.file
        if lines := unverified(path):
            first = lines[0]
            print(
                f"{stage}: {cell.name}: {len(lines):,} without a verdict, {MEANING[folder]} (in {beside(path)}); "
                f"the first, of problem {first['problem_id']!r}: {first['trouble']}",
                flush=True,
            )


# ------------------------------------------------------------------ nothing is right


def refuse_none_right(settings: Settings) -> None:
    """Stop where no rollout of a cell is right, or almost none while another verifier would accept many.

    None is 0 of 100 or more, or all without a verdict; almost none is less than 1 in 100, and many is 5
    in 100 of the texts that were tried. The lab's cells are left out: its verifier is its task's own.

    Raises
    ------
    SalvageError
        With three texts beside their answers, what other verifiers would accept, and how to go on all the same.
    """
    if settings.raw["allow_none_right"]:
        return
    for cell in settings.cells:
        if cell.problems != LAB_PROBLEMS:
            _refuse(cell, settings)


def _refuse(cell: Cell, settings: Settings) -> None:
    path = DATA / "rollouts" / cell.file
    rollouts, none = schema.read(path, schema.ROLLOUTS), unverified(path)
    right, count = int(rollouts["correct"].sum()), len(rollouts) + len(none)
    if not count or right >= FEW * count:
        return
    problems = schema.read(problem_file(cell.problems), schema.PROBLEMS)
    failed = rollouts[~rollouts["correct"]]
    ids = [*failed["problem_id"], *(line["problem_id"] for line in none)]
    texts = [*failed["text"], *(line["text"] for line in none)]
    found = agreement.compare(problems, ids, texts, seconds=settings["rescue"]["verify_seconds"])
    own = set(problems["verifier"])
    others = [tried for tried in found if tried.verifier not in own]
    if (right or count < ENOUGH) and len(rollouts) and not any(tried.share >= MANY for tried in others):
        return
    raise SalvageError(
        f"sample: cell {cell.name!r}: {right} of {count} right by the verifier {' and '.join(sorted(own))}"
        f"{_without(none)}. {_advice(others)}",
        *_shown(problems, ids, texts),
        "Name another verifier in "
        f"{cell.problems}, or correct its answers; where the problems are that hard, set allow_none_right: true in "
        "params.yaml and run again: nothing is sampled twice",
    )


def _without(none: list[dict[str, Any]]) -> str:
    return f", {len(none)} without a verdict ({none[0]['trouble']})" if none else ""


def _advice(others: list[agreement.Agreement]) -> str:
    told = ", ".join(f"{tried.verifier} {tried.agree}" for tried in others)
    return (
        f"Of {others[0].tried} of the other texts would be accepted: by {told}. The texts end:"
        if others
        else "The texts end:"
    )


def _shown(problems: pd.DataFrame, ids: list[str], texts: list[str]) -> list[str]:
    answers = dict(zip(problems["problem_id"], problems["answer"], strict=True))
    first = {problem_id: text for problem_id, text in reversed(list(zip(ids, texts, strict=True)))}
    chosen = sorted(first, key=ids.index)[:SHOWN]
    return [f"  {agreement.told(p, answers[p], first[p])}" for p in chosen]
