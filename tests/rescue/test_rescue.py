"""`rescue`, the call: what it opens, records, writes and goes on from; on an engine that answers from its seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import salvage.rescue
from salvage.engine.fitting import Fit
from salvage.errors import SalvageError
from salvage.project.settings import Cell, Settings
from salvage.rescue import loop as loops
from salvage.rescue.loop import Budget, Outcome, fingerprint, pair, rescue
from scripted import Scripted, built_in, fitted, problems

CELL = pair("a/s", "a/b", engine="transformers")


@pytest.fixture()
def loaded() -> Settings:
    return built_in()


@pytest.fixture()
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Cell, Settings, bool, Scripted]]:
    """Give the loop scripted engines, and return how they were asked for."""
    seen = []

    def open_engine(cell: Cell, settings: Settings, *, ancestor: bool) -> Scripted:
        seen.append((cell, settings, ancestor, Scripted()))
        return seen[-1][-1]

    monkeypatch.setattr(loops, "open_engine", open_engine)
    monkeypatch.setattr(loops.fitting, "fit", None)  # nothing is `auto`; it would look for the models on a hub
    monkeypatch.chdir(tmp_path)
    return seen


def outcomes(**how: Any) -> list[Outcome]:
    how = {"problems": problems(6), "cell": CELL, "policy": None, "settings": built_in()} | how
    return list(rescue(**how))


# ------------------------------------------------------------------ what it is given


def test_the_rooms_own_names_are_the_loops() -> None:
    assert [getattr(salvage.rescue, name) for name in salvage.rescue.__all__] == [Budget, pair, rescue]
    with pytest.raises(AttributeError, match=r"'salvage\.rescue' has no attribute 'Loop'"):
        salvage.rescue.Loop  # noqa: B018


def test_a_pair_is_a_cell_named_after_its_specialist() -> None:
    made = pair("models/mine-7", "models/base")
    assert made == Cell("mine-7", "models/mine-7", "models/base", "", "unknown", 0, "own", "auto")
    assert pair("models/mine-7", "models/base", "m|t", "vllm") == replace(made, name="m|t", engine="vllm")


def test_eight_attempts_and_no_price_where_nothing_is_said(
    opened: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And the settings are those of the params.yaml that lies here."""
    numbers = "sample: {max_tokens: 47, batch: 8}\nfeaturize: {top_k_cov: 3}\nintervene: {warmup: 2}\n"
    (tmp_path / "params.yaml").write_text(numbers)
    seen: list[Any] = []

    class Loop(loops.Loop):
        def __init__(self, problems: Any, waves: Any, policy: Any, budget: Any, **how: Any) -> None:
            seen.append((policy, budget, how, waves.look))
            super().__init__(problems, waves, policy, budget, **how)

    monkeypatch.setattr(loops, "Loop", Loop)
    policy = fitted()
    monkeypatch.setattr(loops.policy_uri, "load", lambda uri: {"models:/salvage-router@champion": policy}[uri])
    list(rescue(problems(2), CELL))
    assert seen == [(policy, Budget(8), {"first": 1, "price": 0.0}, True)]
    (cell, values, ancestor, _), = opened  # fmt: skip
    assert cell == CELL and ancestor and values["sample"]["max_tokens"] == 47


