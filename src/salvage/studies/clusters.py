"""Clusters of failures in feature space, their number chosen by stability, named by what marks and what rescues them.

Each family is clustered by itself on its z-scored features; then clusters are matched across families.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from salvage.errors import SalvageError
from salvage.evaluation.groups import family_of
from salvage.evaluation.resampling import ProblemResamples, interval
from salvage.method.profiles import problem_keys
from salvage.policies.rule import Rule
from salvage.tables.vocabulary import FEATURES, OPERATORS

KINDS = ("k-means", "gaussian mixture")
NUMBERS = range(2, 9)
RESAMPLES = 40
STABLE, DISTINCT = 0.8, 0.75  # the least mean adjusted Rand index, and Jaccard index of every cluster, accepted
MOST = 3000  # failures that a resample is fitted on
PERMUTATIONS = 1000
INTERVAL_RESAMPLES = 400


@dataclass(frozen=True)
class Clusters:
    """The clusters of one family.

    Attributes
    ----------
    family : str
    label : array of int, [n]
        Of the family's failures, in the order of the table; numbers are matched across families.
    z : array, [n, 3]
    """

    family: str
    label: np.ndarray
    z: np.ndarray


def study(table: pd.DataFrame, *, seed: int) -> tuple[list[dict[str, Any]], list[Clusters]]:
    """Cluster each family's failures; return the figures and the clusters.

    The kind and number are those with the most clusters that are stable in every family: mean adjusted Rand index of at
    least 0.8, every cluster's mean Jaccard index at least 0.75 (what Hennig 2007 calls stable). Where none
    is, the most stable.

    Raises
    ------
    SalvageError
        Where a family has too few failures to cluster.
    """
    family = family_of(table["cell"].to_numpy(str))
    names = np.unique(family).tolist()
    parts = {name: table[family == name] for name in names}
    for name, part in parts.items():
        if len(part) < 10 * NUMBERS[-1]:
            raise SalvageError(
                f"{len(part)} failures{f' of {name}' if name else ''} are too few to cluster; "
                f"give at least {10 * NUMBERS[-1]}"
            )
    z = {name: Rule.fit(part).scores(part) for name, part in parts.items()}
    tried = [(kind, k, name) for kind in KINDS for k in NUMBERS for name in names]

    def stable(job: tuple[str, int, str]) -> tuple[np.ndarray, np.ndarray]:
        kind, k, name = job
        return stability(z[name], problem_keys(parts[name]), _maker(kind, k, seed), k, seed)

    with threadpool_limits(1), ThreadPoolExecutor() as executor:
        found = dict(zip(tried, executor.map(stable, tried), strict=True))
    kind, k = _chosen(found, names)
    rows = [_curve_row(*job, *indices, chosen=job[:2] == (kind, k)) for job, indices in found.items()]
    resamples = {
        name: ProblemResamples.draw(problem_keys(part), INTERVAL_RESAMPLES, [seed, 33]) for name, part in parts.items()
    }
    clusters, centres = [], None
    for name in names:
        label, centres_here = _labels(z[name], _maker(kind, k, seed), k)
        if centres is not None:
            label, centres_here = _matched(label, centres_here, centres)
        centres = centres_here if centres is None else centres
        clusters.append(Clusters(name, label, z[name]))
        rows += _described(parts[name], clusters[-1], resamples[name], seed)
    rows += _across(clusters, resamples, _maker(kind, k, seed))
    return rows, clusters


Maker = Callable[[np.ndarray], Any]


def _maker(kind: str, k: int, seed: int) -> Maker:
    if kind == "k-means":
        return lambda z: KMeans(k, n_init=4, random_state=seed).fit(z)
    return lambda z: GaussianMixture(k, n_init=1, random_state=seed, reg_covar=1e-4, max_iter=60, tol=3e-3).fit(z)


def stability(z: np.ndarray, problems: np.ndarray, make: Maker, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Compare clusters fitted on resamples of problems with those fitted on all.

    Returns
    -------
    array, [resamples]
        Adjusted Rand indices over all failures.
    array, [resamples, k]
        For each cluster, the largest Jaccard index with any cluster of the resample (Hennig 2007).
    """
    rng = np.random.default_rng([seed, 31])
    few = rng.choice(len(z), min(len(z), 2 * MOST), replace=False)
    z, index = z[few], np.unique(problems[few], return_inverse=True)[1]
    reference = _labels(z, make, k)[0]
    rand, jaccard = np.empty(RESAMPLES), np.empty((RESAMPLES, k))
    for r in range(RESAMPLES):
        drawn = np.bincount(rng.integers(index.max() + 1, size=index.max() + 1), minlength=index.max() + 1)
        rows = np.repeat(np.arange(len(z)), drawn[index])
        other = make(z[rng.permutation(rows)[:MOST]]).predict(z)
        rand[r] = adjusted_rand_score(reference, other)
        common = np.zeros((k, k))
        np.add.at(common, (reference, other), 1)
        union = common.sum(axis=1)[:, None] + common.sum(axis=0)[None] - common
        jaccard[r] = (common / union).max(axis=1)
    return rand, jaccard


def _chosen(found: dict[tuple[str, int, str], tuple[np.ndarray, np.ndarray]], names: list[str]) -> tuple[str, int]:
    worst = {}
    for kind, k, _ in found:
        rand = min(found[kind, k, name][0].mean() for name in names)
        distinct = min(found[kind, k, name][1].mean(axis=0).min() for name in names)
        worst[kind, k] = (rand, distinct)
    accepted = [key for key, (rand, distinct) in worst.items() if rand >= STABLE and distinct >= DISTINCT]
    if accepted:
        return max(accepted, key=lambda key: (key[1], worst[key][0]))
    return max(worst, key=lambda key: worst[key][0])


