"""What the comparison asks for, arm by arm, and how it reads the answer; on an engine that answers from its seeds."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import scripted
from salvage.engine.base import Request, Sampling
from salvage.errors import SalvageError
from salvage.lab.problems import lab_problems
from salvage.method.profiles import Tallies
from salvage.policies.fitted import Fitted
from salvage.problems.judging import Judge
from salvage.project import settings
from salvage.project.settings import Cell, Settings
from salvage.rescue import comparison
from salvage.rescue.comparison import Shared, _against_retry, _interpolated, _keep_looks, _retry_ahead, _timed
from salvage.rescue.loop import Budget, Loop, Outcome, pair
from salvage.rescue.waves import Waves
from salvage.tables import schema
from salvage.tables.vocabulary import FEATURES, OPERATORS
from scripted import Scripted, built_in, fitted, problems

ROOT = Path(__file__).resolve().parents[2]


def outcome(problem: str, status: str = "spent", tokens: int = 30, **more: Any) -> Outcome:
    made = {"cell": "c", "problem_id": problem, "status": status, "model_tokens": tokens, "scored_tokens": 0}
    made |= {"operator": None, "attempts": [], "prompt": "p", "failure": None, "times": []}
    return SimpleNamespace(**(made | more))  # type: ignore[return-value]


def test_retry_is_followed_four_budgets_beyond_the_largest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Any, int]] = []
    ahead: list[tuple[list[str], int]] = []
    written: list[pd.DataFrame] = []

    class Loop:
        def __init__(self, problems: Any, waves: Any, arm: Any, budget: Any, *, first: int) -> None:
            asked.append((arm, budget.amount))

        def run(self) -> list[Outcome]:
            return [outcome("a", tokens=30), outcome("b", "solved", tokens=900)]

    monkeypatch.setattr(comparison, "open_engine", lambda *a, **k: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(comparison, "Judge", lambda *a, **k: nullcontext())
    monkeypatch.setattr(comparison, "Shared", lambda engine: engine)
    monkeypatch.setattr(comparison, "Waves", lambda *a, **k: None)
    monkeypatch.setattr(comparison, "Loop", Loop)
    monkeypatch.setattr(comparison, "fingerprint", lambda *a, **k: "mark")
    monkeypatch.setattr(comparison.schema, "fingerprint", lambda path: None)
    monkeypatch.setattr(comparison.schema, "write", lambda table, *a: written.append(table))
    monkeypatch.setattr(comparison, "_retry_ahead", lambda *a: ahead.append(([o.problem_id for o in a[4]], a[5])))
    monkeypatch.setattr(comparison, "_keep_looks", lambda *a: None)
    monkeypatch.setattr(comparison, "_timed", lambda o, sampled: o)
    settings = {"rescue": {"rollouts": 1, "verify_seconds": 1, "shown": 2}}
    cell = SimpleNamespace(file="c.parquet", name="c")
    arm = SimpleNamespace(version="v")
    made = comparison._compare(cell, settings, None, {"retry": None, "mine": arm}, [4, 8], tmp_path)  # type: ignore[arg-type]
    assert made
    assert ahead == [(["a"], 12)]
    # the first look, then the shown arm, then retry; a retry is worth what a failure costs (30), not what all do
    assert [(who is arm, amount) for who, amount in asked[1:]] == [
        (True, 240),
        (True, 120),
        *((False, 30 * budget) for budget in range(12, 0, -1)),
    ]
    told = written[0]
    assert sorted(told.loc[told["arm"] == "retry", "budget"].unique()) == list(range(1, 13))
    assert sorted(told.loc[told["arm"] == "mine", "budget"].unique()) == [4, 8]


def test_retries_are_decoded_a_quarter_first_and_the_rest_for_what_still_fails() -> None:
    waves: list[list[tuple[str, int]]] = []

    class Shared:
        prompt = staticmethod(lambda problem: [1])
        text = staticmethod(lambda tokens: "")

        def decode(self, requests: list[Any], **how: Any) -> list[Any]:
            assert how == {"sampling": Sampling(0.7, 0.9, 5), "max_tokens": 9}
            waves.append([])
            assert len({r.seed for r in requests}) == len(requests)
            return [SimpleNamespace(tokens=[])] * len(requests)

    class Judge:
        def verify(self, problems: list[str], texts: list[str]) -> list[Any]:
            waves[-1] = sorted((p, problems.count(p)) for p in set(problems))
            return [SimpleNamespace(correct=p == "a" and i == 1) for i, p in enumerate(problems)]

    settings = type("S", (dict,), {"seed": 0})({"sample": asdict(Sampling(0.7, 0.9, 5)) | {"max_tokens": 9}})
    cell = SimpleNamespace(name="c")
    problems = pd.DataFrame({"problem_id": ["a", "b"], "prompt": "?"})
    _retry_ahead(Shared(), Judge(), cell, settings, [outcome("a"), outcome("b")], 9, problems)  # type: ignore[arg-type]
    assert waves == [[("a", 2), ("b", 2)], [("b", 7)]]


def test_between_points_a_curve_is_a_line_and_beyond_them_unknown() -> None:
    xs, ys = np.array([[1.0, 3.0, 7.0]] * 6), np.array([[0.0, 1.0, 2.0]] * 6)
    told = _interpolated(np.array([1.0, 2.0, 3.0, 6.0, 7.0, 7.1]), xs, ys)
    np.testing.assert_allclose(told, [0, 0.5, 1, 1.75, 2, np.nan])
    assert np.isnan(_interpolated(np.array([0.9]), xs[:1], ys[:1])).all()


def test_points_of_a_curve_may_be_close_or_the_same() -> None:
    """Mean tokens differ by less than one; and not at all where one more budget bought nothing."""
    told = _interpolated(np.array([1.25]), np.array([[1.0, 1.5, 9.0]]), np.array([[0.0, 1.0, 1.0]]))
    np.testing.assert_allclose(told, [0.5])
    told = _interpolated(np.array([2.0, 3.0]), np.array([[2.0, 2.0, 4.0]] * 2), np.array([[0.5, 0.5, 1.0]] * 2))
    np.testing.assert_allclose(told, [0.5, 0.75])


def test_an_arm_is_held_against_retry_at_the_budget_and_at_its_tokens() -> None:
    arms = [("retry", 1), ("retry", 2), ("mine", 1)]
    one = [[0.2, 10.0], [0.4, 20.0], [0.5, 15.0]]
    told = _against_retry(np.array([one] * 9), arms, "mine", 1, 50)
    assert told["solved"] == 0.5 and told["low"] == told["high"] == 0.5 and told["model_tokens"] == 15
    assert told["over_retry"] == pytest.approx(0.3) and told["same_tokens"] == pytest.approx(0.2)
    alone = _against_retry(np.array([one] * 9), arms, "retry", 2, 50)
    assert alone["solved"] == 0.4 and alone["over_retry"] is None and "same_tokens" not in alone
    one[2][1] = 21.0  # more than retry was ever followed to
    assert "same_tokens" not in _against_retry(np.array([one] * 9), arms, "mine", 1, 50)


def test_the_first_rollouts_two_times_are_those_it_took() -> None:
    made: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "replace", lambda o, times: made.append(times))
        _timed(outcome("a", times=[0, 0, 5, 6]), outcome("a", times=[1, 2, 3]))
    assert made == [[1, 2, 5, 6]]


def test_steered_solutions_are_shown_first_then_steered_failures_then_retries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one(name: str, tried: str, by: str | None, failure: Any = True) -> Any:
        attempts = [SimpleNamespace(operator=tried)]
        return outcome(name, attempts=attempts, operator=by, failure=failure, line=lambda: f'{{"id": "{name}"}}')

    steered = comparison.vocabulary.INTERVENTIONS[0]
    rows = [
        one("retried", "retry", "retry"),
        one("unsolved", steered, None),
        one("steered", steered, steered),
        one("right", "retry", None, failure=None),
        one("also", steered, steered),
    ]
    monkeypatch.setattr(comparison, "TIMES", tmp_path / "times")
    _keep_looks(tmp_path / "tables" / "c.parquet", rows, 4)
    lines = (tmp_path / "tables" / "c.jsonl").read_text().splitlines()
    assert lines == [f'{{"id": "{name}"}}' for name in ("steered", "also", "unsolved", "retried")]
    assert (tmp_path / "times" / "c.jsonl").read_text().count('"times"') == 4
    _keep_looks(tmp_path / "tables" / "c.parquet", rows, 1)
    assert (tmp_path / "tables" / "c.jsonl").read_text() == '{"id": "steered"}\n'


# ------------------------------------------------------------------ an engine that answers once


def test_an_engine_that_is_shared_decodes_each_seed_once() -> None:
    engine = Scripted()
    shared = Shared(engine)
    assert shared.context is None and shared.text(shared.encode("1#2")) == "1#2"
    asked = [Request(engine.encode("1+2:"), seed) for seed in (5, 6, 5, 7)]
    how = {"sampling": Sampling(0.5), "max_tokens": 40}
    told = shared.decode(asked, **how)
    assert told == Scripted().decode(asked, **how) and engine.waves == [3]
    assert shared.decode([asked[3], asked[0]], **how) == [told[3], told[0]] and engine.waves == [3, 0]
    more = Request(engine.encode("1+2:"), 8)
    assert shared.decode([more, asked[1]], **how) == Scripted().decode([more, asked[1]], **how)
    assert [r.seed for r in engine.decoded] == [5, 6, 7, 8]
    shared.close()
    assert engine.closed == 1


def test_an_engine_that_is_shared_scores_each_rollout_once() -> None:
    engine = Scripted()
    shared = Shared(engine)
    # the same tokens in a row, parted elsewhere, are another rollout; so is the same text after another prompt
    prompts, texts = [[1], [1, 1], [0], [1], [0, 0]], [[1, 2], [2], [0, 2], [1, 2], [2]]
    how: dict[str, Any] = {"temperature": 0.5, "top_k_cov": 3}
    told = shared.signals(prompts, texts, **how)
    assert engine.scored == [(1, -1, 1, 2), (1, 1, -1, 2), (0, -1, 0, 2), (0, 0, -1, 2)]
    for one, other in zip(told, Scripted().signals(prompts, texts, **how), strict=True):
        np.testing.assert_array_equal(one["j"], other["j"])
    again = shared.signals([[0], [2]], [[0, 2], [1]], **how)
    assert engine.scored[4:] == [(2, -1, 1)] and again[0] is told[2]


@pytest.mark.parametrize("name", ["decode", "signals"])
def test_an_answer_too_few_is_shared_with_nobody(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    engine = Scripted()
    whole = getattr(engine, name)
    monkeypatch.setattr(engine, name, lambda *a, **k: whole(*a, **k)[:-1])
    shared = Shared(engine)
    with pytest.raises(ValueError, match="shorter"):
        if name == "decode":
            shared.decode(
                [Request([1, 10, 1, 16], 1), Request([1, 10, 1, 16], 2)], sampling=Sampling(1.0), max_tokens=9
            )
        else:
            shared.signals([[1], [2]], [[1], [2]], temperature=1.0, top_k_cov=3)
    with pytest.raises(ValueError, match="shorter"):
        shared.signals([[1], [2]], [[1]], temperature=1.0, top_k_cov=3)


# ------------------------------------------------------------------ one cell


@pytest.fixture()
def loaded() -> Settings:
    rescue = {"budgets": [4, 2], "shown": 2, "verify_seconds": 7}
    return built_in(rescue=rescue, evaluate={"resamples": 40})


@pytest.fixture()
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Scripted]:
    """Give the comparison scripted engines, both models each, and return them; run in a folder of the test's own."""
    made: list[Scripted] = []

    def open_engine(cell: Cell, settings: Settings, *, ancestor: bool) -> Scripted:
        assert ancestor
        made.append(Scripted())
        return made[-1]

    monkeypatch.setattr(comparison, "open_engine", open_engine)
    monkeypatch.chdir(tmp_path)
    return made


