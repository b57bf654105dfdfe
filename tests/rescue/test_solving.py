"""`salvage rescue`: which models and problems are meant, what is told meanwhile and at the end, what is written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest

from salvage.engine.fitting import Fit
from salvage.engine.looking import Finding
from salvage.errors import SalvageError
from salvage.project import tracking
from salvage.project.settings import LAB_PROBLEMS, Cell, Settings
from salvage.rescue import choosing, comparison, solving
from salvage.rescue.loop import Attempt, Budget, Outcome, pair
from scripted import Scripted, built_in, fitted, problems

LAB = Cell("x-sft-0|digits", "models/s", "models/b", LAB_PROBLEMS, "sft", 0, "x", "transformers")
OWN = Cell("mine|maths", "my/s", "my/b", "maths.jsonl", "unknown", 0, "own", "transformers")


@pytest.fixture()
def loaded() -> Settings:
    rescue = {"arms": ["retry", "rule"], "budgets": [2], "shown": 2}
    found = built_in(rescue=rescue, evaluate={"resamples": 20})
    found.raw["profiles"] = {found.profile: {"problems": 5, "rescue": 4}}
    return replace(found, cells=[LAB, OWN])


@pytest.fixture()
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in a folder with a store of MLflow's in it; a database would take seconds to make."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    monkeypatch.setattr(solving.fitting, "fit", None)  # nothing is `auto`; it would look for the models on a hub
    monkeypatch.chdir(tmp_path)
    tracking.connect()
    return tmp_path


def logged() -> list[dict[str, float]]:
    """Return the metrics of every run of the store."""
    return [dict(run.data.metrics) for run in mlflow.search_runs(output_format="list")]


def outcome(problem: str = "p0", status: str = "solved", tokens: int = 10, **more: Any) -> Outcome:
    solved = status == "solved"
    right = None if status == "unverified" else solved
    attempts = [Attempt("sample", right, tokens, -1, "text")]
    told: dict[str, Any] = {"cell": "c", "problem_id": problem, "prompt": "1+2:", "reference": "3", "status": status}
    told |= {"answer": "text" if solved else None, "operator": "sample" if solved else None, "attempts": attempts}
    told |= {"model_tokens": tokens, "scored_tokens": 0, "why": {}, "failure": {}}
    return Outcome(**(told | {"times": [("sample", 10**18, 10**18 + 1), ("verify", 10**18, 10**18 + 2)]} | more))


# ------------------------------------------------------------------ which models, which problems


@pytest.mark.parametrize(
    ("cell", "specialist", "ancestor"), [(LAB.name, "s", "b"), (LAB.name, "s", ""), (LAB.name, "", "b")]
)
def test_a_cell_and_a_pair_are_too_many(loaded: Settings, cell: str, specialist: str, ancestor: str) -> None:
    with pytest.raises(SalvageError, match=r"--cell names a pair of params\.yaml; leave --specialist"):
        choosing.choose(loaded, cell, specialist, ancestor, "", "auto")


@pytest.mark.parametrize(("specialist", "ancestor"), [("", ""), ("s", ""), ("", "b")])
def test_half_a_pair_is_too_few(loaded: Settings, specialist: str, ancestor: str) -> None:
    with pytest.raises(SalvageError, match="a pair of models is needed: --specialist with --ancestor, or --cell"):
        choosing.choose(loaded, "", specialist, ancestor, "", "auto")


def test_a_cell_that_nobody_knows_is_named(loaded: Settings) -> None:
    with pytest.raises(SalvageError, match=r"cell 'x' is not one of x-sft-0\|digits, mine\|maths; correct --cell"):
        choosing.choose(loaded, "x", "", "", "", "auto")


def test_ones_own_pair_needs_problems(loaded: Settings, tmp_path: Path) -> None:
    for cell, specialist, ancestor in (("", "s", "b"), (OWN.name, "", "")):
        with pytest.raises(SalvageError, match="--problems is missing"):
            choosing.choose(loaded, cell, specialist, ancestor, "", "auto")
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"problem_id": x, "prompt": "1+1:", "answer": "2"}) + "\n" for x in "xy"))
    assert choosing.choose(loaded, "", "m/s", "m/b", str(file), "vllm")[1]["problem_id"].tolist() == ["x", "y"]
    mine, table = choosing.choose(loaded, "", "m/s", "m/b", str(file), "vllm", limit=1)
    assert mine == pair("m/s", "m/b", engine="vllm") and table["problem_id"].tolist() == ["x"]
    mine, table = choosing.choose(loaded, OWN.name, "", "", f"{file}?limit=1", "auto")
    assert mine is OWN and table["problem_id"].tolist() == ["x"]


def test_a_lab_cell_has_held_out_problems_unless_others_are_given(loaded: Settings, tmp_path: Path) -> None:
    mine, table = choosing.choose(loaded, LAB.name, "", "", "", "auto")
    assert mine is LAB and table.equals(comparison.held_out(LAB, loaded, 4)) and len(table) == 4
    assert choosing.choose(loaded, LAB.name, "", "", "", "auto", limit=3)[1].equals(table.head(3))
    assert choosing.choose(loaded, LAB.name, "", "", "", "auto", limit=9)[1].equals(table)
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps({"problem_id": "x", "prompt": "1+1:", "answer": "2"}) + "\n")
    assert choosing.choose(loaded, LAB.name, "", "", str(file), "auto")[1]["problem_id"].tolist() == ["x"]


# ------------------------------------------------------------------ the pair is looked at first


@pytest.fixture()
def looked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Find no fault with any pair; return what was looked at."""
    seen: list[Any] = []

    def look(*pair: Any, problems: list[dict[str, Any]]) -> Iterator[Finding]:
        seen.append((*pair, problems))
        yield Finding("models", len(seen) < 9, "its weights are torn")

    monkeypatch.setattr(solving, "look", look)
    return seen


