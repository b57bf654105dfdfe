"""Operators: where they act, with what mix, and with whose random numbers."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from salvage.engine.base import COV, PATH, Intervention, Request, seed_of
from salvage.method.operators import TIE, FailedRollout, Failure, failures, request
from salvage.tables import vocabulary

SETTINGS = {"alpha": 0.7, "warmup": 2, "local_temperatures": [1.0, 1.5, 2.0], "dense_decode": "sample"}
FAILURE = Failure(
    "p",
    prompt=[9, 9],
    rollouts=[
        FailedRollout([1, 2, 3, 4, 5, 6], junction=3, mixes=np.array([0, 0, 0, COV, 0, 0])),
        FailedRollout([1, 2, 3], junction=1, mixes=np.array([0, PATH, 1])),
    ],
    threshold=0.8,
)


def ask(operator: str, attempt: int = 0, **changes: Any) -> Any:
    given_ = {"anchor": "online", "continuation": "temperature", "donors": [5, 7], "seed": 0, "cell": "c"}
    return request(FAILURE, operator, attempt, settings=SETTINGS, **{**given_, **changes})


def test_retry_does_nothing_but_sample() -> None:
    for anchor in ("online", "position"):
        asked = ask("retry", anchor=anchor)
        assert asked.intervention.kind == "none" and not asked.prefix and not asked.intervention.needs_ancestor
    assert ask("retry", anchor="replay").prefix == [1, 2, 3]


def test_online_watches_and_position_and_replay_act_at_the_junction() -> None:
    for operator in ("sparse_steer", "sparse_steer_wrong", "local_temp"):
        online = ask(operator).intervention
        assert (online.threshold, online.warmup, online.position) == (0.8, 2, None)
        for attempt, junction in enumerate((3, 1, 3)):
            assert ask(operator, attempt, anchor="position").intervention.position == junction
            replay = ask(operator, attempt, anchor="replay")
            assert len(replay.prefix) == replay.intervention.position == junction
    assert ask("sparse_steer", anchor="position").intervention.mix == COV
    assert ask("sparse_steer", 1, anchor="position").intervention.mix == PATH
    assert ask("sparse_steer_wrong", anchor="position").intervention.wrong


@given(attempt=st.integers(0, 200), anchor=st.sampled_from(vocabulary.ANCHORS))
def test_controls_act_inside_the_failed_rollout_and_never_watch(attempt: int, anchor: str) -> None:
    rollout = FAILURE.rollouts[attempt % 2]
    for operator in ("sparse_steer_random", "sparse_steer_matched"):
        act = ask(operator, attempt, anchor=anchor).intervention
        assert act.threshold is None and 0 <= act.position < len(rollout.tokens)
    last = len(rollout.tokens) - 1
    assert ask("sparse_steer_matched", attempt, donors=[1]).intervention.position == 1
    assert ask("sparse_steer_matched", attempt, donors=[99]).intervention.position == last


def test_random_positions_are_uniform_over_the_rollout() -> None:
    drawn = [ask("sparse_steer_random", a).intervention.position for a in range(0, 6000, 2)]
    share = np.bincount(drawn, minlength=6) / len(drawn)
    assert np.abs(share - 1 / 6).max() < 0.03


def test_local_temperatures_take_turns_and_dense_follows_the_junctions_mix() -> None:
    assert [ask("local_temp", a).intervention.local_temperature for a in range(4)] == [1.0, 1.5, 2.0, 1.0]
    assert ask("dense_steer").intervention.mix == COV and ask("dense_steer", 1).intervention.mix == PATH


def test_seeds_depend_on_cell_problem_operator_and_attempt_alone() -> None:
    seeds = {ask(o, a, cell=c).seed for o in vocabulary.OPERATORS for a in range(12) for c in "xy"}
    assert len(seeds) == 5 * 12 * 2
    assert ask("retry", anchor="online").seed == ask("retry", anchor="replay", donors=[]).seed


@pytest.mark.parametrize("continuation", vocabulary.CONTINUATIONS)
def test_continuation_is_greedy_or_not(continuation: str) -> None:
    assert ask("sparse_steer", continuation=continuation).greedy == (continuation == "greedy")


KIND = {
    "retry": "none",
    "sparse_steer": "sparse",
    "sparse_steer_random": "sparse",
    "sparse_steer_matched": "sparse",
    "sparse_steer_wrong": "sparse",
    "local_temp": "local_temp",
    "dense_steer": "dense",
}


def where(operator: str, attempt: int, donors: list[int], seed: int) -> int:
    """Return where an operator acts: at the junction, or at a position of the attempt's own draw."""
    rollout = FAILURE.rollouts[attempt % 2]
    rng = np.random.default_rng(seed_of(seed, "position"))
    if operator == "sparse_steer_random":
        return int(rng.integers(len(rollout.tokens)))
    if operator == "sparse_steer_matched" and donors:
        return min(donors[rng.integers(len(donors))], len(rollout.tokens) - 1)
    return rollout.junction