CELL = pair("a/s", "a/b", "m|digits", "transformers")
ARMS = {"retry": None, "fixed": fitted("fixed"), "rule": fitted()}


def looped(loaded: Settings, judge: Judge, table: pd.DataFrame, arm: Fitted | None, budget: Budget) -> list[Outcome]:
    """Return what the loop does by itself, with an engine that nobody shares."""
    waves = Waves(table, Scripted, loaded, cell=CELL.name, judge=judge)
    return list(Loop(table, waves, arm, budget, first=int(loaded["rescue"]["rollouts"])).run())


@pytest.mark.parametrize("rollouts", [1, 2])
def test_arms_side_by_side_do_what_each_would_do_alone(
    engines: list[Scripted], loaded: Settings, tmp_path: Path, rollouts: int
) -> None:
    loaded.raw["rescue"]["rollouts"] = rollouts
    table, path = problems(8), tmp_path / "tables" / CELL.file
    judge = Judge(table)
    assert comparison._compare(CELL, loaded, table, ARMS, [2, 4], path.parent) is True
    first = {o.problem_id: o for o in looped(loaded, judge, table, None, Budget(1))}
    failed = [o for o in first.values() if o.status != "solved"]
    assert 0 < len(failed) < len(first)
    worth = sum(o.model_tokens for o in failed) / len(failed)
    rows = []
    for name, arm in ARMS.items():
        for budget in (2, 4) if arm else range(1, 9):
            for o in looped(loaded, judge, table, arm, Budget(round(budget * worth), "tokens")):
                row = [o.cell, o.problem_id, name, budget, o.status, o.operator or "", len(o.attempts)]
                rows.append((*row, o.model_tokens, o.scored_tokens))
    made = schema.read(path, schema.RESCUES)
    assert [tuple(row) for row in made.to_numpy()] == sorted(rows, key=lambda row: (row[2], row[3], row[1]))
    assert {"fixed", "rule"} == set(made.loc[made["scored_tokens"] > 0, "arm"])
    (engine,) = engines
    assert len({r.seed for r in engine.decoded}) == len(engine.decoded) and len(set(engine.scored)) == len(
        engine.scored
    )
    assert engine.closed == 1
    # the last arm's largest budget is shown, and looked at once; what it took is kept beside
    shown = looped(loaded, judge, table, ARMS["rule"], Budget(round(4 * worth), "tokens"))
    seen = [o for o in shown if o.failure]
    assert len(engine.looked) == len(seen) > 2
    kept = path.with_suffix(".jsonl").read_text().splitlines()
    steered = [o.line() for o in seen if o.operator not in (None, "sample", "retry")]
    assert kept == (steered + [o.line() for o in seen if o.operator is None])[:2]
    for line in (comparison.TIMES / f"{path.stem}.jsonl").read_text().splitlines():
        told = json.loads(line)
        times = told.pop("times")
        assert json.dumps(told) in kept
        assert [name for name, *_ in times[: 2 * rollouts + 1]] == [*["sample", "verify"] * rollouts, "score"]
        assert all(0 < start <= end for _, start, end in times)
        assert times[1][2] <= times[2][1]  # sampled before all arms


