"""Which engine a pair gets under `auto`, and what a table owes to it, its models and its template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import shapes
from salvage.engine import opening, trial
from salvage.engine.opening import engine_mark, engine_of, open_engine, weights
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


def test_case_24_auto_falls_back_where_vllm_refuses_the_pair_says_why_and_asks_once(
    pair: tuple[Path, Path], asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = settings.load()
    assert engine_of(cell(pair), loaded)[0] == "vllm" and not asked  # shapes that vLLM is known to run
    monkeypatch.setattr(trial, "KNOWN", set())
    engine, why = engine_of(cell(pair), loaded)
    assert engine == "transformers"
    assert why.startswith(
        "vllm 0.32.0 is installed, but it does not run this pair: head size 20 is not supported (kept"
    )
    assert engine_of(cell(pair), loaded) == (engine, why) and len(asked) == 1
    assert engine_mark(cell(pair), loaded, PLAIN) == ["transformers", {}]
    opened = open_engine(cell(pair), loaded, ancestor=True)
    assert type(opened).__name__ == "TransformersEngine"
    assert engine_of(cell(pair[::-1]), loaded)[0] == "transformers" and len(asked) == 2  # another pair
    (kept,) = [p for p in Path("data/cache/engines").iterdir() if str(p) in why]
    kept.unlink()
    monkeypatch.setattr(trial, "_tried", lambda some: "")
    assert engine_of(cell(pair), loaded) == ("vllm", "vllm 0.32.0 is installed")


def test_case_24_who_asks_for_vllm_is_not_given_another(pair: tuple[Path, Path], asked: list[dict[str, Any]]) -> None:
    assert engine_of(cell(pair, "vllm"), settings.load())[0] == "vllm" and not asked


@pytest.mark.slow
def test_case_24_a_trial_that_dies_is_a_refusal() -> None:
    assert trial._tried({"what": 7}).startswith("its process ended with code 1 (TypeError")


@pytest.mark.slow
def test_case_24_vllm_itself_is_asked(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = settings.load()
    assert engine_of(cell(pair), loaded)[0] == "vllm"
    wrapped = shapes.pair(tmp_path, "gemma wrapped")
    engine, why = engine_of(cell(wrapped), loaded)
    assert engine == "transformers" and "Gemma3ForConditionalGeneration" in why


@pytest.mark.slow
def test_case_24_what_the_trial_cannot_know_is_left_to_the_start(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("vllm: {memory: 0.000001}\n")
    loaded = settings.load()
    assert engine_of(cell(pair), loaded)[0] == "vllm"
    with pytest.raises(SalvageError, match=r"raise vllm\.memory"):
        open_engine(cell(pair), loaded, ancestor=True)._cache()  # type: ignore[attr-defined]


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
