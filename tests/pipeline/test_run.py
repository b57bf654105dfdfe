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
    assert pipeline.override("own", {**pair, "engine": ""}) == []
    assert pipeline.override("own", {**pair, "engine": "vllm"}) == ["cells: mine"]
    cells = yaml.safe_load((project / "params.yaml").read_text())["cells"]
    assert [cell["engine"] for cell in cells] == ["vllm"]
    assert "# of Optuna inside each fold" in (project / "params.yaml").read_text()


def test_a_pair_tried_on_a_few_problems_and_then_on_all_is_one_cell(project):
    def cells(problems):
        pipeline.override("own", pipeline.own_pair(*list(PAIR.values())[:2], problems))
        return [(cell.name, cell.problems) for cell in settings.load().own]

    (project / "p.jsonl").write_text("")
    assert cells("p.jsonl?limit=20") == [("mine|p", "p.jsonl?limit=20")]
    assert cells(f"{project}/p.jsonl?limit=30") == [("mine|p", f"{project}/p.jsonl?limit=30")]
    assert cells("p.jsonl") == [("mine|p", "p.jsonl")]
    assert cells("q.parquet?prompt=x&limit=5") == [("mine|p", "p.jsonl"), ("mine|q", "q.parquet?prompt=x&limit=5")]
    assert cells("q.parquet?prompt=y")[-1] == ("mine|q.parquet?prompt=y", "q.parquet?prompt=y")  # other problems
    with pytest.raises(SalvageError, match=r"none.jsonl\?limit=5: there is no such problem file"):
        cells("none.jsonl?limit=5")


def test_what_was_fitted_to_a_pair_stays_while_it_is_the_same(project):
    pair = pipeline.own_pair(*PAIR.values(), "auto")
    pipeline.override("own", pair)
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["cells"][0]["warmup"] = 5
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    assert pipeline.override("own", pair) == []
    pipeline.override("own", {**pair, "problems": "other"})
    cells = yaml.safe_load((project / "params.yaml").read_text())["cells"]
    assert [(cell["name"], cell["problems"], cell.get("warmup")) for cell in cells] == [
        ("mine", "arithmetic", 5),
        ("mine", "other", None),
    ]


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
    assert pipeline.override("own", {"name": "mine", **PAIR, "engine": ""}, "vllm") == ["engine = vllm", "cells: mine"]
    assert "# mine" in (project / "params.yaml").read_text()
    assert [cell.name for cell in settings.load().cells] == ["mine|arithmetic"]


def test_a_run_without_a_pair_of_models_says_so_and_changes_nothing(project):
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(SalvageError, match="there is no pair of models to run"):
        pipeline.run("own", quiet=True)
    assert (project / "params.yaml").read_bytes() == before
    assert not (project / "mlflow.db").exists()


# ------------------------------------------------------------------ which pair it is


def names(project):
    return [cell["name"] for cell in yaml.safe_load((project / "params.yaml").read_text())["cells"]]


def given(specialist, name=None, problems="arithmetic", ancestor="models/base"):
    return pipeline.override("own", pipeline.own_pair(specialist, ancestor, problems, None, name))


def test_case_06_a_pair_is_more_than_its_folders_last_name(project):
    for folder in ("runs/a/checkpoint-500", "runs/b/checkpoint-500", "other/b/checkpoint-500"):
        (project / folder).mkdir(parents=True)
        given(folder)
    assert names(project) == ["checkpoint-500", "b-checkpoint-500", "other-b-checkpoint-500"]
    assert len({cell.name for cell in settings.load().cells}) == 3
    before = (project / "params.yaml").read_bytes()
    for again in ("runs/b/checkpoint-500", "./runs/../runs/b/checkpoint-500/", str(project / "runs/b/checkpoint-500")):
        assert given(again) == []
    assert (project / "params.yaml").read_bytes() == before


def test_case_06_hub_names_of_two_owners_and_names_that_are_no_names(project):
    given("one/model")
    given("two/model")
    given("a|b/c|d")
    assert names(project) == ["model", "two-model", "c-d"]
    given("one/model", ancestor="another/base")  # the same specialist, compared with another model
    assert names(project)[-1] == "one-model"
    given("one/model", ancestor="third/base")
    assert names(project)[-1] == "model-2"


def test_case_06_a_name_can_be_given(project):
    assert given("runs/a/checkpoint-500", "first") == ["profile = own", "cells: first"]
    assert given("runs/a/checkpoint-500") == []
    with pytest.raises(SalvageError, match="'first' is another pair, of runs/a/checkpoint-500; give this one another"):
        given("runs/b/checkpoint-500", "first")
    with pytest.raises(SalvageError, match="this pair is there already, as 'first'; leave --name out"):
        given("runs/a/checkpoint-500", "second")
    with pytest.raises(SalvageError, match="--name is for a pair of one's own"):
        pipeline.own_pair(None, None, None, None, "mine")
    assert names(project) == ["first"]