def test_a_pair_that_cannot_run_is_refused(loaded: Settings, looked: list[Any]) -> None:
    table = problems(2)
    assert solving.ready(OWN, loaded, table, quiet=False) is OWN
    assert looked == [("my/s", "my/b", "transformers", loaded["vllm"], table.to_dict("records"))]
    looked += [None] * 8
    with pytest.raises(SalvageError, match="its weights are torn"):
        solving.ready(OWN, loaded, table, quiet=False)


def test_what_is_auto_is_fitted_to_a_pair_and_told(
    loaded: Settings,
    looked: list[Any],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []

    def fit(cell: Cell, settings: Settings, problems: list[dict[str, Any]]) -> Fit:
        asked.append((cell, settings, problems))
        return Fit({"max_tokens": 5, "batch": 6}, ["max_tokens 5 (short)", "batch 6 (small)"])

    monkeypatch.setattr(solving.fitting, "fit", fit)
    loaded.raw["sample"] |= {"max_tokens": "auto", "batch": "auto"}
    mine, table = replace(OWN, own=(("warmup", 1),)), problems(2)
    made = solving.ready(mine, loaded, table, quiet=False)
    assert made == replace(mine, own=(("warmup", 1), ("max_tokens", 5), ("batch", 6)))
    assert asked == [(mine, loaded, table.to_dict("records"))]
    assert capsys.readouterr().out == "rescue: fitted to the pair: max_tokens 5 (short), batch 6 (small)\n"
    assert solving.ready(mine, loaded, table, quiet=True) == made and capsys.readouterr().out == ""
    _, loop = solve(loaded, monkeypatch, outcome(), quiet=True)
    assert loop.how[0][1].own == (("max_tokens", 5), ("batch", 6))


# ------------------------------------------------------------------ solving


class Asked:
    """Takes the loop's place: gives the outcomes that it is told and keeps what it is asked."""

    def __init__(self, *given: Outcome) -> None:
        self.given, self.how = given, list[tuple[Any, ...]]()

    def __call__(self, problems: Any, cell: Cell, policy: Any, budget: Budget, **how: Any) -> Iterator[Outcome]:
        self.how.append((problems, cell, policy, budget, how))
        yield from self.given


def solve(loaded: Settings, monkeypatch: pytest.MonkeyPatch, *given: Outcome, **how: Any) -> tuple[int, Asked]:
    asked = Asked(*given)
    monkeypatch.setattr(solving, "rescue", asked)
    how = {"policy": "retry", "budget": Budget(3), "price": 0.0, "out": Path("o.jsonl"), "traced": 0.0} | how
    how = {"quiet": False} | how
    monkeypatch.setattr(solving, "look", lambda *pair, **how: iter(()))
    return solving.solve(loaded, OWN, problems(max(len(given), 1)), **how), asked


@pytest.mark.parametrize(
    ("policy", "known"),
    [("retry", None), ("", "models:/salvage-router@champion"), ("mine.json", "mine.json"), ("models:/a/1",) * 2],
)
def test_the_loop_is_asked_as_was_said(
    loaded: Settings, monkeypatch: pytest.MonkeyPatch, store: Path, policy: str, known: str | None
) -> None:
    price = 0.0 if policy == "retry" else 0.25
    none, asked = solve(loaded, monkeypatch, outcome(), policy=policy, price=price)
    ((table, cell, told, budget, how),) = asked.how
    assert (cell, told, budget, len(table)) == (OWN, known, Budget(3), 1) and none == 0
    assert how == {"price": price, "out": Path("o.jsonl"), "settings": loaded}


def test_a_price_says_nothing_to_retries(loaded: Settings, monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    with pytest.raises(SalvageError, match="--price is what a policy weighs chances against, and retry knows none"):
        solve(loaded, monkeypatch, policy="retry", price=0.1)


def test_how_many_have_no_verdict_is_told_and_returned(
    loaded: Settings, monkeypatch: pytest.MonkeyPatch, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [outcome(), outcome("p1", "unverified", trouble="it broke"), outcome("p2", "unverified", trouble="again"),
             outcome("p3", "spent")]  # fmt: skip
    assert solve(loaded, monkeypatch, *given, quiet=True)[0] == 2
    assert capsys.readouterr().out == "rescue: 2 without a verdict, the first 'p1': it broke\n"
    assert solve(loaded, monkeypatch, given[0], quiet=True)[0] == 0
    assert capsys.readouterr().out == ""


def test_the_end_is_a_table_and_where_outcomes_are(
    loaded: Settings, monkeypatch: pytest.MonkeyPatch, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 101.0, 104.0])  # the start, one ends, all have
    monkeypatch.setattr(solving, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert solve(loaded, monkeypatch, outcome(tokens=1200), out=Path("deep/o.jsonl"))[0] == 0
    said = capsys.readouterr().out
    assert "1 problems, 1,200 model-tokens (0 more to score failures), 4 s" in said and "ended" in said
    shown = "rescue: outcomes in deep/o.jsonl; read a failure with: salvage show PROBLEM --outcomes deep/o.jsonl"
    assert said.splitlines()[-1] == shown


def progress(loaded: Settings, monkeypatch: pytest.MonkeyPatch, seconds: list[float], **how: Any) -> None:
    """Solve problems of which one ends at each of these seconds."""
    clock = iter([0.0, *seconds, seconds[-1]])
    monkeypatch.setattr(solving, "time", SimpleNamespace(monotonic=lambda: next(clock, seconds[-1])))
    given = [outcome(f"p{i}", "solved" if i % 2 else "spent", 600) for i in range(len(seconds))]
    solve(loaded, monkeypatch, *given, **how)


def test_progress_is_told_every_ten_seconds_where_no_terminal_shows_it(
    loaded: Settings, monkeypatch: pytest.MonkeyPatch, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # the clock is read again where a line is told: from 10.5 (read twice) the next is due after 20.5
    progress(loaded, monkeypatch, [3.0, 10.0, 10.5, 10.5, 20.5, 20.75, 20.75])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("rescue: ") and " ended, " in line]
    assert told == [
        "rescue: 3 of 7 ended, 1 solved, 1,800 model-tokens", "rescue: 5 of 7 ended, 2 solved, 3,000 model-tokens",
    ]  # fmt: skip
    progress(loaded, monkeypatch, [3.0, 20.0, 20.0, 40.0], quiet=True)
    assert "ended" not in capsys.readouterr().out


def test_on_a_terminal_the_bar_tells_it(
    loaded: Settings, monkeypatch: pytest.MonkeyPatch, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    class Bar:
        console = SimpleNamespace(is_terminal=True)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def add_task(self, name: str, total: int) -> int:
            seen.append((name, total))
            return 7

        def update(self, task: int, advance: int, description: str) -> None:
            seen.append((task, advance, description))

    monkeypatch.setattr(solving, "bar", lambda quiet: Bar())
    progress(loaded, monkeypatch, [30.0, 60.0])
    assert " ended, " not in capsys.readouterr().out
    assert seen == [("rescue", 2), (7, 1, "rescue: 0 solved, 600 model-tokens"),
                    (7, 1, "rescue: 1 solved, 1,200 model-tokens")]  # fmt: skip


def test_a_run_has_what_was_spent_and_how_problems_ended_and_a_share_has_traces(
    loaded: Settings, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    given = [outcome("p0", tokens=3, scored_tokens=5), outcome("p1", "spent", 4), outcome("p2", "spent", 5)]
    solve(loaded, monkeypatch, *given, traced=1.0, quiet=True)
    assert logged() == [{"solved": 1.0, "spent": 2.0, "model_tokens": 12.0, "scored_tokens": 5.0}]
    traces = mlflow.search_traces(return_type="list", include_spans=False)
    assert len(traces) == 3 and {t.info.tags["salvage.status"] for t in traces} == {"solved", "spent"}
    solve(loaded, monkeypatch, *given, traced=0.0, quiet=True)
    assert len(mlflow.search_traces(return_type="list", include_spans=False)) == 3 and len(logged()) == 2


def test_solving_needs_no_mlflow(
    loaded: Settings, monkeypatch: pytest.MonkeyPatch, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(solving.extras, "has", lambda extra: False)
    assert solve(loaded, monkeypatch, outcome(), traced=1.0, quiet=True)[0] == 0
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert logged() == [] and capsys.readouterr().out == ""


# ------------------------------------------------------------------ the summary


def test_the_summary_tells_how_problems_ended_and_what_the_solved_are_owed_to() -> None:
    steered = [Attempt("sample", False, 8, -1, ""), Attempt("dense_steer", True, 20, 0, "")]
    done = [
        outcome("a", "spent", 40, attempts=[Attempt("sample", False, 20, -1, "")] * 2, scored_tokens=7),
        outcome("b", "spent", 43, scored_tokens=2000),
        outcome("c", "spent", 44),
        outcome("d", "solved", 28, operator="dense_steer", attempts=steered),
        outcome("e", "solved", 9),
        outcome("f", "solved", 12),
        outcome("g", "unverified", 1000),
    ]
    table = solving.summary(done, 12.6)
    assert str(table.title) == "7 problems, 1,176 model-tokens (2,007 more to score failures), 13 s"
    assert [str(column.header) for column in table.columns] == [
        "ended", "by", "problems", "attempts each", "model-tokens each",
    ]  # fmt: skip
    assert [column.justify for column in table.columns] == ["left", "left", "right", "right", "right"]
    rows = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    assert rows == [
        ("solved", "sample", "2", "1.0", "10"),
        ("solved", "dense_steer", "1", "2.0", "28"),
        ("spent", "", "3", "1.3", "42"),
        ("unverified", "", "1", "1.0", "1000"),
    ]


def test_the_solved_come_first_though_fewer() -> None:
    done = [outcome("a", "spent"), outcome("b", "spent"), outcome("c")]
    assert list(map(str, solving.summary(done, 1).columns[0].cells)) == ["solved", "spent"]


# ------------------------------------------------------------------ the comparison


@pytest.fixture()
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Scripted]:
    made: list[Scripted] = []

    def open_engine(cell: Cell, settings: Settings, *, ancestor: bool) -> Scripted:
        made.append(Scripted())
        return made[-1]

    arms = {"retry": None, "rule": fitted()}
    monkeypatch.setattr(comparison, "open_engine", open_engine)
    monkeypatch.setattr(comparison, "fit_arms", lambda settings, names: {name: arms[name] for name in names})
    return made


def test_arms_are_compared_on_ones_own_pair(
    loaded: Settings, engines: list[Scripted], looked: list[Any], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, table = pair("a/s", "a/b", engine="transformers"), problems(5)
    rows = solving.compare(loaded, mine, table, ["rule"], quiet=False)
    assert [(r["cells"], r["arm"], r["budget"], r["problems"]) for r in rows] == [
        ("all", "retry", 2, 5), ("all", "rule", 2, 5),
    ]  # fmt: skip
    assert logged() == [{"rescue/retry/budget2": rows[0]["solved"], "rescue/rule/budget2": rows[1]["solved"]}]
    assert capsys.readouterr().out == "rescue: s done\n" and looked[0][:2] == ("a/s", "a/b")
    assert [p.name for p in Path("data/shards/compare").iterdir() if p.suffix == ".parquet"] == ["s.parquet"]
    assert solving.compare(loaded, mine, table, ["rule"], quiet=True) == rows and capsys.readouterr().out == ""


def stage(loaded: Settings, *, quiet: bool) -> list[dict[str, Any]]:
    with tracking.run("rescue"):
        return solving.compare_stage(loaded, quiet=quiet)


def test_the_stage_writes_rows_views_and_traces_of_its_lab_cells(
    loaded: Settings, engines: list[Scripted], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded.raw["profiles"][loaded.profile]["rescue"] = 6
    stale = store / "data/rescue/another.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_text("x")
    assert solving.saved_rows() == []
    rows = stage(loaded, quiet=True)
    assert {(r["arm"], r["problems"]) for r in rows} == {("retry", 6), ("rule", 6)} and not stale.exists()
    assert solving.saved_rows() == rows == json.loads((store / "metrics/rescue.json").read_text())
    assert sorted(p.name for p in stale.parent.iterdir()) == [
        "views.json", "x-sft-0--digits.jsonl", "x-sft-0--digits.parquet",
    ]  # fmt: skip
    kept = [json.loads(line) for line in (stale.parent / "x-sft-0--digits.jsonl").read_text().splitlines()]
    views = json.loads((stale.parent / "views.json").read_text())
    assert len(kept) == 2 and views == [solving.view(told) for told in kept]
    assert logged() == [{"rescue/retry/budget2": rows[0]["solved"], "rescue/rule/budget2": rows[1]["solved"]}]
    traces = mlflow.search_traces(return_type="list")
    assert {s.name for t in traces for s in t.data.spans if s.parent_id is None} == {
        f"rescue {told['problem_id']}" for told in kept
    }
    assert len(traces) == 2 and list(comparison.TIMES.iterdir()) == []
    # nothing is traced twice; what a finished cell shows is still shown
    assert stage(loaded, quiet=True) == rows and len(engines) == 1
    assert len(mlflow.search_traces(return_type="list", include_spans=False)) == 2
    assert json.loads((stale.parent / "views.json").read_text()) == views and capsys.readouterr().out == ""


@pytest.mark.parametrize(("cells", "n"), [([OWN], 4), ([LAB], 0), ([], 0)])
def test_a_stage_without_a_lab_cell_says_how_to_compare_and_leaves_empty_files(
    loaded: Settings,
    engines: list[Scripted],
    store: Path,
    capsys: pytest.CaptureFixture[str],
    cells: list[Cell],
    n: int,
) -> None:
    loaded.raw["profiles"][loaded.profile]["rescue"] = n
    assert stage(replace(loaded, cells=cells), quiet=False) == []
    assert capsys.readouterr().out == (
        "rescue: no lab cell to compare on; for one's own pair: salvage rescue --specialist ... --compare ...\n"
    )
    assert json.loads((store / "metrics/rescue.json").read_text()) == []
    assert json.loads((store / "data/rescue/views.json").read_text()) == []
    assert stage(replace(loaded, cells=cells), quiet=True) == [] and engines == []
    assert capsys.readouterr().out == ""


def test_a_view_is_the_failure_with_what_was_tried() -> None:
    look = {"tokens": ["1"], "j": [0.5], "junction": 0, "features": {"spread": 1.0}, "alternatives": {"ancestor": []}}
    told = json.loads(outcome(failure=look, why={"policy": "rule", "margin": 1.0}).line())
    assert solving.view(told) == look | {
        "cell": "c", "problem_id": "p0", "prompt": "1+2:", "status": "solved", "answer": "3", "policy": "rule",
        "attempts": [asdict(Attempt("sample", True, 10, -1, "text"))],
    }  # fmt: skip


# ------------------------------------------------------------------ the verdict


def row(arm: str, budget: int, low: float | None, cells: str = "all") -> dict[str, Any]:
    told = {"cells": cells, "arm": arm, "budget": budget, "problems": 9, "solved": 0.5}
    told |= dict.fromkeys(("over_retry", "over_retry_low", "over_retry_high"), low)
    return told | dict.fromkeys(("low", "high", "model_tokens", "attempts", "scored_tokens"), 1.0)


def test_an_arm_beats_retry_from_the_budget_on_after_which_it_always_does() -> None:
    rows = [row("retry", b, None) for b in (4, 8, 16)]
    rows += [row("rule", b, low) for b, low in ((16, 0.01), (4, 0.1), (8, -0.1))]  # in any order
    rows += [row("portfolio", b, 0.1) for b in (4, 8, 16)] + [row("fixed", b, low) for b, low in ((4, 0.2), (16, 0.0))]
    rows += [row("fixed", 16, 0.3, cells="x-*"), row("rule", 16, -0.3, cells="x-*")]
    assert solving.verdict(rows) == (
        "beats retry, interval above zero: rule from a budget of 16 retries on; "
        "portfolio from a budget of 4 retries on; fixed at no budget"
    )


def test_metrics_are_of_all_cells_together() -> None:
    rows = [row("retry", 4, None), row("rule", 8, 0.1) | {"solved": 0.75}, row("rule", 8, 0.1, cells="x-*")]
    assert solving.metrics(rows) == {"rescue/retry/budget4": 0.5, "rescue/rule/budget8": 0.75}


def test_rows_are_shown_with_their_verdict_and_none_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    solving.show([])
    assert capsys.readouterr().out == ""
    solving.show([row("retry", 4, None), row("rule", 4, 0.1)])
    said = capsys.readouterr().out
    assert "The closed loop within a budget" in said
    assert said.splitlines()[-1] == "beats retry, interval above zero: rule from a budget of 4 retries on"
