"""What planted truths must give: many worlds, or large ones; the quick tests of `evaluate` are in test_evaluate.py."""

import time

import numpy as np
import pytest

from salvage.evaluation import protocols
from salvage.evaluation.budgets import HINDSIGHT
from salvage.evaluation.protocols import BASELINES, evaluate
from salvage.tables.vocabulary import OPERATORS
from scored import FEW, alone, picked
from worlds import planted, pointing


@pytest.fixture(scope="module")
def only_retry():
    """Every operator is only retry: 1500 failures whose rates differ; evaluated."""
    rates = np.random.default_rng(1).beta(1.0, 2.0, size=(1500, 1))
    return evaluate(*planted(np.repeat(rates, 5, axis=1), cells=3), **FEW)


@pytest.fixture
def read_only(monkeypatch):
    """Have `evaluate` make one scope's rows within k attempts and nothing else: what a test of many worlds reads."""

    def leave(scope):
        monkeypatch.setattr(protocols, "SCOPES", [scope])
        monkeypatch.setattr(protocols, "null_line", lambda *_: [])
        monkeypatch.setattr(protocols, "score_budgets", lambda *_: None)

    return leave


def test_cross_fitting_has_no_winners_curse_and_the_papers_protocol_has(only_retry):
    paper, honest = picked(only_retry), picked(only_retry, protocol="cross-fitted")
    for policy in ("rule", "oracle", "best fixed", "best per cell", "random", "dense_steer"):
        assert paper[policy] - paper["retry"] > 0.04, policy
        assert abs(honest[policy] - honest["retry"]) < 0.02, policy
    assert paper["oracle"] - paper["retry"] > 0.2


def test_the_null_line_shows_the_lift_that_selection_alone_gives(only_retry):
    seen, null = picked(only_retry), {k: v for k, v in picked(only_retry).items() if k.startswith("null: ")}
    assert set(null) == {"null: retry", "null: random", "null: oracle"}
    # where nothing but selection is at work, what is seen is about the null line; redrawing adds its own noise
    assert null["null: oracle"] - null["null: retry"] == pytest.approx(seen["oracle"] - seen["retry"], abs=0.05)
    where = {"cell": "all", "scope": "steerable-hard", "protocol": "paper"}
    counts = {row["policy"]: row["n"] for row in only_retry if where.items() <= row.items()}
    assert counts["null: retry"] == pytest.approx(counts["retry"], rel=0.2)


def test_the_halves_do_not_share_the_stream_of_whoever_drew_the_attempts(read_only):
    read_only("steerable-hard")
    # a sort by the draws that made the outcomes would deal right and wrong evenly to both halves
    rates = np.random.default_rng(1).beta(1.0, 2.0, size=(800, 1))
    for seed in range(3):
        rows = evaluate(*planted(np.repeat(rates, 5, axis=1), seed=seed), seed=seed, **FEW)
        got = picked(rows, protocol="cross-fitted")
        assert abs(got["random"] - got["retry"]) < 0.025


def test_cross_fitted_rates_are_unbiased_over_all_failures(read_only):
    read_only("all")
    truth = np.random.default_rng(2).beta(1, 2, size=(40, 5))
    policies = [*OPERATORS, "random"]
    gaps = []
    for seed in range(40):
        rows = evaluate(*planted(truth, attempts=7, seed=seed), seed=seed, resamples=2, permutations=2, policies=())
        got = picked(rows, scope="all", protocol="cross-fitted")
        gaps.append([got[name] for name in policies] - np.append(truth.mean(0), truth[:, 1:].mean()))
    gaps = np.array(gaps)
    assert (np.abs(gaps.mean(0)) < 4 * gaps.std(0) / np.sqrt(len(gaps))).all()


def test_a_rule_that_is_right_is_found_right():
    # what each failure's largest feature names rescues it, nothing else does
    features, truth = pointing(600, 0.1, 0.8)
    rows = evaluate(*planted(truth, features=features, cells=2), **FEW)
    for protocol in ("paper", "cross-fitted"):
        got = picked(rows, protocol=protocol)
        assert got["rule"] == pytest.approx(got["oracle"], abs=0.05) and got["rule"] > 0.75
        assert got["best fixed"] < 0.5
        p = [
            row["p_value"] for row in rows if row["policy"] == "rule" and row["protocol"] == protocol and row["k"] == 1
        ]
        assert max(p) == pytest.approx(1 / 201)


def test_the_rules_p_value_is_uniform_where_features_say_nothing(read_only):
    read_only("all")
    truth = np.random.default_rng(5).beta(1, 2, size=(60, 5))
    values = []
    for seed in range(60):
        rows = evaluate(*planted(truth, seed=seed, attempts=4), seed=seed, resamples=2, permutations=99, policies=())
        values += [
            r["p_value"] for r in rows if r["policy"] == "rule" and r["cell"] == r["scope"] == "all" and r["k"] == 1
        ]
    assert 0.35 < np.mean(values) < 0.65
    assert np.mean(np.array(values) <= 0.1) < 0.25


def test_intervals_hold_the_estimate_and_narrow_with_failures():
    widths = []
    for n in (50, 800):
        truth = np.random.default_rng(7).beta(1, 2, size=(n, 5))
        rows = evaluate(*planted(truth, cells=2), resamples=1000, permutations=2, policies=())
        known = [row for row in rows if row["rescue"] is not None]
        assert all(row["low"] <= row["rescue"] + 1e-9 and row["rescue"] <= row["high"] + 1e-9 for row in known)
        widths.append(np.mean([row["high"] - row["low"] for row in known if row["cell"] == row["scope"] == "all"]))
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)


