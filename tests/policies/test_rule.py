"""The rule: the authors' numbers, what must not change it, and what has no z-score."""

import json
from math import sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.errors import SalvageError
from salvage.method.profiles import STEERABLE_HARD, regimes
from salvage.policies.rule import Rule, choose, decide, decide_by_cell, margin, route_batch
from salvage.tables.profile_files import read_profiles
from salvage.tables.vocabulary import FEATURES, INTERVENTIONS, OPERATORS

SHARED = Path(__file__).parents[3] / "shared"
PAPER, GOLDEN = SHARED / "data" / "paper_failure_profiles.csv", SHARED / "golden" / "paper_routing.json"


def failures(n, seed, cell="m|t"):
    """Return n failures whose features lie on a grid of eighths, so that scaling by powers of two is exact."""
    grid = np.random.default_rng(seed).integers(-64, 64, size=(n, 3)) / 8
    return pd.DataFrame(grid, columns=FEATURES).assign(cell=cell)


@pytest.mark.skipif(not GOLDEN.exists() or not PAPER.exists(), reason="../shared is not beside this checkout")
def test_the_authors_table_is_met():
    table = read_profiles(PAPER)
    table["regime"] = regimes(table)
    for cell, expected in json.loads(GOLDEN.read_text()).items():
        part = table if cell == "all" else table[table["cell"] == cell]  # `all`: z-scores over the pooled failures
        hard = part[part["regime"] == STEERABLE_HARD]
        routed = route_batch(hard)
        rates = hard[OPERATORS].to_numpy()
        counts = part["regime"].value_counts()
        got = {
            "failures": len(part),
            "steerable_hard": len(hard),
            "beyond_reach": counts["beyond reach"],
            "retry_solvable": counts["retry-solvable"],
            "routed": rates[np.arange(len(hard)), [OPERATORS.index(name) for name in routed]].mean(),
            "random_operator": hard[INTERVENTIONS].to_numpy().mean(),
            "retry": hard["retry"].mean(),
            **{f"always_{name}": hard[name].mean() for name in INTERVENTIONS},
        }
        assert pd.Series(routed).value_counts().to_dict() == expected.pop("routed_to")
        assert got == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 60), st.integers(0, 2**32), st.sampled_from(FEATURES), st.integers(-20, 20), st.integers(-100, 100)
)
def test_units_do_not_matter(n, seed, name, power, shift):
    table = failures(n, seed)
    scaled = table.assign(**{name: table[name] * 2.0**power + shift * 2.0**power})
    z, z_scaled = Rule.fit(table).scores(table), Rule.fit(scaled).scores(scaled)
    np.testing.assert_allclose(z, z_scaled, atol=1e-9)
    clear = (margin(z) > 1e-6) & (np.abs(z.max(1)) > 1e-6)  # elsewhere rounding may break a tie either way
    assert (route_batch(table)[clear] == route_batch(scaled)[clear]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**32), st.booleans())
def test_the_order_of_failures_does_not_matter(n, seed, fallback):
    table = failures(n, seed)
    order = np.random.default_rng(seed).permutation(n)
    z = Rule.fit(table).scores(table)
    clear = ((margin(z) > 1e-6) & (np.abs(z.max(1)) > 1e-6))[order]
    turned = route_batch(table.iloc[order], fallback)
    assert (turned[clear] == route_batch(table, fallback)[order][clear]).all()


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**32), st.booleans())
def test_one_request_is_answered_as_in_a_batch_also_after_json(n, seed, fallback):
    table = failures(n, seed)
    rule = Rule.fit(table, fallback)
    again = Rule.from_dict(json.loads(json.dumps(rule.to_dict())))
    one_by_one = [again.route(table.iloc[[i]])[0] for i in range(n)]
    assert one_by_one == again.route(table).tolist() == rule.route(table).tolist()
    np.testing.assert_array_equal(again.scores(table), rule.scores(table))


def test_z_scores_are_of_the_population():
    z = Rule.fit(failures(50, 1)).scores(failures(50, 1))
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(0), 1)


