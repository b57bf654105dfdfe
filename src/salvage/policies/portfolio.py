"""The portfolio: a budget spread over operators, retry and stop included, by what failures alike gave.

A failure's neighbours, the training failures with the most similar predicted rescue, are its posterior: their counted
attempts say how likely each mix of attempts is to fail altogether, and, among those that resisted what was tried, what
to try next. Nothing is assumed of how an operator's success goes with another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from salvage.errors import SalvageError
from salvage.method.profiles import Tallies
from salvage.policies.learned import UNTUNED, Learned, out_of_fold
from salvage.policies.policy import codes

NEIGHBOURS = 300
SCALE = (10.0, 50.0)  # of level and advantages: advantages are an order of magnitude smaller
BUDGET = 8.0  # attempts' worth of retries, where none is told
SLACK = 1.005  # a budget counts as kept to half a percent: attempts differ in length by more
ASKED = 100  # neighbours that the order of attempts is told from
CHUNK = 1000  # failures planned at once


def all_fail(tallies: Tallies, most: int) -> np.ndarray:
    """Return the unbiased chance that k attempts all fail, C(n-c, k) / C(n, k), [failures, operators, most + 1].

    NaN where k exceeds the attempts that were made.

    References
    ----------
    method.md, "An honest protocol": never (1 - rate)^k, which is biased.
    """
    wrong, tried = tallies.tried - tallies.correct, tallies.tried
    chance = np.ones((*wrong.shape, most + 1))
    for k in range(1, most + 1):
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.clip(wrong - k + 1, 0, None) / (tried - k + 1)
        chance[..., k] = np.where(tried >= k, chance[..., k - 1] * step, np.nan)
    return chance


def in_retries(tokens: np.ndarray) -> np.ndarray:
    """Return what an attempt costs in retries, [operators], from model-tokens [failures, operators]."""
    return tokens.mean(axis=0) / tokens[:, 0].mean()


def mixes(cost: np.ndarray, budget: float, most: np.ndarray) -> np.ndarray:
    """Return the mixes [mixes, operators] of attempts that a budget affords and that leave no room for another.

    A budget counts as kept to half a percent (`SLACK`).
    """
    budget *= SLACK
    afford = [range(int(min(m, budget // c)) + 1) for c, m in zip(cost, most, strict=True)]
    every = np.array(list(product(*afford)))
    spent = every @ cost
    every, spent = every[spent <= budget], spent[spent <= budget]
    room = ((spent[:, None] + cost <= budget) & (every < most)).any(axis=1)
    return every[~room]


def mix_fails(chance: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Return the chance [failures, mixes] that every attempt of a mix fails, from `all_fail`'s table."""
    result = np.ones((len(chance), len(every)), np.float32)
    for o in range(every.shape[1]):
        result *= chance[:, o].astype(np.float32)[:, every[:, o]]
    return result


