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
