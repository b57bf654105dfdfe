"""The bottom line: what the figures of the closed loop come to, in words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salvage.reports import words


def arm(name: str, budget: int, gain: float | None = None, around: float = 0.005, **more: Any) -> dict[str, Any]:
    row = {"cells": "all", "arm": name, "budget": budget, "problems": 600, "solved": 0.5, "low": 0.4, "high": 0.6}
    if gain is not None:
        row |= {"same_tokens": gain, "same_tokens_low": gain - around, "same_tokens_high": gain + around}
    return row | more


def loop(**gains: list[float]) -> list[dict[str, Any]]:
    """Return the rows of arms with a gain a budget, of 4, 8 and 16."""
    rows = [arm("retry", budget) for budget in (4, 8, 16)]
    return rows + [arm(n, b, g) for n, some in gains.items() for b, g in zip((4, 8, 16), some, strict=True)]


def test_an_arm_ahead_at_every_budget_is_shipped() -> None:
    line = words.bottom_line(loop(rule=[-0.02, 0, 0.001], portfolio=[0.012, 0.02, 0.026]))
    assert line.startswith("Ship the portfolio: at 4 retries' worth of tokens it solves 1.2 points more than retrying ")
    assert "[0.7, 1.7]" in line and "at 8, 2.0 more [1.5, 2.5]; at 16, 2.6 more [2.1, 3.1]" in line
    assert "600 held-out problems" in line and "rule" not in line


def test_an_arm_ahead_at_some_budgets_is_shipped_for_these_alone() -> None:
    line = words.bottom_line(loop(portfolio=[-0.02, 0.001, 0.03]))
    assert line.startswith("Ship the portfolio at 16 retries' worth of tokens, not at 4 and 8:")
    assert "At 4 it solves fewer: -2.0 [-2.5, -1.5]." in line and "At 8: +0.1 [-0.4, +0.6]." in line


def test_nothing_ahead_is_said_with_the_most_there_was_and_what_is_not_ruled_out() -> None:
    line = words.bottom_line(loop(rule=[-0.02, -0.01, 0.0], portfolio=[0.001, 0.002, -0.004]))
    assert line.startswith("Nothing beats retrying here: at 4, 8 or 16 retries' worth of tokens, no 95% interval of ")
    assert "the rule or the portfolio" in line and "the portfolio at 8: +0.2 points [-0.3, +0.7]" in line
    assert "do not rule out a gain of up to 0.7 points" in line


def test_a_gain_that_is_nothing_is_not_shipped() -> None:
    rows = loop(portfolio=[1e-6, 1e-6, 1e-6])
    tiny = [row | {"same_tokens_low": 5e-7, "same_tokens_high": 2e-6} if "same_tokens" in row else row for row in rows]
    assert words.bottom_line(tiny).startswith("Nothing beats retrying here")
    assert words.to_ship(tiny) == ""


def test_where_nothing_was_compared_it_says_so() -> None:
    assert words.bottom_line([]) == words.NOT_COMPARED
    assert "Nothing can be said" in words.bottom_line([arm("retry", 4), arm("portfolio", 4)])


def test_of_two_winners_the_one_ahead_at_more_budgets_is_named_and_the_other_told() -> None:
    line = words.bottom_line(loop(calibrated=[-0.01, 0.05, 0.09], portfolio=[0.012, 0.02, 0.026]))
    assert line.startswith("Ship the portfolio") and "Also above zero: the calibrated policy at 8 and 16." in line


@given(st.lists(st.floats(-0.2, 0.2), min_size=3, max_size=3), st.floats(0, 0.1))
def test_an_arm_is_named_only_where_its_interval_is_above_zero(gains: list[float], around: float) -> None:
    rows = [arm("retry", b) for b in (4, 8, 16)]
    rows += [arm("portfolio", b, gain, around) for b, gain in zip((4, 8, 16), gains, strict=True)]
    assert words.bottom_line(rows).startswith("Ship") == any(gain - around > words.NOTHING for gain in gains)


@pytest.mark.parametrize(("share", "told"), [(0.012, "+1.2"), (0.0, "+0.0"), (-1e-9, "+0.0"), (0.0002, "+0.02")])
def test_points_never_hide_on_which_side_of_zero_they_lie(share: float, told: str) -> None:
    assert words.points(share) == told


# ------------------------------------------------------------------ of one's own: from the attempts


def attempts(n: int, *gains: float, around: float = 0.01) -> list[dict[str, Any]]:
    """Return rows of the evaluation: retry and a portfolio, at budgets 4, 8 and 16."""
    about = {"cell": "all", "protocol": "cross-fitted", "n": n, "tokens": 50.0, "low": 0.4, "high": 0.6}
    rows = []
    for budget, gain in zip((4, 8, 16), gains, strict=True):
        lift = {"over_retry": gain, "over_retry_low": gain - around, "over_retry_high": gain + around}
        nothing = dict.fromkeys(lift)
        rows += [about | {"policy": "retry", "budget": budget, "rescue": 0.5} | nothing]
        rows += [about | {"policy": "portfolio", "budget": budget, "rescue": 0.5 + gain} | lift]
        rows += [row | {"cell": "mine|t"} for row in rows[-2:]]
        rows += [about | {"policy": "best mix (hindsight)", "budget": budget, "rescue": 0.9} | lift]
    return rows


def said(rescue: list[dict[str, Any]], evaluated: list[dict[str, Any]]) -> str:
    return words.bottom_line(words.compared(rescue, evaluated), words.not_compared(evaluated))


def test_ones_own_failures_tell_policies_from_retrying_by_their_attempts() -> None:
    line = said([], attempts(77, 0.02, 0.03, 0.04))
    assert line.startswith("Ship the portfolio: at 4 retries' worth of tokens it solves 2.0 points more than retrying")
    assert "(77 failures)" in line and "hindsight" not in line and "held-out" not in line
    line = said([], attempts(77, 0.0, -0.02, 0.002))
    assert line.startswith("Nothing beats retrying here") and "77 failures do not rule out a gain of up to 1.2" in line


def test_the_closed_loop_says_more_than_the_attempts() -> None:
    rescue = loop(portfolio=[0.012, 0.02, 0.026])
    assert words.compared(rescue, attempts(77, -0.2, -0.2, -0.2)) == rescue
    assert "600 held-out problems" in said(rescue, attempts(77, -0.2, -0.2, -0.2))


def test_too_few_failures_are_said_to_be_so() -> None:
    line = said([], attempts(words.ENOUGH - 1, 0.02, 0.03, 0.04))
    assert line == (
        "No policy was compared with retrying here: 29 failures are too few, at least 30 are needed; "
        "give more or harder problems."
    )
    assert said([], attempts(words.ENOUGH, 0.02, 0.03, 0.04)).startswith("Ship")
    assert said([], []) == words.NOT_COMPARED
