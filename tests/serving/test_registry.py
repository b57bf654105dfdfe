"""The registry: a router that is not there is none, and a store at fault is told as such."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import mlflow
import pytest

from salvage.errors import SalvageError
from salvage.project import tracking
from salvage.serving import registry


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Return a client of a new store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    tracking.connect()
    return mlflow.MlflowClient()


def test_case_27_no_router_is_none_and_a_store_at_fault_is_told(store: mlflow.MlflowClient) -> None:
    assert registry.version_called("champion") is None and registry.champion() is None
    store.create_registered_model(registry.NAME)
    store.create_model_version(registry.NAME, "somewhere/else")
    assert registry.version_called("champion") is None  # a model, and no such alias
    store.set_registered_model_alias(registry.NAME, "champion", "1")
    found = registry.version_called("champion")
    assert found is not None and int(found.version) == 1
    with sqlite3.connect("mlflow.db") as database:
        database.execute("DROP TABLE registered_model_aliases")
    for asked in (lambda: registry.version_called("champion"), lambda: registry.load(registry.CHAMPION)):
        with pytest.raises(SalvageError, match=r"MLflow at sqlite:.*: .*no such table.*; correct MLFLOW_TRACK"):
            asked()
    with sqlite3.connect("mlflow.db") as database:
        database.execute("DROP TABLE model_versions")
    with pytest.raises(SalvageError, match=r"MLflow at sqlite:.*: .*no such table"):
        registry.versions()


@pytest.mark.parametrize("uri", ["models:/none@champion", "models:/salvage-router/7", "models:/salvage-router@none"])
def test_a_router_that_is_not_there_is_named(store: mlflow.MlflowClient, uri: str) -> None:
    store.create_registered_model(registry.NAME)
    with pytest.raises(SalvageError, match=f"--model {uri}: there is no such router .* register one, or correct"):
        registry.load(uri)
