"""The pipeline's surfaces: MLproject, dvc.yaml and the program name the same stages; params.yaml keeps its comments."""

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

from salvage import cli
from salvage.errors import SalvageError
from salvage.pipeline import run as pipeline
from salvage.pipeline.declared import declared
from salvage.project import settings
from salvage.tables import schema, vocabulary

ROOT = Path(__file__).parents[2]
STAGES = ["lab", "problems", "sample", "featurize", "intervene", "profile", "evaluate", "register"]
STAGES += ["rescue", "report", "regimes", "methods"]
PAIR = {"specialist": "models/mine", "ancestor": "models/base", "problems": "arithmetic"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the project's params.yaml and dvc.yaml."""
    (tmp_path / "data/full").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "data/full/dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def every_stage():
    """Return the stages of the pipeline: the project's, and the studies' beside the kept tables."""
    files = (ROOT / "dvc.yaml", ROOT / "data/full/dvc.yaml")
    return {name: entry for file in files for name, entry in yaml.safe_load(file.read_text())["stages"].items()}


def test_the_surfaces_name_the_same_stages():
    stages = every_stage()
    entries = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    commands = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    assert list(stages) == STAGES
    assert set(entries) == {*STAGES, "main", "route"}
    assert commands == {*STAGES, "route", "run", "show", "import-rollouts", "import-profiles", "new", "doctor"}
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m salvage {name}"
    for name, entry in entries.items():
        assert entry["command"].startswith(f"PYTHONPATH=src python -m salvage {'run' if name == 'main' else name}")


def test_the_code_that_a_stage_depends_on_exists():
    for name, stage in every_stage().items():
        for dep in stage["deps"]:
            assert not dep.startswith("src/") or (ROOT / dep).exists(), (name, dep)


def test_declared_parameters_are_those_of_the_profile(project):
    params, reads, writes = declared("intervene")
    profile = yaml.safe_load((project / "params.yaml").read_text())["profile"]
    assert f"profiles.{profile}.attempts" in params
    assert Path("data/rollouts") in reads
    assert writes == [Path("data/attempts")]
    for name in STAGES:
        declared(name)


def test_an_override_keeps_every_other_line(project):
    before = (project / "params.yaml").read_text().splitlines()
    assert pipeline.override("quick", None) == ["profile = quick"]
    after = (project / "params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old.split() != new.split()]
    assert changed == [("profile: default", "profile: quick")]
    assert pipeline.override("quick", None) == []


def test_an_own_pair_becomes_one_cell_and_only_once(project):
    pair = pipeline.own_pair(*PAIR.values(), "auto")
    assert pipeline.override("own", pair) == ["profile = own", "cells: mine"]
    values = yaml.safe_load((project / "params.yaml").read_text())
    assert values["cells"] == [
        {"name": "mine", **PAIR, "method": "unknown", "seed": 0, "family": "own", "engine": "auto"}
    ]
    assert pipeline.override("own", pair) == []
    assert pipeline.override("own", {**pair, "problems": "other"}) == ["cells: mine"]
    assert len(yaml.safe_load((project / "params.yaml").read_text())["cells"]) == 1
    assert "# of Optuna inside each fold" in (project / "params.yaml").read_text()


def test_what_was_fitted_to_a_pair_stays_while_it_is_the_same(project):
    pair = pipeline.own_pair(*PAIR.values(), "auto")
    pipeline.override("own", pair)
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["cells"][0]["warmup"] = 5
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    assert pipeline.override("own", pair) == []
    pipeline.override("own", {**pair, "problems": "other"})
    assert "warmup" not in yaml.safe_load((project / "params.yaml").read_text())["cells"][0]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: pipeline.override("quik", None), "profile 'quik' is not one of quick, default"),
        (lambda: pipeline.own_pair("mine", None, "arithmetic", None), "ancestor is missing"),
        (lambda: pipeline.own_pair("mine", "base", "none.jsonl", None), "none.jsonl: there is no such problem file"),
    ],
)
def test_a_wrong_parameter_changes_nothing(project, call, sentence):
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(SalvageError, match=sentence):
        call()
    assert (project / "params.yaml").read_bytes() == before
    assert [path.name for path in project.iterdir() if path.name.startswith(".")] == []


def test_elsewhere_than_in_the_project_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SalvageError, match=r"there is no params.yaml here.*salvage new FOLDER"):
        pipeline.override("quick", None)
    with pytest.raises(SalvageError, match=r"there is no dvc.yaml here, and sample is a stage"):
        declared("sample")


def test_a_stage_that_the_project_does_not_have_is_said_to_be_none(project):
    (project / "data/full/dvc.yaml").unlink()
    (project / "dvc.yaml").write_text("stages:\n  sample: {cmd: python -m salvage sample}\n")
    with pytest.raises(SalvageError, match=r"regimes is no stage of this project \(dvc.yaml\)"):
        declared("regimes")


def test_what_is_left_out_of_params_has_its_built_in_value(project):
    (project / "params.yaml").write_text("profile: own # mine\nsample: {max_tokens: 7}\n")
    assert settings.load().raw["sample"] == settings.load("none.yaml").raw["sample"] | {"max_tokens": 7}
    assert pipeline.override("own", {"name": "mine", **PAIR}, "vllm") == ["engine = vllm", "cells: mine"]
    assert "# mine" in (project / "params.yaml").read_text()
    assert [cell.name for cell in settings.load().cells] == ["mine|arithmetic"]


