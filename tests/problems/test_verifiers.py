"""Each verifier on right and wrong texts, and on problems that it cannot judge."""

import json
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.errors import SalvageError
from salvage.problems.verifiers import EVALUATING, GUESS_RATES, check_answer, last_number, verifier, verify


def problem(name, answer, problem_id="p", metadata="{}", prompt="?"):
    return {
        "problem_id": problem_id,
        "task": "t",
        "prompt": prompt,
        "answer": answer,
        "verifier": name,
        "metadata": metadata,
    }


def judged(name, answer, text, **fields):
    return verifier(name)(problem(name, answer, **fields), text)


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("blue", "blue", True),
        (" blue ", "\nblue\n", True),
        ("blue", "The sky.\nblue", True),
        ("blue", "It is blue", False),
        ("blue", "Blue", False),
        ("blue", "<answer>red</answer> no, <answer> blue </answer>, surely", True),
        ("blue", "<answer>blue</answer> no, <answer>red</answer>", False),
        ("blue", "<answer>red</answer>\nblue", False),
        ("72", "48 + 24\n#### 72\nQuestion: next", True),
        ("a\nb", "a\nb", True),
        ("blue", "", False),
    ],
)
def test_exact_takes_the_whole_text_or_its_final_answer(answer, text, right):
    assert judged("exact", answer, text) is right


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("1234.5", "so it is $1,234.50.", True),
        ("-3", "x = −3", True),
        ("3", "10-3", True),
        ("7", "10-3 = 7", True),
        ("-7", "3-10=-7", True),
        ("-20", "a loss of -$20", True),
        ("0.5", "1/2", True),
        ("1/2", ".50", True),
        ("4", "1/4", False),
        ("100000", "1e5", True),
        ("3", "items 1,2,3", True),
        ("42", "42 or 43", False),
        ("42", "none", False),
        ("0.1", "0.1000000000000000000000001", False),
        ("1", "1e999999999", False),
        ("1", "1/0", False),
        ("1", "9" * 100_000, False),
        ("#### 18", "so 18", True),
    ],
)
def test_numeric_compares_the_last_numbers_exactly(answer, text, right):
    assert judged("numeric", answer, text) is right


@given(st.integers(), st.integers(0, 6))
def test_a_number_survives_commas_signs_and_decimals(number, places):
    scaled = Decimal(f"{number}E-{places}")
    for text in (f"so {scaled:,f}", f"= {scaled:+f}.", f"{scaled:f}00 dollars" if places else f"{scaled:f}.00"):
        assert last_number(text) == Fraction(number, 10**places)


@given(st.text())
@settings(deadline=None)  # the first call imports reasoning_gym
def test_any_text_is_judged(text):
    for name in ("exact", "numeric", "reasoning_gym"):
        entry = {"question": "?", "answer": "1", "metadata": {"source_dataset": "chain_sum"}}
        assert judged(name, "1", text, metadata=json.dumps(entry)) in (True, False)


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        (r"\frac{1}{2}", r"so \boxed{0.5}", True),
        ("1/2", "The answer is $\\frac{2}{4}$.", True),
        ("x+1", r"\boxed{1+x}", True),
        (r"\boxed{3}", "the answer is 3", True),
        ("3", r"\boxed{4}", False),
        ("3", "", False),
    ],
)
def test_math_compares_expressions(answer, text, right):
    assert judged("math", answer, text) is right


def test_math_works_outside_the_main_thread():
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(judged("math", "1/2", r"\boxed{0.5}")))
    thread.start()
    thread.join()
    assert verdicts == [True]


def entry(answer="4", dataset="chain_sum"):
    return json.dumps({"question": "1 + 3 = ?", "answer": answer, "metadata": {"source_dataset": dataset}})


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("4", True),
        ("hm <answer>4</answer>.", True),
        ("<answer>4</answer> or <answer>5</answer>", False),
        ("1 + 3\n4\n", True),
        ("it is 4 or so", False),  # the scorer's partial credit
        ("", False),
    ],
)
def test_reasoning_gym_asks_its_own_scorer_for_the_full_score(text, right):
    assert judged("reasoning_gym", "4", text, metadata=entry()) is right


