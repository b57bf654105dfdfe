"""A problem given as chat: what its messages may hold, and how a person reads them.

The engine applies the specialist's chat template to them (`salvage.engine.template`); here is nothing of a model.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import Any

from salvage.errors import SalvageError

FIELDS = ["messages", "tools", "chat_template_kwargs"]
ROLES = ["system", "developer", "user", "assistant", "tool"]


def chat(fields: Mapping[str, Any]) -> str:
    """Return the column `messages` of the problems table: JSON of the messages, with tools and keywords where given.

    Parameters
    ----------
    fields : mapping
        `messages`, a list of objects with `role` and `content` (a text, or a list of parts that are text), and where
        wanted `tools` (a list of JSON schemas) and `chat_template_kwargs` (an object). A null counts as missing; what
        this function returned is taken too.

    Returns
    -------
    str
        Empty where there are no messages.

    Raises
    ------
    SalvageError
        Naming the field, and in `messages` the message (0 is the first).
    """
    given = {name: _read(name, fields[name]) for name in FIELDS if fields.get(name) not in (None, "")}
    if isinstance(given.get("messages"), dict) and "messages" in given["messages"]:  # as this function wrote it
        given |= given.pop("messages")
    if "messages" not in given:
        if given:
            raise SalvageError(f"column {next(iter(given))!r} goes with 'messages', which is missing; add it")
        return ""
    messages = given["messages"]
    if not isinstance(messages, list) or not messages:
        raise SalvageError("column 'messages' must be a list of messages, each with role and content; correct it")
    given["messages"] = [_message(i, message) for i, message in enumerate(messages)]
    last = given["messages"][-1]["role"]
    if last not in ("user", "tool"):
        raise SalvageError(
            f"column 'messages': the last message is of role {last!r}, and so leaves nothing to answer; "
            "end with what the user says"
        )
    if "tools" in given and not (_list_of_objects(given["tools"]) and given["tools"]):
        raise SalvageError("column 'tools' must be a list of JSON schemas; correct it, or leave it out")
    if not isinstance(given.get("chat_template_kwargs", {}), dict):
        raise SalvageError("column 'chat_template_kwargs' must be an object; correct it, or leave it out")
    try:
        text = json.dumps(given, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (TypeError, ValueError):  # UnicodeEncodeError is one
        raise SalvageError("column 'messages' holds what is no text or number of JSON; correct it") from None
    return text


def readable(messages: str) -> str:
    """Return a chat as a person reads it, each message under its role: the column `prompt` beside `messages`."""
    told = json.loads(messages)
    parts = [f"[tools]\n{json.dumps(told['tools'], ensure_ascii=False)}"] if "tools" in told else []
    for message in told["messages"]:
        calls = json.dumps(message["tool_calls"], ensure_ascii=False) if message.get("tool_calls") else ""
        parts.append("\n".join(filter(None, [f"[{message['role']}]", message["content"], calls])))
    return "\n\n".join(parts)


def question(problem: Mapping[str, Any]) -> str:
    """Return what a problem asks: its prompt, of a chat the last message."""
    if not problem.get("messages"):
        return str(problem["prompt"])
    return str(json.loads(problem["messages"])["messages"][-1]["content"])


def without_nulls(value: Any) -> Any:
    """Return a value of Parquet without what it lacks: a struct has the fields of all rows."""
    if isinstance(value, dict):
        return {name: without_nulls(inside) for name, inside in value.items() if inside is not None}
    return [without_nulls(inside) for inside in value] if isinstance(value, list) else value


def _read(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:  # as a Parquet file may keep it
        return json.loads(value)
    except ValueError:
        raise SalvageError(f"column {name!r} is a text that is not JSON; write it as JSON") from None


def _message(i: int, message: Any) -> dict[str, Any]:
    where = f"column 'messages': message {i}"
    if not isinstance(message, dict):
        raise SalvageError(f"{where} is no object with role and content; correct it")
    role = message.get("role")
    if role not in ROLES:
        close = difflib.get_close_matches(str(role), ROLES, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"roles are {', '.join(ROLES)}"
        raise SalvageError(f"{where} has role {role!r}, which is not known; {hint}")
    content = _text(where, message.get("content"))
    if message.get("tool_calls") is not None and not _list_of_objects(message["tool_calls"]):
        raise SalvageError(f"{where}: 'tool_calls' must be a list of objects; correct it")
    if not content.strip() and not (role == "assistant" and message.get("tool_calls")):
        raise SalvageError(f"{where}, of role {role!r}, has no text; fill it in or drop the message")
    kept = {name: value for name, value in message.items() if value is not None}
    return {**kept, "content": content}


def _text(where: str, content: Any) -> str:
    """Return a content's text; parts are put together by line breaks, since most templates take a text alone."""
    if content is None or isinstance(content, str):
        return content or ""
    if not _list_of_objects(content):
        raise SalvageError(f"{where} has a content that is no text; give a text, or a list of parts of type 'text'")
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise SalvageError(
                f"{where} has a part of type {part.get('type')!r}, and Salvage gives models text alone; "
                "leave images and sound out"
            )
    return "\n".join(part["text"] for part in content)


def _list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)
