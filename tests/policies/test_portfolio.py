"""The portfolio: its arithmetic by hand, plans and orders by trying all, and what it remembers."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, product
from math import comb, dist, prod, sqrt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salvage.errors import SalvageError
from salvage.method.profiles import Tallies, from_rates, tally
from salvage.policies import portfolio as module
from salvage.policies.learned import UNTUNED, Learned, out_of_fold
from salvage.policies.portfolio import (
    BUDGET,
    SLACK,
    Portfolio,
    _mean_over,
    _scaled,
    _step,
    all_fail,
    in_retries,
    mix_fails,
    mixes,
    own_mix_fails,
)
from salvage.tables.vocabulary import OPERATORS
from worlds import planted


class Place:
    def place(self, failures: pd.DataFrame) -> np.ndarray:
        return failures[["level", "gain"]].to_numpy()


def portfolio() -> Portfolio:
    """Return one of two operators: where the first fails always, the second never does, and the other way round."""
    place = np.array([[0.0, 0.0], [1.0, 0.0]])
    return Portfolio(
        ("retry", "other"), Place(), place, np.array([[0, 4], [4, 0.0]]), np.full((2, 2), 4.0), np.array([1.0, 2.0])
    )  # type: ignore[arg-type]


def test_a_cost_is_told_in_retries() -> None:
    assert in_retries(np.array([[2.0, 8, 3], [4, 4, 3]])).tolist() == [1, 2, 1]


def test_mixes_of_two_operators() -> None:
    cost, most = np.array([1.0, 2.0]), np.array([9, 9])
    assert sorted(map(tuple, mixes(cost, 4, most))) == [(0, 2), (2, 1), (4, 0)]
    assert sorted(map(tuple, mixes(cost, 4, np.array([1, 1])))) == [(1, 1)]
    assert sorted(map(tuple, mixes(np.array([1.0]), 3 / SLACK, np.array([9])))) == [(3,)]
    assert sorted(map(tuple, mixes(np.array([1.004]), 1, np.array([9])))) == [(1,)]
    assert sorted(map(tuple, mixes(np.array([1.006]), 1, np.array([9])))) == [(0,)]
    assert BUDGET == 8 and SLACK == 1.005


def test_a_mix_fails_where_all_of_it_fails() -> None:
    chance = all_fail(Tallies(np.array([[1.0, 2.0], [0, 4]]), np.full((2, 2), 4.0)), 2)
    np.testing.assert_allclose(chance[0], [[1, 3 / 4, 1 / 2], [1, 1 / 2, 1 / 6]])
    fails = mix_fails(chance, np.array([[1, 0], [1, 2], [2, 0]]))
    np.testing.assert_allclose(fails, [[3 / 4, 3 / 4 / 6, 1 / 2], [1, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(own_mix_fails(chance, np.array([[2, 1], [2, 0]])), [1 / 4, 1])
    one = np.array([[1], [2], [0]])  # as many failures as there are, whatever the number of operators
    np.testing.assert_allclose(own_mix_fails(chance[[0, 0, 1], :1], one), [3 / 4, 1 / 2, 1])
    np.testing.assert_allclose(own_mix_fails(chance[:1, [0, 1, 0]], np.array([[1, 2, 2]])), [3 / 4 / 6 / 2])


def test_a_step_is_the_chance_to_resist_one_more() -> None:
    chance = all_fail(Tallies(np.array([[1.0], [4.0]]), np.full((2, 1), 4.0)), 2)
    told = _step(chance, np.array([[0, 1], [1, 0]]), 0, np.array([0, 1]))
    np.testing.assert_allclose(told, [[3 / 4, 0], [0, 2 / 3]], atol=1e-6)


def test_means_over_neighbours_and_scales() -> None:
    np.testing.assert_allclose(
        _mean_over(np.array([[1.0, 2], [3, 6], [9, 9]]), np.array([[0, 1], [2, 2]])), [[2, 4], [9, 9]]
    )
    assert _scaled(np.array([[1.0, 2.0, 3.0]])).tolist() == [[10, 100, 150]]


def test_plans_orders_and_rates_follow_the_neighbours() -> None:
    policy = portfolio()
    at = pd.DataFrame({"level": [0.9, 0.1], "gain": [0.0, 0.0]})
    near = policy.neighbours(at)
    assert near.tolist() == [[1, 0], [0, 1]]
    assert policy.plan(np.array([[1], [0]]), 2).tolist() == [[2, 0], [0, 1]]
    both = np.array([[2, 1], [2, 1]])
    order, worth = policy.pace(near, both)
    assert (
        order.tolist() == [[0, 1, 0]] * 2
    )  # a retry costs half: it comes first, and leaves what only the other rescues
    np.testing.assert_allclose(worth[:, :2], 0.5, atol=1e-6)
    assert replace(policy, price=0.6).order(near, both).tolist() == [[-1] * 3] * 2
    assert replace(policy, price=0.5).order(near, both)[:, :2].tolist() == [[0, 1]] * 2  # worth its price, just so
    np.testing.assert_allclose(policy.expected(at), 0.5)
    half = 1.96 * 0.5 / np.sqrt(2)
    np.testing.assert_allclose(policy.interval(at)[0, 0], [max(0, 0.5 - half), min(1, 0.5 + half)])


def test_a_failure_without_neighbours_to_spare_has_them_all() -> None:
    assert portfolio().neighbours(pd.DataFrame({"level": [0.0], "gain": [0.0]})).shape == (1, 2)


@pytest.mark.parametrize("budget", [None, 8.0])
def test_untold_a_plan_takes_its_own_budget(budget: float | None) -> None:
    assert (portfolio().plan(np.array([[0]]), budget) == portfolio().plan(np.array([[0]]), BUDGET)).all()


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


# ------------------------------------------------------------------ against trying all


def remembering(seed: int, n: int = 12, choices: int = 3, *, most: int = 5) -> Portfolio:
    """Return a portfolio of small tables: rates of 0 and 1 among them, and not as many attempts under each operator."""
    rng = np.random.default_rng(seed)
    tried = np.tile(rng.integers(2, most, choices), (n, 1)) + rng.integers(0, 2, (n, choices))
    share = np.clip(rng.random((n, 1)) * 2.4 - 0.7 + rng.normal(size=(n, choices)) * 0.2, 0, 1)
    cost = np.array([1.0, *rng.uniform(0.5, 2.5, choices - 1)])
    place = rng.normal(size=(n, 2))
    return Portfolio(tuple(OPERATORS[:choices]), Place(), place, (share * tried).round(), tried * 1.0, cost)  # type: ignore[arg-type]


def fail(policy: Portfolio, failure: int, operator: int, k: int) -> float:
    """Return the chance that k of a failure's attempts, drawn without replacement, are all wrong."""
    tried, right = int(policy.tried_[failure, operator]), int(policy.correct_[failure, operator])
    return comb(tried - right, k) / comb(tried, k)