def test_a_run_without_a_pair_of_models_says_so(project):
    (project / "params.yaml").write_text("{}\n")
    with pytest.raises(SalvageError, match="there is no pair of models to run"):
        pipeline.run(quiet=True)


# ------------------------------------------------------------------ DVC and MLflow, for real


def _profiles(n=60):
    rng = np.random.default_rng(0)
    rates = {name: rng.integers(0, 5, n) / 4 for name in vocabulary.OPERATORS}
    table = {name: rng.normal(size=n) for name in vocabulary.FEATURES}
    names = {"model": "m", "task": "t", "problem_id": [f"p{i}" for i in range(n)], "n_failed_rollouts": 3}
    return pd.DataFrame({"cell": ["m|t", "k|t"] * (n // 2), **names, **table, **rates})


def _attempts(profiles):
    rows = [
        (row.cell, row.problem_id, operator, attempt, attempt < 4 * getattr(row, operator))
        for row in profiles.itertuples()
        for operator in vocabulary.OPERATORS
        for attempt in range(4)
    ]
    table = pd.DataFrame(rows, columns=["cell", "problem_id", "operator", "attempt", "correct"])
    counts = {"n_tokens": 9, "n_ancestor_tokens": 9, "n_prefill": 3, "position": -1}
    return table.assign(anchor="online", continuation="temperature", **counts)


@pytest.fixture
def tail(project):
    """A project whose profiles exist already: the pipeline's last three stages, in a git repository with DVC."""
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    (project / "data/full/dvc.yaml").unlink()
    kept = {name: stages[name] for name in ("evaluate", "register", "report")}
    for stage in kept.values():
        made = {"data/attempts", "data/profiles", "data/facts", "metrics/evaluate.json"}
        stage["deps"] = [dep for dep in stage["deps"] if dep in made]
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": kept}))
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["evaluate"] = {**values["evaluate"], "resamples": 50, "permutations": 20}
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    profiles = _profiles()
    schema.write(profiles, schema.PROFILES, project / "data/profiles/m.parquet")
    schema.write(_attempts(profiles), schema.ATTEMPTS, project / "data/attempts/m.parquet")
    facts = profiles[["cell", "problem_id"]].assign(**dict.fromkeys(vocabulary.FACTS, 0.5)).assign(n_tokens=9.0)
    schema.write(facts, schema.FACT_ROWS, project / "data/facts/m.parquet")
    for empty in ("metrics/rescue.json", "data/rescue/views.json"):  # as one's own cells leave them
        (project / empty).parent.mkdir(parents=True, exist_ok=True)
        (project / empty).write_text("[]\n")
    return project


def _salvage(folder, *arguments, **more):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "SALVAGE"))}
    environment = {**own, "PYTHONPATH": str(ROOT / "src"), **more}
    return subprocess.run(
        [sys.executable, "-m", "salvage", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_main_job_ends_in_a_champion_and_then_has_nothing_to_do(tail):
    first = _salvage(tail, "run")
    assert first.returncode == 0, first.stderr
    assert "No policy was compared with retrying here" in first.stdout and "What failed" in first.stdout
    assert "mlflow ui --backend-store-uri sqlite:///mlflow.db" in first.stdout
    pictures = {f"{name}.{kind}" for name in ("failures", "rescue", "budgets") for kind in ("png", "svg")}
    assert {path.name for path in (tail / "report").iterdir()} == {*pictures, "index.html"}
    rows = json.loads((tail / "metrics/evaluate.json").read_text())
    assert {"cell", "scope", "protocol", "policy", "k", "n", "rescue", "low", "high", "p_value"} <= set(rows[0])
    second = _salvage(tail, "run")
    assert "nothing to do: all stages are up to date" in second.stdout
    _check_runs(tail)
    (tail / "mlflow.db").unlink()  # another store: DVC has nothing to do, and yet a champion is needed
    third = _salvage(tail, "run", "--quiet")
    assert third.returncode == 0, third.stderr
    assert "rule is version 1 of salvage-router, champion" in third.stdout


def _check_runs(folder):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("salvage").experiment_id])
    first = min((run for run in runs if run.data.tags["salvage.stage"] == "main"), key=lambda run: run.info.start_time)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == first.info.run_id]
    assert {run.data.tags["salvage.stage"] for run in children} == {"evaluate", "register", "report"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    evaluate = next(run for run in children if run.data.tags["salvage.stage"] == "evaluate")
    lock = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["evaluate"]
    recorded = {table["path"]: table["md5"] for table in [*lock["deps"], *lock["outs"]]}
    logged = {table.dataset.name: table.dataset for table in evaluate.inputs.dataset_inputs}
    assert {name: table.digest for name, table in logged.items()} == recorded
    assert json.loads(logged["data/profiles"].profile) == {"num_rows": 60}
    assert evaluate.data.params["evaluate.resamples"] == "50"
    assert any(name.startswith("steerable-hard/cross-fitted/rule") for name in evaluate.data.metrics)


@pytest.mark.slow
def test_a_failing_stage_ends_the_job_with_its_own_sentence(tail):
    (tail / "data/profiles/m.parquet").write_bytes(b"no parquet")
    done = _salvage(tail, "run", "--quiet")
    assert done.returncode == 2
    assert "m.parquet is not a readable" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tail / "metrics/evaluate.json").exists()
