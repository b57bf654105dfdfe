"""What an order of attempts rescues and spends until its first success, by hand."""

from __future__ import annotations

import numpy as np

from salvage.evaluation.budgets import BUDGETS, _followed
from salvage.method.profiles import Tallies
from salvage.policies.portfolio import all_fail


def test_an_order_is_followed_to_the_first_success() -> None:
    tallies = Tallies(np.array([[2.0, 0, 0, 0, 4], [0, 0, 0, 0, 1]]), np.full((2, 5), 4.0))
    tokens = np.tile([10.0, 1, 1, 1, 30], (2, 1))
    rescued, spent = _followed(all_fail(tallies, 4), tokens, np.array([[0, 0, 4], [4, -1, -1]]))
    np.testing.assert_allclose(rescued, [1, 0.25])
    np.testing.assert_allclose(spent, [10 + 10 / 2 + 30 / 6, 30])
    assert tuple(range(2, 17)) == BUDGETS
