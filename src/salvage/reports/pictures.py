"""The pictures: failures in feature space, rescue by policy, what budgets and the closed loop's arms solve."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salvage.reports.tables import is_told
from salvage.tables.files import beside, write_text

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
MAX_PANELS = 12
LEAST_GAIN = 1.0  # points on each side of zero that an axis of gains shows
LEAST_SHARE = 5.0  # of a hundred, that an axis of shares shows
LEAST_FEATURE = 0.1
LEAST_TOKENS = 2.0


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
    at_least(axes[0, 0], x=LEAST_FEATURE, y=LEAST_FEATURE)
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
    shown = [row for row in rows if row["cell"] == "all" and row["k"] == 1 and is_told(row["rescue"])]
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
        axis.set_xlim(0, max(axis.get_xlim()[1], LEAST_SHARE / 100))
        axis.grid(axis="x", alpha=0.2)
    axes[0, 0].set_yticks(range(len(policies)), policies)
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=8)
    save(plt, figure, path)


def budget_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw failures solved against model-tokens spent, a panel a group of cells, and save it.

    Above, what a budget solves (its worst case is what it is worth); below, the points over retry with their intervals.
    """
    plt = pyplot()
    shown = [r for r in rows if r["budget"] is not None and r["protocol"] == "cross-fitted" and is_told(r["rescue"])]
    cells = [cell for cell in dict.fromkeys(r["cell"] for r in shown) if cell == "all" or "*" in cell] or ["all"]
    figure, axes = plt.subplots(2, len(cells), figsize=(2.3 * len(cells) + 1.6, 5.2), sharex="row", squeeze=False)
    for (above, below), cell in zip(axes.T, cells, strict=True):
        for (policy, colour), mark in zip(SPENDERS.items(), "oDX", strict=True):
            part = sorted((r for r in shown if (r["cell"], r["policy"]) == (cell, policy)), key=lambda r: r["budget"])
            budgets = [r["budget"] for r in part]
            look = {"color": colour, "marker": mark, "markersize": 4}
            above.plot(budgets, [100 * r["rescue"] for r in part], label=policy, **look)
            part = [r for r in part if is_told(r["over_retry"])]
            if part:
                gain, low, high = _gains(part, "over_retry").T
                budgets = [r["budget"] for r in part]
                below.plot(budgets, gain, **look)
                below.fill_between(budgets, low, high, color=colour, alpha=0.25, linewidth=0)
        above.set_title(cell, fontsize=9)
        at_least(above, y=LEAST_SHARE)
        _zero_line(below)
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

    A panel for all cells and one a method; below, at each budget, the arms side by side with their intervals: over
    retry that spends as many tokens, as the tables have it, and over retry within the same budget where no row knows
    that. A point where retry was never seen to spend so much is left out.
    """
    plt = pyplot()
    groups = [g for g in dict.fromkeys(r["cells"] for r in rows) if g == "all" or g.startswith("*-")]
    budgets = sorted({row["budget"] for row in rows})
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    left = iter(MORE_STYLES * len(arms))
    rivals = [arm for arm in arms if any(row["arm"] == arm and is_told(row["over_retry"]) for row in rows)]
    drawn = [row for row in rows if row["cells"] in groups and is_told(row["over_retry"])]
    gain = "same_tokens" if any(is_told(row.get("same_tokens")) for row in drawn) else "over_retry"
    styles = {arm: STYLES.get(arm) or next(left) for arm in arms}
    figure, axes = plt.subplots(2, len(groups), figsize=(2.5 * len(groups) + 1.6, 5.4), sharey="row", squeeze=False)
    for (above, below), group in zip(axes.T, groups, strict=True):
        for arm, (colour, mark, line) in styles.items():
            part = sorted((r for r in rows if (r["cells"], r["arm"]) == (group, arm)), key=lambda r: r["budget"])
            look = {"color": colour, "marker": mark, "markersize": 5, "label": arm}
            spent, solved = ([row[name] for row in part] for name in ("model_tokens", "solved"))
            above.plot(spent, 100 * np.array(solved), linestyle=line, **look)
            part = [row for row in part if is_told(row.get(gain))]
            if part:
                told = _gains(part, gain)
                shift = 0.16 * (rivals.index(arm) - (len(rivals) - 1) / 2)
                places = [budgets.index(row["budget"]) + shift for row in part]
                errors = np.abs(told[:, 1:] - told[:, :1]).T
                below.errorbar(places, told[:, 0], errors, linestyle="", elinewidth=1.2, **look)
        above.set_title(group, fontsize=10)
        above.set_xlabel("model-tokens a problem", fontsize=8)
        below.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
        below.set_xlabel("budget, in retries", fontsize=8)
        for axis in (above, below):
            axis.grid(alpha=0.2)
            axis.tick_params(labelsize=8)
    for above, below in axes.T:  # once all is drawn, since the panels of a row share their axis
        at_least(above, x=LEAST_TOKENS, y=LEAST_SHARE)
        _zero_line(below)
    axes[0, 0].set_ylabel("problems solved, %")
    as_many = "\nfor as many tokens" if gain == "same_tokens" else ""
    axes[1, 0].set_ylabel(f"points over retry{as_many} [95%]")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=8)
    save(plt, figure, path)


def at_least(axis: Any, *, x: float = 0.0, y: float = 0.0) -> None:
    """Widen an axis, about its middle, that shows less than is worth seeing: differences of 1e-6 are drawn as none."""
    for least, limits, widen in ((x, axis.get_xlim(), axis.set_xlim), (y, axis.get_ylim(), axis.set_ylim)):
        middle, span = (limits[0] + limits[1]) / 2, abs(limits[1] - limits[0])
        if span < least:
            up = 1 if limits[0] <= limits[1] else -1
            widen(middle - up * least / 2, middle + up * least / 2)


def _gains(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    """Return gains in points with the ends of their intervals, [rows, 3]: what rounds to zero is drawn as zero."""
    ends = [[row[f"{name}{end}"] for end in ("", "_low", "_high")] for row in rows]
    return np.round(100 * np.array(ends, dtype=float), 3) + 0.0


def _zero_line(axis: Any) -> None:
    """Draw where a gain is nothing, in an axis of gains that shows a point above and below it or more."""
    axis.axhline(0, color="black", linewidth=0.8)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -LEAST_GAIN), max(high, LEAST_GAIN))


def _plain(figure: Any) -> None:
    """Have every tick tell its whole number: no power of ten and no offset that stands apart from it."""
    from matplotlib.ticker import ScalarFormatter

    for axis in (part for axes in figure.axes for part in (axes.xaxis, axes.yaxis)):
        formatter = axis.get_major_formatter()
        if isinstance(formatter, ScalarFormatter):
            formatter.set_useOffset(False)
            formatter.set_scientific(False)


def pyplot() -> Any:
    """Return matplotlib's pyplot, set up to draw files."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})
    mpl.rcParams.update({"svg.hashsalt": "salvage", "svg.fonttype": "none"})
    mpl.rcParams["text.parse_math"] = False  # a name with two $ is no formula
    import matplotlib.pyplot as plt

    return plt


def save(plt: Any, figure: Any, path: Path) -> None:
    """Save a picture, beside it as an SVG that takes the colours of the page around it, and let go of it."""
    _plain(figure)
    # No date or version inside: the same results give the same file.
    with beside(path) as part:
        figure.savefig(part, format="png", dpi=130, metadata={"Software": None})
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
