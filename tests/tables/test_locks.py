"""Two at once: the second is told so while the first lives, however the first ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.tables import schema, shards
from salvage.tables.locks import locked

SOURCE = str(Path(__file__).parents[2] / "src")


def holder(lock: Path) -> subprocess.Popen[str]:
    code = f"""
import sys
from pathlib import Path
from salvage.tables.locks import locked
with locked(Path({str(lock)!r}), "taken"):
    print("held", flush=True)
    sys.stdin.read()
"""
    held = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": SOURCE},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert held.stdout is not None and held.stdout.readline() == "held\n"
    return held


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_case_32_a_lock_lasts_as_long_as_its_holder(tmp_path: Path, how: str) -> None:
    lock = tmp_path / "deep" / "file.lock"
    held = holder(lock)
    with pytest.raises(SalvageError, match="busy"), locked(lock, "busy"):
        raise AssertionError("two hold it")
    if how == "killed":
        os.kill(held.pid, signal.SIGKILL)
    held.communicate()
    with locked(lock, "busy"):
        pass


def test_a_child_that_is_given_the_lock_keeps_it(tmp_path: Path) -> None:
    lock = tmp_path / "file.lock"
    with locked(lock, "busy") as descriptor:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
    with pytest.raises(SalvageError, match="busy"), locked(lock, "busy"):
        raise AssertionError("two hold it")
    child.communicate()
    with locked(lock, "busy"):
        pass


def test_case_32_two_writers_of_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = pd.DataFrame(
        {
            "cell": "m|t",
            "problem_id": ["p"],
            "rollout": [0],
            "tokens": [[1]],
            "text": ["1"],
            "correct": [True],
            "n_tokens": [1],
            "seed": [1],
        }
    )
    path = tmp_path / "data/rollouts/m--t.parquet"

    def meanwhile(piece: pd.DataFrame) -> pd.DataFrame:
        with pytest.raises(SalvageError, match=r"m--t\.parquet is being made by another salvage"):
            shards.build(path, schema.ROLLOUTS, "mark", [rows], lambda some: some)
        return piece

    assert shards.build(path, schema.ROLLOUTS, "mark", [rows], meanwhile)
    assert not shards.build(path, schema.ROLLOUTS, "mark", [rows], meanwhile)

    def made(folder: Path) -> None:
        folder.mkdir(parents=True)
        with pytest.raises(SalvageError, match="is being made by another salvage"):
            shards.folder_once(tmp_path / "model", "mark", lambda _: None)

    assert shards.folder_once(tmp_path / "model", "mark", made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "model"]
