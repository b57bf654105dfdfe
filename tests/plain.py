"""The evaluation written out in plain loops: what `evaluate` and `judge` must give (method.md, "An honest protocol").

It shares with the code the fitted policies of policies/ and the seeds of its random numbers, nothing else.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from itertools import product
from math import comb
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from salvage.method.profiles import Tallies
from salvage.policies.fitted import Fitted

OPERATORS = ["retry", "sparse_steer", "sparse_steer_random", "local_temp", "dense_steer"]
TIES = ["sparse_steer_random", "dense_steer", "sparse_steer", "local_temp", "retry"]  # the first of equals
POINTS_TO = ["dense_steer", "sparse_steer", "local_temp"]
FEATURES = ["spread", "concentration", "logit_dispersion"]
FIVE = range(5)


class Tally(NamedTuple):
    """Of each failure under each operator: right attempts, all attempts, mean model-tokens."""

    right: list[list[float]]
    tried: list[list[float]]
    tokens: list[list[float]]

    def rate(self, i: int, o: int) -> float:
        return self.right[i][o] / self.tried[i][o]

    def fails(self, i: int, o: int, k: int) -> float:
        """The chance that k of the attempts made, drawn without putting back, are all wrong."""
        wrong, tried = self.tried[i][o] - self.right[i][o], self.tried[i][o]
        return 1.0 if k == 0 else comb(round(wrong), k) / comb(round(tried), k)

    def of(self, rows: list[int]) -> Tally:
        return Tally(*[[part[i] for i in rows] if part else [] for part in self])

    def to_code(self) -> Tallies:
        return Tallies(np.array(self.right), np.array(self.tried), np.array(self.tokens) if self.tokens else None)


class Column(NamedTuple):
    """What each failure adds to a figure: its rescue and model-tokens, times its weight."""

    protocol: str
    scope: str
    policy: str
    k: int | None
    budget: int | None
    only: str | None  # `cells`, `groups`, or one group's name
    values: list[float]
    tokens: list[float] | None


class Plain:
    """One evaluation; `rows` are what it gives."""

    def __init__(
        self, profiles, attempts=None, *, facts=None, policies=(), folds=5, repeats=1, seed=0, resamples, permutations,
        trials=0,
    ):  # fmt: skip
        self.table = profiles if facts is None else profiles.merge(facts, on=["cell", "problem_id"])
        self.n, self.cell = len(profiles), list(profiles["cell"])
        self.names = sorted(set(self.cell))
        self.groups = grouped(self.names)
        self.problem = [f"{t}/{p}" for t, p in zip(profiles["task"], profiles["problem_id"], strict=True)]
        self.features = profiles[FEATURES].to_numpy().tolist()
        self.policies, self.seed, self.trials = policies, seed, trials
        self.resamples, self.permutations = resamples, permutations
        self.counted = attempts is not None
        self.dealt = [self.dealt_folds(folds, r) for r in range(repeats)]
        self.columns: list[Column] = []
        self.weights: dict[tuple[str, str], list[float]] = {}
        self.p_values: dict[tuple, float] = {}
        self.rows: list[dict[str, Any]] = []
        rates = Tally(profiles[OPERATORS].to_numpy().tolist(), [[1] * 5] * self.n, [[0] * 5] * self.n)
        if attempts is None:
            views = {"paper": [(rates, rates)]}
        else:
            one, two = in_halves(profiles, attempts, seed)
            self.whole = both(one, two)
            views = {"paper": [(self.whole, self.whole)], "cross-fitted": [(one, two), (two, one)]}
            self.rows += self.null_line()
            if len({family(name) for name in self.names}) > 1:
                views["transfer"] = views["cross-fitted"]
        for protocol, pairs in views.items():
            for scope in ("steerable-hard", "all"):
                self.add_scope(protocol, scope, pairs)
        if attempts is not None:
            self.add_budgets([protocol for protocol in views if protocol != "paper"])
        self.make_rows()

    def dealt_folds(self, folds: int, repeat: int) -> list[int]:
        keys = sorted(set(self.problem))
        order = np.random.default_rng([self.seed, 2, repeat]).permutation(len(keys))
        return [int(order[keys.index(key)]) % folds for key in self.problem]

    # -------------------------------------------------------------- attempts by policy

    def add_scope(self, protocol: str, scope: str, views: list[tuple[Tally, Tally]]) -> None:
        masks = [[scope == "all" or is_hard(chooses, i) for i in range(self.n)] for chooses, _ in views]
        self.weights[protocol, scope] = [float(sum(mask[i] for mask in masks)) for i in range(self.n)]
        least = min(min(row) for _, scores in views for row in scores.tried)
        ks = [k for k in (1, 2, 4, 8) if k <= least] if self.counted else [1]
        for policy, only, weights, routes in self.choosers(protocol, scope, views, masks):
            for k in ks:
                values, tokens = [0.0] * self.n, [0.0] * self.n
                for i, o in product(range(self.n), FIVE):
                    for (_, scores), mask, weight in zip(views, masks, weights, strict=True):
                        if mask[i]:
                            within = 1 - scores.fails(i, o, k) if self.counted else scores.rate(i, o)
                            values[i] += weight[i][o] * within
                            # the next attempt is made where all before it failed
                            made = sum(scores.fails(i, o, j) for j in range(k)) if self.counted else 0.0
                            tokens[i] += weight[i][o] * scores.tokens[i][o] * made
                spent = tokens if self.counted else None
                self.columns.append(Column(protocol, scope, policy, k, None, only, values, spent))
            if routes:
                self.add_p_values(protocol, scope, policy, only, views, masks, weights)

    def choosers(self, protocol, scope, views, masks):
        """List policy, where it counts, weights over operators [failure][operator] a view, whether it routes."""
        may = OPERATORS[1:] if scope == "steerable-hard" else OPERATORS
        listed = []
        for name in OPERATORS if protocol != "transfer" else ["retry"]:
            listed.append((name, None, [[one_hot(name)] * self.n] * len(views), False))
        if protocol != "transfer":
            listed.append(("random", None, [[[0, 0.25, 0.25, 0.25, 0.25]] * self.n] * len(views), False))
            oracle = [[one_hot(max(may, key=lambda o: v.rate(i, OPERATORS.index(o)))) for i in range(self.n)]
                      for v, _ in views]  # fmt: skip
            listed.append(("oracle", None, oracle, False))
            listed.append(("rule", "cells", [self.ruled(mask, self.cell) for mask in masks], True))
            listed.append(("rule", "groups", [self.ruled(mask, [""] * self.n) for mask in masks], True))
        names = ["best fixed"] if protocol == "transfer" else ["best fixed", "best per cell"]
        for policy in [*names, *(p for p in self.policies if p not in ("rule", "portfolio", "random", "fixed"))]:
            weights = self.held_out(policy, views, masks, scope, may, protocol == "transfer")
            listed.append((policy, None, [weights] * len(views), not policy.startswith("best ")))
        return listed

    def ruled(self, mask: list[bool], group: list[str]) -> list[list[float]]:
        chosen = []
        for i in range(self.n):
            alike = [self.features[j] for j in range(self.n) if mask[j] and group[j] == group[i]]
            z = [0.0, 0.0, 0.0]
            if len(alike) >= 2:
                z = [z_score(self.features[i][f], [x[f] for x in alike]) for f in range(3)]
            chosen.append(one_hot(POINTS_TO[z.index(max(z))] if max(z) > 0 else "sparse_steer_random"))
        return chosen

    def splits(self, fold: list[int], transfer: bool) -> list[tuple[list[int], list[int]]]:
        """List what is scored and what is learned from: other problems and, in transfer, other families."""
        families = [family(name) for name in self.cell]
        pairs = []
        for k in sorted(set(fold)):
            for f in sorted(set(families)) if transfer else [None]:
                test = [i for i in range(self.n) if fold[i] == k and f in (None, families[i])]
                train = [i for i in range(self.n) if fold[i] != k and families[i] != f]
                if test:
                    pairs.append((test, train))
        return pairs

    def held_out(self, policy, views, masks, scope, may, transfer) -> list[list[float]]:
        weights = [[0.0] * 5 for _ in range(self.n)]
        for fold in self.dealt:
            for test, train in self.splits(fold, transfer):
                # what one half calls steerable-hard is learned from with what the other half gave
                rows = [(i, scores) for (_, scores), mask in zip(views, masks, strict=True) for i in train if mask[i]]
                if scope == "all":
                    whole = self.whole if self.counted else views[0][1]
                    rows = [(i, whole) for i in train]
                names = self.fitted_choices(policy, rows, test, may) if len(rows) > 1 else ["sparse_steer_random"] * 99
                for i, name in zip(test, names, strict=False):
                    weights[i][OPERATORS.index(name)] += 1 / len(self.dealt)
        return weights

    def fitted_choices(self, policy: str, rows: list[tuple[int, Tally]], test: list[int], may: list[str]) -> list[str]:
        if policy.startswith("best "):
            chosen = []
            for i in test:
                own = [
                    (j, tally) for j, tally in rows if policy == "best fixed" or self.cell[j] == self.cell[i]
                ] or rows
                worth = {o: fmean(tally.rate(j, OPERATORS.index(o)) for j, tally in own) for o in may}
                chosen.append(max([o for o in TIES if o in may], key=lambda o: worth[o]))
            return chosen
        name, _, size = policy.partition(":")
        settings: dict[str, Any] = {"outcomes": int(size)} if size else {}
        if name == "learned":
            settings = {"trials": self.trials, "seed": self.seed, "held_out": False}
        tally = Tally(*[[getattr(tally, part)[i] for i, tally in rows] for part in Tally._fields])
        failures = self.table.iloc[[i for i, _ in rows]]
        return list(Fitted.fit(name, failures, tally.to_code(), may, **settings).route(self.table.iloc[test]))

    def add_p_values(self, protocol, scope, policy, only, views, masks, weights) -> None:
        rng = np.random.default_rng([self.seed, 3])
        seen: dict[str, float] = {}
        shuffled: dict[str, list[float]] = {}
        for name in self.names:
            rows = [i for i in range(self.n) if self.cell[i] == name and any(mask[i] for mask in masks)]
            orders = rng.permuted(np.tile(np.arange(len(rows)), (self.permutations, 1)), axis=1)

            def gathered(order, rows=rows):
                total = 0.0
                for (_, scores), mask, weight in zip(views, masks, weights, strict=True):
                    for i, j in zip(rows, order, strict=True):
                        choice = weight[rows[j]].index(max(weight[rows[j]]))
                        total += scores.rate(i, choice) * mask[i]
                return total

            seen[name] = gathered(range(len(rows)))
            shuffled[name] = [gathered(order) for order in orders]
        places = {} if only == "groups" else {name: [name] for name in self.names}
        places |= {} if only == "cells" else {g: [self.names[c] for c in cells] for g, cells in self.groups.items()}
        for place, cells in places.items():
            reached = 0
            for r in range(self.permutations):
                reached += sum(shuffled[c][r] for c in cells) >= sum(seen[c] for c in cells) - 1e-9
            self.p_values[protocol, scope, policy, place] = (1 + reached) / (1 + self.permutations)

    # -------------------------------------------------------------- attempts by budget

    def add_budgets(self, protocols: list[str]) -> None:
        budgets = [b for b in range(2, 17) if b <= min(row[0] for row in self.whole.tried)]
        for protocol in protocols:
            weight = self.weights[protocol, "all"]
            orders = {("retry", b): [[0] * b] * self.n for b in budgets}
            if "portfolio" in self.policies and budgets:
                orders |= self.planned(budgets, protocol == "transfer")
            for (policy, budget), order in orders.items():
                told = [followed(self.whole, i, order[i]) for i in range(self.n)]
                values = [told[i][0] * weight[i] for i in range(self.n)]
                tokens = [told[i][1] * weight[i] for i in range(self.n)]
                self.columns.append(Column(protocol, "all", policy, None, budget, None, values, tokens))
        for budget in budgets:
            mixes = self.affordable(budget)
            places = [("cells", [[i for i in range(self.n) if self.cell[i] == name] for name in self.names])]
            for name, cells in self.groups.items():
                places.append((name, [[i for i in range(self.n) if self.names.index(self.cell[i]) in cells]]))
            for only, parts in places:
                values = [0.0] * self.n
                for rows in parts:
                    fails = {mix: {i: mix_fails(self.whole, i, mix) for i in rows} for mix in mixes}
                    best = min(mixes, key=lambda mix: sum(fails[mix].values()))
                    for i in rows:
                        values[i] = (1 - fails[best][i]) * self.weights["cross-fitted", "all"][i]
                policy = "best mix (hindsight)"
                self.columns.append(Column("cross-fitted", "all", policy, None, budget, only, values, None))

    def planned(self, budgets: list[int], transfer: bool) -> dict[tuple[str, int], list[list[int]]]:
        prices = (0.01, 0.02, 0.05, 0.1)
        labels = [
            *(("portfolio", b) for b in budgets),
            *((f"portfolio, stopping at {p:g}", budgets[-1]) for p in prices),
        ]
        orders: dict[tuple[str, int], list[list[int]]] = {label: [[]] * self.n for label in labels}
        for test, train in self.splits(self.dealt[0], transfer):
            if len(train) < 2:
                continue
            tally = self.whole.of(train).to_code()
            policy: Any = Fitted.fit("portfolio", self.table.iloc[train], tally, OPERATORS, seed=self.seed).policy
            near = policy.neighbours(self.table.iloc[test])
            for budget in budgets:
                counts = policy.plan(near, budget)
                for i, order in zip(test, policy.order(near, counts), strict=True):
                    orders["portfolio", budget][i] = order.tolist()
            for price in prices:
                for i, order in zip(test, replace(policy, price=price).order(near, counts), strict=True):
                    orders[f"portfolio, stopping at {price:g}", budgets[-1]][i] = order.tolist()
        return orders

    def affordable(self, budget: int) -> list[tuple[int, ...]]:
        """List the mixes that a budget affords and that leave no room for another attempt."""
        cost = in_retries(self.whole)
        most = [round(min(row[o] for row in self.whole.tried)) for o in FIVE]
        kept = []
        for mix in product(*[range(min(most[o], int(budget * 1.005 / cost[o])) + 1) for o in FIVE]):
            left = budget * 1.005 - sum(mix[o] * cost[o] for o in FIVE)
            if left >= 0 and not any(cost[o] <= left and mix[o] < most[o] for o in FIVE):
                kept.append(mix)
        return kept

    # -------------------------------------------------------------- the null line, and rows

    def null_line(self) -> list[dict[str, Any]]:
        rng = np.random.default_rng([self.seed, 1])
        places = [*self.names, "all"]
        sizes: dict[str, list[int]] = {place: [] for place in places}
        shown: dict[tuple[str, str], list[float]] = {}
        tried = np.array(self.whole.tried).astype(int)
        truth = np.array([[self.whole.rate(i, 0)] * 5 for i in range(self.n)])
        for _ in range(200):
            redrawn = Tally(rng.binomial(tried, truth).tolist(), tried.tolist(), [])
            for place in places:
                hard = [i for i in range(self.n) if place in (self.cell[i], "all") and is_hard(redrawn, i)]
                sizes[place].append(len(hard))
                if hard:
                    told = [[redrawn.rate(i, o) for o in FIVE] for i in hard]
                    shown.setdefault((place, "retry"), []).append(fmean(r[0] for r in told))
                    shown.setdefault((place, "random"), []).append(fmean(fmean(r[1:]) for r in told))
                    shown.setdefault((place, "oracle"), []).append(fmean(max(r[1:]) for r in told))
        rows = []
        for place, policy in product(places, ("retry", "random", "oracle")):
            got = shown.get((place, policy))
            row = dict.fromkeys(COLUMNS) | {"cell": place, "scope": "steerable-hard", "protocol": "paper"}
            row |= {"policy": f"null: {policy}", "k": 1, "n": round(fmean(sizes[place]))}
            if got:
                row |= {"rescue": fmean(got), "low": percentile(got, 2.5), "high": percentile(got, 97.5)}
            rows.append(row)
        return rows

    def make_rows(self) -> None:
        drawn: dict[str, list[list[int]]] = {}  # of each cell: rows drawn in each resample
        for c, name in enumerate(self.names):
            rows = [i for i in range(self.n) if self.cell[i] == name]
            rng = np.random.default_rng([self.seed, 4, c])
            drawn[name] = [
                [rows[j] for j in draw] for draw in rng.integers(len(rows), size=(self.resamples, len(rows)))
            ]
        for name in self.names:
            self.rows += self.rows_of(name, "cells", drawn[name])
        for name, cells in self.groups.items():
            resamples = [[i for c in cells for i in drawn[self.names[c]][r]] for r in range(self.resamples)]
            self.rows += self.rows_of(name, "groups", resamples)

    def rows_of(self, name: str, kind: str, resamples: list[list[int]]) -> list[dict[str, Any]]:
        cells = [name] if kind == "cells" else [self.names[c] for c in self.groups[name]]
        inside = [i for i in range(self.n) if self.cell[i] in cells]
        shown = [column for column in self.columns if column.only in (None, kind, name)]
        found = {column[:5]: column for column in shown}
        rows = []
        for column in shown:
            weight = self.weights[column.protocol, column.scope]
            n, total = sum(weight[i] > 0 for i in inside), sum(weight[i] for i in inside)
            row = dict.fromkeys(COLUMNS) | {"cell": name, "n": n, **dict(zip(COLUMNS[1:6], column[:5], strict=False))}
            row |= dict(zip(("protocol", "scope", "policy", "k", "budget"), column[:5], strict=True))
            for start, base in (("", None), ("over_retry", "retry"), ("over_best_fixed", "best fixed")):
                other = found.get((column.protocol, column.scope, base, column.k, column.budget))
                if not n or base == column.policy or (base and not other):
                    continue
                gain = [a - b for a, b in zip(column.values, other.values, strict=True)] if other else column.values
                row[start or "rescue"] = sum(gain[i] for i in inside) / total
                means = []
                for resample in resamples:
                    if heavy := sum(weight[i] for i in resample):
                        means.append(sum(gain[i] for i in resample) / heavy)
                low, high = (f"{start}_{end}".lstrip("_") for end in ("low", "high"))
                row |= {low: percentile(means, level(n)), high: percentile(means, 100 - level(n))}
            if column.tokens and n:
                spent = sum(column.tokens[i] for i in inside)
                row["tokens"] = spent / total
                row["per_1000"] = 1000 * sum(column.values[i] for i in inside) / spent if spent else None
            if n and column.k == 1:
                row["p_value"] = self.p_values.get((column.protocol, column.scope, column.policy, name))
            rows.append(row)
        return rows


COLUMNS = ["cell", "scope", "protocol", "policy", "k", "budget", "n", "rescue", "low", "high", "over_retry",
           "over_retry_low", "over_retry_high", "over_best_fixed", "over_best_fixed_low", "over_best_fixed_high",
           "tokens", "per_1000", "p_value"]  # fmt: skip


def one_hot(name: str) -> list[float]:
    return [float(name == operator) for operator in OPERATORS]


def is_hard(tally: Tally, i: int) -> bool:
    retry, best = tally.rate(i, 0), max(tally.rate(i, o) for o in FIVE[1:])
    return best - retry >= 0.05 and retry <= 0.5


def z_score(x: float, among: list[float]) -> float:
    mean = sum(among) / len(among)
    return (x - mean) / (sum((y - mean) * (y - mean) for y in among) / len(among)) ** 0.5


def family(name: str) -> str:
    found = re.fullmatch(r"(\w+)-(\w+)-\d+\|.*", name)
    return found[1] if found else ""


def grouped(names: list[str]) -> dict[str, list[int]]:
    """Return `all`, then the families and methods that are some of the cells, in the order that they come up."""
    found: dict[str, list[int]] = {}
    for c, name in enumerate(names):
        if match := re.fullmatch(r"(\w+)-(\w+)-\d+\|.*", name):
            found.setdefault(f"{match[1]}-*", []).append(c)
            found.setdefault(f"*-{match[2]}-*", []).append(c)
    return {"all": list(range(len(names)))} | {g: c for g, c in found.items() if 1 < len(c) < len(names)}


def in_halves(profiles: pd.DataFrame, attempts: pd.DataFrame, seed: int) -> tuple[Tally, Tally]:
    """Share out each failure's attempts under each operator in turn, in the order of random numbers."""
    place = {pair: i for i, pair in enumerate(zip(profiles["cell"], profiles["problem_id"], strict=True))}
    counted = [
        row
        for row in attempts.to_dict("records")
        if (row["cell"], row["problem_id"]) in place and row["operator"] in OPERATORS
    ]
    drawn = np.random.default_rng([seed, 5]).random(len(counted))
    slots: dict[int, list[tuple[float, dict[str, Any]]]] = {}
    for number, row in zip(drawn, counted, strict=True):
        slot = 5 * place[row["cell"], row["problem_id"]] + OPERATORS.index(row["operator"])
        slots.setdefault(slot, []).append((number, row))
    halves = [Tally(*[[[0.0] * 5 for _ in place] for _ in FIVE[:3]]) for _ in FIVE[:2]]
    for slot, rows in slots.items():
        for turn, (_, row) in enumerate(sorted(rows, key=lambda pair: pair[0])):
            half, i, o = halves[(turn + slot) % 2], slot // 5, slot % 5  # who has the odd one alternates
            half.right[i][o] += row["correct"]
            half.tried[i][o] += 1
            half.tokens[i][o] += row["n_tokens"] + row["n_ancestor_tokens"]
    for half in halves:
        for i, o in product(range(len(place)), FIVE):
            half.tokens[i][o] /= half.tried[i][o]
    return halves[0], halves[1]


