"""Problem sets: prompts, reference answers and the name of the verifier that compares the two.

They come from a JSON Lines file, from Reasoning Gym's generators, or from a problems table that was written before.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as parquet

from salvage.errors import SalvageError
from salvage.problems import chat, hub
from salvage.problems.code import check_tests
from salvage.problems.verifiers import check_answer, reasoning_gym_entry, reasoning_gym_scorer, verifier
from salvage.tables import schema
from salvage.tables.contents import is_parquet
from salvage.tables.jsonl import Line, read_lines

OPTIONAL = ["task", "verifier", "metadata"]


def load(spec: str) -> pd.DataFrame:
    """Return the problems that a text names.

    Parameters
    ----------
    spec : str
        ``reasoning_gym:NAME:SIZE:SEED``, ``hf:NAME[:CONFIG]:SPLIT`` (see `hub`), a ``.parquet`` file of the problems
        table or of any columns, or a JSON Lines file. Behind a question mark may stand options, as in
        ``problems.jsonl?limit=20``: `limit` takes the first so many, the rest are `hub`'s.

    Raises
    ------
    SalvageError
        Naming what is wrong with the text, or with the first bad problem.
    """
    spec, options = parted(spec)
    limit = _limit(spec, options.pop("limit", ""))
    table = _loaded(spec, options)
    return table if limit is None else table.head(limit)


def parted(spec: str) -> tuple[str, dict[str, str]]:
    """Return what a text names, and the options behind its question mark."""
    name, mark, rest = spec.partition("?")
    pairs = [option.partition("=") for option in rest.split("&")] if mark else []
    known = (*hub.COLUMNS, *hub.FIXED, "limit")
    for key, _, value in pairs:
        if key not in known or not value:
            raise SalvageError(
                f"{spec!r}: {key!r} is no option with a value; write NAME=VALUE, known are {', '.join(known)}"
            )
    return name, {key: value for key, _, value in pairs}


def place(spec: str) -> str:
    """Return the file or folder that a set is read from; for one that is no file's, its name."""
    name = parted(spec)[0]
    return hub.parts(name.removeprefix("hf:"))[0] if name.startswith("hf:") else name


def limited(spec: str, limit: int) -> str:
    """Return what names the first problems of a set, so many of them; 0: the set as it is.

    Raises
    ------
    SalvageError
        Where the text has a limit of its own already.
    """
    if not limit:
        return spec
    if not spec:
        raise SalvageError("--limit is of a problem set; give --problems with it")
    if whole(spec)[1]:
        raise SalvageError(f"{spec!r} has a limit of its own; leave that out, or --limit")
    return f"{spec}{'&' if '?' in spec else '?'}limit={limit}"


def whole(spec: str) -> tuple[str, int]:
    """Return what names the whole of a set, and how many of its first problems the text names; 0: all."""
    name, options = parted(spec)
    limit = _limit(spec, options.pop("limit", ""))
    return "?".join(filter(None, [name, "&".join(f"{key}={value}" for key, value in options.items())])), limit or 0


def _limit(spec: str, text: str) -> int | None:
    if text and not (text.isdecimal() and int(text)):
        raise SalvageError(f"{spec}: limit is {text!r}, but must be a whole number of 1 or more; correct it")
    return int(text) if text else None


def _loaded(spec: str, options: dict[str, str]) -> pd.DataFrame:
    if spec.startswith("hf:"):
        return from_lines(hub.from_hub(spec.removeprefix("hf:"), options), spec)
    is_table = spec.endswith(".parquet") or is_parquet(spec)
    if is_table and options:
        return from_lines(hub.from_parquet(Path(spec), options), spec)
    if options:
        raise SalvageError(f"{spec}: only columns of hf: sets and Parquet files are named so; rename the file's fields")
    if spec.startswith("reasoning_gym:"):
        parts = spec.split(":")
        if len(parts) != 4 or not all(part.isdecimal() for part in parts[2:]):
            raise SalvageError(f"{spec!r} is not reasoning_gym:NAME:SIZE:SEED with two whole numbers; correct it")
        return from_reasoning_gym(parts[1], int(parts[2]), int(parts[3]))
    if is_table:
        return _from_table(spec)
    return from_jsonl(spec)


