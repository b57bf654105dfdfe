"""What a policy rescues, honestly: two protocols side by side, baselines, intervals (method.md, "An honest protocol").

Everything is arrays over failures. A protocol is a list of views; a view chooses on one tally of attempts and scores on
another (the same one in the paper's protocol, the other half of the attempts in the cross-fitted one). A policy turns a
view into weights over operators, fitted on the problems of other folds. Weights times scores are what it rescues; the
rest, bootstrap and permutation, sees only those values.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.evaluation.budgets import score_budgets
from salvage.evaluation.groups import ALL, groups
from salvage.evaluation.null import null_line
from salvage.evaluation.resampling import p_values, shuffled_sums
from salvage.evaluation.rows import make_rows
from salvage.evaluation.sheet import INTERVENE, SCOPES, Data, Sheet, View, splits
from salvage.method.facts import with_facts
from salvage.method.profiles import (
    STEERABLE_HARD,
    Tallies,
    from_rates,
    made_by,
    problem_folds,
    slots,
    tally,
)
from salvage.policies.fitted import POLICIES, Fitted
from salvage.policies.policy import codes
from salvage.policies.portfolio import all_fail
from salvage.policies.rule import Rule, choose
from salvage.tables import schema, vocabulary
from salvage.tables.vocabulary import OPERATORS

BASELINES = [*OPERATORS, "random", "best fixed", "best per cell", "oracle", "rule"]
DEFAULT = ("calibrated", "portfolio")  # beside the baselines
KS = (1, 2, 4, 8)
PAPER_ALONE = (
    "profiles alone allow only the paper's protocol, whose steerable-hard subset is chosen by the rates that it is "
    "scored on; the cross-fitted protocol, success within k attempts, model-tokens, the null line and the portfolio "
    "need the attempts too"
)


def evaluate(
    profiles: pd.DataFrame,
    attempts: pd.DataFrame | None = None,
    *,
    facts: pd.DataFrame | None = None,
    policies: Sequence[str] = DEFAULT,
    folds: int = 5,
    repeats: int = 1,
    trials: int = 0,
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
        possible: a warning says what is missing.
    facts : DataFrame, optional
        schema.FACT_ROWS, for the policies that use them.
    policies : sequence of str
        Fitted policies to add to the baselines: calibrated, learned, portfolio. `calibrated:20` is fitted on outcomes
        of 20 failures a cell.
    folds, repeats : int
        Policies are fitted on the problems of the other folds; with repeats the folds are dealt again and averaged.
    trials : int
        Of Optuna, inside each fold, for `learned`.
    resamples, permutations : int
        Of the stratified bootstrap over problems, and of a policy's choices among a cell's failures.

    Returns
    -------
    list of dict
        Keys: cell (a name, `all`, or as `*-sft-*` a group of cells); scope; protocol (paper, cross-fitted, or transfer:
        fitted on the other families); policy; k (attempts), or budget (in retries' worth of model-tokens); n (failures
        in scope); rescue, low, high (None where n is 0); p_value; over_retry and over_best_fixed, each with _low and
        _high (paired); tokens (mean model-tokens spent on a failure) and per_1000 (rescues for 1,000 of them). Policies
        whose name begins with `null:` are the null line: what would be seen if every operator were only retry.

    Raises
    ------
    SalvageError
        Where profiles are none, not as schema.PROFILES says, or lack the attempts to cross-fit them.

    References
    ----------
    method.md, "An honest protocol (ours)".
    """
    data = _data(profiles, facts, folds, repeats, seed, trials)
    _refuse_unknown(policies)
    whole, protocols, rows = from_rates(data.failures), {}, []
    protocols["paper"] = [View(whole, whole)]
    if attempts is None:
        warnings.warn(PAPER_ALONE, stacklevel=2)
    else:
        chosen = made_by(attempts, anchor, continuation)
        if chosen.empty:
            raise SalvageError(f"attempts: none has anchor {anchor!r} with continuation {continuation!r}; make some")
        # never [seed, 0]: numpy gives that the stream of `seed` alone, which may have drawn the attempts themselves
        one, two = halves(data.failures, chosen, np.random.default_rng([seed, 5]))
        whole = _together([one, two])
        protocols = {"paper": [View(whole, whole)], "cross-fitted": [View(one, two), View(two, one)]}
        rows += null_line(whole.correct, whole.tried, data.cell, data.names, np.random.default_rng([seed, 1]))
    sheet = Sheet()
    for protocol, views in protocols.items():
        for scope in SCOPES:
            _score(sheet, data, protocol, views, scope, policies, permutations)
    if attempts is not None and len(np.unique(data.family)) > 1:
        for scope in SCOPES:
            _score(sheet, data, "transfer", protocols["cross-fitted"], scope, policies, permutations)
    if attempts is not None:
        score_budgets(sheet, data, whole, policies)
    return rows + make_rows(sheet, data, resamples, seed)


