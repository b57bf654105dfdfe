"""The small interface every engine keeps: decode (sampling is decoding with no intervention) and signals."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np

from salvage.errors import SalvageError

PATH, COV = 0, 1  # the two mixes of method.md: e-geodesic and m-geodesic


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: at a temperature, and from which tokens, in vLLM's order (`salvage.engine.truncation`).

    Attributes
    ----------
    temperature : float
        Signals and the watched j are at it too; they are of the whole distributions, never of what is left of them.
    top_p : float
        Of what the others leave, the fewest likeliest tokens that have this share together; 1 for all.
    top_k : int
        The likeliest tokens, so many, with all that tie with the last; 0 for all.
    min_p : float
        Tokens with at least this share of the likeliest one's probability; 0 for all.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, holds, wanted in (
            ("temperature", 0 < self.temperature < float("inf"), "a finite number above 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not holds:
                raise SalvageError(f"{name} is {getattr(self, name)}, but must be {wanted}; correct it")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Sampling:
        """Return what params.yaml's `sample` says."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def truncates(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True)
class Intervention:
    """What is done to one decode, and where. The default does nothing: plain sampling of the specialist.

    Attributes
    ----------
    kind : {"none", "sparse", "local_temp", "dense"}
        `sparse` takes the mix's argmax at one position, `local_temp` samples the specialist at another temperature
        at one position, `dense` mixes at every position.
    threshold : float or None
        Watch j and act once, at the first position >= `warmup` where j >= `threshold` (method.md, anchor `online`).
    position : int or None
        Act at this index of the completion; a replayed prefix counts.
    mix : int or None
        PATH or COV; None lets the larger part of j at the junction decide.
    wrong : bool
        Take the other mix than the one decided (method.md, sparse_steer_wrong).
    """

    kind: str = "none"
    threshold: float | None = None
    warmup: int = 0
    position: int | None = None
    mix: int | None = None
    wrong: bool = False
    alpha: float = 0.7
    local_temperature: float = 1.0
    greedy: bool = False  # dense only: take the mix's argmax at every position

    @property
    def watches(self) -> bool:
        return self.threshold is not None

    @property
    def needs_ancestor(self) -> bool:
        return self.watches or self.kind in ("sparse", "dense")


@dataclass(frozen=True)
class Request:
    """One decode: a prompt, tokens already taken, an intervention, and where its random numbers come from."""

    prompt: list[int]
    seed: int
    prefix: list[int] = field(default_factory=list)  # of the completion; kept, not paid for
    intervention: Intervention = Intervention()
    greedy: bool = False  # continuation `greedy`: the specialist's argmax instead of a sample


@dataclass(frozen=True)
class Completion:
    """The answer to a request: prefix and decoded tokens together (the end token included), and what it cost."""

    tokens: list[int]
    n_tokens: int  # decoded by the specialist
    n_ancestor_tokens: int  # decoded by the ancestor: none after a sparse intervention has acted
    n_prefill: int  # prompt and prefix, of both models where both ran
    position: int  # where the intervention acted, -1 where it did not
    truncated: bool = False  # it met max_tokens before an end token


class Engine(Protocol):
    """A specialist, its ancestor and their tokenizer."""

    context: int | None  # tokens that prompt and completion may have together; None: no bound known
    ends: list[int]  # tokens that end a completion

    def prompt(self, problem: Mapping[str, Any]) -> list[int]:
        """Return the token ids of a problem's prompt, a row of the problems table: plain text, or a chat."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a completion's text."""
        ...

    def text(self, tokens: list[int]) -> str:
        """Return a completion's text, special tokens left out."""
        ...

    def span(self, prompt: list[int], completion: list[int], part: str) -> tuple[int, int]:
        """Return where a part of a completion begins and ends (`vocabulary.PARTS`); it is empty where there is none."""
        ...

    def decode(self, requests: list[Request], *, sampling: Sampling, max_tokens: int) -> list[Completion]:
        """Answer every request, in order; `max_tokens` bounds prefix and decoded tokens together."""
        ...

    def signals(
        self, prompts: list[list[int]], completions: list[list[int]], *, temperature: float, top_k_cov: int
    ) -> list[dict[str, np.ndarray]]:
        """Return the per-token signals of method.md for every completion, exact over the vocabulary."""
        ...

    def alternatives(
        self, prefixes: list[list[int]], *, temperature: float, k: int
    ) -> list[tuple[list[tuple[int, float]], list[tuple[int, float]]]]:
        """Return what each model, specialist and ancestor, would say next: its k likeliest tokens, with probabilities.

        A prefix is a prompt with what was taken of a completion.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds; it is not used afterwards."""
        ...


def seed_of(*parts: object) -> int:
    """Return a 63-bit seed that depends on the parts alone, so that batch order and resumption change nothing.

    Examples
    --------
    >>> seed_of(0, "qwen3-sft-0|digits", "p1", "retry", 3) == seed_of(0, "qwen3-sft-0|digits", "p1", "retry", 3)
    True
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
