"""Learned: what the trees see and are taught, folds, tuning, intervals and JSON, held to loops and XGBoost itself."""

from __future__ import annotations

import json
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import xgboost

from salvage.method.profiles import Tallies, from_rates, problem_folds
from salvage.policies import learned
from salvage.policies.calibrated import CellRates
from salvage.policies.learned import Learned, out_of_fold
from salvage.policies.policy import pick
from salvage.tables.vocabulary import FACTS, FEATURES, INTERVENTIONS, OPERATORS
from worlds import planted

SEEN = [*FEATURES, "failed_share", "n_tokens", "entropy", "kl", "junction", "agreement"]
UNTUNED = {"eta": 0.1, "max_depth": 3, "min_child_weight": 20.0, "reg_lambda": 10.0, "rounds": 60}


def failures(n: int, seed: int, cells: int = 2, problems: int = 0) -> pd.DataFrame:
    """Return failures; with fewer problems than failures, cells share them."""
    truth = np.random.default_rng(seed).beta(1, 2, size=(n, 5))
    table = planted(truth, cells=cells, seed=seed)[0]
    table["n_failed_rollouts"] = np.random.default_rng(seed).integers(1, 8, n)
    return table.assign(problem_id=[f"p{i % problems}" for i in range(n)]) if problems else table


