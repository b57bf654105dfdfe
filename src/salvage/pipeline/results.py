"""The last stages, from profiles to what is shown and served: evaluate, register, report."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from salvage.errors import SalvageError
from salvage.pipeline import verdicts
from salvage.pipeline.declared import stage
from salvage.policies.fitted import Fitted
from salvage.project import extras
from salvage.project.settings import DATA, Cell, Settings, problem_file
from salvage.studies import study as studying
from salvage.studies.study import Tables
from salvage.tables import csv_tables, schema
from salvage.tables.files import write_json, write_text, writing
from salvage.tables.vocabulary import OPERATORS

if TYPE_CHECKING:
    from salvage.method.profiles import Tallies
    from salvage.reports.so_far import SoFar

PROFILES = Path("data/profiles")
ATTEMPTS = Path("data/attempts")
FACTS = Path("data/facts")
EVALUATION = Path("metrics/evaluate.json")
REGISTERED = Path("metrics/register.json")
REPORT = Path("report")
PARTIAL = Path("partial.html")
OWN_TRIALS = 12  # of Optuna, in each search of these: seconds; `salvage regimes --profiles` searches longer
OWN = Tables(PROFILES, ATTEMPTS, FACTS, Path("data/features"))  # what the studies of one's own cells read


def evaluate(
    settings: Settings, profiles: Path, attempts: Path | None, facts: Path | None, **chosen: Any
) -> list[dict[str, Any]]:
    """Evaluate policies and their baselines on a profiles table; `chosen` overrides what params.yaml has."""
    from salvage.evaluation import protocols
    from salvage.tables.profile_files import read_profiles

    table = read_profiles(profiles)
    tried = schema.read(attempts, schema.ATTEMPTS) if attempts else None
    known = schema.read(facts, schema.FACT_ROWS) if facts else None
    values = {name: settings["intervene"][name] for name in ("anchor", "continuation")}
    values |= {"seed": settings.seed, **settings["evaluate"], **chosen}
    return protocols.evaluate(table, tried, facts=known, **values)


def evaluate_stage(settings: Settings, out: Path | None, **chosen: Any) -> list[dict[str, Any]]:
    """Evaluate on the pipeline's own tables, as a stage; write the rows to `out` instead of where the report looks."""
    from salvage.project import tracking

    rows: list[dict[str, Any]] = []

    def work() -> None:
        rows.extend(evaluate(settings, PROFILES, ATTEMPTS, FACTS, **chosen))
        write_json(out or EVALUATION, rows)
        tracking.log_metrics(metrics(rows))

    stage("evaluate", work)
    return rows


def register_stage(settings: Settings, policy: str, *, force: bool) -> str:
    """Register a policy, as a stage; return what became of it."""
    told: list[str] = []
    stage("register", lambda: told.append(register(settings, policy, force=force)))
    return told[0]


def fitted_policy(settings: Settings, name: str) -> tuple[Fitted, pd.DataFrame, Tallies]:
    """Fit a policy on the pipeline's tables; return it with what it was fitted on."""
    failures, tallies = _to_learn_from(settings)
    return Fitted.fit(name, failures, tallies, OPERATORS, **_tuning(settings, name)), failures, tallies


def _tuning(settings: Settings, name: str) -> dict[str, Any]:
    return {"trials": settings["evaluate"]["trials"], "seed": settings.seed} if name == "learned" else {}


def write_policy(settings: Settings, policy: str, out: Path) -> str:
    """Fit a policy on the pipeline's tables and write it as a file, which `route` and `rescue` take; say what it is."""
    name = policy or settings["register"]["policy"]
    fitted, failures, _ = fitted_policy(settings, name)
    write_text(out, json.dumps(fitted.to_dict()) + "\n")
    return f"{name}, fitted on {len(failures)} failures of {failures['cell'].nunique()} cells, is in {out}"


