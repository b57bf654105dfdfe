"""What is seen of the closed loop in the terminal: a failure, its junction, its route and what came of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from salvage.errors import SalvageError
from salvage.reports import show
from salvage.rescue.loop import Attempt, Outcome

LOOK = {
    "tokens": list("1+2=4"),
    "j": [0.0, 0.2, 0.0, 0.1, 3.0],
    "junction": 4,
    "alternatives": {"specialist": [["4", 0.6], ["3", 0.4]], "ancestor": [["3", 0.8], ["4", 0.2]]},
    "features": {"spread": 0.6, "concentration": 1.2, "logit_dispersion": -0.5},
}
WHY = {
    "policy": "portfolio",
    "policy_version": "abc",
    "operator": "dense_steer",
    "margin": 1.25,
    "z_spread": 2.0,
    "plan": ["dense_steer", "retry"],
    "regime": {"steerable-hard": 0.7, "beyond reach": 0.3},
}


def outcome(**changes: Any) -> Outcome:
    told: dict[str, Any] = {
        "cell": "a|digits",
        "problem_id": "p1",
        "prompt": "1+2:",
        "reference": "3",
        "status": "solved",
        "answer": "1+2=3",
        "operator": "dense_steer",
        "attempts": [Attempt("sample", False, 5, -1, "1+2=4"), Attempt("dense_steer", True, 10, -1, "[red]1+2=3")],
        "model_tokens": 15,
        "scored_tokens": 18,
        "why": WHY,
        "failure": LOOK,
        "times": [
            ("sample", 10**18, 10**18 + 5),
            ("verify", 10**18 + 5, 10**18 + 6),
            ("score", 10**18 + 6, 10**18 + 9),
        ],
    }
    later = 10**18 + 10
    told["times"] += [
        ("route", later, later + 1),
        ("intervene", later + 1, later + 8),
        ("verify", later + 8, later + 9),
    ]
    return Outcome(**(told | changes))


def printed(told: dict[str, Any], **how: Any) -> str:
    console = Console(width=140, record=True, file=io.StringIO(), **how)
    show.show(told, console)
    return console.export_text(styles=bool(how))


def test_a_failure_is_shown_with_its_junction_its_route_and_what_came_of_it() -> None:
    text = printed(json.loads(outcome().line()))
    assert "1+2=▸4◂" in text and "token 4 of 5" in text
    assert "dense_steer by portfolio, z margin 1.25; plan: dense_steer, retry" in text
    assert "70% steerable-hard" in text and "spread 0.60 (z +2.00)" in text
    assert "'3'" in text and "0.800" in text  # what the ancestor would rather have said
    assert "[red]1+2=3" in text  # a model's text is no markup
    assert "solved, 15 model-tokens, 18 more to score" in text
    assert "truncated" not in text


def test_a_rollout_that_met_max_tokens_is_marked() -> None:
    cut = outcome(attempts=[Attempt("sample", False, 5, -1, "1+2=4", truncated=True)], status="spent")
    text = printed(json.loads(cut.line()))
    assert "failed rollout 0, truncated: it met max_tokens" in text and "wrong, truncated" in text


def test_tokens_are_shaded_by_j() -> None:
    shaded = {span.style for span in show.rollout_text(LOOK).spans}
    assert "bold underline black on rgb(213,94,0)" in shaded and len(shaded) == 3


def test_a_problem_that_is_not_there_or_never_failed_is_named(tmp_path: Path) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text(outcome().line() + "\n" + outcome(problem_id="p2", failure={}).line() + "\n" + '{"torn')
    assert show.from_outcomes(file, "p1")["status"] == "solved"
    with pytest.raises(SalvageError, match="'p2' is solved and no failure of it was scored"):
        show.from_outcomes(file, "p2")
    with pytest.raises(SalvageError, match="'p9' is not among its 2 outcomes"):
        show.from_outcomes(file, "p9")
    with pytest.raises(SalvageError, match="no such file"):
        show.from_outcomes(tmp_path / "none.jsonl", "p1")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (
            b'{"problem_id": "p1", "prompt": "x", "answer": "1"}\n',
            "line 1: it is no outcome .* prompt, answer;",
        ),
        (b'[{"problem_id": "p1"}]', "seems to be a JSON array"),
        (b"PAR1....PAR1", "seems to be a Parquet file"),
        (b"problem_id,cell\np1,a\n", "line 1, character 1 is not JSON"),
        (b"", "is empty"),
        (b'{"problem_id": "p1", "pro', "has no whole line yet"),
        (b'"p1"\n', "line 1 is no JSON object"),
        ('{"problem_id": "p1"}\n'.encode("utf-16"), "seems to be UTF-16"),
    ],
)
def test_case_35_another_kind_of_file_is_named(tmp_path: Path, data: bytes, told: str) -> None:
    file = tmp_path / "out.jsonl"
    file.write_bytes(data)
    with pytest.raises(SalvageError, match=rf"out\.jsonl.*{told}"):
        show.from_outcomes(file, "p1")
    with pytest.raises(SalvageError, match="is a folder"):
        show.from_outcomes(tmp_path, "p1")


def test_of_a_long_chat_the_page_shows_the_system_prompt_and_the_question() -> None:
    from salvage.reports import traces

    told = traces._without_middle("[system]\n" + "a" * 3000 + "\n\n[user]\n6*7?")
    assert told.startswith("[system]\naaa") and told.endswith("aaa\n\n[user]\n6*7?") and len(told) < 1600
    assert traces._without_middle("[user]\n6*7?") == "[user]\n6*7?"
