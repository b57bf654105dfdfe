"""Attempts counted by failure and operator, by hand."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.method.profiles import from_rates, problem_folds, problem_keys, slots, tally
from salvage.tables.vocabulary import OPERATORS

PROFILES = pd.DataFrame({"cell": ["x|t", "y|t", "x|t"], "problem_id": ["p0", "p0", "p1"]})


def attempts(*rows: tuple[str, str, str, bool, int, int]) -> pd.DataFrame:
    columns = ["cell", "problem_id", "operator", "correct", "n_tokens", "n_ancestor_tokens"]
    return pd.DataFrame(rows, columns=columns)


ROWS = attempts(
    ("x|t", "p0", OPERATORS[0], True, 3, 0),
    ("x|t", "p0", OPERATORS[0], False, 5, 2),
    ("y|t", "p0", OPERATORS[3], True, 7, 7),
    ("x|t", "p1", OPERATORS[4], False, 1, 1),
    ("x|t", "p9", OPERATORS[1], True, 1, 1),
    ("x|t", "p0", "another", True, 1, 1),
)


def test_a_slot_is_the_failures_row_and_the_operators_column() -> None:
    slot, known = slots(PROFILES, ROWS)
    assert known.tolist() == [True] * 4 + [False] * 2
    assert slot[known].tolist() == [0, 0, 5 + 3, 10 + 4]


def test_attempts_are_counted_and_what_is_unknown_left_out() -> None:
    (whole,) = tally(PROFILES, ROWS)
    tried, right, tokens = np.zeros((3, 5)), np.zeros((3, 5)), np.full((3, 5), np.nan)
    tried[0, 0], tried[1, 3], tried[2, 4] = 2, 1, 1
    right[0, 0], right[1, 3] = 1, 1
    tokens[0, 0], tokens[1, 3], tokens[2, 4] = 5, 14, 2
    np.testing.assert_array_equal(whole.tried, tried)
    np.testing.assert_array_equal(whole.correct, right)
    np.testing.assert_array_equal(whole.tokens, tokens)


def test_parts_share_the_attempts_out() -> None:
    first, second = tally(PROFILES, ROWS, np.array([0, 1, 1, 0, 1, 0]), 2)
    assert [(int(r), int(c)) for r, c in np.argwhere(first.tried)] == [(0, 0), (2, 4)]
    assert [(int(r), int(c)) for r, c in np.argwhere(second.tried)] == [(0, 0), (1, 3)]
    assert first.correct.sum() == 1 and second.correct.sum() == 1
    assert first.tokens is not None and first.tokens[0, 0] == 3
    assert second.tokens is not None and second.tokens[0, 0] == 7


def test_taking_rows_takes_them_from_all_three() -> None:
    (whole,) = tally(PROFILES, ROWS)
    some = whole.take(np.array([1]))
    assert some.tried.shape == (1, 5) and some.tokens is not None and some.tokens[0, 3] == 14
    rates = from_rates(pd.DataFrame({name: [0.1 * i] for i, name in enumerate(OPERATORS)}))
    assert rates.tokens is None and rates.take(np.array([0])).tokens is None
    assert rates.rates[0].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_tallies_and_rates_are_those_of_the_loops() -> None:
    rng = np.random.default_rng(0)
    profiles = pd.DataFrame(
        {"cell": [f"{'xyz'[i % 3]}|t" for i in range(8)], "problem_id": [f"p{i}" for i in range(8)]}
    )
    n, names = 600, [*OPERATORS, "another"]
    rows = pd.DataFrame({
        "cell": [f"{'xyz'[i % 3]}|t" for i in rng.integers(0, 3, n)],
        "problem_id": [f"p{i}" for i in rng.integers(0, 9, n)],
        "operator": [names[o] for o in rng.integers(0, 6, n)],
        "correct": rng.random(n) < 0.5,
        "n_tokens": rng.integers(1, 9, n),
        "n_ancestor_tokens": rng.integers(0, 9, n),
    })  # fmt: skip
    part = rng.integers(0, 3, n)
    for p, told in enumerate(tally(profiles, rows, part, 3)):
        with np.errstate(invalid="ignore"):  # some are never tried
            rates = told.rates
        for i, (cell, problem) in enumerate(profiles.to_numpy().tolist()):
            for o, operator in enumerate(OPERATORS):
                mine = rows[(rows["cell"] == cell) & (rows["problem_id"] == problem) & (rows["operator"] == operator)]
                mine = mine[part[mine.index] == p]
                assert told.tried[i, o] == len(mine) and told.correct[i, o] == mine["correct"].sum()
                if len(mine):
                    spent = (mine["n_tokens"] + mine["n_ancestor_tokens"]).sum() / len(mine)
                    assert told.tokens is not None and told.tokens[i, o] == pytest.approx(spent)
                    assert rates[i, o] == pytest.approx(mine["correct"].mean())
    masked = tally(profiles, rows)[0].take(np.arange(8) % 2 == 1)
    np.testing.assert_array_equal(masked.correct, tally(profiles, rows)[0].correct[[1, 3, 5, 7]])


def test_identifiers_that_are_numbers_are_met_as_text() -> None:
    numbered = PROFILES.assign(problem_id=[0, 0, 1])
    rows = attempts(("x|t", "1", OPERATORS[1], True, 1, 1))
    slot, known = slots(numbered, rows)
    assert known.tolist() == [True] and slot.tolist() == [2 * 5 + 1]


def test_rates_alone_are_tallies_of_one_attempt() -> None:
    told = from_rates(pd.DataFrame([[0.1, 0.2, 0.3, 0.4, 0.5]], columns=OPERATORS))
    assert told.tried.tolist() == [[1.0] * 5] and told.correct.tolist() == told.rates.tolist()
    with pytest.raises(FrozenInstanceError):
        told.tried = told.correct  # type: ignore[misc]


def test_a_problem_is_its_task_and_name_whatever_the_cell() -> None:
    assert problem_keys(PROFILES).tolist() == ["t/p0", "t/p0", "t/p1"]
    assert problem_keys(PROFILES.assign(task="u")).tolist() == ["u/p0", "u/p0", "u/p1"]
    many = pd.DataFrame({"cell": ["a|b|c", "a"], "problem_id": ["p", 7]})
    assert problem_keys(many).tolist() == ["b|c/p", "/7"]


def test_folds_are_even_over_problems() -> None:
    table = pd.DataFrame({"cell": ["a|t"] * 7, "problem_id": [f"p{i}" for i in range(7)]})
    fold = problem_folds(table, 3, np.random.default_rng(0))
    assert sorted(np.bincount(fold).tolist()) == [2, 2, 3]
    dealt = np.random.default_rng(0).permutation(7) % 3  # in the order of the problems' names
    assert fold.tolist() == dealt.tolist()
    again = problem_folds(table.iloc[::-1], 3, np.random.default_rng(0))
    assert again.tolist() == dealt[::-1].tolist()
    other = problem_folds(table, 3, np.random.default_rng(1))
    assert fold.tolist() != other.tolist()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(2, 6), st.integers(0, 1000))
def test_folds_keep_a_problem_together(n: int, folds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"cell": "m|t", "task": "t", "problem_id": rng.integers(0, 20, n).astype(str)})
    fold = problem_folds(table, folds, rng)
    assert pd.Series(fold).groupby(table["problem_id"]).nunique().max() == 1
    assert set(fold) <= set(range(folds))
