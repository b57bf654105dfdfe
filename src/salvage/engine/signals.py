"""The per-token signals of method.md on tensors: the twin of `salvage.signals`, for where the logits are born.

A test holds the two equal. This one exists because moving a vocabulary of logits a token off the device to numpy
costs more than computing them.
"""

from __future__ import annotations

import torch


def token_signals(
    specialist: torch.Tensor, ancestor: torch.Tensor, tokens: torch.Tensor, *, temperature: float, top_k_cov: int
) -> dict[str, torch.Tensor]:
    """Return the signals [positions] in float64 from logits [positions, vocabulary] and tokens [positions]."""
    specialist, ancestor = specialist.double(), ancestor.double()
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


def coverage_gap(p_s: torch.Tensor, p_a: torch.Tensor, k: int) -> torch.Tensor:
    """Return g_cov [rows]: how much less than the ancestor the specialist holds on the ancestor's k likeliest tokens.

    A mask rather than `topk`'s indices, which promise no order among ties; and rather than a sort of the vocabulary.
    """
    k = min(k, p_a.shape[-1])
    least = p_a.topk(k, dim=-1).values[:, -1:]
    above, tied = p_a > least, p_a == least
    top = above | (tied & (tied.cumsum(-1) <= k - above.sum(-1, keepdim=True)))  # ties to the lower id
    held_a, held_s = torch.where(top, p_a, 0.0).sum(-1), torch.where(top, p_s, 0.0).sum(-1)
    return torch.log((held_a + 1e-8) / (held_s + 1e-8))


def _expect(p: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the mean of values under p; what has no probability adds nothing, even where it is infinite."""
    return torch.where(p > 0, p * values, 0.0).sum(-1)
