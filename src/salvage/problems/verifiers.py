"""Verifiers: is a completion of a problem right?

A verifier takes a problem (a row of the problems table, as a mapping) and a completion's text, of which it sees what
follows its thoughts: after ``</think>`` only what comes then counts, and while a thought is open there is no answer
(`salvage.problems.thinking`, for all verifiers alike). Problems name theirs in the column `verifier`:

`exact`
    The answer is the whole text or the text's final answer, both stripped of white space at their ends; case counts.
    The final answer is what the last ``<answer>...</answer>`` holds; without one, the rest of the line after the last
    ``####`` (as in GSM8K); without that, the last line that is not blank.
`numeric`
    The number that the text states equals the answer, exactly: in its last box, ``<answer>`` or ``####``, else in "the
    answer is ...", else the last number (`salvage.problems.numbers`). ``1,234.50`` and ``\\frac{2469}{2}`` are one.
    Units are not compared; 50% is 50 and 0.5.
`math`
    Math-Verify holds the text to be equal to the answer, which is read as LaTeX, whole (`salvage.problems.latex`).
    Prose and mathematics apart: it compares letters as products of symbols, so for words take `exact`.
`code`
    The program in the text passes the tests of the problem's `metadata`, in a sandbox (`code.py`).
`reasoning_gym`
    Reasoning Gym's own scorer gives the full score to what the last ``<answer>...</answer>`` holds; without one, to
    the whole stripped text or to its last line. The problem's `metadata` is Reasoning Gym's entry as JSON.
`lab`
    The lab's: the whole trace must be canonical.
`module:function`
    Yours, importable from the working directory, called with the problem (a dict) and the text; it returns a bool.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.problems import latex, numbers, thinking
from salvage.problems.code import code

Problem = Mapping[str, Any]
Verifier = Callable[[Problem, str], bool]

GUESS_RATES: dict[str, float | None] = {
    "exact": None,
    "numeric": None,
    "math": None,
    "code": None,
    "reasoning_gym": None,
    "lab": 1e-4,  # an upper bound
}
"""The chance that a guess passes; None where it depends on how many answers the task has (a yes or no: 0.5)."""

CODE = [
    *(f"problems/{name}.py" for name in ("verifiers", "thinking", "numbers", "latex", "code", "judging")),
    "tables/vocabulary.py",  # what opens a thought
    "lab/task.py",
]
"""The modules that verdicts depend on, for fingerprints."""

# Their scorers call Python's eval, or sympy's parser that does, on the model's answer or on the entry's text, so that
# a completion or a problem file could run any code here.
EVALUATING = frozenset(
    {
        "binary_matrix",
        "bitwise_arithmetic",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "number_sorting",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)


def verify(problems: pd.DataFrame, problem_ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Verify many completions, each by its problem's verifier.

    Parameters
    ----------
    problems : DataFrame
        A problems table (`schema.PROBLEMS`).
    problem_ids, texts : sequences of str, of one length
        For each completion its problem and its text.

    Returns
    -------
    ndarray of bool, one a completion

    Raises
    ------
    SalvageError
        Where a problem is unknown, or a verifier cannot be had or breaks; it names the problem.
    """
    if len(problem_ids) != len(texts):
        raise SalvageError(f"{len(problem_ids)} problem ids for {len(texts)} texts; give one id a text")
    rows = problems.set_index("problem_id", drop=False).to_dict("index")
    resolve = cache(verifier)
    correct = np.zeros(len(texts), dtype=bool)
    for i, (problem_id, text) in enumerate(zip(problem_ids, texts, strict=True)):
        if problem_id not in rows:
            raise SalvageError(
                f"text {i}: problem {problem_id!r} is not in the problems table; add it or drop the text"
            )
        correct[i] = resolve(rows[problem_id]["verifier"])(rows[problem_id], text)
    return correct


def verifier(name: str) -> Verifier:
    """Return the verifier of a name; the module's docstring says what each takes to be right.

    Raises
    ------
    SalvageError
        Where no verifier has the name, or a user's function cannot be imported or called.
    """
    if name in _BUILT_IN:
        return _of_answers(_BUILT_IN[name])
    if ":" in name:
        return _of_answers(_users(name))
    known = ", ".join(_BUILT_IN)
    raise SalvageError(f"there is no verifier {name!r}; take one of {known}, or your own as module:function")


def _of_answers(judge: Verifier) -> Verifier:
    """Return a verifier that is asked about the part of a text that is its answer, where there is one."""

    def verify_answer(problem: Problem, text: str) -> bool:
        part = thinking.answer_part(thinking.within(str(problem.get("prompt", "")), text))
        return part is not None and judge(problem, part)

    return verify_answer


def check_answer(name: str, answer: str) -> None:
    """Refuse a reference answer that its verifier could never find in a text, before any model has run."""
    if name in _READ:
        _READ[name]({"problem_id": "", "answer": answer})


def final_answer(text: str) -> str:
    """Return the final answer that `exact` reads from a text; the module's docstring says how."""
    if tag := thinking.tagged(text):
        return text[slice(*tag)].strip()
    if "####" in text:
        return (text.rpartition("####")[2].splitlines() or [""])[0].strip()
    return _last_line(text)


def last_number(text: str) -> Fraction | None:
    """Return the number that `numeric` reads from a text, as it is written; None where there is none."""
    number = numbers.stated(text)
    return None if number is None else number.value


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _exact(problem: Problem, text: str) -> bool:
    return _exact_answer(problem) in (text.strip(), final_answer(text))


