"""What the studies of regimes and methods show: tables, pictures, and the card of a registered classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from salvage.evaluation.groups import NAMED
from salvage.reports.pictures import COLOURS, LEAST_FEATURE, at_least, pyplot, save
from salvage.reports.plain import PlainTable
from salvage.reports.tables import show_table
from salvage.tables.vocabulary import FEATURES, INTERVENTIONS

# Okabe and Ito's, as in pictures.py.
OPERATOR_COLOURS = {"sparse_steer": "#E69F00", "sparse_steer_random": "#CC79A7", "local_temp": "#009E73"}
OPERATOR_COLOURS |= {"dense_steer": "#0072B2", "nothing beyond retry": "#DDDDDD"}
LINES = {"unseen seeds": "#0072B2", "unseen ancestors": "#009E73", "unseen family": "#D55E00"}
OPERATOR_MARKS = {"sparse_steer": "^", "sparse_steer_random": "X", "local_temp": "o", "dense_steer": "s"}
OPERATOR_MARKS |= {"nothing beyond retry": "."}
REGIME_MARKS = {"retry-solvable": "o", "steerable-hard": "s", "beyond reach": "^"}
FEWEST_IN_BIN = 12  # failures; a bin with fewer is left white


def show(told: dict[str, Any]) -> None:
    """Print a study's tables."""
    tables: list[Callable[[dict[str, Any]], Table]]
    tables = (
        [auc_table, importance_table, calibration_table, cluster_table, share_table]
        if "regimes" in told
        else [accuracy_table, confusion_table, importance_table]
    )
    for table in tables:
        made = table(told)
        if made.row_count:
            show_table(made)


def percent(row: dict[str, Any]) -> str:
    """Return a figure with its interval, in percent."""
    told = f"{100 * row['value']:.1f}"
    return told if row.get("low") is None else f"{told} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


# ------------------------------------------------------------------ regimes


