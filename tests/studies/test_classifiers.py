"""Classifiers: what they learn, and that what is kept of them answers the same, without a pickle."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from salvage.errors import SalvageError
from salvage.studies.classifiers import UNTUNED, Classifier, log_loss, tempered

CLASSES = ("a", "b", "c")


def blobs(n: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    return rng.normal(size=(n, 4)) + 2.5 * np.eye(3, 4)[y], y


@pytest.mark.parametrize("settings", UNTUNED, ids=lambda s: s["kind"])
def test_it_learns_and_what_is_kept_answers_the_same(tmp_path: Path, settings: dict) -> None:
    fitted = Classifier.fit(*blobs(400, 0), CLASSES, settings, 0)
    x, y = blobs(400, 1)
    told = fitted.proba(x)
    assert (told.argmax(axis=1) == y).mean() > 0.85
    np.testing.assert_allclose(told.sum(axis=1), 1, rtol=1e-6)
    cooler = fitted.calibrated(told, y)
    cooler.save(tmp_path)
    kept = Classifier.load(tmp_path)
    np.testing.assert_allclose(kept.proba(x), cooler.proba(x), rtol=1e-12)
    assert kept.classes == CLASSES and kept.settings == settings


@pytest.mark.parametrize("settings", UNTUNED, ids=lambda s: s["kind"])
def test_the_same_data_give_the_same_answers(settings: dict) -> None:
    x = blobs(100, 1)[0]
    one, two = (Classifier.fit(*blobs(200, 0), CLASSES, settings, 3).proba(x) for _ in range(2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("settings", UNTUNED, ids=lambda s: s["kind"])
def test_a_class_never_seen_gets_nothing(tmp_path: Path, settings: dict) -> None:
    x, y = blobs(200, 0, classes=2)
    fitted = Classifier.fit(x, 2 * y, CLASSES, settings, 0)
    fitted.save(tmp_path)
    for one in (fitted, Classifier.load(tmp_path)):
        assert (one.proba(x)[:, 1] == 0).all() and (one.proba(x).argmax(axis=1) == 2 * y).mean() > 0.9


def test_a_file_with_foreign_code_is_not_loaded(tmp_path: Path) -> None:
    import skops.io

    Classifier.fit(*blobs(100, 0), CLASSES, UNTUNED[0], 0).save(tmp_path)
    skops.io.dump({"model": Path("/")}, tmp_path / "model.skops")
    with pytest.raises(Exception, match=r"[Uu]ntrusted"):
        Classifier.load(tmp_path)
    (tmp_path / "model.skops").write_bytes(pickle.dumps({}))
    with pytest.raises(Exception, match="zip"):
        Classifier.load(tmp_path)


def test_a_tree_that_points_out_of_itself_is_not_used(tmp_path: Path) -> None:
    fitted = Classifier.fit(*blobs(100, 0), CLASSES, UNTUNED[1], 0)
    fitted.model_.estimators_[0].tree_.children_left[0] = 10**6
    fitted.save(tmp_path)
    with pytest.raises(SalvageError, match="point out of it"):
        Classifier.load(tmp_path)


def test_calibration_finds_how_much_too_sure_it_was() -> None:
    rng = np.random.default_rng(0)
    true = rng.dirichlet((1, 1, 1), size=6000)
    y = (rng.random((6000, 1)) > true.cumsum(axis=1)).sum(axis=1).clip(0, 2)
    fitted = Classifier.fit(*blobs(100, 0), CLASSES, UNTUNED[0], 0)
    assert fitted.calibrated(tempered(true, 0.5), y).temperature_ == pytest.approx(2, rel=0.1)
    assert fitted.calibrated(true, y).temperature_ == pytest.approx(1, rel=0.1)


@given(arrays(np.float64, (5, 3), elements=st.floats(1e-9, 1)), st.floats(0.3, 3))
def test_tempering_keeps_the_order_and_the_sum(weights: np.ndarray, temperature: float) -> None:
    told = weights / weights.sum(axis=1, keepdims=True)
    made = tempered(told, temperature)
    np.testing.assert_allclose(made.sum(axis=1), 1)
    best = np.arange(5), told.argmax(axis=1)
    assert (made[best] >= made.max(axis=1) - 1e-12).all()
    np.testing.assert_allclose(tempered(made, 1 / temperature), told, atol=1e-6)


def test_log_loss_is_bounded() -> None:
    assert log_loss(np.array([[0.0, 1.0]]), np.array([0])) == pytest.approx(-np.log(1e-6))