def _exact_answer(problem: Problem) -> str:
    answer = str(problem["answer"]).strip()
    if not answer:
        raise SalvageError(f"{_named(problem)} has an empty answer, which an empty text would meet; fill it in")
    return answer


def _numeric(problem: Problem, text: str) -> bool:
    number = numbers.stated(text)
    reference = _numeric_answer(problem)
    return number is not None and number.equals(reference)


def _numeric_answer(problem: Problem) -> numbers.Number:
    answer = str(problem["answer"])
    number = numbers.reference(answer)
    if number is None:
        told = "which is more than one number alone" if any(map(str.isdigit, answer)) else "in which there is no number"
        raise SalvageError(
            f"{_named(problem)} has the answer {problem['answer']!r}, {told}; correct it or take the verifier exact"
        )
    return number


def _math(problem: Problem, text: str) -> bool:
    gold = _math_answer(problem)
    return latex.equal(gold, latex.read(text, _seconds()), _seconds())


def _math_answer(problem: Problem) -> list[Any]:
    gold = latex.reference(str(problem["answer"]).strip(), _seconds())
    if not gold:
        raise SalvageError(
            f"{_named(problem)} has the answer {problem['answer']!r}, which math-verify cannot read whole; "
            "correct it or take the verifier exact"
        )
    return gold


def _seconds() -> int | None:
    # math-verify's time limit is an alarm signal, which Python delivers to the main thread alone and refuses to set
    # in any other: there, a hostile tower of powers is not cut short
    return 5 if threading.current_thread() is threading.main_thread() else None


def _reasoning_gym(problem: Problem, text: str) -> bool:
    name = reasoning_gym_entry(problem)["metadata"]["source_dataset"]
    tag = thinking.tagged(text)
    candidates = [text[slice(*tag)].strip()] if tag else list(dict.fromkeys([text.strip(), _last_line(text)]))
    return any(_full_score(name, candidate, problem) for candidate in candidates)


def reasoning_gym_entry(problem: Problem) -> dict[str, Any]:
    """Return the Reasoning Gym entry that a problem's `metadata` keeps, a fresh one (some scorers change theirs)."""
    try:
        entry = json.loads(problem["metadata"])
        entry["question"], entry["answer"], entry["metadata"]["source_dataset"]
    except (ValueError, KeyError, TypeError):
        raise SalvageError(
            f"{_named(problem)} has no Reasoning Gym entry in its metadata (question, answer, "
            "metadata.source_dataset); make it with reasoning_gym:NAME:SIZE:SEED"
        ) from None
    return dict(entry)


@cache
def reasoning_gym_scorer(name: str) -> Callable[[str | None, dict[str, Any]], float]:
    """Return the `score_answer` of a Reasoning Gym dataset, unless it would run a text as code."""
    import reasoning_gym

    if name in EVALUATING:
        raise SalvageError(
            f"Reasoning Gym's scorer of {name!r} runs answers as Python code, which is not safe with a model's text; "
            "take another dataset or your own verifier as module:function"
        )
    try:
        return reasoning_gym.get_score_answer_fn(name)
    except (ValueError, AssertionError, TypeError) as error:
        raise SalvageError(
            f"Reasoning Gym has no scorer for the dataset {name!r}: {error}; correct the name"
        ) from error


def _full_score(name: str, answer: str, problem: Problem) -> bool:
    score, entry = reasoning_gym_scorer(name), reasoning_gym_entry(problem)
    try:
        return float(score(answer, entry)) > 1 - 1e-9
    except Exception as error:
        _score_reference(name, problem, error)
        return False  # the scorer works, so it is this text that it cannot read


def _score_reference(name: str, problem: Problem, broke: Exception) -> None:
    entry = reasoning_gym_entry(problem)
    try:
        reasoning_gym_scorer(name)(entry["answer"], entry)
    except Exception:
        raise SalvageError(
            f"{_named(problem)}: Reasoning Gym's scorer of {name!r} breaks on its own entry ({broke!r}); "
            "make the problem anew with reasoning_gym:NAME:SIZE:SEED"
        ) from broke


def _lab(problem: Problem, text: str) -> bool:
    from salvage.lab import task

    return bool(task.verify(str(problem["prompt"]), str(problem["answer"]), text))


def _users(name: str) -> Verifier:
    function = _imported(name)

    def verify_by_user(problem: Problem, text: str) -> bool:
        try:
            correct = function(dict(problem), text)
        except Exception as error:
            raise SalvageError(f"{_named(problem)}: the verifier {name} raised {error!r}; correct it") from error
        if not isinstance(correct, bool | np.bool_):
            raise SalvageError(
                f"{_named(problem)}: the verifier {name} returned {correct!r:.60}, but must return True or False"
            )
        return bool(correct)

    return verify_by_user


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise SalvageError(
            f"the verifier {name!r}: module {module_name!r} cannot be imported ({error}); "
            f"put it in {here} or install it, and correct what it raises"
        ) from error
    finally:
        sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        told = "is not a function" if hasattr(module, function_name) else "does not exist"
        raise SalvageError(
            f"the verifier {name!r}: {function_name!r} {told} in module {module_name!r}; correct the name"
        )
    return function


def _named(problem: Problem) -> str:
    return f"problem {problem['problem_id']!r}" if problem.get("problem_id") else "the problem"


_BUILT_IN: dict[str, Verifier] = {
    "exact": _exact,
    "numeric": _numeric,
    "math": _math,
    "code": code,
    "reasoning_gym": _reasoning_gym,
    "lab": _lab,
}
_READ: dict[str, Callable[[Problem], Any]] = {
    "exact": _exact_answer,
    "numeric": _numeric_answer,
    "math": _math_answer,
}