def _from_table(path: str) -> pd.DataFrame:
    """Read a problems table; its `messages`, if any, as JSON text or as lists, with `prompt` or without."""
    try:
        table = parquet.read_table(path) if "messages" in parquet.read_schema(path).names else None
    except (OSError, arrow.ArrowInvalid):
        table = None  # reading it as a table says what is wrong
    if table is None:
        return schema.read(path, schema.PROBLEMS)
    rows = chat.without_nulls(table.to_pylist())
    for i, row in enumerate(rows):
        try:
            row |= _chat(row)
        except SalvageError as error:
            raise SalvageError(f"{path}: row {i}: {error}") from error
    return schema.check(pd.DataFrame(rows), schema.PROBLEMS, path)


def _chat(fields: dict[str, Any]) -> dict[str, str]:
    """Return `messages` as the problems table has it, and for a chat the `prompt` that goes with it."""
    messages = chat.chat(fields)
    if not messages:
        return {"messages": ""}
    told = chat.readable(messages)
    if fields.get("prompt") not in (None, "", told):
        raise SalvageError("columns 'prompt' and 'messages' are both given; keep the one that the models are to get")
    return {"messages": messages, "prompt": told}


def verifier_files(table: pd.DataFrame) -> list[Path]:
    """Return the files in this folder that hold a problem set's own verifiers: what is right depends on them too."""
    names = {str(name).partition(":")[0].partition(".")[0] for name in table["verifier"].unique() if ":" in str(name)}
    return [path for name in sorted(names) for path in (Path(f"{name}.py"), Path(name)) if path.exists()]


def from_jsonl(path: str | Path) -> pd.DataFrame:
    """Read problems from a JSON Lines file.

    Parameters
    ----------
    path : str or Path
        One object a line: `problem_id` (text or whole number), `prompt` (text) or `messages` (a chat, see
        `salvage.problems.chat`), `answer` (text or number), and where wanted `task` (default: the file's name),
        `verifier` (default: ``exact``) and `metadata` (an object). Other fields are passed over.

    Returns
    -------
    DataFrame (`schema.PROBLEMS`)

    Raises
    ------
    SalvageError
        Naming the file, the line and the column of the first fault.
    """
    return from_lines(read_lines(path), path)


def from_lines(lines: Iterable[Line], where: str | Path) -> pd.DataFrame:
    """Return lines of a problem file as problems; an id that stands twice is refused."""
    rows: list[dict[str, str]] = []
    seen: dict[str, int] = {}
    for line in lines:
        row = problem(line)
        first = seen.setdefault(row["problem_id"], line.number)
        if first != line.number:
            line.refuse(
                f"column 'problem_id': {row['problem_id']!r} stands in {line.kind} {first} already; rename or drop one"
            )
        rows.append(row)
    return as_table(rows, where)


def as_table(rows: list[dict[str, str]], where: str | Path) -> pd.DataFrame:
    """Return rows as a problems table; one of plain prompts alone has no column `messages`."""
    table = pd.DataFrame(rows)
    if not any(row["messages"] for row in rows):
        table = table.drop(columns="messages")
    return schema.check(table, schema.PROBLEMS, where)


