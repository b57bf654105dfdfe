"""What kind of failure is this one? A classifier of recoverability regimes from what is known before any attempt.

Nested cross-validation over problems: settings are searched inside the training folds. Labels come from one half of a
failure's attempts and are scored against the other half's, both ways round (method.md, "An honest protocol").
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits

from salvage.errors import SalvageError
from salvage.evaluation.groups import family_of
from salvage.evaluation.protocols import halves
from salvage.evaluation.resampling import ProblemResamples, auc, over_folds
from salvage.method.profiles import (
    BEYOND_REACH,
    RETRY_SOLVABLE,
    STEERABLE_HARD,
    problem_folds,
    problem_keys,
    regimes_of,
)
from salvage.studies import tuning
from salvage.studies.classifiers import UNTUNED, Classifier, log_loss, suggest, tempered
from salvage.studies.failures import KNOWN, Failures, matrix
from salvage.tables.vocabulary import INTERVENTIONS, OPERATORS

CLASSES = (RETRY_SOLVABLE, STEERABLE_HARD, BEYOND_REACH)
FOLDS = 5  # outer
INNER = 3
MOST = 3000  # failures that a trial looks at
RESAMPLES = 1000
RESAMPLES_WITHIN = 200  # where every cell has curves of its own
ALL, WITHIN = "all", "within cells"


@dataclass(frozen=True)
class Study:
    """What a study of regimes gave.

    Attributes
    ----------
    rows : list of dict
        The figures, as metrics/regimes.json has them.
    classifier : Classifier
        Fitted on all failures; the one that is registered.
    inputs : tuple of str
        What it reads of a failure.
    proba, labels : array, [2, n, classes] and [2, n]
        Held-out probabilities by models trained on each half's labels, and the labels that they are scored against.
    trials : dict
        Each search's trials, by its name.
    """

    rows: list[dict[str, Any]]
    classifier: Classifier
    inputs: tuple[str, ...]
    proba: np.ndarray
    labels: np.ndarray
    trials: dict[str, list[FrozenTrial]]


def labels_of(failures: Failures, seed: int) -> np.ndarray:
    """Return regimes by number, [2, n]: by either half of the attempts; where there are none, twice by all rates."""
    if failures.attempts is None:
        parts = [failures.table[OPERATORS].to_numpy(np.float64)] * 2
    else:
        parts = [part.rates for part in halves(failures.table, failures.attempts, np.random.default_rng([seed, 5]))]
    steering = [OPERATORS.index(name) for name in INTERVENTIONS]
    found = np.stack([regimes_of(rates[:, OPERATORS.index("retry")], rates[:, steering]) for rates in parts])
    return np.select([found == name for name in CLASSES], range(len(CLASSES)))


def study(failures: Failures, *, trials: int, seed: int, folder: Path, quiet: bool = False) -> Study:
    """Search, fit and score classifiers of regimes; fit the one that is registered.

    Raises
    ------
    SalvageError
        Where there are too few problems, or one regime alone.
    """
    table, labels = failures.table, labels_of(failures, seed)
    x = matrix(table, failures.inputs)
    _refuse_too_little(table, labels)
    outer = problem_folds(table, FOLDS, np.random.default_rng([seed, 21]))
    inner = problem_folds(table, INNER, np.random.default_rng([seed, 22]))
    mark = tuning.mark(["studies/regimes.py"], [x, labels, outer, inner], seed)
    trains = {f"fold-{k}": outer != k for k in range(FOLDS)} | {"all": np.ones(len(table), bool)}
    searches = [
        tuning.Study(f"regimes-{name}", mark, _objective(x, labels, train, inner, seed), seed, trials, UNTUNED)
        for name, train in trains.items()
    ]
    found = dict(zip(trains, tuning.tune(searches, folder, label="regimes", quiet=quiet), strict=True))
    settings = {name: tuning.best(done).params for name, done in found.items()}
    told = _held_out(failures, x, labels, outer, settings, seed)
    resamples = ProblemResamples.draw(problem_keys(table), RESAMPLES, [seed, 24])
    scored = labels[::-1]  # a model trained on one half's labels is scored against the other's
    with ThreadPoolExecutor() as executor:
        each = executor.map(lambda one: _score(table, one[0], one[1], scored, resamples), told)
    rows = [row for part in each for row in part]
    classifier = Classifier.fit(*_stacked(x, labels), CLASSES, settings["all"], seed)
    proba = told[0][1]
    classifier = classifier.calibrated(proba.reshape(-1, len(CLASSES)), scored.ravel())
    told_calibrated = np.stack([tempered(part, classifier.temperature_) for part in proba])
    rows += _calibration(resamples, told[0][0], told_calibrated, labels)
    rows += importances(table, failures.inputs, x, labels, outer, settings, seed)
    return Study(rows, classifier, failures.inputs, told_calibrated, scored, found)


def _refuse_too_little(table: pd.DataFrame, labels: np.ndarray) -> None:
    problems = len(np.unique(problem_keys(table)))
    if problems < 5 * FOLDS:
        raise SalvageError(f"{problems} problems are too few to learn regimes from; give at least {5 * FOLDS}")
    if len(np.unique(labels)) < 2:
        raise SalvageError(f"all failures are {CLASSES[labels[0, 0]]}: there are no regimes to tell apart")


def _objective(x: np.ndarray, labels: np.ndarray, train: np.ndarray, inner: np.ndarray, seed: int) -> tuning.Objective:
    rows = np.flatnonzero(train)
    if len(rows) > MOST:
        rows = np.sort(np.random.default_rng([seed, 23]).choice(rows, MOST, replace=False))

    def likelihood(trial: optuna.Trial) -> float:
        settings, losses = suggest(trial), []
        for k in range(INNER):
            fit, held = rows[inner[rows] != k], rows[inner[rows] == k]
            model = Classifier.fit(x[fit], labels[0, fit], CLASSES, settings, seed)
            losses.append(log_loss(model.proba(x[held]), labels[1, held]))
            trial.report(-float(np.mean(losses)), k)
            if trial.should_prune():
                raise optuna.TrialPruned
        return -float(np.mean(losses))

    return likelihood


def _stacked(x: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every failure twice, with either half's label: what is registered tells what half the attempts say."""
    return np.vstack([x, x]), labels.ravel()


