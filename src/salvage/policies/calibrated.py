"""The calibrated policy: each cell's rescue rates, shrunk to the pool, tilted by the rule as far as it has held up.

Without outcomes it is the rule; with many it is the best operator of each cell, unless the features say more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from salvage.method.profiles import Tallies, problem_folds
from salvage.policies.policy import codes
from salvage.policies.rule import TARGETS, Rule

PRIOR_TILT = 0.02  # rescue a unit of z, before any outcome is seen; so small that few outcomes outvote it
PRIOR_WEIGHT = 1 / PRIOR_TILT**2  # its precision: a standard deviation as large as itself
INNER = 5


@dataclass(frozen=True)
class CellRates:
    """Mean rescue and the operators' advantages over it, a cell at a time, shrunk by empirical Bayes.

    Attributes
    ----------
    cells_ : dict
        Cell to (level, advantages [choices], variances [choices] of level plus advantage).
    pool_ : tuple
        The same for a cell never seen.
    """

    cells_: dict[str, tuple[float, np.ndarray, np.ndarray]]
    pool_: tuple[float, np.ndarray, np.ndarray]

    @classmethod
    def fit(cls, cell: np.ndarray, rates: np.ndarray) -> CellRates:
        """Shrink the cells' means of `rates` [n, choices] towards the pool's, as far as their noise explains them."""
        if not len(rates):
            none = np.zeros(rates.shape[1])
            return cls({}, (0.0, none, np.full_like(none, np.inf)))
        names, index = np.unique(cell, return_inverse=True)
        n = np.bincount(index).astype(np.float64)
        level = rates.mean(axis=1, keepdims=True)
        parts = [_shrunk(np.hstack([level, rates - level])[:, c], index, n) for c in range(rates.shape[1] + 1)]
        mean, variance, pool, spread = (np.array(part) for part in zip(*parts, strict=True))
        cells = {
            str(name): (float(mean[0, i]), mean[1:, i], variance[0, i] + variance[1:, i])
            for i, name in enumerate(names)
        }
        return cls(cells, (float(pool[0]), pool[1:], spread[0] + spread[1:]))

    def of(self, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return level [n], advantages [n, choices] and variances [n, choices] for failures of these cells."""
        names, index = np.unique(cell, return_inverse=True)
        found = [self.cells_.get(str(name), self.pool_) for name in names] or [self.pool_]  # no failure: of none
        level, advantage, variance = (np.array(part) for part in zip(*found, strict=True))
        return level[index], advantage[index], variance[index]

    def to_dict(self) -> dict[str, Any]:
        """Return the rates as JSON takes them; an unknown variance is null."""

        def entry(rates: tuple[float, np.ndarray, np.ndarray]) -> dict[str, Any]:
            known = bool(np.isfinite(rates[2]).all())
            return {
                "level": rates[0],
                "advantages": rates[1].tolist(),
                "variances": rates[2].tolist() if known else None,
            }

        return {"cells": {cell: entry(rates) for cell, rates in self.cells_.items()}, "pool": entry(self.pool_)}

    @classmethod
    def from_dict(cls, frozen: dict[str, Any]) -> CellRates:
        """Return the rates that `to_dict` described."""

        def rates(entry: dict[str, Any]) -> tuple[float, np.ndarray, np.ndarray]:
            advantages = np.array(entry["advantages"], np.float64)
            spread = np.inf if entry["variances"] is None else entry["variances"]
            return float(entry["level"]), advantages, np.broadcast_to(np.array(spread, np.float64), advantages.shape)

        return cls({cell: rates(entry) for cell, entry in frozen["cells"].items()}, rates(frozen["pool"]))


def cells_of(failures: pd.DataFrame) -> np.ndarray:
    """Return each failure's cell, [n] str; none where no cell is named."""
    return failures["cell"].to_numpy(str) if "cell" in failures else np.full(len(failures), "")


