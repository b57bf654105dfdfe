"""The policies by themselves: what calibrated falls back to, what a portfolio affords, counts and orders."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.errors import SalvageError
from salvage.method.profiles import Tallies, from_rates, problem_folds, tally
from salvage.policies.calibrated import Calibrated, CellRates
from salvage.policies.learned import Learned
from salvage.policies.policy import pick
from salvage.policies.portfolio import Portfolio, all_fail, mix_fails, mixes
from salvage.policies.rule import decide_by_cell
from salvage.tables.vocabulary import FEATURES, INTERVENTIONS, OPERATORS
from worlds import planted


def failures(n: int, seed: int, cells: int = 2) -> pd.DataFrame:
    truth = np.random.default_rng(seed).beta(1, 2, size=(n, 5))
    return planted(truth, cells=cells, seed=seed)[0]


# ------------------------------------------------------------------ portfolio


@given(st.integers(1, 7), st.integers(0, 7))
def test_the_chance_that_attempts_fail_is_that_of_drawing_without_replacement(n: int, right: int) -> None:
    right = min(right, n)
    told = all_fail(Tallies(np.array([[right]]), np.array([[n]])), n)[0, 0]
    outcomes = [1] * right + [0] * (n - right)
    for k in range(n + 1):
        drawn = list(combinations(outcomes, k))
        assert told[k] == pytest.approx(sum(not any(d) for d in drawn) / comb(n, k))
    assert np.isnan(all_fail(Tallies(np.array([[right]]), np.array([[n]])), n + 1)[0, 0, -1])


@given(
    st.lists(st.floats(0.5, 3), min_size=2, max_size=4),
    st.floats(1, 9),
    st.lists(st.integers(0, 6), min_size=4, max_size=4),
)
def test_mixes_fill_a_budget_and_no_more(cost: list[float], budget: float, most: list[int]) -> None:
    price, limit = np.array(cost), np.array(most[: len(cost)])
    every = mixes(price, budget, limit)
    spent = every @ price
    assert (spent <= budget * 1.005).all() and (every <= limit).all()
    assert len({tuple(mix) for mix in every}) == len(every) > 0
    room = (spent[:, None] + price <= budget * 1.005) & (every < limit)
    assert not room.any()


@pytest.fixture(scope="module")
def fitted() -> tuple[Portfolio, pd.DataFrame]:
    rng = np.random.default_rng(5)
    truth = rng.beta(0.4, 0.8, size=(300, 5))
    profiles, attempts = planted(truth, attempts=24, cells=2, seed=5)
    return Portfolio.fit(profiles, tally(profiles, attempts)[0], OPERATORS), profiles


def test_an_order_is_its_plan_in_a_row(fitted: tuple[Portfolio, pd.DataFrame]) -> None:
    policy, profiles = fitted
    near = policy.neighbours(profiles.head(40))
    for budget in (2, 5, 9):
        counts = policy.plan(near, budget)
        order = policy.order(near, counts)
        for row, planned in zip(order, counts, strict=True):
            assert np.bincount(row[row >= 0], minlength=5).tolist() == planned.tolist()
        assert (counts @ policy.cost_ <= budget * 1.005).all()


def test_a_plan_is_the_best_of_all_mixes_over_its_neighbours(fitted: tuple[Portfolio, pd.DataFrame]) -> None:
    policy, profiles = fitted
    near = policy.neighbours(profiles.head(5))
    every = mixes(policy.cost_, 4, policy.tried_.min(axis=0).astype(int))
    fails = mix_fails(all_fail(Tallies(policy.correct_, policy.tried_), 24), every)
    for row, planned in zip(near, policy.plan(near, 4), strict=True):
        worth = fails[row].mean(axis=0)
        assert worth[(every == planned).all(axis=1)] == pytest.approx(worth.min(), abs=1e-6)


def test_a_price_stops_earlier_the_higher_it_is(fitted: tuple[Portfolio, pd.DataFrame]) -> None:
    from dataclasses import replace

    policy, profiles = fitted
    near = policy.neighbours(profiles)
    counts = policy.plan(near, 12)
    lengths = [(replace(policy, price=p).order(near, counts) >= 0).sum() for p in (0.0, 0.05, 0.2, 2.0)]
    assert lengths[0] == counts.sum() and lengths == sorted(lengths, reverse=True) and lengths[-1] == 0


def test_rates_alone_make_no_portfolio() -> None:
    table = failures(30, 0)
    with pytest.raises(SalvageError, match="needs attempts, not rates alone"):
        Portfolio.fit(table, from_rates(table), OPERATORS)


# ------------------------------------------------------------------ learned, folds


def test_tuning_is_reproducible_and_trees_learn_a_feature() -> None:
    table = failures(400, 7)
    rates = np.full((400, 5), 0.3)
    rates[:, 4] += np.where(table["spread"] > 0, 0.4, -0.2)
    tallies = Tallies(rates, np.ones_like(rates))
    one, two = (Learned.fit(table, tallies, OPERATORS, trials=3, seed=1) for _ in range(2))
    assert one.to_dict() == two.to_dict()
    routed = pick(one.expected(table), OPERATORS)
    assert ((routed == "dense_steer") == (table["spread"] > 0)).mean() > 0.97


@given(st.integers(1, 50), st.integers(2, 6), st.integers(0, 1000))
def test_folds_keep_a_problem_together(n: int, folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"cell": "m|t", "task": "t", "problem_id": rng.integers(0, 20, n).astype(str)})
    fold = problem_folds(table, folds, rng)
    assert pd.Series(fold).groupby(table["problem_id"]).nunique().max() == 1
    assert set(fold) <= set(range(folds))
