"""The main job: params.yaml set, DVC's pipeline run under one MLflow run, a champion registered, the table shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from salvage.engine.choice import chosen
from salvage.errors import SalvageError
from salvage.pipeline.preparing import prepare
from salvage.project import settings
from salvage.tables.files import beside

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
    from salvage.project import tracking

    if engine:
        chosen(engine)  # a name that is not known changes nothing
    pair = own_pair(specialist, ancestor, problems, engine)
    changed = override(profile or ("own" if pair else None), pair, None if pair else engine)
    known = settings.load()  # a mistake in params.yaml ends the job before a run is opened
    for name in {cell.engine for cell in known.cells}:
        chosen(name)
    if not known.cells:
        raise SalvageError(
            "there is no pair of models to run; give --specialist, --ancestor and --problems, or a profile with cells"
        )
    if changed and not quiet:
        print(f"params.yaml: set {', '.join(changed)}", flush=True)
    prepare(known, quiet=quiet)
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
    """Return the last words: the story of the run, and where the rest is; the latter alone where `quiet`."""
    from salvage.pipeline import story

    figures = story.saved()
    return f"report: {figures.report}   runs: {figures.store}" if quiet else story.told(figures)


def own_pair(
    specialist: str | None, ancestor: str | None, problems: str | None, engine: str | None
) -> dict[str, Any] | None:
    """Return the entry of `cells` that one's own pair makes, None where no pair was given."""
    ancestor = ancestor or settings.adapter_base(specialist or "")
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
    profile: str | None, pair: dict[str, Any] | None, engine: str | None = None, path: Path = settings.PARAMS
) -> list[str]:
    """Set the profile, the own pair and the lab's engine in params.yaml, comments kept, and return what changed.

    A pair replaces the entry of its name.
    """
    if not path.exists():
        raise SalvageError(
            f"there is no {path} here, which a project has; run this in a project's folder, "
            "or make one: salvage new FOLDER"
        )
    known = settings.load(path).raw  # what is left out has the built-in value
    if profile is not None and profile not in known["profiles"]:
        raise SalvageError(
            f"{path}: profile {profile!r} is not one of {', '.join(known['profiles'])}; correct --profile"
        )
    wanted: dict[str, Any] = {name: value for name, value in (("profile", profile), ("engine", engine)) if value}
    wanted = {name: value for name, value in wanted.items() if value != known[name]}
    changed = [f"{name} = {value}" for name, value in wanted.items()]
    if pair is not None and (there := [cell for cell in known["cells"] if pair.items() <= cell.items()]):
        pair = there[0]  # with what was fitted to it
    cells = [cell for cell in known["cells"] if pair is None or cell["name"] != pair["name"]]
    if pair is not None and [*cells, pair] != known["cells"]:
        wanted["cells"] = [*cells, pair]
        changed.append(f"cells: {pair['name']}")
    if changed:
        _edit(path, wanted)
    return changed


def _edit(path: Path, wanted: dict[str, Any]) -> None:
    """Set values in a YAML file, its comments kept."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    values = editor.load(path.read_text(encoding="utf-8"))
    for name, value in wanted.items():
        old = values.get(name)
        if isinstance(old, CommentedSeq):  # in place, or the comments around it would go
            old[:] = value
            old.fa.set_block_style()
        else:
            values[name] = value
    with beside(path) as part, part.open("w", encoding="utf-8") as file:
        editor.dump(values, file)


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
