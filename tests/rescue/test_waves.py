"""Waves by themselves, with an engine and a judge that are told what to say: what is scored, recorded and read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from salvage.engine.base import COV, PATH, Completion, Request, Sampling, seed_of
from salvage.errors import SalvageError
from salvage.lab import task
from salvage.problems.judging import Verdict
from salvage.project import settings
from salvage.project.settings import Settings
from salvage.rescue.waves import SAMPLE, Try, Waves
from salvage.tables.vocabulary import FEATURES
from scripted import END, RIGHT, Scripted, problems
from worlds import in_place_of_auto

ROOT = Path(__file__).resolve().parents[2]
J = [0.0, 0.5, 2.0, 0.25]  # of every rollout: the junction is 2


class Told:
    """An engine that answers every request with the same four tokens, and remembers what it was asked."""

    context: int | None = None
    ends: ClassVar[list[int]] = [3]

    def span(self, prompt: list[int], completion: list[int], part: str) -> tuple[int, int]:
        cut = completion.index(2) + 1 if 2 in completion else 0
        return (0, cut) if part == "thinking" else (cut, len(completion))

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.scored: list[tuple[list[int], list[int]]] = []
        self.looked: list[list[int]] = []
        self.how: list[dict[str, Any]] = []
        self.closed = 0

    def prompt(self, problem: dict[str, str]) -> list[int]:
        return [ord(c) for c in problem["prompt"]]

    def text(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))

    def decode(self, requests: list[Request], *, sampling: Sampling, max_tokens: int) -> list[Completion]:
        self.requests += requests
        self.how.append({"sampling": sampling, "max_tokens": max_tokens})
        return [Completion([1, 2, 3, len(self.requests)], 4, 2, 9, 1) for _ in requests]

    def signals(
        self, prompts: list[list[int]], completions: list[list[int]], *, temperature: float, top_k_cov: int
    ) -> list[dict[str, np.ndarray]]:
        self.scored += zip(prompts, completions, strict=True)
        self.how.append({"temperature": temperature, "top_k_cov": top_k_cov})
        one = {
            "j": np.array(J),
            "delta_path": np.array([0.0, 0.5, 0.5, 0.25]),
            "g_cov": np.array([-1.0, -1.0, 1.5, -1.0]),
            "logit_var": np.array([1.0, 2.0, 3.0, 4.0]),
            "entropy": np.array([0.1, 0.2, 0.3, 0.4]),
            "kl": np.array([0.0, 0.0, 1.0, 1.0]),
        }
        return [one for _ in prompts]

    def alternatives(self, prefixes: list[list[int]], *, temperature: float, k: int) -> Any:
        self.looked += prefixes
        return [([(7, 0.54321), (8, 0.2)], [(9, 0.9)]) for _ in prefixes]

    def close(self) -> None:
        self.closed += 1


class Judged:
    """A judge that says what it is told, problem by problem; wrong where nothing is told."""

    def __init__(self, **verdicts: bool | None) -> None:
        self.verdicts, self.texts, self.closed = verdicts, list[tuple[str, str]](), 0

    def verify(self, ids: list[str], texts: list[str]) -> list[Verdict]:
        self.texts += zip(ids, texts, strict=True)
        told = [self.verdicts.get(p, False) for p in ids]
        return [Verdict(v, "no verdict" if v is None else "") for v in told]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def loaded() -> Settings:
    found = settings.load(ROOT / "params.yaml")
    in_place_of_auto(found.raw)
    return found


def table(n: int = 3, verifier: str = "exact") -> pd.DataFrame:
    columns = ["problem_id", "task", "prompt", "answer", "verifier", "metadata"]
    return pd.DataFrame([[f"p{i}", "t", "ab"[: 1 + i % 2], "4", verifier, ""] for i in range(n)], columns=columns)


def waves(loaded: Settings, engine: Told, judge: Any, n: int = 3, **how: Any) -> Waves:
    how = {"cell": "m|t", "judge": judge} | how
    return Waves(table(n), lambda: engine, loaded, **how)  # type: ignore[arg-type, return-value]


# ------------------------------------------------------------------ what is scored


def test_only_what_is_known_to_be_wrong_is_scored(loaded: Settings) -> None:
    engine = Told()
    made = waves(loaded, engine, Judged(p0=None, p1=True)).make([Try(f"p{i}", SAMPLE, 0, score=True) for i in range(3)])
    assert [r["correct"] for r in made] == [None, True, False]
    assert ["scored" in r for r in made] == [False, False, True]
    assert len(engine.scored) == 1 and [r["trouble"] for r in made] == ["no verdict", "", ""]


def test_what_need_not_be_scored_is_not(loaded: Settings) -> None:
    engine = Told()
    made = waves(loaded, engine, Judged()).make([Try("p0", SAMPLE, 0), Try("p1", SAMPLE, 0, score=True)])
    assert ["scored" in r for r in made] == [False, True] and [p for p, _ in engine.scored] == [[97, 98]]
    assert "scored" not in waves(loaded, Told(), Judged()).make([Try("p0", SAMPLE, 0)])[0]


def test_a_score_holds_facts_rollouts_threshold_and_a_view(loaded: Settings) -> None:
    engine = Told()
    made = waves(loaded, engine, Judged()).make([Try("p1", SAMPLE, 1, score=True, failed=[[5, 6, 7, 8]])])
    told = made[0]["scored"]
    assert [c for _, c in engine.scored] == [[5, 6, 7, 8], [1, 2, 3, 1]]
    assert [r["tokens"] for r in told["rollouts"]] == [[5, 6, 7, 8], [1, 2, 3, 1]]
    assert [r["junction"] for r in told["rollouts"]] == [2, 2]
    assert told["rollouts"][0]["mixes"] == [PATH, PATH, COV, PATH]
    assert told["threshold"] == pytest.approx(2.0 - 1e-3)  # the 99th percentile of j, less a rounding
    assert told["n_prefill"] == 2 * (2 + 4 + 2 + 4)  # prompt and rollout, twice, through both models
    facts = told["facts"]
    assert facts["cell"] == "m|t" and facts["problem_id"] == "p1" and facts["n_failed_rollouts"] == 2
    assert facts["failed_share"] == 1 and facts["n_tokens"] == 4 and facts["junction"] == 0.5
    assert facts["agreement"] == 0.5 and facts["entropy"] == pytest.approx(0.25) and facts["kl"] == 0.5
    assert facts["spread"] == 0.75 and facts["concentration"] == pytest.approx(np.log10(2 / 0.6875))
    assert facts["logit_dispersion"] == pytest.approx(np.log10(2.5))
    view = told["view"]
    assert view["tokens"] == ["5", "6", "7", "8"] and view["j"] == J and view["junction"] == 2
    assert view["alternatives"] == {"specialist": [["7", 0.5432], ["8", 0.2]], "ancestor": [["9", 0.9]]}
    assert engine.looked == [[97, 98, 5, 6]]
    assert view["features"] == {name: round(facts[name], 4) for name in FEATURES}
    assert json.loads(json.dumps(told)) == told


def featurized(loaded: Settings, **changes: Any) -> Settings:
    return replace(loaded, raw=loaded.raw | {"featurize": loaded["featurize"] | changes})


def test_truncated_rollouts_are_left_out_where_settings_say_so(loaded: Settings) -> None:
    engine, values = Told(), featurized(loaded, truncated="leave out")
    ended, cut = [5, 6, 7, 3], [5, 6, 7, 8]  # 3 is the end; what the engine decodes here ends in 1 and in 2
    tries = [Try("p0", SAMPLE, 1, score=True, failed=[cut]), Try("p1", SAMPLE, 1, score=True, failed=[cut, ended])]
    made = waves(values, engine, Judged()).make(tries)
    assert ["scored" in r for r in made] == [False, True]
    assert [c for _, c in engine.scored] == [ended]
    assert made[1]["scored"]["facts"]["n_failed_rollouts"] == 1


@pytest.mark.parametrize(
    ("part", "spread", "junction", "quantile"), [("thinking", 0.5, 1, 0.5), ("answer", 1.0, 2, 2.0)]
)
def test_features_are_of_the_part_that_settings_name(
    loaded: Settings, part: str, spread: float, junction: int, quantile: float
) -> None:
    engine = Told()
    (made,) = waves(featurized(loaded, part=part), engine, Judged()).make([Try("p0", SAMPLE, 0, score=True)])
    told = made["scored"]
    assert told["facts"]["spread"] == spread and told["facts"]["n_tokens"] == 4
    assert told["rollouts"][0]["junction"] == junction and told["threshold"] == pytest.approx(quantile, rel=0.02)
    assert told["facts"]["junction"] == junction / 4 and told["view"]["junction"] == junction
    unthought = Try("p1", SAMPLE, 1, score=True, failed=[[7, 7, 7, 7]])
    (made,) = waves(featurized(loaded, part=part), engine, Judged()).make([unthought])
    assert len(made["scored"]["rollouts"]) == (1 if part == "thinking" else 2)


def test_without_a_look_there_is_no_view_and_nobody_is_asked_for_one(loaded: Settings) -> None:
    engine = Told()
    made = waves(loaded, engine, Judged(), look=False).make([Try("p0", SAMPLE, 0, score=True)])
    assert made[0]["scored"]["view"] == {} and engine.looked == []


def test_models_are_asked_with_the_settings(loaded: Settings) -> None:
    engine = Told()
    waves(loaded, engine, Judged()).make([Try("p0", SAMPLE, 0, score=True)])
    sample, featurize = loaded["sample"], loaded["featurize"]
    assert engine.how == [
        {"sampling": Sampling.of(sample), "max_tokens": sample["max_tokens"]},
        {"temperature": sample["temperature"], "top_k_cov": featurize["top_k_cov"]},
    ]


# ------------------------------------------------------------------ what is asked, and what comes back


def test_a_result_tells_what_it_cost_and_keeps_a_first_rollouts_tokens(loaded: Settings) -> None:
    made = waves(loaded, Told(), Judged(p0=True)).make([Try("p0", SAMPLE, 0), Try("p1", "retry", 0)])
    assert made[0] == {
        "operator": SAMPLE, "correct": True, "trouble": "", "text": "1 2 3 2", "tokens": [1, 2, 3, 2],
        "n_tokens": 4, "n_ancestor_tokens": 2, "position": 1, "truncated": False,
    }  # fmt: skip
    assert made[1]["tokens"] == [] and made[1]["operator"] == "retry"


def test_a_seed_is_told_by_names_and_attempt_alone(loaded: Settings) -> None:
    engine = Told()
    waves(loaded, engine, Judged()).make([Try("p0", SAMPLE, 0), Try("p1", "retry", 3)])
    assert [r.seed for r in engine.requests] == [
        seed_of(loaded.seed, "m|t", "p0", SAMPLE, 0), seed_of(loaded.seed, "m|t", "p1", "retry", 3),
    ]  # fmt: skip
    assert [r.prompt for r in engine.requests] == [[97], [97, 98]]


def test_an_intervention_acts_as_the_failure_was_scored(loaded: Settings) -> None:
    engine = Told()
    some = waves(loaded, engine, Judged())
    scored = some.make([Try("p0", SAMPLE, 0, score=True)])[0]["scored"]
    some.make([Try("p0", "dense_steer", 0, scored=scored), Try("p0", "sparse_steer", 1, scored=scored)])
    dense, sparse = (r.intervention for r in engine.requests[1:])
    assert dense.kind == "dense" and dense.mix == COV
    assert sparse.kind == "sparse" and sparse.threshold == scored["threshold"]
    assert engine.requests[2].seed == seed_of(loaded.seed, "m|t", "p0", "sparse_steer", 1)


def test_a_prompt_that_does_not_fit_is_refused(loaded: Settings) -> None:
    engine = Told()
    engine.context = loaded["sample"]["max_tokens"] + 1  # p1's prompt has two tokens
    with pytest.raises(SalvageError, match="row 1, problem 'p1': a prompt of 2 tokens"):
        waves(loaded, engine, Judged()).make([Try("p0", SAMPLE, 0)])


def test_the_clock_tells_the_last_waves_three_parts_in_order(loaded: Settings) -> None:
    some = waves(loaded, Told(), Judged())
    assert some.clock == {}
    some.make([Try("p0", SAMPLE, 0)])
    (a, b), (c, d), (e, f) = (some.clock[name] for name in ("decode", "verify", "score"))
    assert 0 < a <= b == c <= d == e <= f


@pytest.mark.parametrize("short", ["decode", "signals", "alternatives", "verify"])
def test_an_answer_too_few_is_not_taken_for_the_next_ones(
    loaded: Settings, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    engine, judge = Told(), Judged()
    who: Any = judge if short == "verify" else engine
    whole = getattr(who, short)
    monkeypatch.setattr(who, short, lambda *a, **k: whole(*a, **k)[:-1])
    with pytest.raises(ValueError, match=r"shorter|same length"):
        waves(loaded, engine, judge).make([Try("p0", SAMPLE, 0, score=True), Try("p1", SAMPLE, 0, score=True)])


def test_scores_go_to_the_tries_that_asked(loaded: Settings) -> None:
    """In the order of the tries, whatever the problems' own is; each with its own rollouts, verifier and looks."""
    engine = Scripted({**RIGHT, "none": 0.0})
    table = problems(4)
    some = Waves(table, lambda: engine, loaded, cell="m|t")
    tries = [Try("p3", SAMPLE, 0, score=True), Try("p0", SAMPLE, 0), Try("p2", SAMPLE, 1, score=True,
             failed=[engine.encode("1#2")]), Try("p1", SAMPLE, 0, score=True)]  # fmt: skip
    made = some.make(tries)
    assert [r["scored"]["facts"]["problem_id"] if "scored" in r else None for r in made] == ["p3", None, "p2", "p1"]
    prompts = table.set_index("problem_id")["prompt"].map(engine.encode)
    for t, result in zip(tries, made, strict=True):
        if not t.score:
            continue
        rollouts = [*t.failed, result["tokens"]]
        told = [engine._signals([*prompts[t.problem_id], *r], len(r)) for r in rollouts]
        scored = result["scored"]
        assert [r["tokens"] for r in scored["rollouts"]] == rollouts
        assert [r["junction"] for r in scored["rollouts"]] == [int(s["j"].argmax()) for s in told]
        for r, s in zip(scored["rollouts"], told, strict=True):
            larger = [PATH if d >= max(g, 0) else COV for d, g in zip(s["delta_path"], s["g_cov"], strict=True)]
            assert r["mixes"] == larger
        j = np.concatenate([s["j"] for s in told])
        assert scored["threshold"] == pytest.approx(np.quantile(j, loaded["intervene"]["quantile"]) - 1e-3)
        assert scored["n_prefill"] == 2 * sum(len(prompts[t.problem_id]) + len(r) for r in rollouts)
        assert scored["facts"]["n_failed_rollouts"] == len(rollouts)
        assert scored["facts"]["n_tokens"] == np.mean([len(r) for r in rollouts])
        assert scored["facts"]["entropy"] == pytest.approx(np.mean([s["entropy"].mean() for s in told]))
        assert scored["facts"]["spread"] == pytest.approx(np.mean([(s["j"] > 0).mean() for s in told]))
        assert scored["view"]["j"] == [round(float(x), 4) for x in told[0]["j"]]  # of the first that failed
        assert "".join(scored["view"]["tokens"]) == engine.text(rollouts[0])


