"""What is logged, and what happens where it cannot be."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from salvage.project import tracking

SOURCE = str(Path(__file__).parents[2] / "src")


@pytest.fixture
def tables(tmp_path):
    """A folder of two Parquet tables, three rows and two."""
    folder = tmp_path / "tables"
    folder.mkdir()
    pd.DataFrame({"x": [1, 2, 3]}).to_parquet(folder / "b.parquet")
    pd.DataFrame({"x": [4, 5]}).to_parquet(folder / "a.parquet")
    return folder


def test_nested_parameters_become_dotted():
    assert tracking.flat({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_rows_are_counted_over_a_folder(tables):
    assert tracking.row_count(tables) == 5
    assert tracking.row_count(tables / "a.parquet") == 2
    assert tracking.row_count(tables.parent) is None


def test_the_hash_of_a_folder_is_dvcs(tables):
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.tree import Tree

    tree = Tree()
    for name in ("b.parquet", "a.parquet"):
        tree.add((name,), None, HashInfo("md5", tracking.dvc_hash(tables / name)))
    tree.digest()
    assert tracking.dvc_hash(tables) == tree.hash_info.value


def test_settings_of_the_first_contact_are_taken_back(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with tracking._patience(tracking._FIRST_CONTACT):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("uri", ["http://user:secret@127.0.0.1:9", "sqlite:///a_file/mlflow.db"])
def test_an_unreachable_server_is_one_sentence_within_seconds(tmp_path, uri):
    code = (
        "import sys\nfrom pathlib import Path\nfrom salvage import cli\nfrom salvage.project import tracking\n"
        "def work():\n    with tracking.stage_run('sample', {}, [], [Path('made')]):\n        Path('made').touch()\n"
        "cli.app = work\ncli.main()\n"
    )
    (tmp_path / "a_file").touch()
    environment = {**os.environ, "PYTHONPATH": SOURCE, "MLFLOW_TRACKING_URI": uri}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert time.monotonic() - start < 30
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr and "MLFLOW_TRACKING_URI" in done.stderr
    assert "Traceback" not in done.stderr and "secret" not in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
def test_a_failed_stage_is_a_failed_run(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv(tracking.PARENT, raising=False)
    with pytest.raises(RuntimeError), tracking.stage_run("sample", {"sample": {"rollouts": 8}}, [], []):
        raise RuntimeError("no")
    run = mlflow.search_runs(experiment_names=["salvage"], output_format="list")[0]
    assert run.info.status == "FAILED"
    assert run.data.params == {"sample.rollouts": "8"}


@pytest.mark.slow
def test_a_run_that_mlflow_run_opened_stays_in_its_experiment(tmp_path, monkeypatch):
    """`mlflow run .` without --experiment-name opens its run under Default."""
    import mlflow

    store = f"sqlite:///{tmp_path}/mlflow.db"
    opened = mlflow.MlflowClient(store).create_run("0").info.run_id
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    monkeypatch.delenv(tracking.PARENT, raising=False)
    with tracking.run("main") as run_id:
        assert run_id == opened
    assert mlflow.get_run(opened).info.experiment_id == "0"
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv(tracking.PARENT, opened)
    with tracking.run("sample") as run_id:
        assert mlflow.get_run(run_id).info.experiment_id == "0"


# ------------------------------------------------------------------ the store's faults, for real


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store that has an experiment of ours, one of another name, and a deleted run."""
    import mlflow

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    client = mlflow.MlflowClient(f"sqlite:///{file}")
    for name in ("salvage", "mine"):
        client.create_experiment(name)
    return file


def begin(folder, **environment):
    """Open a stage's run twice in a process of its own, and return what was said."""
    code = (
        "from salvage import cli\nfrom salvage.project import tracking\n"
        "def work():\n    for _ in range(2):\n"
        "        with tracking.stage_run('sample', {'engine': 'ours', 'seed': 0}, [], []):\n            pass\n"
        "cli.app = work\ncli.main()\n"
    )
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "SALVAGE"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=mine | {"PYTHONPATH": SOURCE, **environment},
        capture_output=True,
        text=True,
    )


