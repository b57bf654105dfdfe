"""An engine without models, for tests of what is built on engines: it reads characters and answers by the seed.

Its completions are the lab's: a trace of the prompt's expression, right as often as `right` says for the kind of
intervention, else with a wrong last digit. The same request gets the same answer, whatever stands beside it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from salvage.engine.base import Completion, Request, Sampling
from salvage.lab import task
from salvage.method.profiles import Tallies
from salvage.policies.fitted import Fitted
from salvage.project import settings
from salvage.project.settings import Settings
from salvage.tables.vocabulary import FACTS, FEATURES, OPERATORS, SIGNALS

CHARACTERS = task.CHARACTERS
END = len(CHARACTERS)  # the end token, which is no text
RIGHT = {"none": 0.2, "sparse": 0.3, "local_temp": 0.1, "dense": 0.35}


class Scripted:
    """Keeps `salvage.engine.base.Engine`; counts what it was asked."""

    context: int | None = None
    ends = [END]  # noqa: RUF012

    def __init__(self, right: dict[str, float] = RIGHT) -> None:
        self.right = right
        self.decoded: list[Request] = []
        self.scored: list[tuple[int, ...]] = []
        self.waves: list[int] = []
        self.looked: list[list[int]] = []
        self.closed = 0

    def prompt(self, problem: Mapping[str, Any]) -> list[int]:
        return self.encode(problem["prompt"])

    def encode(self, text: str) -> list[int]:
        return [CHARACTERS.index(c) for c in text]

    def text(self, tokens: list[int]) -> str:
        return "".join(CHARACTERS[t] for t in tokens if t != END)

    def decode(self, requests: list[Request], *, sampling: Sampling, max_tokens: int) -> list[Completion]:
        self.decoded += requests
        self.waves.append(len(requests))
        return [self._decode(request, max_tokens) for request in requests]

    def span(self, prompt: list[int], completion: list[int], part: str) -> tuple[int, int]:
        return 0, len(completion)

    def _decode(self, request: Request, max_tokens: int) -> Completion:
        rng, kind = random.Random(request.seed), request.intervention.kind
        right = task.trace(self.text(request.prompt)[:-1], rng.choice(task.STYLES))
        wrong = right[:-1] + str((int(right[-1]) + rng.randint(1, 9)) % 10)
        tokens = [*self.encode(right if rng.random() < self.right[kind] else wrong), END][:max_tokens]
        position = -1 if kind == "none" else rng.randrange(len(tokens))
        ancestor = {"none": 0, "sparse": position + 1, "local_temp": position + 1, "dense": len(tokens)}[kind]
        return Completion(tokens, len(tokens), ancestor, 2 * len(request.prompt), position)

    def signals(
        self, prompts: list[list[int]], completions: list[list[int]], *, temperature: float, top_k_cov: int
    ) -> list[dict[str, np.ndarray]]:
        self.scored += [(*prompt, -1, *tokens) for prompt, tokens in zip(prompts, completions, strict=True)]
        return [
            self._signals([*prompt, *tokens], len(tokens)) for prompt, tokens in zip(prompts, completions, strict=True)
        ]

    def _signals(self, tokens: list[int], n: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(tokens)
        told = {name: rng.random(n) for name in SIGNALS} | {"g_cov": rng.normal(size=n)}
        return told | {"j": np.maximum(told["j"] - 0.5, 0)}

    def alternatives(self, prefixes: list[list[int]], *, temperature: float, k: int) -> Any:
        self.looked += prefixes
        said = [np.random.default_rng(prefix).permutation(len(CHARACTERS)).tolist() for prefix in prefixes]
        return [([(t, 0.5) for t in some[:k]], [(t, 0.4) for t in some[-k:]]) for some in said]

    def close(self) -> None:
        self.closed += 1


def built_in(**sections: dict[str, Any]) -> Settings:
    """Return a copy of the built-in settings, the lab's where these are `auto`, and over them what is given."""
    found = copy.deepcopy(_read())
    lab = {"sample": {"max_tokens": 48, "batch": 512}, "featurize": {"top_k_cov": 3}, "intervene": {"warmup": 2}}
    for name, values in (lab | sections).items():
        found.raw[name] |= values
    return found


@cache
def _read() -> Settings:
    return settings.load("nowhere.yaml")


def problems(n: int) -> pd.DataFrame:
    """Return n of the lab's expressions as a problems table."""
    drawn = task.expressions(n, random.Random(1), judged=True, distinct=True)
    rows = [[f"p{i}", "digits", f"{e}:", task.answer(e), "lab", ""] for i, e in enumerate(drawn)]
    return pd.DataFrame(rows, columns=["problem_id", "task", "prompt", "answer", "verifier", "metadata"])


def fitted(name: str = "rule", n: int = 60) -> Fitted:
    """Return a policy fitted on made-up failures q0, q1, ... of cells that nothing else knows."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.random((n, 9)), columns=[*FEATURES, *FACTS])
    table = table.assign(cell="a|digits", task="digits", problem_id=[f"q{i}" for i in range(n)], n_failed_rollouts=1)
    tried = np.full((n, 5), 12.0)
    tried[:, 0] = 24
    correct = rng.binomial(tried.astype(int), rng.random((n, 1)) * 0.5).astype(float)
    tokens = np.tile([10.0, 20, 20, 20, 20], (n, 1))
    return Fitted.fit(name, table, Tallies(correct, tried, tokens), OPERATORS)