def test_a_problem_is_decoded_with_its_own_prompt_and_no_engine_is_asked_twice(loaded: Settings) -> None:
    engine = Scripted()
    table = problems(3)
    some = Waves(table, lambda: engine, loaded, cell="m|t")
    made = some.make([Try(p, SAMPLE, 0) for p in ("p2", "p0", "p1")])
    prompts = [engine.text(r.prompt) for r in engine.decoded]
    assert prompts == [table.set_index("problem_id")["prompt"][p] for p in ("p2", "p0", "p1")]
    for name, result in zip(("p2", "p0", "p1"), made, strict=True):
        row = table.set_index("problem_id").loc[name]
        assert result["correct"] == task.verify(row["prompt"], row["answer"], result["text"])
        assert result["tokens"] == [*engine.encode(result["text"]), END] and result["n_ancestor_tokens"] == 0


# ------------------------------------------------------------------ the record


def test_a_record_is_read_back_instead_of_computed(loaded: Settings, tmp_path: Path) -> None:
    tries = [Try("p0", SAMPLE, 0, score=True), Try("p2", SAMPLE, 0)]
    record = tmp_path / "deep" / "record"
    first = waves(loaded, Told(), Judged(), record=record, mark="m").make(tries)
    engine = Told()
    again = waves(loaded, engine, Judged(), record=record, mark="m")
    assert again.make(tries) == first and again.clock == {} and engine.requests == []
    again.make([Try("p1", "retry", 0)])  # beyond the record
    assert len(engine.requests) == 1 and set(again.clock) == {"decode", "verify", "score"}
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert lines[0] == {"mark": "m"} and [len(line["results"]) for line in lines[1:]] == [2, 1]
    assert lines[1]["asked"] == [["p0", SAMPLE, 0], ["p2", SAMPLE, 0]]


