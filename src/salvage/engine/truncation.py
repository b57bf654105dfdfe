"""Which tokens a draw may take: min_p, then top_k, then top_p, as vLLM keeps them. Both engines draw with it."""

from __future__ import annotations

import torch

from salvage.engine.base import Sampling
from salvage.engine.signals import first_of_ties

_HEAD = 128  # likeliest entries, in which the edge of top_p is looked for before a whole row is sorted
_SURE = 1e-5  # of probability: nearer to the edge than that, a row is summed in vLLM's order to the bit


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return what is drawn from [rows, vocabulary]: logits that are at their temperature, truncated where asked for."""
    return torch.softmax(truncated(logits, sampling) if sampling.truncates else logits, -1)


def truncated(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Return logits [rows, vocabulary], which are at their temperature, with what a draw may not take at -infinity.

    The order and the arithmetic are vLLM's, whose settings are float32: min_p of the largest probability; the top_k
    largest and all that tie with the last of them; of what is left the fewest likeliest that have at least top_p
    together. Of those that tie at that edge the lower ids are kept, where vLLM leaves it to the order of a sort.
    """
    if sampling.min_p > 0:
        p = torch.softmax(logits, -1)
        logits = torch.where(p < p.amax(-1, keepdim=True) * _single(sampling.min_p, logits), -torch.inf, logits)
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = torch.where(logits < logits.topk(sampling.top_k).values[:, -1:], -torch.inf, logits)
    return _top_p(logits, sampling.top_p) if sampling.top_p < 1 else logits


def _top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Leave out what top_p does. A row's edge is found among its likeliest entries, else by sorting the row."""
    size = logits.shape[-1]
    if size <= 2 * _HEAD:
        return _cut(logits, *_edge(logits, top_p))
    most = logits.topk(_HEAD + 1).values
    p = (most.double() - most[:, :1]).exp() / (logits - most[:, :1]).exp().sum(-1, keepdim=True)
    likelier = p.cumsum(-1) - p
    count = (likelier[:, :_HEAD] < top_p).sum(-1, keepdim=True).clamp(min=1)
    edge = most.gather(1, count - 1)
    # not where it is no number
    sure = ((likelier - top_p).abs().amin(-1) > _SURE) & (likelier[:, _HEAD] >= top_p)
    others = (~sure).nonzero()[:, 0]
    if len(others):
        found = _edge(logits[others], top_p)
        edge, count = (old.index_copy(0, others, new) for old, new in zip((edge, count), found, strict=True))
    return _cut(logits, edge, count)


def _edge(logits: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the smallest logit that top_p keeps and how many entries it keeps, [rows, 1] each, in vLLM's arithmetic:
    probabilities are summed from the smallest on.
    """
    ordered = logits.sort(dim=-1).values
    without = torch.softmax(ordered, -1).cumsum(-1) <= 1 - _single(top_p, logits)
    without[:, -1] = False  # at least one is kept
    left_out = without.sum(-1, keepdim=True)
    return ordered.gather(1, left_out), logits.shape[-1] - left_out


def _cut(logits: torch.Tensor, edge: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Keep the `count` largest, of which `edge` is the smallest; what is no number stays, and is refused later."""
    out = logits < edge
    if ((~out).sum(-1, keepdim=True) > count).any():  # more that tie than are kept
        out |= (logits == edge) & ~first_of_ties(logits, edge, count)
    return torch.where(out, -torch.inf, logits)


def _single(value: float, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32, device=like.device)