def problem(line: Line) -> dict[str, str]:
    """Return a line of a problem file as a row of the table, every fault named."""
    _refuse_misspelt(line)
    if isinstance(line.fields.get("problem_id"), float):
        line.refuse(f"column 'problem_id' is {line.fields['problem_id']}; give a text or a whole number")
    name = line.text("verifier", default="exact")
    try:
        asked = _chat(line.fields)
    except SalvageError as error:
        line.refuse(str(error), error)
    row = {
        "problem_id": line.text("problem_id", numbers=True),
        "task": line.text("task", default=line.path.stem),
        "prompt": asked.get("prompt") or line.text("prompt"),
        "answer": line.text("answer", numbers=True, empty=True),
        "verifier": name,
        "metadata": _metadata(line),
        "messages": asked["messages"],
    }
    try:
        verifier(name)
        check_answer(name, row["answer"])
        if name == "code":
            check_tests(row)
        if name == "reasoning_gym":
            reasoning_gym_scorer(reasoning_gym_entry(row)["metadata"]["source_dataset"])
    except SalvageError as error:
        line.refuse(str(error), error)
    return row


def _refuse_misspelt(line: Line) -> None:
    # `verifer` would else be passed over, and every answer judged by the default
    optional = OPTIONAL if "prompt" in line.fields else [*OPTIONAL, *chat.FIELDS]
    for column in optional:
        if column not in line.fields and (close := difflib.get_close_matches(column, line.fields, 1, cutoff=0.85)):
            line.refuse(f"column {close[0]!r} is not known; did you mean {column!r}?")


def _metadata(line: Line) -> str:
    value = line.fields.get("metadata")
    if value is None:
        return "{}"
    if isinstance(value, str):  # as a problems table keeps it
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        line.refuse("column 'metadata' is no JSON object; write one, or leave it out")
    return json.dumps(value)


def from_reasoning_gym(name: str, size: int, seed: int) -> pd.DataFrame:
    """Generate problems with Reasoning Gym, verified by its own scorer.

    Parameters
    ----------
    name : str
        A Reasoning Gym dataset, such as ``chain_sum``; it is the task, and `problem_id` is ``name-index``.
    size, seed : int
        How many problems, 1 or more, and the generator's seed; the same three give the same problems.

    Returns
    -------
    DataFrame (`schema.PROBLEMS`)
        The generator's question is the prompt, as it is; where it gives no one answer, `answer` is empty.

    Raises
    ------
    SalvageError
        Where the dataset is unknown, cannot be made from a size and a seed, or its scorer is not to be trusted.
    """
    from reasoning_gym.factory import DATASETS, create_dataset

    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4)
        raise SalvageError(f"Reasoning Gym has no dataset {name!r}; did you mean {' or '.join(close) or 'chain_sum'}?")
    if size < 1:
        raise SalvageError(f"reasoning_gym:{name}: a size of {size} makes no problem; ask for 1 or more")
    reasoning_gym_scorer(name)
    try:
        dataset = create_dataset(name, size=size, seed=seed)
        rows = [_entry_problem(name, index, dataset[index]) for index in range(size)]
    except SalvageError:
        raise
    except Exception as error:
        raise SalvageError(
            f"Reasoning Gym's {name!r} cannot be made with size {size} and seed {seed}: {error!r}; "
            "take other numbers or another dataset"
        ) from error
    return schema.check(pd.DataFrame(rows), schema.PROBLEMS, f"reasoning_gym:{name}:{size}:{seed}")


def _entry_problem(name: str, index: int, entry: dict[str, Any]) -> dict[str, str]:
    answer = entry["answer"]
    row = {
        "problem_id": f"{name}-{index}",
        "task": name,
        "prompt": str(entry["question"]),
        "answer": "" if answer is None else str(answer),
        "verifier": "reasoning_gym",
        "metadata": json.dumps(entry),
    }
    # JSON turns tuples into lists, which a few scorers then find unequal to everything: no rollout would ever pass
    if answer is not None and reasoning_gym_scorer(name)(answer, reasoning_gym_entry(row)) < 1 - 1e-9:
        raise SalvageError(
            f"Reasoning Gym's scorer of {name!r} refuses the answer of its own problem {index} once it was kept as "
            "JSON; take another dataset"
        )
    return row