@pytest.mark.parametrize(
    ("z", "with_fallback", "without"),
    [
        ([1, 1, 1], "dense_steer", "dense_steer"),
        ([0, 1, 1], "sparse_steer", "sparse_steer"),
        ([0, 0, 1e-9], "local_temp", "local_temp"),
        ([0, 0, 0], "sparse_steer_random", "dense_steer"),
        ([-2, -1, -1], "sparse_steer_random", "sparse_steer"),
    ],
)
def test_ties_and_the_fallback(z, with_fallback, without):
    z = np.array([z], np.float64)
    assert choose(z, True).tolist() == [with_fallback]
    assert choose(z, False).tolist() == [without]


def test_a_constant_feature_has_no_say():
    table = failures(30, 2).assign(spread=0.1)  # 0.1: its mean is not exactly itself
    rule = Rule.fit(table)
    assert not rule.scores(table)[:, 0].any()
    assert rule.scores(table.assign(spread=99.0))[:, 0].tolist() == [0.0] * 30
    same = pd.concat([failures(1, 3)] * 5)
    assert route_batch(same).tolist() == ["sparse_steer_random"] * 5


@pytest.mark.parametrize("seed", range(4))
def test_scores_and_choices_are_those_of_the_loops(seed):
    table, asked = failures(9, seed), failures(30, seed + 10)
    rule = Rule.fit(table)
    columns, z = {"spread": 0, "concentration": 1, "logit_dispersion": 2}, np.zeros((30, 3))
    for name, column in columns.items():
        values = table[name].tolist()
        mean = sum(values) / 9
        deviation = sqrt(sum((x - mean) ** 2 for x in values) / 9)
        assert (rule.mean_[column], rule.std_[column]) == pytest.approx((mean, deviation))
        z[:, column] = [(x - mean) / deviation for x in asked[name]]
    np.testing.assert_allclose(rule.scores(asked), z)
    targets = ["dense_steer", "sparse_steer", "local_temp"]
    best = [targets[max(range(3), key=row.__getitem__)] for row in z.tolist()]
    assert Rule.fit(table, fallback=False).route(asked).tolist() == best
    none = [max(row) <= 0 for row in z.tolist()]
    assert any(none) and not all(none)
    expected = ["sparse_steer_random" if no else name for no, name in zip(none, best, strict=True)]
    assert rule.route(asked).tolist() == expected
    assert decide(asked, rule)["margin"].tolist() == pytest.approx([sorted(r)[2] - sorted(r)[1] for r in z.tolist()])


def test_by_default_a_failure_without_a_lead_falls_back_everywhere():
    table = failures(12, 7)
    rule = Rule.fit(table)
    assert rule.fallback and Rule(rule.mean_, rule.std_).fallback
    assert (
        route_batch(table).tolist() == route_batch(table, True).tolist() == decide_by_cell(table)["operator"].tolist()
    )
    assert route_batch(table, False).tolist() == decide_by_cell(table, False)["operator"].tolist()
    assert route_batch(table).tolist() != route_batch(table, False).tolist()
    nameless = table.drop(columns="cell")
    assert decide_by_cell(nameless, False)["operator"].tolist() == route_batch(table, False).tolist()
    assert decide_by_cell(nameless)["operator"].tolist() == route_batch(table).tolist()


def test_the_frozen_reference_is_means_and_deviations_by_name():
    table = pd.DataFrame({"spread": [0.0, 2.0], "concentration": [0.1, 0.1], "logit_dispersion": [-1.0, -4.0]})
    for fallback in (True, False):
        assert Rule.fit(table, fallback).to_dict() == {
            "policy": "rule",
            "fallback": fallback,
            "reference": {
                "spread": {"mean": 1.0, "std": 1.0},
                "concentration": {"mean": pytest.approx(0.1), "std": 0.0},  # constant: exactly 0, whatever rounding
                "logit_dispersion": {"mean": -2.5, "std": 1.5},
            },
        }
        assert Rule.from_dict(Rule.fit(table, fallback).to_dict()).fallback is fallback


def test_a_small_deviation_is_a_deviation():
    rule = Rule(np.zeros(3), np.array([1e-3, 0.5, 0.0]))
    np.testing.assert_allclose(rule.z(np.array([[1e-3, 1.0, 5.0]])), [[1, 2, 0]])