@pytest.mark.parametrize("metadata", ["{}", "", "[]", '{"question": "?", "answer": "4", "metadata": {}}'])
def test_reasoning_gym_needs_its_entry(metadata):
    with pytest.raises(SalvageError, match="problem 'p' has no Reasoning Gym entry"):
        judged("reasoning_gym", "4", "4", metadata=metadata)


@pytest.mark.parametrize("dataset", sorted(EVALUATING))
def test_scorers_that_run_code_are_refused(dataset, tmp_path):
    trap = tmp_path / "ran"
    with pytest.raises(SalvageError, match="runs answers as Python code"):
        judged("reasoning_gym", "4", f"open({str(trap)!r}, 'w')", metadata=entry(dataset=dataset))
    assert not trap.exists()


def test_reasoning_gym_names_unknown_datasets_and_broken_entries():
    with pytest.raises(SalvageError, match="no scorer for the dataset 'chain_som'"):
        judged("reasoning_gym", "4", "4", metadata=entry(dataset="chain_som"))
    with pytest.raises(SalvageError, match="breaks on its own entry"):
        judged("reasoning_gym", "4", "4", metadata=entry(dataset="rubiks_cube"))


def test_lab_asks_the_labs_task():
    assert judged("lab", "2", "6+0-4=6-4=2#2", prompt="6+2*0-4:") is True
    assert judged("lab", "2", "#2", prompt="6+2*0-4:") is False
    assert GUESS_RATES["lab"] < 0.01


@pytest.fixture
def own(tmp_path, monkeypatch):
    source = (
        "def right(problem, text): return text == problem['answer'] * 2\n"
        "def number(problem, text): return 1\n"
        "def broken(problem, text): return text[99]\n"
        "thing = 3\n"
    )
    (tmp_path / "own_verifier.py").write_text(source)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)


def test_a_users_function_judges(own):
    assert judged("own_verifier:right", "ab", "abab") is True
    assert judged("own_verifier:right", "ab", "ab") is False


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exakt", "no verifier 'exakt'; take one of exact, numeric"),
        ("own_missing:right", "module 'own_missing' cannot be imported"),
        ("own_broken:right", "module 'own_broken' cannot be imported .division by zero"),
        (":right", "cannot be imported"),
        ("own_verifier:wrong", "'wrong' does not exist in module 'own_verifier'"),
        ("own_verifier:thing", "'thing' is not a function"),
        ("own_verifier:number", "problem 'p': the verifier own_verifier:number returned 1, but must return True"),
        ("own_verifier:broken", "problem 'p': the verifier own_verifier:broken raised IndexError"),
    ],
)
def test_a_wrong_verifier_is_named(own, name, message):
    with pytest.raises(SalvageError, match=message):
        judged(name, "a", "a")


@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [("exact", " ", "empty answer"), ("numeric", "twelve", "no number"), ("math", "", "math-verify cannot read")],
)
def test_an_answer_without_meaning_is_refused_before_and_while_verifying(name, answer, message):
    with pytest.raises(SalvageError, match=f"the problem has .*{message}|{message}"):
        check_answer(name, answer)
    with pytest.raises(SalvageError, match=f"problem 'p' has .*{message}"):
        judged(name, answer, "1")


def test_a_batch_uses_each_problems_own_verifier():
    table = pd.DataFrame([problem("exact", "a", "one"), problem("numeric", "2", "two")])
    found = verify(table, ["two", "one", "two"], ["it is 2.0", "2", "3"])
    assert found.dtype == bool
    assert np.array_equal(found, [True, False, False])
    assert verify(table, [], []).shape == (0,)
    with pytest.raises(SalvageError, match="text 1: problem 'three' is not in the problems table"):
        verify(table, ["one", "three"], ["", ""])
    with pytest.raises(SalvageError, match="1 problem ids for 2 texts"):
        verify(table, ["one"], ["", ""])
