"""Files of rollouts that other programs write, each turned into records: one text, its problem, what is known of it.

A format is a function from a file's rows to records, and the fields by which it is known. Adding one is one function
and one line of FORMATS.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from salvage.errors import SalvageError
from salvage.tables.jsonl import Line, read_lines

NONE = "none"  # as a metric: the file's own verdicts are passed over
HARNESS = ["exact_match", "acc", "math_verify"]  # lm-evaluation-harness's metrics that say right (1) or wrong (0)
OF_TRL = {"mode", "step", "prompt", "completion", "advantage"}  # its columns that are no reward


@dataclass(frozen=True)
class Record:
    """One rollout as a file has it.

    Attributes
    ----------
    problem_id : str
        Empty where the file names none: its problem is then known by its prompt.
    rollout : int or None
        None: numbered by the order in the file.
    correct : bool or None
        None: to be verified here.
    tokens : list of int or None
        As the model wrote them.
    ended : bool or None
        Whether the model ended it, or was cut off; None where that is not known.
    prompt, answer : optional
        Of the problem; a prompt may be chat messages.
    """

    line: Line
    text: str
    problem_id: str = ""
    rollout: int | None = None
    correct: bool | None = None
    tokens: Any = None
    ended: bool | None = None
    prompt: Any = None
    answer: Any = None
    task: str = ""


class Row(Line):
    """A row of a Parquet file or a sample of a log, which knows where it stands (0 is the first)."""

    kind = "row"


# ------------------------------------------------------------------ rows of a file, whatever it is


def rows(path: Path) -> list[Line]:
    """Return the rows of a JSON Lines, Parquet, JSON or Inspect log file, by what it holds and not by its name.

    Raises
    ------
    SalvageError
        Where it is none of these, or empty.
    """
    start = _start(path)
    if start == b"PAR1":
        return _parquet_rows(path)
    if start == b"PK\x03\x04":
        return [Row(path, i, sample) for i, sample in enumerate(_zipped(path))]
    whole = _one_json(path) if start[:1] in (b"{", b"[") else None
    if isinstance(whole, dict) and isinstance(whole.get("samples"), list) and "eval" in whole:
        return [Row(path, i, sample) for i, sample in enumerate(whole["samples"])]
    if isinstance(whole, list) and whole and all(isinstance(row, dict) for row in whole):
        return [Row(path, i, row) for i, row in enumerate(whole)]
    return list(read_lines(path))


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except (FileNotFoundError, IsADirectoryError):
        return b""  # read_lines says it
    except OSError as error:
        raise SalvageError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error


def _one_json(path: Path) -> Any:
    """Return a file's JSON where all of it is one value; None where it is not, as of JSON Lines."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def _parquet_rows(path: Path) -> list[Line]:
    try:
        table = parquet.read_table(path, partitioning=None)
    except (OSError, arrow.ArrowInvalid) as error:
        raise SalvageError(f"{path} is not a readable Parquet file: {str(error).splitlines()[0]}") from error
    if not table.num_rows:
        raise SalvageError(f"{path} has no rows; give it at least one rollout")
    return [Row(path, i, fields) for i, fields in enumerate(table.to_pylist())]


