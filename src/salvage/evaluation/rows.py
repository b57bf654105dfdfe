"""A sheet's columns to rows: every cell and group, with intervals from one set of resamples."""

from __future__ import annotations

from typing import Any

import numpy as np

from salvage.evaluation.groups import groups
from salvage.evaluation.resampling import bootstrap, interval
from salvage.evaluation.sheet import Data, Sheet, against


def make_rows(sheet: Sheet, data: Data, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of every cell and group, with intervals from one set of resamples."""
    wheres = list(sheet.weights)
    table = np.column_stack([*sheet.values, *sheet.weights.values()])
    together = groups(data.names)
    gathered = {name: np.zeros((resamples, table.shape[1])) for name in together}
    rows: list[dict[str, Any]] = []
    for c, sums in enumerate(bootstrap(table, data.cell, resamples, seed)):
        for name, cells in together.items():
            if c in cells:
                gathered[name] += sums
        rows += _group_rows(sheet, wheres, str(data.names[c]), data.cell == c, sums, "cells")
    for name, cells in together.items():
        rows += _group_rows(sheet, wheres, name, np.isin(data.cell, cells), gathered[name], "groups")
    return rows


def _group_rows(
    sheet: Sheet, wheres: list[tuple[str, str]], name: str, inside: np.ndarray, sums: np.ndarray, kind: str
) -> list[dict[str, Any]]:
    shown = [i for i, meta in enumerate(sheet.meta) if meta["only"] in (None, kind, f"={name}")]
    reference = {against(sheet.meta[i], sheet.meta[i]["policy"]): i for i in shown}
    rows = []
    for i in shown:
        meta = sheet.meta[i]
        where = (meta["protocol"], meta["scope"])
        weight, drawn = sheet.weights[where][inside], sums[:, len(sheet.values) + wheres.index(where)]
        n = int((weight > 0).sum())
        row: dict[str, Any] = {"cell": name, "scope": where[1], "protocol": where[0]}
        row |= {key: meta[key] for key in ("policy", "k", "budget")} | {"n": n}
        some = drawn > 0
        for label, base in (("", None), ("over_retry", "retry"), ("over_best_fixed", "best fixed")):
            other = None if base is None else reference.get(against(meta, base))
            known = n > 0 and (base is None or (other is not None and other != i))
            keys = (label or "rescue", f"{label}_low".lstrip("_"), f"{label}_high".lstrip("_"))
            row |= dict.fromkeys(keys)
            if known:
                column, own = sums[:, i], sheet.values[i][inside].sum()
                if other is not None:
                    column, own = column - sums[:, other], own - sheet.values[other][inside].sum()
                bounds = interval(column[some] / drawn[some], n)
                row |= dict(zip(keys, (float(own / weight.sum()), *bounds), strict=True))
        tokens = sheet.tokens[i]
        spent = None if tokens is None or not n else float(tokens[inside].sum())
        row["tokens"] = None if spent is None else spent / float(weight.sum())
        row["per_1000"] = None if not spent else float(1000 * sheet.values[i][inside].sum() / spent)
        p = sheet.p_values.get((where[0], where[1], meta["policy"], name)) if n and meta["k"] == 1 else None
        rows.append({**row, "p_value": p})
    return rows
