"""The letter of method.md on models of a few tokens, where every choice can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from typing import Any

import numpy as np
import pytest

from salvage.engine.base import COV, PATH, Completion, Intervention, Request, Sampling
from salvage.method.reference import Array, Model, _fires, decode, kept, mixed, softmax
from salvage.method.reference import drawn as drawn_by
from salvage.method.signals import token_signals

PROMPT = [7, 7]


def drawn(weights: Array, uniform: float) -> int:
    return drawn_by(weights, uniform, Sampling(1.0))


def sure(tokens: list[int]) -> Model:
    """Return a model of four tokens that says these in turn, surely: at a completion's position t, tokens[t]."""

    def logits(so_far: list[int]) -> Array:
        assert so_far[:2] == PROMPT
        at = len(so_far) - 2
        return np.where(np.arange(4) == tokens[at % len(tokens)], 50.0, 0.0)

    return logits


def always(*logits: float) -> Model:
    return lambda so_far: np.array(logits)


def whole(tokens: list[int], n_tokens: int, n_ancestor_tokens: int, n_prefill: int, position: int) -> Completion:
    """Return a completion that is truncated where its last new token is no end, 3."""
    ended = n_tokens > 0 and tokens[-1] == 3
    return Completion(tokens, n_tokens, n_ancestor_tokens, n_prefill, position, truncated=not ended)


def answered(
    act: Intervention | None = None,
    *,
    specialist: Model | None = None,
    ancestor: Model | None = None,
    prefix: list[int] | None = None,
    seed: int = 0,
    greedy: bool = False,
    temperature: float = 1.0,
    most: int = 6,
    **kept_of: float,
) -> Completion:
    """Decode with a specialist that says 0 1 2 0 1 2 and an ancestor that says 1 all the time; 3 ends."""
    act = act or Intervention()
    act = replace(act, kind=act.kind.encode().decode())  # equal to the code's own, and another object
    request = Request(PROMPT, seed, prefix=prefix or [], intervention=act, greedy=greedy)
    pair = specialist or sure([0, 1, 2]), ancestor or sure([1])
    sampling = Sampling(temperature, **kept_of)  # type: ignore[arg-type]
    return decode(*pair, request, sampling=sampling, max_tokens=most, ends=[3], top_k_cov=4)


# ------------------------------------------------------------------ where it begins, acts and ends


def test_a_plain_decode_goes_on_to_the_most_tokens_or_an_end() -> None:
    assert answered() == whole([0, 1, 2, 0, 1, 2], 6, 0, 2, -1)
    assert answered(most=2) == whole([0, 1], 2, 0, 2, -1)
    assert answered(specialist=sure([0, 3, 1])) == whole([0, 3], 2, 0, 2, -1)  # the end is said


def test_a_prefix_is_kept_and_not_paid_for_and_its_own_end_does_not_end() -> None:
    assert answered(prefix=[2, 3]) == whole([2, 3, 2, 0, 1, 2], 4, 0, 4, -1)
    assert answered(prefix=[2, 2, 2], specialist=sure([0, 1, 2, 3])) == whole([2, 2, 2, 3], 1, 0, 5, -1)
    assert answered(prefix=[1] * 6) == whole([1] * 6, 0, 0, 8, -1)


@pytest.mark.parametrize("mix", [PATH, COV, None])
@pytest.mark.parametrize("position", range(5))
def test_sparse_takes_the_mixs_best_at_its_position(mix: int | None, position: int) -> None:
    """Weighed 0.3 to 0.7, both mixes have the ancestor's 1 there; until then it is heard, and there once more."""
    expected = [0, 1, 2, 0, 1, 2]
    expected[position] = 1
    act = Intervention("sparse", position=position, mix=mix, alpha=0.3)
    assert answered(act) == whole(expected, 6, position + 1, 4, position)
    mine = Intervention("sparse", position=position, mix=mix, alpha=0.7)
    assert answered(mine) == whole([0, 1, 2, 0, 1, 2], 6, position + 1, 4, position)


