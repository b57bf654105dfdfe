"""Intervals and p-values over failures, as pure functions of arrays: stratified bootstrap, permutation within cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import ndtr, stdtrit


def bootstrap(table: np.ndarray, cell: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Resample failures within each cell; yield the columns' sums of one cell after the other.

    In chunks, so that memory stays bounded: a chunk of counts [chunk, failures of a cell] times the cell's rows.

    Parameters
    ----------
    table : array, [failures, columns]
    cell : array of int, [failures]
        0 to the number of cells, less one.

    Yields
    ------
    array, [resamples, columns]
        In single precision: intervals are read to three digits.
    """
    for c in range(int(cell.max()) + 1):
        rows = table[cell == c].astype(np.float32)
        n, rng = len(rows), np.random.default_rng([seed, 4, c])
        sums = np.empty((resamples, table.shape[1]))
        chunk = max(1, 4_000_000 // n)
        for start in range(0, resamples, chunk):
            size = min(chunk, resamples - start)
            drawn = rng.integers(n, size=(size, n)) + (np.arange(size) * n)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
            sums[start : start + size] = counts.astype(np.float32) @ rows
        yield sums


def interval(resampled: np.ndarray, n: int) -> tuple[float, float]:
    """Return the 95% percentile interval, its levels expanded for few failures.

    With n of them a percentile interval is too narrow, as one with n instead of n - 1 and the normal's 1.96 instead of
    Student's t; at 60 failures by 3%, at 1,000 by nothing to speak of (Hesterberg 2015, "expanded percentile").
    """
    level = _level(n)
    low, high = np.percentile(resampled, [level, 100 - level])
    return float(low), float(high)


@cache
def _level(n: int) -> float:
    freedom = max(n - 1, 1)
    return 100 * float(ndtr(-np.sqrt(n / freedom) * stdtrit(freedom, 0.975)))


def shuffled_sums(
    choice: list[np.ndarray],
    scores: list[np.ndarray],
    masks: list[np.ndarray],
    cell: np.ndarray,
    permutations: int,
    seed: list[int],
) -> np.ndarray:
    """Return what a policy gathers in each cell with its choices shuffled among failures, [cells, permutations].

    Shuffled within a cell, among the failures in scope in some view, the same way in every view; so what the features
    tell about the cell counts for nothing, only what they tell about the failure.

    Parameters
    ----------
    choice, scores, masks : list of array
        One a view: operators chosen [failures], rates [failures, operators], who is in scope [failures].
    """
    rng = np.random.default_rng(seed)
    sums = np.zeros((int(cell.max()) + 1, permutations))
    somewhere = np.any(masks, axis=0)
    for c in range(len(sums)):
        rows = np.flatnonzero((cell == c) & somewhere)
        at = np.arange(len(rows))
        chunk = max(1, 2_000_000 // max(1, len(rows)))
        for start in range(0, permutations, chunk):
            part = sums[c, start : start + chunk]
            order = rng.permuted(np.tile(at, (len(part), 1)), axis=1)
            for chosen, rates, mask in zip(choice, scores, masks, strict=True):
                part += rates[rows][at, chosen[rows][order]] @ mask[rows].astype(np.float64)
    return sums


def p_values(seen: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """Return one-sided p-values [...]: how often shuffled [..., permutations] is at least what was seen [...]."""
    reached = (shuffled >= np.asarray(seen)[..., None] - 1e-9).sum(-1)
    return np.asarray((1 + reached) / (1 + shuffled.shape[-1]))


def resampled_problems(problem: np.ndarray, resamples: int, seed: list[int]) -> Iterator[np.ndarray]:
    """Resample whole problems; yield how often each failure was drawn, [chunk, failures], a chunk after the other.

    Cells share their problems, so failures on one problem are no independent witnesses.

    Parameters
    ----------
    problem : array of int, [failures]
        0 to the number of problems, less one.
    """
    rng, n = np.random.default_rng(seed), int(problem.max()) + 1
    chunk = max(1, 2_000_000 // len(problem))
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        drawn = rng.integers(n, size=(size, n)) + (np.arange(size) * n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        yield counts[:, problem].astype(np.float32)


@dataclass(frozen=True)
class ProblemResamples:
    """Resamples of whole problems, drawn once for all statistics of the same failures.

    Attributes
    ----------
    weights : array of uint8, [resamples, n]
        How often each failure was drawn.
    problem : array of int, [n]
    """

    weights: np.ndarray
    problem: np.ndarray

    @classmethod
    def draw(cls, keys: np.ndarray, resamples: int, seed: list[int]) -> ProblemResamples:
        """Draw resamples of the failures whose problems are called `keys`, [n]."""
        problem = np.unique(keys, return_inverse=True)[1]
        drawn = [part.astype(np.uint8) for part in resampled_problems(problem, resamples, seed)]
        return cls(np.concatenate(drawn), problem)

    def take(self, rows: np.ndarray) -> ProblemResamples:
        """Return those of some failures, by mask."""
        return ProblemResamples(self.weights[:, rows], self.problem[rows])

    def of(self, statistic: Callable[[np.ndarray], np.ndarray], resamples: int | None = None) -> np.ndarray:
        """Return a statistic of weights [chunk, n] on every resample, or on the first few: [resamples, ...]."""
        weights = self.weights[:resamples]
        parts = np.array_split(weights, max(1, weights.size // 2_000_000))
        return np.concatenate([statistic(part.astype(np.float32)) for part in parts])

    def interval(self, drawn: np.ndarray) -> tuple[float, float]:
        """Return the 95% interval of a figure [resamples]; where a resample has none (NaN), of the others."""
        return interval(drawn[np.isfinite(drawn)], len(np.unique(self.problem)))


def over_folds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, low and high [columns] of figures of several folds [folds, columns]: two errors each way."""
    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return mean, mean - 2 * error, mean + 2 * error


def auc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve [resamples]; ties count half; NaN where there is one class alone.

    Parameters
    ----------
    score : array, [n]
    positive : array of bool, [n]
    weights : array, [resamples, n]
        How often each row counts.
    """
    order = np.argsort(score, kind="stable")
    drawn, right = weights[:, order], positive[order]
    last = np.flatnonzero(np.diff(score[order], append=np.inf))  # of each run of equal scores
    below = np.cumsum(np.where(right, 0, drawn), axis=1, dtype=np.float64)[:, last]
    above = np.cumsum(np.where(right, drawn, 0), axis=1, dtype=np.float64)[:, last]
    before = np.hstack([np.zeros((len(below), 1)), below[:, :-1]])
    won = (np.diff(above, axis=1, prepend=0) * (below + before) / 2).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.asarray(won / (above[:, -1] * below[:, -1]))
