"""The gate before the champion: a challenger must rescue more on held-out problems, with an interval above zero."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from salvage.evaluation.resampling import bootstrap, interval
from salvage.method.profiles import Tallies, problem_folds, problem_keys
from salvage.policies.fitted import Fitted, problem_key
from salvage.policies.policy import codes
from salvage.policies.portfolio import BUDGET, SLACK, Portfolio, all_fail, in_retries, own_mix_fails
from salvage.tables.vocabulary import OPERATORS

FOLDS = 5
FEWEST = 30  # failures on problems that a frozen champion has not seen; with fewer its kind is fitted anew


@dataclass(frozen=True)
class Verdict:
    """What the comparison gave: the challenger's rescue less the champion's, paired, with its 95% interval."""

    better: bool
    difference: float
    low: float
    high: float
    failures: int
    measure: str
    how: str

    def __str__(self) -> str:
        told = f"{100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{told} in {self.measure} over {self.failures} failures on held-out problems; {self.how}"

    def tags(self) -> dict[str, Any]:
        """Return the verdict as tags of a model version."""
        return {f"gate.{key}": value for key, value in asdict(self).items()}


def judge(
    challenger: str,
    champion: Fitted,
    failures: pd.DataFrame,
    tallies: Tallies,
    *,
    seed: int,
    resamples: int,
    **settings: Any,
) -> Verdict:
    """Compare a challenger, fitted fold by fold, with the champion.

    The champion is scored as it is frozen, on problems that it has not seen; where it has seen them all, its kind is
    fitted fold by fold as the challenger is.

    Parameters
    ----------
    challenger : str
        A policy by name.
    failures : DataFrame, tallies : Tallies
        What both are scored on, and the challenger is fitted on, never on the same problem.
    """
    budget = BUDGET if "portfolio" in (challenger, champion.name) and tallies.tokens is not None else None
    fold = problem_folds(failures, FOLDS, np.random.default_rng([seed, 6]))
    seen = np.array([problem_key(key) in champion.problems for key in problem_keys(failures)])
    frozen = int((~seen).sum()) >= FEWEST
    scope = ~seen if frozen else np.ones(len(failures), bool)
    ours = _fold_by_fold(challenger, failures, tallies, fold, scope, budget, settings)
    if frozen:
        theirs = np.zeros(len(failures))
        theirs[scope] = _rescued(champion, failures[scope], tallies.take(scope), budget)
    else:
        theirs = _fold_by_fold(champion.name, failures, tallies, fold, scope, budget, {})
    gain = (ours - theirs)[scope]
    cell = np.unique(failures["cell"].to_numpy(str)[scope], return_inverse=True)[1]
    drawn = sum(sums[:, 0] for sums in bootstrap(gain[:, None], cell, resamples, seed))
    low, high = interval(np.asarray(drawn) / len(gain), len(gain))
    measure = "rescue of one attempt" if budget is None else f"rescue within {budget:g} retries' worth of model-tokens"
    how = (
        "the champion as registered" if frozen else f"both fitted on {FOLDS - 1} folds of {FOLDS}, scored on the other"
    )
    return Verdict(bool(low > 0), float(gain.mean()), float(low), float(high), len(gain), measure, how)


def _fold_by_fold(
    policy: str,
    failures: pd.DataFrame,
    tallies: Tallies,
    fold: np.ndarray,
    scope: np.ndarray,
    budget: float | None,
    settings: dict[str, Any],
) -> np.ndarray:
    values = np.zeros(len(failures))
    for k in np.unique(fold[scope]):
        held, train = (fold == k) & scope, fold != k
        fitted = Fitted.fit(policy, failures[train], tallies.take(train), OPERATORS, **settings)
        fitted.refuse_seen(failures[held])
        values[held] = _rescued(fitted, failures[held], tallies.take(held), budget)
    return values


def _rescued(fitted: Fitted, failures: pd.DataFrame, tallies: Tallies, budget: float | None) -> np.ndarray:
    """Return each failure's chance of rescue, by one attempt or within a budget."""
    if budget is None or tallies.tokens is None:
        return np.asarray(tallies.rates[np.arange(len(failures)), codes(fitted.route(failures))])
    chance = all_fail(tallies, int(tallies.tried.min(axis=0).max()))
    if isinstance(fitted.policy, Portfolio):
        counts = np.zeros((len(failures), len(OPERATORS)), int)
        counts[:, codes(fitted.policy.choices)] = fitted.policy.plan(fitted.policy.neighbours(failures), budget)
    else:
        counts = _repeated(fitted.route(failures), in_retries(tallies.tokens), budget)
    most = tallies.tried.min(axis=0).astype(int)
    return 1 - own_mix_fails(chance, np.minimum(counts, most))


def _repeated(operators: np.ndarray, cost: np.ndarray, budget: float) -> np.ndarray:
    """Return the attempts [n, operators] that a budget affords of one operator each."""
    at = codes(operators)
    counts = np.zeros((len(at), len(OPERATORS)), int)
    counts[np.arange(len(at)), at] = (budget * SLACK / cost).astype(int)[at]
    return counts