def with_facts(table: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(9)
    return table.assign(**{name: rng.random(len(table)) for name in FACTS[::-1]})


def learnable(table: pd.DataFrame) -> np.ndarray:
    """Return rates [n, 5] that a feature moves."""
    rates = table[OPERATORS].to_numpy() * 0.5
    rates[:, 4] += np.where(table["spread"] > 0, 0.4, 0.0)
    return rates


def start_of(table: pd.DataFrame, rates: np.ndarray, asked: pd.DataFrame) -> np.ndarray:
    """Return level and advantages [asked, 1 + choices] of the asked failures' cells."""
    level, advantage, _ = CellRates.fit(table["cell"].to_numpy(str), rates).of(asked["cell"].to_numpy(str))
    return np.hstack([level[:, None], advantage])


def seen(table: pd.DataFrame, most: float) -> np.ndarray:
    columns = []
    for name in SEEN:
        if name in table:
            columns.append(table[name].to_numpy(np.float64))
        elif name == "failed_share":
            columns.append(table["n_failed_rollouts"].to_numpy() / most)
        else:
            columns.append(np.full(len(table), np.nan))
    return np.array(columns).T


def trees(table: pd.DataFrame, rates: np.ndarray, most: float, seed: int, values: dict[str, Any] = UNTUNED) -> Any:
    """Fit trees by XGBoost itself, to what the cell rates of four fifths of the problems leave of the fifth's."""
    fold = problem_folds(table, 5, np.random.default_rng([seed, 12]))
    start = np.zeros((len(table), 1 + rates.shape[1]))
    for k in set(fold):
        start[fold == k] = start_of(table[fold != k], rates[fold != k], table[fold == k])
    level = rates.mean(axis=1)
    target = np.column_stack([level, *(column - level for column in rates.T)]) - start
    given = {name: value for name, value in values.items() if name != "rounds"}
    given |= {"objective": "reg:squarederror", "base_score": 0.0, "tree_method": "hist", "seed": seed, "nthread": 1}
    matrix = xgboost.QuantileDMatrix(np.hstack([seen(table, most), start]), label=target)
    return xgboost.train(given, matrix, num_boost_round=values["rounds"])


def placed(booster: Any, table: pd.DataFrame, start: np.ndarray, most: float) -> np.ndarray:
    place = start + booster.predict(xgboost.DMatrix(np.hstack([seen(table, most), start])))
    return np.array([[row[0], *(a - sum(row[1:]) / len(row[1:]) for a in row[1:])] for row in place])


# ------------------------------------------------------------------ the trees


@pytest.mark.parametrize("choices", [OPERATORS, ["dense_steer", "retry"]])
@pytest.mark.parametrize("facts", [False, True])
def test_predictions_are_those_of_trees_on_cell_rates_of_other_problems(choices: list[str], facts: bool) -> None:
    table = failures(120, 1, cells=3, problems=50)
    table = with_facts(table) if facts else table
    rates = learnable(table)
    policy = Learned.fit(table, Tallies(rates, np.ones_like(rates)), choices, seed=4, held_out=False)
    assert policy.most_failed_ == table["n_failed_rollouts"].max() == 7
    mine = rates[:, [OPERATORS.index(name) for name in choices]]
    asked = pd.concat([table.tail(20), table.head(1).assign(cell="new|t", n_failed_rollouts=2)], ignore_index=True)
    booster = trees(table, mine, 7, 4)
    place = placed(booster, asked, start_of(table, mine, asked), 7)
    np.testing.assert_allclose(policy.place(asked), place, atol=1e-6)
    expected = [[min(max(row[0] + a, 0), 1) for a in row[1:]] for row in place]
    np.testing.assert_allclose(policy.expected(asked), expected, atol=1e-6)
    assert booster.num_boosted_rounds() == policy.booster_.num_boosted_rounds() == 60
    assert np.ptp(policy.expected(asked)[:, choices.index("dense_steer")]) > 0.2  # they have learnt the feature


def test_expected_rates_stay_between_0_and_1() -> None:
    table = failures(80, 2)
    rates = np.where(table["spread"].to_numpy()[:, None] > 0, [1.0, 0, 0, 0, 1], [0, 1, 0, 0, 0])
    policy = Learned.fit(table, Tallies(rates, np.ones_like(rates)), OPERATORS, held_out=False)
    far = table.assign(spread=np.where(table["spread"] > 0, 9.0, -9.0))
    assert policy.expected(far).min() >= 0 and policy.expected(far).max() <= 1


def test_the_trees_see_features_facts_and_cell_rates_in_their_order() -> None:
    table = with_facts(failures(4, 3)).assign(n_failed_rollouts=[1, 2, 3, 4])
    start = np.arange(12.0).reshape(4, 3)
    whole = learned._inputs(table, start, 8.0)
    np.testing.assert_array_equal(whole, np.hstack([table[SEEN].to_numpy(), start]))
    bare = learned._inputs(table.drop(columns=FACTS), start, 8.0)
    assert bare[:, 3].tolist() == [1 / 8, 2 / 8, 3 / 8, 4 / 8]  # the share that failed, of the most rollouts seen
    assert np.isnan(bare[:, 4:9]).all() and (bare[:, 9:] == start).all()
    some = learned._inputs(table[[*FEATURES, "kl"]], start, 8.0)
    assert np.isnan(some[:, [3, 4, 5, 7, 8]]).all() and (some[:, 6] == table["kl"]).all()


def test_seeds_deal_the_folds() -> None:
    table = failures(60, 4)
    fit = partial(Learned.fit, table, from_rates(table), OPERATORS, held_out=False)
    default, zero, one = fit().to_dict(), fit(seed=0).to_dict(), fit(seed=1).to_dict()
    assert default == zero and zero["booster"] != one["booster"]


# ------------------------------------------------------------------ out of fold


def test_out_of_fold_is_told_by_trees_that_never_saw_the_problem() -> None:
    table = failures(90, 5, cells=3, problems=40)
    rates = learnable(table)
    place = out_of_fold(table, rates, 7.0, UNTUNED, 3)
    fold = problem_folds(table, 5, np.random.default_rng([3, 11]))
    for k in range(5):
        held, other = table[fold == k], table[fold != k]
        assert len(held) and not set(held["problem_id"]) & set(other["problem_id"])
        booster = trees(other, rates[fold != k], 7.0, 3)
        expected = placed(booster, held, start_of(other, rates[fold != k], held), 7.0)
        np.testing.assert_allclose(place[fold == k], expected, atol=1e-6)


def test_three_folds_are_three() -> None:
    table = failures(60, 6)
    rates = table[OPERATORS].to_numpy()
    fold = problem_folds(table, 3, np.random.default_rng([0, 11]))
    changed = np.where((fold == 1)[:, None], 1 - rates, rates)  # a fold's own rates say nothing of where it lies
    told, moved = (out_of_fold(table, x, 7.0, UNTUNED, 0, 3) for x in (rates, changed))
    same = (told == moved).all(axis=1)
    assert same[fold == 1].all() and not same[fold != 1].any()


def test_one_problem_alone_is_told_by_itself() -> None:
    table = failures(6, 7).assign(problem_id="p")
    policy = Learned.fit(table, from_rates(table), OPERATORS)
    rates = table[OPERATORS].to_numpy()
    start = start_of(table, rates, table)
    np.testing.assert_allclose(policy.place(table), start, atol=0.05)
    np.testing.assert_allclose(out_of_fold(table, rates, policy.most_failed_, UNTUNED, 0), start, atol=0.05)


# ------------------------------------------------------------------ intervals


def bins(told: np.ndarray, rates: np.ndarray) -> tuple[list[float], list[list[float]]]:
    """Return nine edges at the tenths of the predictions and each bin's mean rate, give or take 1.96 of its error."""
    ordered = sorted(told.tolist())
    edges = []
    for tenth in range(1, 10):
        at = tenth / 10 * (len(ordered) - 1)
        low = int(at)
        edges.append(ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]))
    reach = []
    for b in range(10):
        inside = [r for t, r in zip(told, rates, strict=True) if sum(edge < t for edge in edges) == b]
        if len(inside) < 2:
            reach.append([0.0, 1.0])
            continue
        mean = sum(inside) / len(inside)
        half = 1.96 * sqrt(sum((r - mean) ** 2 for r in inside) / len(inside) / (len(inside) - 1))
        reach.append([max(mean - half, 0), min(mean + half, 1)])
    return edges, reach


