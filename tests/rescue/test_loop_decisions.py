"""What the loop decides, by hand: waves that answer from a script, no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.policies.fitted import Fitted
from salvage.rescue import loop as loops
from salvage.rescue.guide import Route
from salvage.rescue.loop import Attempt, Budget, Loop, Outcome
from salvage.rescue.waves import SAMPLE, Try

Answer = Callable[[Try], dict[str, Any]]


class Scripted:
    """Waves whose results a function tells; remembers what was asked."""

    cell = "m|t"

    def __init__(self, answer: Answer, *, batch: int = 8, max_tokens: int = 12, clock: bool = True) -> None:
        self.settings = {"sample": {"batch": batch, "max_tokens": max_tokens}}
        self.asked: list[list[Try]] = []
        self.clock: dict[str, tuple[int, int]] = {}
        self._answer, self._clock = answer, clock

    def make(self, tries: list[Try]) -> list[dict[str, Any]]:
        self.asked.append([replace(t, failed=list(t.failed)) for t in tries])  # the loop's own list grows
        n = 10 * len(self.asked)
        self.clock = {"decode": (n, n + 1), "verify": (n + 2, n + 3), "score": (n + 4, n + 5)} if self._clock else {}
        return [result(t, **self._answer(t)) for t in tries]

    @property
    def waves(self) -> list[list[str]]:
        return [[t.problem_id for t in wave] for wave in self.asked]


def result(t: Try, **told: Any) -> dict[str, Any]:
    """Return a wave's result: a failure of ten tokens, unless told otherwise; scored where it was to be."""
    made = {"operator": t.operator, "correct": False, "trouble": "", "text": f"{t.operator}{t.attempt}"}
    made |= {"tokens": [t.attempt, 7], "n_tokens": 10, "n_ancestor_tokens": 0, "position": -1, "truncated": False}
    made |= told
    if t.score and made["correct"] is False and "scored" not in made:
        made["scored"] = {"facts": {"problem_id": t.problem_id}, "n_prefill": 44, "view": {"junction": 1}}
    return made


def problems(n: int) -> pd.DataFrame:
    return pd.DataFrame(
        [{"problem_id": f"p{i}", "prompt": f"{i}+1:", "answer": str(i + 1)} for i in range(n)],
    )


def run(
    budget: Budget, answer: Answer = lambda t: {}, n: int = 1, policy: Any = None, **how: Any
) -> tuple[dict[str, Outcome], Scripted]:
    loop = {name: how.pop(name) for name in ("first", "price") if name in how}
    waves = Scripted(answer, **how)
    done = list(Loop(problems(n), waves, policy, budget, **loop).run())  # type: ignore[arg-type]
    assert len({o.problem_id for o in done}) == len(done) == n
    return {o.problem_id: o for o in done}, waves


