"""The tables of the evaluation and of the closed loop, as they are printed and as the page has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from salvage.reports.plain import PlainTable, console

PROTOCOLS = ("paper", "cross-fitted")
SHOWN_BUDGETS = (2, 4, 8, 16)


def evaluation_table(rows: list[dict[str, Any]]) -> Table:
    """Return what one attempt rescues over all cells together as a table, the protocols side by side."""
    shown = [row for row in rows if row["cell"] == "all" and row["k"] == 1]
    protocols = [name for name in PROTOCOLS if any(row["protocol"] == name for row in shown)]
    table = PlainTable(title="Rescue by one attempt, % [95% interval], all cells together")
    for name in ("failures", "policy"):
        table.add_column(name)
    for protocol in protocols:
        table.add_column(protocol, justify="right")
        table.add_column("n", justify="right")
    spent = any(is_told(row["per_1000"]) for row in shown)  # rates alone tell no tokens
    spending = ["for 1,000 model-tokens"] if spent else []
    for name in (f"over retry ({protocols[-1]})", "over best fixed", *spending, "p"):
        table.add_column(name, justify="right")
    last = None
    for key in dict.fromkeys((row["scope"], row["policy"]) for row in shown):
        by = {row["protocol"]: row for row in shown if (row["scope"], row["policy"]) == key}
        row = next(by[name] for name in reversed(protocols) if name in by)
        cells = [part for name in protocols for part in figures(by.get(name))]
        lifts = [_interval(row, label, "+.1f") for label in ("over_retry", "over_best_fixed")]
        per_1000 = [f"{row['per_1000']:.2f}" if is_told(row["per_1000"]) else ""] if spent else []
        p = f"{row['p_value']:.3f}" if is_told(row["p_value"]) else ""
        if last not in (None, key[0]):
            table.add_section()
        last = key[0]
        table.add_row(*key, *cells, *lifts, *per_1000, p)
    return table


def transfer_table(rows: list[dict[str, Any]]) -> Table:
    """Return what policies fitted on the other families rescue by one attempt, beside the cross-fitted."""
    shown = [row for row in rows if row["k"] == 1 and row["scope"] == "all" and is_told(row["over_retry"])]
    both = {(row["cell"], row["policy"], row["protocol"]): row for row in shown}
    table = PlainTable(
        title="Over retry by one attempt, all failures: points [95%]; transfer = fitted on the other family"
    )
    for name in ("cells", "policy", "cross-fitted", "transfer"):
        table.add_column(name, justify="right" if name in PROTOCOLS or name == "transfer" else "left")
    for cell, policy, protocol in both:
        if protocol == "transfer" and (cell == "all" or (cell.endswith("-*") and not cell.startswith("*"))):
            own = both.get((cell, policy, "cross-fitted"))
            told = "" if own is None else _interval(own, "over_retry", "+.1f")
            table.add_row(cell, policy, told, _interval(both[cell, policy, protocol], "over_retry", "+.1f"))
    return table


def budget_table(rows: list[dict[str, Any]]) -> Table:
    """Return what budgets rescue, all failures: retry, and what portfolio and hindsight's best mix add to it."""
    from salvage.evaluation.budgets import STOPPING

    shown = [row for row in rows if row["budget"] in SHOWN_BUDGETS and ("*" in row["cell"] or row["cell"] == "all")]
    names = list(dict.fromkeys((row["policy"], row["protocol"]) for row in shown))
    names = [name for name in names if name != ("retry", "transfer") and not name[0].startswith(STOPPING)]
    table = PlainTable(
        title="Solved within a budget (in retries' worth of model-tokens), all failures, %; then points over retry"
    )
    table.add_column("cells")
    table.add_column("budget", justify="right")
    for policy, protocol in names:
        table.add_column(policy if protocol == "cross-fitted" else f"{policy}, {protocol}", justify="right")
    last = None
    for cell, budget in dict.fromkeys((row["cell"], row["budget"]) for row in shown):
        by = {(r["policy"], r["protocol"]): r for r in shown if (r["cell"], r["budget"]) == (cell, budget)}
        told = [
            ""
            if name not in by
            else _interval(by[name], "over_retry", "+.1f")
            if name[0] != "retry"
            else figures(by[name])[0]
            for name in names
        ]
        if last not in (None, cell):
            table.add_section()
        last = cell
        table.add_row(cell, str(budget), *told)
    return table