def affordable(policy: Portfolio, budget: float) -> list[tuple[int, ...]]:
    """Return the mixes within a budget that leave no room for another attempt, by trying all."""
    limit = [int(min(column)) for column in policy.tried_.T]

    def kept(mix: tuple[int, ...]) -> bool:
        return sum(c * m for c, m in zip(policy.cost_, mix, strict=True)) <= budget * 1.005

    every = [mix for mix in product(*(range(most + 1) for most in limit)) if kept(mix)]
    more = {mix: [(*mix[:o], mix[o] + 1, *mix[o + 1 :]) for o in range(len(mix)) if mix[o] < limit[o]] for mix in every}
    return [mix for mix in every if not any(map(kept, more[mix]))]


@pytest.mark.parametrize("seed", range(8))
def test_a_plan_is_one_of_the_mixes_that_fail_least(seed: int) -> None:
    policy = remembering(seed)
    rng = np.random.default_rng(seed)
    near = np.array([rng.permutation(12)[:4] for _ in range(6)])
    for budget in (2.5, 5):
        every = affordable(policy, budget)
        most = [int(min(column)) for column in policy.tried_.T]
        assert list(map(tuple, mixes(policy.cost_, budget, np.array(most)))) == every
        for row, planned in zip(near, policy.plan(near, budget), strict=True):
            fails = [np.mean([prod(fail(policy, f, o, k) for o, k in enumerate(mix)) for f in row]) for mix in every]
            assert fails[every.index(tuple(planned))] == pytest.approx(min(fails), abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_each_attempt_is_the_one_of_the_best_chance_a_token_among_what_resisted(seed: int) -> None:
    policy = remembering(seed)
    rng = np.random.default_rng(seed)
    near = np.array([rng.permutation(12)[:5] for _ in range(10)])
    most = policy.tried_.min(axis=0).astype(int)
    counts = np.array([[rng.integers(0, limit + 1) for limit in most] for _ in range(10)])
    order, worths = policy.pace(near, counts)
    assert order.shape == worths.shape == (10, counts.sum(axis=1).max())
    for i in range(10):
        done = [0, 0, 0]
        for step in range(counts[i].sum()):
            resisted = [prod(fail(policy, f, o, k) for o, k in enumerate(done)) for f in near[i]]
            worth = []
            for o in range(3):
                if done[o] == counts[i, o]:
                    worth.append(-np.inf)
                    continue
                more = [k + (o == p) for p, k in enumerate(done)]
                still = sum(prod(fail(policy, f, p, k) for p, k in enumerate(more)) for f in near[i])
                worth.append((1 - still / max(sum(resisted), 1e-9)) / policy.cost_[o])
            chosen = order[i, step]
            assert worth[chosen] > max(worth) - 1e-5 and worths[i, step] == pytest.approx(worth[chosen], abs=1e-5)
            done[chosen] += 1
        assert done == counts[i].tolist()
        assert (order[i, counts[i].sum() :] == -1).all() and not worths[i, counts[i].sum() :].any()
    assert (policy.order(near, counts) == order).all()
    for price in (0.05, 0.3):  # a price cuts each order where its worth first falls below, and changes nothing before
        cut = replace(policy, price=price).pace(near, counts)
        for i in range(10):
            length = next((s for s in range(counts[i].sum()) if worths[i, s] < price), counts[i].sum())
            assert cut[0][i].tolist() == [*order[i, :length], *[-1] * (order.shape[1] - length)]
            np.testing.assert_array_equal(cut[1][i], [*worths[i, :length], *[0] * (order.shape[1] - length)])


def test_of_two_alike_the_first_comes_first() -> None:
    place = np.zeros((2, 2))
    policy = Portfolio(("retry", "other"), Place(), place, np.full((2, 2), 2.0), np.full((2, 2), 4.0), np.ones(2))  # type: ignore[arg-type]
    near = np.array([[0, 1]])
    assert policy.order(near, np.array([[1, 1]])).tolist() == [[0, 1]]
    assert policy.plan(near, 2).tolist() == [[0, 2]]  # the first in the order of mixes: all fail alike


def test_what_all_rescue_leaves_nothing_to_resist() -> None:
    """Both operators always rescue: after the first attempt nobody has resisted, and the rest has the full worth."""
    policy = Portfolio(
        ("retry", "other"), Place(), np.zeros((1, 2)), np.full((1, 2), 4.0), np.full((1, 2), 4.0), np.array([1.0, 2])
    )  # type: ignore[arg-type]
    order, worth = policy.pace(np.array([[0]]), np.array([[2, 1]]))
    assert order.tolist() == [[0, 0, 1]] and worth.tolist() == [[1, 1, 0.5]]


def test_plans_and_orders_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = remembering(3)
    rng = np.random.default_rng(0)
    near = np.array([rng.permutation(12)[:4] for _ in range(8)])
    whole = policy.plan(near, 4)
    counts = np.sort(whole, axis=0)  # from short to long: chunks differ in steps
    order, worth = policy.pace(near, counts)
    monkeypatch.setattr(module, "CHUNK", 3)
    np.testing.assert_array_equal(policy.plan(near, 4), whole)
    again, same = policy.pace(near, counts)
    np.testing.assert_array_equal(again, order)
    np.testing.assert_array_equal(same, worth)


def test_an_order_asks_the_nearest_hundred() -> None:
    """Of 101 neighbours the first 99 tell the operators apart by nothing, the hundredth does, the last one not."""
    correct = np.array([[2, 2], [0, 4], [4, 0.0]])
    policy = Portfolio(("retry", "other"), Place(), np.zeros((3, 2)), correct, np.full((3, 2), 4.0), np.ones(2))  # type: ignore[arg-type]
    one = np.array([[1, 1]])
    assert policy.order(np.array([[0] * 99 + [1, 2, 2]]), one).tolist() == [[1, 0]]
    assert policy.order(np.array([[0] * 100 + [1]]), one).tolist() == [[0, 1]]


@pytest.mark.parametrize("remembered", [1, 5, 310])
def test_neighbours_are_the_nearest_by_level_and_advantages(remembered: int) -> None:
    rng = np.random.default_rng(remembered)
    place = rng.random((remembered, 2)) * [1, 0.2]
    correct, tried = rng.integers(0, 5, (remembered, 2)) * 1.0, np.full((remembered, 2), 4.0)
    policy = Portfolio(("retry", "other"), Place(), place, correct, tried, np.ones(2))  # type: ignore[arg-type]
    asked = pd.DataFrame({"level": [0.2, 0.9], "gain": [0.05, 0.15]})
    near = policy.neighbours(asked)
    among = min(300, remembered)
    assert near.shape == (2, among)
    told, interval = policy.expected(asked), policy.interval(asked)
    for i, (level, gain) in enumerate(asked.to_numpy()):
        far = [dist((10 * level, 50 * gain), (10 * a, 50 * b)) for a, b in place]
        assert near[i].tolist() == sorted(range(remembered), key=far.__getitem__)[:among]
        for o in range(2):
            rates = [correct[j, o] / 4 for j in near[i]]
            mean = sum(rates) / among
            half = 1.96 * sqrt(sum((rate - mean) ** 2 for rate in rates) / among) / sqrt(among)
            assert told[i, o] == pytest.approx(mean)
            assert interval[i, o].tolist() == pytest.approx([max(mean - half, 0), min(mean + half, 1)])


def test_beyond_what_was_tried_nothing_resists() -> None:
    chance = all_fail(Tallies(np.array([[0.0], [0.0]]), np.array([[1.0], [3.0]])), 2)
    assert _step(chance, np.array([[0, 1]]), 0, np.array([1])).tolist() == [[0, 1]]
    assert _step(chance, np.array([[1, 1]]), 0, np.array([2])).tolist() == [[1, 1]]  # the table ends there


# ------------------------------------------------------------------ fitted


@pytest.fixture(scope="module")
def fitted() -> tuple[Portfolio, pd.DataFrame]:
    rng = np.random.default_rng(5)
    truth = rng.beta(0.4, 0.8, size=(200, 5))
    profiles, attempts = planted(truth, attempts=24, cells=2, seed=5)
    return Portfolio.fit(profiles, tally(profiles, attempts)[0], OPERATORS), profiles


@pytest.mark.parametrize("choices", [OPERATORS, ["dense_steer", "retry"]])
def test_a_fit_remembers_attempts_costs_and_places_out_of_fold(choices: list[str]) -> None:
    truth = np.random.default_rng(1).beta(0.4, 0.8, size=(60, 5))
    profiles, attempts = planted(truth, attempts=8, cells=2, seed=1)
    spent = attempts["operator"].map({name: 4 + 2 * i for i, name in enumerate(OPERATORS)})
    (tallies,) = tally(profiles, attempts.assign(n_tokens=spent, n_ancestor_tokens=0))
    policy = Portfolio.fit(profiles, tallies, choices, seed=3)
    at = [OPERATORS.index(name) for name in choices]
    np.testing.assert_allclose(policy.cost_, [(4 + 2 * i) / 4 for i in at])
    np.testing.assert_array_equal(policy.tried_, np.full((60, len(at)), 8))
    np.testing.assert_array_equal(policy.correct_, profiles[choices].to_numpy() * 8)
    told = Learned.fit(profiles, tallies, choices, seed=3, held_out=False)
    assert policy.learned_.to_dict() == told.to_dict() and policy.choices == tuple(choices)
    place = out_of_fold(profiles, profiles[choices].to_numpy(), 3.0, UNTUNED, 3)
    np.testing.assert_array_equal(policy.place_, place)
    zero, default = (Portfolio.fit(profiles, tallies, choices, **seed) for seed in ({"seed": 0}, {}))
    assert zero.to_dict() == default.to_dict() != policy.to_dict()
    assert (default.budget, default.price) == (8.0, 0.0)


def test_frozen_and_back_it_plans_the_same(fitted: tuple[Portfolio, pd.DataFrame]) -> None:
    policy = replace(fitted[0], budget=5.0, price=0.05)
    profiles = fitted[1].head(20)
    frozen = json.loads(json.dumps(policy.to_dict(), allow_nan=False))
    assert {type(x) for row in frozen["correct"] + frozen["tried"] for x in row} == {int}
    places = [x for row in frozen["place"] for x in row]
    assert places == [round(x, 6) for x in places] and any(x != round(x, 5) for x in places)
    again = Portfolio.from_dict(frozen)
    assert (again.budget, again.price, again.choices) == (5.0, 0.05, tuple(OPERATORS))
    assert {x.dtype for x in (again.place_, again.correct_, again.tried_, again.cost_)} == {np.dtype(np.float64)}
    np.testing.assert_allclose(again.place_, policy.place_, atol=6e-7)
    near = policy.neighbours(profiles)
    np.testing.assert_array_equal(again.plan(near), policy.plan(near, 5.0))
    np.testing.assert_array_equal(again.order(near, again.plan(near)), policy.order(near, policy.plan(near)))
    assert again.to_dict() == policy.to_dict()


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
    policy, profiles = fitted
    near = policy.neighbours(profiles)
    counts = policy.plan(near, 12)
    lengths = [(replace(policy, price=p).order(near, counts) >= 0).sum() for p in (0.0, 0.05, 0.2, 2.0)]
    assert lengths[0] == counts.sum() and lengths == sorted(lengths, reverse=True) and lengths[-1] == 0


def test_rates_alone_make_no_portfolio() -> None:
    table = planted(np.full((30, 5), 0.5))[0]
    with pytest.raises(SalvageError, match="needs attempts, not rates alone"):
        Portfolio.fit(table, from_rates(table), OPERATORS)