POLICY: Any = object()  # `routes` is replaced wherever it would be asked


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the policy: it says dense_steer twice and then retry; return what it is asked."""
    seen: list[dict[str, Any]] = []

    def routes(policy: Fitted, table: pd.DataFrame, left: Any, **how: Any) -> list[Route]:
        assert policy is POLICY
        seen.append({"ids": table["problem_id"].tolist(), "left": None if left is None else left.tolist(), **how})
        return [Route(["dense_steer"] * 2, "retry", [0.5, 0.25], {"policy": "it"}) for _ in table.index]

    monkeypatch.setattr(loops, "routes", routes)
    return seen


# ------------------------------------------------------------------ what a budget buys


def test_a_budget_is_of_attempts_for_each_problem_where_nothing_else_is_said() -> None:
    assert Budget(3) == Budget(3, "attempts", in_all=False)
    assert Budget(1).amount == 1


@pytest.mark.parametrize("amount", [0, -2])
def test_a_budget_that_buys_nothing_is_refused(amount: int) -> None:
    with pytest.raises(SalvageError, match=f"a budget of {amount} tokens buys nothing; give at least 1"):
        Budget(amount, "tokens")


@pytest.mark.parametrize(
    ("decided", "name"),
    [(Budget(3), "amount"), (Attempt("retry", True, 3, -1, ""), "correct"), (Try("p", SAMPLE, 0), "operator"),
     (Route([], "retry"), "then")],
)  # fmt: skip
def test_what_was_decided_does_not_change(decided: Any, name: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(decided, name, 5)


@pytest.mark.parametrize("in_all", [False, True])
def test_a_unit_that_was_read_somewhere_is_the_same_unit(asked: list[dict[str, Any]], in_all: bool) -> None:
    """Equal texts are one object only where the code itself spells them."""
    attempts, tokens = json.loads('["attempts", "tokens"]')
    done, _ = run(Budget(3, attempts, in_all), policy=POLICY)
    assert done["p0"].model_tokens == 30 and asked[0]["by_attempts"] is True
    done, _ = run(Budget(24, tokens, in_all), max_tokens=10)
    assert done["p0"].model_tokens == 20


def test_what_an_attempt_should_cost_is_told_by_the_first_rollouts_alone() -> None:
    # 10 tokens, then 2 a retry: half of ten is left after none, one and two of them
    done, _ = run(Budget(20, "tokens"), lambda t: {"n_tokens": 10 if t.operator == SAMPLE else 2})
    assert [a.model_tokens for a in done["p0"].attempts] == [10, 2, 2, 2]
    # 4 and 8 tokens, so 6 a retry: after four attempts of 24 tokens half of that is left of 27, not of 26
    for amount, begun in ((26, 4), (27, 5)):
        done, _ = run(Budget(amount, "tokens"), lambda t: {"n_tokens": 8 if t.attempt % 2 else 4}, first=2)
        assert [a.model_tokens for a in done["p0"].attempts] == [4, 8, 4, 8, 4][:begun]


def test_where_all_share_tokens_each_is_weighed_by_its_own_cost(asked: list[dict[str, Any]]) -> None:
    # first rollouts of 4 and 10 tokens; then interventions of 8 and 20: with 14 to 17 left the second has less than 10
    tokens = {"p0": 4, "p1": 10}
    for left, second in ((17, ["p0"]), (18, ["p0", "p1"])):
        _, waves = run(Budget(14 + left, "tokens", in_all=True), lambda t: {"n_tokens": tokens[t.problem_id]}, n=2,
                       policy=POLICY, max_tokens=10)  # fmt: skip
        assert waves.waves[:2] == [["p0", "p1"], second]


@pytest.mark.parametrize(
    ("amount", "begun"),
    [(1, 1), (14, 1), (15, 2), (24, 2), (25, 3), (34, 3), (35, 4)],  # of ten tokens each
)
def test_an_attempt_is_begun_where_at_least_half_of_its_cost_is_left(amount: int, begun: int) -> None:
    done, _ = run(Budget(amount, "tokens"))
    assert len(done["p0"].attempts) == begun and done["p0"].status == "spent"
    assert done["p0"].model_tokens == 10 * begun


@pytest.mark.parametrize(("amount", "begun"), [(9, 1), (19, 1), (20, 2), (39, 2), (40, 3)])
def test_an_intervention_should_cost_two_models_and_so_half_of_that(
    asked: list[dict[str, Any]], amount: int, begun: int
) -> None:
    done, _ = run(Budget(amount, "tokens"), lambda t: {"n_ancestor_tokens": 0 if t.operator == SAMPLE else 10},
                  policy=POLICY)  # fmt: skip
    assert [a.operator for a in done["p0"].attempts] == [SAMPLE, "dense_steer", "dense_steer"][:begun]


@pytest.mark.parametrize("amount", [1, 2, 5])
def test_a_budget_of_attempts_counts_the_first_rollout_and_is_never_passed(amount: int) -> None:
    done, _ = run(Budget(amount), n=3)
    assert [len(o.attempts) for o in done.values()] == [amount] * 3
    assert {o.status for o in done.values()} == {"spent"}


@pytest.mark.parametrize(("amount", "begun"), [(14, 1), (15, 2), (24, 2), (25, 3)])
def test_tokens_for_all_are_shared_by_the_same_half(amount: int, begun: int) -> None:
    done, _ = run(Budget(amount, "tokens", in_all=True), n=3, max_tokens=10)
    assert sum(len(o.attempts) for o in done.values()) == begun
    assert {o.status for o in done.values()} == {"spent"}


def test_before_any_rollout_one_should_cost_the_most_tokens_then_their_mean() -> None:
    # 12 tokens at most: a budget of 18 begins two; they took 4 each, so the next should cost 4, and 10 buy three more
    done, waves = run(Budget(18, "tokens", in_all=True), lambda t: {"n_tokens": 4}, n=9)
    assert waves.waves[0] == ["p0", "p1"]
    assert sum(len(o.attempts) for o in done.values()) == 5
    assert waves.waves[1] == ["p2", "p3", "p4"]


def test_attempts_for_all_are_first_rollouts_then_retries() -> None:
    done, waves = run(Budget(5, in_all=True), n=3)
    assert waves.waves == [["p0", "p1", "p2"], ["p0", "p1"]]
    assert {o.problem_id: len(o.attempts) for o in done.values()} == {"p0": 2, "p1": 2, "p2": 1}


def test_a_problem_that_no_budget_reached_is_spent_without_an_attempt() -> None:
    done, _ = run(Budget(1, in_all=True), n=2)
    assert done["p1"].status == "spent" and done["p1"].attempts == [] and done["p1"].answer is None


# ------------------------------------------------------------------ order, operators, tries


def test_a_wave_is_no_larger_than_the_batch_and_fewest_attempts_come_first() -> None:
    _, waves = run(Budget(2), n=5, batch=2)
    assert waves.waves == [["p0", "p1"], ["p2", "p3"], ["p4", "p0"], ["p1", "p2"], ["p3", "p4"]]


def test_open_problems_that_fit_one_wave_keep_their_order() -> None:
    _, waves = run(Budget(2), lambda t: {"correct": t.problem_id == "p1"}, n=3, batch=3)
    assert waves.waves == [["p0", "p1", "p2"], ["p0", "p2"]]


def test_as_many_as_a_wave_holds_or_fewer_keep_their_order_too() -> None:
    # p2 is solved at once: two are left for waves of two, of which p0 was tried more often
    _, waves = run(Budget(4), lambda t: {"correct": t.problem_id == "p2"}, n=3, batch=2)
    assert waves.waves[:3] == [["p0", "p1"], ["p2", "p0"], ["p0", "p1"]]
    solved = ("p2", "p3", "p4")
    _, waves = run(Budget(4), lambda t: {"correct": t.problem_id in solved}, n=5, batch=3)
    assert waves.waves[:3] == [["p0", "p1", "p2"], ["p3", "p4", "p0"], ["p0", "p1"]]


def test_a_problem_between_its_first_rollouts_is_worth_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for what has a chance, and goes before what has none and was tried more often."""
    worth = {"p0": [0.5], "p1": [], "p2": []}
    monkeypatch.setattr(
        loops,
        "routes",
        lambda policy, table, left, **how: [Route(["retry"], "retry", worth[p]) for p in table["problem_id"]],
    )
    _, waves = run(Budget(9, in_all=True), n=3, batch=1, policy=POLICY, first=2)
    # all once; p0 again, is worth 0.5 and goes on; then nothing is known of any, and fewest attempts come first
    assert [w for (w,) in waves.waves] == ["p0", "p1", "p2", "p0", "p0", "p1", "p2", "p1", "p2"]


