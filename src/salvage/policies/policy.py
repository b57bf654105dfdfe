"""What every policy is, the plainest of them, and how operators are numbered and picked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from salvage.method.profiles import Tallies
from salvage.policies.rule import FALLBACK, TARGETS, feature_matrix
from salvage.tables import vocabulary

PRIORITY = [FALLBACK, *TARGETS, "retry"]  # ties go to the first: so does the rule, whose fallback has z = 0


class Policy(Protocol):
    """What chooses an operator for a failure, from what is known before any attempt.

    A policy is made by a class method `fit(failures, tallies, choices)`; `to_dict` and `from_dict` freeze it as JSON.
    """

    choices: tuple[str, ...]

    def expected(self, failures: pd.DataFrame) -> np.ndarray:
        """Return what each choice is worth, [n, choices]: the expected rescue rate, where the policy knows one."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON takes it."""
        ...


@runtime_checkable
class KnowsRates(Policy, Protocol):
    """A policy whose worth is an expected rescue rate, with an interval."""

    def interval(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the 95% interval of each expected rescue rate, [n, choices, 2]."""
        ...


@runtime_checkable
class Plans(KnowsRates, Protocol):
    """A policy that plans several attempts."""

    def neighbours(self, failures: pd.DataFrame) -> np.ndarray:
        """Return what plans are made from, [n, neighbours]."""
        ...

    def plan(self, near: np.ndarray, budget: float | None = None) -> np.ndarray:
        """Return attempts under each choice, [n, choices]."""
        ...

    def order(self, near: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the order of a plan's attempts, [n, attempts]."""
        ...


@dataclass(frozen=True)
class Fixed:
    """One operator for all failures, or one a cell: the best in training."""

    choices: tuple[str, ...]
    worth_: np.ndarray  # [choices]: the mean rescue
    cells_: dict[str, np.ndarray]  # the same for each cell, where it may differ by cell

    @classmethod
    def fit(cls, failures: pd.DataFrame, tallies: Tallies, choices: Sequence[str], *, by_cell: bool = False) -> Fixed:
        """Learn the mean rescue of every choice."""
        rates = tallies.rates[:, codes(choices)]
        cell = failures["cell"].to_numpy(str)
        names = np.unique(cell) if by_cell else np.array([], str)
        return cls(tuple(choices), rates.mean(axis=0), {str(name): rates[cell == name].mean(axis=0) for name in names})

    def expected(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the mean rescue of every choice, [n, choices]; a cell never seen has the pool's."""
        if not self.cells_ or "cell" not in failures:
            return np.tile(self.worth_, (len(failures), 1))
        return np.stack([self.cells_.get(str(cell), self.worth_) for cell in failures["cell"]])

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON takes it."""
        cells = {cell: worth.tolist() for cell, worth in self.cells_.items()}
        return {"choices": list(self.choices), "worth": self.worth_.tolist(), "cells": cells}

    @classmethod
    def from_dict(cls, frozen: dict[str, Any]) -> Fixed:
        """Return the policy that `to_dict` described."""
        cells = {cell: np.array(worth) for cell, worth in frozen["cells"].items()}
        return cls(tuple(frozen["choices"]), np.array(frozen["worth"]), cells)


@dataclass(frozen=True)
class Random:
    """An intervention at random, the same for the same features."""

    choices: tuple[str, ...]

    @classmethod
    def fit(cls, failures: pd.DataFrame, tallies: Tallies, choices: Sequence[str]) -> Random:
        """Learn nothing."""
        return cls(tuple(choices))

    def expected(self, failures: pd.DataFrame) -> np.ndarray:
        """Return random numbers, [n, choices], drawn by each failure's features."""
        drawn = [np.random.default_rng(np.frombuffer(row.tobytes(), np.uint32)) for row in feature_matrix(failures)]
        worth = np.stack([rng.random(len(self.choices)) for rng in drawn])
        worth[:, [choice == "retry" for choice in self.choices]] = 0
        return worth

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON takes it."""
        return {"choices": list(self.choices)}

    @classmethod
    def from_dict(cls, frozen: dict[str, Any]) -> Random:
        """Return the policy that `to_dict` described."""
        return cls(tuple(frozen["choices"]))


def codes(choices: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the operators' positions in vocabulary.OPERATORS."""
    return np.array([vocabulary.OPERATORS.index(name) for name in choices], np.int64)


def pick(expected: np.ndarray, choices: Sequence[str]) -> np.ndarray:
    """Return the operator [n] of the largest worth [n, choices]; ties go by `PRIORITY`."""
    order = [i for name in PRIORITY for i, choice in enumerate(choices) if choice == name]
    names = np.array(choices)[order]
    return names[expected[:, order].argmax(axis=1)]
