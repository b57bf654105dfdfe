"""What dvc.yaml declares of a stage, and the stage's work under an MLflow run that says so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from salvage.errors import SalvageError
from salvage.project import settings

STAGES = Path("dvc.yaml")
STUDIES = Path("data/full/dvc.yaml")  # the stages on the tables that are kept with Salvage, in its own checkout


def stage(name: str, work: Callable[[], Any]) -> None:
    """Do one stage's work under its MLflow run, with the parameters and tables that dvc.yaml declares for it."""
    told = declared(name)  # a folder without a project is told so before a store is made in it
    from salvage.project import tracking

    with tracking.stage_run(name, *told):
        work()


def declared(name: str) -> tuple[dict[str, Any], list[Path], list[Path]]:
    """Return a stage's parameters, the tables it reads and those it writes, as dvc.yaml has them.

    Raises
    ------
    SalvageError
        Where there is no project in this folder, or the stage is none of it.
    """
    try:
        texts = [STAGES.read_text(encoding="utf-8")]
    except FileNotFoundError:
        raise SalvageError(
            f"there is no {STAGES} here, and {name} is a stage of a project; run it in a project's folder, "
            "or make one: salvage new FOLDER"
        ) from None
    loaded = settings.load()
    values = loaded.raw
    if STUDIES.exists():
        texts.append(STUDIES.read_text(encoding="utf-8"))
    filled = (re.sub(r"\$\{([\w.]+)\}", lambda match: str(_lookup(values, match[1])), text) for text in texts)
    stages = {name: entry for text in filled for name, entry in yaml.safe_load(text)["stages"].items()}
    if name not in stages:
        raise SalvageError(f"{name} is no stage of this project ({STAGES}); give it tables by its options instead")
    entry = stages[name]
    params = {key: _lookup(values, key) for key in entry.get("params", [])}
    if {"sample", "sample.temperature"} & params.keys():
        from salvage.engine.opening import from_generation_config  # with torch, which the other stages go without

        if told := from_generation_config(loaded):
            params["sample.auto"] = json.dumps(told)
    outs = [
        out if isinstance(out, str) else next(iter(out)) for key in ("outs", "metrics") for out in entry.get(key, [])
    ]
    reads = [Path(dep) for dep in entry.get("deps", []) if not dep.startswith("src/")]
    return params, reads, [Path(out) for out in outs]


def _lookup(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return json.dumps(values) if isinstance(values, list) else values
