"""The evaluation: the authors' numbers, what a planted truth must give, the form of the rows, the edges."""

import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.evaluation import protocols
from salvage.evaluation.budgets import BUDGETS, HINDSIGHT
from salvage.evaluation.protocols import BASELINES, KS, evaluate, fit, halves, held_out_route
from salvage.evaluation.sheet import Data
from salvage.method.profiles import from_rates, regimes, tally
from salvage.policies.fitted import Fitted
from salvage.tables.profile_files import read_profiles
from salvage.tables.vocabulary import OPERATORS
from scored import FEW, alone, picked
from worlds import planted

SHARED = Path(__file__).parents[3] / "shared"
PAPER, GOLDEN = SHARED / "data" / "paper_failure_profiles.csv", SHARED / "golden" / "paper_routing.json"


@pytest.mark.skipif(not GOLDEN.exists() or not PAPER.exists(), reason="../shared is not beside this checkout")
def test_the_papers_protocol_gives_the_authors_table():
    rows = alone(read_profiles(PAPER))
    assert {row["protocol"] for row in rows} == {"paper"}
    for cell, expected in json.loads(GOLDEN.read_text()).items():
        got = picked(rows, cell=cell)
        assert got["rule"] == pytest.approx(expected["routed"], abs=1e-12)
        assert got["random"] == pytest.approx(expected["random_operator"], abs=1e-12)
        for name in OPERATORS:
            assert got[name] == pytest.approx(expected["retry" if name == "retry" else f"always_{name}"], abs=1e-12)
        sizes = {row["n"] for row in rows if row["cell"] == cell and row["scope"] == "steerable-hard"}
        assert sizes == {expected["steerable_hard"]}


def test_what_features_tell_about_the_cell_alone_does_not_count():
    # cells differ in features and in what rescues them; within a cell features are noise
    features = np.random.default_rng(6).normal(size=(400, 3))
    features[::2, 0] += 8
    truth = np.full((400, 5), 0.1)
    truth[::2, OPERATORS.index("dense_steer")] = truth[1::2, OPERATORS.index("sparse_steer")] = 0.7
    rows = evaluate(*planted(truth, features=features, cells=2, seed=9), **FEW)
    p = [r["p_value"] for r in rows if r["policy"] == "rule" and r["cell"] == "all" and r["k"] == 1]
    assert min(p) > 0.01
    got = picked(rows, protocol="cross-fitted")
    assert got["best per cell"] > 0.65 > got["best fixed"]


@pytest.mark.parametrize("attempts", [2, 5, 12])
def test_halves_share_out_every_attempt(attempts):
    profiles, tried = planted(np.full((9, 5), 0.4), attempts=attempts)
    made = halves(profiles, tried, np.random.default_rng(0))
    correct, of = (np.stack([getattr(half, name) for half in made]) for name in ("correct", "tried"))
    assert all((half.tokens == 18).all() for half in made)
    assert (of.sum(0) == attempts).all() and (np.abs(of[0] - of[1]) == attempts % 2).all()
    np.testing.assert_allclose(correct.sum(0) / attempts, profiles[OPERATORS])
    if attempts % 2:
        assert 0 < (of[0] > of[1]).mean() < 1  # the odd one goes to either half


def test_only_attempts_of_the_given_anchor_and_continuation_count():
    profiles, tried = planted(np.full((20, 5), 0.3), attempts=6)
    others = [tried.assign(anchor="replay", correct=True), tried.assign(continuation="greedy", correct=True)]
    controls = tried[tried["operator"] == "retry"].assign(operator="sparse_steer_wrong", correct=True)
    assert evaluate(profiles, pd.concat([tried, *others, controls]), **FEW) == evaluate(profiles, tried, **FEW)
    replayed = evaluate(profiles, pd.concat([tried, *others]), anchor="replay", **FEW)
    assert picked(replayed, scope="all", protocol="cross-fitted")["retry"] == 1