def test_decide_gives_scores_and_margin():
    table = failures(20, 4)
    told = decide(table, Rule.fit(table))
    z = told[[f"z_{name}" for name in FEATURES]].to_numpy()
    ordered = np.sort(z, axis=1)
    np.testing.assert_array_equal(told["margin"], ordered[:, 2] - ordered[:, 1])
    assert told["operator"].tolist() == route_batch(table).tolist()


def test_by_cell_each_cell_is_its_own_reference():
    a, b = failures(15, 5, "a|t"), failures(9, 6, "b|t")
    both = pd.concat([a, b], ignore_index=True).sample(frac=1, random_state=0)
    told = decide_by_cell(both)
    assert told.index.equals(both.index)
    for cell in ("a|t", "b|t"):
        rows = both["cell"] == cell
        assert told.loc[rows, "operator"].tolist() == route_batch(both[rows]).tolist()
    nameless = both.drop(columns="cell")
    assert decide_by_cell(nameless)["operator"].tolist() == route_batch(both).tolist()


@pytest.mark.parametrize(("n", "told"), [(0, "0 failures"), (1, "1 failure")])
def test_one_failure_alone_has_no_z_score(n, told):
    with pytest.raises(SalvageError, match=f"^{told}: z-scores are undefined without a reference population; give"):
        Rule.fit(failures(5, 0).head(n))


def test_two_failures_are_a_reference():
    z = Rule.fit(failures(2, 0)).scores(failures(2, 0))
    np.testing.assert_allclose(np.abs(z), 1)


def test_the_first_cell_of_one_failure_is_named():
    table = pd.concat([failures(3, 0), failures(1, 1, "lonely|t"), failures(1, 2, "another|t")], ignore_index=True)
    with pytest.raises(SalvageError, match=r"^row 3: cell 'lonely\|t' has one failure alone.*--reference"):
        decide_by_cell(table)
    pair = pd.concat([failures(2, 0), failures(2, 1, "b|t")], ignore_index=True)
    assert len(decide_by_cell(pair)) == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", FEATURES)
def test_what_is_not_finite_gets_no_operator(name, bad):
    table = failures(4, 0)
    rule = Rule.fit(table)
    table.loc[2, name] = bad
    for ask in (rule.route, Rule.fit, route_batch, decide_by_cell):
        with pytest.raises(SalvageError, match=f"row 2, column '{name}'"):
            ask(table)


def test_of_several_that_are_not_finite_the_first_is_named():
    table = failures(5, 0)
    table.loc[3, "spread"], table.loc[1, "logit_dispersion"] = np.nan, np.inf
    with pytest.raises(SalvageError) as told:
        route_batch(table)
    assert str(told.value) == "row 1, column 'logit_dispersion': inf is not a finite number; correct or drop it"


@pytest.mark.parametrize(("column", "name"), list(enumerate(FEATURES)))
def test_numbers_too_large_to_scale_get_no_operator(column, name):
    table = failures(4, 0)
    narrow = Rule.fit(table.assign(**{name: [0, 1e-9, 0, 0]}))
    far = table.assign(**{name: [0, 1e308, -1e308, 0]})
    with pytest.raises(SalvageError) as told:
        narrow.route(far)
    where = f"row 1, column '{name}'"
    assert str(told.value) == f"{where}: 1e+308 is too far from the reference to be scaled; correct it"
    with pytest.raises(SalvageError, match=f"^column '{name}' has values too large to scale; correct them$"):
        Rule.fit(table.assign(**{name: [1e308, -1e308, 0, 1]}))
    assert np.abs(narrow.scores(table.assign(**{name: 1e200}))[:, column]).min() > 1e200  # far, and still a number


@pytest.mark.parametrize("name", FEATURES)
def test_a_missing_or_textual_feature_is_named(name):
    with pytest.raises(SalvageError, match=f"column '{name}' is missing"):
        route_batch(failures(3, 0).drop(columns=name))
    with pytest.raises(SalvageError, match="must be numbers"):
        route_batch(failures(3, 0).assign(**{name: "much"}))
