"""Logits to per-token signals (method.md, "Per-token signals"), exact over the whole vocabulary, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from salvage.errors import SalvageError

Array = NDArray[np.float64]


def token_signals(
    specialist_logits: ArrayLike,
    ancestor_logits: ArrayLike,
    tokens: ArrayLike,
    *,
    temperature: float = 0.6,
    top_k_cov: int = 20,
) -> dict[str, Array]:
    """Return the signals of one rollout.

    Parameters
    ----------
    specialist_logits, ancestor_logits : array, [T, V]
        Both models' logits at each generated position, given the same prefix. Minus infinity means impossible.
    tokens : array of int, [T]
        The tokens that the rollout took.
    temperature : float
        The decode temperature T.
    top_k_cov : int
        How many of the ancestor's likeliest tokens g_cov sums over; ties go to the lower id.

    Returns
    -------
    dict of [T] arrays
        delta_path (nats), g_cov (nats), logit_var (nats squared), entropy (nats), kl (nats), j (nats).

    Raises
    ------
    SalvageError
        Where shapes or vocabularies differ, a logit is NaN or plus infinity, a token is outside the vocabulary or
        impossible to both models, the rollout is empty, or the temperature is not positive.

    References
    ----------
    method.md, "Per-token signals".
    """
    z_s, z_a = np.asarray(specialist_logits, np.float64), np.asarray(ancestor_logits, np.float64)
    taken = np.asarray(tokens)
    _admit(z_s, z_a, taken, temperature, top_k_cov)
    log_s, log_a, plain = _log_softmax(z_s / temperature), _log_softmax(z_a / temperature), _log_softmax(z_s)
    p_s, p_a = np.exp(log_s), np.exp(log_a)
    at = np.arange(len(taken))
    with np.errstate(invalid="ignore"):  # minus infinity less itself: refused in delta_path, masked in kl
        delta_path = log_s[at, taken] - log_a[at, taken]
        ratio = log_s - log_a
    if np.isnan(delta_path).any():
        t = int(np.argmax(np.isnan(delta_path)))
        raise SalvageError(f"token {taken[t]} at position {t} is impossible to both models; score the rollout again")
    top = np.argsort(-p_a, axis=1, kind="stable")[:, :top_k_cov]
    held_a, held_s = (np.take_along_axis(p, top, axis=1).sum(axis=1) for p in (p_a, p_s))
    g_cov = np.log((held_a + 1e-8) / (held_s + 1e-8))
    mean = _expect(p_s, plain)
    with np.errstate(invalid="ignore"):
        squares = (plain - mean[:, None]) ** 2
    return {
        "delta_path": delta_path,
        "g_cov": g_cov,
        "logit_var": _expect(p_s, squares),
        "entropy": 0.0 - _expect(p_s, log_s),  # a certain token has entropy 0, not -0
        "kl": np.maximum(_expect(p_s, ratio), 0.0),
        "j": np.maximum(delta_path, 0.0) + np.maximum(g_cov, 0.0),
    }


def _admit(z_s: Array, z_a: Array, taken: NDArray, temperature: float, top_k_cov: int) -> None:
    if z_s.ndim != 2 or z_a.ndim != 2 or taken.ndim != 1:
        raise SalvageError("logits must be [tokens, vocabulary] and tokens [tokens]; reshape them")
    if z_s.shape[1] != z_a.shape[1]:
        raise SalvageError(
            f"the models' vocabularies differ: {z_s.shape[1]} and {z_a.shape[1]} tokens; pass a pair of one"
        )
    if not len(z_s) == len(z_a) == len(taken):
        raise SalvageError(f"{len(z_s)} and {len(z_a)} rows of logits for {len(taken)} tokens; pass one row a token")
    if not len(taken):
        raise SalvageError("the rollout has no tokens and so no signals; drop it")
    if not np.issubdtype(taken.dtype, np.integer):
        raise SalvageError("tokens must be whole numbers: token ids")
    if taken.min() < 0 or taken.max() >= z_s.shape[1]:
        t = int(np.argmax((taken < 0) | (taken >= z_s.shape[1])))
        raise SalvageError(f"token {taken[t]} at position {t} is outside the vocabulary of {z_s.shape[1]}")
    for name, z in (("specialist", z_s), ("ancestor", z_a)):
        bad = np.isnan(z).any(axis=1) | (z == np.inf).any(axis=1) | (z == -np.inf).all(axis=1)
        if bad.any():
            raise SalvageError(f"the {name}'s logits at position {int(np.argmax(bad))} are not numbers; score it again")
    if not temperature > 0:
        raise SalvageError(f"temperature {temperature} must be above 0; at 0 there is no distribution to compare")
    if top_k_cov < 1:
        raise SalvageError(f"top_k_cov {top_k_cov} must be at least 1")


def _log_softmax(z: Array) -> Array:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def _expect(p: Array, values: Array) -> Array:
    """Return the mean [T] of values under p; what has no probability adds nothing, even where it is infinite."""
    with np.errstate(invalid="ignore"):
        return np.where(p > 0, p * values, 0.0).sum(axis=1)