def read(name: str) -> str:
    """Return the name as it comes from a file: equal to the code's own, and another object."""
    return name.encode().decode()


@pytest.mark.parametrize("operator", [*vocabulary.OPERATORS, *vocabulary.CONTROLS])
@pytest.mark.parametrize("anchor", vocabulary.ANCHORS)
def test_every_operator_at_every_anchor_is_the_request_of_the_table(operator: str, anchor: str) -> None:
    for attempt, continuation, decode, donors in product(
        range(7), vocabulary.CONTINUATIONS, ["sample", "argmax"], [[], [0, 2, 4, 9]]
    ):
        seed = seed_of(5, "c", "p", operator, attempt)
        rollout, at = FAILURE.rollouts[attempt % 2], where(operator, attempt, donors, seed)
        watched = anchor == "online" and operator in ("sparse_steer", "sparse_steer_wrong", "local_temp")
        kind = KIND[operator]
        once = kind in ("sparse", "local_temp") and not watched
        decided = kind == "dense" or (kind == "sparse" and not watched)
        assert request(
            FAILURE,
            read(operator),
            attempt,
            cell="c",
            anchor=read(anchor),
            continuation=read(continuation),
            donors=donors,
            seed=5,
            settings=SETTINGS | {"dense_decode": read(decode)},
        ) == Request(
            prompt=[9, 9],
            seed=seed,
            prefix=rollout.tokens[:at] if anchor == "replay" else [],
            intervention=Intervention(
                kind=kind,
                threshold=0.8 if watched else None,
                warmup=2,
                position=at if once else None,
                mix=int(rollout.mixes[at]) if decided else None,
                wrong=operator == "sparse_steer_wrong",
                alpha=0.7,
                local_temperature=[1.0, 1.5, 2.0][attempt % 3],
                greedy=kind == "dense" and decode == "argmax",
            ),
            greedy=continuation == "greedy",
        )


def test_what_is_asked_is_not_changed_afterwards() -> None:
    for frozen, name in ((FAILURE, "threshold"), (FAILURE.rollouts[0], "junction")):
        with pytest.raises(FrozenInstanceError):
            setattr(frozen, name, 1)


def test_failures_gathers_thresholds_mixes_and_the_problems_order() -> None:
    key = {"cell": "c", "problem_id": ["b", "a", "b"], "rollout": [0, 2, 1]}
    rollouts = pd.DataFrame({**key, "tokens": [[1, 2], [3], [4, 5]]})
    j = [np.array([0.0, 1.0]), np.array([2.0]), np.array([0.5, 0.5])]
    delta = [np.array([-1.0, 1.0]), np.array([0.0]), np.array([0.1, 0.5])]
    gap = [np.array([-1.0, 0.0]), np.array([2.0]), np.array([0.4, -0.1])]
    empty = {name: [[]] * 3 for name in vocabulary.SIGNALS if name not in ("j", "delta_path", "g_cov")}
    signals = pd.DataFrame({**key, "j": j, "delta_path": delta, "g_cov": gap, **empty})
    features = pd.DataFrame({**key, "junction": [1, 0, 0]})
    found = failures({"a": [7], "b": [8]}, rollouts, signals, features, quantile=0.5)
    assert [f.problem_id for f in found] == ["a", "b"]
    # less TIE: a decode that takes a failed rollout's way again meets its very j, rounded
    assert found[1].threshold == 0.5 - TIE and found[0].threshold == 2.0 - TIE and TIE == 1e-3
    tiny = signals.assign(j=[values / 1000 for values in j])
    found_tiny = failures({"a": [7], "b": [8]}, rollouts, tiny, features, quantile=0.5)
    assert found_tiny[1].threshold == 0.5e-3 / 2  # below TIE, and still above the j of most positions
    assert [list(r.mixes) for r in found[1].rollouts] == [[PATH, PATH], [COV, PATH]]
    assert [r.tokens for r in found[1].rollouts] == [[1, 2], [4, 5]]


