"""What a budget of model-tokens solves: retry, the portfolio's plans, and the best mix of hindsight."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from salvage.evaluation.groups import ALL, groups
from salvage.evaluation.sheet import Data, Sheet, splits
from salvage.method.profiles import Tallies
from salvage.policies.fitted import Fitted
from salvage.policies.portfolio import Portfolio, all_fail, in_retries, mix_fails, mixes, own_mix_fails
from salvage.tables.vocabulary import OPERATORS

BUDGETS = tuple(range(2, 17))  # in retries' worth of model-tokens
HINDSIGHT = "best mix (hindsight)"
PRICES = (0.01, 0.02, 0.05, 0.1)  # stop where another retry's worth of tokens rescues with a smaller chance
STOPPING = "portfolio, stopping at "


def score_budgets(sheet: Sheet, data: Data, whole: Tallies, policies: Sequence[str]) -> None:
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
        list(threads.map(learn_and_plan, splits(data, data.fold[0], transfer)))
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