def test_the_form_of_the_rows():
    profiles, tried = planted(np.full((20, 5), 0.3), cells=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = evaluate(profiles, tried, **FEW)
    lifts = [f"{base}{end}" for base in ("over_retry", "over_best_fixed") for end in ("", "_low", "_high")]
    keys = ["cell", "scope", "protocol", "policy", "k", "budget", "n", "rescue", "low", "high", "p_value"]
    keys += [*lifts, "tokens", "per_1000"]
    assert all(sorted(row) == sorted(keys) for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    by = {tuple(row[key] for key in keys[:6]) for row in rows}
    ks = {"paper": [k for k in KS if k <= 12], "cross-fitted": [k for k in KS if k <= 6]}
    a_scope = sum(len(ks[protocol]) for protocol in ks) * len(BASELINES)
    budgets = len([b for b in BUDGETS if b <= 12]) * len(["retry", HINDSIGHT])
    assert len(by) == len(rows) == 3 * (2 * a_scope + budgets + 3)
    routed = [row for row in rows if row["policy"] == "rule" and row["k"] == 1 and row["n"]]
    assert [row for row in rows if row["p_value"] is not None] == routed


def test_a_cell_without_steerable_hard_failures_has_no_rescue_there():
    truth = np.full((40, 5), 0.3)
    truth[::2] = 1.0  # one cell whose retry always works
    profiles, tried = planted(truth, cells=2)
    rows = evaluate(profiles, tried, **FEW)
    empty = [row for row in rows if row["cell"] == "m0|t" and row["scope"] == "steerable-hard"]
    assert {row["policy"] for row in empty} == {*BASELINES, "null: retry", "null: random", "null: oracle"}
    assert all(row["n"] == 0 and row["rescue"] is row["low"] is row["high"] is row["p_value"] is None for row in empty)
    hard = int((regimes(profiles) == "steerable-hard").sum())
    assert hard and {r["n"] for r in rows if r["cell"] == "all" and r["policy"] == "rule"} >= {hard, 40}


def test_nothing_rescued_at_all_and_one_failure_alone():
    rows = evaluate(*planted(np.zeros((10, 5)), attempts=2), **FEW)
    assert set(picked(rows).values()) == {None} and set(picked(rows, scope="all").values()) == {0.0}
    one = evaluate(*planted(np.full((1, 5), 0.5), attempts=3), **FEW)
    got = picked(one, scope="all")
    assert got["rule"] == got["sparse_steer_random"]  # no z-score: the fallback
    routed = [row["p_value"] for row in one if row["policy"] == "rule" and row["scope"] == "all" and row["k"] == 1]
    assert routed == [1.0] * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t: (p.head(0), t), "no failures"),
        (lambda p, t: (p.drop(columns="retry"), t), "column 'retry' is missing"),
        (lambda p, t: (p.assign(spread=np.nan), t), "row 0, column 'spread'"),
        (lambda p, t: (p.assign(retry=1.5), t), "row 0, column 'retry'"),
        (lambda p, t: (pd.concat([p, p]), t), "same cell, problem_id"),
        (lambda p, t: (p.assign(cell="all"), t.assign(cell="all")), "rename it"),
        (lambda p, t: (p, t[t["attempt"] == 0]), "'p0' of cell 'm0|t' has fewer than two under 'retry'"),
        (lambda p, t: (p, t[t["problem_id"] != "p3"]), "'p3' of cell"),
        (lambda p, t: (p, t.assign(anchor="replay")), "none has anchor 'online'"),
    ],
)
def test_bad_tables_are_refused(change, message):
    with pytest.raises(SalvageError, match=message):
        evaluate(*change(*planted(np.full((6, 5), 0.3), attempts=2)), **FEW)


def test_no_policy_is_scored_on_a_problem_that_it_was_fitted_on():
    profiles, _ = planted(np.full((30, 5), 0.3), cells=2)
    tallies = from_rates(profiles)
    rows = np.arange(30)
    fitted = Fitted.fit("calibrated", profiles[rows < 20], tallies.take(rows < 20), OPERATORS)
    assert len(held_out_route(fitted, profiles[rows >= 20])) == 10
    with pytest.raises(SalvageError, match=r"'calibrated' was fitted on problem 't/p19' \(row 0\)"):
        held_out_route(fitted, profiles[rows >= 19])  # one leaks
    elsewhere = profiles[rows == 19].assign(cell="another|t")  # the same problem, failed by another model
    with pytest.raises(SalvageError, match="was fitted on problem 't/p19'"):
        held_out_route(fitted, elsewhere)


