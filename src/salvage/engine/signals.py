"""The per-token signals of method.md on tensors: the twin of `salvage.method.signals`, for where the logits are born.

A test holds the two equal. This one exists because moving a vocabulary of logits a token off the device to numpy
costs more than computing them.
"""

from __future__ import annotations

import torch

LARGE = 4096  # entries; a larger vocabulary is computed in float32, its rows in pieces that stay in a cache
_PIECE = 1 << 20  # entries at once: 4 MB of float32


def token_signals(
    specialist: torch.Tensor, ancestor: torch.Tensor, tokens: torch.Tensor, *, temperature: float, top_k_cov: int
) -> dict[str, torch.Tensor]:
    """Return the signals [positions] in float64 from logits [positions, vocabulary] and tokens [positions]."""
    size = specialist.shape[-1]
    infinite = size > LARGE and bool(torch.isinf(specialist.amin()) | torch.isinf(ancestor.amin()))
    if size <= LARGE or infinite:
        return _exact(specialist.double(), ancestor.double(), tokens, temperature, top_k_cov)
    rows = torch.arange(len(tokens), device=tokens.device).split(max(1, _PIECE // size))
    parts = [
        _fast(specialist[some].float(), ancestor[some].float(), tokens[some], temperature, top_k_cov) for some in rows
    ]
    return {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}


def _exact(
    specialist: torch.Tensor, ancestor: torch.Tensor, tokens: torch.Tensor, temperature: float, top_k_cov: int
) -> dict[str, torch.Tensor]:
    log_s, log_a = torch.log_softmax(specialist / temperature, -1), torch.log_softmax(ancestor / temperature, -1)
    p_s, p_a = log_s.exp(), log_a.exp()
    plain = torch.log_softmax(specialist, -1)
    taken = tokens[:, None]
    delta_path = (log_s.gather(1, taken) - log_a.gather(1, taken))[:, 0]
    g_cov = coverage_gap(p_s, p_a, top_k_cov)
    mean = _expect(p_s, plain)
    return {
        "delta_path": delta_path,
        "g_cov": g_cov,
        "logit_var": _expect(p_s, (plain - mean[:, None]) ** 2),
        "entropy": -_expect(p_s, log_s),
        "kl": _expect(p_s, log_s - log_a).clamp(min=0),
        "j": delta_path.clamp(min=0) + g_cov.clamp(min=0),
    }


def _fast(
    z_s: torch.Tensor, z_a: torch.Tensor, tokens: torch.Tensor, temperature: float, top_k_cov: int
) -> dict[str, torch.Tensor]:
    """Compute the same of finite logits in a third of the passes: expectations of logits instead of log distributions.

    Logits are taken less their largest, so that float32 loses nothing where the probability is.
    """
    z_s, z_a = z_s - z_s.amax(-1, keepdim=True), z_a - z_a.amax(-1, keepdim=True)
    e_s, e_a = (z_s / temperature).exp_(), (z_a / temperature).exp_()
    sum_s, sum_a = e_s.sum(-1), e_a.sum(-1)
    log_s, log_a = sum_s.log(), sum_a.log()
    taken = tokens[:, None]
    delta_path = (z_s.gather(1, taken) - z_a.gather(1, taken))[:, 0] / temperature - log_s + log_a
    mean, mean_a = (e_s * z_s).sum(-1) / sum_s, (e_s * z_a).sum(-1) / sum_s
    logit_var = (e_s * (z_s - mean[:, None]).square_()).sum(-1) / sum_s
    g_cov = coverage_gap(e_s.div_(sum_s[:, None]), e_a.div_(sum_a[:, None]), top_k_cov)
    return {
        "delta_path": delta_path,
        "g_cov": g_cov,
        "logit_var": logit_var,
        "entropy": log_s - mean / temperature,
        "kl": ((mean - mean_a) / temperature - log_s + log_a).clamp(min=0),
        "j": delta_path.clamp(min=0) + g_cov.clamp(min=0),
    }


def coverage_gap(p_s: torch.Tensor, p_a: torch.Tensor, k: int) -> torch.Tensor:
    """Return g_cov [rows]: how much less than the ancestor the specialist holds on the ancestor's k likeliest tokens.

    A mask rather than `topk`'s indices, which promise no order among ties; and rather than a sort of the vocabulary.
    """
    k = min(k, p_a.shape[-1])
    if p_a.shape[-1] > max(k, LARGE):
        most = p_a.topk(k + 1, dim=-1)
        if (most.values[:, k - 1] > most.values[:, k]).all():  # no tie at the edge, so the indices say it all
            held_a, held_s = most.values[:, :k].sum(-1), p_s.gather(1, most.indices[:, :k]).sum(-1)
            return torch.log((held_a + 1e-8) / (held_s + 1e-8))
    least = p_a.topk(k, dim=-1).values[:, -1:]
    top = first_of_ties(p_a, least, k)
    held_a, held_s = torch.where(top, p_a, 0.0).sum(-1), torch.where(top, p_s, 0.0).sum(-1)
    return torch.log((held_a + 1e-8) / (held_s + 1e-8))


def first_of_ties(values: torch.Tensor, least: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
    """Return which `count` entries of a row [rows, entries] are its largest, ties at `least` to the lower id."""
    above, tied = values > least, values == least
    return above | (tied & (tied.cumsum(-1) <= count - above.sum(-1, keepdim=True)))


def _expect(p: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the mean of values under p; what has no probability adds nothing, even where it is infinite."""
    return torch.where(p > 0, p * values, 0.0).sum(-1)