def test_first_rollouts_then_the_plan_then_what_goes_on(asked: list[dict[str, Any]]) -> None:
    done, waves = run(Budget(6), policy=POLICY, first=2)
    tries = [t for (t,) in waves.asked]
    assert [(t.operator, t.attempt) for t in tries] == [
        (SAMPLE, 0), (SAMPLE, 1), ("dense_steer", 0), ("dense_steer", 1), ("retry", 0), ("retry", 1),
    ]  # fmt: skip
    assert [t.score for t in tries] == [False, True, False, False, False, False]
    assert [t.failed for t in tries] == [[], [[0, 7]], [], [], [], []]
    assert [t.scored is not None for t in tries] == [False, False, True, True, True, True]
    assert done["p0"].why == {"policy": "it"} and len(asked) == 1


def test_retries_alone_are_never_scored() -> None:
    done, waves = run(Budget(4), first=2)
    assert [t.operator for (t,) in waves.asked] == [SAMPLE, SAMPLE, "retry", "retry"]
    assert not any(t.score or t.failed for (t,) in waves.asked)
    assert done["p0"].scored_tokens == 0 and done["p0"].why == {} and done["p0"].failure == {}


def test_what_is_worth_most_comes_first_where_all_share_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = {"p0": [0.1, 0.9], "p1": [0.3], "p2": [0.2, 0.2]}
    monkeypatch.setattr(
        loops,
        "routes",
        lambda policy, table, left, **how: [Route(["retry"], "retry", worth[p]) for p in table["problem_id"]],
    )
    _, waves = run(Budget(8, in_all=True), n=3, batch=1, policy=POLICY)
    # nothing is known of p1 after its one attempt: it waits
    assert [w for (w,) in waves.waves] == ["p0", "p1", "p2", "p1", "p2", "p2", "p0", "p0"]


