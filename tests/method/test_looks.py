"""How a failed rollout looks: what is asked of the engine, and what is told of its answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from salvage.method.looks import looks
from salvage.method.operators import FailedRollout


class Letters:
    """An engine of a token a letter, that remembers what alternatives it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def text(self, tokens: list[int]) -> str:
        return "".join("abcdefgh"[t] for t in tokens)

    def alternatives(self, prefixes: list[list[int]], *, temperature: float, k: int) -> list[Any]:
        self.asked.append((prefixes, temperature, k))
        return [([(i, 0.123456), (0, 0.00001)], [(i + 2, 0.5)]) for i in range(len(prefixes))]


def test_looks_by_hand() -> None:
    engine = Letters()
    failed = [
        ([9, 9], FailedRollout([0, 1, 2], 2, np.zeros(3)), np.array([0.0, 0.123456, 2.0])),
        ([8], FailedRollout([4, 5], 0, np.zeros(2)), np.array([1.5, 0.0])),
    ]
    told = looks(engine, failed, 0.6)  # type: ignore[arg-type]
    assert engine.asked == [([[9, 9, 0, 1], [8]], 0.6, 5)]  # what stood before each junction
    assert told == [
        {
            "tokens": ["a", "b", "c"],
            "j": [0.0, 0.1235, 2.0],
            "junction": 2,
            "alternatives": {"specialist": [["a", 0.1235], ["a", 0.0]], "ancestor": [["c", 0.5]]},
        },
        {
            "tokens": ["e", "f"],
            "j": [1.5, 0.0],
            "junction": 0,
            "alternatives": {"specialist": [["b", 0.1235], ["a", 0.0]], "ancestor": [["d", 0.5]]},
        },
    ]
