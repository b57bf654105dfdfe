"""Problem sets of others: a Hugging Face dataset by name, one saved in a folder, or a Parquet file with any columns.

`hf:NAME[:CONFIG]:SPLIT` is a dataset of the hub, or with a path in place of a name one that lies in a folder. What the
columns are called is written behind a question mark: `hf:me/sums:test?prompt=question&answer=result&verifier=numeric`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from salvage.errors import SalvageError
from salvage.problems.chat import FIELDS as CHAT
from salvage.problems.chat import without_nulls
from salvage.problems.formats import Row
from salvage.tables.jsonl import Line

COLUMNS = ("problem_id", "prompt", *CHAT, "answer", "metadata", "tests", "setup")  # what a map may name
FIXED = ("task", "verifier")  # what it says for all


@dataclass(frozen=True)
class Preset:
    """How a well-known dataset is read: where it differs from `prompt` and `answer`."""

    config: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    verifier: str = "exact"
    task: str = ""
    ask: str = "{prompt}"  # what is asked, with the prompt in its place


BOXED = "{prompt}\nReason step by step, and put the final answer within \\boxed{{}}."
PRESETS = {
    "openai/gsm8k": Preset("main", {"prompt": "question"}, "numeric", "gsm8k", BOXED),
    "HuggingFaceH4/MATH-500": Preset("", {"prompt": "problem", "problem_id": "unique_id"}, "math", "math-500", BOXED),
    "HuggingFaceH4/aime_2024": Preset("", {"prompt": "problem", "problem_id": "id"}, "math", "aime-2024", BOXED),
    "MathArena/aime_2025": Preset("", {"prompt": "problem", "problem_id": "problem_idx"}, "math", "aime-2025", BOXED),
    "google-research-datasets/mbpp": Preset(
        "full",
        {"prompt": "text", "problem_id": "task_id", "tests": "test_list", "setup": "test_setup_code"},
        "code",
        "mbpp",
        "{prompt}\nYour code must pass this test:\n{test}\nWrite a Python function, in one fenced block.",
    ),
}


def from_hub(spec: str, options: dict[str, str]) -> list[Line]:
    """Return a dataset's rows, `NAME[:CONFIG]:SPLIT`, as lines of a problem file; the name may be a folder's path.

    Raises
    ------
    SalvageError
        Where it cannot be had, or lacks a column.
    """
    name, config, split = parts(spec)
    preset = PRESETS.get(name, Preset())
    rows = _rows(name, config or preset.config, split)
    return _lines(rows, f"hf:{spec}", preset, options, Path(name).name)


def from_parquet(path: Path, options: dict[str, str]) -> list[Line]:
    """Return the rows of a Parquet file, whose columns the options name, as lines of a problem file."""
    try:
        rows = pd.read_parquet(path, partitioning=None).to_dict("records")
    except (OSError, ValueError) as error:
        raise SalvageError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    return _lines(rows, str(path), Preset(), options, path.stem)


def _lines(
    rows: Iterable[dict[str, Any]], where: str, preset: Preset, options: dict[str, str], name: str
) -> list[Line]:
    columns = {name: name for name in COLUMNS} | preset.columns | {k: v for k, v in options.items() if k in COLUMNS}
    fixed = {"verifier": preset.verifier, "task": preset.task or name}
    fixed |= {k: v for k, v in options.items() if k in FIXED}
    named = {*preset.columns, *options} & set(COLUMNS)
    for other, one in (("prompt", "messages"), ("messages", "prompt")):  # of two ways to ask, the one that is named
        if one in named and other not in named:
            del columns[other]
    made: list[Line] = []
    for i, row in enumerate(rows):
        for key in sorted(named):
            if columns[key] not in row:
                Row(Path(where), i, row).refuse(f"column {columns[key]!r} is missing; it has {', '.join(row)}")
        made.append(Row(Path(where), i, fixed | _fields(row, columns, preset, i)))
    if not made:
        raise SalvageError(f"{where} has no rows; take another split")
    return made


def _fields(row: dict[str, Any], columns: dict[str, str], preset: Preset, i: int) -> dict[str, Any]:
    """Return a row's fields under the names of a problem file."""
    fields = {key: _plain(row[name]) for key, name in columns.items() if name in row}
    tests = {key: fields.pop(key) for key in ("tests", "setup") if key in fields}
    if tests:
        fields["metadata"] = {"tests": list(tests["tests"]), "setup": tests.get("setup") or ""}
        fields.setdefault("answer", "")
    if isinstance(fields.get("prompt"), str):
        fields["prompt"] = preset.ask.format(prompt=fields["prompt"], test=next(iter(tests.get("tests") or [""])))
    fields.setdefault("problem_id", str(i))
    return {key: value for key, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return numpy's values as Python's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | dict):
        return value
    told = json.dumps(value, default=lambda one: one.tolist() if hasattr(one, "tolist") else str(one))
    return without_nulls(json.loads(told))


def parts(spec: str) -> tuple[str, str, str]:
    """Return what `NAME[:CONFIG]:SPLIT` is made of."""
    found = spec.split(":")
    if len(found) not in (2, 3) or not all(found):
        raise SalvageError(f"{'hf:' + spec!r} is not hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT; correct it")
    return found[0], found[1] if len(found) == 3 else "", found[-1]


def _rows(name: str, config: str, split: str) -> Iterable[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    where = f"hf:{name}{':' + config if config else ''}:{split}"
    try:
        if Path(name, "dataset_dict.json").exists() or Path(name, "state.json").exists():
            found = datasets.load_from_disk(name)
            table = found[split] if isinstance(found, datasets.DatasetDict) else found
        else:
            table = datasets.load_dataset(name, config or None, split=split)
    except KeyError as error:
        raise SalvageError(f"{where}: it has no split {split!r}; it has {', '.join(found)}") from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        told = str(error).strip().splitlines() or [repr(error)]
        raise SalvageError(f"{where} cannot be had: {told[0]}") from error
    return iter(table)
