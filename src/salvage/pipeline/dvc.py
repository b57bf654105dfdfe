"""DVC at work: whether it can in this folder, and its pipeline run as children of an MLflow run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from salvage.errors import SalvageError
from salvage.pipeline.declared import STAGES
from salvage.project.settings import MODELS, Settings

FOLDER = Path(".dvc")
UP_TO_DATE = "Data and pipelines are up to date."  # what DVC prints where no stage had to run


def ready() -> str:
    """See that DVC can work in this folder, and have it do without git where there is none (core.no_scm).

    Returns
    -------
    str
        What was set, for the user; empty where nothing had to be.

    Raises
    ------
    SalvageError
        Where it cannot.
    """
    from dvc.config import Config
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    if not FOLDER.is_dir():
        raise SalvageError(f"there is no {FOLDER} here, where DVC keeps its settings; make it: dvc init --no-scm")
    told = ""
    try:
        try:
            Repo(".").close()
        except SCMError:  # a download without git's own folder, or git's is not whole
            with Config(str(FOLDER), validate=False).edit("local") as values:
                values.setdefault("core", {})["no_scm"] = True
            Repo(".").close()
            told = f"no git here: DVC works without it ({FOLDER}/config.local: core.no_scm)"
    except (DvcException, OSError) as error:
        raise SalvageError(
            f"DVC cannot work here: {str(error).splitlines()[0]}; correct that, then run again"
        ) from error
    return told


def targets(settings: Settings) -> list[str]:
    """Return the stages to run where not all are: of one's own cells, those of the project's file but the lab's.

    The studies are of the lab's cells, and their stages are in a file of their own.
    """
    if settings.lab:
        return []
    return [name for name in _stages() if name not in ("lab", "rescue")]


def leave_empty() -> None:
    """Leave empty what other stages read of the lab's, which do not run: models, and the comparison of arms."""
    MODELS.mkdir(parents=True, exist_ok=True)
    if not any(MODELS.iterdir()):
        (MODELS / "none").touch()  # else DVC warns of an empty folder, three times a stage
    if "rescue" in _stages():
        from salvage.rescue import solving

        solving.clear()


def _stages() -> list[str]:
    return list(yaml.safe_load(STAGES.read_text(encoding="utf-8"))["stages"])


def repro(run_id: str, settings: Settings, held: int, *, quiet: bool) -> bool:
    """Run DVC's pipeline as children of a run, its output passed on; return whether any stage had to run.

    Parameters
    ----------
    held : int
        The project's lock, which DVC holds too: a DVC whose parent was killed goes on.

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
    if chosen := targets(settings):
        leave_empty()
        command += ["--single-item", *chosen]
    up_to_date = False
    with subprocess.Popen(  # noqa: S603
        command, env=environment, stdout=subprocess.PIPE, text=True, pass_fds=[held]
    ) as process:
        for line in process.stdout or []:
            up_to_date |= UP_TO_DATE in line
            if not quiet:
                print(line, end="", flush=True)
    if process.returncode:
        raise SalvageError("a stage failed; correct what it says above and run again: finished stages are kept")
    return not up_to_date