def test_case_06_the_tables_of_earlier_cells_stay(project):
    from salvage.pipeline.stages import _drop_others

    for folder in ("runs/a/checkpoint-500", "runs/b/checkpoint-500"):
        given(folder)
        for cell in settings.load().cells:
            schema.write(_profiles(6), schema.PROFILES, project / "data/profiles" / cell.file)
        _drop_others(project / "data/profiles", {cell.file for cell in settings.load().cells})
    assert len(list((project / "data/profiles").glob("*.parquet"))) == 2


def test_what_was_changed_is_taken_back_where_the_start_fails(project):
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(KeyboardInterrupt), pipeline.undone(project / "params.yaml"):
        given("runs/a/checkpoint-500")
        assert (project / "params.yaml").read_bytes() != before
        raise KeyboardInterrupt
    assert (project / "params.yaml").read_bytes() == before


# ------------------------------------------------------------------ what it rests on


def test_case_07_what_a_cell_is_made_from_is_noted(project, monkeypatch):
    import importlib

    from salvage.pipeline import inputs

    for name in ("spec", "base"):
        (project / name).mkdir()
        (project / name / "model.safetensors").write_bytes(b"weights")
    line = {"problem_id": "a", "prompt": "1+2:", "answer": "3", "verifier": "judged:by_me"}
    (project / "mine.jsonl").write_text(json.dumps(line) + "\n")
    (project / "judged.py").write_text("def by_me(problem, text):\n    return False\n")
    (project / "rollouts.parquet").write_bytes(b"rows")
    pipeline.override("own", pipeline.own_pair("spec", "base", "mine.jsonl?limit=1"))
    values = yaml.safe_load((project / "params.yaml").read_text())
    values["cells"][0]["rollouts"] = "rollouts.parquet"
    (project / "params.yaml").write_text(yaml.safe_dump(values))
    importlib.invalidate_caches()

    def noted():
        inputs.note(settings.load())
        return json.loads((project / "data/inputs.json").read_text())["spec|mine"]

    seen = [noted()]
    assert set(seen[0]) == {"specialist", "ancestor", "problems", "rollouts", "verifiers"} and noted() == seen[0]
    os.utime(project / "spec/model.safetensors")  # touched, not changed
    assert noted() == seen[0]
    for path, content in {
        "spec/model.safetensors": b"retrained",
        "base/model.safetensors": b"another",
        "mine.jsonl": (json.dumps(line | {"answer": "4"}) + "\n").encode(),
        "rollouts.parquet": b"others",
        "judged.py": b"def by_me(problem, text):\n    return True\n",
    }.items():
        (project / path).write_bytes(content)
        seen.append(noted())
        assert sum(seen[-1][key] != seen[-2][key] for key in seen[-1]) == 1, path


def test_case_07_stages_depend_on_what_was_noted():
    for path in (ROOT / "dvc.yaml", ROOT / "src/salvage/project/template/dvc.yaml"):
        stages = yaml.safe_load(path.read_text())["stages"]
        for name in ("problems", "sample", "featurize", "intervene"):
            assert "data/inputs.json" in stages[name]["deps"], (path, name)
    assert json.loads((ROOT / "data/inputs.json").read_text()) == {}, "own cells do not belong in the repository"


def test_own_cells_have_no_lab_stages_and_no_studies_of_ours(project):
    from salvage.pipeline.dvc import leave_empty, targets

    assert targets(settings.load()) == []
    pipeline.override("own", pipeline.own_pair(*PAIR.values()))
    for path in ("metrics/rescue.json", "data/rescue/views.json", "data/rescue/qwen3--digits.parquet"):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("of the lab's cells")
    assert targets(settings.load()) == [name for name in STAGES[:-2] if name not in ("lab", "rescue")]
    leave_empty()
    assert json.loads((project / "metrics/rescue.json").read_text()) == []
    assert {path.name: path.read_text() for path in (project / "data/rescue").iterdir()} == {"views.json": "[]\n"}
    assert any(settings.MODELS.iterdir()), "DVC warns of an empty folder"


# ------------------------------------------------------------------ where it runs


