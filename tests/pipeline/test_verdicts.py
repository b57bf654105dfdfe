"""Verdicts in the stages: what has none is kept apart, and a run where nothing is right stops with advice."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from salvage.errors import SalvageError
from salvage.method.facts import make_facts
from salvage.pipeline import stages
from salvage.pipeline.verdicts import Unverified, keep, unverified
from salvage.problems.formats import Record
from salvage.problems.judging import Verdict
from salvage.project import settings
from salvage.tables import schema
from salvage.tables.jsonl import Line

OWN = """
import os
def check(problem, text):
    if len(text) % 3 == 0:
        raise ValueError("too hard")
    if len(text) % 3 == 1:
        os._exit(3)
    return False
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[Path, Path]) -> Path:
    """Return a project's folder with a pair of tiny models and 6 problems, verified by `check` of `own_check`."""
    monkeypatch.chdir(tmp_path)
    Path("own_check.py").write_text(OWN)
    problems([{"answer": "7", "verifier": "own_check:check"}] * 6)
    cell = {"name": "tiny", "specialist": str(pair[0]), "ancestor": str(pair[1]), "problems": "problems.jsonl"}
    params(cells=[cell | {"engine": "transformers", "max_tokens": 8, "batch": 64, "top_k_cov": 3, "warmup": 2}])
    return tmp_path


