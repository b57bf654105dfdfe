"""The last stages, from profiles to what is shown and served: evaluate, register, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from salvage import schema
from salvage.errors import SalvageError
from salvage.files import write_text
from salvage.settings import Settings

if TYPE_CHECKING:
    from salvage.profiles import Tallies

PROFILES = Path("data/profiles")
ATTEMPTS = Path("data/attempts")
FACTS = Path("data/facts")
EVALUATION = Path("metrics/evaluate.json")
REGISTERED = Path("metrics/register.json")
REPORT = Path("report")


def evaluate(
    settings: Settings, profiles: Path, attempts: Path | None, facts: Path | None, **chosen: Any
) -> list[dict[str, Any]]:
    """Evaluate policies and their baselines on a profiles table; `chosen` overrides what params.yaml has."""
    from salvage import evaluation
    from salvage.profiles import read_profiles

    table = read_profiles(profiles)
    tried = schema.read(attempts, schema.ATTEMPTS) if attempts else None
    known = schema.read(facts, schema.FACT_ROWS) if facts else None
    values = {name: settings["intervene"][name] for name in ("anchor", "continuation")}
    values |= {"seed": settings.seed, **settings["evaluate"], **chosen}
    return evaluation.evaluate(table, tried, facts=known, **values)


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
    from salvage import registry
    from salvage.gate import judge
    from salvage.routing import Fitted
    from salvage.schema import OPERATORS

    name = policy or settings["register"]["policy"]
    failures, tallies = _to_learn_from(settings)
    tuning = {"trials": settings["evaluate"]["trials"], "seed": settings.seed} if name == "learned" else {}
    fitted = Fitted.fit(name, failures, tallies, OPERATORS, **tuning)
    champion = registry.champion()
    tags: dict[str, Any] = {"failures": len(failures), "cells": failures["cell"].nunique()}
    if champion is None:
        alias, why = "champion", "there was none before it"
    else:
        resamples = settings["evaluate"]["resamples"]
        verdict = judge(name, champion, failures, tallies, seed=settings.seed, resamples=resamples, **tuning)
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
    from salvage.evaluation import with_facts
    from salvage.profiles import made_by, tally

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
    from salvage import registry

    if json.loads(REGISTERED.read_text())["version"] in registry.versions():
        return False
    print(f"register: {register(settings)}")
    return True


def report(settings: Settings) -> None:
    """Draw the pictures of the pipeline's results and of the studies' into report/, and write the page of them."""
    from salvage import page, studies, study_report
    from salvage.report import arm_curves, budget_curves, panel, rescue_bars
    from salvage.routing import Rule

    profiles, rows, tables = schema.read(PROFILES, schema.PROFILES), saved_rows(), studies.Tables.of(settings)
    routed = Rule.fit(profiles).route(profiles)
    REPORT.mkdir(exist_ok=True)
    for old in REPORT.glob("*.svg"):  # the page shows those that are there
        old.unlink()
    panel(profiles, routed, REPORT / "failures.png")
    rescue_bars(rows, REPORT / "rescue.png")
    budget_curves(rows, REPORT / "budgets.png")
    told: dict[str, Any] = {}
    for path in filter(Path.exists, (studies.REGIMES, studies.METHODS)):
        told[path.stem] = _saved(path, f"salvage {path.stem}")
        study_report.pictures(told[path.stem], schema.read(tables.profiles, schema.PROFILES), REPORT)
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
    write_text(path, pd.DataFrame(rows).to_csv(index=False))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, a list of rows with a line a row."""
    write_text(path, _json(value) + "\n")


def _json(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f" {json.dumps(name)}: {_json(inside)}" for name, inside in value.items()) + "\n}"
    return json.dumps(value)
