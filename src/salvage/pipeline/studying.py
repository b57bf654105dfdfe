"""The studies of regimes and methods at work: on given tables, or as a stage whose classifier is registered."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from salvage.pipeline.declared import stage
from salvage.project.settings import Settings
from salvage.studies import study as studying
from salvage.studies.study import Findings, Tables
from salvage.tables.files import write_json


def study(
    settings: Settings, name: str, tables: Tables | None, trials: int, out: Path | None, *, quiet: bool
) -> dict[str, Any]:
    """Study regimes or methods on the given tables, or as a stage on those that params.yaml names.

    Parameters
    ----------
    name : {"regimes", "methods"}
    out : Path, optional
        Where the figures are written; those of a stage have a place of their own.

    Returns
    -------
    dict
        The figures.
    """
    work = {"regimes": studying.regimes, "methods": studying.methods}[name]
    trials = trials or settings["study"]["trials"]
    if tables:
        told = work(settings, tables, trials, quiet=quiet).told
        if out:
            write_json(out, told)
        return told
    found: list[Findings] = []

    def kept() -> None:
        mine = Tables.of(settings)
        found.append(work(settings, mine, trials, quiet=quiet))
        said = keep(found[0], out or {"regimes": studying.REGIMES, "methods": studying.METHODS}[name], mine)
        if not quiet:
            print(f"{name}: {said}")

    stage(name, kept)
    return found[0].told


def keep(findings: Findings, out: Path, tables: Tables) -> str:
    """Write a study's figures, log its trials and pictures to the open run, register its classifier; say what became.

    Returns
    -------
    str
        One line for the user.
    """
    from salvage.project import tracking
    from salvage.reports import study_report
    from salvage.serving import registry
    from salvage.tables.files import write_json

    write_json(out, findings.told)
    tracking.log_trials(findings.trials)
    tracking.log_metrics(headlines(findings.told))
    with tempfile.TemporaryDirectory() as folder:
        study_report.pictures(findings.told, findings.table, Path(folder))
        tracking.log_pictures(Path(folder))
    paths = [path for path in (tables.profiles, tables.attempts, tables.facts, tables.features) if path]
    data = {f"data.{path.name}": tracking.dvc_hash(path) for path in paths}
    tags = data | {name: f"{value:.4f}" for name, value in headlines(findings.told).items()}
    version = registry.register_classifier(findings.classifier, findings.frozen, study_report.card(findings.told), tags)
    return f"version {version} of {registry.CLASSIFIERS[findings.frozen['study']]}, champion"


def headlines(told: dict[str, Any]) -> dict[str, float]:
    """Return a study's few figures that MLflow shows first."""
    if "regimes" in told:
        first = next(row for row in told["regimes"] if row["measure"] == "macro_auc")
        stable = [row["value"] for row in told["clusters"] if row.get("chosen")]
        return {"macro_auc": first["value"], "clusters_adjusted_rand": min(stable)}
    rows = [row for row in told["methods"] if row["measure"] == "accuracy" and row["way"] == "bag"]
    return {f"accuracy.{row['split']}.bag{row['bag']}".replace(" ", "_"): row["value"] for row in rows}