def _data(profiles: pd.DataFrame, facts: pd.DataFrame | None, folds: int, repeats: int, seed: int, trials: int) -> Data:
    failures = schema.check(profiles, schema.PROFILES, "profiles")
    if failures.empty:
        raise SalvageError("there are no failures to evaluate; give at least one profile")
    if (failures["cell"] == ALL).any():
        raise SalvageError(f"profiles: a cell is called {ALL!r}, which means all cells together; rename it")
    if folds < 2 or repeats < 1:
        raise SalvageError(f"{folds} folds and {repeats} repeats; give at least two folds and one repeat")
    failures = with_facts(failures, facts)
    names, cell = np.unique(failures["cell"].to_numpy(str), return_inverse=True)
    dealt = [problem_folds(failures, folds, np.random.default_rng([seed, 2, r])) for r in range(repeats)]
    return Data(failures, names, cell, dealt, seed, trials)


def _refuse_unknown(policies: Sequence[str]) -> None:
    for policy in policies:
        name, _, size = policy.partition(":")
        if name not in POLICIES or (size and not (name == "calibrated" and size.isdigit())):
            raise SalvageError(
                f"policy {policy!r} is not known; choose among {', '.join(POLICIES)}, or calibrated:N for a "
                "calibration on N failures a cell"
            )


# ------------------------------------------------------------------ attempts in halves


def halves(profiles: pd.DataFrame, attempts: pd.DataFrame, rng: np.random.Generator) -> list[Tallies]:
    """Split each failure's attempts under each operator into two halves at random, and tally each.

    Raises
    ------
    SalvageError
        Where a failure has fewer than two attempts under an operator.
    """
    slot, known = slots(profiles, attempts)
    group = slot[known]
    order = np.lexsort((rng.random(len(group)), group))
    ordered = group[order]
    starts = np.searchsorted(ordered, ordered)  # where each row's group begins
    half = np.empty(len(group), int)
    # groups of odd size give their extra attempt to either half in turn
    half[order] = (np.arange(len(group)) - starts + ordered) % 2
    part = np.zeros(len(attempts), int)
    part[known] = half
    made = tally(profiles, attempts, part, 2)
    tried = np.stack([one.tried for one in made])
    if (tried == 0).any():
        _, i, o = np.argwhere(tried == 0)[0]
        raise SalvageError(
            f"attempts: problem {profiles['problem_id'].iloc[i]!r} of cell {profiles['cell'].iloc[i]!r} has fewer than "
            f"two under {OPERATORS[o]!r}; cross-fitting needs two or more: raise the number of attempts"
        )
    return made


def _together(parts: list[Tallies]) -> Tallies:
    """Return the attempts of all parts as one tally."""
    if len(parts) == 1:
        return parts[0]
    one, two = parts
    correct, tried = one.correct + two.correct, one.tried + two.tried
    if one.tokens is None or two.tokens is None:
        return Tallies(correct, tried)
    return Tallies(correct, tried, (one.tokens * one.tried + two.tokens * two.tried) / tried)


# ------------------------------------------------------------------ policies


