"""Rows given by per-token signals: answered as the features that they make, or refused by row, rollout and token."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.errors import SalvageError
from salvage.method.features import rollout_features, trajectory_features
from salvage.method.traces import COMPUTED, featurised
from salvage.policies.fitted import Fitted
from salvage.policies.rule import Rule
from salvage.serving.answers import answer_fitted, read_table
from salvage.tables.vocabulary import FACTS, FEATURES, OPERATORS, SIGNALS

RULE = Rule(np.array([0.3, 0.5, -0.5]), np.array([0.2, 0.3, 0.4]))
READ = (*FEATURES, "n_failed_rollouts", *FACTS)


class ReadsAll:
    """A policy whose worth moves with each feature and fact, so that no two failures look the same to it."""

    choices = tuple(OPERATORS)

    def expected(self, failures: pd.DataFrame) -> np.ndarray:
        x = failures.reindex(columns=READ).to_numpy(np.float64)
        return np.sin(np.nan_to_num(x, nan=9.0) @ np.random.default_rng(0).normal(size=(len(READ), len(OPERATORS))))

    def interval(self, failures: pd.DataFrame) -> np.ndarray:
        worth = self.expected(failures)
        return np.stack([worth, worth], axis=-1)

    def to_dict(self) -> dict[str, Any]:
        return {}


FITTED = [Fitted("rule", RULE, None, frozenset()), Fitted("calibrated", RULE, ReadsAll(), frozenset())]


def signals(lengths: list[int], rng: np.random.Generator) -> dict[str, list[list[float]]]:
    """Return each signal as lists, one a rollout; some rollouts have no pressure at all."""
    made: dict[str, list[list[float]]] = {name: [rng.normal(size=n).tolist() for n in lengths] for name in SIGNALS}
    made["j"] = [(rng.integers(0, 4, n) * rng.random() * (rng.random() > 0.2)).tolist() for n in lengths]
    return made | {"logit_var": [rng.random(n).tolist() for n in lengths]}


def by_features(made: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Return the row that the pipeline makes of the same rollouts: means over them, as profiles and facts have it."""
    n = len(made["j"])
    rows = pd.DataFrame({"cell": "a", "problem_id": "p", "rollout": range(n), **made})
    found = rollout_features(rows)
    found["junction"] = found["junction"] / found["n_tokens"]
    means = found.groupby("problem_id")[[*FEATURES, "junction", "n_tokens", "entropy", "kl"]].mean()
    return {**means.iloc[0].to_dict(), "n_failed_rollouts": n}