def test_worth_does_not_order_problems_that_have_budgets_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    worth = {"p0": [0.1], "p1": [0.3]}
    monkeypatch.setattr(
        loops,
        "routes",
        lambda policy, table, left, **how: [Route(["retry"], "retry", worth[p]) for p in table["problem_id"]],
    )
    _, waves = run(Budget(2), n=2, batch=1, policy=POLICY)
    assert [w for (w,) in waves.waves] == ["p0", "p1", "p0", "p1"]


# ------------------------------------------------------------------ what the policy is asked


def test_it_is_asked_once_about_what_failed_with_what_is_left_of_attempts(asked: list[dict[str, Any]]) -> None:
    run(Budget(5), lambda t: {"correct": t.problem_id == "p1"}, n=3, policy=POLICY, price=0.25)
    assert asked == [{"ids": ["p0", "p2"], "left": [4.0, 4.0], "by_attempts": True, "price": 0.25}]


def test_tokens_left_are_told_in_the_problems_own_rollouts_to_half_a_retry(asked: list[dict[str, Any]]) -> None:
    # (60 - 10) / 10 = 5; (60 - 8) / 8 = 6.5; (60 - 14) / 14 = 3.29, to a half 3.5
    tokens = {"p0": 10, "p1": 8, "p2": 14}
    run(Budget(60, "tokens"), lambda t: {"n_tokens": tokens[t.problem_id]}, n=3, policy=POLICY)
    assert asked == [{"ids": ["p0", "p1", "p2"], "left": [5.0, 6.5, 3.5], "by_attempts": False, "price": 0.0}]


def test_after_two_rollouts_a_retry_costs_their_mean(asked: list[dict[str, Any]]) -> None:
    run(Budget(60, "tokens"), lambda t: {"n_tokens": 8 if t.attempt else 4}, policy=POLICY, first=2)
    assert asked[0]["left"] == [8.0]  # (60 - 12) / 6


def test_nothing_is_told_of_what_is_left_where_all_share_it(asked: list[dict[str, Any]]) -> None:
    run(Budget(9, in_all=True), n=2, policy=POLICY)
    assert asked[0]["left"] is None and len(asked) == 1


def test_where_the_budget_is_spent_the_policy_is_not_asked(asked: list[dict[str, Any]]) -> None:
    done, _ = run(Budget(1), policy=POLICY)
    assert asked == [] and done["p0"].status == "spent" and done["p0"].scored_tokens == 44