def register(settings: Settings, policy: str = "", *, force: bool = False) -> str:
    """Fit a policy on the pipeline's tables and register it, as champion where the gate lets it through.

    Parameters
    ----------
    policy : str
        Instead of the one in params.yaml, which alone is also written to metrics/register.json.
    force : bool
        Make it the champion whatever the gate says; the version is tagged so.

    Returns
    -------
    str
        What became of it and why.
    """
    from salvage.evaluation.gate import judge
    from salvage.serving import registry

    name = policy or settings["register"]["policy"]
    fitted, failures, tallies = fitted_policy(settings, name)
    champion = registry.champion()
    tags: dict[str, Any] = {"failures": len(failures), "cells": failures["cell"].nunique()}
    if champion is None:
        alias, why = "champion", "there was none before it"
    else:
        resamples = settings["evaluate"]["resamples"]
        verdict = judge(
            name, champion, failures, tallies, seed=settings.seed, resamples=resamples, **_tuning(settings, name)
        )
        tags |= verdict.tags() | {"gate.champion": champion.name, "forced": force and not verdict.better}
        alias = "champion" if verdict.better or force else "challenger"
        why = f"against the champion ({champion.name}) {verdict}"
        if not verdict.better:
            why = f"forced, though {why}" if force else f"{why}. No gain with an interval above zero; --force overrules"
    version = registry.register(fitted, alias, tags)
    if not policy:
        frozen = fitted.to_dict()
        write_json(REGISTERED, {key: frozen[key] for key in ("policy", "version", "fallback", "reference")})
    return f"{name} is version {version} of {registry.NAME}, {alias}: {why}"


def _to_learn_from(settings: Settings) -> tuple[pd.DataFrame, Tallies]:
    from salvage.method.facts import with_facts
    from salvage.method.profiles import made_by, tally

    failures = with_facts(schema.read(PROFILES, schema.PROFILES), schema.read(FACTS, schema.FACT_ROWS))
    values = settings["intervene"]
    mine = made_by(schema.read(ATTEMPTS, schema.ATTEMPTS), values["anchor"], values["continuation"])
    return failures, tally(failures, mine)[0]


def ensure_registered(settings: Settings) -> bool:
    """Register again where DVC saw nothing to do but the tracking store lacks it (a fresh clone, another store).

    Returns
    -------
    bool
        Whether it had to.
    """
    from salvage.serving import registry

    if json.loads(REGISTERED.read_text())["version"] in registry.versions():
        return False
    print(f"register: {register(settings)}")
    return True


def rescue_stage(settings: Settings, arms: str, *, quiet: bool) -> list[dict[str, Any]]:
    """Compare arms in the lab's cells, as a stage; `arms` in place of those of params.yaml."""
    from salvage.rescue import solving

    if arms:
        settings.raw["rescue"]["arms"] = arms.split(",")
    rows: list[dict[str, Any]] = []
    stage("rescue", lambda: rows.extend(solving.compare_stage(settings, quiet=quiet)))
    return rows


def report_stage(settings: Settings) -> None:
    """Draw the report, as a stage."""
    from salvage.project import tracking

    def work() -> None:
        report(settings)
        tracking.log_pictures(REPORT)

    stage("report", work)


def report(settings: Settings) -> None:
    """Draw the pictures of the pipeline's results and of the studies' into report/, and write the page of them."""
    from salvage.policies.rule import Rule
    from salvage.reports import page, study_report
    from salvage.reports.pictures import arm_curves, budget_curves, panel, rescue_bars

    profiles, rows = schema.read(PROFILES, schema.PROFILES), saved_rows()
    own = bool(settings.cells) and not settings.lab
    tables = OWN if own else Tables.of(settings)
    routed = Rule.fit(profiles).route(profiles)
    with writing(REPORT):
        REPORT.mkdir(exist_ok=True)
    for old in REPORT.glob("*.svg"):  # the page shows those that are there
        old.unlink()
    panel(profiles, routed, REPORT / "failures.png")
    rescue_bars(rows, REPORT / "rescue.png")
    budget_curves(rows, REPORT / "budgets.png")
    told = own_studies(settings, len(profiles)) if own else _studied()
    told["truncated"] = schema.truncated(Path("data/rollouts"))
    told["unverified"] = verdicts.counted()
    for name in {"regimes", "methods"} & set(told):
        study_report.pictures(told[name], schema.read(tables.profiles, schema.PROFILES), REPORT)
    if page.RESCUE.exists():
        told["rescue"] = _saved(page.RESCUE, "salvage rescue")
        if told["rescue"]:  # none where no cell has held-out problems
            arm_curves(told["rescue"], REPORT / "arms.png")
    if page.VIEWS.exists():
        told["views"] = _saved(page.VIEWS, "salvage rescue")
    names = ("problems", "rollouts", "signals", "features", "attempts", "profiles", "facts")
    studied = [path for path in (tables.attempts, tables.features, tables.profiles, tables.facts) if path]
    hashed = list(dict.fromkeys([*(Path("data") / name for name in names), *studied]))
    shown = page.Contents(settings.profile, settings.seed, profiles, routed, rows, REPORT, hashed, **told)
    page.write(REPORT / "index.html", shown)


