"""Scopes, splits, groups of cells and columns: what protocols, budgets and rows share."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pandas as pd
import pytest

from salvage.evaluation.gate import Verdict
from salvage.evaluation.groups import family_of, groups
from salvage.evaluation.protocols import _ks
from salvage.evaluation.resampling import ProblemResamples
from salvage.evaluation.sheet import Data, Sheet, View, against, splits
from salvage.method.profiles import Tallies


def data() -> Data:
    """Return four failures of three cells on three problems, dealt into two folds."""
    names, cell = np.array(["a-rl-1|t", "b-rl-1|t", "other"]), np.array([0, 0, 1, 2])
    return Data(pd.DataFrame({"cell": names[cell]}), names, cell, [np.array([0, 1, 0, 1])], 0, 0)


def test_groups_are_families_and_methods_that_are_some_of_the_cells() -> None:
    names = np.array(["qwen-rl-1|t", "qwen-sft-1|t", "llama-rl-2|t", "other"])
    assert groups(names) == {"all": [0, 1, 2, 3], "qwen-*": [0, 1], "*-rl-*": [0, 2]}
    assert groups(names[:2]) == {"all": [0, 1]}
    assert family_of(names).tolist() == ["qwen", "qwen", "llama", ""]


def test_a_scope_is_told_by_the_rates_that_choose() -> None:
    rates = np.array(
        [[0.5, 0, 0, 0.55, 0], [0.5, 0.54, 0, 0, 0], [0.51, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0.05]]
    )
    view = View(Tallies(rates, np.ones_like(rates)), Tallies(np.ones_like(rates), np.ones_like(rates)))
    assert view.mask("steerable-hard").tolist() == [True, False, False, False, True]
    assert view.mask("all").tolist() == [True] * 5


def test_what_is_scored_is_of_other_problems_than_what_is_learned_from() -> None:
    pairs = [[mask.tolist() for mask in pair] for pair in splits(data(), data().fold[0], False)]
    one, two = [True, False, True, False], [False, True, False, True]
    assert pairs == [[one, two], [two, one]]


def test_transfer_learns_from_other_families_too() -> None:
    assert data().family.tolist() == ["a", "a", "b", ""]
    pairs = [[np.flatnonzero(mask).tolist() for mask in pair] for pair in splits(data(), data().fold[0], True)]
    # fold by fold, and in it family by family: none, a, b
    assert pairs == [[[], [1]], [[0], [3]], [[2], [1, 3]], [[3], [0, 2]], [[1], [2]], [[], [0]]]


def test_a_column_counts_everywhere_unless_told_otherwise() -> None:
    sheet = Sheet()
    sheet.add(np.ones(2), None, protocol="paper", scope="all", policy="rule", k=1)
    sheet.add(np.zeros(2), np.ones(2), protocol="paper", scope="all", policy="retry", budget=3, only="cells")
    assert sheet.meta[0] == {
        "k": 1,
        "budget": None,
        "only": None,
        "protocol": "paper",
        "scope": "all",
        "policy": "rule",
    }
    assert (sheet.meta[1]["k"], sheet.meta[1]["budget"], sheet.meta[1]["only"]) == (None, 3, "cells")
    assert sheet.tokens[0] is None and [column.tolist() for column in sheet.values] == [[1, 1], [0, 0]]
    assert against(sheet.meta[1], "best fixed") == ("paper", "all", None, 3, "best fixed")


@pytest.mark.parametrize(
    ("least", "ks"), [(1, [1]), (2, [1, 2]), (3, [1, 2]), (4, [1, 2, 4]), (7, [1, 2, 4]), (8, [1, 2, 4, 8])]
)
def test_success_is_told_within_as_many_attempts_as_the_fewest(least: int, ks: list[int]) -> None:
    tried = np.full((3, 5), 8.0)
    tried[1, 4] = least
    some, many = Tallies(tried, tried, tried), Tallies(tried, np.full((3, 5), 9.0), tried)
    assert _ks([View(many, some), View(some, many)]) == _ks([View(some, many), View(many, some)]) == ks
    assert _ks([View(many, Tallies(tried, tried))]) == [1]  # rates alone


def test_what_protocols_share_cannot_be_changed_by_one_of_them() -> None:
    rates = Tallies(np.ones((1, 5)), np.ones((1, 5)))
    made: list[tuple[Any, str]] = [(View(rates, rates), "scores"), (data(), "cell")]
    made.append((ProblemResamples.draw(np.array(["a"]), 2, [0]), "weights"))
    made.append((Verdict(True, 0.1, 0.0, 0.2, 9, "rescue", "frozen"), "better"))
    for one, name in made:
        with pytest.raises(FrozenInstanceError):
            setattr(one, name, None)
