"""Which tokens a draw may take: vLLM's own kept sets, token for token, and draws that follow what is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from salvage.engine.base import COV, PATH, Intervention, Request, Sampling
from salvage.engine.signals import LARGE
from salvage.engine.steering import Plan, choose, draw
from salvage.engine.truncation import probabilities, truncated
from salvage.errors import SalvageError

ROWS = 250  # of each of the 16 kinds of rows below: 4,000
SIZES = {37: torch.float64, 300: torch.float64, LARGE: torch.float64, 5000: torch.float32}


def rows(kind: str, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Return logits of a kind: peaked and flat, rounded until many tie, and with what can never be said."""
    z = torch.randn(ROWS, size, generator=torch.Generator().manual_seed(size), dtype=dtype)
    z *= torch.linspace(0.05, 12, ROWS, dtype=dtype)[:, None]
    if kind == "ties":
        return z.round()
    if kind == "bfloat16":
        return z.bfloat16().to(dtype)
    if kind == "extremes":
        z[::2, 1:] = -torch.inf  # one token alone
        z[1::4] = 0.0  # all alike
        z[3::8, size // 2 :] = -torch.inf
        z[7::8, 2] = 1e4
    return z


def settings(n: int) -> list[Sampling]:
    """Return as many settings, alone and together, with the ends of each."""
    rng = np.random.default_rng(0)
    top_p, min_p = [0.95, 0.8, 0.5, 0.05, 1e-6, 0.9999], [0.05, 0.1, 0.5, 1.0, 1e-4]
    made = []
    for i in range(n):
        which = 1 + i % 7
        made.append(
            Sampling(
                0.6,
                top_p=float(rng.choice(top_p)) if which & 1 else 1.0,
                top_k=int(rng.choice([1, 2, 20, 50, 10_000])) if which & 2 else 0,
                min_p=float(rng.choice(min_p)) if which & 4 else 0.0,
            )
        )
    return made


def by_vllm(z: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return which tokens vLLM's own sampler keeps: its min_p processor, then its top_k and top_p."""
    from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    z, n = z.clone(), len(z)
    min_p = object.__new__(MinPLogitsProcessor)  # its state is what `apply` reads, and these two are all of it
    min_p.min_p_count, min_p.min_p = int(sampling.min_p > 0), torch.full((n, 1), sampling.min_p)
    z = min_p.apply(z)
    k = torch.full((n,), min(sampling.top_k, z.shape[1])) if sampling.top_k else None
    p = torch.full((n,), sampling.top_p) if sampling.top_p < 1 else None
    return apply_top_k_top_p(z, k, p) > -torch.inf


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["random", "ties", "bfloat16", "extremes"])
def test_the_kept_set_is_vllms_token_for_token(size: int, kind: str) -> None:
    z = rows(kind, size, SIZES[size]) / 0.6
    for start, sampling in zip(range(0, ROWS, 5), settings(ROWS // 5), strict=True):
        some = z[start : start + 5]
        kept, theirs = truncated(some, sampling) > -torch.inf, by_vllm(some, sampling)
        # at top_p's edge its sort takes any of those that tie, so there it is their number that is the same
        edge = torch.where(theirs, some, torch.inf).amin(-1, keepdim=True)
        assert kept.sum(-1).equal(theirs.sum(-1)), sampling
        assert kept[some != edge].equal(theirs[some != edge]), sampling
        for row, (mine, at_edge) in enumerate(zip(kept, some == edge, strict=True)):  # the lower ids of those that tie
            assert mine[at_edge].int().diff().le(0).all(), (sampling, row)


@pytest.mark.parametrize("size", [300, 5000])
def test_most_rows_are_not_sorted_and_those_near_the_edge_are(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from salvage.engine import truncation

    seen: list[int] = []
    exact = truncation._edge
    monkeypatch.setattr(truncation, "_edge", lambda z, p: seen.append(len(z)) or exact(z, p))
    z = torch.zeros(3, size)
    z[0, :4], z[1, :4] = (
        torch.tensor([0.4, 0.3, 0.25, 0.05]).log() + 30,
        torch.tensor([0.5, 0.25, 0.2, 0.05]).log() + 30,
    )
    kept = truncated(z, Sampling(1.0, top_p=0.75)) > -torch.inf
    assert seen == [2]  # the edge of row 1 lies where the sum is 0.75, and row 2 is flat
    assert kept[0].nonzero()[:, 0].tolist() == [0, 1, 2]
    assert kept[2].nonzero()[:, 0].tolist() == list(range(round(0.75 * size)))


@pytest.mark.parametrize("size", [50, 5000])
@pytest.mark.parametrize(
    "sampling", [Sampling(0.8, 0.9), Sampling(0.8, top_k=5), Sampling(0.8, min_p=0.1), Sampling(0.8, 0.7, 9, 0.02)]
)
def test_draws_follow_what_is_left(size: int, sampling: Sampling) -> None:
    z = (
        torch.randn(1, size, generator=torch.Generator().manual_seed(3))
        .mul(4)
        .to(torch.float64 if size < LARGE else torch.float32)
    )
    n = 20_000
    uniform = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    weights = probabilities(z / sampling.temperature, sampling)
    drawn = np.bincount(draw(weights.expand(n, -1), uniform), minlength=size)
    kept = by_vllm(z / sampling.temperature, sampling)[0].numpy()
    assert not drawn[~kept].any()
    whole = torch.softmax(z / sampling.temperature, -1)[0].double().numpy()
    expected = whole[kept] / whole[kept].sum() * n
    assert stats.chisquare(drawn[kept], expected).pvalue > 1e-3


@pytest.mark.parametrize("size", [9, 5000])
def test_every_drawn_token_is_truncated_after_the_mix_and_no_other(size: int) -> None:
    z_s = torch.randn(1, size, generator=torch.Generator().manual_seed(0)) * 3
    z_a = torch.randn(1, size, generator=torch.Generator().manual_seed(1)) * 3
    sampling = Sampling(0.6, top_k=2)
    n = 300
    uniform = torch.rand(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    at, everyone = torch.zeros(n, dtype=torch.long), torch.arange(n)

    def seen(act: Intervention, sampling: Sampling = sampling, greedy: bool = False) -> set[int]:
        some = [Request([1], k, intervention=act, greedy=greedy) for k in range(n)]
        plan = Plan.of(Plan.columns(some), torch.device("cpu"))
        both = z_s.expand(n, -1), z_a.expand(n, -1)
        token, _ = choose(*both, everyone, plan, at, uniform, sampling=sampling, top_k_cov=3)
        return set(token.tolist())

    best = lambda z: set(z.topk(2).indices[0].tolist())  # noqa: E731
    mixed = 0.7 * z_s + 0.3 * z_a
    halves = 0.7 * torch.softmax(z_s / 0.6, -1) + 0.3 * torch.softmax(z_a / 0.6, -1)
    assert seen(Intervention()) == best(z_s)
    assert seen(Intervention("local_temp", position=0, local_temperature=5.0)) == best(z_s)
    assert seen(Intervention("dense", mix=PATH)) == best(mixed)
    assert seen(Intervention("dense", mix=COV)) == best(halves)
    narrow = replace(sampling, top_k=1)
    assert seen(Intervention("sparse", position=0, mix=PATH), narrow) == {int(mixed.argmax())}
    assert seen(Intervention(), narrow) == seen(Intervention(), sampling, greedy=True) == {int(z_s.argmax())}


def test_the_watched_j_is_of_the_whole_distributions() -> None:
    z_s, z_a = torch.zeros(1, 6), torch.zeros(1, 6)
    z_s[0, 0], z_a[0, 1] = 9.0, 9.0  # the specialist draws 0; truncated to it alone, j of what it leaves is infinite
    act = Intervention("sparse", threshold=40.0, mix=PATH)
    plan = Plan.of(Plan.columns([Request([1], 0, intervention=act)]), torch.device("cpu"))
    zero = torch.zeros(1, dtype=torch.long)
    for sampling in (Sampling(1.0), Sampling(1.0, top_k=1), Sampling(1.0, min_p=1.0), Sampling(1.0, top_p=1e-3)):
        token, fire = choose(z_s, z_a, zero, plan, zero, torch.zeros(1, 2), sampling=sampling, top_k_cov=3)
        assert token.tolist() == [0] and not fire.any()


@pytest.mark.parametrize("size", [7, 5000])
def test_what_is_no_number_is_refused_and_not_truncated_away(size: int) -> None:
    for bad in (torch.nan, torch.inf):
        z = torch.randn(3, size, generator=torch.Generator().manual_seed(0))
        z[1, 2] = bad
        for sampling in (Sampling(1.0, top_p=0.5), Sampling(1.0, top_k=2), Sampling(1.0, min_p=0.5)):
            with pytest.raises(SalvageError, match="not numbers"):
                draw(probabilities(z, sampling), torch.rand(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"temperature": 0.0}, "temperature is 0.0, but must be a finite number above 0"),
        ({"top_p": 0.0}, "top_p is 0.0, but must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k is -1, but must be 0 or more"),
        ({"min_p": 1.5}, "min_p is 1.5, but must be from 0 to 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict, told: str) -> None:
    with pytest.raises(SalvageError, match=told):
        Sampling(**({"temperature": 0.6} | values))
