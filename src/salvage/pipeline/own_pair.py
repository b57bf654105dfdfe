"""One's own pair as an entry of `cells` in params.yaml: which pair it is, and what it is called there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from salvage.errors import SalvageError
from salvage.problems.sets import parted, whole
from salvage.project.settings import adapter_base

PAIR = ("specialist", "ancestor", "problems")  # what makes one pair another
MODELS = PAIR[:2]
ABOUT = {"method": "unknown", "seed": 0, "family": "own"}


def own_pair(
    specialist: str | None,
    ancestor: str | None,
    problems: str | None,
    engine: str | None = None,
    name: str | None = None,
) -> dict[str, Any] | None:
    """Return the entry that one's own pair makes, None where no pair was given; what was not said is left empty."""
    ancestor = ancestor or adapter_base(specialist or "")
    given = {"specialist": specialist, "ancestor": ancestor, "problems": problems}
    missing = [key for key, value in given.items() if not value]
    if len(missing) == len(given):
        if name:
            raise SalvageError(
                "--name is for a pair of one's own; give --specialist, --ancestor and --problems with it"
            )
        return None
    if missing:
        raise SalvageError(f"{missing[0]} is missing; one's own pair needs specialist, ancestor and problems together")
    file = parted(str(problems))[0]
    if file.endswith(".jsonl") and not Path(file).exists():
        raise SalvageError(f"{problems}: there is no such problem file; correct --problems")
    return {"name": name or "", **given, **ABOUT, "engine": engine or ""}


def with_pair(cells: Sequence[Mapping[str, Any]], pair: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Return the entries with a pair among them: a new one at the end, one that is there with the limit of this one.

    Raises
    ------
    SalvageError
        Where the pair has another name there, or another pair has the name.
    """
    known = [dict(cell) for cell in cells]
    there = next((cell for cell in known if same(cell, pair, PAIR)), None)
    if there is None:
        return [*known, {**pair, "name": called(known, pair, path), "engine": pair["engine"] or "auto"}]
    if pair["name"] and pair["name"] != there["name"]:
        raise SalvageError(
            f"{path}: this pair is there already, as {there['name']!r}; leave --name out, or rename it there"
        )
    if pair["engine"] and pair["engine"] != there.get("engine", "auto"):
        there["engine"] = pair["engine"]
    before, now = (whole(str(entry["problems"]))[1] for entry in (there, pair))
    if before != now:  # a trial on the first few, and then the whole set
        there["problems"] = pair["problems"]
    return known


def called(cells: Sequence[Mapping[str, Any]], pair: Mapping[str, Any], path: Path) -> str:
    """Return a name that no other pair of models has: the specialist's, with as many of its folders as it takes."""
    others = {
        str(cell["name"]).lower(): str(cell["specialist"])  # their files must differ where case does not count, too
        for cell in cells
        if "|" in str(cell["name"]) or not same(cell, pair, MODELS)
    }
    name = str(pair["name"])
    if name.lower() in others:
        raise SalvageError(f"{path}: {name!r} is another pair, of {others[name.lower()]}; give this one another --name")
    return name or next(tail for tail in _tails(str(pair["specialist"])) if tail.lower() not in others)


def same(cell: Mapping[str, Any], pair: Mapping[str, Any], keys: Sequence[str]) -> bool:
    """Tell whether two entries name the same models and problems, however paths are written, of any limit."""
    return all(_meant(str(cell[key]), key) == _meant(str(pair[key]), key) for key in keys)


def _meant(name: str, key: str) -> tuple[str, dict[str, str]]:
    name, options = parted(whole(name)[0]) if key == "problems" else (name, {})
    return _place(name), options


def _place(name: str) -> str:
    return os.path.abspath(name) if Path(name).exists() else name  # noqa: PTH100 (a link keeps its own name)


def _tails(name: str) -> Iterator[str]:
    """Yield `checkpoint-500`, `a-checkpoint-500`, `runs-a-checkpoint-500`, ..., then with numbers at the end."""
    parts = [part.replace("|", "-") for part in Path(_place(name)).parts if part.strip("/.")]
    for n in range(1, len(parts) + 1):
        yield "-".join(parts[-n:])
    number = 1
    while True:
        number += 1
        yield f"{parts[-1] if parts else 'own'}-{number}"