def test_case_30_without_git_dvc_is_told_so(project):
    from salvage.pipeline import dvc

    with pytest.raises(SalvageError, match=r"there is no \.dvc here"):
        dvc.ready()
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[core]\n    analytics = false\n")
    assert "core.no_scm" in dvc.ready()
    assert "no_scm" in (project / ".dvc/config.local").read_text()
    assert (project / ".dvc/config").read_text() == "[core]\n    analytics = false\n", "git has that one"
    assert dvc.ready() == ""


def test_case_30_with_git_nothing_is_set(project):
    from salvage.pipeline import dvc

    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    (project / ".dvc").mkdir()
    assert dvc.ready() == "" and not (project / ".dvc/config.local").exists()


def test_case_32_two_runs_of_one_project(project):
    from salvage.tables.locks import locked

    before = (project / "params.yaml").read_bytes()
    with locked(pipeline.LOCK, "taken"), pytest.raises(SalvageError, match="another salvage run is at work"):
        pipeline.run("quick", quiet=True)
    assert (project / "params.yaml").read_bytes() == before


def test_case_26_entry_points_give_what_their_commands_take():
    import re

    import typer

    commands = typer.main.get_command(cli.app).commands
    for path in (ROOT / "MLproject", ROOT / "src/salvage/project/template/MLproject"):
        for entry, told in yaml.safe_load(path.read_text())["entry_points"].items():
            words = told["command"].split()
            command = commands[words[words.index("salvage") + 1]]
            given = dict(re.findall(r"(--[\w-]+) \{([\w-]+)\}", told["command"]))
            parameters = told.get("parameters", {})
            assert set(given.values()) == set(parameters), (path, entry)
            as_mlflow_fills_it = [(flag, parameters[name].get("default", "x")) for flag, name in given.items()]
            command.make_context(entry, [part for pair in as_mlflow_fills_it for part in pair])  # else says why not


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
    said = " ".join(first.stdout.split())
    assert "retrying" in said and "60 failures" in said and "What failed" in said
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


@pytest.fixture(scope="module")
def checkout(tmp_path_factory, pair):
    """A copy of the project with a tiny lab: its entry points as they are, its figures small; tables of earlier stages.

    What regimes and methods read, and rescue learns from, is cut from the kept tables.
    """
    folder = tmp_path_factory.mktemp("project") / "salvage"
    folder.mkdir()
    for name in ("MLproject", "conda.yaml", "dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data/full").mkdir(parents=True)
    for name in ("data/inputs.json", "data/full/dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    tiny = {"families": ["qwen3"], "seeds": {"qwen3": 1}, "ancestors": 1}
    tiny["steps"] = {"qwen3": 4, "sft": 1, "rft": 1, "dpo": 1, "grpo": 1}
    values["profiles"]["quick"] |= {"lab": tiny, "problems": 40, "attempts": 4, "retries": 4, "rescue": 6}
    values |= {"profile": "quick", "methods": ["sft"]}
    values["sample"]["rollouts"] = 2
    values["lab"]["max_tokens"] = 12
    values["evaluate"] |= {"resamples": 50, "permutations": 20}
    values["rescue"] |= {"data": ["data/full"], "arms": ["retry", "rule"], "budgets": [2, 4]}
    values["study"]["trials"] = 1
    (folder / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    for name in ("attempts", "profiles", "facts", "features"):
        for path in (ROOT / "data/full" / name).glob("qwen3-*-[01]--*.parquet"):
            table = pd.read_parquet(path)
            few = sorted(table["problem_id"].unique())[:40]
            kind = {"attempts": schema.ATTEMPTS, "profiles": schema.PROFILES}.get(
                name, {"facts": schema.FACT_ROWS, "features": schema.FEATURE_ROWS}.get(name)
            )
            schema.write(table[table["problem_id"].isin(few)], kind, folder / "data/full" / name / path.name)
    return folder


ENTRIES = ["lab", "problems", "sample", "featurize", "intervene", "profile", "route", "evaluate", "register", "rescue"]
ENTRIES += ["regimes", "methods", "report"]


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_case_26_every_entry_point_runs_under_mlflow(checkout, entry):
    """In their order: each needs what those before it wrote."""
    if entry == "regimes":  # of the kept tables, which are of all methods
        values = yaml.safe_load((checkout / "params.yaml").read_text())
        (checkout / "params.yaml").write_text(yaml.safe_dump(values | {"methods": ["sft", "rft", "dpo", "grpo"]}))
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW", "SALVAGE"))}
    environment = {**own, "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own["PATH"]])
    command = [sys.executable, "-m", "mlflow", "run", ".", "--env-manager", "local", "-e", entry]
    command += ["-P", "reference=data/full/profiles"] if entry == "route" else []
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "succeeded" in done.stderr and "Traceback" not in done.stderr
