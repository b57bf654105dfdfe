"""Rollouts from elsewhere as a table: what a file leaves out, whose each is, every fault by its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.pipeline import verdicts
from salvage.problems.formats import records
from salvage.problems.importing import Imported, Tokenizer, file_problems, import_rollouts
from salvage.tables import schema

Put = Callable[..., Path]
BYTES = Tokenizer(lambda text: list(text.encode()), end=0)
PLAIN = {"problem_id": "a", "rollout_idx": 0, "generated_text": "it is 2", "finish_reason": "stop"}
SAMPLE = {
    "doc_id": 0,
    "doc": {"question": "1+1?", "answer": "1+1=2\n#### 2"},
    "target": "1+1=2\n#### 2",
    "arguments": {"gen_args_0": {"arg_0": "Q: 1+1?\nA:", "arg_1": {"until": ["Q:"]}}},
    "resps": [[" 1+1=3"]],
    "filtered_resps": ["3"],
    "filter": "strict-match",
    "metrics": ["exact_match"],
    "exact_match": 0.0,
}
NAME = "samples_gsm8k_2025-05-02T10-11-12.345678.jsonl"
pytestmark = pytest.mark.filterwarnings("ignore:.*do not say whether they ended")


@pytest.fixture
def problems() -> pd.DataFrame:
    row = {"task": "t", "answer": "2", "verifier": "numeric", "metadata": "{}"}
    rows = [{"problem_id": name, "prompt": f"what of {name}?", **row} for name in ("a", "7")]
    return pd.DataFrame(rows)[["problem_id", "task", "prompt", "answer", "verifier", "metadata"]]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(*lines: Any, name: str = "rollouts.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
        return path

    return write


def read(path: Path, problems: pd.DataFrame | None = None, tokenizer: Tokenizer | None = BYTES) -> pd.DataFrame:
    found = records(path)
    problems = file_problems(found, "numeric") if problems is None else problems
    return import_rollouts(found, problems, "cell", tokenizer).table


def test_the_toolkits_form_is_taken_and_verified_where_it_does_not_say(
    put: Put, problems: pd.DataFrame, tmp_path: Path
) -> None:
    path = put(
        PLAIN,
        PLAIN | {"rollout_idx": 1, "generated_text": "3", "finish_reason": "length"},
        PLAIN | {"problem_id": 7, "is_correct": False, "generated_text": "it is 3", "finish_reason": None},
        PLAIN | {"rollout_idx": 2, "is_correct": None, "tokens": [5, 6]},
    )
    table = read(path, problems)
    assert list(table["correct"]) == [True, False, False, True]
    assert list(table["problem_id"]) == ["a", "a", "7", "a"]
    assert list(table["rollout"]) == [0, 1, 0, 2]
    assert [list(tokens) for tokens in table["tokens"]][1::2] == [[51], [5, 6]]
    assert set(table["seed"]) == {-1}
    schema.write(table, schema.ROLLOUTS, tmp_path / "rollouts.parquet")
    assert len(schema.read(tmp_path / "rollouts.parquet", schema.ROLLOUTS)) == 4


def test_case_20_the_end_token_is_kept_where_it_is_known_and_told_where_not(put: Put, problems: pd.DataFrame) -> None:
    lines = [PLAIN | {"rollout_idx": i, "finish_reason": r} for i, r in enumerate(["stop", "length", None, "eos"])]
    with pytest.warns(UserWarning, match="1 of 4 rollouts do not say whether they ended, so they have no end token"):
        table = read(put(*lines), problems)
    assert [list(tokens)[-1] == 0 for tokens in table["tokens"]] == [True, False, False, True]
    assert list(table["n_tokens"]) == [8, 7, 7, 8]
    # tokens that the file has are the model's own
    table = read(put(PLAIN | {"tokens": [5, 6]}), problems, None)
    assert [list(tokens) for tokens in table["tokens"]] == [[5, 6]]


def test_a_problem_is_known_by_its_name_else_by_its_prompt(put: Put, problems: pd.DataFrame) -> None:
    def placed(**fields: Any) -> str:
        told = read(put({"output": "2", "gts": "2", "score": 1.0, **fields}), problems)
        return str(told["problem_id"].iloc[0])

    assert placed(input="what of 7?") == "7"
    assert placed(input="user\nwhat of a?\nassistant\n") == "a"
    with pytest.raises(SalvageError, match="line 1: the prompt 'else' is not among the problems"):
        placed(input="else")
    with pytest.raises(SalvageError, match=r"line 1: the prompt '.*' holds the prompts of 2 problems"):
        placed(input="what of a? what of 7?")


def test_rollouts_without_a_number_are_numbered_in_order(put: Put, problems: pd.DataFrame) -> None:
    bare = {key: value for key, value in PLAIN.items() if key != "rollout_idx"}
    table = read(put(bare, PLAIN | {"rollout_idx": 4}, bare, bare | {"problem_id": "7"}), problems)
    assert list(table["rollout"]) == [0, 4, 5, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_id": "b"}, "problem 'b' is not among the problems"),
        ({"rollout_idx": 0}, "rollout 0 of problem 'a' stands in line 1 already"),
        ({"rollout_idx": "1"}, "column 'rollout_idx' is \"1\""),
        ({"rollout_idx": True}, "column 'rollout_idx' is true"),
        ({"rollout_idx": -1}, "column 'rollout_idx' is -1"),
        ({"generated_text": "", "finish_reason": None}, "rollout 1 of problem 'a' has no tokens, and so no signal"),
        ({"generated_text": None}, "column 'generated_text' is missing"),
        ({"generated_text": ["2"]}, "column 'generated_text' is"),
        ({"is_correct": 2}, "column 'is_correct' is 2, neither 0 nor 1"),
        ({"is_correct": "true"}, "column 'is_correct'"),
        ({"tokens": "12"}, "column 'tokens' must be a list of token ids"),
        ({"tokens": [1, True]}, "column 'tokens' must be a list of token ids"),
        ({"tokens": [-1]}, "column 'tokens' must be a list of token ids"),
        ({"tokens": [2**31]}, "column 'tokens' must be a list of token ids"),
        ({"tokens": []}, "rollout 1 of problem 'a' has no tokens"),
    ],
)
def test_a_bad_rollout_is_named_by_its_line(put: Put, problems: pd.DataFrame, change: dict, message: str) -> None:
    with pytest.raises(SalvageError, match=f"rollouts.jsonl, line 2: {message}"):
        read(put(PLAIN, PLAIN | {"rollout_idx": 1} | change), problems)


def test_what_is_needed_and_not_there_is_said(put: Put, problems: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(SalvageError, match="line 1: column 'tokens' is missing"):
        read(put(PLAIN), problems, None)
    with pytest.raises(SalvageError, match="line 1: it has rollouts but no prompts; give the file of its problems"):
        read(put(PLAIN))
    with pytest.raises(SalvageError, match="there is no such file"):
        read(tmp_path / "none.jsonl", problems)


@pytest.mark.parametrize("arguments", [SAMPLE["arguments"], [["Q: 1+1?\nA:", {"until": ["Q:"]}]]])
def test_a_harness_file_gives_problems_and_rollouts(put: Put, arguments: Any) -> None:
    right = {"exact_match": 1.0, "resps": [[" 1+1=2"]]}
    path = put(SAMPLE | {"arguments": arguments}, SAMPLE | {"doc_id": 1} | right, name=NAME)
    table = file_problems(records(path), "numeric")
    assert table.iloc[0].to_list() == ["0", "gsm8k", "Q: 1+1?\nA:", "1+1=2\n#### 2", "numeric", "{}"]
    rollouts = read(path, table)
    assert list(rollouts["problem_id"]) == ["0", "1"]
    assert list(rollouts["correct"]) == [False, True]
    assert read(path).equals(rollouts)


def test_a_harness_file_of_many_responses_or_no_metric_is_verified_here(put: Put) -> None:
    bare = {key: value for key, value in SAMPLE.items() if key != "exact_match"}
    rollouts = read(put(SAMPLE | {"resps": [["2", "3"]]}, bare | {"doc_id": 1}, name=NAME))
    assert list(rollouts["rollout"]) == [0, 1, 0]
    assert list(rollouts["correct"]) == [True, False, False]


MATH = SAMPLE | {"target": "2", "exact_match": 1.0, "resps": [[r"so it is $\boxed{2}$"]]}
WRONG = MATH | {"exact_match": 0.0, "resps": [[r"so it is $\boxed{3}$"]]}


def compared(path: Path, verifier: str, **how: Any) -> Imported:
    found = records(path, **how)
    return import_rollouts(found, file_problems(found, verifier), "cell", BYTES)


def test_case_15_a_verifier_that_mostly_disagrees_with_the_files_verdicts_is_refused(put: Put) -> None:
    path = put(MATH, *(MATH | {"doc_id": i} for i in range(1, 4)), name=NAME)
    with pytest.raises(SalvageError) as told:
        compared(path, "exact")
    said = str(told.value)
    assert "the verifier exact agrees with the file's own verdicts on 0 of 4 rollouts (0%), " in said
    assert "numeric on 4 of 4" in said and "math on 4 of 4" in said
    assert r"line 1, is right in the file: '0': answer '2', text 'so it is $\\boxed{2}$'; later" in said
    assert "--verifier" in said and "--metric none" in said and len(said.splitlines()) == 1
    made = compared(path, "math")
    assert made.table["correct"].all() and made.agreement and made.agreement.share == 1
    assert made.told() == "4 rollouts of 4 problems; the file's own verdicts, 4 of 4 as the verifier math's"
    verified = compared(path, "exact", metric="none")  # by the verifier that later attempts are judged by
    assert not verified.table["correct"].any() and verified.agreement is None


def test_case_15_a_verifier_that_accepts_nothing_is_refused_where_most_rollouts_are_wrong(put: Put) -> None:
    wrong = [WRONG | {"doc_id": i} for i in range(9)]
    with pytest.raises(SalvageError, match=r"agrees .* on 9 of 12 rollouts \(75%\).* line 10, is right in the file"):
        compared(put(*wrong, *(MATH | {"doc_id": i} for i in range(9, 12)), name=NAME), "exact")
    lenient = [MATH | {"doc_id": i, "exact_match": 0.0} for i in range(3)]  # all right for the verifier
    with pytest.raises(SalvageError, match=r"agrees .* on 9 of 12 rollouts .*no other verifier .* wrong in the file"):
        compared(put(*lenient, *(MATH | {"doc_id": i} for i in range(3, 12)), name=NAME), "numeric")


def test_case_15_a_few_others_are_told_and_the_file_is_taken(put: Put) -> None:
    path = put(MATH | {"exact_match": 0.0}, *(MATH | {"doc_id": i} for i in range(1, 5)), name=NAME)
    with pytest.warns(UserWarning, match=r"4 of 5 rollouts \(80%\), and no other .*line 1, is wrong in the file: '0'"):
        made = compared(path, "numeric")
    assert list(made.table["correct"]) == [False, True, True, True, True]  # the file's word
    assert made.told().endswith("the file's own verdicts, 4 of 5 as the verifier numeric's")


def test_rollouts_without_a_verdict_are_counted_and_kept_apart(
    put: Put, problems: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow_check.py").write_text(
        "import time\ndef check(problem, text):\n    time.sleep(60 if text == 'slow' else 0)\n    return text == '2'\n"
    )
    texts = ["2", "slow", "3"]
    path = put(*(PLAIN | {"rollout_idx": i, "generated_text": text} for i, text in enumerate(texts)))
    mine = problems.assign(verifier="slow_check:check")
    with pytest.warns(UserWarning, match=r"1 of 3 rollouts have no verdict .* line 2, of .*: .* longer than 1"):
        made = import_rollouts(records(path), mine, "cell", BYTES, seconds=1)
    assert list(made.table["rollout"]) == [0, 2] and made.told().endswith("1 without a verdict, left out")
    schema.write(made.table, schema.ROLLOUTS, tmp_path / "mine.parquet")
    verdicts.keep(tmp_path / "mine.parquet", made.unverified)
    (lost,) = verdicts.unverified(tmp_path / "mine.parquet")
    assert (lost["problem_id"], lost["rollout"], lost["text"]) == ("a", 1, "slow")
    verdicts.keep(tmp_path / "mine.parquet", [])
    assert verdicts.unverified(tmp_path / "mine.parquet") == []


def test_a_limit_takes_the_rollouts_of_the_first_problems(put: Put, problems: pd.DataFrame) -> None:
    path = put(PLAIN | {"problem_id": 7}, PLAIN, PLAIN | {"rollout_idx": 1})
    assert list(import_rollouts(records(path), problems, "c", BYTES, limit=1).table["problem_id"]) == ["a", "a"]
    assert len(import_rollouts(records(path), problems, "c", BYTES, limit=9).table) == 3
    with pytest.raises(SalvageError, match="has no rollout of the first 1 problems; raise --limit"):
        import_rollouts(records(put(PLAIN | {"problem_id": 7})), problems, "c", BYTES, limit=1)


def test_a_documents_own_problem_id_comes_first(put: Put) -> None:
    assert list(read(put(SAMPLE | {"doc": {"problem_id": "own-3"}}, name=NAME))["problem_id"]) == ["own-3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resps": [[""]]}, "rollout 0 of problem '1' has no tokens"),
        ({"target": ["2"]}, "column 'target' is"),
        ({"target": "two"}, "the problem has the answer 'two', in which there is no number"),
        ({"arguments": {"gen_args_0": {"arg_0": "Q2"}}, "doc_id": 0}, "problem '0' has another prompt or target"),
        ({"doc_id": 0, "target": "4"}, "problem '0' has another prompt or target"),
        ({"doc_id": None}, "column 'doc_id' is missing"),
    ],
)
def test_a_bad_sample_is_named_by_its_line(put: Put, change: dict, message: str) -> None:
    with pytest.raises(SalvageError, match=f"jsonl, line 2: .*{message}"):
        read(put(SAMPLE, SAMPLE | {"doc_id": 1} | change, name=NAME))
