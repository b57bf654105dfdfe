"""The tables: what is checked, and that a written file is whole, and the same bytes for the same rows."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.tables import schema, vocabulary


def problems(**changes: object) -> pd.DataFrame:
    columns = {"problem_id": ["a", "b"], "task": "t", "prompt": ["1", "2"], "answer": "3", "verifier": "exact"}
    return pd.DataFrame({**columns, "metadata": "", **changes})


def profiles(**changes: object) -> pd.DataFrame:
    columns = {"cell": "m|t", "model": "m", "task": "t", "problem_id": ["a", "b"], "n_failed_rollouts": 2}
    return pd.DataFrame({**columns, **dict.fromkeys(vocabulary.FEATURES + vocabulary.OPERATORS, 0.5), **changes})


def test_the_same_rows_give_the_same_bytes_and_carry_their_fingerprint(tmp_path: Path) -> None:
    for name in ("one", "two"):
        schema.write(problems(), schema.PROBLEMS, tmp_path / name, "mark")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert schema.fingerprint(tmp_path / "one") == "mark"
    assert schema.fingerprint(tmp_path / "none") is None
    pd.testing.assert_frame_equal(schema.read(tmp_path / "one", schema.PROBLEMS), problems())


def rollouts(cell: str, **more: object) -> pd.DataFrame:
    columns = {"cell": cell, "problem_id": ["a", "b"], "rollout": 0, "tokens": [[1], [2, 3]], "text": "x"}
    return pd.DataFrame({**columns, "correct": False, "n_tokens": [1, 2], "seed": -1, **more})


def test_a_table_that_does_not_say_what_is_truncated_is_read_and_keeps_its_bytes(tmp_path: Path) -> None:
    schema.write(rollouts("old"), schema.ROLLOUTS, tmp_path / "old.parquet")
    assert "truncated" not in schema.read(tmp_path / "old.parquet", schema.ROLLOUTS)
    assert schema.truncated(tmp_path) is None and schema.truncated(tmp_path / "none.parquet") is None
    schema.write(rollouts("new", truncated=[True, False]), schema.ROLLOUTS, tmp_path / "new.parquet")
    assert schema.read(tmp_path / "new.parquet", schema.ROLLOUTS)["truncated"].tolist() == [True, False]
    assert schema.truncated(tmp_path) == schema.truncated(tmp_path / "new.parquet") == (1, 2)
    assert len(schema.read(tmp_path, schema.ROLLOUTS)) == 4


@pytest.mark.parametrize(
    ("table", "kind", "sentence"),
    [
        (problems().drop(columns="answer"), schema.PROBLEMS, "column 'answer' is missing"),
        (problems(prompt=["1", ""]), schema.PROBLEMS, "row 1, column 'prompt'"),
        (problems(problem_id="a"), schema.PROBLEMS, r"rows \[0, 1\] have the same problem_id"),
        (profiles(spread=[0.1, float("nan")]), schema.PROFILES, "row 1, column 'spread'"),
        (profiles(retry=[0.1, 1.5]), schema.PROFILES, "row 1, column 'retry': .*1.5"),
        (profiles(retry=["0.1", "often"]), schema.PROFILES, "column 'retry'"),
        (profiles(n_failed_rollouts=[1, 0]), schema.PROFILES, "row 1, column 'n_failed_rollouts'"),
    ],
)
def test_a_bad_table_is_refused_by_row_and_column_and_never_written(
    tmp_path: Path, table: pd.DataFrame, kind: object, sentence: str
) -> None:
    with pytest.raises(SalvageError, match=f"x.parquet.*{sentence}"):
        schema.write(table, kind, tmp_path / "x.parquet")
    assert not list(tmp_path.iterdir())


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SalvageError, match="there is no such table"):
        schema.read(tmp_path / "none.parquet", schema.PROBLEMS)
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(SalvageError, match=r"bad.parquet is not a readable Parquet"):
        schema.read(tmp_path / "bad.parquet", schema.PROBLEMS)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SalvageError, match="cannot be written"):
        schema.write(problems(), schema.PROBLEMS, tmp_path / "file" / "x.parquet")
    if os.geteuid():  # root may write anywhere
        tmp_path.chmod(0o500)
        with pytest.raises(SalvageError, match="check the folder's permissions"):
            schema.write(problems(), schema.PROBLEMS, tmp_path / "x.parquet")


@pytest.mark.parametrize("kind", schema.KINDS)
def test_case_35_a_table_in_place_of_another_is_named(tmp_path, kind):
    table = schema.KINDS[kind]
    texts = {name for name, column in table.columns.items() if str(column.dtype).startswith("str")}
    values = {name: ["x"] if name in texts else [[1.0]] for name in table.columns}
    pd.DataFrame(values).to_parquet(tmp_path / "t")
    for other in (schema.KINDS[name] for name in schema.KINDS if name != kind):
        with pytest.raises(SalvageError, match=f"t: column .* is missing; .*; it seems to be the table of {kind}$"):
            schema.read(tmp_path / "t", other)


def test_case_35_another_kind_of_file_is_named(tmp_path):
    for data, told in ((b"a,b\n1,2\n", "perhaps a CSV"), (b'{"a": 1}\n', "JSON Lines"), (b"", "it is empty")):
        (tmp_path / "t.parquet").write_bytes(data)
        with pytest.raises(SalvageError, match=rf"t\.parquet is not a readable Parquet file: .*{told}"):
            schema.read(tmp_path / "t.parquet", schema.ATTEMPTS)
