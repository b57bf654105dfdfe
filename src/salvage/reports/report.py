"""What is shown: the evaluation's tables; pictures of the failures, of rescue by policy, of what budgets solve."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from salvage.tables.files import write_text

# Okabe and Ito's colours: told apart by colour-blind readers, and in grey.
COLOURS = {"retry-solvable": "#56B4E9", "steerable-hard": "#D55E00", "beyond reach": "#999999"}
MARKERS = {"dense_steer": "s", "sparse_steer": "^", "local_temp": "o", "sparse_steer_random": "X"}
OPEN = ("retry-solvable",)  # marks with nothing inside, so that regimes differ in more than colour
SIZES = {"retry-solvable": 18, "steerable-hard": 18, "beyond reach": 5}
PROTOCOLS = {"paper": "#E69F00", "cross-fitted": "#0072B2"}
SPENDERS = {"retry": "#56B4E9", "portfolio": "#D55E00", "best mix (hindsight)": "#999999"}
# Colour, mark and line; arms that have none of their own take what is left.
STYLES = {"retry": ("#56B4E9", "o", "-"), "rule": ("#009E73", "s", "--"), "calibrated": ("#CC79A7", "^", "-.")}
STYLES |= {"portfolio": ("#D55E00", "D", "-")}
MORE_STYLES = [("#0072B2", "v", ":"), ("#E69F00", "P", "--"), ("#999999", "X", "-."), ("#F0E442", "*", ":")]
SHOWN_BUDGETS = (2, 4, 8, 16)
MAX_PANELS = 12


def evaluation_table(rows: list[dict[str, Any]]) -> Table:
    """Return what one attempt rescues over all cells together as a table, the protocols side by side."""
    shown = [row for row in rows if row["cell"] == "all" and row["k"] == 1]
    protocols = [name for name in PROTOCOLS if any(row["protocol"] == name for row in shown)]
    table = Table(title="Rescue by one attempt, % [95% interval], all cells together")
    for name in ("failures", "policy"):
        table.add_column(name)
    for protocol in protocols:
        table.add_column(protocol, justify="right")
        table.add_column("n", justify="right")
    spent = any(_is(row["per_1000"]) for row in shown)  # rates alone tell no tokens
    spending = ["for 1,000 model-tokens"] if spent else []
    for name in (f"over retry ({protocols[-1]})", "over best fixed", *spending, "p"):
        table.add_column(name, justify="right")
    last = None
    for key in dict.fromkeys((row["scope"], row["policy"]) for row in shown):
        by = {row["protocol"]: row for row in shown if (row["scope"], row["policy"]) == key}
        row = next(by[name] for name in reversed(protocols) if name in by)
        cells = [part for name in protocols for part in figures(by.get(name))]
        lifts = [_interval(row, label, "+.1f") for label in ("over_retry", "over_best_fixed")]
        per_1000 = [f"{row['per_1000']:.2f}" if _is(row["per_1000"]) else ""] if spent else []
        p = f"{row['p_value']:.3f}" if _is(row["p_value"]) else ""
        if last not in (None, key[0]):
            table.add_section()
        last = key[0]
        table.add_row(*key, *cells, *lifts, *per_1000, p)
    return table


def transfer_table(rows: list[dict[str, Any]]) -> Table:
    """Return what policies fitted on the other families rescue by one attempt, beside the cross-fitted."""
    shown = [row for row in rows if row["k"] == 1 and row["scope"] == "all" and _is(row["over_retry"])]
    both = {(row["cell"], row["policy"], row["protocol"]): row for row in shown}
    table = Table(title="Over retry by one attempt, all failures: points [95%]; transfer = fitted on the other family")
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
    table = Table(
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
    table = Table(title="The portfolio with stop among its choices: solved, %, for the model-tokens spent on a failure")
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
    same = ["same_tokens"] if any(_is(row.get("same_tokens")) for row in shown) else []
    table = Table(title="The closed loop within a budget (in retries' worth of model-tokens): % [95%], means a problem")
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


def _is(value: Any) -> bool:
    return value is not None and not pd.isna(value)


def figures(row: dict[str, Any] | None) -> tuple[str, str]:
    """Return what a row of the evaluation rescues, with its interval, and of how many; empty where there is none."""
    if row is None:
        return "", ""
    return _interval(row, "rescue", ".1f"), str(row["n"])


def _interval(row: dict[str, Any], label: str, form: str) -> str:
    ends = ("low", "high") if label in ("rescue", "solved") else (f"{label}_low", f"{label}_high")
    if not _is(row.get(label)):
        return ""
    # 0.0 added, so that no figure reads -0.0
    told, *bounds = (format(round(100 * row[name], 1) + 0.0, form) for name in (label, *ends) if _is(row[name]))
    return f"{told} [{', '.join(bounds)}]" if bounds else told


def answer_table(table: pd.DataFrame, limit: int = 20) -> Table:
    """Return routed failures as a table: the first rows, and the rest as counts by operator in its caption."""
    counts = ", ".join(f"{name} {n}" for name, n in table["operator"].value_counts().items())
    shown = Table(title=f"{len(table)} failures routed", caption=counts)
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
    """Print a table, at least 160 columns wide where the output is no terminal."""
    console = Console()
    (console if console.is_terminal else Console(width=180)).print(table)


def panel(profiles: pd.DataFrame, routed: Sequence[str] | np.ndarray, path: Path) -> None:
    """Draw the failures in feature space, a small panel a model, and save the picture.

    Parameters
    ----------
    profiles : DataFrame (`schema.PROFILES`)
        One row a failure.
    routed : [n] operator names
        Where the rule sends each of them.
    path : Path
        The PNG.
    """
    from salvage.method.profiles import regimes

    plt = pyplot()
    table = profiles.assign(regime=regimes(profiles), routed=np.asarray(routed))
    groups = list(table.groupby("cell", sort=True))[:MAX_PANELS]
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(3.2 * columns, 8), 2.9 * rows + 1.2), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, (cell, rows_of_cell) in zip(axes.flat, groups, strict=False):
        _scatter(axis, rows_of_cell)
        axis.set_title(f"{cell}  (n = {len(rows_of_cell)})", fontsize=9)
    figure.supxlabel("spread: share of tokens with j > 0")
    figure.supylabel("concentration: log10(max j / mean j)")
    _legend(plt, figure)
    save(plt, figure, path)


def _scatter(axis: Any, table: pd.DataFrame) -> None:
    for (regime, operator), rows in table.groupby(["regime", "routed"]):
        axis.scatter(
            rows["spread"],
            rows["concentration"],
            s=SIZES[str(regime)],
            alpha=0.7,
            linewidths=0.8,
            facecolors="none" if regime in OPEN else COLOURS[str(regime)],
            edgecolors=COLOURS[str(regime)],
            marker=MARKERS.get(str(operator), "D"),
        )
    axis.grid(alpha=0.2)


def _legend(plt: Any, figure: Any) -> None:
    line = plt.Line2D
    handles = []
    for name, colour in COLOURS.items():
        look = {"fillstyle": "none" if name in OPEN else "full", "markersize": SIZES[name] ** 0.5 + 1.5}
        handles.append(line([], [], color=colour, marker="o", linestyle="", label=name, **look))
    handles += [line([], [], color="black", marker=m, linestyle="", label=name) for name, m in MARKERS.items()]
    look = {"loc": "outside upper left", "ncols": len(handles), "alignment": "left", "fontsize": 8}
    figure.legend(handles=handles, title="colour and filling: regime; shape: routed to", **look)


def rescue_bars(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what one attempt rescues by policy with its interval, both protocols, a panel a scope, and save it."""
    plt = pyplot()
    shown = [row for row in rows if row["cell"] == "all" and row["k"] == 1 and _is(row["rescue"])]
    shown = [row for row in shown if row["protocol"] in PROTOCOLS]
    scopes = list(dict.fromkeys(row["scope"] for row in shown)) or ["all"]
    policies = list(dict.fromkeys(row["policy"] for row in shown))
    figure, axes = plt.subplots(
        1, len(scopes), figsize=(4.6 * len(scopes) + 1.5, 0.42 * len(policies) + 2), sharey=True, squeeze=False
    )
    for axis, scope in zip(axes.flat, scopes, strict=True):
        for shift, (protocol, colour) in zip((-0.18, 0.18), PROTOCOLS.items(), strict=True):
            part = [row for row in shown if row["scope"] == scope and row["protocol"] == protocol]
            places = [policies.index(row["policy"]) + shift for row in part]
            rates = np.array([row["rescue"] for row in part], dtype=float)
            bounds = np.array([[row["low"], row["high"]] for row in part], dtype=float).reshape(-1, 2).T
            errors = np.nan_to_num(np.abs(bounds - rates))
            label = f"{protocol} ({'upper' if shift < 0 else 'lower'} bar)"
            axis.barh(places, rates, 0.34, xerr=errors, color=colour, label=label, error_kw={"elinewidth": 1})
        axis.set_title(f"{scope} failures", fontsize=10)
        axis.set_xlabel("rescued by one attempt")
        axis.grid(axis="x", alpha=0.2)
    axes[0, 0].set_yticks(range(len(policies)), policies)
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=8)
    save(plt, figure, path)


