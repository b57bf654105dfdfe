"""What is written: whole, in the place that was named, or refused in one sentence with what the system said."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.tables import csv_tables, files

FULL = Path("/dev/full")
SOURCE = str(Path(__file__).parents[2] / "src")
CSV = "cell,problem_id,spread,concentration,logit_dispersion\na,p0,0.1,1,-1\na,p1,0.2,2,-2\n"


def salvage(folder: Path, *arguments: str, out: object = subprocess.PIPE) -> subprocess.CompletedProcess:
    (folder / "f.csv").write_text(CSV)
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-m", "salvage", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60
    )


def test_case_09_missing_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "o.csv"
    csv_tables.write(pd.DataFrame({"a": ["x"]}), path)
    assert path.read_text() == "a\nx\n" and list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_case_09_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    for value, write in (({"a": 1}, files.write_json), (pd.DataFrame({"a": [1]}), csv_tables.write)):
        with pytest.raises(SalvageError, match="/dev/full cannot be written: No space left on device; free some space"):
            write(*((FULL, value) if write is files.write_json else (value, FULL)))
    assert FULL.is_char_device(), "what was written took its place"
    done = salvage(tmp_path, "route", "--profiles", "f.csv", "--out", str(FULL))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and "No space left" in done.stderr
    with FULL.open("w") as full:
        done = salvage(tmp_path, "route", "--profiles", "f.csv", out=full)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1) and "No space left" in done.stderr


def test_case_09_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    path.write_text("before")
    with pytest.raises(SalvageError, match="No space left"), files.beside(path) as part:
        part.write_text("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("out", "told"), [("f.csv/o.csv", "File exists|Not a directory"), (".", "directory"), ("o" * 300, "too long")]
)
def test_case_09_a_place_that_is_none_is_one_sentence(tmp_path: Path, out: str, told: str) -> None:
    (tmp_path / "f.csv").write_text("")
    with pytest.raises(SalvageError, match=f"cannot be written: .*({told})"):
        files.write_text(tmp_path / out, "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_case_09_a_read_only_folder_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SalvageError, match="Permission denied; check the folder's permissions"):
        files.write_text(tmp_path / "o.csv", "x")


def test_case_09_a_pipe_is_written_as_it_is(tmp_path: Path) -> None:
    done = salvage(tmp_path, "route", "--profiles", "f.csv", "--out", "/dev/stdout")
    assert done.returncode == 0 and done.stdout.startswith("cell,problem_id,operator") and not done.stderr