def test_a_position_within_the_prefix_has_passed() -> None:
    act = Intervention("sparse", position=1, mix=PATH, alpha=0.3)
    assert answered(act, prefix=[0, 1]) == whole([0, 1, 2, 0, 1, 2], 4, 0, 8, -1)
    at = Intervention("sparse", position=2, mix=PATH, alpha=0.3)
    assert answered(at, prefix=[0, 1]) == whole([0, 1, 1, 0, 1, 2], 4, 1, 8, 2)
    assert answered(Intervention("sparse", position=9)) == whole([0, 1, 2, 0, 1, 2], 6, 6, 4, -1)


def test_watching_it_acts_once_where_j_first_reaches_the_threshold() -> None:
    """Where the specialist says 0 or 2 the ancestor would not; j is large there, and 0 where both say 1."""
    expected = {0: ([1, 1, 2, 0, 1, 2], 0), 1: ([0, 1, 1, 0, 1, 2], 2), 2: ([0, 1, 1, 0, 1, 2], 2)}
    expected |= {3: ([0, 1, 2, 1, 1, 2], 3), 4: ([0, 1, 2, 0, 1, 1], 5)}
    for warmup, (tokens, at) in expected.items():
        act = Intervention("sparse", threshold=5.0, warmup=warmup, mix=PATH, alpha=0.3)
        assert answered(act) == whole(tokens, 6, at + 1, 4, at)
    assert answered(Intervention("sparse", threshold=1e9)) == whole([0, 1, 2, 0, 1, 2], 6, 6, 4, -1)
    both = Intervention("sparse", threshold=1e9, position=2, mix=PATH, alpha=0.3)
    assert answered(both) == whole([0, 1, 1, 0, 1, 2], 6, 3, 4, 2)  # the position at the latest


def test_the_threshold_itself_is_reached() -> None:
    z_s, z_a = np.array([0.0, 0.5, 0.0, -9.0]), np.array([1.0, 0.0, 0.0, -9.0])
    for token in range(3):
        j = token_signals(z_s[None], z_a[None], [token], temperature=0.8, top_k_cov=4)["j"][0]
        for threshold, acts in ((j, True), (j + 1e-9, False)):
            act = Intervention("sparse", threshold=threshold, mix=PATH)
            seed = next(s for s in range(99) if drawn(softmax(z_s / 0.8), first(s, 1)) == token)
            told = answered(act, specialist=always(*z_s), ancestor=always(*z_a), seed=seed, temperature=0.8, most=1)
            assert (told.position == 0) == acts


def first(seed: int, most: int, row: int = 0, at: int = 0) -> float:
    return float(np.random.Generator(np.random.Philox(seed)).random((2, most))[row, at])


def test_local_temperature_redraws_one_token_and_never_asks_the_ancestor_but_to_watch() -> None:
    for seed in range(5):
        act = Intervention("local_temp", position=2, local_temperature=30.0)
        token = drawn(softmax(np.array([0, 0, 50.0, 0]) / 30), first(seed, 6, 1, 2))
        tokens = [0, 1, token, 0, 1, 2] if token != 3 else [0, 1, 3]
        assert answered(act, seed=seed) == whole(tokens, len(tokens), 0, 2, 2)
    watching = answered(Intervention("local_temp", threshold=5.0, local_temperature=0.1))
    assert watching == whole([0, 1, 2, 0, 1, 2], 6, 1, 4, 0)


def test_dense_mixes_every_token() -> None:
    for mix in (PATH, COV, None):
        assert answered(Intervention("dense", mix=mix, alpha=0.0)) == whole([1] * 6, 6, 6, 4, -1)
        assert answered(Intervention("dense", mix=mix, alpha=1.0)) == whole([0, 1, 2, 0, 1, 2], 6, 6, 4, -1)
    wrong = Intervention("dense", mix=PATH, wrong=True, alpha=0.0)
    assert answered(wrong, prefix=[0]) == whole([0, 1, 1, 1, 1, 1], 5, 5, 6, -1)


