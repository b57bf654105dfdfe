"""The gate's verdicts, against the same comparison written out in loops (tests/plain.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from plain import OPERATORS, Tally, both, in_halves, judged
from salvage.errors import SalvageError
from salvage.evaluation import gate
from salvage.evaluation.gate import Verdict, judge
from salvage.policies.fitted import Fitted
from worlds import uneven

ANEW, FROZEN = "both fitted on 4 folds of 5, scored on the other", "the champion as registered"


@pytest.fixture(scope="module")
def failures() -> tuple[pd.DataFrame, Tally]:
    """Return 48 failures of two cells on 27 problems, with their facts, and their attempts."""
    profiles, attempts, facts = uneven(["a|t", "b|t"], 24, [9, 5, 5, 5, 5], 2)
    return profiles.merge(facts, on=["cell", "problem_id"]), both(*in_halves(profiles, attempts, 0))


def champion(name: str, failures: tuple[pd.DataFrame, Tally], seen: int) -> Fitted:
    """Return a policy fitted on the first failures."""
    table, tally = failures
    return Fitted.fit(name, table.head(seen), tally.of(list(range(seen))).to_code(), OPERATORS)


def verdict(challenger: str, than: Fitted, table: pd.DataFrame, tally: Tally, **settings: Any) -> Verdict:
    """Judge with the code and in loops, and hold the one to the other."""
    told = judge(challenger, than, table, tally.to_code(), seed=1, resamples=40, **settings)
    difference, low, high, n, frozen = judged(challenger, than, table, tally, seed=1, resamples=40, **settings)
    assert (told.difference, told.low, told.high) == pytest.approx((difference, low, high), abs=1e-6)
    assert (told.failures, told.better, told.how) == (n, low > 0, FROZEN if frozen else ANEW)
    return told


@pytest.mark.parametrize(
    ("challenger", "name", "seen", "measure", "how", "settings"),
    [
        ("calibrated", "rule", 48, "rescue of one attempt", ANEW, {}),
        ("calibrated", "rule", 7, "rescue of one attempt", FROZEN, {}),
        ("fixed", "calibrated", 7, "rescue of one attempt", FROZEN, {"by_cell": True}),
        ("learned", "fixed", 48, "rescue of one attempt", ANEW, {"held_out": False}),
        ("portfolio", "fixed", 48, "rescue within 8 retries' worth of model-tokens", ANEW, {}),
        ("portfolio", "rule", 7, "rescue within 8 retries' worth of model-tokens", FROZEN, {}),
        ("rule", "portfolio", 7, "rescue within 8 retries' worth of model-tokens", FROZEN, {}),
    ],
)
def test_a_verdict_is_the_paired_difference_on_problems_that_neither_has_seen(
    failures, challenger, name, seen, measure, how, settings
) -> None:
    told = verdict(challenger, champion(name, failures, seen), *failures, **settings)
    assert (told.measure, told.how) == (measure, how)


def test_without_tokens_a_portfolio_is_compared_by_one_attempt(failures) -> None:
    table, tally = failures
    told = verdict("fixed", champion("portfolio", failures, 7), table, tally._replace(tokens=[]))
    assert told.measure == "rescue of one attempt"


def test_a_champion_is_scored_as_it_is_on_thirty_failures_and_no_fewer(failures) -> None:
    table, tally = failures
    than = champion("calibrated", failures, 9)
    unseen = [i for i in range(48) if table["problem_id"][i] not in set(table["problem_id"][:9])]
    seen = [i for i in range(48) if i not in unseen]
    for more, n, how in ((30, 30, FROZEN), (29, 29 + len(seen), ANEW)):
        rows = seen + unseen[:more]
        told = verdict("fixed", than, table.iloc[rows].reset_index(drop=True), tally.of(rows))
        assert (told.how, told.failures) == (how, n)


def test_who_is_as_good_is_not_better(failures) -> None:
    told = verdict("rule", champion("rule", failures, 48), *failures)
    assert (told.better, told.difference, told.low, told.high) == (False, 0, 0, 0)


def test_a_verdict_is_told_in_points_and_kept_as_tags() -> None:
    told = Verdict(True, 0.1234, 0.0106, 0.25, 40, "rescue of one attempt", "the champion as registered")
    sentence = (
        "+12.3 points [+1.1, +25.0] in rescue of one attempt over 40 failures on held-out problems; the champion as"
    )
    assert str(told) == f"{sentence} registered"
    assert "-12.3 points [-20.0, +0.0]" in str(replace(told, difference=-0.1234, low=-0.2, high=0.0))
    keys = ("better", "difference", "low", "high", "failures", "measure", "how")
    assert told.tags() == {f"gate.{key}": getattr(told, key) for key in keys}


def test_the_seed_deals_the_folds_and_draws_the_resamples(failures) -> None:
    table, tally = failures
    than = champion("rule", failures, 48)
    one, two = (judge("fixed", than, table, tally.to_code(), seed=seed, resamples=40) for seed in (1, 2))
    assert one.low != two.low


def test_a_challenger_is_never_scored_on_a_problem_that_it_was_fitted_on(failures, monkeypatch) -> None:
    table, tally = failures
    # folds that deal failures, not problems: the two cells share problems
    monkeypatch.setattr(gate, "problem_folds", lambda failures, folds, rng: np.arange(len(failures)) % folds)
    with pytest.raises(SalvageError, match="cannot be scored on it"):
        judge("fixed", champion("rule", failures, 48), table, tally.to_code(), seed=1, resamples=2)
