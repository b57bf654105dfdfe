"""What the figures come to, in words: the bottom line that a run's last screen and the report open with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from salvage.reports.tables import ends, is_told

RETRY = "retry"
NAMES = {name: f"the {name}" for name in ("rule", "portfolio")}
NAMES |= {name: f"the {name} policy" for name in ("calibrated", "learned", "fixed", "random")}
NOTHING = 5e-5  # of all problems: a gain within half a hundredth of a point is rounding
ENOUGH = 30  # failures: of fewer, an interval over retrying says nothing
SHOWN = (4, 8, 16)  # budgets of what is told from attempts
NOT_COMPARED = (
    "No policy was compared with retrying here: the closed loop had no held-out problems. It takes them from the lab; "
    "for a pair of one's own, salvage rescue --compare takes a problem file."
)


MEANING = {"rollouts": "left out", "attempts": "counted as not rescued"}  # of those without a verdict


def without_verdict(counts: Mapping[str, int]) -> str:
    """Say how many rollouts and attempts have no verdict, and what became of them."""
    return ", ".join(f"{n:,} {what} ({MEANING[what]})" for what, n in counts.items())


def compared(rescue: list[dict[str, Any]], evaluated: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows that tell policies from retrying: of the closed loop, or else from the attempts on each failure.

    Parameters
    ----------
    rescue : list of dict
        metrics/rescue.json.
    evaluated : sequence of dict
        metrics/evaluate.json. Its portfolio was fitted on other problems; it is told where there are enough failures.
    """
    if _compared(rescue):
        return rescue
    return [
        {
            "cells": "all",
            "arm": row["policy"],
            "problems": row["n"],
            "of": "failures",
            **{name: row[name] for name in ("budget", "low", "high", "tokens")},
            "solved": row["rescue"],
            **{f"same_tokens{end}": row[f"over_retry{end}"] for end in ("", "_low", "_high")},
        }
        for row in _by_budget(evaluated)
        if row["n"] >= ENOUGH and row["policy"] in (RETRY, "portfolio")
    ]