def _shrunk(values: np.ndarray, index: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Return the cells' posterior means and variances, the pool's mean, and its variance for a new cell."""
    means = np.bincount(index, values) / n
    noise = max(float(values.var()), 1e-12) if len(values) > 1 else 1.0
    noise_within = float(((values - means[index]) ** 2).sum() / max(len(values) - len(n), 1)) or noise
    pool = float((n * means).sum() / n.sum())
    # DerSimonian and Laird's estimate: a cell counts by its failures, so that a small one's noise hides nothing
    spread = float((n * (means - pool) ** 2).sum()) - (len(n) - 1) * noise_within
    between = max(0.0, spread / max(n.sum() - (n**2).sum() / n.sum(), 1e-12))
    weight = between / (between + noise_within / n)
    of_pool = noise_within / n.sum()
    variance = weight * noise_within / n + (1 - weight) ** 2 * of_pool
    return pool + weight * (means - pool), variance, pool, between + of_pool


@dataclass(frozen=True)
class Calibrated:
    """Cell rates plus a tilt: `slope_` of rescue a unit of the z that points to an operator.

    Attributes
    ----------
    choices : tuple of str
        Operators it may choose among.
    rule_ : Rule
        The pooled reference; `rules_` has those of the cells with two failures or more.
    rates_ : CellRates
    slope_ : float
    """

    choices: tuple[str, ...]
    rule_: Rule
    rules_: dict[str, Rule]
    rates_: CellRates
    slope_: float

    @classmethod
    def fit(
        cls, failures: pd.DataFrame, tallies: Tallies, choices: Sequence[str], *, outcomes: int | None = None
    ) -> Calibrated:
        """Learn from failures and their attempts.

        Parameters
        ----------
        failures : DataFrame
            Profiles (their rates are not read); all of them make the z-scores' reference.
        tallies : Tallies
            What the operators' attempts gave.
        choices : sequence of str
            Operators to choose among.
        outcomes : int, optional
            Take outcomes of that many failures a cell alone, the first; None takes all.
        """
        rule = Rule.fit(failures)
        groups = {str(cell): rows for cell, rows in failures.groupby("cell", sort=True)}
        rules = {cell: Rule.fit(rows) for cell, rows in groups.items() if len(rows) > 1}
        blank = cls(tuple(choices), rule, rules, CellRates.fit(np.array([]), np.zeros((0, len(choices)))), PRIOR_TILT)
        rank = failures.groupby("cell").cumcount().to_numpy()
        known = np.flatnonzero(rank < (np.inf if outcomes is None else outcomes))
        if not len(known):
            return blank
        seen, rates = failures.iloc[known], tallies.rates[known][:, codes(choices)]
        cell = seen["cell"].to_numpy(str)
        tilt = blank.tilt(seen)
        return cls(tuple(choices), rule, rules, CellRates.fit(cell, rates), _slope(seen, cell, rates, tilt))

    def tilt(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the z that points to each choice, [n, choices], less their mean over the choices."""
        z, cell = np.empty((len(failures), 3)), cells_of(failures)
        for name in np.unique(cell):
            inside = cell == name
            z[inside] = self.rules_.get(str(name), self.rule_).scores(failures[inside])
        pointed = np.zeros((len(failures), len(self.choices)))
        for i, target in enumerate(TARGETS):
            if target in self.choices:
                pointed[:, self.choices.index(target)] = z[:, i]
        return pointed - pointed.mean(axis=1, keepdims=True)

    def expected(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the expected rescue rates, [n, choices], between 0 and 1 once outcomes were seen."""
        level, advantage, _ = self.rates_.of(cells_of(failures))
        told = level[:, None] + advantage + self.slope_ * self.tilt(failures)
        return np.clip(told, 0, 1) if self.rates_.cells_ else told

    def interval(self, failures: pd.DataFrame) -> np.ndarray:
        """Return 95% intervals of the cell's rates as tilted, [n, choices, 2]; 0 to 1 where no outcome was seen."""
        half = 1.96 * np.sqrt(self.rates_.of(cells_of(failures))[2])
        told = self.expected(failures)
        return np.clip(np.stack([told - half, told + half], axis=-1), 0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON takes it."""
        return {
            "choices": list(self.choices),
            "rule": self.rule_.to_dict(),
            "rules": {cell: rule.to_dict() for cell, rule in self.rules_.items()},
            "rates": self.rates_.to_dict(),
            "slope": self.slope_,
        }

    @classmethod
    def from_dict(cls, frozen: dict[str, Any]) -> Calibrated:
        """Return the policy that `to_dict` described."""
        return cls(
            tuple(frozen["choices"]),
            Rule.from_dict(frozen["rule"]),
            {cell: Rule.from_dict(rule) for cell, rule in frozen["rules"].items()},
            CellRates.from_dict(frozen["rates"]),
            float(frozen["slope"]),
        )


def _slope(failures: pd.DataFrame, cell: np.ndarray, rates: np.ndarray, tilt: np.ndarray) -> float:
    """Return the rescue a unit of z: the prior, moved by what cell rates of other problems leave unexplained."""
    fold = problem_folds(failures, INNER, np.random.default_rng(0))
    advantage = rates - rates.mean(axis=1, keepdims=True)
    rest = np.zeros_like(advantage)
    for k in range(INNER):
        held = fold == k
        rest[held] = advantage[held] - CellRates.fit(cell[~held], rates[~held]).of(cell[held])[1]
    noise = max(float((rest**2).mean()), 1e-12)
    slope = (PRIOR_WEIGHT * PRIOR_TILT + (tilt * rest).sum() / noise) / (PRIOR_WEIGHT + (tilt**2).sum() / noise)
    return max(0.0, float(slope))