def test_a_record_of_other_attempts_or_of_another_job_is_refused(loaded: Settings, tmp_path: Path) -> None:
    record = tmp_path / "record"
    waves(loaded, Told(), Judged(), record=record, mark="m").make([Try("p0", SAMPLE, 0)])
    with pytest.raises(SalvageError, match="wave 1 is not of this job; delete it"):
        waves(loaded, Told(), Judged(), record=record, mark="m").make([Try("p0", SAMPLE, 1)])
    with pytest.raises(SalvageError, match="begun with other models, problems, settings or policy"):
        waves(loaded, Told(), Judged(), record=record, mark="another")
    record.write_text("")  # a start that did nothing, or a torn first line
    assert waves(loaded, Told(), Judged(), record=record, mark="m")._recorded == []
    assert record.read_text() == '{"mark": "m"}\n'


def test_models_are_opened_once_and_closed_and_a_shared_judge_is_left_alone(loaded: Settings) -> None:
    engine, judge, opened = Told(), Judged(), []

    def open_engine() -> Any:
        opened.append(1)
        return engine

    some = Waves(table(), open_engine, loaded, cell="m|t", judge=judge)  # type: ignore[arg-type]
    some.close()
    assert opened == [] and engine.closed == 0
    some.make([Try("p0", SAMPLE, 0)])
    some.make([Try("p0", "retry", 0)])
    some.close()
    assert opened == [1] and engine.closed == 1 and judge.closed == 0