def runs(file, name):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{file}")
    return client.search_runs([client.get_experiment_by_name(name).experiment_id])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        (
            "UPDATE experiments SET lifecycle_stage = 'deleted' WHERE name = 'salvage'",
            "Cannot set a deleted experiment",
        ),
        ("UPDATE alembic_version SET version_num = 'bd07f7e963c5'", "Detected out-of-date database schema"),
    ],
)
def test_case_27_a_store_at_fault_is_told_in_mlflows_words(store, tmp_path, sql, sentence):
    import shutil
    import sqlite3

    shutil.copy(store, tmp_path / "mlflow.db")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute(sql)
    database.close()
    done = begin(tmp_path)
    assert done.returncode == 2 and sentence in done.stderr and "cannot be reached" not in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"MLFLOW_TRACKING_URI": "./mlruns"}, "mlflow migrate-filestore"),
        (
            {"MLFLOW_TRACKING_URI": "mysql+pymysql://u:secret@127.0.0.1/x"},
            "No module named 'pymysql'; install the driver",
        ),
        ({"MLFLOW_RUN_ID": "0" * 32}, "not found; correct or unset MLFLOW_RUN_ID"),
        ({"MLFLOW_EXPERIMENT_ID": "77"}, "correct or unset MLFLOW_EXPERIMENT_ID"),
        ({"MLFLOW_EXPERIMENT_ID": "1", "MLFLOW_EXPERIMENT_NAME": "mine"}, "which is not the experiment 'mine'"),
    ],
)
def test_case_27_an_environment_at_fault_is_told_in_mlflows_words(store, tmp_path, environment, sentence):
    import shutil

    shutil.copy(store, tmp_path / "mlflow.db")
    done = begin(tmp_path, **environment)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "secret" not in done.stderr and "cannot be reached" not in done.stderr


@pytest.mark.slow
def test_case_27_a_server_that_wants_a_password_is_told_so(tmp_path):
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Closed(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b"You are not authenticated. Please see the documentation."
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 (http.server calls it so)

        def log_message(self, *_): ...

    server = HTTPServer(("127.0.0.1", 0), Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = begin(tmp_path, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    assert done.returncode == 2 and "401" in done.stderr and "MLFLOW_TRACKING_USERNAME" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"MLFLOW_EXPERIMENT_NAME": "mine"}, "mine"),
        ({"MLFLOW_EXPERIMENT_NAME": "new"}, "new"),
        ({"MLFLOW_EXPERIMENT_ID": "2"}, "mine"),
        ({"MLFLOW_EXPERIMENT_ID": "2", "MLFLOW_EXPERIMENT_NAME": "mine"}, "mine"),
        ({"MLFLOW_EXPERIMENT_ID": "", "MLFLOW_EXPERIMENT_NAME": ""}, "salvage"),
    ],
)
def test_case_28_the_experiment_that_the_environment_names(store, tmp_path, environment, name):
    import shutil

    shutil.copy(store, tmp_path / "mlflow.db")
    done = begin(tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert len(runs(tmp_path / "mlflow.db", name)) == 2
    assert name == "salvage" or not runs(tmp_path / "mlflow.db", "salvage")


@pytest.mark.slow
def test_case_26_a_parameter_of_an_entry_point_and_one_of_params_yaml_may_have_one_name(store, tmp_path):
    import shutil

    from mlflow import MlflowClient

    shutil.copy(store, tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    opened = client.create_run("1").info.run_id
    client.log_param(opened, "engine", "auto")  # as `mlflow run -e rescue` does
    done = begin(tmp_path, MLFLOW_RUN_ID=opened)  # twice the same, so that nothing is logged otherwise
    assert done.returncode == 0, done.stderr
    assert client.get_run(opened).data.params == {"engine": "auto", "params.engine": "ours", "seed": "0"}


@pytest.mark.slow
def test_case_29_artifacts_move_with_their_project(tmp_path):
    """Renamed, its models are found here, and nothing is written where it was; copied, the copy keeps to itself."""
    import shutil

    code = """
import os, sys
import mlflow
from salvage.errors import SalvageError
from salvage.project import tracking
try:
    with tracking.run("main"):
        if sys.argv[1] == "first":
            model = mlflow.pyfunc.log_model(name="m", python_model=lambda model_input: model_input, pip_requirements=[])
            mlflow.register_model(model.model_uri, "m")
        mlflow.log_text("x", "x.txt")
    print(mlflow.artifacts.download_artifacts("models:/m/1"))
except SalvageError as error:
    sys.exit(str(error))
"""

    def begin(folder, how):
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "SALVAGE"))}
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, how],
            cwd=folder,
            env=mine | {"PYTHONPATH": SOURCE},
            capture_output=True,
            text=True,
        )

    old, new, copy = (tmp_path / name for name in ("old", "new", "copy"))
    old.mkdir()
    assert str(old) in begin(old, "first").stdout
    old.rename(new)
    assert str(new) in begin(new, "again").stdout
    assert not old.exists()
    shutil.copytree(new, copy)
    assert str(copy) in begin(copy, "again").stdout
    before = {p for p in new.rglob("*") if p.is_file()}
    begin(copy, "again")
    assert {p for p in new.rglob("*") if p.is_file()} == before
    new.rename(old)
    shutil.rmtree(old / "mlruns")
    told = begin(old, "again").stderr
    assert str(new / "mlruns/1") in told and "which is gone" in told and not new.exists()