def test_a_threshold_is_a_quantile_of_j_over_all_of_a_problems_rollouts() -> None:
    key = {"cell": "c", "problem_id": "a", "rollout": [0, 1]}
    j = [np.array([0.1, 0.9, 0.5]), np.array([0.3, 0.7])]
    zeros = [np.zeros(3), np.zeros(2)]
    signals = pd.DataFrame({**key, "j": j, "delta_path": zeros, "g_cov": zeros})
    rollouts = pd.DataFrame({**key, "tokens": [[1, 2, 3], [4, 5]]})
    for quantile, high in ((0.0, 0.1), (0.5, 0.5), (0.75, 0.7), (0.875, 0.8), (1.0, 0.9)):
        (found,) = failures({"a": [7]}, rollouts, signals, pd.DataFrame({**key, "junction": [1, 0]}), quantile)
        assert found.threshold == pytest.approx(high - 1e-3, abs=1e-12) and found.prompt == [7]
    assert [r.junction for r in found.rollouts] == [1, 0]
    assert [r.mixes.tolist() for r in found.rollouts] == [[PATH] * 3, [PATH] * 2]  # a tie is the path's


def test_a_threshold_is_of_the_part_of_each_rollout_that_counts() -> None:
    key = {"cell": "c", "problem_id": "a", "rollout": [0, 1]}
    j = [np.array([9.0, 0.1, 0.5, 9.0]), np.array([9.0, 0.3, 0.7])]
    zeros = [np.zeros(4), np.zeros(3)]
    signals = pd.DataFrame({**key, "j": j, "delta_path": zeros, "g_cov": zeros})
    rollouts = pd.DataFrame({**key, "tokens": [[1, 2, 3, 4], [4, 5, 6]]})
    features = pd.DataFrame({**key, "junction": [2, 1], "part_start": [1, 1], "part_end": [3, 3]})
    for quantile, high in ((0.0, 0.1), (0.5, 0.4), (1.0, 0.7)):
        (found,) = failures({"a": [7]}, rollouts, signals, features, quantile)
        assert found.threshold == pytest.approx(high - 1e-3, abs=1e-12)
    assert [(r.tokens, r.junction, len(r.mixes)) for r in found.rollouts] == [([1, 2, 3, 4], 2, 4), ([4, 5, 6], 1, 3)]
    (whole,) = failures({"a": [7]}, rollouts, signals, features.drop(columns=["part_start", "part_end"]), 1.0)
    assert whole.threshold == pytest.approx(9 - 1e-3)


def test_the_larger_part_of_j_decides_the_mix_and_below_0_there_is_none() -> None:
    cases = [(0.2, 0.1, PATH), (0.1, 0.2, COV), (-5.0, 0.1, COV), (-5.0, -1.0, PATH), (0.5, -9.0, PATH), (-1, 0, PATH)]
    delta, gap, mix = (list(column) for column in zip(*cases, strict=True))
    key = {"cell": "c", "problem_id": "a", "rollout": [0]}
    signals = pd.DataFrame({**key, "j": [np.ones(6)], "delta_path": [np.array(delta)], "g_cov": [np.array(gap)]})
    rollouts = pd.DataFrame({**key, "tokens": [list(range(6))]})
    (found,) = failures({"a": []}, rollouts, signals, pd.DataFrame({**key, "junction": [0]}), 0.9)
    assert found.rollouts[0].mixes.tolist() == mix