def both(one: Tally, two: Tally) -> Tally:
    made = Tally([], [], [])
    for i in range(len(one.right)):
        made.right.append([one.right[i][o] + two.right[i][o] for o in FIVE])
        made.tried.append([one.tried[i][o] + two.tried[i][o] for o in FIVE])
        spent = [one.tokens[i][o] * one.tried[i][o] + two.tokens[i][o] * two.tried[i][o] for o in FIVE]
        made.tokens.append([spent[o] / made.tried[i][o] for o in FIVE])
    return made


def in_retries(tally: Tally) -> list[float]:
    """Return what an attempt costs in retries."""
    return [fmean(row[o] for row in tally.tokens) / fmean(row[0] for row in tally.tokens) for o in FIVE]


def mix_fails(tally: Tally, i: int, mix: tuple[int, ...]) -> float:
    fails = 1.0
    for o in FIVE:
        fails *= tally.fails(i, o, mix[o])
    return fails


def followed(tally: Tally, i: int, order: list[int]) -> tuple[float, float]:
    """Return the chance that an order of attempts holds a success, and the model-tokens until then."""
    made, spent = [0] * 5, 0.0
    for o in order:
        if o >= 0:
            spent += mix_fails(tally, i, tuple(made)) * tally.tokens[i][o]
            made[o] += 1
    return 1 - mix_fails(tally, i, tuple(made)), spent