def auc_table(told: dict[str, Any]) -> Table:
    """Return what each set of inputs tells of the regime, on problems held out."""
    by: dict[tuple[str, str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in told["regimes"]:
        key = (row["inputs"], row["classifier"], row["trained_on"])
        by.setdefault(key, {})[row["cells"], row["measure"]] = row
    table = PlainTable(
        title=f"Telling the regime before any attempt: area under the ROC curve, % [95%]; labels from {told['labels']}"
    )
    for name in ("inputs", "classifier", "trained on", "mean of the regimes", "within cells"):
        table.add_column(name, justify="right" if name in ("mean of the regimes", "within cells") else "left")
    names = [measure for measure in dict.fromkeys(r["measure"] for r in told["regimes"]) if measure.startswith("auc")]
    for name in names:
        table.add_column(name.removeprefix("auc: "), justify="right")
    for key, rows in by.items():
        if ("all", "macro_auc") in rows:
            each = [f"{100 * rows['all', name]['value']:.1f}" for name in names]
            within = rows.get(("within cells", "macro_auc"))
            table.add_row(*key, percent(rows["all", "macro_auc"]), percent(within) if within else "", *each)
    return table


def calibration_table(told: dict[str, Any]) -> Table:
    """Return Brier score and accuracy, beside guessing by the shares and the other half of the attempts."""
    table = PlainTable(title="Calibration, all failures")
    for name in ("told by", "Brier score", "accuracy, %"):
        table.add_column(name, justify="left" if name == "told by" else "right")
    rows = [row for row in told["regimes"] if row["measure"] in ("brier", "accuracy")]
    for key in dict.fromkeys((row["classifier"], row["trained_on"]) for row in rows):
        own = {row["measure"]: row for row in rows if (row["classifier"], row["trained_on"]) == key}
        brier = own["brier"]
        name = key[0] if key[0] != "its label" else "the regime by the other half of the attempts"
        table.add_row(name, f"{brier['value']:.3f} [{brier['low']:.3f}, {brier['high']:.3f}]", percent(own["accuracy"]))
    return table


def cluster_table(told: dict[str, Any]) -> Table:
    """Return the chosen clusters, what marks them and what rescues them."""
    table = PlainTable(title=_clusters_title(told["clusters"]))
    for name in (
        "family",
        "cluster",
        "failures",
        "share, %",
        "z: " + ", ".join(FEATURES),
        "marked by",
        "yields to, points",
    ):
        table.add_column(name, justify="right" if name in ("cluster", "failures", "share, %") else "left")
    for row in told["clusters"]:
        if row["measure"] == "cluster":
            z = ", ".join(f"{value:+.2f}" for value in row["z"])
            share = f"{100 * row['value']:.0f}"
            table.add_row(row["family"], str(row["cluster"]), str(row["n"]), share, z, row["name"], row["rescued_by"])
    explained = [row for row in told["clusters"] if row["measure"].startswith(("explained", "agreement"))]
    table.say(
        "; ".join(
            f"{row['family']} {row['measure']} {row['value']:.3f}"
            + (f" (p = {row['p_value']:.3f})" if "p_value" in row else "")
            for row in explained
        )
    )
    return table


def _clusters_title(rows: list[dict[str, Any]]) -> str:
    chosen = [row for row in rows if row.get("chosen")]
    told = ", ".join(f"{row['family']} {row['value']:.2f}".strip() for row in chosen)
    return (
        f"Clusters of failures: {chosen[0]['kind']}, k = {chosen[0]['k']}; adjusted Rand index over resamples: {told}"
    )


def share_table(told: dict[str, Any]) -> Table:
    """Return the shares of regimes by family and method."""
    names = list(dict.fromkeys(row["regime"] for row in told["shares"]))
    table = PlainTable(title="Regimes, % of failures [95%]")
    for name in ("cells", "failures", *names):
        table.add_column(name, justify="left" if name == "cells" else "right")
    for cells in dict.fromkeys(row["cells"] for row in told["shares"]):
        own = {row["regime"]: row for row in told["shares"] if row["cells"] == cells}
        n = str(next(iter(own.values()))["n"])
        table.add_row(cells, n, *(percent(own[name]) if name in own else "0" for name in names))
    return table


# ------------------------------------------------------------------ methods


def accuracy_table(told: dict[str, Any]) -> Table:
    """Return how often the method is told right, by what was held out."""
    rows = [row for row in told["methods"] if row["measure"] == "accuracy"]
    kinds = list(dict.fromkeys(row["split"] for row in rows))
    table = PlainTable(
        title="Telling the method from a bag of one checkpoint's failures: accuracy, % [95% over checkpoints]"
    )
    for name in ("inputs", "by", "bag", *kinds):
        table.add_column(name, justify="left" if name in ("inputs", "by") else "right")
    table.add_row(
        "none", "majority", "", *(f"{100 * next(r['majority'] for r in rows if r['split'] == k):.1f}" for k in kinds)
    )
    for key in dict.fromkeys((row["inputs"], row["way"], row["bag"]) for row in rows):
        own = {row["split"]: row for row in rows if (row["inputs"], row["way"], row["bag"]) == key}
        table.add_row(key[0], key[1], str(key[2]), *(percent(own[kind]) for kind in kinds))
    first = next(row for row in rows if row["bag"] == 25 and row["way"] == "bag")
    p = f"p = {first['p_value']:.4f} for bags of 25 with methods shuffled among them"
    table.say(f"{first['checkpoints']} checkpoints; {p}")
    return table


def confusion_table(told: dict[str, Any]) -> Table:
    """Return what bags of each method were told to be."""
    rows = [row for row in told["methods"] if row["measure"].startswith("told: ")]
    names = list(rows[0]["told"]) if rows else []
    table = PlainTable(title=f"Bags of {rows[0]['bag'] if rows else ''}: made by (row), told to be (column), %")
    for name in ("held out", "made by", *names):
        table.add_column(name, justify="right" if name in names else "left")
    for row in rows:
        shares = (f"{100 * row['told'][name]:.0f}" for name in names)
        table.add_row(row["split"], row["measure"].removeprefix("told: "), *shares)
    return table


def importance_table(told: dict[str, Any]) -> Table:
    """Return what shuffling each input among held-out failures, or bags of them, costs."""
    lost = "area under the curve" if "regimes" in told else "accuracy"
    table = PlainTable(title=f"Points of {lost} lost when an input is shuffled [95%]")
    table.add_column("input")
    table.add_column("lost", justify="right")
    rows = [row for row in told.get("regimes") or told["methods"] if row["measure"] == "importance"]
    for row in sorted(rows, key=lambda row: -row["value"]):
        table.add_row(row["inputs"], percent(row))
    return table


# ------------------------------------------------------------------ pictures


def pictures(told: dict[str, Any], profiles: pd.DataFrame, folder: Path) -> None:
    """Draw a study's pictures into a folder."""
    if "regimes" in told:
        reliability_curves(told["reliability"], folder / "reliability.png")
        stability_curves(told["clusters"], folder / "clusters.png")
        if profiles["cell"].str.fullmatch(NAMED.pattern).all():
            topography(profiles, folder / "topography.png")
    else:
        method_curves(told["methods"], folder / "methods.png")


def reliability_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw how often a regime came true against the probability it was given."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(4.6, 4.2))
    axis.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    for regime, colour in COLOURS.items():
        own, mark = [row for row in rows if row["regime"] == regime], REGIME_MARKS[regime]
        sizes = [4 + 60 * row["n"] / max(r["n"] for r in rows) for row in own]
        places, look = ([r["told"] for r in own], [r["true"] for r in own]), {"color": colour, "marker": mark}
        axis.plot(*places, label=regime, linewidth=1, markersize=3, **look)
        axis.scatter(*places, s=sizes, **look)
    axis.set_xlabel("probability told")
    axis.set_ylabel("share that it was (size: how many)")
    axis.grid(alpha=0.2)
    axis.legend(fontsize=8)
    save(plt, figure, path)


def stability_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the stability of every number of clusters, with the chosen one ringed."""
    plt = pyplot()
    curve = [row for row in rows if row["measure"] == "stability"]
    families = list(dict.fromkeys(row["family"] for row in curve))
    figure, axes = plt.subplots(1, len(families), figsize=(3.6 * len(families) + 0.8, 3.2), sharey=True, squeeze=False)
    for axis, family in zip(axes.flat, families, strict=True):
        for kind, colour in (("k-means", "#0072B2"), ("gaussian mixture", "#E69F00")):
            own = [row for row in curve if (row["family"], row["kind"]) == (family, kind)]
            axis.plot([r["k"] for r in own], [r["value"] for r in own], color=colour, marker=".", label=kind)
            ends = [r["low"] for r in own], [r["high"] for r in own]
            axis.fill_between([r["k"] for r in own], *ends, color=colour, alpha=0.15, linewidth=0)
            chosen = [r for r in own if r["chosen"]]
            axis.scatter(
                [r["k"] for r in chosen], [r["value"] for r in chosen], s=110, facecolors="none", edgecolors="k"
            )
        axis.axhline(0.8, color="black", linewidth=0.8, linestyle=":")
        axis.set_title(family or "all failures", fontsize=10)
        axis.set_xlabel("clusters (band: 95% of resamples)")
        axis.grid(alpha=0.2)
    at_least(axes[0, 0], y=0.1)
    axes[0, 0].set_ylabel("adjusted Rand index")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    save(plt, figure, path)


def topography(profiles: pd.DataFrame, path: Path) -> None:
    """Draw where each method's failures lie among its family's (grey), and which operator rescues most there."""
    from matplotlib.colors import LinearSegmentedColormap

    plt = pyplot()
    ink = LinearSegmentedColormap.from_list("ink", [(0, 0, 0, 0), (0, 0, 0, 0.35)])  # grey on any ground
    parts = profiles["cell"].str.extract(rf"^{NAMED.pattern}$")
    families, methods = sorted(parts[0].unique()), sorted(parts[1].unique())
    size = (2.7 * len(methods) + 1.4, 2.6 * len(families) + 0.9)
    figure, axes = plt.subplots(len(families), len(methods), figsize=size, sharex=True, sharey=True, squeeze=False)
    x, y = profiles["spread"], profiles["concentration"]
    extent = (*_apart(*np.quantile(x, (0.005, 1))), *_apart(*np.quantile(y, (0.005, 0.995))))
    for row, family in zip(axes, families, strict=True):
        for axis, method in zip(row, methods, strict=True):
            mine = (parts[0] == family) & (parts[1] == method)
            axis.hexbin(
                x[parts[0] == family],
                y[parts[0] == family],
                gridsize=22,
                extent=extent,
                cmap=ink,
                bins="log",
                linewidths=0,
            )
            _operators(axis, profiles[mine], extent)
            axis.set_title(f"{family} {method}, {int(mine.sum())} failures", fontsize=9)
            axis.tick_params(labelsize=8)
    figure.supxlabel("spread", fontsize=9)
    figure.supylabel("concentration", fontsize=9)
    known = [(name, colour, OPERATOR_MARKS[name]) for name, colour in OPERATOR_COLOURS.items()]
    handles = [plt.Line2D([], [], color=colour, marker=m, linestyle="", label=name) for name, colour, m in known]
    look = {"loc": "outside upper left", "ncols": 5, "alignment": "left", "fontsize": 8}
    figure.legend(handles=handles, title="rescues most there, on average", **look)
    save(plt, figure, path)


def _apart(low: float, high: float, least: float = LEAST_FEATURE) -> tuple[float, float]:
    """Return the ends of a range, moved apart where it is too small to lay a grid over."""
    more = max(0.0, least - (high - low)) / 2
    return low - more, high + more


def _operators(axis: Any, mine: pd.DataFrame, extent: tuple[float, ...]) -> None:
    """Lay a mark over each part of the plane that holds enough failures, in the colour of its best intervention."""
    bins = 12
    edges = [np.linspace(extent[2 * i], extent[2 * i + 1], bins + 1) for i in (0, 1)]
    at = [np.clip(np.digitize(mine[name], e) - 1, 0, bins - 1) for name, e in zip(FEATURES[:2], edges, strict=True)]
    gain = mine[INTERVENTIONS].to_numpy(np.float64) - mine[["retry"]].to_numpy(np.float64)
    table = pd.DataFrame(gain, columns=INTERVENTIONS).groupby([*at])
    means, counts = table.mean(), table.size()
    for (i, j), values in means[counts >= FEWEST_IN_BIN].iterrows():
        best = values.idxmax() if values.max() > 0 else "nothing beyond retry"
        centre = [(e[k] + e[k + 1]) / 2 for e, k in zip(edges, (i, j), strict=True)]
        size = 6 + 40 * np.sqrt(counts[i, j] / counts.max())
        axis.scatter(*centre, s=size, color=OPERATOR_COLOURS[best], marker=OPERATOR_MARKS[best], linewidths=0)


def method_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against the size of the bag, and the confusion of methods on unseen seeds."""
    plt = pyplot()
    told = [row for row in rows if row["measure"] == "accuracy" and row["inputs"] == rows[0]["inputs"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.7))
    for kind, colour in LINES.items():
        own = [row for row in told if row["split"] == kind and row["way"] == "bag"]
        sizes = [row["bag"] for row in own]
        left.plot(sizes, [100 * r["value"] for r in own], color=colour, marker=".", label=kind)
        left.fill_between(
            sizes, [100 * r["low"] for r in own], [100 * r["high"] for r in own], color=colour, alpha=0.15
        )
        vote = [row for row in told if row["split"] == kind and row["way"] == "vote"]
        left.plot([r["bag"] for r in vote], [100 * r["value"] for r in vote], color=colour, linestyle=":")
    left.axhline(100 * rows[0]["majority"], color="black", linewidth=0.8)
    at_least(left, y=10)
    left.set_xscale("log")
    ticks = sorted({row["bag"] for row in told})
    left.set_xticks(ticks, [str(t) for t in ticks])
    left.minorticks_off()
    left.set_xlabel("failures in the bag (dotted: vote of single failures; line: majority)")
    left.set_ylabel("checkpoints told right, %")
    left.grid(alpha=0.2)
    left.legend(fontsize=8)
    confusion = [row for row in rows if row["measure"].startswith("told: ") and row["split"] == "unseen seeds"]
    names = list(confusion[0]["told"])
    values = np.array([[row["told"][name] for name in names] for row in confusion])
    right.imshow(values, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(values.shape):
        ink = "white" if values[i, j] > 0.5 else "#111111"  # not black: that is what turns white on a dark page
        right.text(j, i, f"{100 * values[i, j]:.0f}", ha="center", color=ink)
    right.set_xticks(range(len(names)), names)
    right.set_yticks(range(len(names)), names)
    right.set_xlabel(f"told to be, % (unseen seeds, bags of {confusion[0]['bag']})")
    right.set_ylabel("made by")
    save(plt, figure, path)


# ------------------------------------------------------------------ model card


def card(told: dict[str, Any]) -> str:
    """Return the description of a registered classifier: what it reads, how it was judged, what to distrust."""
    inputs, kind = ", ".join(told["inputs"]), told["settings"]["kind"]
    if "regimes" in told:
        first = next(row for row in told["regimes"] if row["measure"] == "macro_auc")
        return (
            f"Tells a failure's recoverability regime before any attempt ({kind}; inputs {inputs}; {told['failures']} "
            f"failures). Labels from {told['labels']}, scored on problems held out, settings searched inside: "
            f"macro-AUC {percent(first)}%. Most of it is the share of failed rollouts. Probabilities are of the label "
            "that half the attempts would give. Another kind of model or task: fit it anew."
        )
    row = next(r for r in told["methods"] if r["measure"] == "accuracy" and r["bag"] == 25 and r["way"] == "bag")
    far = [r for r in told["methods"] if (r["measure"], r["bag"], r["way"]) == ("accuracy", 25, "bag")][-1]
    return (
        f"Tells the post-training method from a bag of one checkpoint's failures ({kind}; inputs {inputs}; "
        f"{told['failures']} failures of {row['checkpoints']} checkpoints). Bags of 25, {row['split']}, other "
        f"problems: {percent(row)}% right; {far['split']}: {percent(far)}%. Refuses a bag of fewer than 5 and a "
        "family never seen. It knows the methods it was fitted on and no other: a checkpoint of another method gets "
        "one of these."
    )
