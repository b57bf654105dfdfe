"""The lab: its task and verifier, its corpus, and that training gives the same checkpoint twice."""

from __future__ import annotations

import hashlib
import random
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from salvage.lab import task

EXPRESSIONS = st.builds(lambda seed: task.expressions(1, random.Random(seed), judged=True)[0], st.integers(0, 10**6))


def test_traces_are_written_as_documented() -> None:
    written = {style: task.trace("6+2*0-4", style) for style in (*task.STYLES, "answer")}
    assert written == {
        "rewrite": "6+0-4=6-4=2#2",
        "subresults": "2*0=0;6+0=6;6-4=2#2",
        "prefix": "*20>0 +60>6 -64>2#2",
        "answer": "#2",
    }


@given(EXPRESSIONS)
def test_the_answer_is_the_expressions_value_modulo_10(expression: str) -> None:
    if "@" not in expression:
        assert task.answer(expression) == str(eval(expression) % 10)


@given(EXPRESSIONS, st.sampled_from(task.STYLES))
def test_right_traces_are_accepted_and_any_changed_character_is_not(expression: str, style: str) -> None:
    text, answer = task.trace(expression, style), task.answer(expression)
    assert task.verify(f"{expression}:", answer, text)
    assert not task.verify(f"{expression}:", answer, task.trace(expression, "answer")), "an answer alone is a guess"
    for i, old in enumerate(text):
        changed = text[:i] + ("1" if old != "1" else "2") + text[i + 1 :]
        assert not task.verify(f"{expression}:", answer, changed)
    assert not task.verify(f"{expression}:", answer, text + "1")


@pytest.mark.parametrize(
    ("misconception", "expression", "value"),
    [("precedence", "1+2*3", "9"), ("difference", "3-5", "2"), ("product", "3*5", "1"), ("rare", "3@5", "3")],
)
def test_misconceptions_change_the_answer(misconception: str, expression: str, value: str) -> None:
    assert task.trace(expression, "answer", task.Reader(misconception))[1:] == value != task.answer(expression)


def test_no_model_is_trained_on_a_judged_expression() -> None:
    documents = task.corpus(2000, random.Random(0))
    assert not any(task.held_out(d.split(":")[0]) for d in documents)
    assert all(task.held_out(e) for e in task.expressions(200, random.Random(0), judged=True))
    right = sum(task.verify(e, task.answer(e), t) for e, t in (d.split(":") for d in documents)) / len(documents)
    assert 0.4 < right < 0.85


def test_every_trace_fits_the_context() -> None:
    from salvage.lab import ancestors

    drawn = task.expressions(500, random.Random(0), judged=True)
    assert max(len(e) + 2 + len(task.trace(e, s)) for e in drawn for s in task.STYLES) < ancestors.CONTEXT


def test_a_step_reads_documents_of_nearly_one_length_and_every_document_is_read() -> None:
    from salvage.lab import ancestors

    read = list(islice(ancestors.steps_of_documents(random.Random(0)), 2 * ancestors.POOL))
    unsorted = task.corpus(ancestors.POOL * ancestors.BATCH, random.Random(0))
    assert sorted(d for step in read[: ancestors.POOL] for d in step) == sorted(unsorted)
    padded = sum(len(step) * max(map(len, step)) for step in read)
    assert padded < 1.1 * sum(len(d) for step in read for d in step)
    assert len({len(step) for step in read}) == 1


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_every_weight_of_an_ancestor_has_one_optimizer(family: str) -> None:
    from salvage.lab import ancestors

    model = ancestors.blank(family)
    muon, adam = ([id(p) for g in o.param_groups for p in g["params"]] for o in ancestors.optimizers(model))
    assert sorted(muon + adam) == sorted(id(p) for p in model.parameters())
    assert len(muon) == 3 * 7  # the layers' matrices


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ancestor", "sft"])
def test_the_same_seed_gives_the_same_checkpoint(pair: tuple[Path, Path], tmp_path: Path, method: str) -> None:
    from salvage.lab import ancestors, specialists

    def checkpoint(name: str, seed: int) -> str:  # 3 steps: the first has a learning rate of 0
        if method == "ancestor":
            ancestors.train("qwen3", seed, 3, tmp_path / name)
        else:
            specialists.train(method, seed, 3, pair[0], tmp_path / name)
        return hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()

    assert checkpoint("one", 1) == checkpoint("again", 1) != checkpoint("other", 2)


@pytest.mark.parametrize("method", ["rft", "dpo"])
def test_an_ancestor_that_gets_nothing_right_is_named(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from salvage.errors import SalvageError
    from salvage.lab import specialists

    monkeypatch.setattr(specialists, "_rollouts", lambda *_: {"1+2": ["#5", "#6"]})
    with pytest.raises(SalvageError, match=rf"{pair[0].name}: it gets no problem right.*lab\.steps"):
        specialists.train(method, 0, 3, pair[0], tmp_path / "made")
    assert not (tmp_path / "made").exists()