def _labels(z: np.ndarray, make: Maker, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return clusters numbered by their centre's spread, and the centres [k, 3]."""
    label = make(z).predict(z)
    centres = np.stack(
        [z[label == c].mean(axis=0) if (label == c).any() else np.full(z.shape[1], np.inf) for c in range(k)]
    )
    order = np.argsort(centres[:, 0], kind="stable")
    return np.argsort(order)[label], centres[order]


def _matched(label: np.ndarray, centres: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumber clusters so that their centres lie next to the reference's (the assignment of least distance)."""
    distance = ((centres[:, None] - reference[None]) ** 2).sum(axis=2)
    own, other = linear_sum_assignment(distance)
    number = np.empty(len(own), int)
    number[own] = other
    return number[label], centres[np.argsort(number)]


def _described(part: pd.DataFrame, clusters: Clusters, resamples: ProblemResamples, seed: int) -> list[dict[str, Any]]:
    """Return a row a cluster, its mark and what rescues it, and how much of the rescue profile the clusters explain."""
    rates, label = part[OPERATORS].to_numpy(np.float64), clusters.label
    gain = rates - rates.mean(axis=1, keepdims=True)
    rows = []
    for c in np.unique(label):
        own = label == c
        centre, lift = clusters.z[own].mean(axis=0), (gain[own] - gain.mean(axis=0)).mean(axis=0)
        mark, best = int(np.abs(centre).argmax()), int(lift.argmax())
        low, high = _over_problems(resamples, lambda drawn: (label[drawn] == c).mean())  # noqa: B023 (called here)
        rows.append(
            _row(
                family=clusters.family,
                measure="cluster",
                cluster=int(c),
                n=int(own.sum()),
                value=float(own.mean()),
                low=low,
                high=high,
                name=f"{'high' if centre[mark] > 0 else 'low'} {FEATURES[mark]}",
                rescued_by=f"{OPERATORS[best]} {100 * lift[best]:+.1f}",
                z=[round(float(v), 3) for v in centre],
                rescue=[round(float(v), 4) for v in rates[own].mean(axis=0)],
            )
        )
    cell = np.unique(part["cell"].to_numpy(str), return_inverse=True)[1]
    for measure, target in (("explained: rescue rates", rates), ("explained: which operator", gain)):
        value, p = explained(target, label, cell, seed)
        low, high = _over_problems(resamples, lambda i: _between(_rest(target[i], cell[i]), label[i]))  # noqa: B023
        rows.append(
            _row(family=clusters.family, measure=measure, value=value, low=low, high=high, p_value=p, n=len(part))
        )
    return rows


def _over_problems(resamples: ProblemResamples, statistic: Callable[[np.ndarray], float]) -> tuple[float, float]:
    """Return the 95% interval of a statistic of failures (by index) over resamples of problems.

    Moved to where the statistic lies on the failures themselves: a share of variance grows when failures stand twice.
    """
    once = np.arange(len(resamples.problem))
    drawn = np.array([statistic(np.repeat(once, counts)) for counts in resamples.weights])
    return resamples.interval(drawn + statistic(once) - drawn.mean())


def explained(target: np.ndarray, label: np.ndarray, cell: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the share of the variance of `target` [n, operators] within cells that lies between clusters, and its p.

    Cell means are taken out first; the p-value shuffles clusters within cells.
    """
    rest = _rest(target, cell)
    seen, rng = _between(rest, label), np.random.default_rng([seed, 32])
    order = np.argsort(cell, kind="stable")
    reached = 0
    for _ in range(PERMUTATIONS):
        within = np.lexsort((rng.random(len(cell)), cell))
        shuffled = np.empty_like(label)
        shuffled[order] = label[within]
        reached += _between(rest, shuffled) >= seen - 1e-12
    return seen, (1 + reached) / (1 + PERMUTATIONS)


def _rest(target: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Take each cell's means out of the target."""
    size = np.maximum(np.bincount(cell), 1)[:, None]
    means = np.stack([np.bincount(cell, column) for column in target.T], axis=1) / size
    return np.asarray(target - means[cell])


def _between(rest: np.ndarray, label: np.ndarray) -> float:
    """Return the share of the variance that lies between the means of the clusters."""
    n = np.maximum(np.bincount(label), 1)
    sums = np.stack([np.bincount(label, column) for column in rest.T], axis=1)
    return float((sums**2 / n[:, None]).sum() / (rest**2).sum())


def _across(clusters: list[Clusters], resamples: dict[str, ProblemResamples], make: Maker) -> list[dict[str, Any]]:
    """Return how far one family's clusters, laid over the other's failures, agree with its own."""
    rows = []
    for one in clusters:
        for other in clusters:
            if one is not other:
                laid, own = make(one.z).predict(other.z), other.label
                agree = adjusted_rand_score(own, laid)
                low, high = _over_problems(
                    resamples[other.family],
                    lambda i: adjusted_rand_score(own[i], laid[i]),  # noqa: B023 (called here)
                )
                measure = f"agreement with {one.family}'s"
                rows.append(_row(family=other.family, measure=measure, value=agree, low=low, high=high))
    return rows


def _curve_row(
    kind: str, k: int, family: str, rand: np.ndarray, jaccard: np.ndarray, *, chosen: bool
) -> dict[str, Any]:
    low, high = interval(rand, RESAMPLES)
    least = float(jaccard.mean(axis=0).min())
    return _row(
        family=family,
        measure="stability",
        kind=kind,
        k=k,
        value=float(rand.mean()),
        low=low,
        high=high,
        least_jaccard=least,
        chosen=chosen,
    )


def _row(**values: Any) -> dict[str, Any]:
    return {name: round(v, 5) if isinstance(v, float) else v for name, v in values.items()}
