"""The three trajectory features: by hand, and many rollouts at once equal to one at a time."""

from math import log10

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.errors import SalvageError
from salvage.method.features import rollout_features, trajectory_features
from salvage.tables import schema, vocabulary


def signal_rows(lengths, rng, zeros=0.4):
    """Return schema.SIGNAL_ROWS with rollouts of these lengths; some rollouts have no pressure at all."""
    rows = []
    for i, length in enumerate(lengths):
        signals = {name: rng.normal(size=length) for name in vocabulary.SIGNALS}
        pressure = rng.integers(0, 4, length) * (rng.random(length) > zeros) * rng.integers(0, 4, 1)
        signals |= {"j": pressure.astype(np.float64), "logit_var": rng.random(length)}
        rows.append({"cell": "m|t", "problem_id": f"p{i}", "rollout": 0, **signals})
    return pd.DataFrame(rows)


def test_by_hand():
    j = np.array([0.0, 3.0, 0.0, 3.0, 1.0, 0.0, 0.0])
    logit_var = np.array([1.0, 2.0, 3.0, 100.0, 5.0, 6.0, 7.0])
    got = trajectory_features({"j": j, "logit_var": logit_var}, window=1)
    assert got["junction"] == 1  # the first of the two largest
    assert got["spread"] == pytest.approx(3 / 7)
    assert got["concentration"] == pytest.approx(np.log10(3 / 1.0))
    assert got["logit_dispersion"] == pytest.approx(np.log10(2.0))


def test_the_window_is_clipped_to_the_rollout():
    for at in (0, 4):
        j = np.zeros(5)
        j[at] = 1
        got = trajectory_features({"j": j, "logit_var": np.array([1.0, 2, 3, 4, 5])}, window=1)
        assert got["logit_dispersion"] == pytest.approx(np.log10(1.5 if at == 0 else 4.5))


def test_no_pressure_and_no_variance():
    got = trajectory_features({"j": np.zeros(3), "logit_var": np.zeros(3)})
    assert got == {"junction": 0, "spread": 0.0, "concentration": 0.0, "logit_dispersion": -8.0}


def by_loops(j, logit_var, window):
    """Return the junction and the three features of one rollout, token by token."""
    junction = max(range(len(j)), key=lambda t: (j[t], -t))
    near = [logit_var[t] for t in range(len(j)) if abs(t - junction) <= window]
    mean = sum(j) / len(j)
    return {
        "junction": junction,
        "spread": sum(x > 0 for x in j) / len(j),
        "concentration": log10(max(j) / mean) if max(j) > 0 else 0.0,
        "logit_dispersion": log10(max(sum(near) / len(near), 1e-8)),
    }


@pytest.mark.parametrize("window", [None, 0, 1, 3, 8])
def test_features_are_those_of_the_loops(window):
    rows = signal_rows([1, 2, 7, 17, 18, 19, 40, 25, 3, 30], np.random.default_rng(1))
    rows.loc[8, "logit_var"][:] = 1e-12  # below the floor
    wide = 8 if window is None else window
    many = rollout_features(rows) if window is None else rollout_features(rows, window)
    for i, row in rows.iterrows():
        expected = by_loops(row["j"].tolist(), row["logit_var"].tolist(), wide)
        one = trajectory_features(row) if window is None else trajectory_features(row, window=window)
        assert one == pytest.approx(expected, abs=1e-9)
        assert {name: many.loc[i, name] for name in expected} == pytest.approx(expected, abs=1e-9)
        means = {name: sum(row[name]) / len(row[name]) for name in ("entropy", "kl", "delta_path", "g_cov")}
        rest = {**means, "n_tokens": len(row["j"]), "j_max": max(row["j"])}
        assert {name: many.loc[i, name] for name in rest} == pytest.approx(rest, abs=1e-9)
        assert many.loc[i, ["cell", "problem_id", "rollout"]].tolist() == ["m|t", f"p{i}", 0]
    assert many.columns.tolist() == [name for name, column in schema.FEATURE_ROWS.columns.items() if column.required]
    assert many.loc[8, "logit_dispersion"] == pytest.approx(-8)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 9), st.integers(0, 2**32))
def test_many_at_once_equal_one_at_a_time(lengths, window, seed):
    rows = signal_rows(lengths, np.random.default_rng(seed))
    got = rollout_features(rows, window)
    checked = schema.check(got, schema.FEATURE_ROWS, "features")
    for i, row in rows.iterrows():
        single = trajectory_features(row, window=window)
        assert {name: checked.loc[i, name] for name in single} == pytest.approx(single, abs=1e-12)
        assert checked.loc[i, "n_tokens"] == lengths[i] and checked.loc[i, "j_max"] == row["j"].max()
        assert checked.loc[i, "kl"] == pytest.approx(row["kl"].mean(), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.floats(0.01, 100), st.integers(0, 2**32))
