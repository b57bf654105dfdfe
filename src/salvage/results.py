"""The last stages, from profiles to what is shown and served: evaluate, register, report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from salvage import schema
from salvage.errors import SalvageError
from salvage.settings import Settings

if TYPE_CHECKING:
    from salvage.routing import Rule

PROFILES = Path("data/profiles")
ATTEMPTS = Path("data/attempts")
EVALUATION = Path("metrics/evaluate.json")
REGISTERED = Path("metrics/register.json")
REPORT = Path("report")


def evaluate(settings: Settings, profiles: Path, attempts: Path | None, out: Path | None) -> list[dict[str, Any]]:
    """Evaluate the rule and its baselines on a profiles table; write the rows as JSON where `out` is given."""
    from salvage import evaluation
    from salvage.profiles import read_profiles

    table = read_profiles(profiles)
    tried = schema.read(attempts, schema.ATTEMPTS) if attempts else None
    chosen = {name: settings["intervene"][name] for name in ("anchor", "continuation")}
    rows = evaluation.evaluate(table, tried, seed=settings.seed, **settings["evaluate"], **chosen)
    if out:
        write_json(out, rows)
    return rows


def fitted() -> Rule:
    """Return the rule fitted on the pipeline's profiles, all cells together."""
    from salvage.routing import Rule

    return Rule.fit(schema.read(PROFILES, schema.PROFILES), fallback=True)


def register() -> int:
    """Register the fitted rule as the champion and write it to metrics/register.json; return its version."""
    from salvage import registry

    profiles, rule = schema.read(PROFILES, schema.PROFILES), fitted()
    version = registry.register(rule, {"failures": len(profiles), "cells": profiles["cell"].nunique()})
    write_json(REGISTERED, rule.to_dict())
    return version


def ensure_champion() -> bool:
    """Register again where DVC saw nothing to do but the tracking store lacks this rule (a fresh clone, another store).

    Returns
    -------
    bool
        Whether it had to.
    """
    from salvage import registry

    champion = registry.champion()
    if champion is not None and champion.to_dict() == json.loads(REGISTERED.read_text()):
        return False
    version = register()
    print(f"register: {registry.CHAMPION} is version {version}")
    return True


def report() -> None:
    """Draw the pictures of the pipeline's results into report/."""
    from salvage.report import panel, rescue_bars

    profiles = schema.read(PROFILES, schema.PROFILES)
    REPORT.mkdir(exist_ok=True)
    panel(profiles, fitted().route(profiles), REPORT / "failures.png")
    rescue_bars(saved_rows(), REPORT / "rescue.png")


def saved_rows() -> list[dict[str, Any]]:
    """Return what the evaluate stage wrote."""
    try:
        rows: list[dict[str, Any]] = json.loads(EVALUATION.read_text())
    except (OSError, ValueError):
        raise SalvageError(f"{EVALUATION} is missing or not JSON; run salvage evaluate first") from None
    return rows


def metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Name the rescue rates of all cells together, as `scope/protocol/policy/k1`."""
    return {
        f"{row['scope']}/{row['protocol']}/{row['policy']}/k{row['k']}": float(row["rescue"])
        for row in rows
        if row["cell"] == "all" and row["rescue"] is not None and not pd.isna(row["rescue"])
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON beside and rename, so that no half file is ever seen."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(value, indent=1) + "\n")
        beside.replace(path)
    except OSError as error:
        raise SalvageError(
            f"{path} cannot be written: {error.strerror or error}; check the folder's permissions"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
