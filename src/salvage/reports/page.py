"""The report as one HTML page that needs nothing beside itself: no script, no other file, no server."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from salvage.method.profiles import regimes
from salvage.project.tracking import dvc_hash, row_count
from salvage.reports import pictures, study_report, tables, traces
from salvage.reports.grid import Grid
from salvage.reports.words import bottom_line, compared, not_compared, without_verdict
from salvage.tables.files import write_text

RESCUE = Path("metrics/rescue.json")
VIEWS = Path("data/rescue/views.json")


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
    notes: list[str] = field(default_factory=list)  # why a part is not there
    truncated: tuple[int, int] | None = None  # rollouts that met max_tokens, of how many; None where it is not known
    unverified: Mapping[str, int] = field(default_factory=dict)  # rollouts and attempts without a verdict, where any is


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
        "bottom_line": bottom_line(compared(contents.rescue, contents.rows), not_compared(contents.rows)),
        "facts": _facts(contents),
        "routed": _routed(contents),
        "rescue": Grid.of(tables.evaluation_table(contents.rows)),
        "each_cell": list(_each_cell(contents.rows)),
        "budgets": Grid.of(tables.budget_table(contents.rows)),
        "stopping": Grid.of(tables.stopping_table(contents.rows)),
        "arms": [Grid.of(tables.arm_table(rows)) for rows in _all_and_groups(contents.rescue)],
        "traces": [traces.trace(view) for view in traces.few(contents.views)],
        "shares": Grid.of(study_report.share_table(contents.regimes)) if contents.regimes else None,
        "calibration": Grid.of(study_report.calibration_table(contents.regimes)) if contents.regimes else None,
        "confusions": list(_confusions(contents.methods)),
        "accuracy": Grid.of(study_report.accuracy_table(contents.methods)) if contents.methods else None,
        "hashes": _hashes(contents.tables),
        "most_panels": pictures.MAX_PANELS,
    }
    drawings = {path.stem: path for path in contents.pictures.glob("*.svg")}
    return environment.from_string(source).render(**told, pictures=drawings, drawn=_drawn)


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
    if contents.truncated and contents.truncated[0]:
        facts.append(("rollouts truncated at max_tokens", "{:,} of {:,}".format(*contents.truncated)))
    if contents.unverified:
        facts.append(("without a verdict", without_verdict(contents.unverified)))
    everything = next((row for row in contents.rescue if row["cells"] == "all"), None)
    if everything:
        facts.append(("held-out problems of the closed loop", f"{everything['problems']:,}"))
    return facts


def _routed(contents: Contents) -> Grid:
    """Return how many failures of each regime the rule sends to each operator."""
    counts = pd.crosstab(regimes(contents.profiles), np.asarray(contents.routed))
    names = [name for name in pictures.COLOURS if name in counts.index]
    rows = [[name, *(f"{n:,}" for n in counts.loc[name]), f"{counts.loc[name].sum():,}"] for name in names]
    heads = ["regime", *map(str, counts.columns), "together"]
    return Grid("Failures by regime and where the rule sends them", heads, rows, right=frozenset(range(1, len(heads))))


def _all_and_groups(rescue: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    parts = ([row for row in rescue if row["cells"] == "all"], [row for row in rescue if "*" in row["cells"]])
    return [part for part in parts if part]


def _each_cell(rows: list[dict[str, Any]]) -> Iterable[Grid]:
    """Yield a table a scope and protocol: what one attempt rescues in each cell and group of cells, by policy."""
    shown = [row for row in rows if row["k"] == 1 and row["protocol"] in tables.PROTOCOLS]
    shown = [row for row in shown if not row["policy"].startswith("null: ")]
    for scope, protocol in dict.fromkeys((row["scope"], row["protocol"]) for row in shown):
        mine = {(r["cell"], r["policy"]): r for r in shown if (r["scope"], r["protocol"]) == (scope, protocol)}
        cells, policies = (list(dict.fromkeys(key[i] for key in mine)) for i in (0, 1))
        told = []
        for cell in cells:
            n = next(row["n"] for (name, _), row in mine.items() if name == cell)
            told.append([cell, f"{n:,}", *(tables.figures(mine.get((cell, policy)))[0] for policy in policies)])
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
