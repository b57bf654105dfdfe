"""Names and their files: no two names have one file, and plain names keep the file they always had."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from salvage.errors import SalvageError
from salvage.project import settings
from salvage.project.settings import Cell, problem_file
from salvage.tables.names import LONGEST, file_stem

NAMES = st.text(st.sampled_from("aA|-./%~: é\0\n"), max_size=8) | st.text(max_size=300)


def cell(name: str) -> Cell:
    return Cell(name, "s", "a", "p.jsonl", "sft", 0, "own")


@given(NAMES, NAMES)
@example("a|b", "a--b")
@example("a-|b", "a|-b")
@example("a||b", "a|-|b")
@example("é", "e\u0301")
@example("x" * 300, "x" * 301)
def test_case_05_other_names_have_other_files(one: str, two: str) -> None:
    assert (file_stem(one) == file_stem(two)) == (one == two)


@given(NAMES)
def test_case_05_a_file_name_is_one_safe_part_of_a_path(name: str) -> None:
    stem = file_stem(name)
    assert 0 < len(stem.encode()) <= LONGEST
    assert not stem.startswith(".") and set(stem) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~%"
    )
    if "%~" not in stem:  # what was cut is told by its hash alone
        assert unquote(stem.replace("--", "|"), errors="surrogatepass") == name


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("qwen3-sft-0|digits", "qwen3-sft-0--digits.parquet"),
        ("my_model.v2|problems", "my_model.v2--problems.parquet"),
        ("SmolLM2-135M|gsm8k-test", "SmolLM2-135M--gsm8k-test.parquet"),
    ],
)
def test_case_05_plain_names_keep_their_files(name: str, file: str) -> None:
    assert cell(name).file == file == name.replace("|", "--") + ".parquet"


@pytest.mark.parametrize(
    ("spec", "file"), [("lab", "lab.parquet"), ("problems.jsonl", "problems.parquet"), ("a_b-c.jsonl", "a_b-c.parquet")]
)
def test_case_05_plain_problem_sets_keep_their_files(spec: str, file: str) -> None:
    assert problem_file(spec) == Path("data/problems") / file


def load(folder: Path, *cells: str) -> settings.Settings:
    """Read a params.yaml of one's own cells, each a line of YAML."""
    entries = "".join(f"  - {{specialist: s, ancestor: a, {entry}}}\n" for entry in cells)
    (folder / "params.yaml").write_text(f"profile: own\ncells:\n{entries}")
    return settings.load(folder / "params.yaml")


def test_case_05_problem_sets_of_one_file_name_stay_apart(tmp_path: Path) -> None:
    sets = ["gsm/test.jsonl", "mathqa/test.jsonl", "gsm/test.jsonl", "test.parquet", "/x/gsm/test.jsonl"]
    loaded = load(tmp_path, *(f"name: m{i // 2}, problems: {spec}" for i, spec in enumerate(sets)))
    assert [c.name for c in loaded.cells] == ["m0|test", "m0|mathqa/test", "m1|test", "m1|test.parquet", "m2|gsm/test"]
    assert len({c.file for c in loaded.cells}) == 5
    assert len({problem_file(c.problems) for c in loaded.cells}) == 4


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (
            ("name: A|t, problems: p.jsonl", "name: a|t, problems: p.jsonl"),
            "cells 'A|t' and 'a|t' would share",
        ),
        (
            ("name: a|t, problems: P.jsonl", "name: b|t, problems: p.jsonl"),
            "sets 'P.jsonl' and 'p.jsonl' would share",
        ),
        (
            ("name: a|t, problems: lab.jsonl", "name: b|t, problems: lab"),
            "'lab.jsonl' and 'lab' would share",
        ),
        (("name: a|t, problems: p.jsonl", "name: a|t, problems: q.jsonl"), "cell 'a|t' stands twice"),
    ],
)
def test_case_05_a_clash_that_is_left_is_refused(tmp_path: Path, cells: tuple[str, str], told: str) -> None:
    with pytest.raises(SalvageError) as refused:
        load(tmp_path, *cells)
    assert told in str(refused.value)