def problems(rows: list[dict[str, str]]) -> None:
    lines = [{"problem_id": f"p{i}", "prompt": f"{i}+{i}:", **row} for i, row in enumerate(rows)]
    Path("problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def params(**changed: object) -> None:
    path = Path("params.yaml")
    raw = yaml.safe_load(path.read_text()) if path.exists() else {}
    raw |= {"profiles": {"own": {"attempts": 2, "retries": 2}}, "sample": {"rollouts": 4}} | changed
    path.write_text(yaml.safe_dump(raw))


def given(texts: list[str], correct: list[bool], n: int) -> None:
    """Put rollouts that exist already in the place of sampling, n a problem."""
    table = pd.DataFrame({"text": texts, "correct": correct})
    table = table.assign(cell="tiny", tokens=[[1]] * len(texts), n_tokens=1, seed=-1)
    table["problem_id"], table["rollout"] = [f"p{i // n}" for i in table.index], [i % n for i in table.index]
    schema.write(table, schema.ROLLOUTS, "given.parquet")
    raw = yaml.safe_load(Path("params.yaml").read_text())
    params(cells=[raw["cells"][0] | {"rollouts": "given.parquet"}])


def run(*names: str, quiet: bool = True) -> list[int]:
    return [getattr(stages, name)(settings.load(), quiet=quiet) for name in names]


def test_case_17_nothing_right_stops_after_sampling_with_advice(project: Path) -> None:
    problems([{"answer": "7"}] * 60)
    given([f"{i}+0=7#7" for i in range(480)], [False] * 480, 8)
    with pytest.raises(SalvageError) as told:
        run("problem_sets", "sample")
    first, *texts, last = str(told.value).splitlines()
    assert first.startswith("sample: cell 'tiny|problems': 0 of 480 right by the verifier exact.")
    assert "Of 200 of the other texts would be accepted: by numeric 200, math " in first
    assert texts == [f"  'p{i}': answer '7', text '{8 * i}+0=7#7'" for i in range(3)]
    assert last.startswith("Name another verifier in problems.jsonl") and "set allow_none_right: true" in last
    params(allow_none_right=True)
    assert run("sample") == [0]  # what was sampled is kept


def test_case_17_almost_nothing_right_stops_only_where_another_verifier_would_accept_many(project: Path) -> None:
    problems([{"answer": "7"}] * 60)
    given(["7"] + ["it is 8"] * 479, [True] + [False] * 479, 8)
    assert run("problem_sets", "sample")  # the problems are hard
    given(["7"] + ["it is 7"] * 479, [True] + [False] * 479, 8)
    with pytest.raises(SalvageError, match=r"1 of 480 right by the verifier exact. Of 200 .* by numeric 200"):
        run("sample")
    given(["7"] * 5 + ["it is 7"] * 475, [True] * 5 + [False] * 475, 8)
    assert run("sample")  # 5 of 480 is not almost nothing


def test_case_17_few_rollouts_stop_only_where_another_verifier_would_accept_many(project: Path) -> None:
    problems([{"answer": "7"}] * 4)
    given(["it is 8"] * 8, [False] * 8, 2)
    assert run("problem_sets", "sample")
    given(["it is 7"] * 8, [False] * 8, 2)
    with pytest.raises(SalvageError, match=r"0 of 8 right .* by numeric 8"):
        run("sample")


def test_an_unfinished_thought_is_named_in_the_advice(project: Path) -> None:
    problems([{"answer": "7"}] * 50)
    given(["<think>7? no, let me"] * 100, [False] * 100, 2)
    with pytest.raises(SalvageError, match=r"'<think>7. no, let me' .an unfinished thought, which no verifier reads"):
        run("problem_sets", "sample")


def test_completions_without_a_verdict_are_counted_and_told_and_never_failures(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params(allow_none_right=True)
    run("problem_sets", "sample", quiet=False)
    table = schema.read("data/rollouts", schema.ROLLOUTS)
    lost = unverified(next(Path("data/rollouts").glob("*.parquet")))
    assert lost and len(table) + len(lost) == 24
    assert all(len(text) % 3 == 2 for text in table["text"])
    assert {line["trouble"] for line in lost} <= {
        "the verifier own_check:check raised ValueError('too hard')",
        "the verifier own_check:check ended its process (exit code 3)",
    }
    assert not set(zip(table["problem_id"], table["rollout"], strict=True)) & {
        (line["problem_id"], line["rollout"]) for line in lost
    }
    said = capsys.readouterr().out
    assert f"sample: tiny|problems: {len(lost)} without a verdict, left out" in said
    run("featurize", "intervene", quiet=False)
    attempts = schema.read("data/attempts", schema.ATTEMPTS)
    none = unverified(next(Path("data/attempts").glob("*.parquet")))
    assert none and len(attempts) == table["problem_id"].nunique() * (4 * 2 + 2)
    assert not attempts["correct"].any()
    assert f"intervene: tiny|problems: {len(none)} without a verdict, counted as not rescued" in capsys.readouterr().out
    assert {"problem_id", "operator", "anchor", "continuation", "attempt", "text", "trouble"} == set(none[0])


def test_what_an_import_left_out_is_told_and_counted_by_sample(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems([{"answer": "7"}] * 60)
    given(["8"] * 100, [False] * 100, 2)
    unread = [Record(Line(Path("f"), i, {}), "", f"p{i}", 7) for i in range(3)]
    keep(Path("given.parquet"), [(record, Verdict(None, "too long")) for record in unread])
    with pytest.raises(SalvageError, match=r"0 of 103 right by the verifier exact, 3 without a verdict \(too long\)"):
        run("problem_sets", "sample", quiet=False)
    assert "sample: tiny|problems: 3 without a verdict, left out" in capsys.readouterr().out
    given(["7"] * 100, [True] * 100, 2)
    keep(Path("given.parquet"), [])
    assert run("sample") == [1] and unverified(next(Path("data/rollouts").glob("*.parquet"))) == []


def test_a_limit_of_the_problems_is_one_of_imported_rollouts(project: Path) -> None:
    problems([{"answer": "7"}] * 6)
    given(["7"] * 12, [True] * 12, 2)
    cell = yaml.safe_load(Path("params.yaml").read_text())["cells"][0]
    params(cells=[cell | {"problems": "problems.jsonl?limit=2"}])
    run("problem_sets", "sample")
    assert list(schema.read("data/rollouts", schema.ROLLOUTS)["problem_id"]) == ["p0", "p0", "p1", "p1"]
    assert stages.problem_sets(settings.load(), 1, quiet=True) == 1
    assert list(schema.read("data/problems", schema.PROBLEMS)["problem_id"]) == ["p0"]
    params(cells=[cell])
    run("problem_sets", "sample")
    assert len(schema.read("data/rollouts", schema.ROLLOUTS)) == 12


def test_all_without_a_verdict_stops_and_says_why(project: Path) -> None:
    Path("own_check.py").write_text("def check(problem, text): raise ValueError('no such table')")
    with pytest.raises(SalvageError, match=r"0 of 24 right .*, 24 without a verdict .*ValueError\('no such table'\)"):
        run("problem_sets", "sample")


def test_what_is_noted_twice_stands_once_and_goes_with_its_table(tmp_path: Path) -> None:
    table, keys = tmp_path / "t.parquet", [{"problem_id": "p"}, {"problem_id": "q"}]
    for _ in range(2):
        Unverified(table, "a").note(keys, ["x", "y"], [Verdict(None, "t"), Verdict(True)])
    assert unverified(table) == [{"problem_id": "p", "text": "x", "trouble": "t"}]
    Unverified(table, "b")
    assert unverified(table) == []


def test_each_problems_own_verifier_says_what_its_answers_are() -> None:
    names = {"n": "numeric", "e": "exact", "m": "math"}
    texts = {"n": ["it is 7", "7.0!"], "e": ["it is 7", "7.0"], "m": [r"\boxed{7} or", r"\boxed{7}!"]}
    rows = [(p, k, text) for p, both in texts.items() for k, text in enumerate(both)]
    rollouts = pd.DataFrame(rows, columns=["problem_id", "rollout", "text"]).assign(cell="c", correct=False)
    features = rollouts[["cell", "problem_id", "rollout"]].assign(junction=0, n_tokens=1, entropy=0.0, kl=0.0)
    assert list(make_facts(rollouts, features, names)["agreement"]) == [1.0, 0.5, 1.0]
