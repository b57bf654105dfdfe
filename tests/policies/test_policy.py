"""The plainest policies, and how an operator is picked, by hand."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pandas as pd
import pytest

from salvage.method.profiles import Tallies
from salvage.policies.calibrated import Calibrated, CellRates
from salvage.policies.fitted import Fitted
from salvage.policies.learned import Learned
from salvage.policies.policy import PRIORITY, Fixed, KnowsRates, Plans, Random, codes, pick
from salvage.policies.portfolio import Portfolio
from salvage.policies.rule import Rule
from salvage.tables.vocabulary import FEATURES, OPERATORS

CORRECT = np.array([[1, 0, 2, 3, 4], [3, 0, 2, 1, 0], [2, 4, 2, 0, 2.0]])
TALLIES = Tallies(CORRECT, np.full((3, 5), 4.0))
FAILURES = pd.DataFrame({"cell": ["a|t", "a|t", "b|t"], "problem_id": ["p", "q", "p"]}).assign(
    **{name: [0.1 * i, 0.3, 0.7] for i, name in enumerate(FEATURES)}
)


def test_one_operator_for_all_is_the_mean_over_all() -> None:
    fixed = Fixed.fit(FAILURES, TALLIES, OPERATORS)
    assert fixed.cells_ == {}
    np.testing.assert_allclose(fixed.expected(FAILURES), np.tile([6, 4, 6, 4, 6], (3, 1)) / 12)


def test_by_cell_each_cell_has_its_own_and_an_unknown_one_the_pools() -> None:
    fixed = Fixed.fit(FAILURES, TALLIES, OPERATORS[:2], by_cell=True)
    told = fixed.expected(pd.DataFrame({"cell": ["b|t", "a|t", "new"]}))
    np.testing.assert_allclose(told, [[0.5, 1], [0.5, 0], [0.5, 1 / 3]])
    np.testing.assert_allclose(fixed.expected(pd.DataFrame({"x": [1]})), [[0.5, 1 / 3]])
    again = Fixed.from_dict(fixed.to_dict())
    np.testing.assert_allclose(again.expected(FAILURES), fixed.expected(FAILURES))
    assert again.choices == tuple(OPERATORS[:2])


def test_random_never_retries_and_is_the_same_for_the_same_features() -> None:
    policy = Random.fit(FAILURES, TALLIES, OPERATORS)
    worth = policy.expected(FAILURES)
    assert (worth[:, OPERATORS.index("retry")] == 0).all() and (np.delete(worth, codes(["retry"]), axis=1) > 0).all()
    np.testing.assert_array_equal(policy.expected(FAILURES.iloc[::-1]), worth[::-1])
    assert Random.from_dict(policy.to_dict()) == policy


def test_operators_are_numbered_in_their_order() -> None:
    assert codes(OPERATORS[::-1]).tolist() == [4, 3, 2, 1, 0]


def test_the_largest_worth_is_picked_and_ties_go_by_priority() -> None:
    assert pick(np.eye(5), OPERATORS).tolist() == OPERATORS
    assert pick(np.ones((2, 5)), OPERATORS[::-1]).tolist() == [PRIORITY[0]] * 2
    assert PRIORITY[-1] == "retry" and sorted(PRIORITY) == sorted(OPERATORS)


def test_what_may_be_chosen_of_few_is_picked_among_them() -> None:
    worth = np.array([[0.1, 0.3, 0.2], [0.3, 0.3, 0.1], [0.2, 0.1, 0.2]])
    assert pick(worth, ["retry", "dense_steer", "local_temp"]).tolist() == ["dense_steer", "dense_steer", "local_temp"]
    assert pick(np.zeros((0, 5)), OPERATORS).tolist() == []
    read = [name.encode().decode() for name in OPERATORS]  # from a file: equal names, other objects
    assert pick(np.eye(5), read).tolist() == OPERATORS
    np.testing.assert_array_equal(Random(tuple(read)).expected(FAILURES), Random(tuple(OPERATORS)).expected(FAILURES))


def test_priority_is_the_rules_own_order_and_its_fallback_comes_first() -> None:
    assert PRIORITY == ["sparse_steer_random", "dense_steer", "sparse_steer", "local_temp", "retry"]
    for i, name in enumerate(PRIORITY):
        assert pick(np.ones((1, 5 - i)), [one for one in OPERATORS if one in PRIORITY[i:]]).tolist() == [name]


def test_random_numbers_are_drawn_by_the_features_bytes() -> None:
    for choices in (OPERATORS, ["dense_steer", "retry", "retry"], ["local_temp"]):
        told = Random.fit(FAILURES, TALLIES, choices).expected(FAILURES)
        for row, features in zip(told, FAILURES[FEATURES].to_numpy(np.float64), strict=True):
            drawn = np.random.default_rng(np.frombuffer(features.tobytes(), np.uint32)).random(len(choices))
            assert row.tolist() == [0 if name == "retry" else x for name, x in zip(choices, drawn, strict=True)]


def test_which_policies_know_rates_and_which_plan() -> None:
    knows = {one: issubclass_of(one, KnowsRates) for one in (Fixed, Random, Calibrated, Learned, Portfolio)}
    assert knows == {Fixed: False, Random: False, Calibrated: True, Learned: True, Portfolio: True}
    plans = {one: issubclass_of(one, Plans) for one in (Calibrated, Learned, Portfolio)}
    assert plans == {Calibrated: False, Learned: False, Portfolio: True}


def issubclass_of(policy: Any, protocol: Any) -> bool:
    """Tell whether a policy has what a protocol asks for, as the serving code asks: of an instance."""
    bare = object.__new__(policy)
    object.__setattr__(bare, "choices", ())
    return isinstance(bare, protocol)


@pytest.mark.parametrize("frozen", [Rule, Fixed, Random, Calibrated, CellRates, Learned, Portfolio, Fitted])
def test_what_was_fitted_is_not_changed_afterwards(frozen: Any) -> None:
    bare = object.__new__(frozen)
    with pytest.raises(FrozenInstanceError):
        setattr(bare, next(iter(frozen.__dataclass_fields__)), None)
