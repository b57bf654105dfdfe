"""What every stage logs to MLflow: parameters, the tables read and written, the commit, metrics, pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pyarrow as arrow
import pyarrow.parquet as parquet
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.git_utils import get_git_commit

from salvage.errors import SalvageError
from salvage.project import moved
from salvage.project.store_faults import known, sentence

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

STORE = "sqlite:///mlflow.db"
EXPERIMENT = "salvage"
PARENT = "SALVAGE_PARENT_RUN"  # the pipeline's run, for the stages that DVC starts
LONGEST_NAME = 250  # MLflow's own limit of a metric's or parameter's name
# MLflow's own settings wait minutes for a server that is not there.
_FIRST_CONTACT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}


class _Table(MetaDataset):
    """A table that is logged by its hash and row count alone; nothing of it is loaded."""

    def __init__(self, path: Path) -> None:
        self.rows = row_count(path)
        super().__init__(CodeDatasetSource({"path": path.as_posix()}), name=path.as_posix(), digest=dvc_hash(path))

    @property
    def profile(self) -> dict[str, int] | None:
        return None if self.rows is None else {"num_rows": self.rows}

    def to_dict(self) -> dict[str, str]:
        profile = {} if self.profile is None else {"profile": json.dumps(self.profile)}
        return {**super().to_dict(), **profile}


def dvc_hash(path: Path) -> str:
    """Return the md5 that DVC gives a file, or a folder: there, that of the list of its files' (ending in .dir)."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    entries = [{"md5": dvc_hash(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def row_count(path: Path) -> int | None:
    """Return the rows of a Parquet file, or of all those of a folder; None where none can be counted."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    try:
        return sum(parquet.read_metadata(file).num_rows for file in files) if files else None
    except arrow.ArrowInvalid:  # the stage that reads it will say so
        return None


@contextmanager
def _patience(settings: dict[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, for as long as the block runs."""
    mine = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]


def connect() -> None:
    """Point MLflow at its store, the one that MLFLOW_TRACKING_URI names or `mlflow.db` here, and see that it answers.

    Raises
    ------
    SalvageError
        Within seconds, where the store cannot be reached or written.
    """
    for name in ("mlflow", "alembic"):  # a new store's migrations are told line by line
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.git_utils").setLevel(logging.ERROR)  # git need not be there
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a fault that we tell, with its trace
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = os.environ.get("MLFLOW_TRACKING_URI") or STORE
    moved.follow(uri, Path.cwd())
    given = os.environ.get("MLFLOW_EXPERIMENT_ID")
    with _patience(_FIRST_CONTACT):
        try:
            mlflow.set_tracking_uri(uri)
            mlflow.set_experiment(**_experiment())  # sets the variable, which is the user's to set
        except SalvageError:
            raise
        except Exception as error:  # MLflow's, a database's or the system's, by the kind of store
            raise SalvageError(sentence(error, uri)) from error
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    if given:
        os.environ["MLFLOW_EXPERIMENT_ID"] = given


def _experiment() -> dict[str, Any]:
    """Return the experiment: that of the run which is open already, or that which the environment names, or ours."""
    opened = os.environ.get(PARENT) or os.environ.get("MLFLOW_RUN_ID")  # `mlflow run` opens it wherever it was told
    if opened:
        return {"experiment_id": mlflow.get_run(opened).info.experiment_id}
    number, name = (os.environ.get(f"MLFLOW_EXPERIMENT_{key}") for key in ("ID", "NAME"))
    if number and name and mlflow.get_experiment(number).name != name:
        raise SalvageError(
            f"MLFLOW_EXPERIMENT_ID is {number}, which is not the experiment {name!r} of MLFLOW_EXPERIMENT_NAME; "
            "unset one of the two"
        )
    return {"experiment_id": number} if number else {"experiment_name": name or EXPERIMENT}


@contextmanager
def _told() -> Iterator[None]:
    """Turn what MLflow says against its store into one sentence; what is no fault of the store stays what it is."""
    try:
        yield
    except MlflowException as error:
        if told := known(error, mlflow.get_tracking_uri()):
            raise SalvageError(told) from error
        raise


