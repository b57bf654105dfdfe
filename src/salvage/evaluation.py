"""What a policy rescues, honestly: two protocols side by side, baselines, intervals (method.md, "An honest protocol").

Everything is arrays over failures. A protocol is a list of views; a view chooses on one tally of attempts and scores on
another (the same one in the paper's protocol, the other half of the attempts in the cross-fitted one). A policy turns a
view into weights over operators, fitted on the problems of other folds. Weights times scores are what it rescues; the
rest, bootstrap and permutation, sees only those values.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from salvage import schema
from salvage.errors import SalvageError
from salvage.portfolio import Portfolio, all_fail, in_retries, mix_fails, mixes, own_mix_fails
from salvage.profiles import STEERABLE_HARD, Tallies, from_rates, made_by, problem_folds, regimes_of, slots, tally
from salvage.resampling import bootstrap, interval, p_values, shuffled_sums
from salvage.routing import POLICIES, Fitted, Rule, choose, codes

OPERATORS = schema.OPERATORS
INTERVENE = slice(1, 5)  # the interventions among OPERATORS
BASELINES = [*OPERATORS, "random", "best fixed", "best per cell", "oracle", "rule"]
DEFAULT = ("calibrated", "portfolio")  # beside the baselines
ALL = "all"  # as a scope: every failure; as a cell: all of them together
SCOPES = [STEERABLE_HARD, ALL]
KS = (1, 2, 4, 8)
BUDGETS = tuple(range(2, 17))  # in retries' worth of model-tokens
HINDSIGHT = "best mix (hindsight)"
PRICES = (0.01, 0.02, 0.05, 0.1)  # stop where another retry's worth of tokens rescues with a smaller chance
STOPPING = "portfolio, stopping at "
PAPER_ALONE = (
    "profiles alone allow only the paper's protocol, whose steerable-hard subset is chosen by the rates that it is "
    "scored on; the cross-fitted protocol, success within k attempts, model-tokens, the null line and the portfolio "
    "need the attempts too"
)
NAMED = re.compile(r"(\w+)-(\w+)-\d+\|.*")  # family-method-seed|task
WORLDS = 200  # redrawn for the null line


@dataclass(frozen=True)
class View:
    """Tallies to choose on and tallies to score on."""

    chooses: Tallies
    scores: Tallies

    def mask(self, scope: str) -> np.ndarray:
        """Return which failures a scope holds, as told by the choosing rates."""
        rates = self.chooses.rates
        if scope == ALL:
            return np.ones(len(rates), bool)
        return np.asarray(regimes_of(rates[:, 0], rates[:, INTERVENE]) == STEERABLE_HARD)


@dataclass(frozen=True)
class Data:
    """What is evaluated: failures, the cell of each by number, and how policies are fitted on them."""

    failures: pd.DataFrame
    names: np.ndarray  # of the cells
    cell: np.ndarray  # [failures]
    fold: list[np.ndarray]  # one [failures] a repeat
    seed: int
    trials: int

    kept: dict[tuple[str, bool], list[np.ndarray]] = field(default_factory=dict)  # weights that two protocols share

    @property
    def family(self) -> np.ndarray:
        """Return each failure's family, [failures], as cells called family-method-seed|task tell it; else none."""
        return family_of(self.names)[self.cell]


@dataclass
class Sheet:
    """Columns of what every failure contributes: values and tokens already times weight, summed over views."""

    meta: list[dict[str, Any]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)  # [failures] each
    tokens: list[np.ndarray | None] = field(default_factory=list)
    weights: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)  # (protocol, scope) to [failures]
    p_values: dict[tuple[str, str, str, str], float] = field(default_factory=dict)  # and policy, cell

    def add(self, values: np.ndarray, tokens: np.ndarray | None, **meta: Any) -> None:
        """Add a column; `only` in meta says that it counts for cells alone, or for groups of them alone."""
        self.meta.append({"k": None, "budget": None, "only": None, **meta})
        self.values.append(values)
        self.tokens.append(tokens)


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
        _score_budgets(sheet, data, whole, policies)
    return rows + _rows(sheet, data, resamples, seed)


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