def test_what_is_auto_is_fitted_to_the_pair_and_its_problems(
    opened: list[Any], loaded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def fit(cell: Cell, settings: Settings, problems: list[dict[str, Any]]) -> Fit:
        asked.append((cell, problems))
        return Fit({"max_tokens": 5}, ["max_tokens 5"])

    monkeypatch.setattr(loops.fitting, "fit", fit)
    loaded.raw["sample"]["max_tokens"] = "auto"
    told = outcomes(settings=loaded)
    assert asked == [(CELL, problems(6).to_dict("records"))]
    assert {a.model_tokens for o in told for a in o.attempts} == {5}
    assert opened[0][0].own == (("max_tokens", 5),)


def test_retries_open_the_specialist_alone(opened: list[Any]) -> None:
    outcomes()
    assert [ancestor for _, _, ancestor, _ in opened] == [False]


def test_problems_and_policy_may_be_files(opened: list[Any], tmp_path: Path) -> None:
    line = {"problem_id": "x", "prompt": "1+1*2:", "answer": "never", "verifier": "exact"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "policy.json").write_text(json.dumps(fitted("fixed").to_dict()))
    (told,) = outcomes(problems="mine.jsonl", policy="policy.json", budget=Budget(3))
    assert told.problem_id == "x" and told.why["policy"] == "fixed" and opened[0][2]


def test_a_cells_own_settings_hold_and_rollouts_fail_before_the_policy_is_asked(
    opened: list[Any], loaded: Settings
) -> None:
    loaded.raw["rescue"]["rollouts"] = 2
    cell = replace(CELL, own=(("max_tokens", 4),))
    told = outcomes(cell=cell, policy=fitted(), budget=Budget(3), settings=loaded)
    assert opened[0][1]["sample"]["max_tokens"] == 4
    assert {a.model_tokens for o in told for a in o.attempts[:2]} == {4}
    assert {tuple(a.operator for a in o.attempts[:2]) for o in told} == {("sample", "sample")}
    assert all(a.operator not in ("sample", "retry") for o in told for a in o.attempts[2:])
    assert all(o.scored_tokens for o in told)


def test_without_a_look_no_failure_is_kept(opened: list[Any]) -> None:
    told = outcomes(policy=fitted(), budget=Budget(2), look=False)
    assert any(o.scored_tokens for o in told) and not any(o.failure for o in told)
    assert any(o.failure for o in outcomes(policy=fitted(), budget=Budget(2)))


def test_a_price_is_refused_where_nothing_is_planned(opened: list[Any]) -> None:
    with pytest.raises(SalvageError, match="a price needs a policy that plans"):
        outcomes(policy=fitted(), price=0.1)


@pytest.mark.parametrize("in_all", [False, True])
@pytest.mark.parametrize("policy", [None, "rule", "fixed"])
def test_every_problem_ends_once_and_says_what_it_cost(opened: list[Any], policy: str | None, in_all: bool) -> None:
    amount = 40 if in_all else 6
    known = fitted(policy) if policy else None
    told = outcomes(problems=problems(14), policy=known, budget=Budget(amount, in_all=in_all))
    assert sorted(o.problem_id for o in told) == sorted(problems(14)["problem_id"])
    assert {o.status for o in told} == {"solved", "spent"}
    spent = [len(o.attempts) for o in told]
    assert sum(spent) == amount if in_all else max(spent) == amount
    engine = opened[0][3]
    assert len(engine.decoded) == sum(spent) and len({r.seed for r in engine.decoded}) == sum(spent)
    for o in told:
        assert o.model_tokens == sum(a.model_tokens for a in o.attempts)
        assert all(a.correct is False for a in o.attempts[:-1])
        solved = bool(o.attempts) and o.attempts[-1].correct is True
        assert (o.status == "solved") == solved == (o.answer is not None)
        assert [a.operator for a in o.attempts[:1]] == ["sample"][: len(o.attempts)]
        if solved:
            assert (o.answer, o.operator) == (o.attempts[-1].text, o.attempts[-1].operator)
        if policy and len(o.attempts) > 1:
            assert {a.operator for a in o.attempts[1:]} == {o.why["operator"]} and o.why["policy"] == policy
            # the failed rollout and its prompt, through both models
            text = f"{o.prompt}{o.attempts[0].text}#"  # a character for the end token
            assert o.scored_tokens == 2 * len(text)
    assert engine.closed == 1


def test_models_are_closed_though_nobody_reads_on(opened: list[Any]) -> None:
    some = rescue(problems(8), CELL, None, settings=built_in())
    next(some)
    some.close()
    assert opened[0][3].closed == 1


# ------------------------------------------------------------------ written as it comes, and gone on with


def test_outcomes_are_written_as_they_come_and_their_attempts_beside(opened: list[Any], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out.jsonl"
    some = rescue(problems(8), CELL, None, out=out, settings=built_in())
    first = next(some)
    assert out.read_text() == first.line() + "\n"
    whole = [first.line(), *(o.line() for o in some)]
    assert out.read_text().splitlines() == whole and len(whole) == 8
    assert sorted(p.name for p in out.parent.iterdir()) == [".out.jsonl.record", "out.jsonl"]


@pytest.mark.parametrize(
    ("policy", "budget"),
    [(None, Budget(5)), ("rule", Budget(90, "tokens")), ("fixed", Budget(600, "tokens", in_all=True))],
)
def test_a_killed_job_goes_on_to_the_same_outcomes(
    opened: list[Any], tmp_path: Path, policy: str | None, budget: Budget
) -> None:
    how = {"problems": problems(6), "policy": fitted(policy) if policy else None, "budget": budget}
    whole = [o.line() for o in outcomes(**how)]
    out, record = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.record"
    assert whole == [o.line() for o in outcomes(out=out, **how)] == out.read_text().splitlines()
    waves = record.read_bytes().splitlines(keepends=True)
    asked = [wave["asked"] for wave in map(json.loads, waves[1:])]
    assert [name for name, *_ in asked[0]] == how["problems"]["problem_id"].tolist()
    for kept in (1, 3, len(waves)):  # killed in the middle of a wave, and of a line of the outcomes
        record.write_bytes(b"".join(waves[:kept]) + b'{"asked": [["p')
        out.write_text("".join(f"{line}\n" for line in whole[: kept - 1]) + '{"cell": "s')
        done = len(opened)
        assert [o.line() for o in outcomes(out=out, **how)] == whole == out.read_text().splitlines()
        assert record.read_bytes() == b"".join(waves)
        again = [request for *_, engine in opened[done:] for request in engine.decoded]
        assert len(again) == sum(map(len, asked[kept - 1 :]))  # what was recorded is not decoded again
        assert len(opened) == done + (kept < len(waves))  # where all is, no model is opened


def test_a_file_of_other_outcomes_is_not_gone_on_with(opened: list[Any], tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    outcomes(out=out)
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join([*lines[:2], lines[3], lines[2]]))
    with pytest.raises(SalvageError, match=r"out.jsonl: line 3 is not what this job found; write to another file"):
        outcomes(out=out)
    (tmp_path / ".out.jsonl.record").unlink()
    with pytest.raises(SalvageError, match=r"out.jsonl is there already and has no record beside it"):
        outcomes(out=out)
    out.unlink()
    assert [o.line() + "\n" for o in outcomes(out=out)] == lines


def test_a_record_alone_is_gone_on_with(opened: list[Any], tmp_path: Path) -> None:
    """A job killed in its first wave has written no outcome yet."""
    out = tmp_path / "out.jsonl"
    whole = [o.line() for o in outcomes(out=out)]
    out.unlink()
    assert [o.line() for o in outcomes(out=out)] == whole and len(opened) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"budget": Budget(7)},
        {"budget": Budget(8, "tokens")},
        {"budget": Budget(8, in_all=True)},
        {"price": 0.1},
        {"look": False},
        {"policy": fitted()},
        {"problems": problems(3)},
        {"cell": pair("a/s", "a/b", "other", "transformers")},
    ],
)
def test_another_job_does_not_go_on_in_this_ones_file(opened: list[Any], tmp_path: Path, other: dict[str, Any]) -> None:
    out = tmp_path / "out.jsonl"
    outcomes(out=out, problems=problems(2))
    with pytest.raises(SalvageError, match="other models, problems, settings or policy"):
        outcomes(out=out, **{"problems": problems(2)} | other)


