"""What a policy rescues, honestly: two protocols side by side, baselines, intervals (method.md, "An honest protocol").

Everything is arrays over failures. A protocol is a list of views; a view chooses on one table of rates and scores on
another (the same one in the paper's protocol, the other half of the attempts in the cross-fitted one). A policy turns
a view into the rate that each failure gets. The rest, bootstrap and permutation, sees only those values.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from salvage import schema
from salvage.errors import SalvageError
from salvage.profiles import STEERABLE_HARD, regimes_of
from salvage.routing import Rule, choose

OPERATORS = schema.OPERATORS
INTERVENE = slice(1, 5)  # the interventions among OPERATORS
POLICIES = [*OPERATORS, "random", "best fixed", "best per cell", "oracle", "rule"]
ALL = "all"  # as a scope: every failure; as a cell: all of them together
SCOPES = [STEERABLE_HARD, ALL]
PAPER_ALONE = (
    "profiles alone allow only the paper's protocol, whose steerable-hard subset is chosen by the rates that it is "
    "scored on; give the attempts too for the cross-fitted protocol and the null line"
)
FOLDS = 5
WORLDS = 200  # redrawn for the null line


@dataclass(frozen=True)
class View:
    """Rates to choose on and rates to score on, [failures, operators] each."""

    chooses: np.ndarray
    scores: np.ndarray

    def mask(self, scope: str) -> np.ndarray:
        """Return which failures a scope holds, as told by the choosing rates."""
        if scope == ALL:
            return np.ones(len(self.chooses), bool)
        return np.asarray(regimes_of(self.chooses[:, 0], self.chooses[:, INTERVENE]) == STEERABLE_HARD)


def evaluate(
    profiles: pd.DataFrame,
    attempts: pd.DataFrame | None = None,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    permutations: int = 2_000,
    anchor: str = "online",
    continuation: str = "temperature",
) -> list[dict[str, Any]]:
    """Score every policy in every cell and over all, under both protocols.

    Parameters
    ----------
    profiles : DataFrame
        schema.PROFILES.
    attempts : DataFrame, optional
        schema.ATTEMPTS; those of this anchor and continuation count. Without them only the paper's protocol is
        possible, and there is no null line: a warning says so.
    resamples, permutations : int
        Of the stratified bootstrap over problems, and of the features among a cell's failures.

    Returns
    -------
    list of dict
        Keys cell (a name or `all`), scope, protocol, policy, k (1), n (failures in scope), rescue, low, high (None
        where n is 0), p_value (the rule's only). Policies whose name begins with `null:` are the null line: what
        would be seen if every operator were only retry.

    Raises
    ------
    SalvageError
        Where profiles are none, not as schema.PROFILES says, or lack the attempts to cross-fit them.

    References
    ----------
    method.md, "An honest protocol (ours)".
    """
    profiles = _admit(profiles)
    names, cell = np.unique(profiles["cell"].to_numpy(str), return_inverse=True)
    rates = profiles[OPERATORS].to_numpy(np.float64)
    protocols = {"paper": [View(rates, rates)]}
    rows = []
    if attempts is None:
        warnings.warn(PAPER_ALONE, stacklevel=2)
    else:
        chosen = attempts[(attempts["anchor"] == anchor) & (attempts["continuation"] == continuation)]
        if chosen.empty:
            raise SalvageError(f"attempts: none has anchor {anchor!r} with continuation {continuation!r}; make some")
        # never [seed, 0]: numpy gives that the stream of `seed` alone, which may have drawn the attempts themselves
        correct, tried = halves(profiles, chosen, np.random.default_rng([seed, 5]))
        one, two = (correct[h] / tried[h] for h in (0, 1))
        protocols["cross-fitted"] = [View(one, two), View(two, one)]
        rows += null_line(correct.sum(0), tried.sum(0), cell, names, np.random.default_rng([seed, 1]))
    features = profiles[schema.FEATURES].to_numpy(np.float64)
    scored = []
    for protocol, views in protocols.items():
        for scope in SCOPES:
            own = score(views, scope, features, cell, cell, np.random.default_rng([seed, 2]))
            pooled = score(views, scope, features, cell, np.zeros_like(cell), np.random.default_rng([seed, 2]))
            scored.append(({"scope": scope, "protocol": protocol}, own, pooled))
    # one set of resamples for all: drawing them is the whole cost
    tables = [np.hstack([own.values, pooled.values[:, -1:], own.weight[:, None]]) for _, own, pooled in scored]
    resampled = np.split(bootstrap(np.hstack(tables), cell, resamples, seed), len(tables), axis=2)
    for (where, own, pooled), sums in zip(scored, resampled, strict=True):
        p_own = p_values(rule_sums(own, cell), shuffled_sums(own, cell, permutations, [seed, 3]))
        shuffled = shuffled_sums(pooled, cell, permutations, [seed, 3]).sum(0)
        p_pooled = float(p_values(rule_sums(pooled, cell).sum(0), shuffled))
        for i, name in enumerate(names):
            rows += [{"cell": str(name), **where, **row} for row in _rows(own, sums, cell, i, float(p_own[i]))]
        rows += [{"cell": ALL, **where, **row} for row in _rows(pooled, sums, cell, None, p_pooled)]
    return rows


def _admit(profiles: pd.DataFrame) -> pd.DataFrame:
    profiles = schema.check(profiles, schema.PROFILES, "profiles")
    if profiles.empty:
        raise SalvageError("there are no failures to evaluate; give at least one profile")
    if (profiles["cell"] == ALL).any():
        raise SalvageError(f"profiles: a cell is called {ALL!r}, which means all cells together; rename it")
    return profiles


# ------------------------------------------------------------------ attempts in halves


def halves(profiles: pd.DataFrame, attempts: pd.DataFrame, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Split each failure's attempts under each operator into two halves at random.

    Returns
    -------
    correct, tried : array of float, [2, failures, operators]

    Raises
    ------
    SalvageError
        Where a failure has fewer than two attempts under an operator.
    """
    n, m = len(profiles), len(OPERATORS)
    index = pd.MultiIndex.from_frame(profiles[["cell", "problem_id"]].astype(str))
    rows = attempts[attempts["operator"].isin(OPERATORS)]
    failure = index.get_indexer(pd.MultiIndex.from_frame(rows[["cell", "problem_id"]].astype(str)))
    operator = pd.Categorical(rows["operator"], categories=OPERATORS).codes
    known = failure >= 0
    group = (failure * m + operator)[known]
    order = np.lexsort((rng.random(len(group)), group))
    group, correct = group[order], rows["correct"].to_numpy(np.float64)[known][order]
    starts = np.searchsorted(group, group)  # where each row's group begins
    # groups of odd size give their extra attempt to either half in turn
    half = (np.arange(len(group)) - starts + group) % 2
    slot = half * n * m + group
    tried = np.bincount(slot, minlength=2 * n * m).reshape(2, n, m).astype(np.float64)
    if (tried == 0).any():
        _, i, o = np.argwhere(tried == 0)[0]
        raise SalvageError(
            f"attempts: problem {profiles['problem_id'].iloc[i]!r} of cell {profiles['cell'].iloc[i]!r} has fewer than "
            f"two under {OPERATORS[o]!r}; cross-fitting needs two or more: raise the number of attempts"
        )
    return np.bincount(slot, correct, minlength=2 * n * m).reshape(2, n, m), tried


# ------------------------------------------------------------------ policies


@dataclass(frozen=True)
class Scored:
    """What every failure contributes: values [failures, policies] already times weight, summed over views."""

    values: np.ndarray
    weight: np.ndarray  # [failures]: in how many views it is in scope
    choices: list[np.ndarray]  # the rule's operator, one array a view
    views: list[View]
    masks: list[np.ndarray]


def score(
    views: list[View], scope: str, features: np.ndarray, cell: np.ndarray, group: np.ndarray, rng: np.random.Generator
) -> Scored:
    """Score every policy on every view; `group` says over which failures the rule's z-scores are taken."""
    fold = folds(cell, rng)
    values, weight = np.zeros((len(cell), len(POLICIES))), np.zeros(len(cell))
    masks = [view.mask(scope) for view in views]
    choices = [rule_choices(features, mask, group) for mask in masks]
    for view, mask, choice in zip(views, masks, choices, strict=True):
        everyone = np.zeros_like(cell)
        picked = {
            "best fixed": best_on_other_folds(view.chooses, mask, everyone, fold),
            "best per cell": best_on_other_folds(view.chooses, mask, cell, fold),
            "oracle": 1 + view.chooses[:, INTERVENE].argmax(1),
            "rule": choice,
        }
        at = np.arange(len(cell))
        columns = [view.scores, view.scores[:, INTERVENE].mean(1, keepdims=True)]
        columns += [view.scores[at, picked[name]][:, None] for name in POLICIES[6:]]
        values += np.hstack(columns) * mask[:, None]
        weight += mask
    return Scored(values, weight, choices, views, masks)


def rule_choices(features: np.ndarray, mask: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the rule's operator (index) for each failure, z-scored over its group's failures in scope.

    A group of one has no z-scores: the rule then falls back, as it does wherever no feature stands out.
    """
    chosen = np.full(len(features), OPERATORS.index("sparse_steer_random"))
    codes = {name: i for i, name in enumerate(OPERATORS)}
    for g in np.unique(group):
        inside, reference = group == g, (group == g) & mask
        if reference.sum() < 2:
            continue
        rule = Rule.fit(pd.DataFrame(features[reference], columns=schema.FEATURES))
        routed = choose(rule.z(features[inside]), fallback=True)
        chosen[inside] = [codes[name] for name in routed]
    return chosen


def folds(cell: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deal each cell's failures into FOLDS folds at random: [failures]."""
    order = np.lexsort((rng.random(len(cell)), cell))
    fold = np.empty(len(cell), int)
    fold[order] = np.arange(len(cell)) % FOLDS
    return fold


def best_on_other_folds(rates: np.ndarray, mask: np.ndarray, group: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the best intervention (index) of each failure's group, chosen on the failures of other folds."""
    groups = int(group.max()) + 1
    slot = group * FOLDS + fold
    sums = np.stack(
        [np.bincount(slot, rates[:, o] * mask, minlength=groups * FOLDS) for o in range(1, 5)], axis=-1
    ).reshape(groups, FOLDS, 4)
    others = sums.sum(axis=1, keepdims=True) - sums  # the same failures for each operator: sums rank as means do
    return 1 + others.argmax(-1)[group, fold]  # type: ignore[no-any-return]


# ------------------------------------------------------------------ intervals and p-values


def bootstrap(table: np.ndarray, cell: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Resample failures within each cell and return the columns' sums: [resamples, cells, columns].

    In chunks, so that memory stays bounded: a chunk of counts [chunk, failures of a cell] times table.
    """
    sums = np.empty((resamples, int(cell.max()) + 1, table.shape[1]))
    for c in range(sums.shape[1]):
        rows = table[cell == c]
        n, rng = len(rows), np.random.default_rng([seed, 4, c])
        chunk = max(1, 4_000_000 // n)
        for start in range(0, resamples, chunk):
            size = min(chunk, resamples - start)
            drawn = rng.integers(n, size=(size, n)) + (np.arange(size) * n)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
            sums[start : start + size, c] = counts.astype(np.float64) @ rows
    return sums


def rule_sums(scored: Scored, cell: np.ndarray) -> np.ndarray:
    """Return what the rule gathers in each cell, summed over failures and views: [cells]."""
    return np.bincount(cell, scored.values[:, POLICIES.index("rule")])


def shuffled_sums(scored: Scored, cell: np.ndarray, permutations: int, seed: list[int]) -> np.ndarray:
    """Return what the rule gathers in each cell with its features shuffled among the failures: [cells, permutations].

    Shuffled within a cell, among the failures that are in scope in some view, the same way in every view; so what
    the features tell about the cell counts for nothing, only what they tell about the failure.
    """
    rng = np.random.default_rng(seed)
    sums = np.zeros((int(cell.max()) + 1, permutations))
    for c in range(len(sums)):
        rows = np.flatnonzero((cell == c) & (scored.weight > 0))
        at = np.arange(len(rows))
        chunk = max(1, 2_000_000 // max(1, len(rows)))
        for start in range(0, permutations, chunk):
            part = sums[c, start : start + chunk]
            order = rng.permuted(np.tile(at, (len(part), 1)), axis=1)
            for view, mask, choice in zip(scored.views, scored.masks, scored.choices, strict=True):
                part += view.scores[rows][at, choice[rows][order]] @ mask[rows].astype(np.float64)
    return sums


def p_values(seen: np.ndarray, shuffled: np.ndarray) -> np.ndarray:
    """Return one-sided p-values [...]: how often shuffled [..., permutations] is at least what was seen [...]."""
    reached = (shuffled >= np.asarray(seen)[..., None] - 1e-9).sum(-1)
    return np.asarray((1 + reached) / (1 + shuffled.shape[-1]))


def _rows(
    scored: Scored, sums: np.ndarray, cell: np.ndarray, which: int | None, p_value: float
) -> list[dict[str, Any]]:
    inside = np.ones(len(cell), bool) if which is None else cell == which
    part = sums.sum(axis=1) if which is None else sums[:, which]
    total = scored.weight[inside].sum()
    n = int((scored.weight[inside] > 0).sum())
    rows = []
    for i, policy in enumerate(POLICIES):
        row: dict[str, Any] = {"policy": policy, "k": 1, "n": n, "rescue": None, "low": None, "high": None}
        if n:
            # over all cells the rule's reference is the pooled population, whose column stands apart
            column = part[:, len(POLICIES) if which is None and policy == "rule" else i]
            weight = part[:, -1]
            low, high = np.percentile(column[weight > 0] / weight[weight > 0], [2.5, 97.5])
            rescue = scored.values[inside, i].sum() / total
            row |= {"rescue": float(rescue), "low": float(low), "high": float(high)}
        rows.append({**row, "p_value": p_value if policy == "rule" and n else None})
    return rows


# ------------------------------------------------------------------ the null line


def null_line(
    correct: np.ndarray, tried: np.ndarray, cell: np.ndarray, names: np.ndarray, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Redraw all attempts from each failure's retry rate and do as the paper's protocol does.

    Parameters
    ----------
    correct, tried : array, [failures, operators]

    Returns
    -------
    list of dict
        For each cell and over all: the rescue that retry, a random operator and the oracle would show on the failures
        called steerable-hard, and as `n` how many would be called so (the mean over the worlds).
    """
    truth = correct[:, :1] / tried[:, :1]
    groups = [*range(len(names)), None]
    seen = np.full((WORLDS, len(groups), 4), np.nan)
    for world in range(WORLDS):
        rates = rng.binomial(tried.astype(int), np.broadcast_to(truth, tried.shape)) / tried
        hard = View(rates, rates).mask(STEERABLE_HARD)
        best = rates[:, INTERVENE].max(1)
        shown = np.stack([rates[:, 0], rates[:, INTERVENE].mean(1), best], axis=1)
        for g, which in enumerate(groups):
            inside = hard if which is None else hard & (cell == which)
            seen[world, g, 0] = inside.sum()
            if inside.any():
                seen[world, g, 1:] = shown[inside].mean(0)
    rows = []
    for g, which in enumerate(groups):
        n = round(float(seen[:, g, 0].mean()))
        for i, policy in enumerate(("retry", "random", "oracle"), start=1):
            got = seen[:, g, i][~np.isnan(seen[:, g, i])]
            low, high = np.percentile(got, [2.5, 97.5]) if len(got) else (None, None)
            rows.append(
                {
                    "cell": ALL if which is None else str(names[which]),
                    "scope": STEERABLE_HARD,
                    "protocol": "paper",
                    "policy": f"null: {policy}",
                    "k": 1,
                    "n": n,
                    "rescue": float(got.mean()) if len(got) else None,
                    "low": None if low is None else float(low),
                    "high": None if high is None else float(high),
                    "p_value": None,
                }
            )
    return rows