def with_facts(failures: pd.DataFrame, facts: pd.DataFrame | None) -> pd.DataFrame:
    """Return the failures with the columns of their facts beside them, where there are any."""
    if facts is None:
        return failures
    both = failures.merge(facts, on=["cell", "problem_id"], how="left", validate="one_to_one")
    if both["failed_share"].isna().any():
        row = int(both["failed_share"].isna().argmax())
        raise SalvageError(
            f"facts: problem {both['problem_id'].iloc[row]!r} of cell {both['cell'].iloc[row]!r} has none; "
            "give the facts that were made with these profiles"
        )
    return both


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
    choices = schema.INTERVENTIONS if hard else OPERATORS
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
        for test, train in _splits(data, fold, transfer):
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


def _splits(data: Data, fold: np.ndarray, transfer: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """List masks of failures to score and to fit on: other problems, and for transfer other families too."""
    pairs = [(fold == k, fold != k) for k in np.unique(fold)]
    if not transfer:
        return pairs
    families = data.family
    return [(test & (families == f), train & (families != f)) for test, train in pairs for f in np.unique(families)]


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
    features = failures[schema.FEATURES].to_numpy(np.float64)
    chosen = np.full(len(features), OPERATORS.index("sparse_steer_random"))
    for g in np.unique(group):
        inside, reference = group == g, (group == g) & mask
        if reference.sum() < 2:
            continue
        rule = Rule.fit(pd.DataFrame(features[reference], columns=schema.FEATURES))
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


# ------------------------------------------------------------------ budgets


def _score_budgets(sheet: Sheet, data: Data, whole: Tallies, policies: Sequence[str]) -> None:
    """Add, for every budget, what retry, the portfolio and the best mix of hindsight rescue, and what they spend."""
    assert whole.tokens is not None
    most = whole.tried.min(axis=0).astype(int)
    budgets = [b for b in BUDGETS if b <= most[0]]
    chance = all_fail(whole, int(most.max()))
    only_retry = {b: np.zeros((len(data.cell), b), int) for b in budgets}  # the order of attempts, by operator
    for protocol in dict.fromkeys(protocol for protocol, _ in sheet.weights if protocol != "paper"):
        ordered = {"retry": only_retry}
        if "portfolio" in policies and budgets:
            ordered |= _plans(data, whole, budgets, protocol == "transfer")
        weight = sheet.weights[protocol, ALL]
        for policy, orders in ordered.items():
            for budget, order in orders.items():
                rescued, tokens = _followed(chance, whole.tokens, order)
                where = {"protocol": protocol, "scope": ALL, "budget": budget}
                sheet.add(rescued * weight, tokens * weight, **where, policy=policy)
    for budget in budgets:
        fails = mix_fails(chance, mixes(in_retries(whole.tokens), budget, most))
        where = {"protocol": "cross-fitted", "scope": ALL, "budget": budget, "policy": HINDSIGHT}
        weight = sheet.weights["cross-fitted", ALL]
        own = np.empty(len(data.cell))
        for c in range(len(data.names)):
            inside = data.cell == c
            own[inside] = 1 - fails[inside][:, fails[inside].mean(axis=0).argmin()]
        sheet.add(own * weight, None, **where, only="cells")
        for name, cells in groups(data.names).items():
            inside = np.isin(data.cell, cells)
            best = 1 - fails[:, fails[inside].mean(axis=0).argmin()].astype(np.float64)
            sheet.add(best * weight, None, **where, only=f"={name}")


def _plans(data: Data, whole: Tallies, budgets: list[int], transfer: bool) -> dict[str, dict[int, np.ndarray]]:
    """Return the portfolio's attempts in order, [failures, attempts] a budget, fitted on other folds' problems.

    Beside the portfolio itself, at the largest budget, one for each price below which it stops.
    """
    most = budgets[-1]
    plans = {budget: np.full((len(data.cell), budget), -1) for budget in budgets}
    stopped = {price: np.full((len(data.cell), most), -1) for price in PRICES}

    def learn_and_plan(split: tuple[np.ndarray, np.ndarray]) -> None:
        test, train = split
        if train.sum() < 2 or not test.any():
            return
        fitted = Fitted.fit("portfolio", data.failures[train], whole.take(train), OPERATORS, seed=data.seed)
        held = data.failures[test]
        fitted.refuse_seen(held)
        assert isinstance(fitted.policy, Portfolio)
        near = fitted.policy.neighbours(held)
        for budget in budgets:
            counts = fitted.policy.plan(near, budget)
            order = fitted.policy.order(near, counts)
            plans[budget][test, : order.shape[1]] = order
        for price, at_price in stopped.items():
            order = replace(fitted.policy, price=price).order(near, counts)
            at_price[test, : order.shape[1]] = order

    # each split fills rows of its own; trees and sparse products let other threads run
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(learn_and_plan, _splits(data, data.fold[0], transfer)))
    return {"portfolio": plans, **{f"{STOPPING}{price:g}": {most: order} for price, order in stopped.items()}}


