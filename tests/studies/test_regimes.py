"""Telling regimes: worlds where something can be learnt, and worlds where nothing can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from salvage.errors import SalvageError
from salvage.evaluation.resampling import auc, resampled_problems
from salvage.method.profiles import problem_folds
from salvage.studies import classifiers, regimes
from salvage.studies.failures import Failures, matrix, put_together
from salvage.tables.vocabulary import FEATURES, OPERATORS
from worlds import world


def first(rows: list[dict], **wanted: object) -> dict:
    return next(row for row in rows if all(row[name] == value for name, value in wanted.items()))


@pytest.fixture(scope="module", autouse=True)
def quicker() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regimes, "RESAMPLES", 100)
        patch.setattr(classifiers, "TREES", 20)
        yield


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> regimes.Study:
    return regimes.study(world(0), trials=4, seed=0, folder=tmp_path_factory.mktemp("s"), quiet=True)


def test_what_can_be_told_is_told(studied: regimes.Study) -> None:
    whole = first(studied.rows, measure="macro_auc", classifier="tuned", cells="all", trained_on="other problems")
    assert whole["value"] > 0.8 and whole["low"] < whole["value"] < whole["high"]
    noise = first(studied.rows, measure="macro_auc", inputs="features", cells="all")
    assert noise["value"] < 0.6, "the features of this world are noise"
    lost = {row["inputs"]: row["value"] for row in studied.rows if row["measure"] == "importance"}
    assert max(lost, key=lambda name: lost[name]) == "failed_share" and abs(lost["spread"]) < 0.02


def test_probabilities_are_calibrated_and_better_than_the_shares(studied: regimes.Study) -> None:
    tuned = first(studied.rows, measure="brier", classifier="tuned")
    assert tuned["high"] < first(studied.rows, measure="brier", classifier="shares")["low"]
    told = studied.proba[..., 0].ravel()
    came = (studied.labels == 0).ravel()
    for low, high in ((0.0, 0.3), (0.3, 0.7), (0.7, 1.01)):
        own = (told >= low) & (told < high)
        assert abs(told[own].mean() - came[own].mean()) < 0.08


def test_both_families_and_the_other_one_are_judged(studied: regimes.Study) -> None:
    across = first(studied.rows, measure="macro_auc", trained_on="the other family", cells="all")
    assert across["value"] > 0.75, "the two families of this world are alike"
    assert {"a-*", "b-*"} <= {row["cells"] for row in studied.rows}


def test_a_problem_seen_in_another_cell_tells_nothing(tmp_path: Path) -> None:
    """`failed_share` is a number drawn for each problem, the same in all its cells: a perfect fingerprint."""
    found = regimes.study(world(1, telling=False), trials=4, seed=0, folder=tmp_path, quiet=True)
    whole = first(found.rows, measure="macro_auc", classifier="tuned", cells="all", trained_on="other problems")
    assert abs(whole["value"] - 0.5) < 0.1
    failures = world(1, telling=False)
    x, y = matrix(failures.table, ["failed_share"]), regimes.labels_of(failures, 0)
    closely = {"kind": "forest", "max_features": 1.0, "min_samples_leaf": 2}
    leaking = np.random.default_rng(0).integers(5, size=len(x))  # folds of failures, not of problems
    model = [regimes.Classifier.fit(x[leaking != k], y[0, leaking != k], regimes.CLASSES, closely, 0)
             for k in range(5)]  # fmt: skip
    told = np.zeros((len(x), 3))
    for k in range(5):
        told[leaking == k] = model[k].proba(x[leaking == k])
    assert np.mean([roc_auc_score(y[1] == c, told[:, c]) for c in range(3)]) > 0.7, "else this test shows nothing"


def test_the_same_seed_gives_the_same_figures(tmp_path: Path, studied: regimes.Study) -> None:
    again = regimes.study(world(0), trials=4, seed=0, folder=tmp_path, quiet=True)
    assert again.rows == studied.rows
    np.testing.assert_array_equal(again.proba, studied.proba)


def test_labels_come_from_halves_that_share_no_attempt() -> None:
    one, two = regimes.labels_of(world(0), 0)
    assert 0.5 < (one == two).mean() < 0.97
    rates = world(0)
    alone = regimes.labels_of(Failures(rates.table, rates.inputs, None), 0)
    assert (alone[0] == alone[1]).all()


def test_rates_without_attempts_or_facts_will_do(tmp_path: Path) -> None:
    table = world(0).table[["cell", "model", "task", "problem_id", "n_failed_rollouts", *FEATURES, *OPERATORS]]
    found = regimes.study(put_together(table), trials=3, seed=0, folder=tmp_path, quiet=True)
    assert found.inputs == (*FEATURES, "failed_share")
    assert not [row for row in found.rows if row["classifier"] == "its label"], (
        "labels would be scored against themselves"
    )


def test_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SalvageError, match="10 problems are too few"):
        regimes.study(world(0, problems=10), trials=1, seed=0, folder=tmp_path, quiet=True)
    same = world(0)
    table = same.table.assign(**dict.fromkeys(OPERATORS, 0.0))
    with pytest.raises(SalvageError, match="all failures are beyond reach"):
        regimes.study(Failures(table, same.inputs, None), trials=1, seed=0, folder=tmp_path, quiet=True)


def test_a_bad_input_is_named() -> None:
    table = world(0).table
    with pytest.raises(SalvageError, match="row 3, column 'kl' is NaN"):
        matrix(table.assign(kl=np.where(np.arange(len(table)) == 3, np.nan, 0.1)), ["kl"])
    with pytest.raises(SalvageError, match=r"row 2, column 'entropy': -1\.0 is below 0"):
        matrix(table.assign(entropy=np.where(np.arange(len(table)) == 2, -1.0, 0.1)), ["entropy"])
    with pytest.raises(SalvageError, match="column 'j_max' is missing"):
        matrix(table, ["spread", "j_max"])


# ------------------------------------------------------------------ the area under the curve


@settings(deadline=None)
@given(st.integers(5, 60), st.integers(0, 10**6), st.booleans())
def test_auc_is_scikit_learns(n: int, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(4, size=n) / 4 if ties else rng.random(n)
    positive = np.arange(n) % 3 == 0
    weights = rng.integers(0, 4, size=(3, n)) + (np.arange(n) < 2)
    found = auc(score, positive, weights.astype(np.float32))
    expected = [roc_auc_score(positive, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_auc_of_one_class_is_nothing() -> None:
    assert np.isnan(auc(np.arange(3.0), np.ones(3, bool), np.ones((1, 3)))).all()


def test_problems_are_drawn_whole() -> None:
    problem = np.array([0, 0, 1, 2, 2, 2])
    drawn = np.concatenate(list(resampled_problems(problem, 200, [0])))
    assert drawn.shape == (200, 6)
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 3] == drawn[:, 5]).all()
    assert (drawn[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_outer_folds_deal_problems() -> None:
    table = world(0).table
    fold = problem_folds(table, 5, np.random.default_rng(0))
    assert (table.assign(fold=fold).groupby("problem_id")["fold"].nunique() == 1).all()
