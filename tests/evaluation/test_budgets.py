"""What a budget solves, how names make groups, and p-values and intervals, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from salvage.evaluation.budgets import BUDGETS, _followed
from salvage.evaluation.groups import family_of, groups
from salvage.evaluation.null import null_line
from salvage.evaluation.resampling import auc, bootstrap, interval, over_folds, p_values, shuffled_sums
from salvage.method.profiles import Tallies
from salvage.policies.portfolio import all_fail


def test_an_order_is_followed_to_the_first_success() -> None:
    tallies = Tallies(np.array([[2.0, 0, 0, 0, 4], [0, 0, 0, 0, 1]]), np.full((2, 5), 4.0))
    tokens = np.tile([10.0, 1, 1, 1, 30], (2, 1))
    rescued, spent = _followed(all_fail(tallies, 4), tokens, np.array([[0, 0, 4], [4, -1, -1]]))
    np.testing.assert_allclose(rescued, [1, 0.25])
    np.testing.assert_allclose(spent, [10 + 10 / 2 + 30 / 6, 30])
    assert tuple(range(2, 17)) == BUDGETS


def test_groups_are_families_and_methods_that_are_some_of_the_cells() -> None:
    names = np.array(["qwen-rl-1|t", "qwen-sft-1|t", "llama-rl-2|t", "other"])
    assert groups(names) == {"all": [0, 1, 2, 3], "qwen-*": [0, 1], "*-rl-*": [0, 2]}
    assert groups(names[:2]) == {"all": [0, 1]}
    assert family_of(names).tolist() == ["qwen", "qwen", "llama", ""]


def test_p_values_count_ties_and_themselves() -> None:
    assert p_values(np.array([2.0, 9.0]), np.array([[1.0, 2, 3], [1, 2, 3]])).tolist() == [0.75, 0.25]


def test_folds_give_two_errors_each_way() -> None:
    mean, low, high = over_folds(np.array([[1.0], [3.0]]))
    assert (mean[0], low[0], high[0]) == pytest.approx((2, 0, 4))


def test_the_area_counts_ties_half_and_weights() -> None:
    score, right = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    told = auc(score, right, np.array([[1, 1, 1, 1], [1, 0, 1, 0], [2, 1, 0, 0]]))
    np.testing.assert_allclose(told, [3.5 / 4, np.nan, 1])


def test_resamples_are_of_each_cell_alone() -> None:
    table, cell = np.array([[1.0, 1], [1, 1], [5, 1]]), np.array([0, 0, 1])
    first, second = bootstrap(table, cell, 7, 0)
    assert first.tolist() == [[2, 2]] * 7 and second.tolist() == [[5, 1]] * 7


def test_few_failures_widen_an_interval() -> None:
    drawn = np.arange(100001.0)
    low, high = interval(drawn, 10**6)
    assert (low, high) == pytest.approx((2500, 97500), abs=2)
    assert interval(drawn, 5)[0] < interval(drawn, 60)[0] < low
    assert sum(interval(drawn, 5)) == pytest.approx(100000)


def test_choices_are_shuffled_within_a_cell_and_a_scope() -> None:
    choice, scores = [np.array([0, 1, 1])], [np.array([[1.0, 1], [1, 1], [0, 7]])]
    told = shuffled_sums(choice, scores, [np.array([True, True, True])], np.array([0, 0, 1]), 6, [1])
    assert told.tolist() == [[2] * 6, [7] * 6]
    told = shuffled_sums(choice, scores, [np.array([True, False, False])], np.array([0, 0, 1]), 6, [1])
    assert told.tolist() == [[1] * 6, [0] * 6]


def test_the_null_line_of_what_always_fails_has_no_one_steerable() -> None:
    rows = null_line(
        np.zeros((4, 5)), np.full((4, 5), 8.0), np.array([0, 0, 1, 1]), np.array(["a", "b"]), np.random.default_rng(0)
    )
    assert [r["cell"] for r in rows] == ["a"] * 3 + ["b"] * 3 + ["all"] * 3
    assert [r["policy"] for r in rows[:3]] == ["null: retry", "null: random", "null: oracle"]
    assert all(r["n"] == 0 and r["rescue"] is None and r["low"] is None and r["high"] is None for r in rows)
    assert all(r["k"] == 1 and r["protocol"] == "paper" and r["over_retry_low"] is None for r in rows)


def test_the_null_line_shows_what_selection_alone_gives() -> None:
    rows = null_line(
        np.full((40, 5), 2.0), np.full((40, 5), 8.0), np.zeros(40, int), np.array(["a"]), np.random.default_rng(0)
    )
    retry, chance, oracle = (r["rescue"] for r in rows[:3])
    assert retry < chance < oracle and 0 < rows[0]["n"] < 40
    assert rows[0]["low"] <= retry <= rows[0]["high"]
