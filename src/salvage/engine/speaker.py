"""What both engines know of a pair before any weights are loaded: its tokens, where a completion ends, what fits."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from salvage.engine import models, template
from salvage.engine.base import Request
from salvage.errors import SalvageError
from salvage.tables.vocabulary import THINKING

_FEW = 3  # tokens that a sentence names


class Speaker:
    """The tokenizer and the limits of a specialist and its ancestor, which is None where there is none.

    Attributes
    ----------
    ends : list of int
        Tokens that end a completion.
    vocabulary : int
        Token ids that count; what a model has beyond the other's, or beyond its tokenizer's, is padding of its
        embedding matrix.
    context : int or None
        Tokens that a prompt and its completion may have together.
    strange : dict of int to str
        Ids that mean something else to the ancestor, or nothing, and what is to be said of each; no prompt may hold
        one.
    """

    def __init__(self, specialist: str | Path, ancestor: str | Path | None) -> None:
        self.specialist_name = str(specialist)
        self.tokenizer = models.tokenizer(specialist)
        self.has_ancestor = ancestor is not None
        self.configs = [models.config(name) for name in (specialist, ancestor) if name is not None]
        said = models.text_config(self.configs[0])
        self.vocabulary: int = min(said.vocab_size, max(self.tokenizer.get_vocab().values()) + 1)
        self.context: int | None = getattr(said, "max_position_embeddings", None) or None
        self.strange: dict[int, str] = {}
        self.ends = [end for end in _ends(specialist, self.configs[0], self.tokenizer) if end < self.vocabulary]
        if ancestor is not None:
            self.heed(ancestor, self.configs[1])

    def heed(self, ancestor: str | Path, config: Any = None) -> None:
        """Keep to the tokens and the context that an ancestor has too, whether or not it is run.

        Raises
        ------
        SalvageError
            Where the two mean different things by one token: their logits could not be compared.
        """
        said = models.text_config(models.config(ancestor) if config is None else config)
        self.vocabulary = min(self.vocabulary, said.vocab_size)
        contexts = [self.context, getattr(said, "max_position_embeddings", None)]
        self.context = min([c for c in contexts if c], default=None)
        pair = f"specialist {self.specialist_name!r} and ancestor {str(ancestor)!r}"
        self.strange = _differences(pair, self.tokenizer, models.tokenizer(ancestor))
        beyond = [end for end in self.ends if end >= self.vocabulary]
        self.ends = [end for end in self.ends if end < self.vocabulary]
        if beyond and not self.ends:
            raise SalvageError(
                f"{pair}: the specialist ends what it says with {self._token(beyond[0])}, for which the ancestor has "
                "no embedding; give an ancestor whose embeddings were resized with the specialist's"
            )

    @cached_property
    def _special(self) -> dict[int, str]:
        """The special tokens that were added to the vocabulary, by id."""
        return {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @cached_property
    def _marks(self) -> set[int]:
        """Those of them that mark a thought."""
        marks = [mark for pair in THINKING for mark in pair]
        return {i for i, content in self._special.items() if any(content in mark for mark in marks)}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a completion's text, without special tokens added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def prompt(self, problem: Mapping[str, Any]) -> list[int]:
        """Return the token ids of a problem's prompt, a row of the problems table.

        Messages go through the specialist's chat template; a plain prompt is encoded as the tokenizer does by default.

        Raises
        ------
        SalvageError
            Where the template refuses the messages, or the prompt holds a token that the ancestor does not know.
        """
        if problem.get("messages"):
            tokens = template.chat_tokens(self.tokenizer, problem)
        else:
            tokens = self._plain(str(problem["prompt"]))
        for token in tokens:
            if token in self.strange or token >= self.vocabulary:
                said = self.strange.get(token, "for which a model has no embedding")
                raise SalvageError(
                    f"problem {problem.get('problem_id', '')!r}: the prompt holds {self._token(token)}, {said}; "
                    "leave it out, or give an ancestor that has it (resize_token_embeddings, and its tokenizer)"
                )
        return tokens

    @property
    def begin(self) -> str:
        """What the tokenizer writes before every plain prompt (BOS); nothing where it writes nothing."""
        first, bare = self._plain("0")[0], self.encode("0")
        return "" if [first] == bare[:1] else str(self.tokenizer.convert_ids_to_tokens(first))

    def _plain(self, text: str) -> list[int]:
        """Encode a text as the tokenizer does by default: its first token once, also where the text has it."""
        tokens, bare = list(self.tokenizer.encode(text)), self.encode(text)
        first = self.tokenizer.bos_token_id
        if first is not None and bare[:1] == [first] and tokens[:2] == [first, first]:
            tokens = tokens[1:]
        if tokens[-1:] != bare[-1:] and tokens[-1] in self.ends:  # some tokenizers end every text: nothing would follow
            tokens = tokens[:-1]
        return tokens

    def _token(self, token: int) -> str:
        return f"token {self.tokenizer.convert_ids_to_tokens(token)!r} (id {token})"

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


def _ends(name: str | Path, config: Any, tokenizer: Any) -> list[int]:
    """Return what ends a completion by any that has a say: generation config, config, tokenizer, chat template."""
    said = [getattr(part, "eos_token_id", None) for part in (config, models.text_config(config))]
    with suppress(OSError):  # no such file beside the model
        said.insert(0, GenerationConfig.from_pretrained(name).eos_token_id)
    said += [tokenizer.eos_token_id, template.turn_end(tokenizer)]
    flat = [end for ends in said for end in (ends if isinstance(ends, list) else [ends])]
    return list(dict.fromkeys(end for end in flat if end is not None))


def _differences(pair: str, mine: Any, theirs: Any) -> dict[int, str]:
    """Return the ids that two tokenizers do not mean the same by, with what is to be said of each; tell of them.

    Raises
    ------
    SalvageError
        Where one of them is no special token to both.
    """
    own, other = ({i: token for token, i in tokenizer.get_vocab().items()} for tokenizer in (mine, theirs))
    special = _special(mine) & _special(theirs)
    renamed = {
        i: f"which the ancestor calls {other[i]!r}" for i in sorted(own.keys() & other.keys()) if own[i] != other[i]
    }
    if real := [i for i in renamed if i not in special]:
        first = real[0]
        raise SalvageError(
            f"{pair} have different vocabularies, first at token {own[first]!r} (id {first}), which the ancestor calls "
            f"{other[first]!r}; give the model the specialist was trained from"
        )
    alone = dict.fromkeys(sorted(own.keys() - other.keys()), "which the ancestor does not know")
    strange = renamed | alone
    if strange:
        named = [f"{own[i]!r} (id {i}), {told}" for i, told in list(strange.items())[:_FEW]]
        more = f"; and {len(strange) - _FEW} more" if len(strange) > _FEW else ""
        warnings.warn(f"{pair} differ in tokens: {'; '.join(named)}{more}; no prompt may hold them", stacklevel=2)
    return strange


def _special(tokenizer: Any) -> set[int]:
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)
