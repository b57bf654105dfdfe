"""The plainest policies, and how an operator is picked, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.method.profiles import Tallies
from salvage.policies.fitted import Fitted, policy_class, problem_key
from salvage.policies.policy import PRIORITY, Fixed, Random, codes, pick
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


@pytest.mark.parametrize("name", ["fixed", "random", "rule"])
def test_a_fitted_policy_knows_what_it_saw(name: str) -> None:
    fitted = Fitted.fit(name, FAILURES, TALLIES, OPERATORS)
    assert fitted.problems == {problem_key("t/p"), problem_key("t/q")}
    with pytest.raises(SalvageError, match=r"fitted on problem 't/q' \(row 1\)"):
        fitted.refuse_seen(FAILURES.assign(problem_id=["n", "q", "m"]))
    fitted.refuse_seen(FAILURES.assign(problem_id=["n", "o", "m"]))
    frozen = fitted.to_dict()
    assert frozen["version"] == fitted.version and len(fitted.version) == 12
    assert Fitted.from_dict(frozen).version == fitted.version
    assert (fitted.policy is None) == (name == "rule")


def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(SalvageError, match="policy 'none' is not one of rule"):
        policy_class("none")
