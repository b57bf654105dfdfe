"""The studies as commands: what they write, log, register and refuse, on a small world."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from salvage.method.profiles import regimes
from salvage.project import tracking
from salvage.project.settings import load
from salvage.studies.study import reliability, shares
from salvage.tables import schema, vocabulary
from worlds import world

ROOT = Path(__file__).parents[2]
TRIALS = 3


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose study has eight cells: two families, two methods, two seeds."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "data/full").mkdir(parents=True)
    for name in ("dvc.yaml", "data/full/dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["profiles"]["full"]["lab"] |= {"seeds": {"qwen3": 2, "llama": 2}, "ancestors": 1}
    values |= {"methods": ["sft", "dpo"], "study": {"data": "data/full", "profile": "full", "trials": TRIALS}}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    drawn = world(0, cells=8, problems=40)
    names = [f"{f}-{m}-{s}|digits" for f in ("qwen3", "llama") for m in ("sft", "dpo") for s in (0, 1)]
    cell = dict(zip(drawn.table["cell"].unique(), names, strict=True))
    table = drawn.table.assign(cell=drawn.table["cell"].map(cell))
    assert drawn.attempts is not None
    attempts = drawn.attempts.assign(cell=drawn.attempts["cell"].map(cell), n_prefill=3, position=-1)
    attempts = attempts.assign(anchor="online", continuation="temperature")
    features = table.assign(rollout=0, junction=3, delta_path=0.1, g_cov=0.0, j_max=2.0)
    tables = {"profiles": (table, schema.PROFILES), "attempts": (attempts, schema.ATTEMPTS)}
    tables |= {"facts": (table, schema.FACT_ROWS), "features": (features, schema.FEATURE_ROWS)}
    for name, (rows, kind) in tables.items():
        schema.write(rows, kind, folder / f"data/full/{name}/all.parquet")
    return folder


def salvage(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "SALVAGE"))}
    environment = {**own, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "salvage", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("study", "searches"), [("regimes", 6), ("methods", 5)])
def test_a_study_is_written_logged_and_registered(project: Path, study: str, searches: int) -> None:
    done = salvage(project, study)
    assert done.returncode == 0, done.stderr
    assert f"{study}: version 1 of salvage-{study}, champion" in done.stdout
    out = project / f"metrics/{study}.json"
    told = json.loads(out.read_text())
    figures = [row for part in (study, "shares", "clusters") for row in told.get(part, [])]
    assert all(row["low"] <= row["value"] + 1e-4 and row["value"] <= row["high"] + 1e-4 for row in figures)
    _check_store(project, study, searches)
    if study == "regimes":  # both take the same way to their trials; once is enough
        return
    before = out.read_bytes()
    again = salvage(project, study, "--quiet")
    assert again.returncode == 0 and again.stdout == "", again.stderr
    assert out.read_bytes() == before


def _check_store(project: Path, study: str, searches: int) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    version = client.get_model_version_by_alias(f"salvage-{study}", "champion")
    assert version.tags["data.profiles"] == tracking.dvc_hash(project / "data/full/profiles")
    assert "fit it anew" in version.description or "Refuses" in version.description
    runs = client.search_runs([client.get_experiment_by_name("salvage").experiment_id])
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == version.run_id]
    assert len(trials) == searches * TRIALS
    assert {"kind"} <= set(trials[0].data.params) and all("value" in run.data.metrics for run in trials)
    parent = client.get_run(version.run_id)
    assert parent.data.params["study.trials"] == str(TRIALS)
    pictures = {Path(one.path).name for one in client.list_artifacts(version.run_id, "pictures")}
    expected = {"regimes": {"reliability.png", "clusters.png", "topography.png"}, "methods": {"methods.png"}}
    assert pictures == expected[study]


@pytest.mark.slow
def test_a_users_own_table_is_only_told_about(project: Path, tmp_path: Path) -> None:
    shutil.copy(project / "params.yaml", tmp_path)
    table = schema.read(project / "data/full/profiles", schema.PROFILES)
    table.to_csv(tmp_path / "mine.csv", index=False)
    done = salvage(tmp_path, "regimes", "--profiles", "mine.csv", "--trials", "2", "--json", "told.json")
    assert done.returncode == 0, done.stderr
    assert "all attempts (rates alone)" in done.stdout and "k-means" in done.stdout
    assert json.loads((tmp_path / "told.json").read_text())["inputs"] == [*vocabulary.FEATURES, "failed_share"]
    assert not (tmp_path / "mlflow.db").exists() and not (tmp_path / "metrics").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["regimes", "--attempts", "x"], "tables go with --profiles"),
        (["regimes", "--profiles", "none.csv"], "none.csv: there is no such table"),
        (["methods", "--profiles", "few.csv"], "cell 'm|t' is not in params.yaml"),
        (["regimes", "--profiles", "few.csv"], "8 problems are too few to learn regimes from"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    project: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    shutil.copy(project / "params.yaml", tmp_path)
    table = schema.read(project / "data/full/profiles", schema.PROFILES).head(8)
    table.assign(cell="m|t").to_csv(tmp_path / "few.csv", index=False)
    done = salvage(tmp_path, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_shares_are_counted_and_sum_to_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    table = schema.read("data/full/profiles", schema.PROFILES)
    rows = pd.DataFrame(shares(table, 0))
    assert set(rows["cells"]) == {"all", *(f"{f}-{m}-*" for f in ("qwen3", "llama") for m in ("sft", "dpo"))}
    assert np.allclose(rows.groupby("cells")["value"].sum(), 1, atol=1e-4)
    whole = rows[rows["cells"] == "all"].set_index("regime")["value"]
    for name, share in pd.Series(regimes(table)).value_counts(normalize=True).items():
        assert whole[name] == pytest.approx(share, abs=1e-4)
    assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()
    assert load().raw["study"]["trials"] == TRIALS


def test_reliability_counts_every_failure_once() -> None:
    rng = np.random.default_rng(0)
    proba, labels = rng.dirichlet((1, 1), size=(2, 500)), rng.integers(2, size=(2, 500))
    table = pd.DataFrame({"cell": "m|t", "problem_id": [f"p{i % 100}" for i in range(500)]})
    rows = pd.DataFrame(reliability(table, proba, labels, ("a", "b"), 0))
    assert (rows.groupby("regime")["n"].sum() >= 490).all()
    assert ((rows["low"] <= rows["true"]) & (rows["true"] <= rows["high"])).all()
    assert ((rows["told"] >= 0) & (rows["told"] <= 1)).all() and (abs(rows["true"] - 0.5) < 0.3).all()
