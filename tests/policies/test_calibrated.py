"""Calibrated: cell rates and the tilt by hand and by loops, the rule without outcomes, each cell's best with many."""

from __future__ import annotations

import json
from collections import defaultdict
from math import sqrt
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.method.profiles import Tallies, from_rates, problem_folds
from salvage.policies.calibrated import Calibrated, CellRates, cells_of
from salvage.policies.policy import pick
from salvage.policies.rule import Rule, decide_by_cell
from salvage.tables.vocabulary import FEATURES, INTERVENTIONS, OPERATORS
from worlds import planted

BY_FEATURE = ["dense_steer", "sparse_steer", "local_temp"]  # what each feature points to


def failures(n: int, seed: int, cells: int = 2) -> pd.DataFrame:
    truth = np.random.default_rng(seed).beta(1, 2, size=(n, 5))
    return planted(truth, cells=cells, seed=seed)[0]


# ------------------------------------------------------------------ cell rates


class Shrunk(NamedTuple):
    """One column of rates by loops: posterior mean and variance of each cell, and of a cell never seen."""

    mean: dict[str, float]
    variance: dict[str, float]
    pool: float
    spread: float


def shrunk(cells: list[str], values: list[float]) -> Shrunk:
    groups = defaultdict(list)
    for cell, value in zip(cells, values, strict=True):
        groups[cell].append(value)
    n, pool = len(values), sum(values) / len(values)
    inside = sum((v - sum(g) / len(g)) ** 2 for g in groups.values() for v in g) / max(n - len(groups), 1)
    noise = inside or (max(sum((v - pool) ** 2 for v in values) / n, 1e-12) if n > 1 else 1.0)
    apart = sum(len(g) * (sum(g) / len(g) - pool) ** 2 for g in groups.values()) - (len(groups) - 1) * noise
    between = max(0.0, apart / max(n - sum(len(g) ** 2 for g in groups.values()) / n, 1e-12))
    mean, variance = {}, {}
    for cell, g in groups.items():
        weight = between / (between + noise / len(g))
        mean[cell] = pool + weight * (sum(g) / len(g) - pool)
        variance[cell] = weight * noise / len(g) + (1 - weight) ** 2 * noise / n
    return Shrunk(mean, variance, pool, between + noise / n)


def told(cells: list[str], rates: np.ndarray, asked: list[str]) -> tuple[list[float], list[list[float]], list]:
    """Return level, advantages and variances of the asked cells, a column at a time."""
    rows = [[float(sum(row) / len(row)), *(float(r - sum(row) / len(row)) for r in row)] for row in rates]
    level, *parts = (shrunk(cells, list(column)) for column in zip(*rows, strict=True))
    known = [cell in level.mean for cell in asked]
    return (
        [level.mean.get(cell, level.pool) for cell in asked],
        [[part.mean.get(cell, part.pool) for part in parts] for cell in asked],
        [
            [level.variance[cell] + part.variance[cell] if seen else level.spread + part.spread for part in parts]
            for cell, seen in zip(asked, known, strict=True)
        ],
    )


WORLDS = [
    (["b", "a", "b", "c", "a", "b", "c"], 3),  # cells of three sizes, out of order
    (["a"] * 5, 2),  # one cell
    (["a", "b", "c", "d"], 2),  # a cell a failure: nothing is known of the noise within
    (["a"], 3),  # one failure
    (["a", "a"] + ["b"] * 30, 5),
]


