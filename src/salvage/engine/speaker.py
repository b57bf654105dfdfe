"""What both engines know of a pair before any weights are loaded: its tokens, where a completion ends, what fits."""

from __future__ import annotations

from bisect import bisect_left
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from salvage.engine.base import Request
from salvage.errors import SalvageError
from salvage.tables.vocabulary import THINKING


class Speaker:
    """The tokenizer and the limits of a specialist and its ancestor, which is None where there is none.

    Attributes
    ----------
    ends : list of int
        Tokens that end a completion.
    vocabulary : int
        Token ids that count; what a model has beyond the other's is padding of its embedding matrix.
    context : int or None
        Tokens that a prompt and its completion may have together.
    """

    def __init__(self, specialist: str | Path, ancestor: str | Path | None) -> None:
        self.tokenizer = _tokenizer(specialist)
        self.has_ancestor = ancestor is not None
        if ancestor is not None:
            _same_vocabulary(specialist, self.tokenizer, ancestor)
        self.configs = [_config(name) for name in (specialist, ancestor) if name is not None]
        self.ends = _ends(specialist, self.configs[0], self.tokenizer)
        self.vocabulary = min(config.vocab_size for config in self.configs)
        special = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        self._special = set(special)
        marks = [mark for pair in THINKING for mark in pair]
        self._marks = {i for i, content in special.items() if any(content in mark for mark in marks)}
        contexts = [getattr(config, "max_position_embeddings", None) for config in self.configs]
        self.context: int | None = min([c for c in contexts if c], default=None)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def text(self, tokens: list[int]) -> str:
        """Return a completion's text, special tokens left out but for marks of thoughts, which verifiers go by."""
        if self._marks.isdisjoint(tokens):
            return str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        kept = [token for token in tokens if token in self._marks or token not in self._special]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def span(self, prompt: list[int], completion: list[int], part: str) -> tuple[int, int]:
        """Return where a part of a completion begins and ends (see `salvage.engine.base.Engine.span`).

        Thinking is all up to the last token that closes it (`vocabulary.THINKING`), the answer what follows; a thought
        that the prompt or the completion has opened and nothing has closed is all thinking.
        """
        if part == "both":
            return 0, len(completion)
        cut = self._thought(prompt, completion)
        return (0, cut) if part == "thinking" else (cut, len(completion))

    def _thought(self, prompt: list[int], completion: list[int]) -> int:
        """Return how many of a completion's tokens are thinking."""

        def closed(count: int) -> int:
            return sum(map(self._read(completion[:count]).count, closes))

        opens, closes = zip(*THINKING, strict=True)
        last = closed(len(completion))
        if last:
            return bisect_left(range(len(completion)), last, key=closed)
        before = self._read(prompt)
        pending = any(before.rfind(first) > before.rfind(end) for first, end in THINKING)
        said = self._read(completion)
        return len(completion) if pending or any(mark in said for mark in opens) else 0

    def _read(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False))

    def close(self) -> None:
        """End what the engine has started, where it started something."""

    def admit(self, requests: list[Request], max_tokens: int) -> None:
        """Refuse requests that cannot be decoded, before any is.

        Raises
        ------
        SalvageError
            Where a prompt is empty or does not fit the context, or an intervention needs an ancestor and there is none.
        """
        for i, request in enumerate(requests):
            if not request.prompt:
                raise SalvageError(f"request {i}: the prompt has no tokens; give a prompt that is not empty")
            if self.context and len(request.prompt) + max_tokens > self.context:
                raise SalvageError(
                    f"request {i}: a prompt of {len(request.prompt)} tokens and max_tokens {max_tokens} exceed the "
                    f"models' context of {self.context}; shorten the prompt or lower sample.max_tokens"
                )
            if request.intervention.needs_ancestor and not self.has_ancestor:
                raise SalvageError(f"request {i}: {request.intervention.kind} needs an ancestor model; none was given")

    def admit_scoring(self, completions: list[list[int]]) -> None:
        """Refuse to score without an ancestor, or a completion without tokens."""
        if not self.has_ancestor:
            raise SalvageError("scoring needs an ancestor model; none was given")
        for i, completion in enumerate(completions):
            if not completion:
                raise SalvageError(f"rollout {i} has no tokens and so no signals; drop it")


def _tokenizer(name: str | Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise SalvageError(f"tokenizer {str(name)!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def _config(name: str | Path) -> Any:
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise SalvageError(f"model {str(name)!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def _ends(name: str | Path, config: Any, tokenizer: Any) -> list[int]:
    try:
        generation = GenerationConfig.from_pretrained(name)
    except OSError:  # no such file beside the model: what its config says
        generation = GenerationConfig.from_model_config(config)
    ends = tokenizer.eos_token_id if generation.eos_token_id is None else generation.eos_token_id
    return list(ends) if isinstance(ends, list) else [ends]


def _same_vocabulary(specialist: str | Path, speaker: Any, ancestor: str | Path) -> None:
    """Refuse a pair whose tokens mean different things: their logits could not be compared."""
    mine, theirs = speaker.get_vocab(), _tokenizer(ancestor).get_vocab()
    if mine != theirs:
        odd = sorted(set(mine.items()) ^ set(theirs.items()))[0]
        raise SalvageError(
            f"specialist {str(specialist)!r} ({len(mine)} tokens) and ancestor {str(ancestor)!r} ({len(theirs)}) "
            f"have different vocabularies, first at token {odd[0]!r}; give the model the specialist was trained from"
        )