def _zipped(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of an Inspect log in its `.eval` form, in name order."""
    try:
        with zipfile.ZipFile(path) as log:
            names = [name for name in log.namelist() if re.fullmatch(r"samples/.+\.json", name)]
            for name in sorted(names):
                yield json.loads(log.read(name))
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise SalvageError(f"{path} is no readable Inspect log ({error}); write it again, or as .json") from error
    if not names:
        raise SalvageError(f"{path} has no samples; only logs of Inspect are read from an archive")


# ------------------------------------------------------------------ formats


def toolkit(lines: list[Line], metric: str, only: str) -> Iterator[Record]:
    """The authors' toolkit and its aliases: `problem_id`, `rollout_idx`, `generated_text`, perhaps `is_correct`."""
    for line in lines:
        name = _one_of(line, "problem_id", "pid", "id")
        number = next((n for n in ("rollout_idx", "rollout_id", "sample_id") if n in line.fields), "rollout_idx")
        index = line.fields.get(number)
        if number in line.fields and (type(index) is not int or index < 0):
            line.refuse(f"column {number!r} is {_short(index)}; give a whole number from 0, or leave it out")
        text = "generated_text" if "generated_text" in line.fields else "answer"
        yield Record(
            line,
            line.text(text, empty=True),
            line.text(name, numbers=True),
            index,
            _verdict(line, metric or "is_correct", required=bool(metric)),
            line.fields.get("tokens"),
            _ended(line.fields.get("finish_reason")),
        )


def harness(lines: list[Line], metric: str, only: str) -> Iterator[Record]:
    """lm-evaluation-harness's `samples_TASK_DATE.jsonl` (`--log_samples`) of a task that generates text."""
    for line in _of_filter(lines, only):
        texts = line.fields["resps"]
        if not isinstance(texts, list) or len(texts) != 1 or not isinstance(texts[0], list) or not texts[0]:
            line.refuse(
                "column 'resps' must be a list of one list of texts; only tasks that generate text can be imported"
            )
        if not all(isinstance(text, str) for text in texts[0]):
            line.refuse("column 'resps' holds log-likelihoods, not text; only tasks that generate text can be imported")
        doc = line.fields.get("doc")
        own = isinstance(doc, dict) and doc.get("problem_id") is not None
        task = re.match(r"samples_(.+?)_\d{4}-\d\d-\d\dT", line.path.name)
        record = Record(
            line,
            "",
            Line(line.path, line.number, doc).text("problem_id", numbers=True)  # type: ignore[arg-type]
            if own
            else line.text("doc_id", numbers=True),
            # over several responses a metric is their mean or vote
            correct=_harness_verdict(line, metric) if len(texts[0]) == 1 else None,
            prompt=_harness_prompt(line),
            answer=line.text("target", numbers=True, empty=True),
            task=task[1] if task else line.path.stem,
        )
        yield from (replace(record, text=text, rollout=index) for index, text in enumerate(texts[0]))


def _of_filter(lines: list[Line], only: str) -> list[Line]:
    filters = list(dict.fromkeys(str(line.fields.get("filter", "none")) for line in lines))
    if not only and len(filters) > 1:
        raise SalvageError(
            f"{lines[0].path} has every sample once for each of the filters {', '.join(filters)}, which may judge "
            "differently; name the one to go by (--filter)"
        )
    chosen = only or filters[0]
    if chosen not in filters:
        raise SalvageError(f"{lines[0].path} has no filter {chosen!r}; it has {', '.join(filters)}")
    return [line for line in lines if str(line.fields.get("filter", "none")) == chosen]


def _harness_verdict(line: Line, metric: str) -> bool | None:
    if metric:
        return _verdict(line, metric, required=True)
    told = {name: _verdict(line, name) for name in HARNESS if line.fields.get(name) is not None}
    if len(set(told.values())) > 1:
        said = " and ".join(f"{name} {int(bool(value))}" for name, value in told.items())
        line.refuse(f"its metrics disagree ({said}); name the one to go by (--metric)")
    return next(iter(told.values()), None)


def _harness_prompt(line: Line) -> Any:
    # two layouts: [[prompt, settings]] in memory and of old, {"gen_args_0": {"arg_0": prompt, ...}} since 0.4.3
    prompt = line.fields.get("arguments")
    for key in ("gen_args_0", "arg_0"):
        if isinstance(prompt, dict):
            prompt = prompt.get(key)
        elif isinstance(prompt, list) and prompt and not _is_chat(prompt):
            prompt = prompt[0]
    # of a chat API, the prompt is its messages as JSON
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt.startswith("[{"):
        try:
            chat = json.loads(prompt)
        except ValueError:
            return prompt
        return [{key: m[key] for key in ("role", "content")} for m in chat] if _is_chat(chat) else prompt
    return prompt


def trl(lines: list[Line], metric: str, only: str) -> Iterator[Record]:
    """`completions_STEP.parquet` of TRL's GRPO and RLOO trainers (`log_completions`): prompt, completion, rewards."""
    rewards = [name for name in lines[0].fields if name not in OF_TRL]
    if not metric and len(rewards) > 1:
        raise SalvageError(
            f"{lines[0].path} has the rewards {', '.join(rewards)}; name the one that says right or wrong (--metric), "
            f"or --metric {NONE} to have every text verified here"
        )
    chosen = metric or (rewards[0] if rewards else NONE)
    for line in lines:
        completion = line.fields["completion"]
        if _is_chat(completion):
            completion = "".join(str(m.get("content") or "") for m in completion)
        answer = line.fields.get("answer", line.fields.get("solution"))
        yield Record(
            Row(line.path, line.number, line.fields | {"completion": completion}),
            Line(line.path, line.number, {"completion": completion}).text("completion", empty=True),
            correct=_verdict(line, chosen, required=True),
            prompt=line.fields["prompt"],
            answer=None if answer is None else str(answer),
        )


def verl(lines: list[Line], metric: str, only: str) -> Iterator[Record]:
    """`STEP.jsonl` that verl writes (`rollout_data_dir`, `validation_data_dir`): input, output, gts, score, step."""
    for line in lines:
        name = metric or ("acc" if "acc" in line.fields else "score")
        truth = line.fields.get("gts")
        truth = truth[0] if isinstance(truth, list) and len(truth) == 1 else truth
        yield Record(
            line,
            line.text("output", empty=True),
            correct=_verdict(line, name, required=True),
            prompt=line.text("input"),
            answer=None if truth is None else str(truth),
        )


def openr1(lines: list[Line], metric: str, only: str) -> Iterator[Record]:
    """Open-R1's data sets: problem, answer, `generations` and lists beside it of what is right and how each ended."""
    name = metric or "correctness_math_verify"
    for line in lines:
        texts = line.fields["generations"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            line.refuse("column 'generations' must be a list of texts; correct it")
        beside = {key: line.fields.get(key) for key in (name, "finish_reasons")}
        for key, values in beside.items():
            if values is not None and (not isinstance(values, list) or len(values) != len(texts)):
                line.refuse(f"column {key!r} must have an entry for each of the {len(texts)} generations; correct it")
        if name != NONE and metric and beside[name] is None:
            line.refuse(f"column {name!r} is missing; correct --metric")
        reasons, told = beside["finish_reasons"], None if name == NONE else beside[name]
        for i, text in enumerate(texts):
            yield Record(
                line,
                text,
                line.text("uuid", default="") or line.text("problem_id", default="", numbers=True),
                i,
                _verdict(Line(line.path, line.number, {name: told[i]}), name) if told else None,
                None,
                _ended(reasons[i]) if reasons else None,
                line.text("problem"),
                line.text("answer", numbers=True, empty=True),
            )


def lighteval(lines: list[Line], metric: str, only: str) -> Iterator[Record]:
    """The details that lighteval saves (Parquet): `doc`, `model_response` and `metric`."""
    for line in lines:
        doc, response, metrics = (_table(line, name) for name in ("doc", "model_response", "metric"))
        texts, tokens = response.get("text"), response.get("output_tokens")
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            line.refuse("column 'model_response' has no texts; only tasks that generate text can be imported")
        known = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        if not metric and len(known) > 1:
            line.refuse(f"it has the metrics {', '.join(known)}; name the one to go by (--metric)")
        name = metric or next(iter(known), NONE)
        told = Row(line.path, line.number, metrics)
        for i, text in enumerate(texts):
            yield Record(
                line,
                text,
                str(doc.get("id") or ""),
                i,
                _verdict(told, name, required=True) if len(texts) == 1 else None,
                tokens[i] if isinstance(tokens, list) and len(tokens) == len(texts) and len(tokens[i]) else None,
                prompt=response.get("input") or doc.get("query"),
                answer=_gold(doc),
                task=str(doc.get("task_name") or line.path.stem),
            )


def _gold(doc: dict[str, Any]) -> str | None:
    gold, choices = doc.get("gold_index"), doc.get("choices")
    first = gold[0] if isinstance(gold, list) and gold else gold
    if isinstance(choices, list) and isinstance(first, int) and 0 <= first < len(choices):
        return str(choices[first])
    return None


def inspect(lines: list[Line], metric: str, only: str) -> Iterator[Record]:
    """A log of Inspect, `.eval` or `.json`: samples with id, epoch, input, target, output and scores (C or I)."""
    for line in lines:
        sample = _attached(line.fields, line.fields.get("attachments") or {})
        scores = {name: score for name, score in (sample.get("scores") or {}).items() if isinstance(score, dict)}
        if not metric and len(scores) > 1:
            line.refuse(f"it has the scores {', '.join(scores)}; name the one to go by (--metric)")
        if metric and metric != NONE and metric not in scores:
            line.refuse(f"it has no score {metric!r}; it has {', '.join(scores) or 'none'}")
        score = scores.get(metric or next(iter(scores), NONE), {}).get("value")
        output = sample.get("output") or {}
        choice: dict[str, Any] = next(iter(output.get("choices") or []), {})
        if sample.get("error") or not choice:
            continue  # the model gave no text
        target = sample.get("target")
        target = target[0] if isinstance(target, list) and len(target) == 1 else target
        yield Record(
            line,
            _content(line, (choice.get("message") or {}).get("content")),
            line.text("id", numbers=True),
            int(sample.get("epoch", 1)) - 1,
            _right(line, "scores", {"C": 1, "I": 0, "N": 0}.get(score, score) if isinstance(score, str) else score),
            None,
            _ended(choice.get("stop_reason")),
            _inspect_prompt(line, sample.get("input")),
            target,
        )


def _inspect_prompt(line: Line, given: Any) -> Any:
    if not isinstance(given, list):
        return given
    return [{"role": message.get("role"), "content": _content(line, message.get("content"))} for message in given]


def _content(line: Line, content: Any) -> str:
    """Return the text of a message: plain, or parts of which thoughts are written out as a model writes them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        line.refuse(f"a message's content is {_short(content)}, no text; correct it")
    pieces = []
    for part in content:
        kind = part.get("type")
        if kind not in ("text", "reasoning"):
            line.refuse(f"a message has a part of type {kind!r}; only texts can be imported")
        pieces.append(f"<think>{part['reasoning']}</think>" if kind == "reasoning" else part["text"])
    return "".join(pieces)


def _attached(value: Any, attachments: dict[str, str]) -> Any:
    """Put long texts back where a log refers to them."""
    if isinstance(value, str) and value.startswith("attachment://"):
        return attachments.get(value.removeprefix("attachment://"), value)
    if isinstance(value, list):
        return [_attached(one, attachments) for one in value]
    if isinstance(value, dict):
        return {key: _attached(one, attachments) for key, one in value.items() if key not in ("events", "attachments")}
    return value


def batch(lines: list[Line], metric: str, only: str) -> Iterator[Record]:
    """The output of OpenAI's batches: `custom_id` (the problem's id) and `response.body.choices`."""
    for line in lines:
        body = (line.fields.get("response") or {}).get("body") or {}
        choices = body.get("choices")
        if not isinstance(choices, list) or not choices:
            told = line.fields.get("error") or body.get("error")
            line.refuse(f"request {line.fields.get('custom_id')!r} has no choices ({_short(told)}); drop the line")
        for choice in choices:
            message = choice.get("message")
            content = message.get("content") if isinstance(message, dict) else choice.get("text")
            thought = (message or {}).get("reasoning_content") or (message or {}).get("reasoning")
            text = _content(line, content or "")
            yield Record(
                line,
                f"<think>{thought}</think>{text}" if thought else text,
                line.text("custom_id", numbers=True),
                ended=_ended(choice.get("finish_reason")),
            )


FORMATS: dict[str, tuple[set[str], Callable[[list[Line], str, str], Iterator[Record]]]] = {
    "lm-eval": ({"doc_id", "resps"}, harness),
    "openai-batch": ({"custom_id", "response"}, batch),
    "lighteval": ({"doc", "model_response", "metric"}, lighteval),
    "openr1": ({"problem", "generations"}, openr1),
    "inspect": ({"id", "epoch", "output"}, inspect),
    "verl": ({"input", "output"}, verl),
    "trl": ({"prompt", "completion"}, trl),
    "toolkit": (set(), toolkit),  # its fields have aliases
}


def records(path: Path, name: str = "auto", metric: str = "", only: str = "") -> list[Record]:
    """Return the rollouts of a file.

    Parameters
    ----------
    name : str
        One of FORMATS, or `auto`: the fields of the first row tell.
    metric : str
        Which of the file's verdicts to go by; `none`: none, every text is verified here.
    only : str
        Which of lm-evaluation-harness's filters to take.

    Raises
    ------
    SalvageError
        Where the format is not known, or a row does not have it.
    """
    lines = rows(path)
    name = _recognised(lines[0]) if name == "auto" else name
    if name not in FORMATS:
        raise SalvageError(f"format {name!r} is not known; use auto, {', '.join(FORMATS)}")
    fields, read = FORMATS[name]
    for line in lines:
        if missing := sorted(fields - line.fields.keys()):
            line.refuse(f"it has no {missing[0]!r}, and so is not of format {name}; keep one format a file")
    return list(read(lines, metric, only))


def _recognised(line: Line) -> str:
    for name, (fields, _) in FORMATS.items():
        if fields and fields <= line.fields.keys():
            return name
    if "generated_text" in line.fields or ({"id", "pid"} & line.fields.keys() and "answer" in line.fields):
        return "toolkit"
    wanted = "; ".join(f"{name} has {', '.join(sorted(fields))}" for name, (fields, _) in FORMATS.items() if fields)
    wanted += "; toolkit has problem_id, generated_text"
    line.refuse(f"no known format has these fields ({', '.join(line.fields) or 'none'}): {wanted}")


# ------------------------------------------------------------------ pieces


def _one_of(line: Line, *names: str) -> str:
    return next((name for name in names if name in line.fields), names[0])


def _verdict(line: Line, name: str, *, required: bool = False) -> bool | None:
    if name == NONE:
        return None
    if required and name not in line.fields:
        line.refuse(f"column {name!r} is missing; name the verdict with --metric, or --metric {NONE}")
    return _right(line, name, line.fields.get(name))


def _right(line: Line, name: str, value: Any) -> bool | None:
    """Return what a verdict says: true and 1 are right, false, 0 and -1 (verl's) are wrong."""
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | float) and value in (0, 1, -1):
        return bool(value == 1)
    line.refuse(
        f"column {name!r} is {_short(value)}, neither 0 nor 1; name another with --metric, or --metric {NONE} to have "
        "every text verified here"
    )


def _ended(reason: Any) -> bool | None:
    """Return whether a model ended its text, from the reason that a server gives."""
    if reason in ("stop", "eos", "end_turn", "stop_sequence"):
        return True
    return False if reason in ("length", "max_tokens", "model_length") else None


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


def _table(line: Line, name: str) -> dict[str, Any]:
    value = line.fields[name]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        line.refuse(f"column {name!r} is no table of values; it is {_short(line.fields[name])}")
    return value


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:60]
