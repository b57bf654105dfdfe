"""Per-token signals: the golden file, the mathematics, and the input that has no answer."""

import json
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.array([[0, np.nan, 0], [0, 0, 0]]), GOOD, [0, 1]), "specialist's logits at position 0"),
        ((GOOD, np.array([[0, 0, 0], [0, np.inf, 0]]), [0, 1]), "ancestor's logits at position 1"),
        ((GOOD, np.array([[0, 0, 0], [-np.inf] * 3]), [0, 1]), "ancestor's logits at position 1"),
        ((GOOD, np.zeros((2, 4)), [0, 1]), "vocabularies differ: 3 and 4"),
        ((GOOD, np.zeros((1, 3)), [0, 1]), "2 and 1 rows of logits for 2 tokens"),
        ((GOOD, GOOD, [0]), "for 1 tokens"),
        ((GOOD, GOOD, [0, 3]), "token 3 at position 1 is outside"),
        ((GOOD, GOOD, [-1, 0]), "token -1 at position 0 is outside"),
        ((GOOD, GOOD, [0.0, 1.0]), "whole numbers"),
        ((GOOD[0], GOOD[0], [0]), "must be"),
        ((np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, int)), "no tokens"),
        ((np.array([[0, -np.inf]]), np.array([[0, -np.inf]]), [1]), "token 1 at position 0 is impossible to both"),
    ],
)
def test_input_without_an_answer_is_refused(arguments, message):
    with pytest.raises(SalvageError, match=message):
        token_signals(*arguments)


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_k_cov": 0}])
def test_settings_without_a_meaning_are_refused(bad):
    with pytest.raises(SalvageError, match=next(iter(bad))):
        token_signals(GOOD, GOOD, [0, 1], **bad)
