"""From a fitted policy to what is tried next on each failure, and why: what the closed loop asks before it spends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.method.profiles import regimes_of
from salvage.policies.fitted import Fitted
from salvage.policies.portfolio import Portfolio
from salvage.policies.rule import decide
from salvage.tables import vocabulary

STOP = "stop"
LARGEST = 16.0  # retries' worth that a plan is made for: there are hundreds of thousands of mixes beyond


@dataclass(frozen=True)
class Route:
    """What to try on one failure.

    Attributes
    ----------
    order : list of str
        Operators, one an attempt.
    then : str
        What goes on after them until the budget is spent: an operator, or `stop`.
    worth : list of float
        The chance of each attempt in `order`, a retry's worth of tokens; empty where the policy knows none.
    why : dict
        What the policy saw and knows: z-scores, margin, expected rescue rates, the plan, the regimes of failures alike.
    """

    order: list[str]
    then: str
    worth: list[float] = field(default_factory=list)
    why: dict[str, Any] = field(default_factory=dict)

    def next(self, attempt: int) -> str:
        """Return the operator of an attempt, counted from 0."""
        return self.order[attempt] if attempt < len(self.order) else self.then

    def value(self, attempt: int) -> float:
        """Return what an attempt is worth; 0 where nothing is known."""
        return self.worth[attempt] if attempt < len(self.worth) else 0.0


def routes(
    fitted: Fitted, failures: pd.DataFrame, retries: np.ndarray | None, *, by_attempts: bool, price: float = 0.0
) -> list[Route]:
    """Ask a policy about failures.

    A portfolio plans attempts within what is left of each failure's budget, and goes on with retries if tokens are left
    over; any other policy's operator is tried again and again.

    Parameters
    ----------
    failures : DataFrame
        One row a failure: cell, problem_id, n_failed_rollouts, the features and facts.
    retries : array, [failures], or None
        What is left to spend on each, in retries' worth; None where they share one budget.
    by_attempts : bool
        Whether the budget counts attempts, so that every operator costs the same.
    price : float
        Stop where another retry's worth would rescue with a smaller chance; for a portfolio alone.
    """
    told = decide(failures, fitted.rule).to_dict("records")
    why = [{"policy": fitted.name, "policy_version": fitted.version, **_plain(row)} for row in told]
    policy = fitted.policy
    if price and not isinstance(policy, Portfolio):
        raise SalvageError(f"a price needs a policy that plans, a portfolio; this one is {fitted.name!r}; leave it out")
    if policy is None:
        return [Route([], row["operator"], why=row) for row in why]
    for row, worth in zip(why, policy.expected(failures), strict=True):
        row["expected"] = dict(zip(policy.choices, worth.round(4).tolist(), strict=True))
    if not isinstance(policy, Portfolio):
        return [
            Route([], str(name), why=row | {"operator": str(name)})
            for name, row in zip(fitted.route(failures), why, strict=True)
        ]
    portfolio = replace(policy, price=price or policy.price)
    if by_attempts:
        portfolio = replace(portfolio, cost_=np.ones_like(policy.cost_))
    near = portfolio.neighbours(failures)
    counts = np.tile(portfolio.tried_.min(axis=0).astype(int), (len(near), 1))
    if retries is not None:
        for budget in np.unique(retries):
            rows = retries == budget
            counts[rows] = portfolio.plan(near[rows], min(float(budget), LARGEST))
    for row, regime in zip(why, _regimes(portfolio, near), strict=True):
        row["regime"] = regime
    planned = zip(*portfolio.pace(near, counts), counts, why, strict=True)
    return [_planned(portfolio.choices, *row) for row in planned]


def _planned(choices: Sequence[str], order: np.ndarray, worth: np.ndarray, counts: np.ndarray, why: Any) -> Route:
    planned = order >= 0
    names = [choices[o] for o in order[planned]]
    stops = len(names) < counts.sum()
    then = STOP if stops else "retry"
    told = why | {"operator": names[0] if names else then, "plan": names[:20]}
    return Route(names, then, worth[planned].tolist(), told)


def _regimes(portfolio: Portfolio, near: np.ndarray) -> list[dict[str, float]]:
    """Return how often each regime is among the remembered failures most alike: what a failure's own may be."""
    rates = portfolio.correct_ / portfolio.tried_
    column = {
        name: rates[:, portfolio.choices.index(name)] for name in vocabulary.OPERATORS if name in portfolio.choices
    }
    if len(column) < len(vocabulary.OPERATORS):
        return [{} for _ in near]
    regime = regimes_of(column["retry"], np.stack([column[name] for name in vocabulary.INTERVENTIONS], axis=1))
    shares = {str(name): (regime == name)[near].mean(axis=1).round(4).tolist() for name in np.unique(regime)}
    return [dict(zip(shares, row, strict=True)) for row in zip(*shares.values(), strict=True)]


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, str) else round(float(value), 4) for key, value in row.items()}