def stopping_table(rows: list[dict[str, Any]]) -> Table:
    """Return what stopping saves: solved and spent by the portfolio at each price, and by retry for as many tokens."""
    from salvage.evaluation.budgets import STOPPING

    shown = [r for r in rows if r["budget"] is not None and r["protocol"] == "cross-fitted" and r["tokens"] is not None]
    table = PlainTable(
        title="The portfolio with stop among its choices: solved, %, for the model-tokens spent on a failure"
    )
    for name in ("cells", "stops below", "tokens", "solved", "retry, for as many tokens"):
        table.add_column(name, justify="left" if name == "cells" else "right")
    for cell in dict.fromkeys(r["cell"] for r in shown if "*" in r["cell"] or r["cell"] == "all"):
        own = [r for r in shown if r["cell"] == cell]
        spent, rescued = np.array(sorted((r["tokens"], r["rescue"]) for r in own if r["policy"] == "retry")).T
        for row in (r for r in own if r["policy"].startswith(STOPPING)):
            alone = f"{100 * np.interp(row['tokens'], spent, rescued):.1f}" if row["tokens"] >= spent[0] else ""
            price, solved = row["policy"].removeprefix(STOPPING), _interval(row, "rescue", ".1f")
            table.add_row(cell, price, f"{row['tokens']:.0f}", solved, alone)
    return table


def arm_table(rows: list[dict[str, Any]]) -> Table:
    """Return what the closed loop solved by arm and budget, for all cells and groups of them."""
    shown = [row for row in rows if row["cells"] == "all" or "*" in row["cells"]]
    same = ["same_tokens"] if any(is_told(row.get("same_tokens")) for row in shown) else []
    table = PlainTable(
        title="The closed loop within a budget (in retries' worth of model-tokens): % [95%], means a problem"
    )
    for name in ("cells", "arm", "budget", "problems", "solved", "over retry", *["for as many tokens"][: len(same)]):
        table.add_column(name, justify="left" if name in ("cells", "arm") else "right")
    for name in ("model-tokens", "attempts", "scored tokens"):
        table.add_column(name, justify="right")
    last = None
    for row in shown:
        solved, lifts = _interval(row, "solved", ".1f"), [_interval(row, n, "+.1f") for n in ("over_retry", *same)]
        spent = [f"{row['model_tokens']:.0f}", f"{row['attempts']:.2f}", f"{row['scored_tokens']:.0f}"]
        if last not in (None, row["cells"]):
            table.add_section()
        last = row["cells"]
        table.add_row(row["cells"], row["arm"], str(row["budget"]), str(row["problems"]), solved, *lifts, *spent)
    return table


def is_told(value: Any) -> bool:
    """Tell whether a row has a figure: an unknown one is None in JSON and NaN in a table."""
    return value is not None and not pd.isna(value)


def figures(row: dict[str, Any] | None) -> tuple[str, str]:
    """Return what a row of the evaluation rescues, with its interval, and of how many; empty where there is none."""
    if row is None:
        return "", ""
    return _interval(row, "rescue", ".1f"), str(row["n"])


def ends(label: str) -> tuple[str, str]:
    """Return the names under which a row has the ends of a figure's interval."""
    return ("low", "high") if label in ("rescue", "solved") else (f"{label}_low", f"{label}_high")


def _interval(row: dict[str, Any], label: str, form: str) -> str:
    if not is_told(row.get(label)):
        return ""
    # 0.0 added, so that no figure reads -0.0
    told, *bounds = (
        format(round(100 * row[name], 1) + 0.0, form) for name in (label, *ends(label)) if is_told(row[name])
    )
    return f"{told} [{', '.join(bounds)}]" if bounds else told


def answer_table(table: pd.DataFrame, limit: int = 20) -> Table:
    """Return routed failures as a table: the first rows, and the rest as counts by operator in its caption."""
    counts = ", ".join(f"{name} {n}" for name, n in table["operator"].value_counts().items())
    shown = PlainTable(title=f"{len(table)} failures routed", caption=counts)
    for name in table.columns:
        numeric = pd.api.types.is_float_dtype(table[name])
        shown.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in table.head(limit).itertuples(index=False):
        shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    if len(table) > limit:
        shown.add_row("…", *[""] * (len(table.columns) - 1))
    return shown


def show(rows: list[dict[str, Any]]) -> None:
    """Print the evaluation's tables: one attempt, budgets, transfer."""
    show_table(evaluation_table(rows))
    for table in (budget_table(rows), stopping_table(rows), transfer_table(rows)):
        if table.row_count:
            show_table(table)


def show_table(table: Table) -> None:
    """Print a table, 180 columns wide where the output is no terminal."""
    console().print(table)
