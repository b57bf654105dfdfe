"""The main job: params.yaml set, DVC's pipeline run under one MLflow run, a champion registered, the table shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from salvage.engine.choice import chosen
from salvage.errors import SalvageError

PARAMS = Path("params.yaml")
STAGES = Path("dvc.yaml")
UP_TO_DATE = "Data and pipelines are up to date."  # what DVC prints where no stage had to run


def run(
    profile: str | None = None,
    specialist: str | None = None,
    ancestor: str | None = None,
    problems: str | None = None,
    engine: str | None = None,
    *,
    quiet: bool = False,
) -> None:
    """Run every stage that is not up to date, and end in a registered champion.

    Parameters
    ----------
    profile : str, optional
        A profile of params.yaml; None leaves what stands there.
    specialist, ancestor, problems : str, optional
        One's own pair and problem set, all three or none: profile `own`, and an entry in `cells`.
    engine : str, optional
        What runs the models, of the own pair where one is given, else of the lab: vllm, transformers or auto. None
        leaves what stands in params.yaml, and is auto for an own pair.
    """
    import mlflow

    from salvage.pipeline import results
    from salvage.project import settings, tracking

    if engine:
        chosen(engine)  # a name that is not known changes nothing
    pair = own_pair(specialist, ancestor, problems, engine)
    changed = override(profile or ("own" if pair else None), pair, None if pair else engine)
    known = settings.load()  # a mistake in params.yaml ends the job before a run is opened
    for name in {cell.engine for cell in known.cells}:
        chosen(name)
    if changed and not quiet:
        print(f"params.yaml: set {', '.join(changed)}", flush=True)
    with tracking.run("main") as run_id:
        worked = repro(run_id, quiet=quiet)
        mlflow.set_tag("salvage.profile", settings.load().profile)
        registered = results.ensure_registered(settings.load())
        tracking.log_metrics(results.metrics(results.saved_rows()))
        tracking.log_pictures(results.REPORT)
    if not worked and not registered:
        print("nothing to do: all stages are up to date")
    print(closing(quiet=quiet))


def closing(*, quiet: bool) -> str:
    """Return the last words: where to look. The evaluation's table is printed before them unless `quiet`."""
    from salvage.pipeline import results
    from salvage.project import tracking
    from salvage.reports import report
    from salvage.rescue import solving

    if not quiet:
        report.show(results.saved_rows())
        solving.show([row for row in solving.saved_rows() if row["cells"] == "all"])
    store = os.environ.get("MLFLOW_TRACKING_URI") or tracking.STORE
    store = store.replace(f"sqlite:///{Path.cwd()}/", "sqlite:///")  # as `mlflow run` has it
    remote = store.startswith("http")
    look = f"open {store}" if remote else f"mlflow ui --backend-store-uri {store}"
    return f"report: {results.REPORT}/index.html   runs and the registered router: {look}   serve it: make serve"


def own_pair(
    specialist: str | None, ancestor: str | None, problems: str | None, engine: str | None
) -> dict[str, Any] | None:
    """Return the entry of `cells` that one's own pair makes, None where no pair was given."""
    given = {"specialist": specialist, "ancestor": ancestor, "problems": problems}
    missing = [name for name, value in given.items() if not value]
    if len(missing) == len(given):
        return None
    if missing:
        raise SalvageError(f"{missing[0]} is missing; one's own pair needs specialist, ancestor and problems together")
    if str(problems).endswith(".jsonl") and not Path(str(problems)).exists():
        raise SalvageError(f"{problems}: there is no such problem file; correct --problems")
    name = Path(str(specialist)).name
    about = {"method": "unknown", "seed": 0, "family": "own"}
    return {"name": name, **given, **about, "engine": engine or "auto"}


def override(
    profile: str | None, pair: dict[str, Any] | None, engine: str | None = None, path: Path = PARAMS
) -> list[str]:
    """Set the profile, the own pair and the lab's engine in params.yaml, comments kept, and return what changed.

    A pair replaces the entry of its name.
    """
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    try:
        values = editor.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SalvageError(f"{path}: there is no such file here; run salvage in the project's folder") from None
    changed = []
    if profile is not None and profile not in values["profiles"]:
        raise SalvageError(
            f"{path}: profile {profile!r} is not one of {', '.join(values['profiles'])}; correct --profile"
        )
    if profile is not None and profile != values["profile"]:
        values["profile"] = profile
        changed.append(f"profile = {profile}")
    if engine and engine != values["engine"]:
        values["engine"] = engine
        changed.append(f"engine = {engine}")
    others = [cell for cell in values["cells"] if pair is None or cell["name"] != pair["name"]]
    if pair is not None and [*others, pair] != list(values["cells"]):
        values["cells"][:] = [*others, pair]
        values["cells"].fa.set_block_style()
        changed.append(f"cells: {pair['name']}")
    if changed:
        beside = path.with_name(f".{path.name}.tmp")
        try:
            with beside.open("w", encoding="utf-8") as file:
                editor.dump(values, file)
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    return changed


def repro(run_id: str, *, quiet: bool) -> bool:
    """Run DVC's pipeline as children of a run, its output passed on; return whether any stage had to run.

    Raises
    ------
    SalvageError
        Where a stage failed; it has said why.
    """
    from salvage.project import tracking

    here = Path(sys.executable).parent  # `python` in dvc.yaml is this one, and salvage this one
    source = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    environment[tracking.PARENT] = run_id
    environment["PATH"] = os.pathsep.join([str(here), os.environ.get("PATH", "")])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "dvc", "repro"]
    up_to_date = False
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        for line in process.stdout or []:
            up_to_date |= UP_TO_DATE in line
            if not quiet:
                print(line, end="", flush=True)
    if process.returncode:
        raise SalvageError("a stage failed; correct what it says above and run again: finished stages are kept")
    return not up_to_date


def stage(name: str, work: Callable[[], Any]) -> None:
    """Do one stage's work under its MLflow run, with the parameters and tables that dvc.yaml declares for it."""
    from salvage.project import tracking

    with tracking.stage_run(name, *declared(name)):
        work()


def declared(name: str) -> tuple[dict[str, Any], list[Path], list[Path]]:
    """Return a stage's parameters, the tables it reads and those it writes, as dvc.yaml has them."""
    try:
        values = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
        text = STAGES.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SalvageError(
            f"{error.filename}: there is no such file here; run salvage in the project's folder"
        ) from None
    text = re.sub(r"\$\{([\w.]+)\}", lambda match: str(_lookup(values, match[1])), text)
    entry = yaml.safe_load(text)["stages"][name]
    params = {key: _lookup(values, key) for key in entry.get("params", [])}
    outs = [
        out if isinstance(out, str) else next(iter(out)) for key in ("outs", "metrics") for out in entry.get(key, [])
    ]
    reads = [Path(dep) for dep in entry["deps"] if not dep.startswith("src/")]
    return params, reads, [Path(out) for out in outs]


def _lookup(values: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return json.dumps(values) if isinstance(values, list) else values
