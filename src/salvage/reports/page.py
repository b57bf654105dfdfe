"""The report as one HTML page that needs nothing beside itself: no script, no other file, no server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from salvage.method.profiles import regimes
from salvage.project.tracking import dvc_hash, row_count
from salvage.reports import report, study_report
from salvage.tables.files import write_text

RESCUE = Path("metrics/rescue.json")
VIEWS = Path("data/rescue/views.json")
SHOWN_TRACES = 6
AROUND = 200  # tokens of a trace, shown on each side of its junction
LONGEST = 300  # characters of an attempt: its end, where the answer is
SAMPLED = "sample"  # the operator of a first rollout, before any policy was asked
STATUS = {
    "solved": "✓ solved",
    "spent": "✗ not solved, the budget was spent",
    "stopped": "✗ not solved, the policy stopped",
    "unverified": "? no verdict",
}
VERDICTS = {True: "✓ right", False: "✗ wrong", None: "? no verdict"}


@dataclass(frozen=True)
class Contents:
    """What the page is made from; what a project does not have is empty, and its section left out."""

    profile: str
    seed: int
    profiles: pd.DataFrame
    routed: Sequence[str] | np.ndarray
    rows: list[dict[str, Any]]  # metrics/evaluate.json
    pictures: Path  # the folder of the SVGs
    tables: list[Path] = field(default_factory=list)
    rescue: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)
    regimes: dict[str, Any] = field(default_factory=dict)
    methods: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """A table of the page: `lead` columns name the row, `right` are numbers, `ends` close a group of rows."""

    caption: str
    heads: list[str]
    rows: list[list[str]]
    lead: int = 1
    right: frozenset[int] = frozenset()
    ends: frozenset[int] = frozenset()
    heat: list[list[float | None]] | None = None  # 0 to 1, the shade of each cell

    @classmethod
    def of(cls, table: Table) -> Grid:
        """Return one of the tables that are also printed."""
        right = frozenset(i for i, column in enumerate(table.columns) if column.justify == "right")
        cells = [[str(cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)]
        ends = frozenset(i for i, row in enumerate(table.rows) if row.end_section)
        lead = min(2, *right) if right else 1
        return cls(str(table.title), [str(column.header) for column in table.columns], cells, lead, right, ends)


def write(path: Path, contents: Contents) -> None:
    """Write the page; the same contents give the same bytes."""
    # Half a surrogate pair, which a model may have said, has no place in a file.
    write_text(path, render(contents).encode("utf-8", "replace").decode("utf-8"))


def render(contents: Contents) -> str:
    """Return the page's HTML. What models said is escaped, as is every other text."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    source = resources.files("salvage.reports").joinpath("page.html.j2").read_text(encoding="utf-8")
    told = {
        "contents": contents,
        "facts": _facts(contents),
        "routed": _routed(contents),
        "rescue": Grid.of(report.evaluation_table(contents.rows)),
        "each_cell": list(_each_cell(contents.rows)),
        "budgets": Grid.of(report.budget_table(contents.rows)),
        "stopping": Grid.of(report.stopping_table(contents.rows)),
        "arms": [Grid.of(report.arm_table(rows)) for rows in _all_and_groups(contents.rescue)],
        "traces": [_trace(view) for view in _few(contents.views)],
        "shares": Grid.of(study_report.share_table(contents.regimes)) if contents.regimes else None,
        "calibration": Grid.of(study_report.calibration_table(contents.regimes)) if contents.regimes else None,
        "confusions": list(_confusions(contents.methods)),
        "accuracy": Grid.of(study_report.accuracy_table(contents.methods)) if contents.methods else None,
        "hashes": _hashes(contents.tables),
        "most_panels": report.MAX_PANELS,
    }
    pictures = {path.stem: path for path in contents.pictures.glob("*.svg")}
    return environment.from_string(source).render(**told, pictures=pictures, drawn=_drawn)


def _drawn(path: Path, label: str) -> Markup:
    """Return an SVG to stand in the page: as wide as there is room, and never so small that it cannot be read."""
    root, rest = path.read_text(encoding="utf-8").split(">", 1)
    found = re.search(r'width="([\d.]+)pt"', root)
    width = round(float(found[1]) * 4 / 3) if found else 600
    root = re.sub(r' (?:width|height)="[^"]*"', "", root).removeprefix("<svg")
    opening = Markup('<svg role="img" aria-label="{}" style="min-width:{}px;max-width:{}px"')
    return opening.format(label, min(width, max(300, int(0.68 * width))), width) + Markup(f"{root}>{rest}")  # noqa: S704


# ------------------------------------------------------------------ figures


def _facts(contents: Contents) -> list[tuple[str, str]]:
    profiles = contents.profiles
    facts = [("profile", contents.profile), ("seed", str(contents.seed)), ("cells", f"{profiles['cell'].nunique():,}")]
    facts += [("failures", f"{len(profiles):,}"), ("problems failed", f"{profiles['problem_id'].nunique():,}")]
    everything = next((row for row in contents.rescue if row["cells"] == "all"), None)
    if everything:
        facts.append(("held-out problems of the closed loop", f"{everything['problems']:,}"))
    return facts


def _routed(contents: Contents) -> Grid:
    """Return how many failures of each regime the rule sends to each operator."""
    counts = pd.crosstab(regimes(contents.profiles), np.asarray(contents.routed))
    names = [name for name in report.COLOURS if name in counts.index]
    rows = [[name, *(f"{n:,}" for n in counts.loc[name]), f"{counts.loc[name].sum():,}"] for name in names]
    heads = ["regime", *map(str, counts.columns), "together"]
    return Grid("Failures by regime and where the rule sends them", heads, rows, right=frozenset(range(1, len(heads))))


