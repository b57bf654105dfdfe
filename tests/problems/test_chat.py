"""Problems given as chat: what a line may hold, what of it is refused, and what a person reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from salvage.errors import SalvageError
from salvage.problems import chat
from salvage.problems.sets import load
from salvage.tables import schema

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "6*7?"}
GOOD: dict[str, Any] = {"problem_id": "a", "messages": [SYSTEM, USER], "answer": "42"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
READ = "[system]\nBe brief.\n\n[user]\n6*7?"


def put(folder: Path, *lines: dict[str, Any]) -> str:
    path = folder / "set.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_messages_take_the_place_of_a_prompt_and_a_person_reads_their_roles(tmp_path: Path) -> None:
    more = GOOD | {"problem_id": "b", "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}
    plain = {"problem_id": "c", "prompt": "1+1?", "answer": "2", "messages": None}
    table = load(put(tmp_path, GOOD, more, plain))
    assert table["prompt"].tolist() == [READ, f"[tools]\n[{json.dumps(TOOL)}]\n\n{READ}", "1+1?"]
    told = [json.loads(text) if text else None for text in table["messages"]]
    assert told[0] == {"messages": [SYSTEM, USER]} and told[2] is None
    assert told[1] == told[0] | {"tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}


def test_a_set_without_a_chat_is_the_table_that_it_was(tmp_path: Path) -> None:
    table = load(put(tmp_path, {"problem_id": "c", "prompt": "1+1?", "answer": "2"}))
    assert list(table.columns) == ["problem_id", "task", "prompt", "answer", "verifier", "metadata"]


def test_parts_of_text_are_one_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "6*7"}, {"type": "text", "text": "is?"}]
    table = load(put(tmp_path, GOOD | {"messages": [{"role": "user", "content": parts}]}))
    assert json.loads(table["messages"][0])["messages"] == [{"role": "user", "content": "6*7\nis?"}]


def test_calls_of_tools_are_kept_and_shown(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    said = {"role": "tool", "content": "42", "tool_call_id": "1"}
    table = load(put(tmp_path, GOOD | {"messages": [USER, call, said]}))
    kept = json.loads(table["messages"][0])["messages"]
    assert kept == [USER, call | {"content": ""}, said]
    assert table["prompt"][0].endswith(
        '[assistant]\n[{"function": {"name": "add", "arguments": {"a": 1}}}]\n\n[tool]\n42'
    )


def _with(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in (GOOD | fields).items() if value is not ...}


def _says(content: Any, role: str = "user") -> dict[str, Any]:
    return _with(messages=[{"role": role, "content": content}])


BAD = {
    "both": (_with(prompt="6*7?"), "columns 'prompt' and 'messages' are both given; keep the one"),
    "neither": (_with(messages=...), "column 'prompt' is missing"),
    "misspelt": (_with(messages=..., message=[USER]), "column 'message' is not known; did you mean 'messages'"),
    "no list": (_with(messages={"role": "user"}), "column 'messages' must be a list of messages"),
    "empty": (_with(messages=[]), "column 'messages' must be a list of messages"),
    "text": (_with(messages="6*7?"), "column 'messages' is a text that is not JSON"),
    "no object": (_with(messages=["6*7?"]), "message 0 is no object with role and content"),
    "no role": (_with(messages=[{"content": "?"}]), "message 0 has role None, which is not known; roles are system"),
    "role": (_says("?", "usr"), "message 0 has role 'usr', which is not known; did you mean 'user'"),
    "nobody asks": (
        _with(messages=[USER, {"role": "assistant", "content": "42"}]),
        "the last message is of role 'assistant', and so leaves nothing to answer",
    ),
    "no text": (_says(" "), "message 0, of role 'user', has no text"),
    "null": (_says(None), "message 0, of role 'user', has no text"),
    "number": (_says(7), "message 0 has a content that is no text"),
    "image": (
        _says([{"type": "image_url", "image_url": {}}]),
        "message 0 has a part of type 'image_url', .* text alone",
    ),
    "sound": (_says([{"type": "text", "text": "?"}, {"type": "input_audio"}]), "has a part of type 'input_audio'"),
    "surrogate": (_says("\ud800"), "column 'messages' holds what is no text"),
    "tools alone": (_with(messages=..., prompt="?", tools=[TOOL]), "column 'tools' goes with 'messages'"),
    "tools": (_with(tools={"name": "add"}), "column 'tools' must be a list of JSON schemas"),
    "keywords": (_with(chat_template_kwargs=["x"]), "column 'chat_template_kwargs' must be an object"),
    "calls": (
        _with(messages=[{"role": "assistant", "content": "?", "tool_calls": "add"}, USER]),
        "message 0: 'tool_calls' must be a list of objects",
    ),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_what_a_chat_may_not_hold_is_named_with_its_line(tmp_path: Path, line: dict[str, Any], message: str) -> None:
    with pytest.raises(SalvageError, match=f"set.jsonl, line 2: .*{message}"):
        load(put(tmp_path, GOOD | {"problem_id": "first"}, line))


def test_a_table_of_chats_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    table = load(put(tmp_path, GOOD, {"problem_id": "c", "prompt": "1+1?", "answer": "2"}))
    schema.write(table, schema.PROBLEMS, tmp_path / "set.parquet")
    pd.testing.assert_frame_equal(load(str(tmp_path / "set.parquet")), table)


def test_a_parquet_file_may_have_messages_as_lists(tmp_path: Path) -> None:
    rest = {"task": "t", "verifier": "exact", "metadata": "{}", "answer": "42"}
    call = {"role": "assistant", "content": "I add.", "tool_calls": [{"name": "add"}]}
    rows = [
        {"problem_id": "a", "messages": [SYSTEM, call, USER], **rest},
        {"problem_id": "b", "messages": [USER], **rest},
    ]
    path = str(tmp_path / "set.parquet")
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    table = load(path)
    assert json.loads(table["messages"][0])["messages"] == [SYSTEM, call, USER]  # no null of the other rows
    assert table["prompt"][1] == "[user]\n6*7?"
    parquet.write_table(arrow.Table.from_pylist([*rows, rows[0] | {"problem_id": "c", "messages": [SYSTEM]}]), path)
    with pytest.raises(SalvageError, match=r"set\.parquet: row 2: column 'messages': the last message is of role 'sys"):
        load(path)


def test_what_chat_returned_it_takes() -> None:
    once = chat.chat({"messages": [USER], "tools": [TOOL]})
    assert chat.chat({"messages": once}) == once and chat.readable(once).startswith("[tools]")