def test_results_and_routes_are_one_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were one missing, the rest would go to the wrong problems."""
    waves = Scripted(lambda t: {})
    make = waves.make
    monkeypatch.setattr(waves, "make", lambda tries: make(tries)[:-1])
    with pytest.raises(ValueError, match="shorter"):
        list(Loop(problems(2), waves, None, Budget(2)).run())  # type: ignore[arg-type]
    monkeypatch.setattr(loops, "routes", lambda *a, **k: [Route([], "retry")])
    with pytest.raises(ValueError, match="shorter"):
        run(Budget(2), n=2, policy=POLICY)


# ------------------------------------------------------------------ how a problem ends


def test_the_first_right_answer_ends_it_and_is_owed_to_its_operator(asked: list[dict[str, Any]]) -> None:
    done, _ = run(
        Budget(8), lambda t: {"correct": (t.operator, t.attempt) == ("dense_steer", 1), "position": 3}, policy=POLICY
    )
    found = done["p0"]
    assert (found.status, found.answer, found.operator) == ("solved", "dense_steer1", "dense_steer")
    assert [a.correct for a in found.attempts] == [False, False, True]
    assert (found.cell, found.prompt, found.reference) == ("m|t", "0+1:", "1")
    assert (found.model_tokens, found.scored_tokens, found.failure) == (30, 44, {"junction": 1})
    assert found.attempts[1].position == 3 and found.attempts[1].text == "dense_steer0"


def test_a_text_without_a_verdict_ends_it_unverified_and_is_no_failure(asked: list[dict[str, Any]]) -> None:
    done, waves = run(Budget(8), lambda t: {"correct": None, "trouble": "it broke"}, policy=POLICY)
    assert (done["p0"].status, done["p0"].trouble, done["p0"].answer) == ("unverified", "it broke", None)
    assert len(waves.asked) == 1 and asked == []


def test_a_plan_that_stops_ends_it_though_budget_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "routes", lambda *a, **k: [Route(["local_temp"], "stop", [0.1], {"policy": "x"})])
    done, waves = run(Budget(8), policy=POLICY)
    assert done["p0"].status == "stopped" and [t.operator for (t,) in waves.asked] == [SAMPLE, "local_temp"]
    shared, _ = run(Budget(8, in_all=True), policy=POLICY)
    assert shared["p0"].status == "stopped" and len(shared["p0"].attempts) == 2


def test_both_models_tokens_are_paid(asked: list[dict[str, Any]]) -> None:
    done, _ = run(Budget(3), lambda t: {"n_tokens": 3, "n_ancestor_tokens": 4}, policy=POLICY)
    assert [a.model_tokens for a in done["p0"].attempts] == [7, 7, 7] and done["p0"].model_tokens == 21


def test_times_are_those_of_the_waves_and_none_where_a_record_was_read(asked: list[dict[str, Any]]) -> None:
    timed, _ = run(Budget(2), policy=POLICY)
    steps = timed["p0"].times
    assert [s for s in steps if s[0] != "route"] == [
        ("sample", 10, 11), ("verify", 12, 13), ("score", 14, 15), ("intervene", 20, 21), ("verify", 22, 23),
    ]  # fmt: skip
    name, start, end = steps[3]
    assert name == "route" and 0 < start <= end
    read, _ = run(Budget(2), policy=POLICY, clock=False)
    assert read["p0"].times == [(name, 0, 0) for name in ("sample", "verify", "score", "route", "intervene", "verify")]


WHOLE = {"truncated": False}


def test_a_line_is_all_of_an_outcome_but_its_times(asked: list[dict[str, Any]]) -> None:
    done, _ = run(Budget(2), lambda t: {"correct": t.operator != SAMPLE, "n_ancestor_tokens": 1}, policy=POLICY)
    assert done["p0"].times and "times" not in repr(done["p0"])
    assert json.loads(done["p0"].line()) == {
        "cell": "m|t", "problem_id": "p0", "prompt": "0+1:", "reference": "1", "status": "solved",
        "answer": "dense_steer0", "operator": "dense_steer",
        "attempts": [
            {"operator": SAMPLE, "correct": False, "model_tokens": 11, "position": -1, "text": "sample0"} | WHOLE,
            {"operator": "dense_steer", "correct": True, "model_tokens": 11, "position": -1, "text": "dense_steer0"}
            | WHOLE,
        ],
        "model_tokens": 22, "scored_tokens": 44, "why": {"policy": "it"}, "failure": {"junction": 1}, "trouble": "",
    }  # fmt: skip
