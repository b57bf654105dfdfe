"""A fitted policy: any of them by name, with the rule's reference and the problems it saw, frozen as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.method.profiles import Tallies, problem_keys
from salvage.policies.policy import Fixed, Policy, Random, pick
from salvage.policies.rule import Rule


def policy_class(name: str) -> Any:
    """Return the class of a policy by name; trees are imported only where they are asked for."""
    if name in ("fixed", "random"):
        return {"fixed": Fixed, "random": Random}[name]
    if name == "calibrated":
        from salvage.policies.calibrated import Calibrated

        return Calibrated
    if name == "learned":
        from salvage.policies.learned import Learned

        return Learned
    if name == "portfolio":
        from salvage.policies.portfolio import Portfolio

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