def test_the_scale_of_pressure_does_not_matter(length, scale, seed):
    row = signal_rows([length], np.random.default_rng(seed)).iloc[0]
    got = trajectory_features(row)
    assert 0 <= got["spread"] <= 1
    assert -1e-12 <= got["concentration"] <= np.log10(length) + 1e-12
    assert trajectory_features({"j": row["j"] * scale, "logit_var": row["logit_var"]}) == pytest.approx(got)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("row", "token"), [(0, 0), (0, 3), (1, 0), (2, 5)])
def test_what_is_not_finite_is_refused_and_named(bad, row, token):
    for name in vocabulary.SIGNALS:
        rows = signal_rows([4, 5, 6], np.random.default_rng(0))
        rows.loc[row, name][token] = bad
        with pytest.raises(SalvageError) as told:
            rollout_features(rows)
        assert str(told.value) == (
            f"signals, row {row}, column '{name}': a value is not finite; score that rollout again"
        )
    for given_ in ({"j": [0.0, bad], "logit_var": [1.0, 1.0]}, {"j": [0.0, 1.0], "logit_var": [bad, 1.0]}):
        with pytest.raises(SalvageError, match=r"^j and logit_var must be finite numbers; score the rollout again$"):
            trajectory_features(given_)


def test_of_several_that_are_not_finite_the_first_of_a_column_is_named():
    rows = signal_rows([4, 5, 6, 2], np.random.default_rng(0))
    rows.loc[3, "kl"][0] = rows.loc[1, "kl"][4] = np.nan
    with pytest.raises(SalvageError, match="row 1, column 'kl'"):
        rollout_features(rows)


UNEVEN = "each signal needs one entry a token, as many as j, and at least one; score that rollout again"


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("length", [3, 5, 7])
def test_signals_of_unequal_length_are_refused(row, length):
    for name in (name for name in vocabulary.SIGNALS if name != "j"):
        rows = signal_rows([4, 5, 6], np.random.default_rng(0))
        if len(rows.at[row, "j"]) == length:
            continue
        rows.at[row, name] = np.zeros(length)
        with pytest.raises(SalvageError, match=f"^signals, row {row}, column '{name}': {UNEVEN}$"):
            rollout_features(rows)
    for j, logit_var in (([0.0, 1.0], [1.0]), ([[0.0, 1.0]], [[1.0, 1.0]]), ([0.0, 1.0], [[1.0, 1.0]])):
        with pytest.raises(SalvageError, match=r"^j \(.*\) and logit_var \(.*\) must be \[tokens\]; score the"):
            trajectory_features({"j": j, "logit_var": logit_var})


def test_a_rollout_without_tokens_is_refused():
    with pytest.raises(SalvageError, match=r"^a rollout has no tokens and so no features; drop it$"):
        trajectory_features({"j": [], "logit_var": []})
    for lengths, row in (([3, 0, 2, 0], 1), ([0, 4], 0), ([4, 1, 0], 2)):
        with pytest.raises(SalvageError, match=f"^signals, row {row}, column 'delta_path': {UNEVEN}$"):
            rollout_features(signal_rows(lengths, np.random.default_rng(0)))
    with pytest.raises(SalvageError, match="no tokens"):
        rollout_features(signal_rows([3], np.random.default_rng(0)).head(0))


def test_the_order_of_rollouts_does_not_matter():
    rows = signal_rows([4, 1, 9, 30], np.random.default_rng(3))
    turned = rollout_features(rows.iloc[::-1]).iloc[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(rollout_features(rows), turned)


def test_features_of_a_part_are_those_of_the_part_alone_at_its_place_in_the_whole():
    rng = np.random.default_rng(5)
    rows = signal_rows([9, 4, 12], rng)
    spans = np.array([[3, 9], [0, 2], [5, 6]])
    part = rows.assign(
        **{name: [v[a:b] for v, (a, b) in zip(rows[name], spans, strict=True)] for name in vocabulary.SIGNALS}
    )
    got, alone = rollout_features(rows, 2, spans), rollout_features(part, 2)
    assert got["junction"].tolist() == (alone["junction"] + spans[:, 0]).tolist()
    assert got["n_tokens"].tolist() == [9, 4, 12]
    rest = [name for name in alone if name not in ("junction", "n_tokens")]
    pd.testing.assert_frame_equal(got[rest], alone[rest])
    checked = schema.check(got, schema.FEATURE_ROWS, "features")
    assert checked[["part_start", "part_end"]].to_numpy().tolist() == spans.tolist()
    assert "part_start" not in schema.check(alone, schema.FEATURE_ROWS, "features")