@pytest.mark.parametrize(("n", "levels"), [(300, 0), (40, 0), (12, 0), (60, 4), (1, 0)])
def test_bins_are_those_of_the_loops(n: int, levels: int) -> None:
    rng = np.random.default_rng(n)
    told = rng.integers(levels, size=n) / levels if levels else rng.random(n)
    rates = np.clip(told + rng.normal(size=n) * 0.3, 0, 1)
    for got, expected in zip(learned._bins(told, rates), bins(told, rates), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_a_bin_by_hand() -> None:
    """Twenty failures, two a bin with rates 0.4 and 0.6: a standard error of 0.1."""
    edges, reach = learned._bins(np.arange(20.0), np.tile([0.4, 0.6], 10))
    np.testing.assert_allclose(edges, np.arange(1, 10) * 1.9)
    np.testing.assert_allclose(reach, [[0.5 - 0.196, 0.5 + 0.196]] * 10)
    _, low = learned._bins(np.arange(20.0), np.tile([0.0, 0.2], 10))
    np.testing.assert_allclose(low, [[0, 0.1 + 0.196]] * 10)


def test_rates_all_alike_have_an_interval_of_no_width_whatever_rounding() -> None:
    for rate in np.arange(1, 100) / 100:  # the mean of squares may fall below the square of the mean
        _, reach = learned._bins(np.arange(30.0), np.full(30, rate))
        np.testing.assert_allclose(reach, rate, atol=1e-7)


def test_intervals_are_those_of_the_bins_and_hold_the_prediction() -> None:
    table = failures(100, 8, cells=3, problems=60)
    rates = learnable(table)
    choices = ["local_temp", "dense_steer"]
    policy = Learned.fit(table, Tallies(rates, np.ones_like(rates)), choices, seed=2)
    mine = rates[:, [OPERATORS.index(name) for name in choices]]
    place = out_of_fold(table, mine, 7.0, UNTUNED, 2)
    expected = policy.expected(table)
    interval = policy.interval(table)
    widened = 0
    for c in range(2):
        told = np.minimum(np.maximum(place[:, 0] + place[:, 1 + c], 0), 1)
        edges, reach = bins(told, mine[:, c])
        np.testing.assert_allclose(policy.edges_[c], edges, atol=1e-9)
        np.testing.assert_allclose(policy.reach_[c], reach, atol=1e-9)
        for i, value in enumerate(expected[:, c]):
            low, high = reach[sum(edge < value for edge in edges)]
            assert interval[i, c].tolist() == pytest.approx([min(low, value), max(high, value)])
            widened += not low <= value <= high
    assert 0 < widened < 200


def test_held_out_or_not_the_trees_are_the_same_and_without_the_interval_is_0_to_1() -> None:
    table = failures(40, 9)
    default, bare = (Learned.fit(table, from_rates(table), OPERATORS, **more) for more in ({}, {"held_out": False}))
    np.testing.assert_array_equal(default.expected(table), bare.expected(table))
    assert bare.interval(table).tolist() == [[[0.0, 1.0]] * 5] * 40
    assert default.edges_.shape == (5, 9) and default.reach_.shape == (5, 10, 2)
    assert bare.edges_.tolist() == [[0.0] * 9] * 5 and bare.reach_.shape == (5, 10, 2)
    assert (np.ptp(default.interval(table), axis=-1) < 1).any()


# ------------------------------------------------------------------ JSON


def test_frozen_and_back_it_tells_the_same_on_one_thread() -> None:
    table = with_facts(failures(60, 10))
    policy = Learned.fit(table, from_rates(table), INTERVENTIONS, seed=1)
    frozen = json.loads(json.dumps(policy.to_dict(), allow_nan=False))
    assert frozen["booster"]["learner"]["objective"]["name"] == "reg:squarederror"
    again = Learned.from_dict(frozen)
    assert again.choices == tuple(INTERVENTIONS) and again.most_failed_ == policy.most_failed_
    for one in (table, failures(9, 11).assign(cell="new|t")):
        np.testing.assert_array_equal(again.place(one), policy.place(one))
        np.testing.assert_array_equal(again.interval(one), policy.interval(one))
    assert again.to_dict() == policy.to_dict()
    for booster in (policy.booster_, again.booster_):  # a server has threads of its own
        assert json.loads(booster.save_config())["learner"]["generic_param"]["nthread"] == "1"


# ------------------------------------------------------------------ tuning


@pytest.fixture
def studies(monkeypatch: pytest.MonkeyPatch) -> list[optuna.Study]:
    """Return the studies that are made, in a list that fills; they are Optuna's own."""
    made: list[optuna.Study] = []
    create = optuna.create_study

    def kept(**settings: Any) -> optuna.Study:
        made.append(create(**settings))
        return made[-1]

    monkeypatch.setattr(optuna, "create_study", kept)
    return made


def rescue(table: pd.DataFrame, rates: np.ndarray, choices: list[str], values: dict[str, Any], seed: int) -> float:
    """Return the mean rate of what is chosen by predictions of three folds."""
    place = out_of_fold(table, rates, float(table["n_failed_rollouts"].max()), values, seed, 3)
    chosen = pick(np.clip(place[:, :1] + place[:, 1:], 0, 1), choices)
    return sum(rates[i, choices.index(name)] for i, name in enumerate(chosen)) / len(chosen)


@pytest.mark.parametrize("choices", [OPERATORS, INTERVENTIONS])
def test_tuning_searches_the_ranges_for_the_rescue_of_what_is_chosen(
    studies: list[optuna.Study], choices: list[str]
) -> None:
    table = failures(60, 12)
    rates = learnable(table)
    policy = Learned.fit(table, Tallies(rates, np.ones_like(rates)), choices, trials=3, seed=6, held_out=False)
    (study,) = studies
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE and len(study.trials) == 3
    assert study.trials[0].params == UNTUNED  # first what it is untuned
    whole = optuna.distributions.IntDistribution
    real = optuna.distributions.FloatDistribution
    assert study.trials[1].distributions == {
        "eta": real(0.02, 0.3, log=True),
        "max_depth": whole(1, 5),
        "min_child_weight": real(5, 200, log=True),
        "reg_lambda": real(1, 300, log=True),
        "rounds": whole(20, 150),
    }
    mine = rates[:, [OPERATORS.index(name) for name in choices]]
    for trial in study.trials:
        assert trial.value == pytest.approx(rescue(table, mine, choices, trial.params, 6))
    best = trees(table, mine, 7.0, 6, study.best_params)
    place = placed(best, table, start_of(table, mine, table), 7.0)
    np.testing.assert_allclose(policy.place(table), place, atol=1e-6)


def test_tuning_is_reproducible_by_its_seed(studies: list[optuna.Study]) -> None:
    table = failures(40, 13)
    fit = partial(Learned.fit, table, from_rates(table), OPERATORS, trials=2, held_out=False)
    assert fit(seed=1).to_dict() == fit(seed=1).to_dict() != fit(seed=2).to_dict()
    tried = [[trial.params for trial in study.trials] for study in studies]
    assert tried[0] == tried[1] != tried[2]


def test_tuning_looks_at_so_many_failures(monkeypatch: pytest.MonkeyPatch, studies: list[optuna.Study]) -> None:
    assert learned.MOST == 6000
    monkeypatch.setattr(learned, "MOST", 30)
    table = failures(60, 14)
    rates = learnable(table)
    for n, seed in ((60, 0), (31, 3), (30, 0)):
        part = table.head(n)
        Learned.fit(part, Tallies(rates[:n], np.ones((n, 5))), OPERATORS, trials=1, seed=seed, held_out=False)
        some = sorted(np.random.default_rng([seed, 13]).choice(n, 30, replace=False)) if n > 30 else range(n)
        looked = part.iloc[list(some)]
        most = float(part["n_failed_rollouts"].max())
        place = out_of_fold(looked, rates[list(some)], most, UNTUNED, seed, 3)
        chosen = pick(np.clip(place[:, :1] + place[:, 1:], 0, 1), OPERATORS)
        value = np.mean([rates[i, OPERATORS.index(name)] for i, name in zip(some, chosen, strict=True)])
        assert studies[-1].trials[0].value == pytest.approx(value)


def test_trees_learn_a_feature() -> None:
    table = failures(400, 7)
    rates = np.full((400, 5), 0.3)
    rates[:, 4] += np.where(table["spread"] > 0, 0.4, -0.2)
    policy = Learned.fit(table, Tallies(rates, np.ones_like(rates)), OPERATORS, held_out=False)
    routed = pick(policy.expected(table), OPERATORS)
    assert ((routed == "dense_steer") == (table["spread"] > 0)).mean() > 0.97
