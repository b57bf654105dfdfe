"""Regimes, profiles from attempts, and the reading of profiles files, good and bad."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.method.profiles import made_by, make_profiles, regimes, regimes_of
from salvage.tables import schema, vocabulary
from salvage.tables.profile_files import read_profiles

PAPER = Path(__file__).parents[3] / "shared" / "data" / "paper_failure_profiles.csv"
HEADER = ",".join(schema.PROFILES.columns)
ROW = "m|t,m,t,p0,3,0.1,2.0,-0.9,0.1,0.2,0.3,0.4,0.5"


def attempts(correct, *, anchor="online", continuation="temperature", problem="p0", operators=None):
    """Return schema.ATTEMPTS: `correct` [operators][attempts]."""
    rows = [
        (operator, attempt, bool(value))
        for operator, values in zip(operators or vocabulary.OPERATORS, correct, strict=True)
        for attempt, value in enumerate(values)
    ]
    table = pd.DataFrame(rows, columns=["operator", "attempt", "correct"])
    table = table.assign(cell="m|t", problem_id=problem, anchor=anchor, continuation=continuation, n_tokens=9)
    table = table.assign(n_ancestor_tokens=0, n_prefill=4, position=-1)
    return schema.check(table, schema.ATTEMPTS, "attempts")


def feature_rows(values, problem="p0", cell="m|t"):
    """Return schema.FEATURE_ROWS: `values` [rollouts][3]."""
    table = pd.DataFrame(values, columns=vocabulary.FEATURES)
    table = table.assign(cell=cell, problem_id=problem, rollout=range(len(values)))
    table = table.assign(junction=0, n_tokens=5, entropy=0.1, kl=0.1, delta_path=0.1, g_cov=0.1, j_max=0.1)
    return schema.check(table, schema.FEATURE_ROWS, "features")


@pytest.mark.parametrize(
    ("retry", "best", "regime"),
    [
        (0.0, 0.0, "beyond reach"),
        (0.3, 0.0, "beyond reach"),  # no intervention helps, though retry does: as Eq. 2 says it
        (0.0, 0.05, "steerable-hard"),
        (0.0, 0.04, "retry-solvable"),
        (0.5, 0.55, "steerable-hard"),
        (0.51, 1.0, "retry-solvable"),
        (0.25, 0.30, "retry-solvable"),  # 0.3 - 0.25 is below 0.05 in floats; the golden counts need it so
        (0.2, 0.4, "steerable-hard"),
    ],
)
def test_regimes(retry, best, regime):
    for name in vocabulary.INTERVENTIONS:  # whichever holds the best
        rates = dict.fromkeys(vocabulary.OPERATORS, 0.0) | {"retry": retry, name: best}
        assert regimes(pd.DataFrame([rates])).tolist() == [regime]


def test_every_failure_has_one_regime():
    grid = np.array(list(product([0, 0.05, 0.25, 0.5, 1], repeat=5)))
    got = regimes(pd.DataFrame(grid, columns=vocabulary.OPERATORS))
    assert set(got) == {"retry-solvable", "steerable-hard", "beyond reach"}
    assert (got[(grid == 0).all(1)] == "beyond reach").all() and (got[(grid == 1).all(1)] == "retry-solvable").all()


def test_regimes_are_those_of_the_loops():
    grid = np.array(list(product([0, 0.04, 0.05, 0.1, 0.45, 0.5, 0.55, 1], repeat=3)))
    for row, told in zip(grid.tolist(), regimes_of(grid[:, 0], grid[:, 1:]).tolist(), strict=True):
        retry, best = row[0], max(row[1:])
        if best - retry >= 0.05 and 1 - retry >= 0.5:
            assert told == "steerable-hard"
        else:
            assert told == ("beyond reach" if best == 0 else "retry-solvable")
    some = regimes_of(np.full((2, 3), 0.1), np.full((2, 3, 4), 0.3))  # any shape, the last axis is the interventions'
    assert some.shape == (2, 3) and set(some.ravel()) == {"steerable-hard"}


def test_profiles_are_means_over_failed_rollouts_and_rates_of_attempts():
    features = pd.concat([feature_rows([[0.1, 1, -1], [0.3, 3, -2]]), feature_rows([[0.5, 2, -3]], "p1")])
    tried = [
        attempts([[0, 0], [1, 0], [1, 1], [0, 0], [0, 1]]),
        attempts([[1, 1], [0, 0], [0, 0], [0, 0], [0, 0]], problem="p1"),
        attempts([[1, 1]] * 5, anchor="replay"),
        attempts([[1, 1]] * 5, continuation="greedy"),
        attempts([[1, 1]] * 2, operators=vocabulary.CONTROLS),
        attempts([[1, 1]] * 5, problem="not a failure"),
    ]
    got = make_profiles(features, pd.concat(tried), anchor="online", continuation="temperature")
    got = schema.check(got, schema.PROFILES, "profiles")
    assert got[["model", "task", "problem_id", "n_failed_rollouts"]].to_numpy().tolist() == [
        ["m", "t", "p0", 2],
        ["m", "t", "p1", 1],
    ]
    np.testing.assert_allclose(got[vocabulary.FEATURES], [[0.2, 2, -1.5], [0.5, 2, -3]])
    np.testing.assert_allclose(got[vocabulary.OPERATORS], [[0, 0.5, 1, 0, 0.5], [1, 0, 0, 0, 0]])


@pytest.mark.parametrize(("cell", "parts"), [("a|b", ["a", "b"]), ("a|b|c", ["a", "b|c"]), ("a", ["a", ""])])
def test_a_cell_is_its_model_and_its_task(cell, parts):
    tried = attempts([[0]] * 5).assign(cell=cell)
    got = make_profiles(feature_rows([[0, 0, 0]], cell=cell), tried, anchor="online", continuation="temperature")
    assert got[["model", "task"]].iloc[0].tolist() == parts


def test_a_failure_without_attempts_is_named():
    tried = attempts([[1]] * 4, operators=vocabulary.OPERATORS[:4])
    with pytest.raises(SalvageError) as told:
        make_profiles(feature_rows([[0, 0, 0]]), tried, anchor="online", continuation="temperature")
    assert str(told.value) == (
        "attempts: problem 'p0' of cell 'm|t' has none of dense_steer (online, temperature); intervene first"
    )
    both = pd.concat([feature_rows([[0, 0, 0]]), feature_rows([[0, 0, 0]], "p1", "n|t")])
    tried = pd.concat([attempts([[1]] * 5), attempts([[1]] * 5, problem="p1")])
    with pytest.raises(SalvageError, match=r"'p1' of cell 'n\|t' has none of retry \(online, temperature\)"):
        make_profiles(both, tried, anchor="online", continuation="temperature")


def test_profiles_are_in_the_order_of_the_features_and_of_the_columns():
    features = pd.concat([feature_rows([[1, 0, 0]], "p9"), feature_rows([[2, 0, 0]], "p1")])
    tried = pd.concat([attempts([[1]] * 5, problem="p1"), attempts([[0]] * 5, problem="p9")])
    got = make_profiles(features, tried, anchor="online", continuation="temperature")
    assert got["problem_id"].tolist() == ["p9", "p1"] and got["retry"].tolist() == [0, 1]
    assert got.columns.tolist() == vocabulary.PROFILE


def test_attempts_of_one_anchor_and_continuation_are_those_of_both():
    every = pd.DataFrame(list(product(["online", "replay"], ["greedy", "temperature"])))
    every.columns = ["anchor", "continuation"]
    assert made_by(every, "replay", "greedy").index.tolist() == [2]
    assert made_by(every, "online", "temperature").index.tolist() == [1]


# ------------------------------------------------------------------ files


@pytest.mark.skipif(not PAPER.exists(), reason="../shared/data is not beside this checkout")
def test_the_authors_file_is_read_as_it_is():
    table = read_profiles(PAPER)
    assert len(table) == 1095 and list(table.columns) == list(schema.PROFILES.columns)


def test_parquet_folder_and_csv_say_the_same(tmp_path):
    (tmp_path / "p.csv").write_text(f"{HEADER}\n{ROW}\n{ROW.replace('p0', '007')}\n")
    table = read_profiles(tmp_path / "p.csv")
    assert table["problem_id"].tolist() == ["p0", "007"]  # an identifier, not a number
    schema.write(table.head(1), schema.PROFILES, tmp_path / "parts" / "a.parquet")
    schema.write(table.tail(1), schema.PROFILES, tmp_path / "parts" / "b.parquet")
    pd.testing.assert_frame_equal(read_profiles(tmp_path / "parts"), table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not a readable CSV"),
        (HEADER.encode(), "no rows"),
        (f"{HEADER}\n{ROW}\n".replace(",dense_steer", ",dense").encode(), "column 'dense_steer' is missing"),
        (f"{HEADER}\n{ROW}\n".replace("m|t", "m\xff").encode("latin-1"), "not UTF-8"),
        (f"{HEADER}\n{ROW}\n{ROW}\n".encode(), "have the same cell, problem_id"),
        (f"{HEADER}\n{ROW}\n{ROW.replace('p0', 'p1').replace('2.0', '')}\n".encode(), "row 1, column 'concentration'"),
        (f"{HEADER}\n{ROW.replace('2.0', 'inf')}\n".encode(), "row 0, column 'concentration'"),
        (f"{HEADER}\n{ROW.replace('2.0', 'two')}\n".encode(), "row 0, column 'concentration': 'two'"),
        (f"{HEADER}\n{ROW.replace('0.4', '1.4')}\n".encode(), "row 0, column 'local_temp'"),
        (f"{HEADER}\n{ROW.replace('0.4', '-0.1')}\n".encode(), "row 0, column 'local_temp'"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, text, message):
    file = tmp_path / "bad.csv"
    file.write_bytes(text)
    with pytest.raises(SalvageError, match=rf"bad\.csv.*{message}"):
        read_profiles(file)


@pytest.mark.parametrize("name", ["none.csv", "none.parquet", "."])
def test_a_file_that_is_not_there_is_said_so(tmp_path, name):
    with pytest.raises(SalvageError, match="there is no such table"):
        read_profiles(tmp_path / name)


def test_a_file_that_is_not_parquet_is_said_so(tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(SalvageError, match=r"p\.parquet is not a readable Parquet"):
        read_profiles(tmp_path / "p.parquet")