@contextmanager
def run(name: str) -> Iterator[str]:
    """Open a run and yield its id: a child of the pipeline's, or the one that `mlflow run` opened, or a new one."""
    connect()
    parent = os.environ.get(PARENT)
    with _told():
        if parent:
            experiment = mlflow.get_run(parent).info.experiment_id
            opened = mlflow.start_run(run_name=name, experiment_id=experiment, parent_run_id=parent)
        elif os.environ.get("MLFLOW_RUN_ID"):
            opened = mlflow.start_run()
        else:
            opened = mlflow.start_run(run_name=name)
        with opened:
            commit = get_git_commit(".")
            mlflow.set_tags({"salvage.stage": name, **({"mlflow.source.git.commit": commit} if commit else {})})
            yield opened.info.run_id


@contextmanager
def stage_run(name: str, params: dict[str, Any], reads: list[Path], writes: list[Path]) -> Iterator[None]:
    """Run a stage under an MLflow run that says what it was told, what it read and what it wrote.

    Parameters
    ----------
    name : str
        The stage.
    params : dict
        Its part of params.yaml; nested names are joined by dots.
    reads, writes : list of Path
        Tables: files or folders. Those that do not exist are left out.
    """
    with run(name) as run_id:
        values = flat(params)
        named = dict(zip(allowed_names(values), values.values(), strict=True))
        mlflow.log_params(_not_taken(named, mlflow.get_run(run_id).data.params))
        log_tables(reads, "read")
        yield
        log_tables(writes, "written")


def _not_taken(params: dict[str, Any], taken: dict[str, str]) -> dict[str, Any]:
    """Call a setting `params.NAME` where the run has that name otherwise: `mlflow run` logs an entry point's."""
    return {
        f"params.{name}" if taken.get(name, str(value)) != str(value) else name: value for name, value in params.items()
    }


def log_tables(paths: list[Path], context: str) -> None:
    """Log the DVC hash and the row count of each table."""
    for path in paths:
        if path.exists():
            table = _Table(path)
            mlflow.log_input(table, context=context, tags={"rows": str(table.rows)} if table.rows is not None else None)


def log_metrics(metrics: dict[str, float]) -> None:
    """Log numbers to the open run, each under a name that MLflow takes."""
    mlflow.log_metrics(dict(zip(allowed_names(metrics), metrics.values(), strict=True)))


def allowed_names(names: Iterable[str]) -> list[str]:
    """Return names as MLflow takes them, no two the same: letters, digits and `_-. /` stay, all else becomes `_`.

    MLflow takes them for paths: no part is empty, `.` or `..`, and none is long.
    """
    found: dict[str, None] = {}
    for name in names:
        parts = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name).split("/")
        told = "/".join("_" if part in ("", ".", "..") else part for part in parts)
        if told in found or len(told) > LONGEST_NAME:
            told = f"{told[: LONGEST_NAME - 17]}-{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}"
        found[told] = None
    return list(found)


def log_trials(studies: dict[str, list[FrozenTrial]]) -> None:
    """Log each of Optuna's trials as a run inside the open one, at the time it ran: settings, value, state."""
    client, parent = mlflow.MlflowClient(), mlflow.active_run()
    assert parent is not None
    for study, trials in studies.items():
        for trial in trials:
            start, end = (int(1000 * trial.user_attrs[name]) for name in ("start", "end"))
            tags = {"mlflow.parentRunId": parent.info.run_id, "salvage.study": study, "state": trial.state.name}
            name = f"{study} {trial.user_attrs['slot']}"
            run_id = client.create_run(parent.info.experiment_id, start, tags, name).info.run_id
            params = [Param(key, str(value)) for key, value in trial.params.items()]
            values = [] if trial.value is None else [Metric("value", trial.value, end, 0)]
            client.log_batch(run_id, values, params)
            client.set_terminated(run_id, end_time=end)


def log_pictures(folder: Path) -> None:
    """Log every PNG of a folder to the open run, and the page that has them all where there is one."""
    for picture in sorted(folder.glob("*.png")):
        mlflow.log_artifact(str(picture), "pictures")
    if (page := folder / "index.html").exists():
        mlflow.log_artifact(str(page), "report")


def flat(params: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level: {"sample": {"rollouts": 8}} as {"sample.rollouts": 8}."""
    result: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, dict):
            result.update(flat(value, f"{prefix}{name}."))
        else:
            result[f"{prefix}{name}"] = value
    return result
