"""The routing rule (method.md, "The routing rule") and what all policies share: fit, choose, freeze.

The rule goes from three features to an operator without training. `calibrated`, `learned` and `portfolio`, each in a
file of its own, learn from attempts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from salvage import schema
from salvage.errors import SalvageError
from salvage.profiles import Tallies, problem_keys

TARGETS = np.array(["dense_steer", "sparse_steer", "local_temp"])  # in the features' order
FALLBACK = "sparse_steer_random"
PRIORITY = [FALLBACK, *TARGETS, "retry"]  # ties go to the first: so does the rule, whose fallback has z = 0


@dataclass(frozen=True)
class Rule:
    """The rule with its reference frozen, so that a single request scores the same as a batch.

    Attributes
    ----------
    mean_, std_ : array, [3]
        Of the reference population (ddof 0), in the order of schema.FEATURES.
    fallback : bool
        Whether a failure with no z above 0 goes to sparse_steer_random rather than to its largest z.

    Examples
    --------
    >>> reference = pd.DataFrame({"spread": [0.1, 0.3], "concentration": [1.0, 2.0], "logit_dispersion": [-1.0, 0.0]})
    >>> Rule.fit(reference).route(reference).tolist()
    ['sparse_steer_random', 'dense_steer']
    """

    mean_: np.ndarray
    std_: np.ndarray
    fallback: bool = True

    @classmethod
    def fit(cls, profiles: pd.DataFrame, fallback: bool = True) -> Rule:
        """Learn the reference from a population of at least two failures.

        Raises
        ------
        SalvageError
            Where a feature is not finite, or there is one failure alone: its z-scores are undefined.
        """
        x = feature_matrix(profiles)
        if len(x) < 2:
            raise SalvageError(
                f"{len(x)} failure{'' if len(x) == 1 else 's'}: z-scores are undefined without a reference population; "
                "give at least two failures, or a frozen reference"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = x.mean(axis=0), x.std(axis=0)
        if not np.isfinite(std).all():
            name = schema.FEATURES[int(np.argmin(np.isfinite(std)))]
            raise SalvageError(f"column {name!r} has values too large to scale; correct them")
        constant = (x == x[0]).all(axis=0)  # rounding may leave a constant column a std of 1e-17
        return cls(mean, np.where(constant, 0.0, std), fallback)

    def scores(self, profiles: pd.DataFrame) -> np.ndarray:
        """Return the z-scores [n, 3]; a feature constant over the reference has z = 0."""
        return self.z(feature_matrix(profiles))

    def z(self, x: np.ndarray) -> np.ndarray:
        """Return the z-scores [n, 3] of a feature matrix [n, 3]."""
        scale = np.where(self.std_ > 0, self.std_, 1.0)
        with np.errstate(over="ignore"):
            z = np.where(self.std_ > 0, (x - self.mean_) / scale, 0.0)
        if not np.isfinite(z).all():  # two infinities would have no margin, and no largest
            row, column = np.argwhere(~np.isfinite(z))[0]
            where = f"row {row}, column {schema.FEATURES[column]!r}"
            raise SalvageError(f"{where}: {x[row, column]} is too far from the reference to be scaled; correct it")
        return z

    def route(self, profiles: pd.DataFrame) -> np.ndarray:
        """Return the operator's name [n] for each failure."""
        return choose(self.scores(profiles), self.fallback)

    def to_dict(self) -> dict[str, Any]:
        """Return the frozen reference as JSON takes it."""
        reference = {
            name: {"mean": float(m), "std": float(s)}
            for name, m, s in zip(schema.FEATURES, self.mean_, self.std_, strict=True)
        }
        return {"policy": "rule", "fallback": self.fallback, "reference": reference}

    @classmethod
    def from_dict(cls, frozen: dict[str, Any]) -> Rule:
        """Return the rule that `to_dict` described."""
        reference = [frozen["reference"][name] for name in schema.FEATURES]
        mean, std = (np.array([entry[key] for entry in reference], np.float64) for key in ("mean", "std"))
        return cls(mean, std, bool(frozen["fallback"]))


def feature_matrix(profiles: pd.DataFrame) -> np.ndarray:
    """Return the three features as [n, 3], or say which row and column is not a finite number."""
    for name in schema.FEATURES:
        if name not in profiles:
            raise SalvageError(f"column {name!r} is missing; routing needs {', '.join(schema.FEATURES)}")
    try:
        x = profiles[schema.FEATURES].to_numpy(np.float64)
    except (TypeError, ValueError):
        raise SalvageError(f"the columns {', '.join(schema.FEATURES)} must be numbers; correct the table") from None
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        name = schema.FEATURES[column]
        raise SalvageError(f"row {row}, column {name!r}: {x[row, column]} is not a finite number; correct or drop it")
    return x


def choose(z: np.ndarray, fallback: bool) -> np.ndarray:
    """Return the operator [n] of the largest z [n, 3]; ties go to the first."""
    best = TARGETS[z.argmax(axis=1)]
    return np.where((z.max(axis=1) <= 0) & fallback, FALLBACK, best)


