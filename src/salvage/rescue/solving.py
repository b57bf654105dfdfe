"""`salvage rescue`: problems solved under one's eyes, and the comparison of arms as a stage of the pipeline."""

from __future__ import annotations

import json
import time
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from salvage.engine import fitting
from salvage.engine.looking import look, refuse
from salvage.engine.opening import engine_of
from salvage.errors import SalvageError
from salvage.project import extras
from salvage.project.pool import bar
from salvage.project.settings import LAB_PROBLEMS, Cell, Settings
from salvage.reports.page import RESCUE, VIEWS
from salvage.reports.plain import PlainTable
from salvage.reports.tables import arm_table, show_table
from salvage.rescue import comparison
from salvage.rescue.loop import SOLVED, UNVERIFIED, Attempt, Budget, Outcome, rescue
from salvage.serving import policy_uri
from salvage.tables.files import write_json

TOLD = 10.0  # seconds between lines where there is no terminal


def solve(
    settings: Settings,
    cell: Cell,
    problems: pd.DataFrame,
    policy: str,
    budget: Budget,
    price: float,
    out: Path,
    traced: float,
    *,
    quiet: bool,
) -> int:
    """Run the closed loop on problems, tell its progress, write and trace its outcomes; return how many are unverified.

    Parameters
    ----------
    policy : str
        A policy file, a registered policy's URI, or `retry`; empty: the champion.
    traced : float
        Share of the problems that become MLflow traces.
    """
    if price and policy == comparison.RETRY:
        raise SalvageError("--price is what a policy weighs chances against, and retry knows none; leave it out")
    known = None if policy == comparison.RETRY else policy or policy_uri.CHAMPION
    cell = ready(cell, settings, problems, quiet=quiet)
    done: list[Outcome] = []
    engine, why = engine_of(cell, settings)
    if not quiet:
        print(f"rescue: engine {engine} ({why})", flush=True)
    start = last = time.monotonic()
    with _run(), bar(quiet) as progress:
        task = progress.add_task("rescue", total=len(problems))
        for outcome in rescue(problems, cell, known, budget, price=price, out=out, settings=settings):
            done.append(outcome)
            _trace(outcome, traced if extras.has("track") else 0)
            progress.update(task, advance=1, description=f"rescue: {_so_far(done)}")
            if not quiet and not progress.console.is_terminal and time.monotonic() - last > TOLD:
                last = time.monotonic()
                print(f"rescue: {len(done)} of {len(problems)} ended, {_so_far(done)}", flush=True)
        _log(done)
    if not quiet:
        show_table(summary(done, time.monotonic() - start))
        print(f"rescue: outcomes in {out}; read a failure with: salvage show PROBLEM --outcomes {out}")
    unverified = [o for o in done if o.status == UNVERIFIED]
    if unverified:
        first = unverified[0]
        print(f"rescue: {len(unverified)} without a verdict, the first {first.problem_id!r}: {first.trouble}")
    return len(unverified)


def ready(cell: Cell, settings: Settings, problems: pd.DataFrame, *, quiet: bool) -> Cell:
    """Look at a pair before it is run, and return it with what is `auto` fitted to it.

    Raises
    ------
    SalvageError
        Where it cannot be run, or its models do not belong together.
    """
    rows = problems.to_dict("records")
    refuse(look(cell.specialist, cell.ancestor, cell.engine, settings["vllm"], problems=rows))
    if not fitting.wanted(cell, settings):
        return cell
    fit = fitting.fit(cell, settings, rows)
    if not quiet:
        print(f"rescue: fitted to the pair: {', '.join(fit.reasons)}", flush=True)
    return replace(cell, own=(*cell.own, *fit.values.items()))


def _so_far(done: list[Outcome]) -> str:
    solved = sum(o.status == SOLVED for o in done)
    return f"{solved} solved, {sum(o.model_tokens for o in done):,} model-tokens"


def _trace(outcome: Outcome, share: float) -> None:
    if share > 0:
        from salvage.rescue import tracing

        if tracing.chosen(outcome, share):
            tracing.trace(outcome)


def _run() -> AbstractContextManager[object]:
    """Open an MLflow run where MLflow is installed: solving needs none."""
    if not extras.has("track"):
        return nullcontext()
    from salvage.project import tracking

    return tracking.run("rescue")


def _log_metrics(values: dict[str, float]) -> None:
    if extras.has("track"):
        from salvage.project import tracking

        tracking.log_metrics(values)


def _log(done: list[Outcome]) -> None:
    counts = Counter(o.status for o in done)
    tokens = {name: sum(getattr(o, name) for o in done) for name in ("model_tokens", "scored_tokens")}
    _log_metrics({**{k: float(v) for k, v in counts.items()}, **{k: float(v) for k, v in tokens.items()}})


