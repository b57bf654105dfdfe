"""Decoding by the letter of method.md: a request at a time, a token at a time, in float64, nothing cached or batched.

It is what the engines are held to, by tests and by `salvage doctor`. Nothing else should use it: it is slow.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from salvage.engine.base import COV, PATH, Completion, Intervention, Request, Sampling
from salvage.method.signals import token_signals

Array = NDArray[np.float64]
Model = Callable[[list[int]], Array]  # tokens so far to the logits [vocabulary] of the next one


def decode(
    specialist: Model,
    ancestor: Model,
    request: Request,
    *,
    sampling: Sampling,
    max_tokens: int,
    ends: list[int],
    top_k_cov: int,
) -> Completion:
    """Answer one request as `salvage.engine.base.Engine.decode` does.

    Parameters
    ----------
    specialist, ancestor : function
        From a list of tokens to the logits [vocabulary] of the next one.
    ends : list of int
        Tokens that end a completion.

    References
    ----------
    method.md, "Operators".
    """
    act, tokens, fired = request.intervention, list(request.prefix), -1
    heard, temperature = 0, sampling.temperature
    uniform = np.random.Generator(np.random.Philox(request.seed)).random((2, max_tokens))
    while len(tokens) < max_tokens and not (len(tokens) > len(request.prefix) and tokens[-1] in ends):
        at = len(tokens)
        z_s, z_a = (np.asarray(model(request.prompt + tokens), np.float64) for model in (specialist, ancestor))
        token = int(z_s.argmax()) if request.greedy else drawn(softmax(z_s / temperature), uniform[0, at], sampling)
        if act.needs_ancestor and (act.kind == "dense" or fired < 0) and not _passed(act, at):
            heard += 1
        if act.kind == "dense":
            weights = mixed(act, act.mix, z_s, z_a, temperature)
            token = int(weights.argmax()) if act.greedy else drawn(weights, uniform[0, at], sampling)
        elif act.kind != "none" and fired < 0 and (fires := _fires(act, at, z_s, z_a, token, temperature, top_k_cov)):
            fired = at
            if act.kind == "local_temp":
                token = drawn(softmax(z_s / act.local_temperature), uniform[1, at], sampling)
            else:
                token = int(mixed(act, fires[1], z_s, z_a, temperature).argmax())
        tokens.append(token)
    prefill = len(request.prompt) + len(request.prefix)
    return Completion(
        tokens=tokens,
        n_tokens=len(tokens) - len(request.prefix),
        n_ancestor_tokens=heard,
        n_prefill=prefill * (2 if act.needs_ancestor else 1),
        position=fired,
        truncated=len(tokens) == len(request.prefix) or tokens[-1] not in ends,
    )


def _passed(act: Intervention, at: int) -> bool:
    """Tell whether the position at which an intervention acts once lies behind."""
    return act.position is not None and at > act.position


def _fires(
    act: Intervention, at: int, z_s: Array, z_a: Array, token: int, temperature: float, top_k_cov: int
) -> tuple[bool, int] | None:
    """Return that an intervention that acts once acts here, and by which mix; None where it does not."""
    if not act.watches and at != act.position:
        return None
    told = token_signals(z_s[None], z_a[None], [token], temperature=temperature, top_k_cov=top_k_cov)
    if act.watches and at != act.position and (at < act.warmup or told["j"][0] < act.threshold):
        return None
    if act.mix is not None:
        return True, act.mix
    return True, PATH if max(told["delta_path"][0], 0) >= max(told["g_cov"][0], 0) else COV


def mixed(act: Intervention, kind: int | None, z_s: Array, z_a: Array, temperature: float) -> Array:
    """Mix two models' logits [vocabulary] into probabilities (method.md, "The mix")."""
    kind = PATH if kind is None else kind
    if (1 - kind if act.wrong else kind) == COV:
        return act.alpha * softmax(z_s / temperature) + (1 - act.alpha) * softmax(z_a / temperature)
    return softmax((act.alpha * z_s + (1 - act.alpha) * z_a) / temperature)


def softmax(z: Array) -> Array:
    """Return probabilities [vocabulary]."""
    weights = np.exp(z - z.max())
    return np.asarray(weights / weights.sum())


def kept(weights: Array, sampling: Sampling) -> Array:
    """Return probabilities [vocabulary] with 0 for what a draw may not take: min_p, then top_k, then top_p."""
    weights = np.where(weights < sampling.min_p * weights.max(), 0.0, weights)
    if 0 < sampling.top_k < len(weights):
        weights = np.where(weights < np.sort(weights)[-sampling.top_k], 0.0, weights)
    if sampling.top_p < 1:
        order = np.argsort(-weights, kind="stable")  # of those that tie the lower id first
        likelier = np.append(0.0, weights[order].cumsum()[:-1] / weights.sum())
        weights[order[likelier >= sampling.top_p]] = 0.0
    return weights


def drawn(weights: Array, uniform: float, sampling: Sampling) -> int:
    """Invert the cumulative distribution of what is kept of weights [vocabulary]."""
    cumulative = kept(weights, sampling).cumsum()
    return min(int((cumulative <= uniform * cumulative[-1]).sum()), len(weights) - 1)
