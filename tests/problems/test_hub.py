"""Problem sets of others: datasets made on the spot in the shapes that the hub's have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.problems import hub, sets
from salvage.problems.code import UNBOXED
from salvage.problems.sets import load

GSM8K = [
    {"question": "Ann has 3 apples and eats 1. How many are left?", "answer": "3-1=<<3-1=2>>2\n#### 2"},
    {"question": "What is 500 times 19?", "answer": "It is 9,500.\n#### 9,500"},
]
MATH = [{"problem": "1+1?", "solution": "\\boxed{2}", "answer": "2", "unique_id": "test/a/1.json"}]
MBPP = [
    {
        "task_id": 11,
        "text": "Write a function to add.",
        "code": "def add(a, b): return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
        "test_setup_code": "",
    }
]


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Save rows as a dataset of a folder, with a preset for it where one is given."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)

    def save(rows: list[dict[str, Any]], preset: str = "", *, whole: bool = True) -> str:
        table = datasets.Dataset.from_list(rows)
        made = datasets.DatasetDict({"test": table}) if whole else table
        made.save_to_disk("rows")
        if preset:
            monkeypatch.setitem(hub.PRESETS, "rows", hub.PRESETS[preset])
        return "hf:rows:test"

    return save


def test_gsm8k_has_a_preset(saved: Any) -> None:
    table = load(saved(GSM8K, "openai/gsm8k"))
    assert list(table["problem_id"]) == ["0", "1"] and set(table["verifier"]) == {"numeric"}
    assert table["prompt"][0].startswith("Ann has 3 apples") and table["prompt"][0].endswith("within \\boxed{}.")
    assert table["answer"][1].endswith("#### 9,500") and set(table["task"]) == {"gsm8k"}


def test_math_and_code_have_presets(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNBOXED, "1")
    (row,) = load(saved(MATH, "HuggingFaceH4/MATH-500")).to_dict("records")
    assert (row["problem_id"], row["answer"], row["verifier"]) == ("test/a/1.json", "2", "math")
    (row,) = load(saved(MBPP, "google-research-datasets/mbpp", whole=False)).to_dict("records")
    assert (row["problem_id"], row["answer"], row["verifier"]) == ("11", "", "code")
    assert json.loads(row["metadata"]) == {"tests": MBPP[0]["test_list"], "setup": ""}
    assert "add.\nYour code must pass this test:\nassert add(1, 2) == 3\n" in row["prompt"]


def test_columns_are_named_behind_the_question_mark(saved: Any) -> None:
    rows = [{"q": f"{i}+1?", "result": i + 1, "name": f"n{i}"} for i in range(5)]
    spec = f"{saved(rows)}?prompt=q&answer=result&problem_id=name&verifier=numeric&task=sums&limit=3"
    table = load(spec)
    assert table.iloc[2].tolist() == ["n2", "sums", "2+1?", "3", "numeric", "{}"] and len(table) == 3
    pd.DataFrame(rows).to_parquet("mine.parquet")
    assert load(spec.replace("hf:rows:test", "mine.parquet")).equals(table)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:rows", r"'hf:rows' is not hf:NAME:SPLIT"),
        ("hf:rows::test", r"is not hf:NAME:SPLIT"),
        ("hf:rows:train", r"hf:rows:train: it has no split 'train'; it has test"),
        ("hf:rows:test?prompt=q", r"rows:test, row 0: column 'q' is missing; it has question, answer"),
        (
            "hf:rows:test?promt=question",
            r"'promt' is no option with a value; write NAME=VALUE, known are prob",
        ),
        ("hf:rows:test?limit", r"'limit' is no option with a value"),
        ("hf:rows:test?prompt=question&limit=x", r"limit is 'x', but must be a whole number of 1 or more"),
        ("hf:rows:test?prompt=question&limit=0", r"limit is '0', but must be a whole number of 1 or more"),
        ("hf:rows:test?prompt=question&problem_id=same", r"row 1: column 'problem_id': 'a' stands in row 0 already"),
        ("hf:./nowhere:test", r"hf:./nowhere:test cannot be had: "),
        ("problems.jsonl?prompt=q", r"problems.jsonl: only columns of hf: sets and Parquet files are named so"),
        ("reasoning_gym:chain_sum:5:0?answer=q", r"only columns of hf: sets"),
    ],
)
def test_what_is_wrong_is_one_sentence(saved: Any, spec: str, message: str) -> None:
    saved([row | {"same": "a"} for row in GSM8K])
    with pytest.raises(SalvageError, match=message) as error:
        load(spec)
    assert "\n" not in str(error.value)


def test_a_limit_goes_with_every_kind_of_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"problem_id": str(i), "prompt": "?", "answer": "a"}) for i in range(4)]
    Path("p.jsonl").write_text("\n".join(lines))
    assert len(load("p.jsonl")) == 4 and list(load("p.jsonl?limit=2")["problem_id"]) == ["0", "1"]
    assert len(load("reasoning_gym:chain_sum:5:0?limit=3")) == 3
    assert sets.limited("p.jsonl", 0) == "p.jsonl" and len(load(sets.limited("p.jsonl", 2))) == 2
    assert sets.limited("p.parquet?prompt=q", 2) == "p.parquet?prompt=q&limit=2"
    assert sets.whole("p.parquet?prompt=q&limit=2") == ("p.parquet?prompt=q", 2)
    assert sets.whole("p.jsonl?limit=2") == ("p.jsonl", 2) and sets.whole("p.jsonl") == ("p.jsonl", 0)
    for spec, told in (("p.jsonl?limit=1", "has a limit of its own; leave that out"), ("", "give --problems with it")):
        with pytest.raises(SalvageError, match=told):
            sets.limited(spec, 2)
    assert sets.parted("a.jsonl") == ("a.jsonl", {})
    assert [sets.place(spec) for spec in ("a.jsonl?limit=2", "hf:rows:test?limit=2")] == ["a.jsonl", "rows"]