def _all_and_groups(rescue: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    parts = ([row for row in rescue if row["cells"] == "all"], [row for row in rescue if "*" in row["cells"]])
    return [part for part in parts if part]


def _each_cell(rows: list[dict[str, Any]]) -> Iterable[Grid]:
    """Yield a table a scope and protocol: what one attempt rescues in each cell and group of cells, by policy."""
    shown = [row for row in rows if row["k"] == 1 and row["protocol"] in report.PROTOCOLS]
    shown = [row for row in shown if not row["policy"].startswith("null: ")]
    for scope, protocol in dict.fromkeys((row["scope"], row["protocol"]) for row in shown):
        mine = {(r["cell"], r["policy"]): r for r in shown if (r["scope"], r["protocol"]) == (scope, protocol)}
        cells, policies = (list(dict.fromkeys(key[i] for key in mine)) for i in (0, 1))
        told = []
        for cell in cells:
            n = next(row["n"] for (name, _), row in mine.items() if name == cell)
            told.append([cell, f"{n:,}", *(report.figures(mine.get((cell, policy)))[0] for policy in policies)])
        caption = f"{scope} failures, {protocol} protocol: rescued by one attempt, % [95%]"
        yield Grid(caption, ["cells", "n", *policies], told, right=frozenset(range(1, len(policies) + 2)))


def _confusions(methods: dict[str, Any]) -> Iterable[Grid]:
    """Yield a heat table a way of holding out: made by (row), told to be (column)."""
    rows = [row for row in methods.get("methods", []) if row["measure"].startswith("told: ")]
    for split in dict.fromkeys(row["split"] for row in rows):
        mine = [row for row in rows if row["split"] == split]
        names = list(mine[0]["told"])
        heat: list[list[float | None]] = [[None, *(row["told"][name] for name in names)] for row in mine]
        made_by = [row["measure"].removeprefix("told: ") for row in mine]
        told = [[m, *(f"{100 * row['told'][n]:.0f}" for n in names)] for m, row in zip(made_by, mine, strict=True)]
        caption = f"{split.capitalize()}, bags of {mine[0]['bag']}: made by (row), told to be (column), %"
        yield Grid(caption, ["made by", *names], told, right=frozenset(range(1, len(names) + 1)), heat=heat)


def _hashes(tables: list[Path]) -> Grid:
    """Return the tables that exist, by DVC's hash and their rows."""
    rows = []
    for path in filter(Path.exists, tables):
        n = row_count(path)
        rows.append([path.as_posix(), "" if n is None else f"{n:,}", dvc_hash(path)])
    caption = "Tables behind this page, by the hash that DVC gives them"
    return Grid(caption, ["table", "rows", "md5"], rows, right=frozenset([1]))


# ------------------------------------------------------------------ traces


def _few(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a few failures, each of what became of them and each cell as often as the others."""
    few: list[dict[str, Any]] = []
    left, had = list(views), Counter[str]()
    while left and len(few) < SHOWN_TRACES:
        view = min(left, key=lambda view: had[view["status"]] + had[view["cell"]])
        left.remove(view)
        few.append(view)
        had.update((view["status"], view["cell"]))
    return few


def _trace(view: dict[str, Any]) -> dict[str, Any]:
    """Return a view as the template shows it: tokens with their shade, tables of strings."""
    tokens, junction = view["tokens"], view["junction"]
    j = np.clip(np.nan_to_num(np.asarray(view["j"], dtype=float), posinf=0.0), 0, None)
    # The root, since j at the junction is many times that elsewhere; text stays readable on the darkest.
    shade = 0.75 * np.sqrt(j / max(float(j.max(initial=0)), 1e-12))
    first, last = max(0, junction - AROUND), min(len(tokens), junction + AROUND + 1)
    shades = [f"{s:.2f}" if s >= 0.005 else "" for s in shade]
    shown = [(tokens[i] or "∅", shades[i], i == junction) for i in range(first, last)]
    chosen = next((a["operator"] for a in view["attempts"] if a["operator"] != SAMPLED), "nothing")
    right = next((f" by {a['operator']}" for a in view["attempts"] if a["correct"]), "")
    return {
        **view,
        "shown": shown,
        "before": first,
        "after": len(tokens) - last,
        "chosen": chosen,
        "came": STATUS[view["status"]] + right,
        "features": [(name, f"{value:.3f}") for name, value in view["features"].items()],
        "alternatives": _alternatives(view["alternatives"]),
        "attempts": _attempts(view["attempts"]),
    }


def _alternatives(models: dict[str, list[Any]]) -> Grid:
    heads = ["rank", *(head for model in models for head in (model, "its chance, %"))]
    rows = []
    for rank, pairs in enumerate(zip_longest(*models.values()), 1):
        told = [(_visible(pair[0]), f"{100 * pair[1]:.1f}") if pair else ("", "") for pair in pairs]
        rows.append([str(rank), *(cell for pair in told for cell in pair)])
    right = frozenset(range(2, len(heads), 2))
    return Grid("What each model would have said at the junction", heads, rows, 1, right)


def _visible(token: str) -> str:
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def _attempts(attempts: list[dict[str, Any]]) -> Grid:
    rows = []
    for number, attempt in enumerate(attempts, 1):
        text = attempt["text"] if len(attempt["text"]) <= LONGEST else f"… {attempt['text'][-LONGEST:]}"
        told = VERDICTS[attempt["correct"]]
        rows.append([str(number), attempt["operator"], told, f"{attempt['model_tokens']:,}", text])
    heads = ["attempt", "operator", "verdict", "model-tokens", "what it said"]
    return Grid("What was tried, in order", heads, rows, 1, frozenset([3]))
