"""Which engine a pair gets under `auto`, and what a table owes to it, its models and its template."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import shapes
from salvage.engine import opening, trial
from salvage.engine.opening import engine_mark, engine_of, open_engine, weights
from salvage.engine.transformers import TransformersEngine
from salvage.errors import SalvageError
from salvage.project import settings
from salvage.project.settings import Cell

PLAIN = pd.DataFrame({"problem_id": ["a"], "prompt": ["6*7?"]})
CHAT = PLAIN.assign(messages=[json.dumps({"messages": [{"role": "user", "content": "6*7?"}]})])


def cell(pair: tuple[Path, Path], engine: str = "auto") -> Cell:
    return Cell("mine", str(pair[0]), str(pair[1]), "p.jsonl", "unknown", 0, "own", engine)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in an empty folder where vLLM is installed and refuses every pair."""
    monkeypatch.chdir(tmp_path)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(opening, "chosen", lambda name: ("vllm", "vllm 0.32.0 is installed"))
    monkeypatch.setattr(trial, "_tried", lambda some: seen.append(some) or "head size 20 is not supported")
    return seen


@pytest.mark.filterwarnings("ignore:.*vLLM is tried on this pair")
def test_case_24_auto_falls_back_where_vllm_refuses_the_pair_says_why_and_asks_once(
    pair: tuple[Path, Path], asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = settings.load()
    assert engine_of(cell(pair), loaded)[0] == "vllm" and not asked  # shapes that vLLM is known to run
    monkeypatch.setattr(trial, "KNOWN", set())
    engine, why = engine_of(cell(pair), loaded)
    assert engine == "transformers"
    assert why.startswith("vllm 0.32.0 is installed, but not for this pair: head size 20 is not supported (kept")
    assert engine_of(cell(pair), loaded) == (engine, why) and len(asked) == 1
    assert engine_mark(cell(pair), loaded, PLAIN) == ["transformers", {}]
    opened = open_engine(cell(pair), loaded, ancestor=True)
    assert type(opened).__name__ == "TransformersEngine"
    assert engine_of(cell(pair[::-1]), loaded)[0] == "transformers" and len(asked) == 2  # another pair
    (kept,) = [p for p in Path("data/cache/engines").iterdir() if str(p) in why]
    kept.unlink()
    monkeypatch.setattr(trial, "_tried", lambda some: "")
    assert engine_of(cell(pair), loaded) == ("vllm", "vllm 0.32.0 is installed")


@pytest.mark.filterwarnings("ignore:.*vLLM is tried on this pair")
def test_case_24_who_asks_for_vllm_is_not_given_another(
    pair: tuple[Path, Path], asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine_of(cell(pair, "vllm"), settings.load())[0] == "vllm" and not asked
    monkeypatch.setattr(trial, "KNOWN", set())
    with pytest.raises(SalvageError, match=r"engine vllm is not for this pair: head size 20 .*use engine transformers"):
        engine_of(cell(pair, "vllm"), settings.load())
    assert engine_of(cell(pair, "transformers"), settings.load())[0] == "transformers" and len(asked) == 1


def test_case_24_a_window_of_one_token_more_shows_and_rounding_does_not(tmp_path: Path) -> None:
    pair = shapes.pair(tmp_path, "mistral sliding")
    engines: list[Any] = [TransformersEngine(*pair)]
    shapes.rewrite(pair[0] / "config.json", sliding_window=7)
    engines.append(TransformersEngine(*pair))
    texts = trial._texts(engines[0])
    assert [len(text) for text in texts] == [trial.SHORT] * 2 and texts[0] != texts[1]
    theirs = trial._answers(engines[0], texts, None)
    for engine in engines:
        engine.dtype = "float32"
    again, other = (trial._answers(engine, texts, theirs.tokens) for engine in engines)
    assert trial._difference(engines[0], texts, again, theirs) == ""
    assert re.fullmatch(r"its entropies are [\d.]+ nats off .*", trial._difference(engines[1], texts, other, theirs))
    unseen = replace(other, signals=theirs.signals)  # as a decoder may go wrong where the scorer does not
    assert re.fullmatch(
        r"its greedy tokens differ .* first after \d+ tokens of text",
        trial._difference(engines[1], texts, unseen, theirs),
    )


@pytest.mark.parametrize(("window", "length"), [(None, 64), (20, 64), (70, 86), (200, 64)])
def test_case_24_texts_are_longer_than_a_window_that_the_context_has_room_for(
    pair: tuple[Path, Path], window: int | None, length: int
) -> None:
    engine = TransformersEngine(*pair)
    engine.context = 128
    engine.configs[1].sliding_window = window
    assert [len(text) for text in trial._texts(engine)] == [length] * 2


@pytest.mark.slow
def test_case_24_a_trial_that_dies_is_a_refusal() -> None:
    assert trial._tried({"what": 7}).startswith("its process ended with code 1 (TypeError")


@pytest.mark.slow
def test_case_24_vllm_itself_is_asked(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = settings.load()
    assert engine_of(cell(pair), loaded)[0] == "vllm"
    wrapped, scaled = (shapes.pair(tmp_path / shape, shape) for shape in ("gemma wrapped", "granite scaled"))
    with pytest.warns(UserWarning, match="Gemma3ForConditionalGeneration: vLLM is tried on this pair"):
        engine, why = engine_of(cell(wrapped), loaded)
    assert engine == "transformers" and "Gemma3ForConditionalGeneration" in why
    with pytest.warns(UserWarning, match="GraniteForCausalLM: vLLM is tried"):
        assert engine_of(cell(scaled), loaded)[0] == "vllm"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*vLLM is tried on this pair")
def test_case_24_a_shape_that_vllm_runs_otherwise_is_left_to_transformers_and_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded, cohere = settings.load(), shapes.pair(tmp_path, "cohere scaled")
    engine, why = engine_of(cell(cohere), loaded)
    assert engine == "transformers"
    assert "not for this pair: its greedy tokens differ from those of transformers, first after" in why
    with pytest.raises(SalvageError, match=r"engine vllm is not for this pair: its greedy tokens .*engine trans"):
        engine_of(cell(cohere, "vllm"), loaded)


@pytest.mark.slow
def test_case_24_what_the_trial_cannot_know_is_left_to_the_start(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("vllm: {memory: 0.000001}\n")
    loaded = settings.load()
    assert engine_of(cell(pair), loaded)[0] == "vllm"
    with pytest.raises(SalvageError, match=r"raise vllm\.memory"):
        open_engine(cell(pair), loaded, ancestor=True).room()  # type: ignore[attr-defined]


def test_a_table_of_chats_owes_its_tokens_to_the_template_and_one_of_plain_prompts_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = settings.load()
    pairs = [
        shapes.pair(tmp_path / name, "llama", template=template)
        for name, template in (("a", shapes.CHATML), ("b", shapes.CHATML), ("c", "{{ messages[0].content }}"))
    ]
    marks = [engine_mark(cell(some, "transformers"), loaded, CHAT) for some in pairs]
    assert marks[0] == marks[1] != marks[2]
    assert engine_mark(cell(pairs[0], "transformers"), loaded, PLAIN) == ["transformers", {}] == marks[0][:2]


def test_a_prompt_that_the_template_refuses_is_named_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    some = shapes.pair(tmp_path, "llama", template=shapes.CHATML)
    engine = open_engine(cell(some, "transformers"), settings.load(), ancestor=False)
    opening.admit(CHAT, engine, 8, "p.jsonl")
    told = json.dumps({"messages": [{"role": "user", "content": "?"}, {"role": "tool", "content": "42"}]})
    with pytest.raises(SalvageError, match=r"p\.jsonl: row 0: problem 'a': .*no tool may speak"):
        opening.admit(CHAT.assign(messages=told), engine, 8, "p.jsonl")
    with pytest.raises(SalvageError, match=r"p\.jsonl: row 0, problem 'a': a prompt of \d+ tokens .* context of 128"):
        opening.admit(CHAT, engine, 120, "p.jsonl")


def test_a_table_owes_to_an_adapter_s_base_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base, folder = tmp_path / "base", tmp_path / "mine"
    for path in (base, folder):
        path.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    mine = cell((folder, base))
    assert weights(mine, ancestor=False) == [folder, base] == weights(mine, ancestor=True)
    assert weights(cell((base, tmp_path / "older")), ancestor=False) == [base]
