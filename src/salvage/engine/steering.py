"""What is done to a batch's logits at one position: drawing, watching j, mixing. Both engines decode with it.

Everything is tensor arithmetic over the batch; rows differ in their entries of a `Plan`. Small vocabularies, such as
the lab's, are computed in float64, large ones in float32: there the logits' own rounding is larger than what float64
would save, and the passes over the vocabulary are what steering costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from salvage.engine.base import COV, PATH, Request, Sampling
from salvage.engine.signals import LARGE, coverage_gap
from salvage.engine.truncation import probabilities
from salvage.errors import SalvageError

_BLOCK = 256  # entries that a draw from a large vocabulary sums first


@dataclass
class Plan:
    """The interventions of a batch as tensors, one entry a row."""

    sparse: torch.Tensor
    local: torch.Tensor
    dense: torch.Tensor
    dense_greedy: torch.Tensor
    watches: torch.Tensor
    threshold: torch.Tensor
    warmup: torch.Tensor
    position: torch.Tensor  # -1: none
    mix: torch.Tensor  # -1: the junction decides
    wrong: torch.Tensor
    alpha: torch.Tensor
    local_temperature: torch.Tensor
    greedy: torch.Tensor

    @staticmethod
    def columns(requests: list[Request]) -> dict[str, list[Any]]:
        """Return the entries of a plan as plain lists, which go between processes."""
        acts = [r.intervention for r in requests]
        return {
            "sparse": [a.kind == "sparse" for a in acts],
            "local": [a.kind == "local_temp" for a in acts],
            "dense": [a.kind == "dense" for a in acts],
            "dense_greedy": [a.kind == "dense" and a.greedy for a in acts],
            "watches": [a.watches for a in acts],
            "threshold": [float("inf") if a.threshold is None else float(a.threshold) for a in acts],
            "warmup": [a.warmup for a in acts],
            "position": [-1 if a.position is None else a.position for a in acts],
            "mix": [-1 if a.mix is None else a.mix for a in acts],
            "wrong": [a.wrong for a in acts],
            "alpha": [float(a.alpha) for a in acts],
            "local_temperature": [float(a.local_temperature) for a in acts],
            "greedy": [r.greedy for r in requests],
        }

    @classmethod
    def of(cls, columns: dict[str, list[Any]], device: torch.device) -> Plan:
        tensors = {name: torch.tensor(values, device=device) for name, values in columns.items()}
        real = ("threshold", "alpha", "local_temperature")
        return cls(**{name: t.double() if name in real else t for name, t in tensors.items()})

    def keep(self, rows: torch.Tensor) -> Plan:
        return Plan(**{name: value[rows] for name, value in vars(self).items()})


def uniforms(seeds: list[int], max_tokens: int) -> np.ndarray:
    """Return every request's own random numbers [request, plain or intervened, position of the completion]."""
    return np.stack([np.random.Generator(np.random.Philox(seed)).random((2, max_tokens)) for seed in seeds])


