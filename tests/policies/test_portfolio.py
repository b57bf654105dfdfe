"""The portfolio's arithmetic, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from salvage.method.profiles import Tallies
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
    assert Portfolio(**(vars_of(policy) | {"price": 0.6})).order(near, both).tolist() == [[-1] * 3] * 2
    np.testing.assert_allclose(policy.expected(at), 0.5)
    half = 1.96 * 0.5 / np.sqrt(2)
    np.testing.assert_allclose(policy.interval(at)[0, 0], [max(0, 0.5 - half), min(1, 0.5 + half)])


def vars_of(policy: Portfolio) -> dict[str, object]:
    return {name: getattr(policy, name) for name in Portfolio.__dataclass_fields__}


def test_a_failure_without_neighbours_to_spare_has_them_all() -> None:
    assert portfolio().neighbours(pd.DataFrame({"level": [0.0], "gain": [0.0]})).shape == (1, 2)


@pytest.mark.parametrize("budget", [None, 8.0])
def test_untold_a_plan_takes_its_own_budget(budget: float | None) -> None:
    assert (portfolio().plan(np.array([[0]]), budget) == portfolio().plan(np.array([[0]]), BUDGET)).all()
