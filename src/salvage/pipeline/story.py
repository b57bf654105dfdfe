"""The last screen of a run: what failed, what beats retrying, who is champion and why, and where the rest is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from salvage.method.profiles import BEYOND_REACH, RETRY_SOLVABLE, STEERABLE_HARD, regimes
from salvage.policies.fitted import POLICIES
from salvage.project.settings import DATA
from salvage.reports import words
from salvage.reports.tables import PROTOCOLS, is_told
from salvage.serving.policy_uri import CHAMPION

SERVE = f"mlflow models serve -m {CHAMPION} --env-manager local -p 5001"
WIDEST = 100  # columns; longer lines are hard to read, however wide the terminal
LONGEST_NAME = 24  # columns of an arm's name before it is folded
FIGURE = 19  # columns of a figure with its interval, and of the gap before it
MOST_ARMS = 6
MANY_TRUNCATED = 0.1  # of the rollouts: above that share it is told
REGIMES = (RETRY_SOLVABLE, STEERABLE_HARD, BEYOND_REACH)


@dataclass(frozen=True)
class Version:
    """A registered router: its number, and the tags that `salvage register` left on it."""

    number: int
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Figures:
    """What the story is told from; what a project does not have is empty."""

    profiles: pd.DataFrame
    asked: Mapping[str, int] = field(default_factory=dict)  # problems a cell was given
    rows: list[dict[str, Any]] = field(default_factory=list)  # metrics/evaluate.json
    rescue: list[dict[str, Any]] = field(default_factory=list)  # metrics/rescue.json
    champion: Version | None = None
    challenger: Version | None = None
    store: str = "sqlite:///mlflow.db"
    report: str = "report/index.html"
    truncated: tuple[int, int] | None = None  # rollouts that met max_tokens, of how many; None where it is not known
    unverified: Mapping[str, int] = field(default_factory=dict)  # rollouts and attempts without a verdict, where any is


def saved() -> Figures:
    """Return the figures of the project in this folder."""
    from salvage.pipeline import results, verdicts
    from salvage.project import tracking
    from salvage.rescue import solving
    from salvage.tables import schema

    store = os.environ.get("MLFLOW_TRACKING_URI") or tracking.STORE
    return Figures(
        schema.read(results.PROFILES, schema.PROFILES),
        problems_asked(DATA / "rollouts"),
        results.saved_rows(),
        solving.saved_rows(),
        registered("champion"),
        registered("challenger"),
        store.replace(f"sqlite:///{Path.cwd()}/", "sqlite:///"),  # as `mlflow run` has it
        f"{results.REPORT}/index.html",
        schema.truncated(DATA / "rollouts"),
        verdicts.counted(),
    )


def problems_asked(folder: Path) -> dict[str, int]:
    """Return how many problems each cell was given, from the table of rollouts; nothing where there is none."""
    if not any(folder.glob("*.parquet")):
        return {}
    table = pd.read_parquet(folder, columns=["cell", "problem_id"]).drop_duplicates()
    return {str(cell): int(n) for cell, n in table.groupby("cell", observed=True).size().items()}


def registered(alias: str) -> Version | None:
    """Return the router that has an alias; None where there is none."""
    from salvage.serving import registry

    found = registry.version_called(alias)
    return Version(int(found.version), dict(found.tags)) if found else None


def told(figures: Figures, console: Console | None = None) -> str:
    """Return the story as a terminal shows it, or as a pipe takes it, at most 100 columns wide."""
    console = console or Console(markup=False, emoji=False)
    console.width = min(console.width, WIDEST)
    with console.capture() as captured:
        console.print(story(figures, console.width))
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def story(figures: Figures, width: int) -> Group:
    """Return the whole of it, to be printed at a width."""
    compared = words.compared(figures.rescue, figures.rows)
    verdict = Text(words.bottom_line(compared, words.not_compared(figures.rows)), style="bold")
    parts: list[Any] = [Text(""), verdict]
    sections = [
        ("What failed", Text("".join(what_failed(figures)))),
        ("Policies over retry that spends as many tokens: points [95%]", against_retry(compared, width - 2)),
        ("The champion", Text(champion(figures.champion, figures.challenger, words.to_ship(compared)))),
        (f"The paper's rule, by one attempt on each {STEERABLE_HARD} failure: % [95%]", rule(figures.rows)),
        ("The rest", places(figures)),
    ]
    for title, body in sections:
        if body is not None:
            parts += [Text(""), Text(title, style="bold"), Padding(body, (0, 0, 0, 2))]
    return Group(*parts)


def what_failed(figures: Figures) -> Iterator[str]:
    """Yield what is to be told of the problems, the rollouts and the verdicts."""
    yield failed(figures.profiles, figures.asked)
    yield cut_off(figures.truncated)
    yield without_verdict(figures.unverified)


def failed(profiles: pd.DataFrame, asked: Mapping[str, int]) -> str:
    """Say how many problems were given and failed, and which regimes the failures are of."""
    n, cells = len(profiles), profiles["cell"].nunique()
    problems = sum(asked.values())
    if problems:
        each = f", {max(asked.values()):,} each" if len(set(asked.values())) == 1 and len(asked) > 1 else ""
        start = f"{_many(len(asked), 'cell')} (a specialist on a task) met {problems:,} problems{each}; "
        start += f"{n:,} of them ({_percent(n, problems)}) were failed at least once: "
    else:
        start = f"{_many(n, 'failure')} of {_many(cells, 'cell')} (a specialist on a task): "
    kinds = regimes(profiles)
    counts = ((name, int((kinds == name).sum())) for name in REGIMES)
    return start + ", ".join(f"{count:,} {name} ({_percent(count, n)})" for name, count in counts) + "."


def cut_off(truncated: tuple[int, int] | None) -> str:
    """Say how many rollouts were truncated, where they are many, and what to do; nothing where they are few."""
    if truncated is None or truncated[0] <= MANY_TRUNCATED * truncated[1]:
        return ""
    return (
        f" {truncated[0]:,} of {truncated[1]:,} rollouts ({_percent(*truncated)}) are truncated: they met "
        "sample.max_tokens before an end. Raise it, or leave them out of the features (featurize.truncated)."
    )


def without_verdict(unverified: Mapping[str, int]) -> str:
    """Say how many rollouts and attempts have no verdict; nothing where all have one."""
    if not unverified:
        return ""
    return f" Without a verdict: {words.without_verdict(unverified)}; see data/*/*.unverified.jsonl."


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f}%"


def against_retry(rows: list[dict[str, Any]], width: int) -> Table | None:
    """Return the arms against retry that spends as many tokens, a column a budget; None where none was compared.

    Budgets that have no room are left out, the smallest first.
    """
    whole = [row for row in rows if row["cells"] == "all"]
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in whole) if arm != words.RETRY]
    if not arms:
        return None
    label = min(LONGEST_NAME, max(map(len, [*arms, "retry solves, %"])))
    budgets = sorted({row["budget"] for row in whole})
    shown = budgets[-max(1, (width - label) // FIGURE) :]
    table = _grid(["budget, in retries", *map(str, shown)], LONGEST_NAME)
    by = {(row["arm"], row["budget"]): row for row in whole}
    alone = [words.interval(by.get((words.RETRY, budget), {}), "solved", "") for budget in shown]
    table.add_row("retry solves, %", *alone)
    for arm in arms[:MOST_ARMS]:
        table.add_row(Text(arm), *(_gain(by.get((arm, budget), {})) for budget in shown))
    left = [f"budgets {', '.join(map(str, budgets[: -len(shown)]))}"] if len(shown) < len(budgets) else []
    left += [_many(len(arms) - MOST_ARMS, "more arm")] if len(arms) > MOST_ARMS else []
    table.caption = Text(f"In the report too: {' and '.join(left)}.") if left else None
    return table


def _gain(row: dict[str, Any]) -> Text:
    gain = words.interval(row, "same_tokens") or "not known"
    return Text(gain, style="bold green" if words.above(row) else "")


def _grid(heads: list[str], longest: int | None = None) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="", caption_justify="left")
    table.add_column(Text(heads[0], style="dim"), overflow="fold", max_width=longest)
    for head in heads[1:]:
        table.add_column(Text(head, style="dim"), justify="right")
    return table


def champion(version: Version | None, challenger: Version | None, to_ship: str) -> str:
    """Say which policy is the champion and why, from the tags of its version; and what a better one would have to do.

    Parameters
    ----------
    to_ship : str
        The arm that the bottom line names; empty where it names none.
    """
    if version is None:
        return "No router is registered as champion; salvage register registers one."
    policy = version.tags.get("policy", "unknown")
    line = f"{policy}, version {version.number} of salvage-router: {_why(version.tags)}."
    later = challenger is not None and challenger.number > version.number
    if challenger is not None and later:
        line += f" Version {challenger.number}, {challenger.tags.get('policy', 'unknown')}, stays the challenger"
        line += f": {_verdict(challenger.tags)}." if "gate.difference" in challenger.tags else "."
    judged = {policy} | ({challenger.tags.get("policy")} if challenger is not None and later else set())
    if to_ship in POLICIES and to_ship not in judged:
        line += f" To ship {words.named(to_ship)}: salvage register --policy {to_ship}; the gate then judges the two."
    return line


def _why(tags: Mapping[str, str]) -> str:
    if "gate.difference" not in tags:
        return "the first that was registered, with none before it to beat"
    if tags.get("gate.better") == "True":
        return f"it beat the champion before it, {_verdict(tags)}"
    if tags.get("forced") == "True":
        return f"it was forced on the gate, {_verdict(tags)}"
    return f"it was made champion by hand, {_verdict(tags)}"


def _verdict(tags: Mapping[str, str]) -> str:
    """Say what the gate saw, from the tags of `evaluation.gate.Verdict`."""
    row = {f"gain{end}": float(tags[f"gate.{name}"]) for end, name in _ENDS if f"gate.{name}" in tags}
    before, n = tags.get("gate.champion", "it"), int(float(tags.get("gate.failures", "0")))
    where = f"in {tags.get('gate.measure', 'rescue')} over {n:,} failures on held-out problems"
    return f"{words.interval(row, 'gain', '+', ' points')} against {before}, {where}"


_ENDS = (("", "difference"), ("_low", "low"), ("_high", "high"))


def rule(rows: list[dict[str, Any]]) -> Table | Text:
    """Return what the paper's rule rescues by each protocol, a line each; or say that it was not scored."""
    mine = {
        row["protocol"]: row
        for row in rows
        if (row["cell"], row["scope"], row["policy"], row["k"]) == ("all", STEERABLE_HARD, "rule", 1)
        and is_told(row["rescue"])
    }
    if not mine:
        return Text(f"It was not scored: no failure here is {STEERABLE_HARD}.")
    table = _grid(["protocol", "n", "rescued", "over retry", "over best fixed"])
    for protocol in filter(mine.__contains__, PROTOCOLS):
        row = mine[protocol]
        lifts = [words.interval(row, name) for name in ("over_retry", "over_best_fixed")]
        table.add_row(protocol, str(row["n"]), words.interval(row, "rescue", ""), *lifts)
    return table


def places(figures: Figures) -> Table:
    """Return where the rest is, a line each."""
    remote = figures.store.startswith("http")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for what, where in (
        ("pictures and tables", figures.report),
        ("long tables", "salvage evaluate"),
        ("runs and models", f"{'open' if remote else 'mlflow ui --backend-store-uri'} {figures.store}"),
        ("serve the champion", SERVE),
    ):
        table.add_row(Text(what), Text(where))
    return table