@pytest.mark.parametrize(("cells", "choices"), WORLDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_cell_rates_are_those_of_the_loops(cells: list[str], choices: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    offset = {name: rng.random(choices) for name in sorted(set(cells))}  # cells differ, so that something is left
    rates = np.array([0.7 * offset[name] + 0.3 * rng.random(choices) for name in cells])
    asked = [*sorted(set(cells)), "unseen", cells[0]]
    fitted = CellRates.fit(np.array(cells), rates)
    for got, expected in zip(fitted.of(np.array(asked)), told(cells, rates, asked), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)
    again = CellRates.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    for got, expected in zip(again.of(np.array(asked)), fitted.of(np.array(asked)), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_shrinkage_by_hand() -> None:
    """Cells a (0, 0.2) and b (0.8, 1), one choice: noise 0.02, between (0.64 - 0.02) / 2, weight 0.31 / 0.32."""
    fitted = CellRates.fit(np.array(["a", "a", "b", "b"]), np.array([[0.0], [0.2], [0.8], [1.0]]))
    level, advantage, variance = fitted.of(np.array(["a", "b", "new"]))
    np.testing.assert_allclose(level, [0.5 - 0.31 / 0.32 * 0.4, 0.5 + 0.31 / 0.32 * 0.4, 0.5])
    inside = 0.31 / 0.32 * 0.01 + (0.01 / 0.32) ** 2 * 0.005
    np.testing.assert_allclose(variance[:, 0], [inside, inside, 0.31 + 0.005])
    assert not advantage.any()


def test_cells_that_differ_by_less_than_their_noise_have_the_pools_rates() -> None:
    fitted = CellRates.fit(np.array(["a", "a", "b", "b"]), np.array([[0.0], [1.0], [1.0], [0.0]]))
    level, _, variance = fitted.of(np.array(["a", "new"]))
    assert level.tolist() == [0.5, 0.5]
    np.testing.assert_allclose(variance[:, 0], 0.5 / 4)  # the pool's alone: 1 over 2 degrees of freedom, 4 failures


def test_one_failure_says_what_it_says_and_nothing_of_its_noise() -> None:
    level, advantage, variance = CellRates.fit(np.array(["a"]), np.array([[0.25, 0.75]])).of(np.array(["a", "b"]))
    assert level.tolist() == [0.5, 0.5] and advantage.tolist() == [[-0.25, 0.25]] * 2
    assert variance.tolist() == [[2.0, 2.0]] * 2  # of the level and of the advantage, 1 each


def test_without_outcomes_nothing_is_known_of_any_cell() -> None:
    none = CellRates.fit(np.array([]), np.zeros((0, 3)))
    assert none.cells_ == {}
    for rates in (none, CellRates.from_dict(json.loads(json.dumps(none.to_dict(), allow_nan=False)))):
        level, advantage, variance = rates.of(np.array(["a", "b"]))
        assert level.tolist() == [0, 0] and advantage.tolist() == [[0] * 3] * 2
        assert variance.tolist() == [[np.inf] * 3] * 2


def test_of_no_failures_there_are_no_rates() -> None:
    for cells in (["a", "b"], []):
        fitted = CellRates.fit(np.array(cells), np.full((len(cells), 3), 0.5))
        assert [part.shape for part in fitted.of(np.array([], str))] == [(0,), (0, 3), (0, 3)]


def test_cell_rates_are_shrunk_as_far_as_noise_explains_them() -> None:
    rng = np.random.default_rng(0)
    cell = np.repeat(["big", "small", "big2"], [3000, 6, 3000])
    rates = (rng.random((len(cell), 3)) < np.where((cell == "big2")[:, None], [0.5, 0.3, 0.3], [0.3, 0.5, 0.3])) * 1.0
    fitted = CellRates.fit(cell, rates)
    level, advantage, variance = fitted.of(np.array(["big", "small", "big2", "unseen"]))
    assert advantage[0].argmax() == 1 and advantage[2].argmax() == 0
    raw = rates[cell == "small"] - rates[cell == "small"].mean(1, keepdims=True)
    assert np.abs(advantage[1]).max() < np.abs(raw.mean(0)).max()
    assert (variance[1] > variance[0]).all() and (variance[3] > variance[0]).all() and (variance > 0).all()
    assert ((level > 0.2) & (level < 0.6)).all()


def test_failures_without_cells_have_the_empty_one() -> None:
    assert cells_of(pd.DataFrame({"x": [1, 2]})).tolist() == ["", ""]
    assert cells_of(pd.DataFrame({"cell": ["b", "a"]})).tolist() == ["b", "a"]


# ------------------------------------------------------------------ the tilt


def tilt(fitted_on: pd.DataFrame, asked: pd.DataFrame, choices: list[str]) -> list[list[float]]:
    """Return the z of each choice less their mean: of its own cell where that had two failures, else of all."""
    rows = []
    for _, one in asked.iterrows():
        own = fitted_on[fitted_on["cell"] == one["cell"]]
        reference = own if len(own) > 1 else fitted_on
        z = dict.fromkeys(choices, 0.0)
        for feature, operator in zip(FEATURES, BY_FEATURE, strict=True):
            if operator in choices:
                values = reference[feature].tolist()
                mean = sum(values) / len(values)
                deviation = sqrt(sum((value - mean) ** 2 for value in values) / len(values))
                z[operator] = (one[feature] - mean) / (deviation or 1)
        rows.append([value - sum(z.values()) / len(z) for value in z.values()])
    return rows


CHOICES = [OPERATORS, INTERVENTIONS, ["local_temp", "retry"], ["sparse_steer_random", "dense_steer", "sparse_steer"]]


@pytest.mark.parametrize("choices", CHOICES)
def test_the_tilt_is_that_of_the_loops(choices: list[str]) -> None:
    table = pd.concat([failures(20, 1), failures(2, 2).assign(cell=["lonely|t", "pair|t"])], ignore_index=True)
    table = pd.concat([table, table.tail(1).assign(problem_id="q", spread=9.0)], ignore_index=True)
    table.loc[22, FEATURES] = [1.5, -0.5, 0.25]
    policy = Calibrated.fit(table, from_rates(table), choices)
    assert list(policy.rules_) == ["m0|t", "m1|t", "pair|t"]
    assert list(Calibrated.fit(table.iloc[::-1], from_rates(table), choices).rules_) == list(policy.rules_)
    asked = pd.concat([table, failures(3, 3).assign(cell="new|t")], ignore_index=True)
    np.testing.assert_allclose(policy.tilt(asked), tilt(table, asked, choices), atol=1e-9)
    np.testing.assert_allclose(policy.tilt(asked).sum(axis=1), 0, atol=1e-9)


def slope(table: pd.DataFrame, rates: np.ndarray, tilted: list[list[float]]) -> float:
    """Return the slope by loops: the prior of 0.02 at a precision of 1 / 0.02^2, and what other problems leave."""
    fold = problem_folds(table, 5, np.random.default_rng(0)).tolist()
    cells, rest = table["cell"].tolist(), []
    for i, row in enumerate(rates):
        others = [j for j in range(len(rates)) if fold[j] != fold[i]]
        advantage = told([cells[j] for j in others], rates[others], [cells[i]])[1][0]
        rest.append([r - sum(row) / len(row) - a for r, a in zip(row, advantage, strict=True)])
    noise = max(sum(x**2 for row in rest for x in row) / rates.size, 1e-12)
    pairs = [(t, x) for ts, xs in zip(tilted, rest, strict=True) for t, x in zip(ts, xs, strict=True)]
    told_by = sum(t * x for t, x in pairs) / noise, sum(t**2 for t, _ in pairs) / noise
    return max(0.0, (0.02 / 0.02**2 + told_by[0]) / (1 / 0.02**2 + told_by[1]))


@pytest.mark.parametrize("gain", [-0.3, 0.0, 0.05, 0.3])
@pytest.mark.parametrize("choices", [OPERATORS, ["dense_steer", "retry"]])
def test_rates_and_intervals_are_those_of_the_loops(gain: float, choices: list[str]) -> None:
    table = failures(40, 4, cells=3)
    table["problem_id"] = [f"p{i // 2}" for i in range(40)]  # two cells share each problem
    rates = table[OPERATORS].to_numpy()
    rates[:, OPERATORS.index("dense_steer")] += gain * table["spread"]
    policy = Calibrated.fit(table, Tallies(rates, np.ones_like(rates)), choices)
    mine = rates[:, [OPERATORS.index(name) for name in choices]]
    moved = slope(table, mine, tilt(table, table, choices))
    assert policy.slope_ == pytest.approx(moved, abs=1e-9)
    asked = pd.concat([table.head(9), table.tail(1).assign(cell="new|t")], ignore_index=True)
    level, advantage, variance = told(table["cell"].tolist(), mine, asked["cell"].tolist())
    expected = np.array(level)[:, None] + advantage + moved * np.array(tilt(table, asked, choices))
    expected = np.minimum(np.maximum(expected, 0), 1)
    np.testing.assert_allclose(policy.expected(asked), expected, atol=1e-9)
    interval = policy.interval(asked)
    for i, row in enumerate(expected):
        for c, rate in enumerate(row):
            half = 1.96 * sqrt(variance[i][c])
            assert interval[i, c].tolist() == pytest.approx([max(rate - half, 0), min(rate + half, 1)], abs=1e-9)
    again = Calibrated.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False)))
    assert again.choices == tuple(choices)
    np.testing.assert_array_equal(again.expected(asked), policy.expected(asked))
    np.testing.assert_array_equal(again.interval(asked), interval)


