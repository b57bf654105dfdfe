"""Each format of rollouts, in a small file as its program writes it."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.problems.formats import FORMATS, Record, records

Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(*lines: Any, name: str = "file") -> Path:
        path = tmp_path / name
        if path.suffix == ".parquet":
            pd.DataFrame(list(lines)).to_parquet(path)
        else:
            path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
        return path

    return write


def told(found: list[Record]) -> list[tuple]:
    return [(r.problem_id, r.rollout, r.text, r.correct, r.ended) for r in found]


# ------------------------------------------------------------------ TRL, verl, Open-R1

TRL = {"step": 3, "prompt": "1+1?", "completion": " 2", "accuracy_reward": 1.0, "advantage": 0.7}


def test_trl_completions(put: Put) -> None:
    path = put(TRL, TRL | {"completion": " 3", "accuracy_reward": 0.0}, name="completions_00003.parquet")
    assert told(records(path)) == [("", None, " 2", True, None), ("", None, " 3", False, None)]
    assert [r.prompt for r in records(path)] == ["1+1?"] * 2 and records(path)[0].answer is None
    assert [r.correct for r in records(path, metric="none")] == [None, None]


def test_trl_chats_and_several_rewards(put: Put) -> None:
    chat = {"prompt": [{"role": "user", "content": "1+1?"}], "completion": [{"role": "assistant", "content": "2"}]}
    row = TRL | chat | {"format_reward": 0.5, "solution": "2"}
    path = put(row, name="a.parquet")
    with pytest.raises(SalvageError, match=r"has the rewards accuracy_reward, format_reward, solution; name the one"):
        records(path)
    (found,) = records(path, metric="accuracy_reward")
    assert (found.text, found.correct, found.answer, found.prompt) == ("2", True, "2", chat["prompt"])
    with pytest.raises(SalvageError, match=r"a.parquet, row 0: column 'format_reward' is 0.5, neither 0 nor 1"):
        records(path, metric="format_reward")
    with pytest.raises(SalvageError, match=r"row 0: column 'other' is missing; name the verdict with --metric"):
        records(path, metric="other")


VERL = {"input": "user\n1+1?\nassistant\n", "output": "2", "gts": "2", "score": 1.0, "step": 5}


def test_verl_generations(put: Put) -> None:
    lines = [VERL, VERL | {"score": 0.0}, VERL | {"score": -1.0}, VERL | {"score": 0.1, "acc": True}]
    found = records(put(*lines, name="5.jsonl"))
    assert [r.correct for r in found] == [True, False, False, True]
    assert {(r.prompt, r.answer, r.text) for r in found} == {(VERL["input"], "2", "2")}
    path = put(VERL | {"score": 0.1}, name="5.jsonl")
    with pytest.raises(SalvageError, match=r"line 1: column 'score' is 0.1, neither 0 nor 1; name another with --me"):
        records(path)
    assert records(path, metric="none")[0].correct is None


OPENR1 = {
    "uuid": "u1",
    "problem": "1+1?",
    "answer": "2",
    "generations": ["<think>a</think>2", "3", "<think>b"],
    "correctness_math_verify": [True, False, None],
    "correctness_llama": None,
    "finish_reasons": ["stop", "stop", "length"],
}


def test_openr1_generations(put: Put) -> None:
    found = records(put(OPENR1, name="a.parquet"))
    assert told(found) == [
        ("u1", 0, "<think>a</think>2", True, True),
        ("u1", 1, "3", False, True),
        ("u1", 2, "<think>b", None, False),
    ]
    assert {(r.prompt, r.answer) for r in found} == {("1+1?", "2")}
    bare = {name: OPENR1[name] for name in ("problem", "answer", "generations")}
    assert [(r.problem_id, r.correct, r.ended) for r in records(put(bare))] == [("", None, None)] * 3
    with pytest.raises(SalvageError, match="line 1: column 'finish_reasons' must have an entry for each of the 3"):
        records(put(OPENR1 | {"finish_reasons": ["stop"]}))
    with pytest.raises(SalvageError, match="line 1: column 'correctness_llama' is missing; correct --metric"):
        records(put(OPENR1), metric="correctness_llama")


# ------------------------------------------------------------------ lighteval, Inspect, OpenAI

LIGHTEVAL = {
    "doc": {"query": "1+1?", "choices": ["2"], "gold_index": [0], "id": "7", "task_name": "gsm8k|0"},
    "model_response": {"input": "1+1?", "text": ["2"], "output_tokens": [[5, 6]]},
    "metric": {"extractive_match": 1.0},
}


def test_lighteval_details(put: Put) -> None:
    (found,) = records(put(LIGHTEVAL, name="details.parquet"))
    assert told([found]) == [("7", 0, "2", True, None)]
    assert (found.tokens, found.prompt, found.answer, found.task) == ([5, 6], "1+1?", "2", "gsm8k|0")
    response = {"text": ["2", "3"], "output_tokens": [[5], [6]], "input": None}
    found = records(put(LIGHTEVAL | {"model_response": response}, name="details.parquet"))
    assert [(r.rollout, r.tokens, r.correct, r.prompt) for r in found] == [
        (0, [5], None, "1+1?"),  # over several texts a metric is their mean
        (1, [6], None, "1+1?"),
    ]
    path = put(LIGHTEVAL | {"metric": {"em": 1.0, "f1": 0.5}}, name="details.parquet")
    with pytest.raises(SalvageError, match="row 0: it has the metrics em, f1; name the one to go by"):
        records(path)
    assert records(path, metric="em")[0].correct is True
    with pytest.raises(SalvageError, match="row 0: column 'model_response' has no texts"):
        records(put(LIGHTEVAL | {"model_response": {"text": None, "logprobs": [1.0]}}, name="details.parquet"))


def inspect_sample(**fields: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": "2"}, "stop_reason": "stop"}
    sample = {"id": 3, "epoch": 1, "input": "1+1?", "target": "2", "output": {"choices": [choice]}}
    return sample | {"scores": {"match": {"value": "C", "answer": "2"}}, "attachments": {}} | fields


def test_inspect_logs_in_both_forms(put: Put, tmp_path: Path) -> None:
    parts = [{"type": "reasoning", "reasoning": "so"}, {"type": "text", "text": "attachment://h"}]
    cut = {"choices": [{"message": {"role": "assistant", "content": parts}, "stop_reason": "max_tokens"}]}
    samples = [
        inspect_sample(),
        inspect_sample(epoch=2, output=cut, scores={"match": {"value": "I"}}, attachments={"h": "3"}),
        inspect_sample(id="x", scores={}, input=[{"role": "user", "content": "2+2?", "source": "input"}], target=["4"]),
        inspect_sample(id="gone", output={"choices": []}, error={"message": "timeout"}),
    ]
    (tmp_path / "log.json").write_text(json.dumps({"version": 2, "eval": {}, "samples": samples}))
    with zipfile.ZipFile(tmp_path / "log.eval", "w") as log:
        log.writestr("header.json", "{}")
        for i, sample in enumerate(samples):
            log.writestr(f"samples/{i}_epoch_1.json", json.dumps(sample))
    for name in ("log.json", "log.eval"):
        found = records(tmp_path / name)
        assert told(found) == [
            ("3", 0, "2", True, True),
            ("3", 1, "<think>so</think>3", False, False),
            ("x", 0, "2", None, True),
        ]
        assert [r.prompt for r in found] == ["1+1?", "1+1?", [{"role": "user", "content": "2+2?"}]]
        assert [r.answer for r in found] == ["2", "2", "4"]
    (tmp_path / "log.json").write_text(json.dumps([inspect_sample(scores={"a": {"value": 1}, "b": {"value": 0}})]))
    with pytest.raises(SalvageError, match="row 0: it has the scores a, b; name the one to go by"):
        records(tmp_path / "log.json")
    assert [records(tmp_path / "log.json", metric=name)[0].correct for name in "ab"] == [True, False]
    with pytest.raises(SalvageError, match="row 0: it has no score 'c'; it has a, b"):
        records(tmp_path / "log.json", metric="c")


def test_a_damaged_log_and_another_archive_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.eval", "w") as log:
        log.writestr("a.txt", "a")
    with pytest.raises(SalvageError, match=r"other.eval has no samples; only logs of Inspect"):
        records(tmp_path / "other.eval")
    (tmp_path / "torn.eval").write_bytes((tmp_path / "other.eval").read_bytes()[:40])
    with pytest.raises(SalvageError, match=r"torn.eval is no readable Inspect log"):
        records(tmp_path / "torn.eval")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1abc")
    with pytest.raises(SalvageError, match=r"torn.parquet is not a readable Parquet file"):
        records(tmp_path / "torn.parquet")


BATCH = {
    "custom_id": "a",
    "response": {"body": {"choices": [{"message": {"content": "2"}, "finish_reason": "stop"}]}},
    "error": None,
}


def test_openai_batches(put: Put) -> None:
    several = [
        {"message": {"content": "3", "reasoning_content": "so"}, "finish_reason": "length"},
        {"text": "4", "finish_reason": "stop"},
    ]
    found = records(put(BATCH, BATCH | {"custom_id": "b", "response": {"body": {"choices": several}}}))
    assert told(found) == [
        ("a", None, "2", None, True),
        ("b", None, "<think>so</think>3", None, False),
        ("b", None, "4", None, True),
    ]
    failed = BATCH | {"custom_id": "c", "response": None, "error": {"code": "batch_expired"}}
    with pytest.raises(SalvageError, match=r"line 2: request 'c' has no choices .*batch_expired.*; drop the line"):
        records(put(BATCH, failed))


# ------------------------------------------------------------------ the toolkit, the harness


def test_the_toolkits_aliases(put: Put) -> None:
    found = records(put({"id": 1, "sample_id": 2, "answer": "it is 2", "is_correct": 1}))
    assert told(found) == [("1", 2, "it is 2", True, None)]
    found = records(put({"pid": "x", "rollout_id": 0, "generated_text": "3", "is_correct": 0}))
    assert told(found) == [("x", 0, "3", False, None)]


SAMPLE = {
    "doc_id": 0,
    "target": "2",
    "arguments": {"gen_args_0": {"arg_0": "1+1?"}},
    "resps": [["2"]],
    "filter": "strict-match",
    "exact_match": 0.0,
}


def test_of_several_filters_one_must_be_named(put: Put) -> None:
    path = put(SAMPLE, SAMPLE | {"filter": "flexible-extract", "exact_match": 1.0})
    with pytest.raises(SalvageError, match=r"filters strict-match, flexible-extract, which may judge .*\(--filter\)"):
        records(path)
    with pytest.raises(SalvageError, match="has no filter 'loose'"):
        records(path, only="loose")
    for name, right in [("strict-match", False), ("flexible-extract", True)]:
        assert [r.correct for r in records(path, only=name)] == [right]


def test_of_several_metrics_that_disagree_one_must_be_named(put: Put) -> None:
    path = put(SAMPLE | {"math_verify": 1})
    with pytest.raises(SalvageError, match=r"line 1: its metrics disagree \(exact_match 0 and math_verify 1\); name"):
        records(path)
    assert [records(path, metric=m)[0].correct for m in ("exact_match", "math_verify", "none")] == [False, True, None]
    assert records(put(SAMPLE | {"acc": 0}))[0].correct is False


@pytest.mark.parametrize(
    "prompt",
    [
        '[{"role": "user", "content": "1+1?", "type": "text"}]',
        ['[{"role": "user", "content": "1+1?"}]'],
        [{"role": "user", "content": "1+1?"}],
    ],
)
def test_a_harness_prompt_may_be_a_chat(put: Put, prompt: Any) -> None:
    (found,) = records(put(SAMPLE | {"arguments": {"gen_args_0": {"arg_0": prompt}}}))
    assert found.prompt == [{"role": "user", "content": "1+1?"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resps": [[["-1.5", "False"]]]}, "column 'resps' holds log-likelihoods"),
        ({"resps": [["-1.5"], ["-2.0"]]}, "column 'resps' must be a list of one list"),
        ({"resps": []}, "column 'resps' must be a list of one list"),
        ({"exact_match": 0.5}, "column 'exact_match' is 0.5, neither 0 nor 1"),
        ({"exact_match": [1]}, "column 'exact_match'"),
        ({"exact_match": float("nan")}, "column 'exact_match' is NaN"),
    ],
)
def test_a_bad_sample_is_named_by_its_line(put: Put, change: dict, message: str) -> None:
    with pytest.raises(SalvageError, match=f"line 2: {message}"):
        records(put(SAMPLE, SAMPLE | {"doc_id": 1} | change))


# ------------------------------------------------------------------ whatever the format


def test_what_is_of_no_format_or_of_two_is_refused(put: Put) -> None:
    with pytest.raises(SalvageError, match=r"line 1: no known format has these fields \(prompt\): lm-eval has doc_id"):
        records(put({"prompt": "?"}))
    with pytest.raises(SalvageError, match="line 2: it has no 'doc_id', and so is not of format lm-eval; keep one"):
        records(put(SAMPLE, VERL))
    with pytest.raises(SalvageError, match="line 1: it has no 'input', and so is not of format verl"):
        records(put(SAMPLE), "verl")
    with pytest.raises(SalvageError, match="format 'x' is not known; use auto, lm-eval, openai-batch"):
        records(put(SAMPLE), "x")


@pytest.mark.parametrize("name", ["lm-eval", "verl", "openai-batch", "lighteval"])
def test_a_format_is_known_by_its_fields_and_by_its_name(put: Put, name: str) -> None:
    line = {"lm-eval": SAMPLE, "verl": VERL, "openai-batch": BATCH, "lighteval": LIGHTEVAL}[name]
    assert told(records(put(line))) == told(records(put(line), name))
    assert name in FORMATS


def test_an_array_of_objects_is_read_as_lines_are(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([VERL, VERL], indent=1))
    assert len(records(tmp_path / "a.json")) == 2