def test_a_judge_of_its_own_is_made_of_the_problems_and_closed(
    loaded: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, asked = Judged(), []

    def made(problems: pd.DataFrame, *, seconds: float) -> Judged:
        asked.append((len(problems), seconds))
        return judge

    monkeypatch.setattr("salvage.rescue.waves.Judge", made)
    some = Waves(table(), lambda: Told(), loaded, cell="m|t")  # type: ignore[arg-type, return-value]
    some.make([Try("p0", SAMPLE, 0)])
    some.make([Try("p1", SAMPLE, 0)])
    some.close()
    assert asked == [(3, loaded["rescue"]["verify_seconds"])] and judge.closed == 1 and len(judge.texts) == 2


@pytest.mark.parametrize(("verifier", "agreement"), [("lab", 1.0), ("exact", 0.5)])
def test_the_verifier_says_what_of_a_text_agrees(loaded: Settings, verifier: str, agreement: float) -> None:
    class Ends(Told):
        def text(self, tokens: list[int]) -> str:
            return f"{tokens[0]}#4"  # the lab's answer is what follows '#'

    some = Waves(table(verifier=verifier), Ends, loaded, cell="m|t", judge=Judged())  # type: ignore[arg-type]
    told = some.make([Try("p0", SAMPLE, 1, score=True, failed=[[5, 6, 7, 8]])])[0]["scored"]
    assert told["facts"]["agreement"] == agreement
