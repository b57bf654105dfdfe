"""The command line: exit codes, one sentence a mistake, and no slow import for `salvage route`."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SOURCE = str(Path(__file__).parents[1] / "src")
CSV = "cell,problem_id,spread,concentration,logit_dispersion\na,p0,0.1,1,-1\na,p1,0.2,2,-2\na,p2,0.4,1.5,-1.2\n"


def _python(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": SOURCE, "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


def _salvage(folder, *arguments):
    return _python(folder, "-m", "salvage", *arguments)


@pytest.fixture
def file(tmp_path):
    """A features file of one cell."""
    path = tmp_path / "failures.csv"
    path.write_text(CSV)
    return path


def test_route_prints_a_table_and_writes_a_csv(file):
    told = _salvage(file.parent, "route", "--profiles", file.name)
    assert told.returncode == 0, told.stderr
    assert "dense_steer" in told.stdout and "3 failures routed" in told.stdout
    assert _salvage(file.parent, "route", "--profiles", file.name, "--out", "routed.csv").returncode == 0
    routed = pd.read_csv(file.parent / "routed.csv")
    assert routed["problem_id"].tolist() == ["p0", "p1", "p2"]
    assert routed["operator"].tolist() == ["local_temp", "sparse_steer", "dense_steer"]
    assert {"z_spread", "z_concentration", "z_logit_dispersion", "margin"} <= set(routed)


def test_route_takes_a_reference_for_one_failure(file):
    one = file.with_name("one.csv")
    one.write_text("\n".join(CSV.splitlines()[:2]) + "\n")
    alone = _salvage(file.parent, "route", "--profiles", one.name)
    assert alone.returncode == 2
    assert "one failure alone" in alone.stderr
    told = _salvage(file.parent, "route", "--profiles", one.name, "--reference", file.name)
    assert told.returncode == 0 and "local_temp" in told.stdout


def test_route_without_the_fallback_never_takes_it(tmp_path):
    low = "spread,concentration,logit_dispersion\n1,1,1\n-1,-1,-1\n"
    (tmp_path / "low.csv").write_text(low)
    assert "sparse_steer_random" in _salvage(tmp_path, "route", "--profiles", "low.csv").stdout
    assert "sparse_steer_random" not in _salvage(tmp_path, "route", "--profiles", "low.csv", "--no-fallback").stdout


def test_route_reads_parquet_as_csv(file):
    pd.read_csv(file).to_parquet(file.with_suffix(".parquet"))
    parquet = _salvage(file.parent, "route", "--profiles", "failures.parquet")
    assert parquet.stdout == _salvage(file.parent, "route", "--profiles", "failures.csv").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["route", "--profiles", "failures.csv"],
        ["--help"],
        ["sample"],
        ["run", "--specialist", "mine"],
        ["rescue", "--specialist", "mine"],
        ["doctor", "--specialist", "mine"],
        ["show", "p0", "--outcomes", "none.jsonl"],
    ],
)
def test_route_and_a_mistake_import_neither_torch_nor_mlflow(file, arguments):
    code = (
        "import sys\nfrom salvage import cli\n"
        f"sys.argv = ['salvage', *{arguments}]\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "print('heavy:', [m for m in ('torch', 'mlflow', 'transformers', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert "heavy: []" in _python(file.parent, "-c", code).stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["route", "--profiles", "none.csv"], "none.csv: there is no such file"),
        (["route", "--profiles", "no\nne\x1b[31m.csv"], r"no\nne\x1b[31m.csv: there is no such file"),
        (["route", "--profiles", "failures.csv", "--reference", "x.csv", "--model", "y"], "choose one"),
        (["route", "--profiles", "failures.csv", "--no-fallback", "--model", "y"], "--no-fallback does not go"),
        (["regimes"], "there is no dvc.yaml here, and regimes is a stage of a project"),
        (["sample"], "there is no dvc.yaml here, and sample is a stage of a project"),
        (["run"], "there is no params.yaml here, which a project has"),
        (["run", "--limit", "3"], "--limit is of a problem set; give --problems with it"),
        (["rescue", "--limit", "3"], "--limit is of one's own problems"),
        (["doctor", "--limit", "3"], "--problems and --limit are of a pair"),
        (["register", "--out", "p.json", "--force"], "--out registers nothing"),
        (["route", "--profiles", "failures.csv", "--model", "none.json"], "none.json cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(file, arguments, sentence):
    done = _salvage(file.parent, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in file.parent.iterdir()) == ["failures.csv"]


def test_an_unknown_command_or_option_is_exit_code_2(tmp_path):
    assert _salvage(tmp_path, "rout").returncode == 2
    assert _salvage(tmp_path, "route", "--profile", "x").returncode == 2
    assert _salvage(tmp_path, "--help").returncode == 0


def test_an_interrupt_is_exit_code_130(tmp_path):
    code = (
        "from salvage import cli\n@cli.app.command()\ndef hang():\n    raise KeyboardInterrupt\n"
        "import sys\nsys.argv = ['salvage', 'hang']\ncli.main()\n"
    )
    done = _python(tmp_path, "-c", code)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_model_that_is_not_there_is_named(file):
    done = _salvage(file.parent, "route", "--profiles", file.name, "--model", "models:/none@champion")
    assert done.returncode == 2
    assert "models:/none@champion" in done.stderr and "Traceback" not in done.stderr
