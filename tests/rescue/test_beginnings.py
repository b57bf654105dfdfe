"""How a rescue begins: alone on its file, and not barred by a start that came to nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from salvage.engine.base import Completion, Request
from salvage.errors import SalvageError
from salvage.project import settings
from salvage.rescue import loop
from salvage.rescue.loop import Budget, pair, rescue
from worlds import in_place_of_auto

ROOT = Path(__file__).resolve().parents[2]


class Says:
    """An engine that says nine."""

    context: int | None = None
    ends: ClassVar[list[int]] = [9]

    def prompt(self, problem: dict[str, str]) -> list[int]:
        return [ord(c) for c in problem["prompt"]]

    def text(self, tokens: list[int]) -> str:
        return "9"

    def decode(self, requests: list[Request], **_: Any) -> list[Completion]:
        return [Completion([9], 1, 0, 1, -1) for _ in requests]

    def close(self) -> None: ...


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what starts a rescue of two problems, the second of which is never solved."""
    monkeypatch.chdir(tmp_path)
    values = settings.load(ROOT / "params.yaml")
    in_place_of_auto(values.raw)
    lines = [{"problem_id": "a", "prompt": "b", "answer": "9"}, {"problem_id": "c", "prompt": "d", "answer": "8"}]
    Path("problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def begin(specialist: str, *, broken: bool = False) -> Any:
        def open_engine(*_: Any, **__: Any) -> Any:
            if broken:
                raise SalvageError(f"model {specialist!r} cannot be had")
            return Says()

        monkeypatch.setattr(loop, "open_engine", open_engine)
        cell = pair(specialist, "base", engine="transformers")
        return rescue("problems.jsonl", cell, None, Budget(3), out=Path("out.jsonl"), settings=values)

    return begin


def test_case_33_a_start_that_did_nothing_bars_no_other(start: Any) -> None:
    with pytest.raises(SalvageError, match="'wrong' cannot be had"):
        list(start("wrong", broken=True))
    assert Path(".out.jsonl.record").exists()
    assert [o.status for o in start("right")] == ["solved", "spent"]


def test_case_33_nor_one_that_ended_before_its_first_outcome(start: Any) -> None:
    record = Path(".out.jsonl.record")
    record.write_text('{"mark": "of another policy"}\n{"asked": [["a", "sample", 0]], "results": []}\n')
    Path("out.jsonl").touch()
    assert [o.status for o in start("right")] == ["solved", "spent"]
    assert "another policy" not in record.read_text()


def test_a_job_with_outcomes_is_not_written_over(start: Any) -> None:
    going = start("one")
    next(going)
    going.close()
    before = Path("out.jsonl").read_bytes(), Path(".out.jsonl.record").read_bytes()
    with pytest.raises(SalvageError, match="begun with other models, problems, settings or policy"):
        list(start("two"))
    assert (Path("out.jsonl").read_bytes(), Path(".out.jsonl.record").read_bytes()) == before
    assert [o.status for o in start("one")] == ["solved", "spent"]


def test_case_32_two_rescues_with_one_out(start: Any) -> None:
    first = start("one")
    next(first)
    with pytest.raises(SalvageError, match=r"out\.jsonl is being written by another salvage rescue; let it end"):
        list(start("one"))
    assert [o.status for o in first] == ["spent"]
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
    assert [o.status for o in start("one")] == ["solved", "spent"]
    assert len(Path("out.jsonl").read_text().splitlines()) == 2
