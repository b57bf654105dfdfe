"""What is done to logits at one position, in float64 for small vocabularies and in float32 for large ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.engine.base import COV, PATH, Intervention, Request, Sampling
from salvage.engine.signals import LARGE, coverage_gap
from salvage.engine.signals import token_signals as on_tensors
from salvage.engine.steering import Plan, choose, draw, mix
from salvage.errors import SalvageError
from salvage.method.signals import token_signals

SIZES = [7, LARGE, LARGE + 1, 5000]


def logits(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 4


@pytest.mark.parametrize("size", SIZES)
def test_a_draw_inverts_the_cumulative_distribution(size: int) -> None:
    weights = torch.softmax(logits(40, size), -1)
    uniform = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cumulative = weights.double().numpy().cumsum(-1)
    at = uniform.numpy() * cumulative[:, -1]
    expected = [int(np.searchsorted(row, u, side="right")) for row, u in zip(cumulative, at, strict=True)]
    assert draw(weights, uniform).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**31), st.floats(0, 1, exclude_max=True))
def test_a_draw_never_takes_what_has_no_weight(size: int, seed: int, uniform: float) -> None:
    rng = np.random.default_rng(seed)
    weights = torch.from_numpy(rng.random((1, size)) * (rng.random((1, size)) < 0.05)).float()
    weights[0, int(rng.integers(size))] = 1.0
    for u in (0.0, uniform, 1 - 2**-53):
        assert weights[0, draw(weights, torch.tensor([u], dtype=torch.float64))[0]] > 0


@pytest.mark.parametrize("size", SIZES)
def test_logits_that_are_no_numbers_are_refused(size: int) -> None:
    z = logits(3, size)
    z[1, 2] = torch.nan
    plan = Plan.of(Plan.columns([Request([1], k) for k in range(3)]), torch.device("cpu"))
    nothing = torch.zeros(3, dtype=torch.long)
    with pytest.raises(SalvageError, match=r"logits are not numbers \(NaN or infinite\)"):
        choose(z, None, nothing, plan, nothing, torch.rand(3, 2), sampling=Sampling(0.6), top_k_cov=3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [PATH, COV])
def test_a_mix_is_that_of_the_method_and_its_ends_are_the_models(size: int, kind: int) -> None:
    z_s, z_a = logits(3, size).double(), logits(3, size, 1).double()
    z_s[:, 0] = z_a[:, 1] = -torch.inf  # a token that one model cannot say
    alpha = torch.tensor([1.0, 0.0, 0.3], dtype=torch.float64)
    mixed = mix(torch.full((3,), kind), alpha, z_s, z_a, 0.6)
    p_s, p_a = torch.softmax(z_s / 0.6, -1), torch.softmax(z_a / 0.6, -1)
    third = torch.softmax((0.3 * z_s + 0.7 * z_a)[2] / 0.6, -1) if kind == PATH else (0.3 * p_s + 0.7 * p_a)[2]
    torch.testing.assert_close(mixed, torch.stack([p_s[0], p_a[1], third]))
    both = mix(torch.tensor([kind, 1 - kind, kind]), alpha, z_s, z_a, 0.6)
    torch.testing.assert_close(both[[0, 2]], mixed[[0, 2]])


@pytest.mark.parametrize("size", SIZES)
def test_only_rows_that_hear_are_steered_and_a_watch_fires_where_j_passes(size: int) -> None:
    z_s, z_a = logits(6, size), logits(6, size, 1)
    acts = [Intervention(), Intervention("sparse", threshold=0.0, alpha=0.0), Intervention("sparse", threshold=1e9)]
    plan = Plan.of(Plan.columns([Request([1], k, intervention=acts[k % 3]) for k in range(6)]), torch.device("cpu"))
    at, heard = torch.arange(6), torch.tensor([1, 2, 4, 5])
    uniform = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    values = {"sampling": Sampling(0.6), "top_k_cov": 3}
    token, fire = choose(z_s, z_a[heard], heard, plan, at, uniform, **values)
    plain, _ = choose(z_s, None, heard, plan, at, uniform, **values)
    assert fire.tolist() == [False, True, False, False, True, False]
    assert token[~fire].equal(plain[~fire])
    assert token[fire].equal(z_a[fire].argmax(-1))


@pytest.mark.parametrize("size", SIZES)
def test_signals_on_tensors_are_those_in_numpy(size: int) -> None:
    z_s, z_a = logits(50, size), logits(50, size, 1)
    tokens = torch.randint(size, (50,), generator=torch.Generator().manual_seed(3))
    told = on_tensors(z_s, z_a, tokens, temperature=0.6, top_k_cov=20)
    exact = token_signals(z_s.double().numpy(), z_a.double().numpy(), tokens.numpy(), temperature=0.6, top_k_cov=20)
    for name, values in exact.items():
        np.testing.assert_allclose(told[name], values, atol=1e-9 if size <= LARGE else 2e-5, err_msg=name)


def test_what_one_model_cannot_say_is_exact_in_a_large_vocabulary_too() -> None:
    z_s, z_a = logits(4, 5000), logits(4, 5000, 1)
    z_s[:, 3] = z_a[:, 3] = -torch.inf
    tokens = torch.arange(10, 14)
    told = on_tensors(z_s, z_a, tokens, temperature=0.6, top_k_cov=20)
    exact = token_signals(z_s.double().numpy(), z_a.double().numpy(), tokens.numpy(), temperature=0.6, top_k_cov=20)
    for name, values in exact.items():
        np.testing.assert_allclose(told[name], values, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("size", [9, 5000])
def test_ties_at_the_edge_go_to_the_lower_token(size: int) -> None:
    p_a = torch.full((2, size), 0.5 / size)
    p_a[:, 2] = 0.5
    p_s = torch.zeros(2, size)
    p_s[0, 0], p_s[1, 3] = 1.0, 1.0  # of those that tie, 0 is among the ancestor's two and 3 is not
    gap = coverage_gap(p_s, p_a, 2)
    assert gap[0] < 0 < gap[1]