def own_mix_fails(chance: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the chance [failures] that every attempt of a failure's own mix, `counts` [failures, operators], fails."""
    at = np.arange(len(chance))
    return np.prod([chance[at, o, counts[:, o]] for o in range(counts.shape[1])], axis=0)


@dataclass(frozen=True)
class Portfolio:
    """Remembered failures, where they lie, and what was tried on them.

    Attributes
    ----------
    choices : tuple of str
    learned_ : Learned
        Says where a failure lies: its predicted level and advantages.
    place_ : array [remembered, 1 + choices]
        Where the remembered lie, predicted out of fold.
    correct_, tried_ : array [remembered, choices]
    cost_ : array [choices]
        Of an attempt, in retries, the mean over the failures it was fitted on.
    budget : float
        In retries' worth of model-tokens a failure, where none is told.
    price : float
        Stop where another retry's worth of tokens would rescue with a smaller chance.
    """

    choices: tuple[str, ...]
    learned_: Learned
    place_: np.ndarray
    correct_: np.ndarray
    tried_: np.ndarray
    cost_: np.ndarray
    budget: float = BUDGET
    price: float = 0.0

    @classmethod
    def fit(cls, failures: pd.DataFrame, tallies: Tallies, choices: Sequence[str], *, seed: int = 0) -> Portfolio:
        """Learn from failures and their attempts.

        Raises
        ------
        SalvageError
            Where there are rates alone: a mix's chance needs counted attempts and their tokens.
        """
        if tallies.tokens is None:
            raise SalvageError("the portfolio needs attempts, not rates alone; give the attempts table too")
        at = codes(choices)
        correct, tried = tallies.correct[:, at], tallies.tried[:, at]
        learned = Learned.fit(failures, tallies, choices, seed=seed, held_out=False)
        place = out_of_fold(failures, correct / tried, learned.most_failed_, UNTUNED, seed)
        return cls(tuple(choices), learned, place, correct, tried, in_retries(tallies.tokens)[at])

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(_scaled(self.place_))

    @cached_property
    def _chance(self) -> np.ndarray:
        return all_fail(Tallies(self.correct_, self.tried_), int(self.tried_.min(axis=0).max()))

    def neighbours(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the remembered failures most alike, [n, neighbours]."""
        among = min(NEIGHBOURS, len(self.place_))
        found = self._tree.query(_scaled(self.learned_.place(failures)), k=among)[1]
        return np.asarray(found).reshape(len(failures), among)

    def plan(self, near: np.ndarray, budget: float | None = None) -> np.ndarray:
        """Return the mix most likely to hold a success within a budget: attempts [n, choices].

        Parameters
        ----------
        near : array, [n, neighbours]
            As `neighbours` gives them.
        budget : float, optional
            In retries' worth of model-tokens a failure.
        """
        every = mixes(self.cost_, self.budget if budget is None else budget, self.tried_.min(axis=0).astype(int))
        fails = mix_fails(self._chance, every)
        chosen = [_mean_over(fails, near[i : i + CHUNK]).argmin(axis=1) for i in range(0, len(near), CHUNK)]
        return every[np.concatenate(chosen)]

    def order(self, near: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return the order of a plan's attempts, [n, attempts] positions in choices, -1 where the plan has ended.

        Next comes what has the best chance a token among the neighbours that resisted so far; below `price` it stops.
        """
        return self.pace(near, counts)[0]

    def pace(self, near: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return that order and each attempt's chance a retry's worth of tokens, [n, attempts] each."""
        n, steps = len(near), int(counts.sum(axis=1).max())
        orders, worths = np.full((n, steps), -1), np.zeros((n, steps))
        for start in range(0, n, CHUNK):
            rows = slice(start, start + CHUNK)
            order, worth = self._order(near[rows, :ASKED], counts[rows])
            orders[rows, : order.shape[1]], worths[rows, : order.shape[1]] = order, worth
        return orders, worths

    def _order(self, near: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n, steps = len(near), int(counts.sum(axis=1).max())
        rows, every = np.arange(n), range(len(self.choices))
        chance = self._chance.astype(np.float32)
        resisted = np.ones(near.shape, np.float32)  # each neighbour's chance to have resisted what was tried
        still = np.stack([_step(chance, near, o, np.zeros(n, int)) for o in every])  # and to resist one attempt more
        done, sequence, worths = np.zeros_like(counts), np.full((n, steps), -1), np.zeros((n, steps))
        going = np.ones(n, bool)
        for step in range(steps):
            gain = 1 - np.einsum("nk,onk->no", resisted, still) / np.maximum(resisted.sum(axis=1), 1e-9)[:, None]
            worth = np.where(done < counts, gain / self.cost_, -np.inf)
            chosen = worth.argmax(axis=1)
            going &= worth[rows, chosen] >= self.price
            sequence[going, step], worths[going, step] = chosen[going], worth[rows, chosen][going]
            resisted = np.where(going[:, None], resisted * still[chosen, rows], resisted)
            done[rows[going], chosen[going]] += 1
            for o in every:
                moved = going & (chosen == o)
                still[o, moved] = _step(chance, near[moved], o, done[moved, o])
        return sequence, worths

    def expected(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the neighbours' mean rescue rate under each operator, [n, choices]."""
        return (self.correct_ / self.tried_)[self.neighbours(failures)].mean(axis=1)

    def interval(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the 95% interval of that mean, [n, choices, 2]."""
        rates = (self.correct_ / self.tried_)[self.neighbours(failures)]
        mean, half = rates.mean(axis=1), 1.96 * rates.std(axis=1) / np.sqrt(rates.shape[1])
        return np.clip(np.stack([mean - half, mean + half], axis=-1), 0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON takes it."""
        return {
            "choices": list(self.choices),
            "learned": self.learned_.to_dict(),
            "place": self.place_.round(6).tolist(),
            "correct": self.correct_.astype(int).tolist(),
            "tried": self.tried_.astype(int).tolist(),
            "cost": self.cost_.tolist(),
            "budget": self.budget,
            "price": self.price,
        }

    @classmethod
    def from_dict(cls, frozen: dict[str, Any]) -> Portfolio:
        """Return the policy that `to_dict` described."""
        arrays = {name: np.array(frozen[name], np.float64) for name in ("place", "correct", "tried", "cost")}
        learned = Learned.from_dict(frozen["learned"])
        place, correct, tried, cost = arrays.values()
        return cls(tuple(frozen["choices"]), learned, place, correct, tried, cost, frozen["budget"], frozen["price"])


def _step(chance: np.ndarray, near: np.ndarray, operator: int, done: np.ndarray) -> np.ndarray:
    """Return each neighbour's chance to resist one attempt more after `done` [n] of them, [n, neighbours]."""
    before = chance[near, operator, done[:, None]]
    after = chance[near, operator, np.minimum(done + 1, chance.shape[2] - 1)[:, None]]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(after / before).astype(np.float32)  # 0 where nothing could resist what was tried


def _scaled(place: np.ndarray) -> np.ndarray:
    return place * np.array([SCALE[0], *[SCALE[1]] * (place.shape[1] - 1)])


def _mean_over(fails: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the mean of rows of `fails` over each row's neighbours: a sparse product, [n, mixes]."""
    n, k = near.shape
    pick = csr_matrix((np.full(n * k, 1 / k, np.float32), near.ravel(), np.arange(0, n * k + 1, k)), (n, len(fails)))
    return np.asarray(pick @ fails)