@cache
def level(n: int) -> float:
    """Return the lower level of a 95% interval, expanded for n failures as Student's t is beside the normal."""
    freedom = max(n - 1, 1)
    return float(100 * norm.cdf(-((n / freedom) ** 0.5) * t.ppf(0.975, freedom)))


def percentile(values: list[float], at: float) -> float:
    """Return a percentile, on the line between the two values next to it."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * at / 100
    below = min(int(place), len(ordered) - 2) if len(ordered) > 1 else 0
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


# ------------------------------------------------------------------ the gate


def judged(
    challenger: str,
    champion: Fitted,
    failures: pd.DataFrame,
    tally: Tally,
    *,
    seed: int,
    resamples: int,
    **settings: Any,
) -> tuple[float, float, float, int, bool]:
    """Return what the challenger rescues more than the champion, low and high, of how many, and if that was frozen."""
    problem = [f"{t}/{p}" for t, p in zip(failures["task"], failures["problem_id"], strict=True)]
    keys = sorted(set(problem))
    order = np.random.default_rng([seed, 6]).permutation(len(keys))
    fold = [int(order[keys.index(key)]) % 5 for key in problem]
    unseen = [
        i for i, key in enumerate(problem) if blake2b(key.encode(), digest_size=8).hexdigest() not in champion.problems
    ]
    frozen = len(unseen) >= 30
    rows = unseen if frozen else list(range(len(problem)))
    within = 8 if tally.tokens and "portfolio" in (challenger, champion.name) else None

    def anew(name: str, settings: dict[str, Any]) -> dict[int, float]:
        found: dict[int, float] = {}
        for k in range(5):
            train = [i for i in range(len(problem)) if fold[i] != k]
            if held := [i for i in rows if fold[i] == k]:
                fitted = Fitted.fit(name, failures.iloc[train], tally.of(train).to_code(), OPERATORS, **settings)
                found |= zip(held, rescued(fitted, failures.iloc[held], tally.of(held), within), strict=True)
        return found

    ours = anew(challenger, settings)
    if frozen:
        theirs = dict(zip(rows, rescued(champion, failures.iloc[rows], tally.of(rows), within), strict=True))
    else:
        theirs = anew(champion.name, {})
    cells = [failures["cell"].iloc[i] for i in rows]
    sums = [0.0] * resamples
    for c, name in enumerate(sorted(set(cells))):
        gains = [ours[i] - theirs[i] for i, cell in zip(rows, cells, strict=True) if cell == name]
        for r, draw in enumerate(
            np.random.default_rng([seed, 4, c]).integers(len(gains), size=(resamples, len(gains)))
        ):
            sums[r] += sum(gains[j] for j in draw)
    means, n = [total / len(rows) for total in sums], len(rows)
    difference = fmean(ours[i] - theirs[i] for i in rows)
    return difference, percentile(means, level(n)), percentile(means, 100 - level(n)), n, frozen


def rescued(fitted: Fitted, failures: pd.DataFrame, tally: Tally, within: float | None) -> list[float]:
    """Return each failure's chance of rescue by one attempt, or by what a budget buys."""
    routed = [OPERATORS.index(name) for name in fitted.route(failures)]
    if within is None:
        return [tally.rate(i, o) for i, o in enumerate(routed)]
    most = [round(min(row[o] for row in tally.tried)) for o in FIVE]
    bought = [[int(within * 1.005 / cost) * (o == to) for o, cost in enumerate(in_retries(tally))] for to in routed]
    if fitted.name == "portfolio":
        policy: Any = fitted.policy
        bought = policy.plan(policy.neighbours(failures), within).tolist()
    return [1 - mix_fails(tally, i, tuple(map(min, mix, most))) for i, mix in enumerate(bought)]
