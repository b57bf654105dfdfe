"""The wheel: built, installed alone into new environments, used outside of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from salvage import __version__
from salvage.cli import NEEDS
from salvage.project.extras import EXTRAS
from salvage.tables.vocabulary import FEATURES, OPERATORS

ROOT = Path(__file__).parents[1]
VERSIONS = ["3.11", "3.12", "3.13"]
HEAVY = {"torch", "transformers", "mlflow", "dvc", "sklearn", "xgboost", "optuna", "matplotlib", "jinja2", "trl"}
UV = Path(sys.executable).with_name("uv")


def run(*command: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=alone, capture_output=True, text=True, timeout=500)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def python_of(version: str) -> str | None:
    """Return a Python of this version that is here, None where there is none that runs."""
    for found in (f"python{version}", *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        path = shutil.which(str(found))
        asked = "import sys; print(*sys.version_info[:2], sep='.')"
        if path and subprocess.run([path, "-c", asked], capture_output=True, text=True).stdout.strip() == version:
            return path
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: a build leaves folders behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "."]
    run(sys.executable, *command, cwd=copy)
    (made,) = (copy / "dist").glob("*.whl")
    return made


@pytest.fixture(scope="module", params=VERSIONS)
def core(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the core alone; its folder of programs."""
    interpreter = python_of(request.param)
    if interpreter is None:
        pytest.skip(f"Python {request.param} is not here")
    folder = tmp_path_factory.mktemp("core")
    run(interpreter, "-m", "venv", "--without-pip", "env", cwd=folder)
    run(UV, "pip", "install", "--quiet", "--python", folder / "env/bin/python", wheel, cwd=folder)
    return folder / "env/bin"


@pytest.fixture
def failures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    ids = {"cell": "m|t", "model": "m", "task": "t", "problem_id": [f"p{i}" for i in range(40)], "n_failed_rollouts": 3}
    table = pd.DataFrame(ids).assign(**dict(zip(FEATURES, rng.normal(size=(3, 40)), strict=True)))
    table.assign(**dict(zip(OPERATORS, rng.random((5, 40)).round(2), strict=True))).to_csv(
        tmp_path / "failures.csv", index=False
    )
    return tmp_path


@pytest.mark.slow
def test_the_core_routes_evaluates_and_imports_in_any_folder(core: Path, failures: Path) -> None:
    assert run(core / "salvage", "--version", cwd=failures).stdout == f"salvage {__version__}\n"
    run(core / "salvage", "route", "--profiles", "failures.csv", "--out", "routed.csv", cwd=failures)
    here = run(sys.executable, "-m", "salvage", "route", "--profiles", "failures.csv", cwd=failures).stdout
    assert run(core / "salvage", "route", "--profiles", "failures.csv", cwd=failures).stdout == here
    assert len(pd.read_csv(failures / "routed.csv")) == 40
    run(core / "salvage", "evaluate", "--profiles", "failures.csv", "--csv", "rows.csv", "--quiet", cwd=failures)
    assert {"retry", "rule", "calibrated"} <= set(pd.read_csv(failures / "rows.csv")["policy"])
    run(core / "salvage", "import-profiles", "failures.csv", "--out", "failures.parquet", cwd=failures)
    run(core / "salvage", "new", "mine", cwd=failures)
    assert (failures / "mine/params.yaml").exists() and (failures / "mine/.dvc/config").exists()
    made = {"failures.csv", "routed.csv", "rows.csv", "failures.parquet", "mine"}
    assert {path.name for path in failures.iterdir()} == made, "nothing else is left behind"


@pytest.mark.slow
def test_other_commands_say_in_one_sentence_which_extra_they_need(core: Path, failures: Path) -> None:
    asked = [[name] for name in NEEDS] + [["regimes", "--profiles", "failures.csv"], ["lab", "--family", "smollm2"]]
    asked += [["rescue", "--specialist", "a", "--ancestor", "b", "--problems", "c"]]
    asked += [["route", "--profiles", "failures.csv", "--model", "models:/salvage-router@champion"]]
    for command in asked:
        told = run(core / "salvage", *command, cwd=failures, code=2).stderr.strip()
        assert len(told.splitlines()) == 1 and "pip install 'salvage[" in told, (command, told)
        for extra in NEEDS[command[0]] if len(command) == 1 else ():
            assert extra in told, (command, told)


@pytest.mark.slow
def test_the_method_in_training_code_brings_numpy_and_pandas_alone(core: Path, tmp_path: Path) -> None:
    code = (
        "import sys, salvage.method as m; print(m.token_signals, m.trajectory_features, m.regimes); print(*sys.modules)"
    )
    loaded = set(run(core / "python", "-c", code, cwd=tmp_path).stdout.split())
    assert not loaded & (HEAVY | {"pandera", "typer", "rich", "yaml", "scipy"})


def test_every_extra_is_declared_and_every_need_is_an_extra() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(declared) == {*EXTRAS, "all"}
    assert {extra for needs in NEEDS.values() for extra in needs} <= set(EXTRAS)
    names = {"sklearn": "scikit-learn", "ruamel": "ruamel.yaml"}
    for extra, modules in EXTRAS.items():
        packages = {re.split(r"[<>=\[]", entry)[0] for entry in declared[extra]}
        assert {names.get(module, module.replace("_", "-")) for module in modules} <= packages, extra