def _score(
    sheet: Sheet,
    data: Data,
    protocol: str,
    views: list[View],
    scope: str,
    policies: Sequence[str],
    permutations: int,
) -> None:
    """Add the columns of every policy in one scope under one protocol."""
    masks = [view.mask(scope) for view in views]
    weight = np.sum(masks, axis=0).astype(np.float64)
    sheet.weights[protocol, scope] = weight
    where = {"protocol": protocol, "scope": scope}
    ks = _ks(views)
    chances = [all_fail(view.scores, ks[-1]) for view in views]
    for policy, only, weights, p_cells in _weights(data, protocol, views, masks, scope, policies):
        for k in ks:
            values, tokens = _gathered(views, chances, masks, weights, k)
            sheet.add(values, tokens, **where, policy=policy, k=k, only=only)
        if p_cells:
            _add_p_values(sheet, data, where, policy, only, (views, masks, weights), permutations)


def _weights(
    data: Data, protocol: str, views: list[View], masks: list[np.ndarray], scope: str, policies: Sequence[str]
) -> list[tuple[str, str | None, list[np.ndarray], bool]]:
    """List policies: name, where it counts, weights over operators a view [failures, operators], whether it routes."""
    n, hard = len(data.cell), scope == STEERABLE_HARD
    choices = vocabulary.INTERVENTIONS if hard else OPERATORS
    listed: list[tuple[str, str | None, list[np.ndarray], bool]] = []
    transfer = protocol == "transfer"
    for o, name in enumerate(OPERATORS if not transfer else ["retry"]):
        listed.append((name, None, [np.tile(np.eye(5)[o], (n, 1))] * len(views), False))
    if not transfer:
        even = np.zeros(5)
        even[INTERVENE] = 0.25
        listed.append(("random", None, [np.tile(even, (n, 1))] * len(views), False))
        best = [view.chooses.rates[:, codes(choices)].argmax(axis=1) for view in views]
        listed.append(("oracle", None, [np.eye(5)[codes(choices)][b] for b in best], False))
        for only, group in (("cells", data.cell), ("groups", np.zeros_like(data.cell))):
            routed = [rule_choices(data.failures, mask, group) for mask in masks]
            listed.append(("rule", only, [np.eye(5)[r] for r in routed], True))
    fitted = ["best fixed", *([] if transfer else ["best per cell"]), *(p for p in policies if p not in _APART)]
    for policy in fitted:
        weights = _held_out_weights(data, policy, views, masks, scope, choices, transfer)
        listed.append((policy, None, weights, policy not in ("best fixed", "best per cell")))
    return listed


_APART = {"rule", "portfolio", "random", "fixed"}  # baselines already, or scored by budget


def _held_out_weights(
    data: Data,
    policy: str,
    views: list[View],
    masks: list[np.ndarray],
    scope: str,
    choices: list[str],
    transfer: bool,
) -> list[np.ndarray]:
    """Return a policy's weights over operators, one [failures, operators] a view, fitted on other folds' problems."""
    if scope == ALL and (policy, transfer) in data.kept:
        return data.kept[policy, transfer] * len(views)
    weights = np.zeros((len(data.cell), 5))
    for fold in data.fold:
        for test, train in splits(data, fold, transfer):
            # what is in scope by one half counts with what the other half gave: no curse in the training either
            rows = [np.flatnonzero(train & mask) for mask in masks]
            if scope == ALL:  # both halves together: every attempt once
                rows, scores = rows[:1], [_together([view.scores for view in views])]
            else:
                scores = [view.scores for view in views]
            index = np.concatenate(rows)
            at = np.flatnonzero(test)
            if len(index) < 2:  # nothing to learn from
                weights[at, OPERATORS.index("sparse_steer_random")] += 1
                continue
            parts = [tallies.take(r) for tallies, r in zip(scores, rows, strict=True)]
            fitted = fit(data, policy, data.failures.iloc[index], _stacked(parts), choices)
            weights[at, codes(held_out_route(fitted, data.failures.iloc[at]))] += 1
    weights /= len(data.fold)
    if scope == ALL:
        data.kept[policy, transfer] = [weights]
    return [weights] * len(views)


