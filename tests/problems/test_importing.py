"""Rollouts from elsewhere: both forms, what they leave out, and every fault named by its line."""

import json

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.problems.importing import import_rollouts, lm_eval_problems
from salvage.tables import schema


def encode(text):
    return list(text.encode())


@pytest.fixture
def problems():
    rows = [
        {"problem_id": name, "task": "t", "prompt": "?", "answer": "2", "verifier": "numeric", "metadata": "{}"}
        for name in ("a", "7")
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def put(tmp_path):
    def write(*lines, name="rollouts.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
        return path

    return write


PLAIN = {"problem_id": "a", "rollout_idx": 0, "generated_text": "it is 2"}
SAMPLE = {
    "doc_id": 0,
    "doc": {"question": "1+1?", "answer": "1+1=2\n#### 2"},
    "target": "1+1=2\n#### 2",
    "arguments": {"gen_args_0": {"arg_0": "Q: 1+1?\nA:", "arg_1": {"until": ["Q:"]}}},
    "resps": [[" 1+1=2"]],
    "filtered_resps": ["2"],
    "filter": "strict-match",
    "metrics": ["exact_match"],
    "exact_match": 0.0,
}
NAME = "samples_gsm8k_2025-05-02T10-11-12.345678.jsonl"


def test_the_toolkits_form_is_taken_and_verified_where_it_does_not_say(put, problems, tmp_path):
    path = put(
        PLAIN,
        PLAIN | {"rollout_idx": 1, "generated_text": "3"},
        PLAIN | {"problem_id": 7, "is_correct": False},
        PLAIN | {"rollout_idx": 2, "is_correct": None, "tokens": [5, 6]},
    )
    table = import_rollouts(path, problems, "cell", encode)
    assert list(table["correct"]) == [True, False, False, True]
    assert list(table["problem_id"]) == ["a", "a", "7", "a"]
    assert list(table["rollout"]) == [0, 1, 0, 2]
    assert [list(tokens) for tokens in table["tokens"]][1::2] == [[51], [5, 6]]
    assert list(table["n_tokens"]) == [7, 1, 7, 2]
    assert set(table["seed"]) == {-1}
    schema.write(table, schema.ROLLOUTS, tmp_path / "rollouts.parquet")
    assert len(schema.read(tmp_path / "rollouts.parquet", schema.ROLLOUTS)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_id": "b"}, "problem 'b' is not among the problems"),
        ({"rollout_idx": 0}, "rollout 0 of problem 'a' stands in line 1 already"),
        ({"rollout_idx": "1"}, "column 'rollout_idx' is \"1\""),
        ({"rollout_idx": True}, "column 'rollout_idx' is true"),
        ({"rollout_idx": -1}, "column 'rollout_idx' is -1"),
        ({"generated_text": ""}, "rollout 1 of problem 'a' has no tokens, and so no signal; drop it"),
        ({"generated_text": None}, "column 'generated_text' is missing"),
        ({"generated_text": ["2"]}, "column 'generated_text' is"),
        ({"is_correct": 1}, "column 'is_correct' is 1; write true or false"),
        ({"is_correct": "true"}, "column 'is_correct'"),
        ({"tokens": "12"}, "column 'tokens' must be a list of token ids"),
        ({"tokens": [1, True]}, "column 'tokens' must be a list of token ids"),
        ({"tokens": [-1]}, "column 'tokens' must be a list of token ids"),
        ({"tokens": [2**31]}, "column 'tokens' must be a list of token ids"),
        ({"tokens": []}, "rollout 1 of problem 'a' has no tokens"),
    ],
)
def test_a_bad_rollout_is_named_by_its_line(put, problems, change, message):
    with pytest.raises(SalvageError, match=f"rollouts.jsonl, line 2: {message}"):
        import_rollouts(put(PLAIN, PLAIN | {"rollout_idx": 1} | change), problems, "cell", encode)


def test_a_file_of_no_known_form_or_without_what_it_needs_is_refused(put, problems, tmp_path):
    with pytest.raises(SalvageError, match=r"line 1: rollouts need problem_id.*this line has prompt"):
        import_rollouts(put({"prompt": "?"}), problems, "cell", encode)
    with pytest.raises(SalvageError, match="line 1: column 'tokens' is missing"):
        import_rollouts(put(PLAIN), problems, "cell", None)
    with pytest.raises(SalvageError, match="no prompts; give the file of its problems"):
        import_rollouts(put(PLAIN), None, "cell", encode)
    with pytest.raises(SalvageError, match="there is no such file"):
        import_rollouts(tmp_path / "none.jsonl", problems, "cell", encode)


@pytest.mark.parametrize("arguments", [SAMPLE["arguments"], [["Q: 1+1?\nA:", {"until": ["Q:"]}]]])
def test_a_harness_file_gives_problems_and_rollouts(put, arguments):
    path = put(SAMPLE | {"arguments": arguments}, SAMPLE | {"doc_id": 1, "exact_match": 1.0}, name=NAME)
    table = lm_eval_problems(path, "numeric")
    assert table.iloc[0].to_list() == ["0", "gsm8k", "Q: 1+1?\nA:", "1+1=2\n#### 2", "numeric", "{}"]
    rollouts = import_rollouts(path, table, "cell", encode)
    assert list(rollouts["problem_id"]) == ["0", "1"]
    assert list(rollouts["correct"]) == [False, True]  # the harness's word, not ours
    assert import_rollouts(path, None, "cell", encode, verifier_name="numeric").equals(rollouts)


def test_a_harness_file_of_many_responses_or_no_metric_is_verified_here(put):
    bare = {key: value for key, value in SAMPLE.items() if key != "exact_match"}
    path = put(SAMPLE | {"resps": [["2", "3"]]}, bare | {"doc_id": 1}, name=NAME)
    rollouts = import_rollouts(path, None, "cell", encode, verifier_name="numeric")
    assert list(rollouts["rollout"]) == [0, 1, 0]
    assert list(rollouts["correct"]) == [True, False, True]


def test_a_documents_own_problem_id_comes_first(put):
    path = put(SAMPLE | {"doc": {"problem_id": "own-3"}}, name=NAME)
    assert list(import_rollouts(path, None, "cell", encode)["problem_id"]) == ["own-3"]


def test_of_several_filters_one_must_be_named(put):
    path = put(SAMPLE, SAMPLE | {"filter": "flexible-extract", "exact_match": 1.0}, name=NAME)
    with pytest.raises(SalvageError, match="filters strict-match, flexible-extract, which may judge differently"):
        import_rollouts(path, None, "cell", encode)
    with pytest.raises(SalvageError, match="has no filter 'loose'"):
        import_rollouts(path, None, "cell", encode, metric_filter="loose")
    for name, right in [("strict-match", False), ("flexible-extract", True)]:
        assert import_rollouts(path, None, "cell", encode, metric_filter=name)["correct"].to_list() == [right]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resps": [[["-1.5", "False"]]]}, "column 'resps' holds log-likelihoods"),
        ({"resps": [["-1.5"], ["-2.0"]]}, "column 'resps' must be a list of one list"),
        ({"resps": []}, "column 'resps' must be a list of one list"),
        ({"resps": [[""]]}, "rollout 0 of problem '1' has no tokens"),
        ({"exact_match": 0.5}, "column 'exact_match' is 0.5, neither 0 nor 1"),
        ({"exact_match": [1]}, "column 'exact_match'"),
        ({"exact_match": float("nan")}, "column 'exact_match' is NaN"),
        ({"arguments": {"gen_args_0": {"arg_0": ["[{}]"]}}}, "column 'arguments' has no prompt's text"),
        ({"arguments": []}, "column 'arguments' has no prompt's text"),
        ({"target": ["2"]}, "column 'target' is"),
        ({"target": "two"}, "column 'target': the problem has the answer 'two', in which there is no number"),
        ({"doc_id": 0}, "rollout 0 of problem '0' stands in line 1 already"),
        ({"doc_id": 0, "target": "4"}, "problem '0' has another prompt or target"),
        ({"doc_id": None}, "column 'doc_id' is missing"),
    ],
)
def test_a_bad_sample_is_named_by_its_line(put, change, message):
    path = put(SAMPLE, SAMPLE | {"doc_id": 1} | change, name=NAME)
    with pytest.raises(SalvageError, match=f"jsonl, line 2: {message}"):
        import_rollouts(path, None, "cell", encode, verifier_name="numeric")


def test_samples_of_unknown_problems_are_named(put, problems):
    with pytest.raises(SalvageError, match="line 1: problem '0' is not among the problems"):
        import_rollouts(put(SAMPLE), problems, "cell", encode)


def test_two_forms_in_one_file_are_refused(put, problems):
    with pytest.raises(SalvageError, match="line 2: it is no lm-evaluation-harness sample"):
        import_rollouts(put(SAMPLE, PLAIN), problems, "cell", encode)
    with pytest.raises(SalvageError, match="line 2: column 'rollout_idx'"):
        import_rollouts(put(PLAIN, SAMPLE), problems, "cell", encode)
