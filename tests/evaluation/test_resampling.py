"""Resamples, intervals, p-values and areas under curves, by hand; in chunks as at once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from plain import level, percentile
from salvage.evaluation.resampling import (
    ProblemResamples,
    auc,
    bootstrap,
    interval,
    over_folds,
    p_values,
    resampled_problems,
    shuffled_sums,
)


def test_the_bootstrap_is_stratified_and_has_the_right_spread() -> None:
    rng = np.random.default_rng(8)
    cell = np.repeat([0, 1], [30, 70])
    table = np.column_stack([rng.normal(size=100), np.ones(100)])
    sums = np.stack(list(bootstrap(table, cell, 4000, seed=0)), axis=1)
    assert sums.shape == (4000, 2, 2)
    assert (sums[:, 0, 1] == 30).all() and (sums[:, 1, 1] == 70).all()
    for c, n in ((0, 30), (1, 70)):
        values = table[cell == c, 0]
        assert sums[:, c, 0].mean() == pytest.approx(values.sum(), abs=4 * values.std() * np.sqrt(n / 4000))
        assert sums[:, c, 0].std() == pytest.approx(values.std() * np.sqrt(n), rel=0.06)


def test_p_values_count_ties_and_themselves() -> None:
    assert p_values(np.array([2.0, 9.0]), np.array([[1.0, 2, 3], [1, 2, 3]])).tolist() == [0.75, 0.25]


def test_folds_give_two_errors_each_way() -> None:
    mean, low, high = over_folds(np.array([[1.0, 0.5], [3.0, 0.5], [8.0, 0.5]]))
    error = (13 / 3) ** 0.5  # the variance is 13 with n - 1, and there are three
    np.testing.assert_allclose([mean, low, high], [[4, 0.5], [4 - 2 * error, 0.5], [4 + 2 * error, 0.5]])


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


def test_a_cells_resamples_are_drawn_by_its_own_stream_in_chunks_as_at_once() -> None:
    n = 2000  # 2,000 resamples of them are a chunk
    table, cell = np.arange(n + 2.0)[:, None] % 7, np.repeat([0, 1], [2, n])
    first, second = bootstrap(table, cell, 2003, 8)
    for c, sums in enumerate((first, second)):
        rows = table[cell == c]
        drawn = np.random.default_rng([8, 4, c]).integers(len(rows), size=(2003, len(rows)))
        np.testing.assert_array_equal(sums, rows[drawn].sum(axis=1))


@pytest.mark.parametrize("n", [1, 2, 3, 10, 60, 1000])
def test_an_intervals_levels_are_students(n: int) -> None:
    drawn = np.random.default_rng(n).normal(size=99)
    expected = percentile(drawn.tolist(), level(n)), percentile(drawn.tolist(), 100 - level(n))
    assert interval(drawn, n) == pytest.approx(expected, abs=1e-12)
    assert level(10**7) == pytest.approx(2.5, abs=1e-4)


def test_what_falls_short_by_rounding_alone_has_reached() -> None:
    assert p_values(np.array(1.0), np.array([1 - 5e-10, 1 - 2e-9, 1 + 1e-12])) == 0.75
    assert p_values(np.array(2.0), np.array([1.0, 0.0, 1.5])) == 0.25
    assert p_values(np.zeros((2, 1)), np.zeros((2, 1, 3))).tolist() == [[1.0], [1.0]]


def test_choices_are_shuffled_the_same_way_in_every_view_in_chunks_as_at_once() -> None:
    n = 1000  # 2,000 shuffles of them are a chunk
    rng = np.random.default_rng(0)
    choice = [rng.integers(5, size=n + 3) for _ in range(2)]
    scores = [rng.random((n + 3, 5)) for _ in range(2)]
    masks = [rng.random(n + 3) < 0.9 for _ in range(2)]
    cell = np.repeat([0, 1], [3, n])
    told = shuffled_sums(choice, scores, masks, cell, 2003, [4, 3])
    stream = np.random.default_rng([4, 3])
    for c in range(2):
        rows = np.flatnonzero((cell == c) & (masks[0] | masks[1]))
        order = stream.permuted(np.tile(np.arange(len(rows)), (2003, 1)), axis=1)
        expected = np.zeros(2003)
        for chosen, rates, mask in zip(choice, scores, masks, strict=True):
            for i, row in enumerate(rows):
                if mask[row]:
                    expected += rates[row, chosen[rows[order[:, i]]]]
        np.testing.assert_allclose(told[c], expected, atol=1e-9)


def test_a_cell_with_no_one_in_scope_gathers_nothing() -> None:
    told = shuffled_sums([np.zeros(2, int)], [np.ones((2, 5))], [np.array([False, True])], np.array([0, 1]), 3, [0])
    assert told.tolist() == [[0] * 3, [1] * 3]


def test_problems_are_drawn_whole_in_chunks_as_at_once() -> None:
    problem = np.arange(1000) % 300  # 2,000 resamples of 1,000 failures are a chunk
    parts = list(resampled_problems(problem, 2003, [1, 2]))
    assert [part.shape for part in parts] == [(2000, 1000), (3, 1000)]
    assert parts[0].dtype == np.float32
    drawn = np.random.default_rng([1, 2]).integers(300, size=(2003, 300))
    expected = np.stack([np.bincount(row, minlength=300)[problem] for row in drawn])
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_problems_of_few_failures_are_drawn_at_once() -> None:
    assert [part.shape for part in resampled_problems(np.array([0]), 5, [0])] == [(5, 1)]


def test_resamples_of_problems_serve_every_statistic_of_the_same_failures() -> None:
    keys = np.array(["b", "a", "b", "c"])
    resamples = ProblemResamples.draw(keys, 50, [3])
    assert resamples.problem.tolist() == [1, 0, 1, 2] and resamples.weights.dtype == np.uint8
    np.testing.assert_array_equal(resamples.weights, next(resampled_problems(np.array([1, 0, 1, 2]), 50, [3])))
    total = resamples.of(lambda weights: weights[:, [0, 1, 3]].sum(axis=1))
    assert total.tolist() == [3] * 50 and total.dtype == np.float32
    assert resamples.of(lambda weights: weights, 7).tolist() == resamples.weights[:7].tolist()
    part = resamples.take(np.array([True, False, True, True]))
    assert part.problem.tolist() == [1, 1, 2]
    assert part.weights.tolist() == resamples.weights[:, [0, 2, 3]].tolist()
    drawn = np.random.default_rng(0).normal(size=90)
    with_gaps = np.concatenate([[np.nan], drawn, [np.nan, np.inf]])
    assert part.interval(with_gaps) == interval(drawn, 2)  # of two problems, not of three failures


def test_a_statistic_of_many_resamples_is_taken_in_parts() -> None:
    resamples = ProblemResamples(np.tile(np.arange(4000, dtype=np.uint8)[:, None], (1, 1000)), np.arange(1000))
    sizes: list[int] = []

    def first(weights: np.ndarray) -> np.ndarray:
        sizes.append(len(weights))
        return weights[:, 0]

    assert resamples.of(first).tolist() == (np.arange(4000) % 256).tolist()
    assert sizes == [2000, 2000]


def test_the_area_is_the_share_of_pairs_that_are_ordered_right() -> None:
    rng = np.random.default_rng(5)
    score, right, weights = rng.integers(6, size=30) / 7, rng.random(30) < 0.4, rng.integers(4, size=(9, 30))
    weights[3, right], weights[4, ~right] = 0, 0
    for told, weight in zip(auc(score, right, weights), weights, strict=True):
        won = pairs = 0.0
        for i, j in product(np.flatnonzero(right), np.flatnonzero(~right)):
            pairs += weight[i] * weight[j]
            won += weight[i] * weight[j] * (1.0 if score[i] > score[j] else 0.5 * (score[i] == score[j]))
        assert told == pytest.approx(won / pairs if pairs else np.nan, nan_ok=True)


def test_however_many_resamples_memory_is_that_of_a_chunk() -> None:
    n = 2000
    table, cell, ones = np.ones((n, 1)), np.zeros(n, int), np.ones(n, bool)

    def peak(resamples: int, make: Callable[[int], Any]) -> int:
        tracemalloc.start()
        make(resamples)
        told = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return told

    def shuffle(times: int) -> Any:
        return shuffled_sums([np.zeros(n, int)], [np.ones((n, 5))], [ones], cell, times, [0])

    for make, chunk in ((lambda times: list(bootstrap(table, cell, times, 0)), 2000), (shuffle, 1000)):
        assert peak(4 * chunk, make) < 2 * peak(chunk, make)


def test_more_failures_than_a_chunk_holds_are_drawn_one_resample_at_a_time() -> None:
    n = 4_000_001
    assert next(bootstrap(np.ones((n, 1), np.float32), np.zeros(n, np.int8), 1, 0)).tolist() == [[n]]
    n = 2_000_001
    cell, rates, in_scope = np.zeros(n, np.int8), np.ones((n, 1), np.float32), np.ones(n, bool)
    assert shuffled_sums([cell], [rates], [in_scope], cell, 1, [0]).tolist() == [[n]]
    assert [part.shape for part in resampled_problems(cell, 2, [0])] == [(1, n), (1, n)]