def _followed(chance: np.ndarray, tokens: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow an order of attempts [failures, attempts] up to the first success.

    Returns
    -------
    rescued, spent : array, [failures]
        The chance of a success, and the model-tokens expected to be spent; both without bias.
    """
    at, counts = np.arange(len(order)), np.zeros((len(order), 5), int)
    resisted, spent = np.ones(len(order)), np.zeros(len(order))
    for step in range(order.shape[1]):
        going = order[:, step] >= 0
        spent += np.where(going, resisted * tokens[at, order[:, step]], 0)
        counts[at[going], order[going, step]] += 1
        resisted = own_mix_fails(chance, counts)
    return 1 - resisted, spent


# ------------------------------------------------------------------ rows


def family_of(cells: np.ndarray) -> np.ndarray:
    """Return each cell's family, [n], where it is called family-method-seed|task; else an empty name."""
    names, index = np.unique(np.asarray(cells, str), return_inverse=True)
    told = [NAMED.fullmatch(name) for name in names]
    return np.array([match[1] if match else "" for match in told])[index]


def groups(names: np.ndarray) -> dict[str, list[int]]:
    """Return groups of cells by name: `all`, and each family and method of cells called family-method-seed|task."""
    found: dict[str, list[int]] = {ALL: list(range(len(names)))}
    for i, name in enumerate(names):
        parts = NAMED.fullmatch(str(name))
        if parts:
            found.setdefault(f"{parts[1]}-*", []).append(i)
            found.setdefault(f"*-{parts[2]}-*", []).append(i)
    return {name: cells for name, cells in found.items() if name == ALL or 1 < len(cells) < len(names)}


def _rows(sheet: Sheet, data: Data, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of every cell and group, with intervals from one set of resamples."""
    wheres = list(sheet.weights)
    table = np.column_stack([*sheet.values, *sheet.weights.values()])
    together = groups(data.names)
    gathered = {name: np.zeros((resamples, table.shape[1])) for name in together}
    rows: list[dict[str, Any]] = []
    for c, sums in enumerate(bootstrap(table, data.cell, resamples, seed)):
        for name, cells in together.items():
            if c in cells:
                gathered[name] += sums
        rows += _group_rows(sheet, wheres, str(data.names[c]), data.cell == c, sums, "cells")
    for name, cells in together.items():
        rows += _group_rows(sheet, wheres, name, np.isin(data.cell, cells), gathered[name], "groups")
    return rows


def _group_rows(
    sheet: Sheet, wheres: list[tuple[str, str]], name: str, inside: np.ndarray, sums: np.ndarray, kind: str
) -> list[dict[str, Any]]:
    shown = [i for i, meta in enumerate(sheet.meta) if meta["only"] in (None, kind, f"={name}")]
    reference = {_against(sheet.meta[i], sheet.meta[i]["policy"]): i for i in shown}
    rows = []
    for i in shown:
        meta = sheet.meta[i]
        where = (meta["protocol"], meta["scope"])
        weight, drawn = sheet.weights[where][inside], sums[:, len(sheet.values) + wheres.index(where)]
        n = int((weight > 0).sum())
        row: dict[str, Any] = {"cell": name, "scope": where[1], "protocol": where[0]}
        row |= {key: meta[key] for key in ("policy", "k", "budget")} | {"n": n}
        some = drawn > 0
        for label, base in (("", None), ("over_retry", "retry"), ("over_best_fixed", "best fixed")):
            other = None if base is None else reference.get(_against(meta, base))
            known = n > 0 and (base is None or (other is not None and other != i))
            keys = (label or "rescue", f"{label}_low".lstrip("_"), f"{label}_high".lstrip("_"))
            row |= dict.fromkeys(keys)
            if known:
                column, own = sums[:, i], sheet.values[i][inside].sum()
                if other is not None:
                    column, own = column - sums[:, other], own - sheet.values[other][inside].sum()
                bounds = interval(column[some] / drawn[some], n)
                row |= dict(zip(keys, (float(own / weight.sum()), *bounds), strict=True))
        tokens = sheet.tokens[i]
        spent = None if tokens is None or not n else float(tokens[inside].sum())
        row["tokens"] = None if spent is None else spent / float(weight.sum())
        row["per_1000"] = None if not spent else float(1000 * sheet.values[i][inside].sum() / spent)
        p = sheet.p_values.get((where[0], where[1], meta["policy"], name)) if n and meta["k"] == 1 else None
        rows.append({**row, "p_value": p})
    return rows


def _against(meta: dict[str, Any], policy: str) -> tuple[Any, ...]:
    return (meta["protocol"], meta["scope"], meta["k"], meta["budget"], policy)


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
    places = [*range(len(names)), None]
    seen = np.full((WORLDS, len(places), 4), np.nan)
    for world in range(WORLDS):
        rates = rng.binomial(tried.astype(int), np.broadcast_to(truth, tried.shape)) / tried
        redrawn = Tallies(rates, np.ones_like(rates))
        hard = View(redrawn, redrawn).mask(STEERABLE_HARD)
        best = rates[:, INTERVENE].max(1)
        shown = np.stack([rates[:, 0], rates[:, INTERVENE].mean(1), best], axis=1)
        for g, which in enumerate(places):
            inside = hard if which is None else hard & (cell == which)
            seen[world, g, 0] = inside.sum()
            if inside.any():
                seen[world, g, 1:] = shown[inside].mean(0)
    rows = []
    for g, which in enumerate(places):
        n = round(float(seen[:, g, 0].mean()))
        for i, policy in enumerate(("retry", "random", "oracle"), start=1):
            got = seen[:, g, i][~np.isnan(seen[:, g, i])]
            low, high = np.percentile(got, [2.5, 97.5]) if len(got) else (None, None)
            name = ALL if which is None else str(names[which])
            row: dict[str, Any] = {"cell": name, "scope": STEERABLE_HARD, "protocol": "paper"}
            row |= {"policy": f"null: {policy}", "k": 1, "budget": None, "n": n}
            row |= {"rescue": float(got.mean()) if len(got) else None}
            row |= {"low": None if low is None else float(low), "high": None if high is None else float(high)}
            row |= dict.fromkeys(f"{base}{end}" for base in ("over_retry", "over_best_fixed") for end in ("", *_ENDS))
            rows.append({**row, "tokens": None, "per_1000": None, "p_value": None})
    return rows


_ENDS = ("_low", "_high")
