"""What of a text counts as its answer: one rule for every verifier."""

import json

import pytest

from salvage.problems.thinking import answer_part, tagged, within
from salvage.problems.verifiers import verifier
from salvage.tables.vocabulary import THINKING

OWN = "def says(problem, text): return problem['answer'] in text\n"
ENTRY = json.dumps({"question": "3+4?", "answer": "7", "metadata": {"source_dataset": "chain_sum"}})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7", "7"),
        ("<think>maybe <answer>7</answer>? no, let me", None),
        ("<think>6?</think>7", "7"),
        ("6?</think>7", "7"),  # the template opened it
        ("<think>6?</think>7<think>or 8", None),
        ("<think>6?</think>7<think>or 8</think>9", "9"),
        ("<think>\n<think>6?</think>7", "7"),  # the template opened it, and the model once more
        ("<think>is [THINK] a tag?</think>7", "7"),
        ("<think>6? </thinking> 7", None),
        ("<THINK>6?</Think>7", "7"),
        ("7</think>", ""),
        ("<thinking>", None),
        ("<|channel|>analysis<|message|>6?<|end|><|start|>assistant<|channel|>final<|message|>7", "7"),
        ("I think 7", "I think 7"),
        ("", ""),
    ],
)
def test_only_what_follows_the_thoughts_counts(text, answer):
    assert answer_part(text) == answer


@pytest.mark.parametrize(("opening", "closing"), THINKING)
@pytest.mark.parametrize("name", ["exact", "numeric", "math", "reasoning_gym", "own_thinking:says"])
def test_case_14_no_verifier_takes_an_answer_from_an_unfinished_thought(name, opening, closing, tmp_path, monkeypatch):
    (tmp_path / "own_thinking.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    problem = {"problem_id": "p", "prompt": "?", "answer": "7", "metadata": ENTRY}
    judge = verifier(name)
    assert not judge(problem, f"{opening}maybe <answer>7</answer>? \\boxed{{7}} #### 7")
    assert not judge(problem, f"{opening}<answer>7</answer>{closing}<answer>8</answer>")
    assert not judge(problem, f"<answer>7</answer> #### 7\n{closing}\n")
    assert judge(problem, f"{opening}<answer>8</answer>{closing}\n\n7")
    assert judge(problem, f"so 8{closing}7")
    assert not judge(problem | {"prompt": f"Well?{opening}\n"}, "maybe <answer>7</answer>? no, let me")
    assert judge(problem | {"prompt": f"Well?{opening}\n"}, f"8?{closing}7")
    assert judge(problem | {"prompt": f"Think between {opening} and {closing}."}, "7")


def test_a_text_that_begins_within_a_thought_is_given_its_mark():
    assert within("user: 3+4?\nassistant: <think>\n", "7") == "<think>7"
    assert within("What does <think> mean?", "7") == "7"


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("<answer>7</answer>", "7"),
        ("<answer>6</answer><answer>7</answer> and </answer>", "7"),
        ("<answer>6</answer> <answer>7", "6"),
        ("<answer>6 <answer>7</answer>", "7"),
        ("</answer><answer>", None),
        ("", None),
    ],
)
def test_the_last_tag_that_closes_holds_the_answer(text, held):
    tag = tagged(text)
    assert (text[slice(*tag)] if tag else None) == held