def test_a_leak_in_the_folds_is_refused(monkeypatch):
    # folds that deal failures, not problems: two cells share each problem
    profiles, tried = planted(np.full((40, 5), 0.3), cells=2)
    twice = [pd.concat([t, t.assign(cell="other|t")], ignore_index=True) for t in (profiles, tried)]
    evaluate(*twice, **FEW | {"policies": ("calibrated",)})
    monkeypatch.setattr(protocols, "problem_folds", lambda table, folds, rng: rng.permutation(len(table)) % folds)
    with pytest.raises(SalvageError, match="cannot be scored on it"):
        evaluate(*twice, **FEW | {"policies": ("calibrated",)})


def test_budgets_count_model_tokens_until_the_first_success():
    profiles, tried = planted(np.full((50, 5), 0.5))
    rows = evaluate(profiles, tried, **FEW)
    row = next(row for row in rows if row["budget"] == 2 and row["policy"] == "retry" and row["cell"] == "all")
    rate = profiles["retry"].mean()
    assert row["tokens"] == pytest.approx(18 * (2 - rate))
    assert row["per_1000"] == pytest.approx(1000 * row["rescue"] / row["tokens"])


@pytest.mark.parametrize("policies", [("nonsense",), ("rule:3",), ("calibrated:x",), ("calibrated", "learned:5")])
def test_an_unknown_policy_is_named(policies):
    known = "rule, fixed, random, calibrated, learned, portfolio"
    told = (
        f"^policy '{policies[-1]}' is not known; choose among {known}, or calibrated:N for a calibration on N failures"
    )
    with pytest.raises(SalvageError, match=told):
        evaluate(*planted(np.full((6, 5), 0.3)), **FEW | {"policies": policies})


def test_what_cannot_be_dealt_is_refused() -> None:
    profiles, attempts = planted(np.full((6, 5), 0.3), attempts=2)
    for folds, repeats in ((1, 1), (2, 0), (0, 3)):
        told = f"^{folds} folds and {repeats} repeats; give at least two folds and one repeat$"
        with pytest.raises(SalvageError, match=told):
            evaluate(profiles, attempts, folds=folds, repeats=repeats, **FEW)
    assert evaluate(profiles, attempts, folds=2, repeats=1, **FEW)


def test_a_failure_with_one_attempt_is_named_with_its_operator() -> None:
    profiles, attempts = planted(np.full((6, 5), 0.3), attempts=3, cells=2)
    once = (attempts["problem_id"] == "p3") & (attempts["operator"] == "local_temp") & (attempts["attempt"] > 0)
    told = r"^attempts: problem 'p3' of cell 'm1\|t' has fewer than two under 'local_temp'; cross-fitting"
    with pytest.raises(SalvageError, match=told):
        evaluate(profiles, attempts[~once], **FEW)


@pytest.mark.parametrize(("anchor", "continuation"), [("online", "greedy"), ("replay", "temperature")])
def test_attempts_that_nobody_made_are_named(anchor: str, continuation: str) -> None:
    told = f"^attempts: none has anchor '{anchor}' with continuation '{continuation}'; make some$"
    with pytest.raises(SalvageError, match=told):
        evaluate(*planted(np.full((6, 5), 0.3)), anchor=anchor, continuation=continuation, **FEW)


@pytest.mark.parametrize(
    ("name", "policy", "settings"),
    [
        ("best fixed", "fixed", {"by_cell": False}),
        ("best per cell", "fixed", {"by_cell": True}),
        ("calibrated", "calibrated", {}),
        ("calibrated:7", "calibrated", {"outcomes": 7}),
        ("learned", "learned", {"trials": 1, "seed": 7, "held_out": False}),
        ("portfolio", "portfolio", {}),
    ],
)
def test_a_policy_is_fitted_with_the_settings_that_its_name_tells(name, policy, settings) -> None:
    profiles, attempts = planted(np.random.default_rng(0).random((40, 5)), cells=2)
    tallies, choices = tally(profiles, attempts)[0], ["retry", "dense_steer"]
    data = Data(profiles, np.array([]), np.array([]), [], 7, 1)
    told = fit(data, name, profiles, tallies, choices).to_dict()
    assert told == Fitted.fit(policy, profiles, tallies, choices, **settings).to_dict()
    assert name == "portfolio" or told["fitted"]["choices"] == choices
