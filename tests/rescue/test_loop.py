"""The closed loop: it ends, spends no more than it may, resumes after a kill, and survives its verifiers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.lab import task
from salvage.project import settings
from salvage.project.settings import Settings
from salvage.rescue import comparison
from salvage.rescue.loop import Budget, Outcome, pair, rescue
from scripted import fitted
from worlds import in_place_of_auto

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def loaded() -> Settings:
    """Params with short rollouts: the tiny models never end one."""
    found = settings.load(ROOT / "params.yaml")
    in_place_of_auto(found.raw)["sample"] |= {"max_tokens": 12, "batch": 64}
    found.raw["rescue"]["budgets"] = [2, 4, 6]
    found.raw["evaluate"]["resamples"] = 300
    return found


def expressions(n: int, verifier: str = "exact", answer: str = "9") -> pd.DataFrame:
    import random

    drawn = task.expressions(n, random.Random(1), judged=True, distinct=True)
    row = {"task": "digits", "answer": answer, "verifier": verifier, "metadata": ""}
    return pd.DataFrame([{"problem_id": f"p{i}", "prompt": f"{e}:", **row} for i, e in enumerate(drawn)])[
        ["problem_id", "task", "prompt", "answer", "verifier", "metadata"]
    ]


USER = '''
def last(problem, text):
    """A third of the texts are right; one problem breaks it."""
    if problem["problem_id"] == "p3":
        raise ValueError("cannot read this")
    return sum(map(ord, text)) % 3 == 0
'''


@pytest.fixture()
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcomes(models: tuple[Path, Path], loaded: Settings, table: pd.DataFrame, **how: Any) -> list[Outcome]:
    how = {"policy": fitted(), "budget": Budget(6), "settings": loaded} | how
    return list(rescue(table, pair(*map(str, models), engine="transformers"), **how))


@pytest.mark.parametrize("policy", ["rule", "fixed", "portfolio", None])
@pytest.mark.parametrize(
    "budget", [Budget(5), Budget(40, "tokens"), Budget(50, in_all=True), Budget(400, "tokens", True)]
)
def test_every_problem_ends_once_within_the_budget(
    here: Path, pair: tuple[Path, Path], loaded: Settings, policy: str | None, budget: Budget
) -> None:
    table = expressions(12, "mine:last")
    done = outcomes(pair, loaded, table, policy=fitted(policy) if policy else None, budget=budget)
    assert sorted(o.problem_id for o in done) == sorted(table["problem_id"])
    assert {o.status for o in done if o.problem_id != "p3"} <= {"solved", "spent"}
    spent = [len(o.attempts) if budget.unit == "attempts" else o.model_tokens for o in done]
    over = 0 if budget.unit == "attempts" else 12  # half an attempt of two models, 12 tokens each
    assert (sum(spent) if budget.in_all else max(spent)) <= budget.amount + over
    if {o.status for o in done} - {"solved", "unverified"}:
        assert (sum(spent) if budget.in_all else max(spent)) >= budget.amount - over
    for o in done:
        assert o.model_tokens == sum(a.model_tokens for a in o.attempts)
        assert all(a.correct is False for a in o.attempts[:-1])
        assert (o.status == "solved") == (bool(o.attempts) and o.attempts[-1].correct is True) == (o.answer is not None)
        if policy and len(o.attempts) > 1:
            assert o.why["policy"] == policy and o.failure["junction"] < len(o.failure["tokens"])
            assert o.scored_tokens > 0


def test_the_same_call_gives_the_same_lines_and_a_torn_file_is_mended(
    here: Path, pair: tuple[Path, Path], loaded: Settings
) -> None:
    table, out = expressions(10, "mine:last"), here / "out.jsonl"
    whole = [o.line() for o in outcomes(pair, loaded, table, policy=fitted("portfolio"), out=out)]
    assert out.read_text().splitlines() == whole
    assert whole == [o.line() for o in outcomes(pair, loaded, table, policy=fitted("portfolio"))]
    record = here / ".out.jsonl.record"
    waves = record.read_bytes().splitlines(keepends=True)
    for kept in (1, 2, len(waves)):  # killed in the middle of a wave, and of a line of the outcomes
        record.write_bytes(b"".join(waves[:kept]) + b'{"asked": [["p')
        told = out.read_bytes().splitlines(keepends=True)
        out.write_bytes(b"".join(told[: min(len(told), 2 * (kept - 1))]) + b'{"cell": "sp')
        again = outcomes(pair, loaded, table, policy=fitted("portfolio"), out=out)
        assert [o.line() for o in again] == whole == out.read_text().splitlines()
        assert record.read_bytes() == b"".join(waves)


def test_another_job_does_not_go_on_in_this_ones_file(here: Path, pair: tuple[Path, Path], loaded: Settings) -> None:
    table, out = expressions(4), here / "out.jsonl"
    outcomes(pair, loaded, table, out=out)
    with pytest.raises(SalvageError, match="other models, problems, settings or policy"):
        outcomes(pair, loaded, table, out=out, budget=Budget(7))
    (here / ".out.jsonl.record").unlink()
    with pytest.raises(SalvageError, match="no record beside it"):
        outcomes(pair, loaded, table, out=out)


def test_a_problem_without_a_verdict_is_marked_and_the_rest_go_on(
    here: Path, pair: tuple[Path, Path], loaded: Settings
) -> None:
    done = {o.problem_id: o for o in outcomes(pair, loaded, expressions(6, "mine:last"))}
    assert done["p3"].status == "unverified" and "cannot read this" in done["p3"].trouble
    assert len(done["p3"].attempts) == 1 and done["p3"].attempts[0].correct is None
    assert {o.status for name, o in done.items() if name != "p3"} <= {"solved", "spent"}


def test_retry_alone_is_plain_sampling(pair: tuple[Path, Path], loaded: Settings) -> None:
    done = outcomes(pair, loaded, expressions(5), policy=None, budget=Budget(4))
    assert {a.operator for o in done for a in o.attempts[1:]} <= {"retry"}
    assert all(o.scored_tokens == 0 and not o.why for o in done)


def test_at_a_high_price_the_portfolio_stops(here: Path, pair: tuple[Path, Path], loaded: Settings) -> None:
    done = outcomes(pair, loaded, expressions(8, answer="never"), policy=fitted("portfolio"), price=2.0)
    assert {o.status for o in done} == {"stopped"} and {len(o.attempts) for o in done} == {1}


# ------------------------------------------------------------------ arms


@pytest.mark.parametrize("engine", ["transformers", pytest.param("auto", marks=pytest.mark.slow)])
def test_arms_run_side_by_side_and_finished_cells_are_kept(
    here: Path, pair: tuple[Path, Path], loaded: Settings, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    from salvage.rescue.loop import pair as own

    arms = {"retry": None, "rule": fitted(), "portfolio": fitted("portfolio")}
    monkeypatch.setattr(comparison, "fit_arms", lambda settings, names: {name: arms[name] for name in names})
    cell, table = own(*map(str, pair), engine=engine), expressions(14, "mine:last")
    told = comparison.compare(loaded, {cell.name: (cell, table)}, list(arms), here / "tables", quiet=True)
    assert {(r["arm"], r["budget"]) for r in told} == {(a, b) for a in arms for b in (2, 4, 6)}
    path = here / "tables" / cell.file
    made = path.read_bytes()
    kept = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert kept and all(line["failure"]["tokens"] and "times" not in line for line in kept)
    monkeypatch.setattr(comparison, "open_engine", None)  # nothing is decoded again
    assert comparison.compare(loaded, {cell.name: (cell, table)}, list(arms), here / "tables", quiet=True) == told
    assert path.read_bytes() == made


# ------------------------------------------------------------------ killed


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_outcomes(here: Path, pair: tuple[Path, Path]) -> None:
    (here / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace("batch: 512", "batch: 16"))
    lines = [
        {"problem_id": row.problem_id, "prompt": row.prompt, "answer": "x", "verifier": "mine:last"}
        for row in expressions(40).itertuples()
    ]
    (here / "problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "-m", "salvage", "rescue", "--specialist", str(pair[0]), "--ancestor", str(pair[1])]
    command += ["--engine", "transformers"]
    command += ["--problems", "problems.jsonl", "--policy", "retry", "--attempts", "12", "--traces", "0"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{here}/mlflow.db"}

    def start(out: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--out", out],
            cwd=here,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    whole = start("whole.jsonl")
    said, _ = whole.communicate(timeout=200)
    assert whole.returncode == 1 and "1 without a verdict, the first 'p3'" in said, said
    killed, record = start("killed.jsonl"), here / ".killed.jsonl.record"
    deadline = time.monotonic() + 100
    while (not record.exists() or record.read_bytes().count(b"\n") < 4) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    done = (here / "killed.jsonl").read_text().count("\n") if (here / "killed.jsonl").exists() else 0
    assert done < 40, "it was killed too late to show anything"
    again = start("killed.jsonl")
    said, _ = again.communicate(timeout=200)
    assert again.returncode == 1, said
    assert (here / "killed.jsonl").read_text() == (here / "whole.jsonl").read_text()
