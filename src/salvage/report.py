"""What is shown: the evaluation's table, the picture of the failures, the bars of rescue by policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

# Okabe and Ito's colours: told apart by colour-blind readers, and in grey.
COLOURS = {"retry-solvable": "#56B4E9", "steerable-hard": "#D55E00", "beyond reach": "#999999"}
MARKERS = {"dense_steer": "s", "sparse_steer": "^", "local_temp": "o", "sparse_steer_random": "x"}
PROTOCOLS = {"paper": "#E69F00", "cross-fitted": "#0072B2"}
MAX_PANELS = 12


def evaluation_table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows over all cells together as a table, both protocols side by side."""
    shown = [row for row in rows if row["cell"] == "all"]
    table = Table(title="Rescue within k attempts, % [95% interval], all cells together")
    for name, justify in (("scope", "left"), ("policy", "left"), ("k", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for protocol in PROTOCOLS:
        table.add_column(protocol, justify="right")
        table.add_column("n", justify="right")
    table.add_column("p", justify="right")
    last = None
    for key in dict.fromkeys((row["scope"], row["policy"], row["k"]) for row in shown):
        by = {row["protocol"]: row for row in shown if (row["scope"], row["policy"], row["k"]) == key}
        cells = [part for name in PROTOCOLS for part in _figures(by.get(name))]
        p = next((by[name]["p_value"] for name in reversed(PROTOCOLS) if name in by and _is(by[name]["p_value"])), None)
        if last not in (None, key[0]):
            table.add_section()
        last = key[0]
        table.add_row(key[0], key[1], str(key[2]), *cells, "" if p is None else f"{p:.3f}")
    return table


def _is(value: Any) -> bool:
    return value is not None and not pd.isna(value)


def _figures(row: dict[str, Any] | None) -> tuple[str, str]:
    if row is None or not _is(row["rescue"]):
        return "", "" if row is None else str(row["n"])
    interval = f" [{row['low']:.1%}, {row['high']:.1%}]".replace("%", "") if _is(row["low"]) else ""
    return f"{100 * row['rescue']:.1f}{interval}", str(row["n"])


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
    """Print the evaluation's table."""
    show_table(evaluation_table(rows))


def show_table(table: Table) -> None:
    """Print a table, at least 120 columns wide where the output is no terminal."""
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


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
    from salvage.profiles import regimes

    plt = _pyplot()
    table = profiles.assign(regime=regimes(profiles), routed=np.asarray(routed))
    groups = list(table.groupby("cell", sort=True))[:MAX_PANELS]
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns + 2, 2.9 * rows + 0.8), sharex=True, sharey=True, squeeze=False
    )
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, (cell, rows_of_cell) in zip(axes.flat, groups, strict=False):
        _scatter(axis, rows_of_cell)
        axis.set_title(f"{cell}  (n = {len(rows_of_cell)})", fontsize=9)
    figure.supxlabel("spread: share of tokens with j > 0")
    figure.supylabel("concentration: log10(max j / mean j)")
    _legend(plt, figure)
    _save(plt, figure, path)


def _scatter(axis: Any, table: pd.DataFrame) -> None:
    for (regime, operator), rows in table.groupby(["regime", "routed"]):
        axis.scatter(
            rows["spread"],
            rows["concentration"],
            s=16,
            alpha=0.7,
            linewidths=0.8,
            color=COLOURS[str(regime)],
            marker=MARKERS.get(str(operator), "D"),
        )
    axis.grid(alpha=0.2)


def _legend(plt: Any, figure: Any) -> None:
    line = plt.Line2D
    handles = [line([], [], color=c, marker="o", linestyle="", label=name) for name, c in COLOURS.items()]
    handles += [line([], [], color="black", marker=m, linestyle="", label=name) for name, m in MARKERS.items()]
    figure.legend(handles=handles, loc="outside right upper", title="colour: regime\nmark: routed to", fontsize=8)


def rescue_bars(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw rescue by policy with its interval, both protocols, a panel a scope, at the smallest k, and save it."""
    plt = _pyplot()
    k = min((row["k"] for row in rows), default=1)
    shown = [row for row in rows if row["cell"] == "all" and row["k"] == k and _is(row["rescue"])]
    scopes = list(dict.fromkeys(row["scope"] for row in shown)) or ["all"]
    policies = list(dict.fromkeys(row["policy"] for row in shown))
    figure, axes = plt.subplots(
        1, len(scopes), figsize=(4.6 * len(scopes) + 1.5, 0.42 * len(policies) + 1.8), sharey=True, squeeze=False
    )
    for axis, scope in zip(axes.flat, scopes, strict=True):
        for shift, (protocol, colour) in zip((-0.18, 0.18), PROTOCOLS.items(), strict=True):
            part = [row for row in shown if row["scope"] == scope and row["protocol"] == protocol]
            places = [policies.index(row["policy"]) + shift for row in part]
            rates = np.array([row["rescue"] for row in part], dtype=float)
            bounds = np.array([[row["low"], row["high"]] for row in part], dtype=float).reshape(-1, 2).T
            errors = np.nan_to_num(np.abs(bounds - rates))
            axis.barh(places, rates, 0.34, xerr=errors, color=colour, label=protocol, error_kw={"elinewidth": 1})
        axis.set_title(f"{scope} failures", fontsize=10)
        axis.set_xlabel(f"rescued within {k} attempt{'s' if k > 1 else ''}")
        axis.grid(axis="x", alpha=0.2)
    axes[0, 0].set_yticks(range(len(policies)), policies)
    axes[0, 0].invert_yaxis()
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", title="protocol", fontsize=8)
    _save(plt, figure, path)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"figure.constrained_layout.use": True, "axes.spines.top": False, "axes.spines.right": False})
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path) -> None:
    # No date or version inside: the same results give the same file.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