def test_greedy_takes_the_best_and_a_dense_best_is_the_mixs() -> None:
    close = always(0.0, 0.2, 0.1, -9.0)
    assert answered(specialist=close, greedy=True).tokens == [1] * 6
    sampled = [answered(specialist=close, seed=s).tokens for s in range(20)]
    assert len({tuple(tokens) for tokens in sampled}) > 10
    act = Intervention("dense", mix=PATH, alpha=0.5, greedy=True)
    assert answered(act, specialist=close, ancestor=always(0.0, 0.0, 0.2, -9.0)).tokens == [2] * 6
    loose = Intervention("dense", mix=PATH, alpha=0.5)
    told = answered(loose, specialist=close, ancestor=always(0.0, 0.0, 0.2, -9.0), greedy=True)
    assert told.tokens != [2] * 6  # greedy is the specialist's; the mix is still drawn from


# ------------------------------------------------------------------ chance


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_each_position_has_its_own_random_number(temperature: float) -> None:
    z_s, z_a = np.array([0.3, 0.0, 0.6, -1e9]), np.array([0.0, 0.9, 0.0, -1e9])
    pair = {"specialist": always(*z_s), "ancestor": always(*z_a), "temperature": temperature, "most": 8}
    for seed in range(10):
        plain = [drawn(softmax(z_s / temperature), first(seed, 8, 0, t)) for t in range(8)]
        assert answered(seed=seed, **pair).tokens == plain  # type: ignore[arg-type]
        prefixed = answered(seed=seed, prefix=[1, 1, 1], **pair)  # type: ignore[arg-type]
        assert prefixed.tokens == [1, 1, 1, *plain[3:]]  # the same as if it had come that way
        act = Intervention("dense", mix=COV, alpha=0.4)
        mix = 0.4 * softmax(z_s / temperature) + 0.6 * softmax(z_a / temperature)
        dense = answered(act, seed=seed, **pair)  # type: ignore[arg-type]
        assert dense.tokens == [drawn(mix, first(seed, 8, 0, t)) for t in range(8)]


def test_a_token_is_drawn_by_inverting_the_cumulative_weights() -> None:
    weights = np.array([1.0, 0.0, 2.0, 1.0])
    expected = {0.0: 0, 0.249: 0, 0.25: 2, 0.5: 2, 0.749: 2, 0.75: 3, 0.999: 3, 1.0: 3}
    assert {u: drawn(weights, u) for u in expected} == expected
    assert drawn(np.array([0.5, 0.5, 0.0]), 1.0) == 2  # past the end there is only the last


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(1.0), [1, 4, 2, 2, 0, 1]),
        (Sampling(1.0, min_p=0.5), [0, 4, 2, 2, 0, 0]),  # what is just half of the likeliest stays
        (Sampling(1.0, min_p=0.51), [0, 4, 0, 0, 0, 0]),
        (Sampling(1.0, min_p=1.0), [0, 4, 0, 0, 0, 0]),
        (Sampling(1.0, top_k=1), [0, 4, 0, 0, 0, 0]),
        (Sampling(1.0, top_k=2), [0, 4, 2, 2, 0, 0]),  # with all that tie with the last
        (Sampling(1.0, top_k=4), [1, 4, 2, 2, 0, 1]),
        (Sampling(1.0, top_k=5), [1, 4, 2, 2, 0, 1]),
        (Sampling(1.0, top_k=6), [1, 4, 2, 2, 0, 1]),
        (Sampling(1.0, top_k=99), [1, 4, 2, 2, 0, 1]),
        (Sampling(1.0, top_p=0.1), [0, 4, 0, 0, 0, 0]),
        (Sampling(1.0, top_p=0.4), [0, 4, 0, 0, 0, 0]),  # 0.4 of 1 alone
        (Sampling(1.0, top_p=0.5), [0, 4, 2, 0, 0, 0]),  # of those that tie the lower id
        (Sampling(1.0, top_p=0.7), [0, 4, 2, 2, 0, 0]),
        (Sampling(1.0, top_p=0.85), [1, 4, 2, 2, 0, 0]),
        (Sampling(1.0, top_p=0.95), [1, 4, 2, 2, 0, 1]),
        (Sampling(1.0, top_k=2, top_p=0.6), [0, 4, 2, 0, 0, 0]),  # 4 of the 8 left, then 6
        (Sampling(1.0, min_p=0.5, top_p=0.45), [0, 4, 0, 0, 0, 0]),  # 4 of 8: of what the others leave
    ],
)
def test_what_a_draw_may_take_by_hand(sampling: Sampling, left: list[int]) -> None:
    weights = np.array([1.0, 4, 2, 2, 0, 1])
    assert kept(weights, sampling).tolist() == left
    assert kept(weights / 10, sampling) == pytest.approx(np.array(left) / 10)
    assert weights.tolist() == [1, 4, 2, 2, 0, 1]
    for uniform in (0.0, 0.3, 0.6, 0.99):
        assert drawn_by(weights, uniform, sampling) == drawn(np.array(left, np.float64), uniform)