def budget_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw failures solved against model-tokens spent, a panel a group of cells, and save it.

    Left, what a budget solves (its worst case is what it is worth); right, the points over retry with their intervals.
    """
    plt = pyplot()
    shown = [r for r in rows if r["budget"] is not None and r["protocol"] == "cross-fitted" and _is(r["rescue"])]
    cells = [cell for cell in dict.fromkeys(r["cell"] for r in shown) if cell == "all" or "*" in cell] or ["all"]
    figure, axes = plt.subplots(2, len(cells), figsize=(2.3 * len(cells) + 1.6, 5.2), sharex="row", squeeze=False)
    for (above, below), cell in zip(axes.T, cells, strict=True):
        for (policy, colour), mark in zip(SPENDERS.items(), "oDX", strict=True):
            part = sorted((r for r in shown if (r["cell"], r["policy"]) == (cell, policy)), key=lambda r: r["budget"])
            budgets = [r["budget"] for r in part]
            look = {"color": colour, "marker": mark, "markersize": 4}
            above.plot(budgets, [100 * r["rescue"] for r in part], label=policy, **look)
            lifts = np.array(
                [[r[f"over_retry{end}"] for end in ("", "_low", "_high")] for r in part if _is(r["over_retry"])]
            )
            if len(lifts):
                below.plot(budgets, 100 * lifts[:, 0], **look)
                below.fill_between(budgets, 100 * lifts[:, 1], 100 * lifts[:, 2], color=colour, alpha=0.25, linewidth=0)
        above.set_title(cell, fontsize=9)
        below.axhline(0, color="black", linewidth=0.8)
        below.set_xlabel("budget, in retries", fontsize=8)
        for axis in (above, below):
            axis.grid(alpha=0.2)
            axis.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("failures solved, %")
    axes[1, 0].set_ylabel("points over retry")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize=8)
    save(plt, figure, path)


def arm_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw what the arms of the closed loop solve against the model-tokens they spend, and their points over retry.

    A panel for all cells and one a method; below, at each budget, the arms side by side with their intervals.
    """
    plt = pyplot()
    groups = [g for g in dict.fromkeys(r["cells"] for r in rows) if g == "all" or g.startswith("*-")]
    budgets = sorted({row["budget"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    left = iter(MORE_STYLES * len(arms))
    rivals = [arm for arm in arms if any(row["arm"] == arm and _is(row["over_retry"]) for row in rows)]
    styles = {arm: STYLES.get(arm) or next(left) for arm in arms}
    figure, axes = plt.subplots(2, len(groups), figsize=(2.5 * len(groups) + 1.6, 5.4), sharey="row", squeeze=False)
    for (above, below), group in zip(axes.T, groups, strict=True):
        for arm, (colour, mark, line) in styles.items():
            part = sorted((r for r in rows if (r["cells"], r["arm"]) == (group, arm)), key=lambda r: r["budget"])
            look = {"color": colour, "marker": mark, "markersize": 5, "label": arm}
            spent, solved = ([row[name] for row in part] for name in ("model_tokens", "solved"))
            above.plot(spent, 100 * np.array(solved), linestyle=line, **look)
            part = [row for row in part if _is(row["over_retry"])]
            told = 100 * np.array([[row[f"over_retry{end}"] for end in ("", "_low", "_high")] for row in part])
            if part:
                shift = 0.16 * (rivals.index(arm) - (len(rivals) - 1) / 2)
                places = [budgets.index(row["budget"]) + shift for row in part]
                errors = np.abs(told[:, 1:] - told[:, :1]).T
                below.errorbar(places, told[:, 0], errors, linestyle="", elinewidth=1.2, **look)
        above.set_title(group, fontsize=10)
        above.set_xlabel("model-tokens a problem", fontsize=8)
        below.axhline(0, color="black", linewidth=0.8)
        below.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
        below.set_xlabel("budget, in retries", fontsize=8)
        for axis in (above, below):
            axis.grid(alpha=0.2)
            axis.tick_params(labelsize=8)
    axes[0, 0].set_ylabel("problems solved, %")
    axes[1, 0].set_ylabel("points over retry [95%]")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8)
    save(plt, figure, path)


def pyplot() -> Any:
    """Return matplotlib's pyplot, set up to draw files."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams.update({"svg.hashsalt": "salvage", "svg.fonttype": "none"})
    import matplotlib.pyplot as plt

    return plt


def save(plt: Any, figure: Any, path: Path) -> None:
    """Save a picture, beside it as an SVG that takes the colours of the page around it, and let go of it."""
    # No date or version inside: the same results give the same file.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    for part in figure.findobj(lambda artist: hasattr(artist, "get_frame")):  # legends: no white box on a dark page
        part.get_frame().set_facecolor("none")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    write_text(path.with_suffix(".svg"), _for_a_page(drawn.getvalue(), path.stem))


def _for_a_page(svg: str, name: str) -> str:
    """Return matplotlib's SVG such that several go into one HTML page, dark or light.

    Black becomes `currentColor`, ids get the picture's name, and what holds for the whole document moves to the root.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g clip-path="[^"]*">\s*<use [^>]*style="fill: none"/>\s*</g>\s*', "", svg)  # seen by nobody
    # Matplotlib clips each mark by itself, which doubles the file.
    svg = re.sub(r'(<g clip-path="[^"]*">)((?:\s*<use [^>]*/>\s*</g>\s*\1)+)', _merged, svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _adapted(tag[0], name), svg)
    # What has no fill is black: text, and marks drawn in black.
    return svg.replace("<svg ", '<svg fill="currentColor" stroke-linejoin="round" stroke-linecap="butt" ', 1)


def _merged(marks: re.Match[str]) -> str:
    return marks[1] + re.sub(rf"</g>\s*{re.escape(marks[1])}", "", marks[2])


def _adapted(tag: str, name: str) -> str:
    tag = re.sub(r' xmlns:xlink="[^"]*"', "", tag).replace("xlink:href", "href").replace("#000000", "currentColor")
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", tag)
    tag = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", "sans-serif", tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)  # a hundredth of a point is enough