def summary(done: list[Outcome], seconds: float) -> Table:
    """Return how problems ended, and what the solved are owed to."""
    tokens = sum(o.model_tokens for o in done)
    scored = sum(o.scored_tokens for o in done)
    title = f"{len(done)} problems, {tokens:,} model-tokens ({scored:,} more to score failures), {seconds:.0f} s"
    table = PlainTable("ended", "by", title=title)
    for name in ("problems", "attempts each", "model-tokens each"):
        table.add_column(name, justify="right")
    groups = Counter((o.status, o.operator or "") for o in done)
    for (status, operator), n in sorted(groups.items(), key=lambda item: (item[0][0] != SOLVED, -item[1])):
        mine = [o for o in done if (o.status, o.operator or "") == (status, operator)]
        attempts, spent = (sum(map(size, mine)) / n for size in (lambda o: len(o.attempts), lambda o: o.model_tokens))
        table.add_row(status, operator, str(n), f"{attempts:.1f}", f"{spent:.0f}")
    return table


# ------------------------------------------------------------------ the comparison


def compare(
    settings: Settings, cell: Cell, problems: pd.DataFrame, arms: list[str], *, quiet: bool
) -> list[dict[str, Any]]:
    """Compare arms on one pair of models and problems that no arm was fitted on."""
    folder = comparison.TIMES.parent / "compare"
    cell = ready(cell, settings, problems, quiet=quiet)
    with _run():
        rows = comparison.compare(settings, {cell.name: (cell, problems)}, arms, folder, quiet=quiet)
        _log_metrics(metrics(rows))
    return rows


def saved_rows() -> list[dict[str, Any]]:
    """Return what the stage wrote; nothing where it has not run."""
    rows: list[dict[str, Any]] = json.loads(RESCUE.read_text()) if RESCUE.exists() else []
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print what arms solved, and from which budget on they beat retry; nothing where there are no rows."""
    if not rows:
        return
    show_table(arm_table(rows))
    print(verdict(rows))


def compare_stage(settings: Settings, *, quiet: bool) -> list[dict[str, Any]]:
    """Compare the arms of params.yaml in all its lab cells, on held-out problems; write rows, traces and views."""
    n = int(settings.profile_values["rescue"])
    cells = {c.name: (c, comparison.held_out(c, settings, n)) for c in settings.cells if c.problems == LAB_PROBLEMS}
    rows: list[dict[str, Any]] = []
    if cells and n:
        rows = comparison.compare(settings, cells, settings["rescue"]["arms"], comparison.TABLES, quiet=quiet)
    elif not quiet:
        print("rescue: no lab cell to compare on; for one's own pair: salvage rescue --specialist ... --compare ...")
    comparison.drop_others({cell.file for cell, _ in cells.values()})
    write_json(VIEWS, [view(told) for told in _kept(comparison.TABLES)])
    write_json(RESCUE, rows)
    _log_metrics(metrics(rows))
    _trace_shown()
    return rows


def clear() -> None:
    """Leave no comparison, for a run without lab cells: one that was made before is of other cells."""
    comparison.drop_others(set())
    write_json(VIEWS, [])
    write_json(RESCUE, [])


def _trace_shown() -> None:
    """Trace the failures that are shown, once: what a second run did not do again is not traced again."""
    from salvage.rescue import tracing

    for told in _kept(comparison.TIMES):
        told["attempts"] = [Attempt(**attempt) for attempt in told["attempts"]]
        tracing.trace(Outcome(**told))
    for path in comparison.TIMES.glob("*.jsonl"):
        path.unlink()


def _kept(folder: Path) -> list[dict[str, Any]]:
    """Return the outcomes that were kept to be shown, cell by cell."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text(encoding="utf-8").splitlines()]


def view(told: dict[str, Any]) -> dict[str, Any]:
    """Return an outcome as the report shows it."""
    names = ("cell", "problem_id", "prompt", "status", "attempts")
    features = {name: told["failure"][name] for name in ("tokens", "j", "junction", "features", "alternatives")}
    return (
        {name: told[name] for name in names} | features | {"answer": told["reference"], "policy": told["why"]["policy"]}
    )


def metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Name what all cells together solved, as `rescue/arm/budget8`."""
    return {f"rescue/{r['arm']}/budget{r['budget']}": r["solved"] for r in rows if r["cells"] == "all"}


def verdict(rows: list[dict[str, Any]]) -> str:
    """Say from which budget on each arm beats retry, all cells together."""
    told = []
    whole = [r for r in rows if r["cells"] == "all" and r["over_retry"] is not None]
    for arm in dict.fromkeys(r["arm"] for r in whole):
        budgets = sorted(r["budget"] for r in whole if r["arm"] == arm)
        beaten = {r["budget"] for r in whole if r["arm"] == arm and r["over_retry_low"] > 0}
        since = next((b for i, b in enumerate(budgets) if set(budgets[i:]) <= beaten), None)
        told.append(f"{arm} {'at no budget' if since is None else f'from a budget of {since} retries on'}")
    return "beats retry, interval above zero: " + "; ".join(told)
