"""A project for one's own models: the files that `salvage new` lays down, held to the repository's own."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from salvage.cli import NEEDS
from salvage.errors import SalvageError
from salvage.pipeline.declared import declared
from salvage.problems.sets import load
from salvage.project import settings
from salvage.project.new import lay_down

ROOT = Path(__file__).parents[2]
NOT_HERE = {"lab", "regimes", "methods", "rescue"}  # of the lab, or of tables that a new project does not have


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lay_down(tmp_path / "mine")
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


def test_what_is_laid_down_is_a_project(project: Path) -> None:
    names = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    hidden = {".dvc/config", ".dvcignore", ".gitignore"}
    assert names == {*hidden, "data/inputs.json", "MLproject", "dvc.yaml", "params.yaml", "problems.jsonl"}
    assert list(load("problems.jsonl")["problem_id"]) == ["apples", "train", "word"]
    assert settings.load().raw == settings.load("none.yaml").raw, "its params.yaml is what is built in"


def test_its_pipeline_is_the_repositorys_without_the_lab(project: Path) -> None:
    mine, ours = (yaml.safe_load((folder / "dvc.yaml").read_text())["stages"] for folder in (project, ROOT))
    assert list(mine) == [name for name in ours if name not in NOT_HERE]
    for name, stage in mine.items():
        assert stage["cmd"] == ours[name]["cmd"] and name in NEEDS
        assert [str(out) for out in stage.get("outs", [])] == [str(out) for out in ours[name].get("outs", [])]
        lab = {
            "src",
            "data/models",
            "data/rescue",
            "metrics/regimes.json",
            "metrics/methods.json",
            "metrics/rescue.json",
        }
        theirs = [dep for dep in ours[name]["deps"] if not dep.startswith(("src/", "${study.data}")) and dep not in lab]
        assert stage.get("deps", []) == theirs, name
        declared(name)


def test_its_entry_points_are_the_repositorys(project: Path) -> None:
    mine, ours = (yaml.safe_load((folder / "MLproject").read_text())["entry_points"] for folder in (project, ROOT))
    for name, entry in mine.items():
        command = " ".join(entry["command"].split())
        assert set(entry.get("parameters", {})) <= set(ours[name].get("parameters", {})), name
        theirs = " ".join(ours[name]["command"].split()).removeprefix("PYTHONPATH=src ")
        assert set(command.split(" --")) <= set(theirs.split(" --")), name


def test_settings_that_both_have_are_the_same() -> None:
    mine, ours = (settings.load(path).raw for path in ("none.yaml", ROOT / "params.yaml"))
    for section in ("vllm", "sample", "featurize", "intervene", "evaluate", "register"):
        assert mine[section] == ours[section], section


def test_nothing_is_written_over(project: Path) -> None:
    (project / "params.yaml").write_text("mine\n")
    with pytest.raises(SalvageError, match="is there already"):
        lay_down(project)
    assert (project / "params.yaml").read_text() == "mine\n"


def test_dvc_is_told_where_there_is_no_git(project: Path, tmp_path: Path) -> None:
    assert "no_scm = true" in (project / ".dvc/config").read_text()
    (tmp_path / "git").mkdir()
    subprocess.run(["git", "init", "--quiet", tmp_path / "git"], check=True)
    lay_down(tmp_path / "git")
    lay_down(tmp_path / "git/below")
    assert "no_scm" not in (tmp_path / "git/.dvc/config").read_text()
    assert "no_scm = true" in (tmp_path / "git/below/.dvc/config").read_text()
