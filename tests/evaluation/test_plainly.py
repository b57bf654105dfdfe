"""Every row of small tables, against the same evaluation written out in loops (tests/plain.py)."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pandas as pd
import pytest

from plain import COLUMNS, Plain
from salvage.evaluation.protocols import evaluate
from worlds import uneven

FEW: dict[str, Any] = {"resamples": 24, "permutations": 19}
FAMILIES = ["qwen-rl-1|t", "qwen-sft-1|t", "llama-rl-2|t"]


def compare(got: list[dict], expected: list[dict]) -> None:
    names = COLUMNS[:6]
    assert [[row[key] for key in names] for row in got] == [[row[key] for key in names] for row in expected]
    for one, two in zip(got, expected, strict=True):
        assert set(one) == set(two) == set(COLUMNS)
        for key in COLUMNS[6:]:
            # the sums of resamples and the mixes of hindsight are in single precision
            close = 3e-6 if key.endswith(("low", "high")) or "hindsight" in one["policy"] else 1e-9
            assert one[key] == (None if two[key] is None else pytest.approx(two[key], rel=close, abs=close)), (one, two)


def test_every_row_of_cells_with_families() -> None:
    profiles, attempts, facts = uneven(FAMILIES, 9, [4, 4, 5, 4, 4], 0)
    policies = ("calibrated", "portfolio", "calibrated:6", "rule", "random", "fixed")
    settings: dict[str, Any] = {"facts": facts, "policies": policies, "folds": 3, "seed": 3, **FEW}
    rows = Plain(profiles, attempts, **settings).rows
    assert {row["cell"] for row in rows} == {*FAMILIES, "all", "qwen-*", "*-rl-*"}
    assert {row["protocol"] for row in rows} == {"paper", "cross-fitted", "transfer"}
    assert {row["k"] for row in rows} == {1, 2, 4, None} and {row["budget"] for row in rows} == {None, *range(2, 5)}
    compare(evaluate(profiles, attempts, **settings), rows)


def test_every_row_of_folds_dealt_again_and_of_a_cell_that_retries_solve() -> None:
    profiles, attempts, _ = uneven(["b|t", "a|t"], 13, [3, 4, 2, 2, 2], 4)
    solved = profiles["cell"] == "b|t"
    profiles.loc[solved, "retry"] = 1.0
    attempts.loc[(attempts["cell"] == "b|t") & (attempts["operator"] == "retry"), "correct"] = True
    elsewhere = attempts.head(30).assign(problem_id="p99")
    attempts = pd.concat([attempts, elsewhere, attempts.head(9).assign(operator="sparse_steer_wrong")])
    attempts = attempts.sample(frac=1, random_state=0)
    rows = Plain(profiles, attempts, policies=("calibrated",), repeats=2, **FEW).rows
    assert {row["n"] for row in rows if row["cell"] == "b|t" and row["scope"] == "steerable-hard"} == {0}
    compare(evaluate(profiles, attempts, policies=("calibrated",), repeats=2, **FEW), rows)


@pytest.mark.parametrize(
    ("cells", "each"), [(["a|t"], 1), (["a|t", "b|t"], 1), (["a-b-1|t", "c-b-1|t"], 2), (["a|t"], 3)]
)
def test_every_row_of_few_failures(cells: list[str], each: int) -> None:
    profiles, attempts, _ = uneven(cells, each, [4, 2, 2, 2, 2], 3)
    settings: dict[str, Any] = {"policies": ("portfolio",), "folds": 2, "seed": 1, **FEW}
    compare(evaluate(profiles, attempts, **settings), Plain(profiles, attempts, **settings).rows)


def test_every_row_of_profiles_alone() -> None:
    profiles, _, _ = uneven(FAMILIES, 11, [8, 8, 8, 8, 8], 6)
    settings: dict[str, Any] = {"policies": ("calibrated",), "folds": 3, **FEW}
    with pytest.warns(UserWarning, match="profiles alone allow only the paper's protocol") as told:
        rows = evaluate(profiles, **settings)
    assert [warning.filename for warning in told] == [__file__]  # where it was called
    compare(rows, Plain(profiles, **settings).rows)


def test_the_settings_are_these_unless_told() -> None:
    told = {name: one.default for name, one in signature(evaluate).parameters.items() if name != "profiles"}
    assert told == {
        "attempts": None, "facts": None, "policies": ("calibrated", "portfolio"), "folds": 5, "repeats": 1, "trials": 0,
        "seed": 0, "resamples": 10_000, "permutations": 2_000, "anchor": "online", "continuation": "temperature",
    }  # fmt: skip