def input_sets(inputs: Sequence[str]) -> dict[str, list[str]]:
    """Return the sets of inputs that are compared: all; group by group; each feature, and the baselines, alone."""
    groups = {group: [name for name in names if name in inputs] for group, names in KNOWN.items()}
    features, signals, facts = (groups[name] for name in ("features", "signals", "facts"))
    sets = {"features + signals + facts": [*features, *signals, *facts], "features": features}
    sets |= {"features + signals": [*features, *signals], "features + facts": [*features, *facts]}
    sets |= {name: [name] for name in (*features, "failed_share", "n_tokens") if name in inputs}
    distinct = {
        tuple(names): name for name, names in reversed(sets.items())
    }  # a group may be empty: the first name stays
    return {name: names for name, names in sets.items() if distinct[tuple(names)] == name}


def _held_out(
    failures: Failures,
    x: np.ndarray,
    labels: np.ndarray,
    outer: np.ndarray,
    settings: dict[str, dict[str, Any]],
    seed: int,
) -> list[tuple[dict[str, str], np.ndarray]]:
    """Return what is compared, each with its held-out probabilities [2, n, classes]; the tuned one is the first.

    Sets of inputs are compared with one setting of trees: what was tuned for all inputs need not suit a few.
    """
    trees, family = UNTUNED[-1], family_of(failures.table["cell"].to_numpy(str))
    at = {name: [failures.inputs.index(i) for i in names] for name, names in input_sets(failures.inputs).items()}
    whole = next(iter(at))
    plans = [_about(whole, "other problems", "tuned")]
    if len(np.unique(family)) > 1:
        plans.append(_about(whole, "the other family", "tuned"))
    plans += [_about(name, "other problems", "untuned trees") for name in at]

    def held_out(plan: dict[str, str]) -> np.ndarray:
        columns, told = at[plan["inputs"]], np.zeros((2, len(x), len(CLASSES)))
        for k in range(FOLDS):
            own = settings[f"fold-{k}"] if plan["classifier"] == "tuned" else trees
            for one in np.unique(family) if plan["trained_on"] == "the other family" else [None]:
                fit, held = (outer != k) & (family != one), (outer == k) & ((family == one) | (one is None))
                for h in (0, 1):
                    model = Classifier.fit(x[fit][:, columns], labels[h, fit], CLASSES, own, seed)
                    told[h, held] = model.proba(x[held][:, columns])
        return told

    with threadpool_limits(1), ThreadPoolExecutor() as executor:
        told = list(executor.map(held_out, plans))
    shares = _cell_shares(failures.table, labels, outer)
    return [*zip(plans, told, strict=True), (_about("cell alone", "other problems", "shares"), shares)]


