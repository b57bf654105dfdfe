"""Per-token signals: the golden file, the mathematics, and the input that has no answer."""

import json
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.errors import SalvageError
from salvage.method.features import trajectory_features
from salvage.method.signals import token_signals

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "signals.json"


@st.composite
def pairs(draw):
    """Two models' logits [T, V] and the tokens taken."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tokens, vocabulary = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    scale = draw(st.sampled_from([0.0, 1.0, 5.0, 200.0]))
    z_s, z_a = scale * rng.normal(size=(2, tokens, vocabulary))
    return z_s, z_a, rng.integers(vocabulary, size=tokens)


def equal(one, two, tolerance=1e-9):
    for name in one:
        np.testing.assert_allclose(one[name], two[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden is not beside this checkout")
def test_the_golden_signals_and_features():
    for case in json.loads(GOLDEN.read_text()):
        got = token_signals(
            case["specialist_logits"],
            case["ancestor_logits"],
            case["tokens"],
            temperature=case["temperature"],
            top_k_cov=case["top_k_cov"],
        )
        equal(got, case["expected_signals"], 1e-12)
        assert trajectory_features(got) == pytest.approx(case["expected_features"], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(pairs(), st.floats(-50, 50))
def test_a_shift_of_all_logits_changes_nothing(pair, shift):
    z_s, z_a, tokens = pair
    equal(token_signals(z_s, z_a, tokens), token_signals(z_s + shift, z_a - shift, tokens), 1e-6)


@settings(max_examples=40, deadline=None)
@given(pairs(), st.sampled_from([0.3, 0.6, 1.0, 2.0]), st.integers(1, 50))
def test_bounds(pair, temperature, k):
    z_s, z_a, tokens = pair
    got = token_signals(z_s, z_a, tokens, temperature=temperature, top_k_cov=k)
    assert all(values.shape == tokens.shape and values.dtype == np.float64 for values in got.values())
    assert all(np.isfinite(values).all() for values in got.values())
    assert (got["kl"] >= 0).all() and (got["logit_var"] >= 0).all() and (got["j"] >= 0).all()
    assert (got["entropy"] >= -1e-12).all() and (got["entropy"] <= np.log(z_s.shape[1]) + 1e-9).all()


@settings(max_examples=20, deadline=None)
@given(pairs())
def test_a_model_against_itself_shows_no_pressure(pair):
    z_s, _, tokens = pair
    got = token_signals(z_s, z_s, tokens)
    for name in ("delta_path", "g_cov", "kl", "j"):
        assert not got[name].any(), name


@settings(max_examples=20, deadline=None)
@given(pairs())
def test_positions_do_not_see_each_other(pair):
    z_s, z_a, tokens = pair
    whole = token_signals(z_s, z_a, tokens)
    last = token_signals(z_s[-1:], z_a[-1:], tokens[-1:])
    equal({name: values[-1:] for name, values in whole.items()}, last, 1e-12)


def by_loops(z_s, z_a, tokens, temperature, k):
    """Return the signals a position and a token at a time, by the letter of method.md."""
    told = {name: [] for name in ("delta_path", "g_cov", "logit_var", "entropy", "kl", "j")}
    for ours, theirs, token in zip(z_s.tolist(), z_a.tolist(), tokens, strict=True):
        p_s, p_a, plain = (
            [x - log(sum(exp(y / t) for y in z)) for x in [x / t for x in z]]
            for z, t in ((ours, temperature), (theirs, temperature), (ours, 1.0))
        )
        chance, ids = [exp(x) for x in p_s], range(len(ours))
        delta = p_s[token] - p_a[token]
        top = sorted(ids, key=lambda v: (-p_a[v], v))[:k]
        gap = log((sum(exp(p_a[v]) for v in top) + 1e-8) / (sum(chance[v] for v in top) + 1e-8))
        mean = sum(chance[v] * plain[v] for v in ids)
        told["delta_path"].append(delta)
        told["g_cov"].append(gap)
        told["logit_var"].append(sum(chance[v] * (plain[v] - mean) ** 2 for v in ids))
        told["entropy"].append(-sum(chance[v] * p_s[v] for v in ids))
        told["kl"].append(sum(chance[v] * (p_s[v] - p_a[v]) for v in ids))
        told["j"].append(max(delta, 0) + max(gap, 0))
    return told


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 3, 20, 40])
def test_signals_are_those_of_the_loops(seed, k):
    rng = np.random.default_rng(seed)
    z_s, z_a = 2 * rng.normal(size=(2, 6, 30))
    tokens = rng.integers(30, size=6)
    for temperature in (0.6, 1.0, 1.7):
        expected = by_loops(z_s, z_a, tokens, temperature, k)
        equal(token_signals(z_s, z_a, tokens, temperature=temperature, top_k_cov=k), expected)
    if k == 20:  # and 0.6 and 20 are what it takes untold
        equal(token_signals(z_s, z_a, tokens), by_loops(z_s, z_a, tokens, 0.6, 20))


def test_a_kl_is_never_below_0_by_rounding():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 5))
    shifted = z + rng.normal(size=(2000, 1)) * 10  # the same distribution, rounded otherwise
    got = token_signals(z, shifted, np.zeros(2000, int))["kl"]
    assert got.min() == 0 and got.max() < 1e-12
    assert (got == 0).sum() > 500  # what would be below is put at 0


def test_logit_var_is_the_temperatures_fisher_information():
    # d/db log sum exp(b z), twice, at b = 1/T: the variance of z under p_S
    z, temperature, step = np.array([[1.0, -0.5, 2.0, 0.3]]), 0.6, 1e-4
    free = [np.log(np.exp(b * z).sum()) for b in (1 / temperature - step, 1 / temperature, 1 / temperature + step)]
    got = token_signals(z, z, [0], temperature=temperature)["logit_var"][0]
    assert got == pytest.approx((free[0] - 2 * free[1] + free[2]) / step**2, rel=1e-5)


def test_ties_among_the_ancestors_tokens_go_to_the_lower_id():
    p_s = np.arange(1, 101) / 5050  # long enough that an unstable sort shows
    z_a = np.tile([0.0, 1.0], 50)[None, :]
    got = token_signals(np.log(p_s)[None, :], z_a, [0], temperature=1.0, top_k_cov=10)["g_cov"][0]
    held_a = 10 * np.e / (50 + 50 * np.e)
    assert got == pytest.approx(np.log(held_a / p_s[1:20:2].sum()), abs=1e-6)


def test_an_impossible_token_adds_nothing():
    z_s, z_a = np.array([[1.0, 0.0, 0.5]]), np.array([[0.2, 0.9, 0.1]])
    impossible = np.full((1, 1), -np.inf)
    equal(token_signals(z_s, z_a, [1]), token_signals(np.hstack([z_s, impossible]), np.hstack([z_a, impossible]), [1]))
    certain = token_signals([[0.0, -np.inf]], [[0.0, 0.0]], [0], temperature=1.0)
    assert certain["entropy"][0] == 0 and certain["logit_var"][0] == 0
    assert certain["kl"][0] == pytest.approx(np.log(2))
    # what the ancestor could never say is infinitely far from it, and finite for nobody
    beyond = token_signals([[0.0, 0.0]], [[0.0, -np.inf]], [1])
    assert beyond["kl"][0] == beyond["delta_path"][0] == np.inf


GOOD = np.zeros((2, 3))
LACKING = np.array([[0, -np.inf, -np.inf]] * 3)  # has the first token alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.array([[0, np.nan, 0], [0, 0, 0]]), GOOD, [0, 1]), "specialist's logits at position 0"),
        ((GOOD, np.array([[0, 0, 0], [0, np.inf, 0]]), [0, 1]), "ancestor's logits at position 1"),
        ((GOOD, np.array([[0, 0, 0], [-np.inf] * 3]), [0, 1]), "ancestor's logits at position 1"),
        ((GOOD, np.zeros((2, 4)), [0, 1]), "vocabularies differ: 3 and 4"),
        ((GOOD, np.zeros((1, 3)), [0, 1]), "2 and 1 rows of logits for 2 tokens"),
        ((np.zeros((1, 3)), GOOD, [0, 1]), "1 and 2 rows of logits for 2 tokens; pass one row a token"),
        ((GOOD, GOOD, [0]), "2 and 2 rows of logits for 1 tokens"),
        ((GOOD, GOOD, [0, 1, 2]), "2 and 2 rows of logits for 3 tokens"),
        ((GOOD, np.zeros((2, 2)), [0, 1]), "vocabularies differ: 3 and 2 tokens; pass a pair of one"),
        ((GOOD, GOOD, [0, 3]), "token 3 at position 1 is outside"),
        ((GOOD, GOOD, [0, 4]), "token 4 at position 1 is outside the vocabulary of 3"),
        ((GOOD, GOOD, [-1, 0]), "token -1 at position 0 is outside"),
        ((GOOD, GOOD, [0, -2]), "token -2 at position 1 is outside"),
        ((GOOD, GOOD, [5, -2]), "token 5 at position 0 is outside"),
        ((GOOD, GOOD, [0.0, 1.0]), "whole numbers"),
        ((GOOD[0], GOOD[0], [0]), "must be"),
        ((GOOD[0], GOOD, [0, 1]), "must be"),
        ((GOOD, GOOD[0], [0, 1]), "must be"),
        ((GOOD, GOOD, [[0, 1]]), "must be"),
        ((GOOD[None], GOOD, [0, 1]), "must be"),
        ((np.array([[0, 0, 0], [np.nan, 0, -np.inf]]), GOOD, [0, 1]), "specialist's logits at position 1 are not"),
        ((np.array([[0, 0, 0], [-np.inf, -np.inf, np.inf]]), GOOD, [0, 1]), "specialist's logits at position 1 are"),
        ((np.array([[np.nan, np.inf, 0], [0, 0, 0]]), GOOD, [0, 1]), "specialist's logits at position 0 are not"),
        ((GOOD, np.array([[0, 0, 0], [np.inf, np.nan, 0]]), [0, 1]), "ancestor's logits at position 1 are not"),
        ((np.array([[np.nan] * 3] * 2), GOOD, [0, 1]), "specialist's logits at position 0 are not numbers; score it"),
        ((np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, int)), "no tokens"),
        ((np.array([[0, -np.inf]]), np.array([[0, -np.inf]]), [1]), "token 1 at position 0 is impossible to both"),
        ((LACKING, LACKING, [0, 1, 2]), "token 1 at position 1 is impossible to both models; score the rollout again"),
    ],
)
def test_input_without_an_answer_is_refused(arguments, message):
    with pytest.raises(SalvageError, match=message):
        token_signals(*arguments)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0 must be above 0; at 0 there is no distribution to compare"),
        ({"temperature": -0.5}, "temperature -0.5 must be above 0; at 0 there is no distribution to compare"),
        ({"temperature": float("nan")}, "temperature nan must be above 0; at 0 there is no distribution to compare"),
        ({"top_k_cov": 0}, "top_k_cov 0 must be at least 1"),
        ({"top_k_cov": -3}, "top_k_cov -3 must be at least 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(bad, message):
    with pytest.raises(SalvageError) as told:
        token_signals(GOOD, GOOD, [0, 1], **bad)
    assert str(told.value) == message


def test_one_token_of_one_word_at_a_low_temperature_has_signals():
    got = token_signals([[0.5]], [[9.0]], [0], temperature=1e-3, top_k_cov=1)
    assert {name: values.tolist() for name, values in got.items()} == {name: [0.0] for name in got}
