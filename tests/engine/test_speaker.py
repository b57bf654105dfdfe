"""What is known of a completion by its tokens: where thinking ends and the answer begins."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from salvage.engine.speaker import Speaker

CHARACTERS = [chr(i) for i in range(32, 127)]


def speaker(*added: AddedToken) -> Speaker:
    """Return a speaker of printable characters, a token each, and of the tokens that are added."""
    core = Tokenizer(models.WordLevel({c: i for i, c in enumerate(CHARACTERS)}, unk_token=" "))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    core.add_tokens(list(added))
    made = object.__new__(Speaker)  # its tokenizer is all that is asked here
    made.tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    return made


def ids(told: Any, text: str) -> list[int]:
    return list(told.tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize(
    ("prompt", "text", "thinking"),
    [
        ("Q:", "<think>so 7</think>7", "<think>so 7</think>"),
        ("Q:<think>", "so 7</think>\n7", "so 7</think>"),  # the template has opened it
        ("Q:", "<think>a</think>b<think>c</think>d", "<think>a</think>b<think>c</think>"),  # the last counts
        ("Q:", "<think>maybe <answer>7</answer>? no, let me", "<think>maybe <answer>7</answer>? no, let me"),
        ("Q:<think>", "cut off", "cut off"),
        ("Q:<think></think>", "7", ""),  # a template that says not to think
        ("Q:", "7", ""),
        ("Q:", "<thinking>7</thinking>", "<thinking>7</thinking>"),
    ],
)
@pytest.mark.parametrize("special", [None, False, True])
def test_thinking_ends_with_the_last_token_that_closes_it(
    prompt: str, text: str, thinking: str, special: bool | None
) -> None:
    marks = [] if special is None else [AddedToken(m, special=special) for m in ("<think>", "</think>")]
    told = speaker(*marks)
    tokens = ids(told, text)
    cut = len(ids(told, thinking))
    assert told.span(ids(told, prompt), tokens, "thinking") == (0, cut)
    assert told.span(ids(told, prompt), tokens, "answer") == (cut, len(tokens))
    assert told.span(ids(told, prompt), tokens, "both") == (0, len(tokens))


def test_other_models_marks_are_read_too() -> None:
    told = speaker(AddedToken("[THINK]", special=True), AddedToken("[/THINK]", special=True))
    tokens = ids(told, "[THINK]x[/THINK]7")
    assert told.text(tokens) == "[THINK]x[/THINK]7" and told.span([5], tokens, "answer") == (3, 4)
