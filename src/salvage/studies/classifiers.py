"""Logistic regression, random forest or boosted trees: what Optuna searches, one way to fit, a form without pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import minimize_scalar

from salvage.errors import SalvageError

if TYPE_CHECKING:
    import optuna

KINDS = ("logistic", "forest", "xgboost")
TREES = 100  # of a forest
UNTUNED: tuple[dict[str, Any], ...] = (
    {"kind": "logistic", "C": 0.1},
    {"kind": "forest", "max_features": 0.5, "min_samples_leaf": 5},
    {"kind": "xgboost", "eta": 0.1, "max_depth": 3, "min_child_weight": 5.0, "reg_lambda": 5.0, "rounds": 60},
)


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Return what a trial tries: a kind of classifier and its settings."""
    kind = trial.suggest_categorical("kind", KINDS)
    if kind == "logistic":
        return {"kind": kind, "C": trial.suggest_float("C", 1e-3, 10, log=True)}
    if kind == "forest":
        return {
            "kind": kind,
            "max_features": trial.suggest_float("max_features", 0.1, 1.0),
            "min_samples_leaf": trial.suggest_int("min_samples_leaf", 2, 60, log=True),
        }
    return {
        "kind": kind,
        "eta": trial.suggest_float("eta", 0.03, 0.3, log=True),
        "max_depth": trial.suggest_int("max_depth", 1, 5),
        "min_child_weight": trial.suggest_float("min_child_weight", 1, 50, log=True),
        "reg_lambda": trial.suggest_float("reg_lambda", 0.5, 100, log=True),
        "rounds": trial.suggest_int("rounds", 20, 120),
    }


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier of named classes.

    Attributes
    ----------
    classes : tuple of str
    settings : dict
        As `suggest` returns them.
    model_ : estimator of scikit-learn, or XGBoost's
    present_ : tuple of int
        The classes that it was fitted on; others get probability 0.
    temperature_ : float
        Divides the logarithms of the probabilities; above 1 where the model was too sure of itself.
    """

    classes: tuple[str, ...]
    settings: dict[str, Any]
    model_: Any
    present_: tuple[int, ...]
    temperature_: float = 1.0

    @classmethod
    def fit(
        cls, x: np.ndarray, y: np.ndarray, classes: Sequence[str], settings: dict[str, Any], seed: int
    ) -> Classifier:
        """Fit on inputs [n, inputs] and classes by number [n]; one thread, so that fits may run side by side."""
        present, own = np.unique(y, return_inverse=True)
        model = _estimator(settings, seed)
        model.fit(x, own)
        return cls(tuple(classes), dict(settings), model, tuple(present.tolist()))

    def proba(self, x: np.ndarray) -> np.ndarray:
        """Return probabilities [n, classes]."""
        told = np.zeros((len(x), len(self.classes)))
        told[:, list(self.present_)] = self.model_.predict_proba(x)
        return tempered(told, self.temperature_)

    def calibrated(self, told: np.ndarray, y: np.ndarray) -> Classifier:
        """Return it with the temperature that makes probabilities told out of fold [n, classes] likeliest."""
        found = minimize_scalar(lambda t: log_loss(tempered(told, np.exp(t)), y), bounds=(-1.5, 1.5), method="bounded")
        return replace(self, temperature_=float(np.exp(found.x)))

    def save(self, folder: Path) -> None:
        """Write it as XGBoost's JSON or scikit-learn's by skops, and the rest as JSON."""
        if self.settings["kind"] == "xgboost":
            self.model_.save_model(folder / "model.json")
        else:
            import skops.io

            skops.io.dump(self.model_, folder / "model.skops")
        rest = {"classes": self.classes, "settings": self.settings, "present": self.present_}
        (folder / "classifier.json").write_text(json.dumps({**rest, "temperature": self.temperature_}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Classifier:
        """Return the classifier that `save` wrote.

        Raises
        ------
        skops.io.exceptions.UntrustedTypesFoundException
            Where the file holds a type that is not scikit-learn's or numpy's.
        SalvageError
            Where a tree's nodes point out of the tree.
        """
        rest = json.loads((folder / "classifier.json").read_text())
        model: Any
        if rest["settings"]["kind"] == "xgboost":
            import xgboost

            model = xgboost.XGBClassifier(n_jobs=1)
            model.load_model(folder / "model.json")
        else:
            import skops.io

            forest = rest["settings"]["kind"] == "forest"
            # skops leaves trees to whoever loads them, since it does not check where their nodes point to; we do
            model = skops.io.load(folder / "model.skops", trusted=["sklearn.tree._tree.Tree"] if forest else None)
            if forest:
                _check_trees(model, folder)
        return cls(tuple(rest["classes"]), rest["settings"], model, tuple(rest["present"]), rest["temperature"])


def _estimator(settings: dict[str, Any], seed: int) -> Any:
    values = {name: value for name, value in settings.items() if name != "kind"}
    if settings["kind"] == "logistic":
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, **values))
    if settings["kind"] == "forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(TREES, random_state=seed, n_jobs=1, **values)
    import xgboost

    values = {"learning_rate": values.pop("eta"), "n_estimators": values.pop("rounds"), **values}
    return xgboost.XGBClassifier(tree_method="hist", random_state=seed, n_jobs=1, **values)


def _check_trees(forest: Any, folder: Path) -> None:
    for one in forest.estimators_:
        tree = one.tree_
        node = np.arange(tree.node_count)
        children = np.stack([tree.children_left, tree.children_right])
        inside = ((children > node) & (children < tree.node_count)).all(axis=0) & (tree.feature < forest.n_features_in_)
        leaf = (children == -1).all(axis=0)
        if not (leaf | (inside & (tree.feature >= 0))).all():
            raise SalvageError(f"{folder / 'model.skops'}: a tree's nodes point out of it; the file was tampered with")


def tempered(told: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities [n, classes] raised to 1 / temperature and scaled to 1."""
    with np.errstate(divide="ignore"):
        logs = np.log(told) / temperature
    grown = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def log_loss(told: np.ndarray, y: np.ndarray) -> float:
    """Return the mean negative logarithm of what the true class was given, at most 1e-6 sure against it."""
    return float(-np.log(np.maximum(told[np.arange(len(y)), y], 1e-6)).mean())