def test_a_tilt_that_points_the_wrong_way_is_dropped() -> None:
    table = failures(400, 6)
    rates = np.full((400, 5), 0.5)
    rates[:, OPERATORS.index("dense_steer")] -= 0.1 * table["spread"]
    assert Calibrated.fit(table, Tallies(rates, np.ones_like(rates)), OPERATORS).slope_ == 0.0


def test_rates_without_any_noise_leave_no_tilt_and_no_error() -> None:
    table = failures(12, 5)
    policy = Calibrated.fit(table, Tallies(np.full((12, 5), 0.5), np.ones((12, 5))), OPERATORS)
    assert 0 < policy.slope_ < 1e-9  # the prior, outvoted by outcomes that fit to the last digit
    np.testing.assert_allclose(policy.expected(table), 0.5)


def test_the_first_outcomes_of_each_cell_alone_are_taken() -> None:
    table = failures(30, 8, cells=3)
    tallies = from_rates(table)
    some = Calibrated.fit(table, tallies, OPERATORS, outcomes=4)
    first = table.groupby("cell").head(4).index.to_numpy()
    assert len(first) == 12
    expected = CellRates.fit(table["cell"].to_numpy(str)[first], table.loc[first, OPERATORS].to_numpy())
    assert some.rates_.to_dict() == expected.to_dict()
    every = Calibrated.fit(table, tallies, OPERATORS)
    assert some.rule_.to_dict() == every.rule_.to_dict() == Rule.fit(table).to_dict()  # the reference is all of them
    assert {c: r.to_dict() for c, r in some.rules_.items()} == {c: r.to_dict() for c, r in every.rules_.items()}
    assert some.slope_ == pytest.approx(
        slope(table.loc[first], table.loc[first, OPERATORS].to_numpy(), tilt(table, table.loc[first], OPERATORS))
    )