def test_a_cell_that_is_finished_is_not_run_again(engines: list[Scripted], loaded: Settings, tmp_path: Path) -> None:
    table, folder, arms = problems(1), tmp_path / "tables", {"retry": None, "mine": fitted()}
    assert comparison._compare(CELL, loaded, table, arms, [2], folder)
    made = (folder / CELL.file).read_bytes()
    assert comparison._compare(CELL, loaded, table, arms, [2], folder) is False
    assert len(engines) == 1 and (folder / CELL.file).read_bytes() == made
    assert comparison._compare(CELL, loaded, table, arms, [1], folder) is True
    assert comparison._compare(CELL, loaded, table, arms | {"mine": fitted("fixed")}, [1], folder) is True
    assert comparison._compare(CELL, loaded, problems(2), arms | {"mine": fitted("fixed")}, [1], folder) is True
    assert len(engines) == 4


def test_where_all_are_solved_at_once_a_retry_is_worth_what_they_took(
    engines: list[Scripted], loaded: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(scripted.RIGHT, "none", 1.0)
    assert comparison._compare(CELL, loaded, problems(3), {"retry": None}, [2], tmp_path)
    made = schema.read(tmp_path / CELL.file, schema.RESCUES)
    assert set(made["status"]) == {"solved"} and sorted(set(made["budget"])) == list(range(1, 7))
    assert not (tmp_path / CELL.file).with_suffix(".jsonl").exists()  # retries show nothing


def test_no_budget_is_below_two_tokens(engines: list[Scripted], loaded: Settings, tmp_path: Path) -> None:
    loaded.raw["sample"]["max_tokens"] = 1
    comparison._compare(CELL, loaded, problems(2), {"retry": None}, [1], tmp_path)
    made = schema.read(tmp_path / CELL.file, schema.RESCUES)
    assert made.groupby("budget")["attempts"].unique().to_dict() == {1: [2], 2: [2], 3: [3], 4: [4], 5: [5]}


def test_a_broken_verifier_is_given_the_settings_seconds(
    engines: list[Scripted], loaded: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    class Timed(comparison.Judge):
        def __init__(self, problems: pd.DataFrame, *, seconds: float) -> None:
            seen.append(seconds)
            super().__init__(problems, seconds=seconds)

    monkeypatch.setattr(comparison, "Judge", Timed)
    comparison._compare(CELL, loaded, problems(1), {"retry": None}, [1], tmp_path)
    assert seen == [7]


# ------------------------------------------------------------------ all cells


def test_a_comparison_tells_rows_of_all_arms_once_each(
    engines: list[Scripted], loaded: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(comparison, "fit_arms", lambda settings, names: {name: ARMS[name] for name in names})
    table = problems(6)
    told = comparison.compare(loaded, {"m|digits": (CELL, table)}, ["rule", "fixed", "rule"], tmp_path / "t")
    assert capsys.readouterr().out == "rescue: m|digits done\n"
    assert [(r["cells"], r["arm"], r["budget"]) for r in told] == [
        ("all", arm, budget) for budget in (2, 4) for arm in ("retry", "fixed", "rule")
    ]
    made = schema.read(tmp_path / "t" / CELL.file, schema.RESCUES)
    assert told == comparison.rows(made, [2, 4], resamples=40, seed=loaded.seed)
    assert (
        comparison.compare(loaded, {"m|digits": (CELL, table)}, ["rule", "fixed"], tmp_path / "t", quiet=True) == told
    )
    assert capsys.readouterr().out == "" and len(engines) == 1


def test_a_cells_own_settings_hold_in_a_comparison(engines: list[Scripted], loaded: Settings, tmp_path: Path) -> None:
    own = replace(CELL, own=(("max_tokens", 1),))
    comparison.compare(loaded, {"m|digits": (own, problems(2))}, [], tmp_path, quiet=True)
    made = schema.read(tmp_path / CELL.file, schema.RESCUES)
    assert (made["model_tokens"] == made["attempts"]).all()


def test_an_arm_fitted_on_these_problems_is_refused(
    engines: list[Scripted], loaded: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "fit_arms", lambda settings, names: {name: ARMS[name] for name in names})
    table = problems(3).assign(problem_id=["a", "q7", "b"])
    with pytest.raises(SalvageError, match="was fitted on problem 'digits/q7'"):
        comparison.compare(loaded, {CELL.name: (CELL, table)}, ["rule"], tmp_path, quiet=True)
    assert engines == []


def test_what_another_runs_cells_left_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    comparison.drop_others({"a.parquet"})  # nothing is there yet
    folder = tmp_path / comparison.TABLES
    folder.mkdir(parents=True)
    for name in ("a.parquet", "a.jsonl", "b.parquet", "b.jsonl", ".gitignore", "views.json"):
        (folder / name).write_text("x")
    comparison.drop_others({"a.parquet"})
    assert sorted(p.name for p in folder.iterdir()) == [".gitignore", "a.jsonl", "a.parquet"]


# ------------------------------------------------------------------ rows


def drawn_table(seed: int) -> pd.DataFrame:
    """Draw what became of problems in four cells: retry at budgets 1 to 8, an arm at 2 and 4 that does a bit better."""
    rng, rows = np.random.default_rng(seed), []
    for cell, n in (("x-sft-0|t", 7), ("x-dpo-0|t", 5), ("y-sft-0|t", 6), ("own", 4)):
        for i in range(n):
            ease, cost = rng.random(), int(rng.integers(8, 15))
            for arm, budget in [*(("retry", b) for b in range(1, 9)), ("mine", 2), ("mine", 4)]:
                solved = 1 - ease**budget > (0.5 if arm == "retry" else 0.4)
                status = "solved" if solved else rng.choice(["spent", "stopped", "unverified"])
                tokens = cost * budget + (5 if arm == "mine" else 0)
                rows.append([cell, f"p{i}", arm, budget, status, "", int(rng.integers(1, 9)), tokens, 3 * i])
    columns = ["cell", "problem_id", "arm", "budget", "status", "operator", "attempts", "model_tokens", "scored_tokens"]
    return pd.DataFrame(rows, columns=columns).sample(frac=1, random_state=seed)


def resampled(table: pd.DataFrame, cells: list[str], resamples: int, seed: int) -> list[list[tuple[str, str]]]:
    """Return the problems as they are, then drawn anew within each cell."""
    ids = {c: sorted(set(table.loc[table["cell"] == c, "problem_id"])) for c in sorted(set(table["cell"]))}
    draws = [[(c, p) for c in cells for p in ids[c]]] + [[] for _ in range(resamples)]
    for k, (c, some) in enumerate(ids.items()):
        if c in cells:
            drawn = np.random.default_rng([seed, 4, k]).integers(len(some), size=(resamples, len(some)))
            for r, row in enumerate(drawn):
                draws[r + 1] += [(c, some[i]) for i in row]
    return draws


def bounds(values: list[float], n: int) -> tuple[float, float]:
    """Return the 95% percentile interval of resamples, its levels expanded for n."""
    level = 100 * scipy.stats.norm.cdf(-np.sqrt(n / (n - 1)) * scipy.stats.t.ppf(0.975, n - 1))
    low, high = np.percentile(values, [level, 100 - level])
    return float(low), float(high)


def test_rows_are_those_of_plain_loops() -> None:
    table, resamples, seed = drawn_table(3), 25, 11
    found = comparison.rows(table, [2, 4], resamples=resamples, seed=seed)
    names = ["own", "x-dpo-0|t", "x-sft-0|t", "y-sft-0|t"]
    scopes = {"all": names, "x-*": names[1:3], "*-sft-*": names[2:]} | {name: [name] for name in names}
    assert [(r["cells"], r["budget"], r["arm"]) for r in found] == [
        (scope, b, arm) for scope in [r["cells"] for r in found][::4] for b in (2, 4) for arm in ("retry", "mine")
    ]
    assert {r["cells"] for r in found} == set(scopes)
    at = {(r.cell, r.problem_id, r.arm, r.budget): r for r in table.itertuples()}

    def mean(draw: list[tuple[str, str]], arm: str, budget: int, name: str) -> float:
        values = [at[*p, arm, budget] for p in draw]
        told = [v.status == "solved" if name == "solved" else getattr(v, name) for v in values]
        return sum(told) / len(told)

    for row in found:
        draws = resampled(table, scopes[row["cells"]], resamples, seed)
        arm, budget, n = row["arm"], row["budget"], len(draws[0])
        solved = [mean(d, arm, budget, "solved") for d in draws]
        expected = {"cells": row["cells"], "arm": arm, "budget": budget, "problems": n, "solved": solved[0]}
        expected |= {name: mean(draws[0], arm, budget, name) for name in ("model_tokens", "scored_tokens", "attempts")}
        expected |= dict(zip(("low", "high"), bounds(solved[1:], n), strict=True))
        if arm == "retry":
            expected |= dict.fromkeys(("over_retry", "over_retry_low", "over_retry_high"))
        else:
            names = ("model_tokens", "solved")
            curves = [[[mean(d, "retry", b, name) for b in range(1, 9)] for name in names] for d in draws]
            spent = [mean(d, arm, budget, "model_tokens") for d in draws]
            same = [s - np.interp(x, *curve) for s, x, curve in zip(solved, spent, curves, strict=True)]
            over = [s - mean(d, "retry", budget, "solved") for d, s in zip(draws, solved, strict=True)]
            for name, values in (("over_retry", over), ("same_tokens", same)):
                low, high = bounds(values[1:], n)
                expected |= {name: values[0], f"{name}_low": low, f"{name}_high": high}
        assert set(row) == set(expected)
        for name, value in expected.items():
            assert row[name] == (pytest.approx(value, abs=2e-6) if isinstance(value, float) else value), name


def test_one_cell_has_no_row_of_its_own() -> None:
    table = drawn_table(1)
    found = comparison.rows(table[table["cell"] == "own"], [4], resamples=10, seed=0)
    assert [(r["cells"], r["arm"]) for r in found] == [("all", "retry"), ("all", "mine")]


def test_rows_compare_within_one_budget_and_for_as_many_tokens() -> None:
    n = 400
    share = {("retry", b): 0.1 * b for b in range(1, 6)} | {("rule", 2): 0.35}
    tokens = {("retry", b): 10 * b for b in range(1, 6)} | {("rule", 2): 25}
    solved = {key: [i < s * n for i in range(n)] for key, s in share.items()}
    rows = comparison.rows(table_of(solved, tokens), [2], resamples=300, seed=0)
    (rule,) = [r for r in rows if r["arm"] == "rule" and r["cells"] == "all"]
    assert rule["solved"] == pytest.approx(0.35) and rule["over_retry"] == pytest.approx(0.15)
    assert rule["same_tokens"] == pytest.approx(0.10, abs=0.005)  # retry that spends 25 solves a quarter
    assert rule["over_retry_low"] < 0.15 < rule["over_retry_high"] and rule["low"] < 0.35 < rule["high"]
    retry = next(r for r in rows if r["arm"] == "retry")
    assert retry["over_retry"] is None and retry["problems"] == n
    assert {r["cells"] for r in rows} == {"all", "qwen3-sft-0|digits", "qwen3-sft-1|digits"}


def test_an_arm_that_is_retry_shows_no_gain() -> None:
    """What interval a null comparison gives: it must hold 0, and two arms with the same outcomes differ by nothing."""
    rng = np.random.default_rng(0)
    drawn = {("retry", b): list(rng.random(200) < 0.5) for b in (1, 2)}
    told = comparison.rows(
        table_of(drawn | {("same", 2): drawn["retry", 2]}, {k: 10 for k in [*drawn, ("same", 2)]}),
        [2],
        resamples=200,
        seed=0,
    )
    same = next(r for r in told if r["arm"] == "same")
    assert same["over_retry"] == same["over_retry_low"] == same["over_retry_high"] == 0


def table_of(solved: dict[tuple[str, int], list[bool]], tokens: dict[tuple[str, int], float]) -> pd.DataFrame:
    rows = [
        {
            "cell": f"qwen3-sft-{i % 2}|digits",
            "problem_id": f"p{i}",
            "arm": arm,
            "budget": budget,
            "status": "solved" if right else "spent",
            "operator": "",
            "attempts": 1,
            "model_tokens": int(tokens[arm, budget]),
            "scored_tokens": 0,
        }
        for (arm, budget), some in solved.items()
        for i, right in enumerate(some)
    ]
    return pd.DataFrame(rows)


# ------------------------------------------------------------------ held-out problems, and what arms learn from


def test_held_out_problems_are_in_no_table() -> None:
    loaded = settings.load(ROOT / "params.yaml")
    used = set(lab_problems(600, loaded.seed)["prompt"])
    cell = loaded.cells[0]
    fresh = comparison.held_out(cell, loaded, 60)
    assert len(fresh) == fresh["prompt"].nunique() == 60 and not set(fresh["prompt"]) & used
    assert fresh.equals(comparison.held_out(cell, loaded, 60))
    assert not fresh["prompt"].equals(comparison.held_out(replace(cell, name="another"), loaded, 60)["prompt"])


def test_what_the_largest_profile_uses_is_passed_over(loaded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    used: list[str] = []

    def lab_problems(n: int, seed: int) -> pd.DataFrame:
        asked.append((n, seed))
        return pd.DataFrame({"prompt": used})

    monkeypatch.setattr(comparison, "lab_problems", lab_problems)
    loaded.raw["profiles"] = {"a": {"problems": 3}, "b": {"problems": 9}, "c": {"problems": 4}}
    fresh = comparison.held_out(CELL, loaded, 8)
    assert asked == [(9, loaded.seed)]
    assert fresh["problem_id"].tolist() == [f"held-out-000{i}" for i in range(8)]
    used = fresh["prompt"].tolist()[::3]
    again = comparison.held_out(CELL, loaded, 8)["prompt"].tolist()
    assert len(again) == 8 and again[:5] == [p for p in fresh["prompt"] if p not in used]


def feature_row(cell: str, problem: str, rollout: int, x: float) -> dict[str, Any]:
    told = {"cell": cell, "problem_id": problem, "rollout": rollout, "junction": 2 + rollout, "n_tokens": 8}
    return told | dict.fromkeys([*FEATURES, "entropy", "kl", "delta_path", "g_cov", "j_max"], x)


def attempt_rows(cell: str, problem: str, k: int) -> list[dict[str, Any]]:
    """Return k attempts of every operator; the first o + 1 are right under the o-th, some are of another anchor."""
    rows = []
    for o, operator in enumerate(OPERATORS):
        for i in range(k):
            row = {"cell": cell, "problem_id": problem, "operator": operator, "anchor": "online", "attempt": i}
            row |= {"continuation": "temperature", "correct": i <= o, "n_tokens": 10 + i, "n_ancestor_tokens": o}
            row |= {"n_prefill": 0, "position": -1}
            rows += [row, row | {"anchor": "replay", "correct": True}, row | {"continuation": "greedy", "n_tokens": 99}]
    return rows


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two folders of tables: in the first `a` failed twice, `b` at once and late, `c` was solved at once."""
    folder = tmp_path_factory.mktemp("tables")
    features = {
        "one": [("x|t", "a", 0, 1.0), ("x|t", "a", 1, 2.0), ("x|t", "b", 0, 3.0), ("x|t", "b", 4, 9.0),
                ("x|t", "c", 1, 4.0), ("x|t", "c", 2, 5.0)],
        "two": [("x|t", "d", 0, 6.0), ("x|t", "d", 1, 7.0), ("y|t", "e", 0, 8.0)],
    }  # fmt: skip
    for name, rows in features.items():
        told = pd.DataFrame([feature_row(*row) for row in rows])
        schema.write(told, schema.FEATURE_ROWS, folder / name / "features" / "c.parquet")
        keys = dict.fromkeys((cell, problem) for cell, problem, *_ in rows)
        tried = pd.DataFrame([row for k, key in enumerate(keys) for row in attempt_rows(*key, 3 + k)])
        schema.write(tried, schema.ATTEMPTS, folder / name / "attempts" / "c.parquet")
    return folder


@pytest.mark.parametrize(
    ("first", "kept"),
    [(1, [("x|t", "a", 1.0), ("x|t", "b", 3.0), ("y|t", "e", 8.0)]), (2, [("x|t", "a", 1.5)]), (3, [])],
)
def test_arms_learn_from_failures_as_the_loop_meets_them(
    tables: Path, loaded: Settings, first: int, kept: list[tuple[str, str, float]]
) -> None:
    """The first rollouts, all failed; the second folder's x is known from the first."""
    loaded.raw["rescue"] |= {"rollouts": first, "data": [str(tables / "one"), str(tables / "two")]}
    table, tallies = comparison.first_failures(loaded)
    assert list(zip(table["cell"], table["problem_id"], table["spread"], strict=True)) == kept
    assert table.index.tolist() == list(range(len(kept)))
    assert (table["n_failed_rollouts"] == first).all() and (table["failed_share"] == 1).all()
    assert table["entropy"].tolist() == table["kl"].tolist() == [x for *_, x in kept]
    assert (table["n_tokens"] == 8).all()
    assert table["junction"].tolist() == [(2 + (first - 1) / 2) / 8] * len(kept)  # 2 and 3 of 8 tokens
    assert table["agreement"].tolist() == [1.0] * len(kept) if first == 1 else table["agreement"].isna().all()
    tries = {"a": 3, "b": 4, "e": 4}
    n = [tries[problem] for _, problem, _ in kept]
    np.testing.assert_array_equal(tallies.tried, np.reshape([[k] * 5 for k in n], (-1, 5)))
    np.testing.assert_array_equal(tallies.correct, np.reshape([[min(o + 1, k) for o in range(5)] for k in n], (-1, 5)))
    expected = np.reshape([[10 + (k - 1) / 2 + o for o in range(5)] for k in n], (-1, 5))
    np.testing.assert_allclose(tallies.tokens, expected)


def test_an_arm_by_name_is_fitted_on_them(loaded: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.random((12, 3)), columns=FEATURES).assign(cell="x|t", problem_id=list("abcdefghijkl"))
    known = Tallies(np.tile([1.0, 2, 3, 4, 5], (12, 1)), np.full((12, 5), 6.0), np.ones((12, 5)))
    monkeypatch.setattr(comparison, "first_failures", lambda settings: (table, known))
    arms = comparison.fit_arms(loaded, ["fixed", "retry"])
    assert arms["retry"] is None and arms["fixed"] is not None
    assert arms["fixed"].policy.expected(table)[0].tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])  # type: ignore[union-attr]