def drawn(kind: str, lengths: list[int], seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a row as sent, and the same by features."""
    rng = np.random.default_rng(seed)
    made = signals(lengths, rng)
    same = by_features(made)
    if kind == "features":
        return same, same
    sent: dict[str, Any] = {name: made[name] for name in ("j", "logit_var", "entropy", "kl")}
    if kind == "flat" and len(lengths) == 1:
        sent = {name: rollouts[0] for name, rollouts in sent.items()}
    if kind == "means":  # entropy as a fact, no kl, and facts that the row knows better
        own = {"entropy": 0.25, "n_failed_rollouts": 9, "junction": 0.125, "failed_share": 0.5}
        sent = {name: sent[name] for name in ("j", "logit_var")} | own
        same = {name: value for name, value in same.items() if name != "kl"} | own
    return sent, same


KINDS = st.sampled_from(["features", "flat", "lists", "means"])
ROWS = st.tuples(KINDS, st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 2**32))


@settings(max_examples=15, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=8))
def test_rows_by_signals_are_answered_as_the_same_rows_by_features(rows: list[tuple[str, list[int], int]]) -> None:
    sent, same = (list(form) for form in zip(*(drawn(*row) for row in rows), strict=True))
    for fitted in FITTED:
        told = answer_fitted(fitted, pd.DataFrame(sent), "here")
        expected = answer_fitted(fitted, pd.DataFrame(same), "here")
        assert {name: told[name] for name in expected} == expected
        assert set(told) - set(expected) == (set() if {row[0] for row in rows} == {"features"} else set(COMPUTED))
    for i, (kind, lengths, seed) in enumerate(rows):
        if set(told) > set(expected):
            computed = {name: told[name][i] for name in COMPUTED}
            made = by_features(signals(lengths, np.random.default_rng(seed)))
            assert computed == {name: None if kind == "features" else made[name] for name in COMPUTED}


def test_one_rollout_by_hand() -> None:
    row = {"j": [0.0, 3.0, 0.0, 3.0], "logit_var": [1.0, 2.0, 3.0, 4.0]}
    found = trajectory_features(row)
    told = answer_fitted(FITTED[0], pd.DataFrame([row]), "here")
    assert {name: told[name] for name in FEATURES} == {name: [found[name]] for name in FEATURES}
    assert told["junction"] == [0.25] and told["spread"] == [0.5]
    table, _ = featurised(pd.DataFrame([row]), "here")
    assert table[["n_tokens", "n_failed_rollouts"]].to_numpy().tolist() == [[4.0, 1]]


def test_a_request_without_signals_is_answered_as_before() -> None:
    row = {"spread": 0.2, "concentration": 1.0, "logit_dispersion": -1.0}
    plain = answer_fitted(FITTED[1], pd.DataFrame([row]), "here")
    assert answer_fitted(FITTED[1], pd.DataFrame([{**row, "j": None, "logit_var": np.nan}]), "here") == plain
    assert not set(COMPUTED) & set(plain)


@pytest.mark.parametrize("kind", ["flat", "lists"])
def test_parquet_gives_the_same_answer(tmp_path: Path, kind: str) -> None:
    rows = [drawn(kind, [5] if kind == "flat" else [5, 9 + i], i)[0] for i in range(4)]
    rows.append({name: value for name, value in drawn("features", [6], 9)[1].items() if name not in ("entropy", "kl")})
    table = pd.DataFrame(rows)
    table.to_parquet(tmp_path / "rows.parquet")
    for fitted in FITTED:
        told = answer_fitted(fitted, read_table(tmp_path / "rows.parquet"), "file")
        assert told == answer_fitted(fitted, table, "here")
    small = table.iloc[:4].copy()
    small["j"] = [[np.float32(v) for v in np.ravel(j[0])] for j in small["j"]]  # numpy's scalars are numbers too
    small["logit_var"] = [np.ones(len(j), np.int8) for j in small["j"]]
    for name in ("entropy", "kl"):
        small[name] = 0.5
    assert len(answer_fitted(FITTED[0], small[["j", "logit_var", "entropy", "kl"]], "here")["operator"]) == 4


def test_the_table_given_is_left_as_it_is() -> None:
    table = pd.DataFrame([drawn("lists", [3, 4], 0)[0], drawn("means", [3], 1)[0], drawn("features", [3], 2)[0]])
    before = table.copy(deep=True)
    answer_fitted(FITTED[1], table, "here")
    pd.testing.assert_frame_equal(table, before)


GOOD = {"j": [0.5, 1.0], "logit_var": [1.0, 2.0]}
FEATURE_ROW = {"spread": 0.2, "concentration": 1.0, "logit_dispersion": -1.0}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**GOOD, "j": [0.5, None]}, "row 1, column 'j', rollout 0, token 1 is NaN or null"),
    ({**GOOD, "j": [0.5, np.nan]}, "row 1, column 'j', rollout 0, token 1 is NaN or null"),
    ({**GOOD, "j": [np.nan, "a"]}, "token 0 is NaN or null"),
    ({**GOOD, "j": [np.inf, np.nan]}, "token 0 is infinite"),
    ({**GOOD, "j": [0.5, 10**400]}, "token 1 is infinite"),
    ({**GOOD, "j": [0.5, "0.5"]}, "token 1: '0.5' is not a number"),
    ({**GOOD, "j": [True, 0.5]}, "token 0: True is not a number"),
    ({**GOOD, "j": [0.5, [1.0]]}, "token 1: [1.0] is not a number"),
    ({**GOOD, "j": np.array(["0.5", "1"])}, "token 0: '0.5' is not a number"),
    ({**GOOD, "j": np.array([True, False])}, "token 0: True is not a number"),
    ({**GOOD, "j": [[0.5, 1.0], [0.5, -np.inf]]}, "row 1, column 'j', rollout 1, token 1 is infinite"),
    ({**GOOD, "j": [[0.5], 0.5]}, "rollout 1: 0.5 is not a list of numbers"),
    ({**GOOD, "j": "0.5, 1.0"}, "column 'j', rollout 0: '0.5, 1.0' is not a list of numbers"),
    ({**GOOD, "j": 0.5}, "column 'j', rollout 0: 0.5 is not a list of numbers"),
    ({**GOOD, "j": {"0": 1}}, "column 'j', rollout 0: {'0': 1} is not a list of numbers"),
    ({**GOOD, "j": []}, "row 1, column 'j', rollout 0 has no tokens"),
    ({**GOOD, "j": [[1.0], []]}, "row 1, column 'j', rollout 1 has no tokens"),
    ({**GOOD, "j": [0.5, -0.25]}, "row 1, column 'j', rollout 0, token 1: -0.25 is below 0"),
    ({**GOOD, "logit_var": [-1.0, 1.0]}, "column 'logit_var', rollout 0, token 0: -1.0 is below 0"),
    ({**GOOD, "logit_var": [1.0]}, "row 1, column 'logit_var', rollout 0 has 1 token, in 'j' 2"),
    ({**GOOD, "logit_var": [[1.0, 1.0], [1.0]]}, "row 1, column 'logit_var' has 2 rollouts, 'j' has 1"),
    ({**GOOD, "entropy": [1.0, 2.0, 3.0]}, "row 1, column 'entropy', rollout 0 has 3 tokens, in 'j' 2"),
    ({**GOOD, "kl": [1.0, "x"]}, "row 1, column 'kl', rollout 0, token 1: 'x' is not a number"),
    ({**GOOD, "kl": "x"}, "row 1, column 'kl': 'x' is not a number"),
    ({**GOOD, "n_tokens": [3]}, "row 1, column 'n_tokens': [3] is not a number"),
    ({"j": [0.5, 1.0]}, "row 1, column 'logit_var' is missing; a row given by signals needs j and logit_var"),
    ({"logit_var": [0.5, 1.0], "j": None}, "row 1, column 'j' is missing"),
    ({**GOOD, **FEATURE_ROW}, "row 1 has both 'spread' and signals"),
    ({**GOOD, "logit_dispersion": 1.0}, "row 1 has both 'logit_dispersion' and signals"),
    ({**FEATURE_ROW, "entropy": [1.0]}, "row 1, column 'entropy' is a list, and the row has no j and logit_var"),
    ({"j": None, "spread": 1.0}, "row 1, column 'concentration' is NaN or null"),
    ({"cell": "a"}, "row 1, column 'spread' is NaN or null"),
    ({**GOOD, "logit_var": [1e308, 1e308]}, "row 1, column 'logit_dispersion' is infinite"),
]


@pytest.mark.parametrize(("row", "sentence"), REFUSED)
def test_a_bad_row_is_refused_by_name(row: dict[str, Any], sentence: str) -> None:
    table = pd.DataFrame([GOOD, row, FEATURE_ROW])
    with pytest.raises(SalvageError, match=re.escape(sentence)) as told:
        answer_fitted(FITTED[1], table, "request")
    assert str(told.value).startswith("request: row 1")
    assert "\n" not in str(told.value) and len(str(told.value)) < 220


def test_a_long_list_in_the_wrong_place_is_not_repeated_whole() -> None:
    with pytest.raises(SalvageError, match=r"row 0, column 'entropy': \[0.5, .*\.\.\.\] is not a number") as told:
        answer_fitted(FITTED[1], pd.DataFrame([{**FEATURE_ROW, "entropy": [0.5] * 2000}]), "request")
    assert len(str(told.value)) < 220


def refusal(rows: list[dict[str, Any]]) -> str:
    with pytest.raises(SalvageError) as told:
        featurised(pd.DataFrame(rows), "here")
    return str(told.value)


def test_sentences_whole_and_of_several_the_first() -> None:
    bare = {"spread": 1.0}
    assert refusal([GOOD, bare, {"j": [0.5]}, {"j": [0.5]}]) == (
        "here: row 2, column 'logit_var' is missing; a row given by signals needs j and logit_var"
    )
    assert refusal([bare, GOOD, {**GOOD, "spread": 0.5, "concentration": 1.0}, {**GOOD, "spread": 0.5}]) == (
        "here: row 2 has both 'spread' and signals, and these may differ; give its features or its signals"
    )
    assert refusal([GOOD, {**bare, "kl": 0.5}, {**bare, "kl": [0.5]}, {**bare, "kl": [0.5]}]) == (
        "here: row 2, column 'kl' is a list, and the row has no j and logit_var; give them too, or the mean instead of "
        "the list"
    )
    assert refusal([GOOD, {**GOOD, "entropy": [[1.0, 1.0], [1.0, 1.0]]}]) == (
        "here: row 1, column 'entropy' has 2 rollouts, 'j' has 1; each signal needs every failed rollout"
    )
    two = {"j": [[0.5, 1.0], [0.5]], "logit_var": [[0.5, 1.0], [0.5]]}
    assert refusal([two, {**two, "kl": [[0.5, 1.0]]}]) == (
        "here: row 1, column 'kl' has 1 rollout, 'j' has 2; each signal needs every failed rollout"
    )
    assert refusal([two, {**two, "kl": [[0.5, 1.0], [0.5, 1.0]]}]) == (
        "here: row 1, column 'kl', rollout 1 has 2 tokens, in 'j' 1; each signal needs one entry a token"
    )
    assert refusal([{**two, "j": [[0.5, -1.0], [0.5]]}]) == (
        "here: row 0, column 'j', rollout 0, token 1: -1.0 is below 0, which j never is; score the rollout again"
    )
    assert refusal([{**GOOD, "j": []}]) == (
        "here: row 0, column 'j', rollout 0 has no tokens; give one number a token, or leave the rollout out"
    )
    assert refusal([{**GOOD, "j": 2}]) == (
        "here: row 0, column 'j', rollout 0: 2 is not a list of numbers; give one number a token, and one list "
        "a failed rollout"
    )
    assert refusal([{**GOOD, "kl": [0.5, None]}]).endswith("token 1 is NaN or null; each token needs a finite number")


def test_entropy_and_kl_may_be_below_0_and_j_may_be_0() -> None:
    """They are means that rounding may leave below 0; j and logit_var cannot be."""
    row = {"j": [0.0, 0.0], "logit_var": [0.0, 1.0], "entropy": [-0.5, 0.0], "kl": [-1.0, -2.0]}
    table, told = featurised(pd.DataFrame([row]), "here")
    assert table[["entropy", "kl"]].to_numpy().tolist() == [[-0.25, -1.5]]
    assert told["concentration"] == [0.0] and told["junction"] == [0.0]


def test_what_is_computed_stands_in_its_row_and_the_rows_own_word_stands() -> None:
    """Features are always made; entropy and kl where they are lists, the other facts where the row is silent."""
    two = {"j": [[0.0, 2.0], [1.0, 0.0, 0.0, 0.0]], "logit_var": [[1.0, 1.0], [1.0] * 4]}
    rows = [
        {"spread": 0.2, "concentration": 1.0, "logit_dispersion": -1.0, "n_tokens": 5},
        {**two, "entropy": [[1.0, 3.0], [0.0] * 4], "kl": 0.5, "n_tokens": 77, "cell": "a"},
        {**GOOD, "junction": 0.9, "n_failed_rollouts": 4},
    ]
    table, told = featurised(pd.DataFrame(rows), "here")
    assert told == {
        "spread": [None, 0.375, 1.0],
        "concentration": [None, pytest.approx((np.log10(2) + np.log10(4)) / 2), pytest.approx(np.log10(4 / 3))],
        "logit_dispersion": [None, 0.0, pytest.approx(np.log10(1.5))],
        "junction": [None, 0.25, 0.5],
    }
    assert table["spread"].tolist() == [0.2, 0.375, 1.0] and not {"j", "logit_var"} & set(table)
    assert table["n_tokens"].tolist() == [5, 77, 2.0]
    assert table["junction"].tolist()[1:] == [0.25, 0.9] and table["n_failed_rollouts"].tolist()[1:] == [2, 4]
    assert table["entropy"].tolist()[1] == 1.0 and table["kl"].tolist()[1] == 0.5
    assert table.loc[[0, 2], ["entropy", "kl"]].isna().all(axis=None) and table["cell"].tolist()[1] == "a"


def test_rows_by_features_alone_are_the_very_table() -> None:
    for table in (pd.DataFrame([FEATURE_ROW]), pd.DataFrame([{**FEATURE_ROW, "j": None, "logit_var": None}])):
        same, told = featurised(table, "here")
        assert same is table and told == {}