def _studied() -> dict[str, Any]:
    """Return what the stages of the studies wrote."""
    return {
        path.stem: _saved(path, f"salvage {path.stem}")
        for path in (studying.REGIMES, studying.METHODS)
        if path.exists()
    }


def own_studies(settings: Settings, failures: int) -> dict[str, Any]:
    """Study the regimes and methods of one's own cells; where they are too few, a sentence in `notes` says so."""
    if not extras.has("studies"):
        return {"notes": [extras.lacking("the study of regimes and methods", ["studies"])]}
    from salvage.studies.clusters import NUMBERS

    told: dict[str, Any] = {"notes": []}
    fewest = 10 * NUMBERS[-1]  # the clusters', which come last: known before the first search
    for name, study in (("regimes", studying.regimes), ("methods", studying.methods)):
        try:
            if name == "regimes" and failures < fewest:
                raise SalvageError(f"{failures} failures are too few; at least {fewest} are needed")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of scikit-learn's, on its own threads
                told[name] = study(settings, OWN, min(OWN_TRIALS, settings["study"]["trials"]), quiet=True).told
        except SalvageError as error:
            told["notes"].append(f"{name.capitalize()} were not studied: {error}.")
    return told


def partial(settings: Settings) -> tuple[Path, str]:
    """Write a page of what a run that is not at its end has found; return it, and how far that is."""
    from salvage.reports import so_far

    cells = [_so_far(cell, settings) for cell in settings.cells]
    if all(cell.rollouts is None for cell in cells):
        raise SalvageError(
            "there is nothing to report yet: no shard of rollouts is finished; the first comes after "
            "16 problems of one's own cells, while salvage run is in `sample`"
        )
    so_far.write(PARTIAL, cells)
    return PARTIAL, "; ".join(cell.progress() for cell in cells)


def _so_far(cell: Cell, settings: Settings) -> SoFar:
    from salvage.reports.so_far import SoFar
    from salvage.tables.shards import so_far

    folders = (("rollouts", schema.ROLLOUTS), ("signals", schema.SIGNAL_ROWS), ("attempts", schema.ATTEMPTS))
    rollouts, signals, attempts = (so_far(DATA / name / cell.file, table) for name, table in folders)
    source = problem_file(cell.problems)
    problems = schema.read(source, schema.PROBLEMS) if source.exists() else None
    how = settings["intervene"]["anchor"], settings["intervene"]["continuation"]
    lost = len(verdicts.unverified(DATA / "rollouts" / cell.file))
    return SoFar(cell.name, problems, rollouts, signals, attempts, *how, settings["featurize"]["window"], lost)


def saved_rows() -> list[dict[str, Any]]:
    """Return what the evaluate stage wrote."""
    rows: list[dict[str, Any]] = _saved(EVALUATION, "salvage evaluate")
    return rows


def _saved(path: Path, made_by: str) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        raise SalvageError(f"{path} is missing or not JSON; run {made_by} first") from None


def metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Name the rescue rates of all cells together, as `scope/protocol/policy/k1`, or `.../budget8`."""
    return {
        f"{row['scope']}/{row['protocol']}/{row['policy']}/{_spending(row)}": float(row["rescue"])
        for row in rows
        if row["cell"] == "all" and row["rescue"] is not None
    }


def _spending(row: dict[str, Any]) -> str:
    return f"k{row['k']}" if row["budget"] is None else f"budget{row['budget']}"


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows as CSV."""
    csv_tables.write(pd.DataFrame(rows), path)
