"""A specialist's chat template: a problem's messages as tokens, what it reads, and the token that ends a turn.

transformers ignores keywords that a template never reads, and tools too; here they are refused by name.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, meta
from jinja2.ext import Extension

from salvage.engine import models
from salvage.errors import SalvageError

TODAY = date(2024, 7, 26)  # what a template that asks for the date is told: a prompt must be the same on every day
OURS = {"messages", "strftime_now", "raise_exception"}  # beside the arguments of apply_chat_template
_ANSWER = "the answer"


def chat_tokens(tokenizer: Any, problem: Mapping[str, Any]) -> list[int]:
    """Return the tokens of a problem's chat, up to where the specialist is to answer.

    Raises
    ------
    SalvageError
        Where there is no template, it refuses the messages, or it does not read the tools or a keyword.
    """
    told = json.loads(problem["messages"])
    tools, keywords = told.get("tools"), told.get("chat_template_kwargs", {})
    where = f"problem {problem['problem_id']!r}" if "problem_id" in problem else "a problem"
    if tokenizer.chat_template is None:
        raise SalvageError(
            f"{where} is given as messages, and the specialist's tokenizer has no chat template; "
            "give a prompt, or save the template with the tokenizer (chat_template.jinja)"
        )
    try:
        template = tokenizer.get_chat_template(None, tools)
        reads = _variables(template)
        _refuse_unread(where, tokenizer, reads, tools, keywords)
        if "strftime_now" in reads:
            keywords = {**keywords, "strftime_now": TODAY.strftime}
        tokens = tokenizer.apply_chat_template(
            told["messages"], tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False, **keywords
        )
    except SalvageError:
        raise
    except Exception as error:  # a template is a program: it may fail as one
        raise SalvageError(
            f"{where}: the specialist's chat template refuses the messages: {models.first_line(error)}; "
            "correct them, or give a prompt"
        ) from error
    return list(tokens)


def _refuse_unread(where: str, tokenizer: Any, reads: frozenset[str], tools: Any, keywords: Mapping[str, Any]) -> None:
    taken = {*inspect.signature(tokenizer.apply_chat_template).parameters, *OURS} - {"documents"}
    for name in keywords:
        if name in taken:
            raise SalvageError(f"{where}: chat_template_kwargs: {name!r} is Salvage's own to set; leave it out")
        if name not in reads:
            known = ", ".join(sorted(reads - taken - set(tokenizer.special_tokens_map))) or "none"
            raise SalvageError(
                f"{where}: chat_template_kwargs: the specialist's chat template does not read {name!r} "
                f"(it reads: {known}); correct it or leave it out"
            )
    if tools and "tools" not in reads:
        raise SalvageError(f"{where}: the specialist's chat template does not read tools; leave them out")


class _Generation(Extension):
    """transformers' own tag, which marks what an assistant said; nothing here is done with it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache
def _variables(template: str) -> frozenset[str]:
    """Return the names that a template looks up."""
    environment = Environment(extensions=[_Generation, "jinja2.ext.loopcontrols"])  # noqa: S701 (nothing is rendered)
    return frozenset(meta.find_undeclared_variables(environment.parse(template)) - set(environment.globals))


def turn_end(tokenizer: Any) -> int | None:
    """Return the token by which the template ends an assistant's turn, None where there is none."""
    if tokenizer.chat_template is None:
        return None
    turn = [{"role": "user", "content": "the question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(turn, tokenize=False)
    except (TemplateError, ValueError, TypeError, KeyError):  # one that takes no such turn
        return None
    after = text.rpartition(_ANSWER)[2].lstrip()
    found = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if after.startswith(token.content)}
    return found[max(found, key=len)] if found else None


def mark(specialist: str | Path) -> str:
    """Return the hash of a specialist's chat template, which tables of chats owe their tokens to."""
    told = json.dumps(models.tokenizer(specialist).chat_template, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