# ------------------------------------------------------------------ with no outcomes, and with many


def test_without_outcomes_a_unit_of_z_is_worth_the_prior_and_nothing_bounds_it() -> None:
    table = failures(20, 3).assign(spread=[100.0, *[0.0] * 19])
    policy = Calibrated.fit(table, from_rates(table), OPERATORS, outcomes=0)
    assert policy.slope_ == 0.02
    np.testing.assert_allclose(policy.expected(table), 0.02 * np.array(tilt(table, table, OPERATORS)), atol=1e-12)
    assert policy.expected(table).min() < 0  # worth, not a rate
    assert policy.interval(table).tolist() == [[[0.0, 1.0]] * 5] * 20
    again = Calibrated.from_dict(json.loads(json.dumps(policy.to_dict(), allow_nan=False)))
    np.testing.assert_array_equal(again.expected(table), policy.expected(table))
    assert again.interval(table).tolist() == [[[0.0, 1.0]] * 5] * 20


@pytest.mark.parametrize("choices", [OPERATORS, INTERVENTIONS])
@settings(max_examples=12, deadline=None)
@given(st.integers(8, 60), st.integers(0, 10**6), st.booleans())
def test_without_outcomes_calibrated_is_the_rule(choices: list[str], n: int, seed: int, ties: bool) -> None:
    table = failures(n, seed)
    if ties:
        table[FEATURES] = table[FEATURES].round(0)
    policy = Calibrated.fit(table, from_rates(table), choices, outcomes=0)
    told = decide_by_cell(table)
    lead = np.column_stack([told["margin"], told[[f"z_{name}" for name in FEATURES]].abs()])
    clear = ((lead == 0) | (lead > 1e-12)).all(axis=1)  # a tie but for rounding may break either way
    assert pick(policy.expected(table), choices)[clear].tolist() == told["operator"][clear].tolist()


def test_calibrated_breaks_a_tie_as_the_rule_does() -> None:
    table = failures(12, 0, cells=1).assign(**dict.fromkeys(FEATURES, np.arange(12.0)))  # no feature leads anywhere
    policy = Calibrated.fit(table, from_rates(table), OPERATORS, outcomes=0)
    assert pick(policy.expected(table), OPERATORS).tolist() == decide_by_cell(table)["operator"].tolist()


def test_with_many_outcomes_calibrated_takes_each_cells_best() -> None:
    truth = np.full((4000, 5), 0.3)
    truth[::2, 1] = truth[1::2, 4] = 0.4
    profiles, _ = planted(truth, cells=2)
    policy = Calibrated.fit(profiles, from_rates(profiles), OPERATORS)
    best = np.where(profiles["cell"] == "m0|t", OPERATORS[1], OPERATORS[4])
    assert (pick(policy.expected(profiles), OPERATORS) == best).mean() > 0.97


def test_the_tilt_is_kept_where_the_features_hold_up_and_dropped_where_not() -> None:
    table = failures(1500, 3)
    slopes = []
    for gain in (0.0, 0.1):
        rates = np.full((1500, 5), 0.4) + np.random.default_rng(1).normal(size=(1500, 5)) * 0.1
        for i, operator in enumerate(BY_FEATURE):
            rates[:, OPERATORS.index(operator)] += gain * table[FEATURES[i]]
        slopes.append(Calibrated.fit(table, Tallies(rates, np.ones_like(rates)), OPERATORS).slope_)
    assert slopes[0] < 0.005 and slopes[1] == pytest.approx(0.1, rel=0.1)