def _about(inputs: str, trained_on: str, classifier: str) -> dict[str, str]:
    return {"inputs": inputs, "trained_on": trained_on, "classifier": classifier}


def _cell_shares(table: pd.DataFrame, labels: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Return each cell's shares of regimes on the training folds, [2, n, classes]: what cell identity alone tells."""
    cell = np.unique(table["cell"].to_numpy(str), return_inverse=True)[1]
    told = np.zeros((2, len(cell), len(CLASSES)))
    for h in (0, 1):
        for k in range(FOLDS):
            fit, held = outer != k, outer == k
            counts = np.ones((cell.max() + 1, len(CLASSES)))
            np.add.at(counts, (cell[fit], labels[h, fit]), 1)
            told[h, held] = (counts / counts.sum(axis=1, keepdims=True))[cell[held]]
    return told


def _score(
    table: pd.DataFrame, about: dict[str, str], proba: np.ndarray, scored: np.ndarray, resamples: ProblemResamples
) -> list[dict[str, Any]]:
    """Return the rows of one comparison: AUC of each regime and their mean, over all, each family, within cells."""
    cells = table["cell"].to_numpy(str)
    family = family_of(cells)
    groups = {ALL: np.ones(len(table), bool)}
    if about["classifier"] == "tuned" and len(np.unique(family)) > 1:
        groups |= {f"{one}-*": family == one for one in np.unique(family)}
    rows: list[dict[str, Any]] = []
    for group, mask in groups.items():
        rows += _auc_rows(resamples.take(mask), proba[:, mask], scored[:, mask], cells=group, **about)
    if about["classifier"] != "shares":  # which are the same for all failures of a cell and fold
        value = float(_within(cells, proba, scored, np.ones((1, len(cells))))[0])
        drawn = resamples.of(lambda weights: _within(cells, proba, scored, weights), RESAMPLES_WITHIN)
        rows.append(_figure(resamples, value, drawn, cells=WITHIN, **about, measure="macro_auc"))
    return rows


def _auc_rows(
    resamples: ProblemResamples, proba: np.ndarray, scored: np.ndarray, **about: str
) -> Iterator[dict[str, Any]]:
    point = _areas(proba, scored, np.ones((1, scored.shape[1])))[0]
    drawn = resamples.of(lambda weights: _areas(proba, scored, weights))
    known = np.isfinite(point)  # a regime that no failure has, or all, has no curve
    measures = [("macro_auc", point[known].mean(), drawn[:, known].mean(axis=1))]
    measures += [(f"auc: {name}", point[c], drawn[:, c]) for c, name in enumerate(CLASSES) if known[c]]
    for measure, value, spread in measures:
        yield _figure(resamples, float(value), spread, **about, measure=measure)


def _figure(resamples: ProblemResamples, value: float, drawn: np.ndarray, **about: str) -> dict[str, Any]:
    low, high = resamples.interval(drawn)
    return _row(**about, value=value, low=low, high=high, n=len(resamples.problem))


def _areas(proba: np.ndarray, scored: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUC of each class [resamples, classes], the mean of both halves."""
    return np.stack(
        [np.mean([auc(proba[h, :, c], scored[h] == c, weights) for h in (0, 1)], axis=0) for c in range(len(CLASSES))],
        axis=1,
    )


def _within(cells: np.ndarray, proba: np.ndarray, scored: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the macro-AUC within cells [resamples], their mean: there cell identity tells nothing."""
    masks = [cells == cell for cell in np.unique(cells)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cell of one regime has no curve
        each = [np.nanmean(_areas(proba[:, mask], scored[:, mask], weights[:, mask]), axis=1) for mask in masks]
        return np.asarray(np.nanmean(each, axis=0))


def _calibration(
    resamples: ProblemResamples, about: dict[str, str], told: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    """Return Brier score and accuracy, beside those of the shares alone and of the other half's own label."""
    scored, eye = labels[::-1], np.eye(len(CLASSES))
    shares = np.stack([np.bincount(part, minlength=len(CLASSES)) / len(part) for part in scored])
    compared = [
        (about, told),
        (_about("none", "other problems", "shares"), np.repeat(shares[:, None], labels.shape[1], 1)),
    ]
    if not np.array_equal(*labels):
        compared.append((_about("none", "the other half of the attempts", "its label"), eye[labels]))
    rows = []
    for who, given in compared:
        losses = {
            "brier": ((given - eye[scored]) ** 2).sum(axis=2).mean(axis=0),
            "accuracy": (given.argmax(axis=2) == scored).mean(axis=0),
        }
        for measure, each in losses.items():
            drawn = resamples.of(lambda w: (w @ each) / w.sum(axis=1))  # noqa: B023 (called here)
            rows.append(_figure(resamples, float(each.mean()), drawn, cells=ALL, **who, measure=measure))
    return rows


def importances(
    table: pd.DataFrame,
    inputs: Sequence[str],
    x: np.ndarray,
    labels: np.ndarray,
    outer: np.ndarray,
    settings: dict[str, dict[str, Any]],
    seed: int,
) -> list[dict[str, Any]]:
    """Return what shuffling each input among held-out failures costs in macro-AUC (permutation importance)."""
    rng = np.random.default_rng([seed, 26])
    lost = np.zeros((FOLDS, len(inputs)))
    for k in range(FOLDS):
        fit, held = outer != k, np.flatnonzero(outer == k)
        model = Classifier.fit(x[fit], labels[0, fit], CLASSES, settings[f"fold-{k}"], seed)
        one, truth = np.ones((1, len(held))), labels[1:, held]
        start = _half_auc(model.proba(x[held]), truth[0], one)
        for i in range(len(inputs)):
            shuffled = x[held].copy()
            shuffled[:, i] = rng.permutation(shuffled[:, i])
            lost[k, i] = start - _half_auc(model.proba(shuffled), truth[0], one)
    return [
        _row(
            cells=ALL,
            **_about(name, "other problems", "tuned"),
            measure="importance",
            value=value,
            low=low,
            high=high,
            n=len(table),
        )
        for name, value, low, high in zip(inputs, *over_folds(lost), strict=True)
    ]


def _half_auc(proba: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    return float(np.mean([auc(proba[:, c], truth == c, weights)[0] for c in range(len(CLASSES))]))


def _row(**values: Any) -> dict[str, Any]:
    about = ("cells", "inputs", "trained_on", "classifier", "measure", "value", "low", "high", "n")
    row = {name: values.get(name) for name in about}
    return {k: round(float(v), 5) if isinstance(v, (float, np.floating)) else v for k, v in row.items()}