def test_every_draw_is_of_what_is_kept_and_every_best_of_all() -> None:
    """Flat models, of which top_k leaves the likeliest two: at any temperature, in a mix, at a local temperature."""
    z_s, z_a = [0.3, 0.2, 0.1, -9.0], [0.0, 0.1, 0.3, -9.0]
    pair: dict[str, Any] = {"specialist": always(*z_s), "ancestor": always(*z_a), "top_k": 2}
    cases = [
        (None, {0, 1}),
        (Intervention("dense", mix=PATH, alpha=0.0), {1, 2}),
        (Intervention("dense", mix=COV, alpha=0.0, greedy=True), {2}),
        (Intervention("local_temp", position=0, local_temperature=9.0), {0, 1}),
        (Intervention("sparse", position=0, mix=PATH, alpha=0.0), {2, 0, 1}),
    ]
    for act, allowed in cases:
        told = [answered(act, seed=seed, **pair).tokens for seed in range(20)]
        assert {token for tokens in told for token in tokens} == allowed
    local = Intervention("local_temp", position=0, local_temperature=0.001)
    assert {answered(local, seed=seed, **pair).tokens[0] for seed in range(20)} == {0}
    # j is of the whole distributions: truncated to one token there would be none to watch
    watching = Intervention("sparse", threshold=0.2, mix=PATH, alpha=0.0)
    assert answered(watching, **(pair | {"top_k": 1})).position == 0


def test_probabilities_by_hand_and_for_any_size_of_logits() -> None:
    np.testing.assert_allclose(softmax(np.log([1.0, 2.0, 5.0])), [1 / 8, 2 / 8, 5 / 8])
    np.testing.assert_allclose(softmax(np.array([5000.0, 5000.0 - log(3)])), [3 / 4, 1 / 4])
    np.testing.assert_allclose(softmax(np.array([-5000.0, -np.inf])), [1, 0])


@pytest.mark.parametrize(("kind", "wrong", "cov"), [(PATH, 0, 0), (COV, 0, 1), (PATH, 1, 1), (COV, 1, 0), (None, 0, 0)])
def test_the_mixes_by_hand(kind: int | None, wrong: bool, cov: bool) -> None:
    z_s, z_a, alpha, temperature = [0.0, 1.0, 3.0], [2.0, 0.5, -1.0], 0.7, 0.6

    def shares(weights: list[float]) -> list[float]:
        return [weight / sum(weights) for weight in weights]

    if cov:  # a mean of probabilities
        ours, theirs = (shares([exp(x / temperature) for x in z]) for z in (z_s, z_a))
        expected = [alpha * s + (1 - alpha) * a for s, a in zip(ours, theirs, strict=True)]
    else:  # a mean of logits
        both = [alpha * s + (1 - alpha) * a for s, a in zip(z_s, z_a, strict=True)]
        expected = shares([exp(x / temperature) for x in both])
    act = Intervention("sparse", wrong=bool(wrong), alpha=alpha)
    np.testing.assert_allclose(mixed(act, kind, np.array(z_s), np.array(z_a), temperature), expected)