def margin(z: np.ndarray) -> np.ndarray:
    """Return the largest z less the second [n]."""
    ordered = np.sort(z, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def route_batch(profiles: pd.DataFrame, fallback: bool = True) -> np.ndarray:
    """Route a batch scaled over itself, as in the paper; a `Rule` freezes the reference instead."""
    return Rule.fit(profiles, fallback).route(profiles)


def decide(profiles: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """Return operator, z_<feature> and margin for every failure, in order: what the served router answers."""
    z = rule.scores(profiles)
    columns = {f"z_{name}": z[:, i] for i, name in enumerate(schema.FEATURES)}
    return pd.DataFrame({"operator": choose(z, rule.fallback), **columns, "margin": margin(z)}, index=profiles.index)


def decide_by_cell(profiles: pd.DataFrame, fallback: bool = True) -> pd.DataFrame:
    """Decide with the reference fitted on the failures themselves, cell by cell (all one cell where none is named).

    Raises
    ------
    SalvageError
        Where a cell has one failure alone.
    """
    if "cell" not in profiles:
        return decide(profiles, Rule.fit(profiles, fallback))
    feature_matrix(profiles)  # errors name the row of the whole table, not of a cell
    parts = []
    for cell, rows in profiles.groupby("cell", sort=False):
        if len(rows) < 2:
            raise SalvageError(
                f"row {rows.index[0]}: cell {cell!r} has one failure alone, and z-scores are undefined without a "
                "reference population; give one with --reference FILE or --model URI"
            )
        parts.append(decide(rows, Rule.fit(rows, fallback)))
    return pd.concat(parts).loc[profiles.index]


# ------------------------------------------------------------------ policies


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


def policy_class(name: str) -> Any:
    """Return the class of a policy by name; trees are imported only where they are asked for."""
    if name in ("fixed", "random"):
        return {"fixed": Fixed, "random": Random}[name]
    if name == "calibrated":
        from salvage.calibrated import Calibrated

        return Calibrated
    if name == "learned":
        from salvage.learned import Learned

        return Learned
    if name == "portfolio":
        from salvage.portfolio import Portfolio

        return Portfolio
    raise SalvageError(f"policy {name!r} is not one of {', '.join(POLICIES)}; correct it")


POLICIES = ["rule", "fixed", "random", "calibrated", "learned", "portfolio"]


@dataclass(frozen=True)
class Fitted:
    """A policy with what it was fitted on: what is registered, and what an evaluation may score elsewhere.

    Attributes
    ----------
    name : str
        One of POLICIES.
    rule : Rule
        The z-scores' reference; for the policy `rule`, the policy itself.
    policy : Policy or None
        None for the rule.
    problems : frozenset of str
        Keys of the problems it was fitted on.
    """

    name: str
    rule: Rule
    policy: Policy | None
    problems: frozenset[str]

    @classmethod
    def fit(
        cls, name: str, failures: pd.DataFrame, tallies: Tallies, choices: Sequence[str], **settings: Any
    ) -> Fitted:
        """Fit a policy by name and note the problems it saw."""
        seen = frozenset(map(problem_key, problem_keys(failures)))
        rule = Rule.fit(failures)
        if name == "rule":
            return cls(name, rule, None, seen)
        return cls(name, rule, policy_class(name).fit(failures, tallies, tuple(choices), **settings), seen)

    def route(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the operator's name [n] for each failure."""
        if self.policy is None:
            return self.rule.route(failures)
        return pick(self.policy.expected(failures), self.policy.choices)

    def refuse_seen(self, failures: pd.DataFrame) -> None:
        """Refuse to be scored on a problem that it was fitted on.

        Raises
        ------
        SalvageError
            Naming the first such problem.
        """
        for i, key in enumerate(problem_keys(failures)):
            if problem_key(key) in self.problems:
                raise SalvageError(
                    f"policy {self.name!r} was fitted on problem {str(key)!r} (row {i}) and cannot be scored on it; "
                    "score it on problems that it has not seen"
                )

    @cached_property
    def version(self) -> str:
        """A hash of all that `to_dict` tells; the same for the same policy fitted on the same failures."""
        return str(self.to_dict()["version"])

    def to_dict(self) -> dict[str, Any]:
        """Return the fitted policy as JSON takes it; `version` is a hash of all the rest."""
        frozen = self.rule.to_dict() | {"policy": self.name, "problems": sorted(self.problems)}
        if self.policy is not None:
            frozen["fitted"] = self.policy.to_dict()
        digest = hashlib.sha256(json.dumps(frozen, sort_keys=True).encode()).hexdigest()
        return {**frozen, "version": digest[:12]}

    @classmethod
    def from_dict(cls, frozen: dict[str, Any]) -> Fitted:
        """Return the fitted policy that `to_dict` described."""
        name = frozen["policy"]
        policy = policy_class(name).from_dict(frozen["fitted"]) if name != "rule" else None
        return cls(name, Rule.from_dict(frozen), policy, frozenset(frozen["problems"]))


def problem_key(problem: str) -> str:
    """Return a short hash of a problem's name, so that a registered policy tells nobody its problems."""
    return hashlib.blake2b(problem.encode(), digest_size=8).hexdigest()


def codes(choices: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return the operators' positions in schema.OPERATORS."""
    return np.array([schema.OPERATORS.index(name) for name in choices])


def pick(expected: np.ndarray, choices: Sequence[str]) -> np.ndarray:
    """Return the operator [n] of the largest worth [n, choices]; ties go by `PRIORITY`."""
    order = [i for name in PRIORITY for i, choice in enumerate(choices) if choice == name]
    names = np.array(choices)[order]
    return names[expected[:, order].argmax(axis=1)]
