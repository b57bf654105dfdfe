"""Which post-training method made this checkpoint? Told from a bag of its failures, judged on checkpoints never seen.

A bag is described by the distribution of its failures' features and signals. Training and judging never share a
training seed or a problem; other splits hold out ancestors and families as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits

from salvage.errors import SalvageError
from salvage.evaluation.resampling import interval, over_folds
from salvage.method.profiles import problem_folds
from salvage.project.settings import Cell
from salvage.studies import tuning
from salvage.studies.classifiers import UNTUNED, Classifier, log_loss, suggest
from salvage.studies.failures import KNOWN, Failures, bag_statistics, matrix

SIZES = (1, 5, 10, 25, 50)  # failures in a bag
FEWEST = SIZES[1]  # below, nothing is answered
MAIN = 25
BAGS = 40  # a checkpoint
INNER = 3
PAIRS = 3  # of complementary splits of the training seeds
RESAMPLES = 10_000
HALVES = (((0, 1), (2, 3)), ((2, 3), (0, 1)))  # of the problems, in quarters: to learn from, to judge
SEEDS, ANCESTORS, FAMILIES = "unseen seeds", "unseen ancestors", "unseen family"


@dataclass(frozen=True)
class Split:
    """Checkpoints to learn from and to judge (masks), and the quarters of the problems that either is shown."""

    kind: str
    train: np.ndarray
    test: np.ndarray
    learnt: tuple[int, ...]
    judged: tuple[int, ...]


@dataclass(frozen=True)
class Study:
    """What a study of methods gave.

    Attributes
    ----------
    rows : list of dict
        The figures, as metrics/methods.json has them.
    classifiers : dict
        By the size of the bag, fitted on bags of all checkpoints; what is registered.
    inputs, families : tuple of str
        What it reads of a failure; the families that it has seen.
    accuracy : dict
        On unseen seeds, by the size of the bag.
    trials : dict
        Each search's trials, by its name.
    """

    rows: list[dict[str, Any]]
    classifiers: dict[int, Classifier]
    inputs: tuple[str, ...]
    families: tuple[str, ...]
    accuracy: dict[int, float]
    trials: dict[str, list[FrozenTrial]]


@dataclass(frozen=True)
class _Data:
    x: np.ndarray  # [failures, inputs]
    inputs: tuple[str, ...]
    checkpoint: np.ndarray  # [failures], an index into `about`
    quarter: np.ndarray  # [failures], of the problems
    about: pd.DataFrame  # one row a checkpoint: cell, family, method, seed, ancestor
    methods: tuple[str, ...]
    y: np.ndarray  # [checkpoints], the method's number
    seed: int


def study(
    failures: Failures, cells: Sequence[Cell], *, trials: int, seed: int, folder: Path, quiet: bool = False
) -> Study:
    """Search, fit and judge classifiers of methods; fit the one that is registered.

    Parameters
    ----------
    failures : Failures
    cells : sequence of Cell
        What params.yaml says of each cell: its method, training seed, family and ancestor.

    Raises
    ------
    SalvageError
        Where there are fewer than two methods with two training seeds each, or a cell is unknown.
    """
    data = _data(failures, cells, seed)
    mine = [data.inputs.index(name) for name in (*KNOWN["features"], *KNOWN["signals"]) if name in data.inputs]
    cuts = splits(data.about, data.methods, seed)
    everything = Split("all", np.ones(len(data.y), bool), np.zeros(len(data.y), bool), (0, 1, 2, 3), ())
    arrays = [data.x, data.checkpoint, data.quarter]
    mark = tuning.mark(["studies/methods.py"], arrays, data.inputs, mine, data.about.to_csv(), seed)
    searches = [
        tuning.Study(f"methods-{name}", mark, _objective(data, split, mine), seed, trials, UNTUNED)
        for name, split in [*enumerate(cuts), ("all", everything)]
    ]
    done = tuning.tune(searches, folder, label="methods", quiet=quiet)
    settings = [tuning.best(one).params for one in done]
    judged = _judged(data, cuts, settings, mine)
    rows = [row for key, told in judged.items() for row in _rows(data, cuts, *key, told)]
    rows += _importances(data, cuts, settings, mine)
    classifiers = {}
    for n in SIZES[1:]:
        told, truth = _pooled(data, cuts, judged[_MAIN_SET, "bag", n])
        classifiers[n] = _fit(data, everything, mine, settings[-1], n).calibrated(told, truth)
    main = [row for row in rows if (row["split"], row["inputs"], row["way"]) == (SEEDS, _MAIN_SET, "bag")]
    accuracy = {row["bag"]: round(row["value"], 3) for row in main if row["measure"] == "accuracy" and row["bag"] > 1}
    return Study(
        rows,
        classifiers,
        tuple(data.inputs[i] for i in mine),
        tuple(sorted(data.about["family"].unique())),
        accuracy,
        {search.name: found for search, found in zip(searches, done, strict=True)},
    )


_MAIN_SET = "features + signals"


def _data(failures: Failures, cells: Sequence[Cell], seed: int) -> _Data:
    known = {cell.name: cell for cell in cells}
    names, index = np.unique(failures.table["cell"].to_numpy(str), return_inverse=True)
    unknown = [str(name) for name in names if name not in known]
    if unknown:
        raise SalvageError(
            f"cell {unknown[0]!r} is not in params.yaml, which says what made a checkpoint (method, seed, family, "
            "ancestor); list it under cells, or correct study.profile"
        )
    about = pd.DataFrame(
        [{n: getattr(known[name], n) for n in ("name", "family", "method", "seed", "ancestor")} for name in names]
    )
    seeds = about.groupby("method")["seed"].nunique()
    methods = tuple(sorted(seeds.index[seeds >= 2]))
    if len(methods) < 2:
        raise SalvageError(
            "telling methods apart needs two methods with two training seeds each, else it would tell checkpoints "
            f"apart; there are {', '.join(f'{m} ({n})' for m, n in seeds.items())}"
        )
    keep = about["method"].isin(methods).to_numpy()
    rows = keep[index]
    table = failures.table[rows]
    return _Data(
        x=matrix(table, failures.inputs),
        inputs=failures.inputs,
        checkpoint=(np.cumsum(keep) - 1)[index[rows]],
        quarter=problem_folds(table, 4, np.random.default_rng([seed, 41])),
        about=about[keep].reset_index(drop=True),
        methods=methods,
        y=np.searchsorted(methods, about["method"][keep]),
        seed=seed,
    )


def splits(about: pd.DataFrame, methods: Sequence[str], seed: int) -> list[Split]:
    """Return pairs of complementary splits: of training seeds, and where there are two, of ancestors and of families.

    Training seeds are dealt the same way for all methods of a family. Where it can be, both sides of such a split have
    checkpoints of every ancestor: to hold out ancestors is another question.
    """
    families = about["family"].rank(method="dense").to_numpy(int) - 1
    seeds = about.groupby(["family", "method"])["seed"].rank(method="dense").to_numpy(int) - 1
    ancestors = about.groupby("family")["ancestor"].rank(method="dense").to_numpy(int) - 1
    found = []
    for pair, first in enumerate(_deals(seeds, ancestors, np.random.default_rng([seed, 42]))):
        found += [Split(SEEDS, *one, *HALVES[pair % 2]) for one in ((first, ~first), (~first, first))]
    for kind, part in ((ANCESTORS, ancestors), (FAMILIES, families)):
        if part.max() > 0:
            found += [Split(kind, part != i, part == i, *HALVES[i % 2]) for i in range(part.max() + 1)]
    return [s for s in found if set(about["method"][s.train]) == set(methods) and s.test.any()]


def _deals(seeds: np.ndarray, ancestors: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return masks of the checkpoints that learn: half of the seeds each, no two the same or each other's rest."""
    most = seeds.max() + 1
    halves = [set(half) for half in combinations(range(most), most // 2) if 2 * len(half) < most or 0 in half]
    masks = [np.isin(seeds, list(half)) for half in halves]
    kinds = len(np.unique(ancestors))
    mixed = [m for m in masks if all(len(np.unique(ancestors[side])) == kinds for side in (m, ~m))]
    usable = mixed or masks
    return [usable[i] for i in rng.permutation(len(usable))[:PAIRS]]


# ------------------------------------------------------------------ bags


def draw(data: _Data, who: np.ndarray, quarters: tuple[int, ...], n: int, bags: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw bags of n failures of each checkpoint: failures [checkpoints * bags, n] and checkpoints [the same].

    Parameters
    ----------
    who : array of bool, [checkpoints]
    quarters : tuple of int
        Of the problems.
    """
    rng, drawn, of = np.random.default_rng([data.seed, 43, n, *quarters]), [], []
    shown = np.isin(data.quarter, quarters)
    for c in np.flatnonzero(who):
        own = np.flatnonzero((data.checkpoint == c) & shown)
        if len(own) == 0:
            continue
        few = len(own) < n  # then a failure stands twice
        drawn += [rng.choice(own, n, replace=few) for _ in range(bags)]
        of += [c] * bags
    return np.array(drawn), np.array(of)


def _fit(data: _Data, split: Split, columns: list[int], settings: dict[str, Any], n: int) -> Classifier:
    """Fit on bags of one size: how noisy their statistics are, and so what they tell, depends on it."""
    if n == 1:  # every failure once; for bags of one, and for the vote
        rows = np.flatnonzero(split.train[data.checkpoint] & np.isin(data.quarter, split.learnt))[:, None]
        of = data.checkpoint[rows[:, 0]]
    else:
        rows, of = draw(data, split.train, split.learnt, n, BAGS)
    x = bag_statistics(data.x[rows][:, :, columns])
    return Classifier.fit(x, data.y[of], data.methods, settings, data.seed)


def _objective(data: _Data, split: Split, columns: list[int]) -> tuning.Objective:
    """Return what a search maximises: the likelihood of bags of left-out training seeds, on problems left out too."""
    half = len(split.learnt) // 2
    problems = split.learnt[:half], split.learnt[half:]
    own = data.about["seed"].where(split.train).groupby([data.about["family"], data.about["method"]])
    fold = own.rank(method="dense").fillna(0).to_numpy(int) % INNER
    insides = [
        Split(split.kind, split.train & (fold != k), split.train & (fold == k), *problems)
        for k in range(INNER)
        if len(np.unique(fold[split.train])) > 1
    ] or [Split(split.kind, split.train, split.train, *problems)]  # of one training seed no seed can be left out

    def likelihood(trial: optuna.Trial) -> float:
        settings, losses = suggest(trial), []
        for k, inside in enumerate(one for one in insides if one.test.any()):
            model = _fit(data, inside, columns, settings, MAIN)
            rows, of = draw(data, inside.test, inside.judged, MAIN, BAGS)
            losses.append(log_loss(model.proba(bag_statistics(data.x[rows][:, :, columns])), data.y[of]))
            trial.report(-float(np.mean(losses)), k)
            if trial.should_prune():
                raise optuna.TrialPruned
        return -float(np.mean(losses))

    return likelihood


# ------------------------------------------------------------------ judging


Told = list[tuple[np.ndarray, np.ndarray]]  # a split each: probabilities [bags, methods], checkpoints [bags]


def _judged(
    data: _Data, cuts: list[Split], settings: list[dict[str, Any]], mine: list[int]
) -> dict[tuple[str, str, int], Told]:
    """Return what every way of telling says of the held-out bags: by (inputs, way, size of the bag)."""
    sets = {_MAIN_SET: mine}
    others = {"features": KNOWN["features"], "n_tokens": ["n_tokens"], "failed_share": ["failed_share"]}
    others |= {"features + signals + facts": list(data.inputs)}
    for name, names in others.items():
        columns = [data.inputs.index(i) for i in names if i in data.inputs]
        if columns and columns != mine:
            sets[name] = columns
    jobs = [(name, i) for name in sets for i in range(len(cuts))]

    def judge(job: tuple[str, int]) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
        name, i = job
        if name == _MAIN_SET:
            return _judge(data, cuts[i], sets[name], [settings[i]], SIZES)
        return _judge(data, cuts[i], sets[name], list(UNTUNED), (MAIN,))

    with threadpool_limits(1), ThreadPoolExecutor() as executor:
        told = list(executor.map(judge, jobs))
    found: dict[tuple[str, str, int], Told] = {}
    for (name, _), each in zip(jobs, told, strict=True):
        for (way, n), one in each.items():
            found.setdefault((name, way, n), []).append(one)
    return found


def _judge(
    data: _Data, split: Split, columns: list[int], settings: list[dict[str, Any]], sizes: Sequence[int]
) -> dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]:
    single = _fit(data, split, columns, UNTUNED[-1], 1) if 1 in sizes else None
    found = {}
    for n in sizes:
        rows, of = draw(data, split.test, split.judged, n, BAGS)
        bags = data.x[rows][:, :, columns]
        for one in settings if n > 1 else []:
            proba = _fit(data, split, columns, one, n).proba(bag_statistics(bags))
            found["bag" if len(settings) == 1 else one["kind"], n] = proba, of
        if single is not None:
            each = np.log(np.maximum(single.proba(bags.reshape(-1, len(columns))), 1e-6))
            votes = np.exp(each.reshape(len(bags), n, -1).mean(axis=1))
            found["bag" if n == 1 else "vote", n] = votes / votes.sum(axis=1, keepdims=True), of
    return found


def _of_kind(cuts: list[Split], kind: str, told: Told) -> Told:
    return [one for split, one in zip(cuts, told, strict=True) if split.kind == kind]


def _shares(data: _Data, cuts: list[Split], kind: str, told: Told) -> np.ndarray:
    """Return how often each checkpoint's bags were given to each method, [checkpoints, methods]; NaN: never judged."""
    counts = np.zeros((len(data.y), len(data.methods)))
    for proba, of in _of_kind(cuts, kind, told):
        np.add.at(counts, (of, proba.argmax(axis=1)), 1)
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(axis=1, keepdims=True)


def _rows(data: _Data, cuts: list[Split], inputs: str, way: str, n: int, told: Told) -> Iterator[dict[str, Any]]:
    for kind in dict.fromkeys(split.kind for split in cuts):
        shares = _shares(data, cuts, kind, told)
        judged = np.isfinite(shares[:, 0])
        right = shares[np.arange(len(data.y)), data.y]

        def figure(measure: str, own: np.ndarray, **more: Any) -> dict[str, Any]:
            values = right[own]  # noqa: B023 (called in this turn of the loop alone)
            low, high = _over_checkpoints(values, data.seed)
            about = {"split": kind, "inputs": inputs, "way": way, "bag": n, "measure": measure}  # noqa: B023
            return _row(**about, value=values.mean(), low=low, high=high, checkpoints=len(values), **more)

        p = _p_value(shares[judged], data.y[judged], data.about["family"][judged].to_numpy(str), data.seed)
        majority = float(np.bincount(data.y[judged]).max() / judged.sum())
        yield figure("accuracy", judged, p_value=p, majority=majority)
        if (inputs, way, n) != (_MAIN_SET, "bag", MAIN):
            continue
        for m in np.unique(data.y[judged]):
            own = judged & (data.y == m)
            means = shares[own].mean(axis=0)
            given = {name: round(float(v), 4) for name, v in zip(data.methods, means, strict=True)}
            yield figure(f"told: {data.methods[m]}", own, told=given)
        for family in sorted(set(data.about["family"][judged])):
            yield figure(f"accuracy: {family}", judged & (data.about["family"] == family).to_numpy())


def _over_checkpoints(right: np.ndarray, seed: int) -> tuple[float, float]:
    drawn = np.random.default_rng([seed, 44]).integers(len(right), size=(RESAMPLES, len(right)))
    return interval(right[drawn].mean(axis=1), len(right))


def _p_value(shares: np.ndarray, y: np.ndarray, family: np.ndarray, seed: int) -> float:
    """Return how often methods shuffled among the judged checkpoints of a family are told as well as the true ones."""
    rng, n = np.random.default_rng([seed, 45]), 2000
    shuffled = np.tile(y, (n, 1))
    for one in np.unique(family):
        own = np.flatnonzero(family == one)
        shuffled[:, own] = rng.permuted(shuffled[:, own], axis=1)
    reached = shares[np.arange(len(y)), shuffled].mean(axis=1) >= shares[np.arange(len(y)), y].mean() - 1e-9
    return float((1 + reached.sum()) / (1 + n))


def _pooled(data: _Data, cuts: list[Split], told: Told) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of all bags on unseen seeds, and the true methods."""
    parts = _of_kind(cuts, SEEDS, told)
    return np.vstack([proba for proba, _ in parts]), np.concatenate([data.y[of] for _, of in parts])


def _importances(
    data: _Data, cuts: list[Split], settings: list[dict[str, Any]], mine: list[int]
) -> list[dict[str, Any]]:
    """Return what shuffling each input among held-out bags costs in accuracy (permutation importance)."""
    rng, lost = np.random.default_rng([data.seed, 46]), []
    for split, own in zip(cuts, settings, strict=False):
        if split.kind != SEEDS:
            continue
        model = _fit(data, split, mine, own, MAIN)
        rows, of = draw(data, split.test, split.judged, MAIN, BAGS)
        x, truth = bag_statistics(data.x[rows][:, :, mine]), data.y[of]
        start, losses = (model.proba(x).argmax(axis=1) == truth).mean(), []
        for i in range(len(mine)):
            shuffled, at = x.copy(), np.arange(i, x.shape[1], len(mine))  # all statistics of one input together
            shuffled[:, at] = x[rng.permutation(len(x))][:, at]
            losses.append(start - (model.proba(shuffled).argmax(axis=1) == truth).mean())
        lost.append(losses)
    return [
        _row(
            split=SEEDS,
            inputs=data.inputs[column],
            way="bag",
            bag=MAIN,
            measure="importance",
            value=v,
            low=low,
            high=high,
        )
        for column, v, low, high in zip(mine, *over_folds(np.array(lost)), strict=True)
    ]


def _row(**values: Any) -> dict[str, Any]:
    about = ("split", "inputs", "way", "bag", "measure", "value", "low", "high", "p_value", "majority", "checkpoints")
    row = {name: values.get(name) for name in (*about, *(name for name in values if name not in about))}
    return {k: round(float(v), 5) if isinstance(v, (float, np.floating)) else v for k, v in row.items()}