# ------------------------------------------------------------------ the fingerprint


def test_a_fingerprint_knows_all_that_attempts_depend_on(loaded: Settings, tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("1")
    cell, table = pair(str(tmp_path / "weights"), "b", "c", engine="transformers"), problems(3)
    mark = fingerprint(cell, table, loaded, "part")
    assert mark == fingerprint(cell, table.copy(), built_in(), "part")
    others = [
        fingerprint(replace(cell, name="d"), table, loaded, "part"),
        fingerprint(replace(cell, ancestor="e"), table, loaded, "part"),
        fingerprint(cell, table.assign(answer="x"), loaded, "part"),
        fingerprint(cell, table, replace(loaded, seed=loaded.seed + 1), "part"),
        fingerprint(cell, table, loaded, "another"),
        fingerprint(cell, table, loaded, "part", code=["rescue/comparison.py"]),
    ]
    for section in ("sample", "featurize", "intervene", "rescue"):
        changed = replace(loaded, raw=loaded.raw | {section: loaded[section] | {"x": 1}})
        others.append(fingerprint(cell, table, changed, "part"))
    (tmp_path / "weights").write_text("2")
    others.append(fingerprint(cell, table, loaded, "part"))
    assert len({mark, *others}) == len(others) + 1
    report = replace(loaded, raw=loaded.raw | {"evaluate": {"x": 1}})
    (tmp_path / "weights").write_text("1")
    assert fingerprint(cell, table, report, "part") == mark


def test_a_fingerprint_knows_the_code_that_attempts_are_made_by() -> None:
    for name in loops.CODE:
        assert (Path(loops.__file__).parents[1] / name).exists(), name
    assert {"rescue/loop.py", "rescue/waves.py", "rescue/guide.py", "engine"} <= set(loops.CODE)