def _by_budget(evaluated: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    shown = [row for row in evaluated if (row["cell"], row["protocol"]) == ("all", "cross-fitted")]
    return [row for row in shown if row["budget"] in SHOWN]


def not_compared(evaluated: Sequence[dict[str, Any]]) -> str:
    """Say why no policy was compared with retrying."""
    failures = max((row["n"] for row in _by_budget(evaluated)), default=ENOUGH)
    if failures >= ENOUGH:
        return NOT_COMPARED
    return (
        f"No policy was compared with retrying here: {failures} failures are too few, at least {ENOUGH} are needed; "
        "give more or harder problems."
    )


def bottom_line(rows: list[dict[str, Any]], otherwise: str = NOT_COMPARED) -> str:
    """Say whether to ship a policy, from the rows of the closed loop (metrics/rescue.json), or what is said otherwise.

    A policy is named only for the budgets at which it solves more than retry that spends as many model-tokens, by a 95%
    interval that lies above zero.
    """
    mine = _compared(rows)
    if not mine:
        return otherwise
    known = [row for row in mine if is_told(row.get("same_tokens"))]
    if not known:
        return (
            "Nothing can be said to beat retrying here: no retries were run that spent as many tokens as a policy did."
        )
    arm = to_ship(rows)
    return _ship(arm, mine) if arm else _nothing(known)


def to_ship(rows: list[dict[str, Any]]) -> str:
    """Return the arm that beats retry for as many tokens at most budgets, by the most; empty where none does."""
    known = [row for row in _compared(rows) if is_told(row.get("same_tokens"))]

    def worth(arm: str) -> tuple[int, int, float]:
        own = [row for row in known if row["arm"] == arm]
        return sum(map(above, own)), -sum(map(below, own)), sum(row["same_tokens"] for row in own) / len(own)

    winners = dict.fromkeys(row["arm"] for row in known if above(row))
    return max(winners, key=worth, default="")


def above(row: dict[str, Any]) -> bool:
    """Tell whether an arm beats retry for as many tokens: its interval lies above zero."""
    return is_told(row.get("same_tokens_low")) and row["same_tokens_low"] > NOTHING


def below(row: dict[str, Any]) -> bool:
    """Tell whether an arm falls short of retry for as many tokens: its interval lies below zero."""
    return is_told(row.get("same_tokens_high")) and row["same_tokens_high"] < -NOTHING


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    whole = [row for row in rows if row["cells"] == "all" and row["arm"] != RETRY]
    return sorted(whole, key=lambda row: row["budget"])


def _ship(arm: str, mine: list[dict[str, Any]]) -> str:
    own = [row for row in mine if row["arm"] == arm]
    won = [row for row in own if above(row)]
    others = [row for row in own if not above(row)]
    where = f" at {_worth(won)}, not at {budgets(others)}" if others else ""
    first, unit = won[0], " points more than retrying for as many" + (" tokens" if others else "")
    start = f"at {first['budget'] if others else _worth([first])} it solves {interval(first, 'same_tokens', '', unit)}"
    told = [start, *(f"at {row['budget']}, {interval(row, 'same_tokens', '', ' more')}" for row in won[1:])]
    line = f"Ship {named(arm)}{where}: {'; '.join(told)} ({_of(first)})."
    for row in others:
        gain = interval(row, "same_tokens") if is_told(row.get("same_tokens")) else "not known, no retry spent as much"
        line += f" At {row['budget']}{' it solves fewer' if below(row) else ''}: {gain}."
    rest = {row["arm"]: [r for r in mine if r["arm"] == row["arm"] and above(r)] for row in mine if row["arm"] != arm}
    also = [f"{named(name)} at {budgets(at)}" for name, at in rest.items() if at]
    return line + (f" Also above zero: {listed(also, 'and')}." if also else "")


def _nothing(known: list[dict[str, Any]]) -> str:
    arms = listed([named(arm) for arm in dict.fromkeys(row["arm"] for row in known)], "or")
    most = max(known, key=lambda row: row["same_tokens"])
    told = (
        f"Nothing beats retrying here: at {_worth(known, 'or')}, no 95% interval of {arms} over retrying for as many "
        f"lies above zero. The most is {named(most['arm'])} at {most['budget']}: "
        f"{interval(most, 'same_tokens', '+', ' points')}."
    )
    highest = max((row["same_tokens_high"] for row in known if is_told(row["same_tokens_high"])), default=0.0)
    if highest <= NOTHING:
        return told
    return f"{told} {_of(most)} do not rule out a gain of up to {points(highest, '')} points."


def _of(row: dict[str, Any]) -> str:
    return f"{row['problems']:,} {row.get('of', 'held-out problems')}"


def _worth(rows: list[dict[str, Any]], word: str = "and") -> str:
    told = budgets(rows, word)
    of_retries = "retry's" if told == "1" else "retries'"
    return f"{told} {of_retries} worth of tokens"


def budgets(rows: list[dict[str, Any]], word: str = "and") -> str:
    """Return the budgets of rows, as `4, 8 and 16`."""
    return listed([str(budget) for budget in sorted({row["budget"] for row in rows})], word)


def named(arm: str) -> str:
    """Return what a sentence calls an arm."""
    return NAMES.get(arm, arm)


def listed(names: Sequence[str], word: str) -> str:
    """Return names as a sentence has them: `a, b and c`."""
    return f" {word} ".join(filter(None, [", ".join(names[:-1]), names[-1]])) if names else ""


def points(share: float, sign: str = "+") -> str:
    """Return a share in points or %: a tenth, or a hundredth where a tenth would hide on which side of zero it lies."""
    told = 100 * share
    digits = 2 if 100 * NOTHING <= abs(told) < 0.05 else 1
    return format(round(told, digits) + 0.0, f"{sign}.{digits}f")


def interval(row: dict[str, Any], name: str, sign: str = "+", unit: str = "") -> str:
    """Return a figure of a row with its 95% interval, as `+1.2 [+0.8, +1.7]`; empty where there is none."""
    if not is_told(row.get(name)):
        return ""
    bounds = [points(row[end], sign) for end in ends(name) if is_told(row.get(end))]
    return points(row[name], sign) + unit + (f" [{', '.join(bounds)}]" if bounds else "")