def choose(
    z_s: torch.Tensor,
    z_a: torch.Tensor | None,
    heard: torch.Tensor,
    plan: Plan,
    at: torch.Tensor,
    uniform: torch.Tensor,
    *,
    sampling: Sampling,
    top_k_cov: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the token that every row takes at its position, and which rows an intervention acted on there.

    Parameters
    ----------
    z_s : Tensor [rows, vocabulary]
        The specialist's logits.
    z_a : Tensor [len(heard), vocabulary] or None
        The ancestor's, of the rows `heard`, which are sorted.
    at : Tensor [rows]
        Index in the completion of the token to be taken.
    uniform : Tensor [rows, 2]
        Random numbers in [0, 1): for a plain token, and for one that an intervention draws again.
    """
    z_s = working(z_s)
    token = torch.zeros_like(at)
    best, drawn = ((~plan.dense & g).nonzero()[:, 0] for g in (plan.greedy, ~plan.greedy))
    if len(best):
        token = token.index_copy(0, best, _take(z_s, best).argmax(-1))
    if len(drawn):
        weights = probabilities(_take(z_s, drawn) / sampling.temperature, sampling)
        token = token.index_copy(0, drawn, draw(weights, uniform[drawn, 0]))
    fire = plan.position == at
    if z_a is not None and len(heard):
        token, fire = _steer(token, fire, heard, z_s, working(z_a), plan, at, uniform, sampling, top_k_cov)
    local = (fire & plan.local).nonzero()[:, 0]
    if len(local):
        weights = probabilities(z_s[local] / plan.local_temperature[local, None].to(z_s.dtype), sampling)
        token = token.index_copy(0, local, draw(weights, uniform[local, 1]))
    return token, fire


def _steer(
    token: torch.Tensor,
    fire: torch.Tensor,
    heard: torch.Tensor,
    z_s: torch.Tensor,
    z_a: torch.Tensor,
    plan: Plan,
    at: torch.Tensor,
    uniform: torch.Tensor,
    sampling: Sampling,
    top_k_cov: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Watch j and mix, for the rows `heard`; return the tokens and who fired. Only rows that need j pay for it."""
    mine, fires, kind = plan.keep(heard), fire[heard], plan.mix[heard]
    look = (mine.watches | (mine.sparse & fires & (mine.mix < 0))).nonzero()[:, 0]
    if len(look):
        rows = heard[look]
        log_s = torch.log_softmax(_take(z_s, rows) / sampling.temperature, -1)
        log_a = torch.log_softmax(_take(z_a, look) / sampling.temperature, -1)
        taken = token[rows, None]
        delta = (log_s.gather(1, taken) - log_a.gather(1, taken))[:, 0].clamp(min=0)
        gap = coverage_gap(log_s.exp(), log_a.exp(), top_k_cov).clamp(min=0)
        watched = mine.watches[look] & (at[rows] >= mine.warmup[look]) & (delta + gap >= mine.threshold[look])
        fires = fires.index_copy(0, look, fires[look] | watched)
        decided = torch.where(kind[look] >= 0, kind[look], torch.where(delta >= gap, PATH, COV))
        kind = kind.index_copy(0, look, decided)
    kind = torch.where(mine.wrong, 1 - kind, kind)
    mixing = (mine.dense | (mine.sparse & fires)).nonzero()[:, 0]
    if len(mixing):
        rows = heard[mixing]
        weights = mix(kind[mixing], mine.alpha[mixing], _take(z_s, rows), _take(z_a, mixing), sampling.temperature)
        best = ~mine.dense[mixing] | mine.dense_greedy[mixing]  # a sparse mix takes its argmax
        if best.all():
            new = weights.argmax(-1)
        else:
            new = draw(probabilities(weights.log(), sampling) if sampling.truncates else weights, uniform[rows, 0])
        if best.any() and not best.all():
            new = torch.where(best, weights.argmax(-1), new)
        token = token.index_copy(0, rows, new)
    return token, fire.index_copy(0, heard, fires)


def mix(
    kind: torch.Tensor, alpha: torch.Tensor, z_s: torch.Tensor, z_a: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mix two models row by row (method.md, "The mix"): probabilities [rows, vocabulary] at a temperature."""
    alpha = alpha[:, None].to(z_s.dtype)
    weights = torch.empty_like(z_s)
    for rows, mixed in (((kind != COV).nonzero()[:, 0], _path), ((kind == COV).nonzero()[:, 0], _cov)):
        if len(rows) == len(kind):
            return mixed(alpha, z_s, z_a, temperature)
        weights[rows] = mixed(alpha[rows], z_s[rows], z_a[rows], temperature)
    return weights


def _path(alpha: torch.Tensor, z_s: torch.Tensor, z_a: torch.Tensor, temperature: float) -> torch.Tensor:
    mixed = torch.addcmul(z_a * (1 - alpha), z_s, alpha)
    if ((alpha == 0) | (alpha == 1)).any():  # 0 times an infinite logit is no number
        mixed = torch.where(alpha == 1, z_s, torch.where(alpha == 0, z_a, mixed))
    return torch.softmax(mixed / temperature, -1)


def _cov(alpha: torch.Tensor, z_s: torch.Tensor, z_a: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.lerp(torch.softmax(z_a / temperature, -1), torch.softmax(z_s / temperature, -1), alpha)


def draw(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution: weights [rows, vocabulary] that sum to 1, uniform [rows] in [0, 1).

    Raises
    ------
    SalvageError
        Where a row's weights are no numbers: logits were infinite or NaN.
    """
    n, size = weights.shape
    if size <= LARGE:
        return _invert(weights.double(), uniform.double())
    whole = torch.nn.functional.pad(weights, (0, -size % _BLOCK)) if size % _BLOCK else weights
    blocks = whole.view(n, -1, _BLOCK)
    mass = blocks.sum(-1, dtype=torch.float64)
    cumulative = mass.cumsum(-1)
    target = uniform.double() * cumulative[:, -1]
    block = _invert(mass, uniform.double())
    inside = blocks[torch.arange(n, device=weights.device), block].double()
    before = (cumulative.gather(1, block[:, None]) - mass.gather(1, block[:, None]))[:, 0]
    share = (target - before) / inside.sum(-1)
    return (block * _BLOCK + _invert(inside, share)).clamp(max=size - 1)


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    cumulative = weights.cumsum(-1)
    if not torch.isfinite(cumulative[:, -1]).all():
        raise SalvageError(
            "a model's logits are not numbers (NaN or infinite); its weights or its data type are at fault"
        )
    return (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(-1).clamp(max=weights.shape[1] - 1)


def working(logits: torch.Tensor) -> torch.Tensor:
    """Return logits [rows, vocabulary] in the precision that they are computed with."""
    return logits.double() if logits.shape[-1] <= LARGE else logits.float()


def _take(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return these rows; without a copy where they are all there are."""
    return values if len(rows) == len(values) else values[rows]