def test_the_seed_decides_and_the_order_of_attempts_rows_does_not_break_it():
    profiles, tried = planted(np.full((30, 5), 0.3), cells=2)
    first = evaluate(profiles, tried, seed=3, **FEW)
    assert first == evaluate(profiles, tried, seed=3, **FEW) != evaluate(profiles, tried, seed=4, **FEW)
    shuffled = tried.sample(frac=1, random_state=0)
    one, two = picked(first), picked(evaluate(profiles, shuffled, seed=3, **FEW))
    # the paper's protocol draws nothing but the folds
    assert {k: one[k] for k in BASELINES} == {k: two[k] for k in BASELINES}


@pytest.mark.parametrize("scope", ["steerable-hard", "all"])
def test_a_scopes_rows_are_the_same_whatever_else_is_made(scope, read_only):
    tables = planted(np.random.default_rng(0).beta(1, 2, size=(60, 5)), cells=2)
    settings = FEW | {"policies": ("calibrated",)}
    whole = [r for r in evaluate(*tables, **settings) if r["scope"] == scope and r["k"]]
    read_only(scope)
    assert evaluate(*tables, **settings) == [r for r in whole if not r["policy"].startswith("null: ")]


def test_ten_thousand_failures_take_seconds():
    profiles, _ = planted(np.random.default_rng(0).beta(1, 2, size=(10_000, 5)), attempts=2, cells=16)
    start = time.perf_counter()
    alone(profiles, resamples=2000, permutations=200)
    assert time.perf_counter() - start < 10


def test_no_lift_is_seen_where_there_is_none(record_property, read_only):
    read_only("steerable-hard")
    # every operator is only retry, features are noise
    held: dict[str, int] = {}
    for world in range(100):
        rates = np.random.default_rng([world, 9]).beta(1.0, 2.0, size=(150, 1))
        tables = planted(np.repeat(rates, 5, axis=1), seed=world)
        rows = evaluate(*tables, seed=world, resamples=500, permutations=2, policies=("calibrated",))
        where = {"cell": "all", "scope": "steerable-hard", "k": 1}
        for row in (row for row in rows if where.items() <= row.items() and row["over_retry"] is not None):
            name = f"{row['policy']}, {row['protocol']}"
            held[name] = held.get(name, 0) + (row["over_retry_low"] <= 0 <= row["over_retry_high"])
    record_property("worlds whose interval holds 0", held)
    # 95 are expected; fewer than 91 come by chance once in 30 tries, and the seeds are fixed
    assert min(held[f"{name}, cross-fitted"] for name in ("rule", "random", "dense_steer", "oracle")) >= 91, held
    # an interval takes a fitted policy's choices as given: 90 to 93 in longer trials
    assert held["calibrated, cross-fitted"] >= 87, held
    assert max(held[f"{name}, paper"] for name in ("rule", "random", "calibrated", "oracle")) <= 5, held  # inflated


def test_a_known_lift_is_recovered():
    # the largest feature names what rescues half of the time; the rest a fifth
    features, truth = pointing(1200, 0.2, 0.5)
    rows = evaluate(*planted(truth, features=features, cells=3), **FEW | {"policies": ("calibrated", "learned")})
    for policy in ("rule", "calibrated", "learned"):
        where = {"cell": "all", "scope": "all", "protocol": "cross-fitted", "policy": policy, "k": 1}
        row = next(row for row in rows if where.items() <= row.items())
        assert row["over_retry_low"] < 0.3 < row["over_retry_high"] + 0.01, policy
        assert row["over_best_fixed_low"] > 0.15, policy


def test_success_within_k_attempts_is_unbiased(read_only):
    read_only("all")
    truth = np.random.default_rng(2).beta(1, 2, size=(60, 5))
    gaps = []
    for seed in range(30):
        rows = evaluate(*planted(truth, attempts=10, seed=seed), seed=seed, resamples=2, permutations=2, policies=())
        where = {"cell": "all", "scope": "all", "protocol": "cross-fitted", "k": 4}
        got = {row["policy"]: row["rescue"] for row in rows if where.items() <= row.items()}
        gaps.append([got[name] - (1 - (1 - truth[:, o]) ** 4).mean() for o, name in enumerate(OPERATORS)])
    gaps = np.array(gaps)
    assert (np.abs(gaps.mean(0)) < 4 * gaps.std(0) / np.sqrt(len(gaps))).all()


def test_the_portfolio_finds_what_resists_retries(monkeypatch):
    monkeypatch.setattr("salvage.evaluation.budgets.BUDGETS", (4, 16))  # what is looked at, and the largest
    # half of the failures never yield to retry and always to dense_steer, and no feature tells which
    structural = np.arange(400) % 2 == 0
    truth = np.full((400, 5), 0.0)
    truth[~structural, 0] = 0.6
    truth[structural, OPERATORS.index("dense_steer")] = 0.9
    rows = evaluate(*planted(truth, attempts=24), **FEW | {"policies": ("portfolio",)})
    got = {r["policy"]: r for r in rows if r["budget"] == 4 and r["cell"] == "all"}
    assert got["retry"]["rescue"] < 0.5 and got["portfolio"]["rescue"] > 0.85
    assert got["portfolio"]["over_retry_low"] > 0.3
    assert got["portfolio"]["rescue"] == pytest.approx(got[HINDSIGHT]["rescue"], abs=0.03)