def test_the_larger_part_of_j_at_the_junction_decides_the_mix() -> None:
    """Taken 0, which the ancestor hardly has, delta_path is the larger; taken 1, which both have, g_cov is."""
    z_s, z_a = np.log([0.9, 0.1, 1e-9, 1e-30]), np.log([1e-9, 0.45, 0.55, 1e-30])
    best = {PATH: 1, COV: 0}
    for kind, token in best.items():
        assert mixed(Intervention(alpha=0.45), kind, z_s, z_a, 1.0).argmax() == token
    for taken, kind in ((0, PATH), (1, COV)):
        told = token_signals(z_s[None], z_a[None], [taken], temperature=1.0, top_k_cov=1)
        assert (told["delta_path"][0] > max(told["g_cov"][0], 0)) == (kind == PATH)
        seed = next(s for s in range(99) if drawn(softmax(z_s), first(s, 1)) == taken)
        for wrong in (False, True):
            act = Intervention("sparse", position=0, wrong=wrong, alpha=0.45)
            request = Request(PROMPT, seed, intervention=act)
            done = decode(
                always(*z_s), always(*z_a), request, sampling=Sampling(1.0), max_tokens=1, ends=[3], top_k_cov=1
            )
            assert done.tokens == [best[1 - kind if wrong else kind]]


def test_the_parts_are_compared_at_any_size_and_below_0_they_are_none() -> None:
    """At random, from a hundredth of a nat to several: what the taken token tells against what the likeliest two do."""
    rng, told = np.random.default_rng(0), set()
    for scale in [0.01, 0.1, 0.5, 2.0] * 10:
        z_s, z_a = scale * rng.normal(size=(2, 4))
        ours, theirs = softmax(z_s / 0.8), softmax(z_a / 0.8)
        top = np.argsort(-theirs)[:2]
        gap = log(sum(theirs[top]) / sum(ours[top]))
        for token in range(4):
            delta = log(ours[token] / theirs[token])
            kind = PATH if max(delta, 0) >= max(gap, 0) else COV
            assert _fires(Intervention("sparse", position=0), 0, z_s, z_a, token, 0.8, 2) == (True, kind)
            told.add((kind, delta > 0, gap > 0))
    assert told == {
        (PATH, True, True),
        (COV, True, True),
        (COV, False, True),
        (PATH, True, False),
        (PATH, False, False),
    }


def test_of_equal_parts_the_path_decides() -> None:
    z = np.array([0.0, 1.0, 2.0, -9.0])
    assert _fires(Intervention("sparse", position=3), 3, z, z, 0, 1.0, 2) == (True, PATH)
    assert _fires(Intervention("sparse", position=3, mix=COV), 3, z, z, 0, 1.0, 2) == (True, COV)
    assert _fires(Intervention("sparse", position=3), 2, z, z, 0, 1.0, 2) is None
    assert _fires(Intervention("sparse", position=int("1000")), int("1000"), z, z, 0, 1.0, 2) == (True, PATH)
    assert _fires(Intervention("sparse", position=10**3), 999, z, z, 0, 1.0, 2) is None
    both = Intervention("sparse", position=int("1000"), threshold=1e9)
    assert _fires(both, int("1000"), z, z, 0, 1.0, 2) == (True, PATH) and _fires(both, 999, z, z, 0, 1.0, 2) is None