def fit(data: Data, policy: str, failures: pd.DataFrame, tallies: Tallies, choices: Sequence[str]) -> Fitted:
    """Fit a policy by the name that the table has for it."""
    name, _, size = policy.partition(":")
    settings: dict[str, Any] = {}
    if name in ("best fixed", "best per cell"):
        name, settings = "fixed", {"by_cell": policy == "best per cell"}
    elif name == "calibrated" and size:
        settings = {"outcomes": int(size)}
    elif name == "learned":
        settings = {"trials": data.trials, "seed": data.seed, "held_out": False}
    return Fitted.fit(name, failures, tallies, choices, **settings)


def held_out_route(fitted: Fitted, failures: pd.DataFrame) -> np.ndarray:
    """Return a policy's choices [n], refused where it was fitted on one of the problems."""
    fitted.refuse_seen(failures)
    return fitted.route(failures)


def _stacked(parts: list[Tallies]) -> Tallies:
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return Tallies(
        np.concatenate([part.correct for part in parts]),
        np.concatenate([part.tried for part in parts]),
        np.concatenate(tokens) if len(tokens) == len(parts) else None,
    )


def rule_choices(failures: pd.DataFrame, mask: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the rule's operator (index) for each failure, z-scored over its group's failures in scope.

    A group of one has no z-scores: the rule then falls back, as it does wherever no feature stands out.
    """
    features = failures[vocabulary.FEATURES].to_numpy(np.float64)
    chosen = np.full(len(features), OPERATORS.index("sparse_steer_random"))
    for g in np.unique(group):
        inside, reference = group == g, (group == g) & mask
        if reference.sum() < 2:
            continue
        rule = Rule.fit(pd.DataFrame(features[reference], columns=vocabulary.FEATURES))
        chosen[inside] = codes(choose(rule.z(features[inside]), fallback=True))
    return chosen


def _ks(views: list[View]) -> list[int]:
    if views[0].scores.tokens is None:
        return [1]
    most = min(view.scores.tried.min() for view in views)
    return [k for k in KS if k <= most]


def _gathered(
    views: list[View], chances: list[np.ndarray], masks: list[np.ndarray], weights: list[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return what k attempts under the chosen operator rescue, and the model-tokens they spend, summed over views."""
    values, tokens = np.zeros(len(masks[0])), np.zeros(len(masks[0]))
    for view, chance, mask, weight in zip(views, chances, masks, weights, strict=True):
        scores = view.scores
        if scores.tokens is None:
            return (scores.rates * weight).sum(axis=1) * mask, None
        values += ((1 - chance[..., k]) * weight).sum(axis=1) * mask
        tokens += (scores.tokens * chance[..., :k].sum(axis=-1) * weight).sum(axis=1) * mask
    return values, tokens


def _add_p_values(
    sheet: Sheet,
    data: Data,
    where: dict[str, str],
    policy: str,
    only: str | None,
    scored: tuple[list[View], list[np.ndarray], list[np.ndarray]],
    permutations: int,
) -> None:
    views, masks, weights = scored
    choice = [weight.argmax(axis=1) for weight in weights]
    scores = [view.scores.rates for view in views]
    at = np.arange(len(data.cell))
    own = sum(rates[at, c] * mask for c, rates, mask in zip(choice, scores, masks, strict=True))
    seen = np.bincount(data.cell, own, minlength=len(data.names))
    shuffled = shuffled_sums(choice, scores, masks, data.cell, permutations, [data.seed, 3])
    key = (where["protocol"], where["scope"], policy)
    if only != "groups":
        for name, p in zip(data.names, p_values(seen, shuffled), strict=True):
            sheet.p_values[*key, str(name)] = float(p)
    if only != "cells":
        for name, cells in groups(data.names).items():
            sheet.p_values[*key, name] = float(p_values(seen[cells].sum(), shuffled[cells].sum(axis=0)))
