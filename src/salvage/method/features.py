"""Signals to the three trajectory features (method.md, "The three trajectory features")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from salvage.errors import SalvageError
from salvage.tables import vocabulary

MEANS = ["entropy", "kl", "delta_path", "g_cov"]
COLUMNS = ["cell", "problem_id", "rollout", "junction", *vocabulary.FEATURES, "n_tokens", *MEANS, "j_max"]
FLOOR = 1e-8  # of the mean logit_var, whose logarithm is taken
_UNEVEN = "each signal needs one entry a token, as many as j, and at least one; score that rollout again"


def trajectory_features(signals: Mapping[str, ArrayLike], *, window: int = 8) -> dict[str, Any]:
    """Return the junction and the three features of one failed rollout.

    Parameters
    ----------
    signals : mapping
        `j` and `logit_var`, [T] each, as `salvage.method.token_signals` gives them.
    window : int
        Tokens on either side of the junction that logit_dispersion looks at, clipped to the rollout.

    Returns
    -------
    dict
        junction (index, the first where j is largest), spread (share, 0 to 1), concentration (log10 of a ratio, 0
        where j is 0 everywhere), logit_dispersion (log10 of nats squared).

    Raises
    ------
    SalvageError
        Where the rollout is empty or a value is not finite: a NaN has no argmax.
    """
    j, logit_var = (np.asarray(signals[name], np.float64) for name in ("j", "logit_var"))
    if j.ndim != 1 or j.shape != logit_var.shape:
        raise SalvageError(f"j {j.shape} and logit_var {logit_var.shape} must be [tokens]; score the rollout again")
    if not (np.isfinite(j).all() and np.isfinite(logit_var).all()):
        raise SalvageError("j and logit_var must be finite numbers; score the rollout again")
    found = _features(j, logit_var, np.array([len(j)]), window)
    return {name: values[0].item() for name, values in found.items()}


def rollout_features(signal_rows: pd.DataFrame, window: int = 8, spans: np.ndarray | None = None) -> pd.DataFrame:
    """Return the features of many rollouts, with means of their signals: schema.SIGNAL_ROWS to FEATURE_ROWS.

    Equal to `trajectory_features` one rollout at a time; all rollouts at once here. Where `spans` [rollouts, 2] say
    where a part of each begins and ends, all is of that part, but for n_tokens and the junction's index in the whole.
    """
    lengths = signal_rows["j"].map(len).to_numpy(np.int64)
    for name in vocabulary.SIGNALS:  # laid end to end, one column out of step would shift every rollout after it
        differs = signal_rows[name].map(len).to_numpy(np.int64) != lengths
        if differs.any() or not lengths.all():
            row = int(np.argmax(differs | (lengths == 0)))
            raise SalvageError(f"signals, row {row}, column {name!r}: {_UNEVEN}")
    whole = lengths
    if spans is not None:
        cut = {
            name: [v[start:end] for v, (start, end) in zip(signal_rows[name], spans, strict=True)]
            for name in vocabulary.SIGNALS
        }
        signal_rows, lengths = signal_rows.assign(**cut), spans[:, 1] - spans[:, 0]
    flat = {name: _concatenate(signal_rows[name]) for name in vocabulary.SIGNALS}
    for name, values in flat.items():
        if not np.isfinite(values).all():
            row = int(np.searchsorted(np.cumsum(lengths), int(np.argmin(np.isfinite(values))), side="right"))
            raise SalvageError(f"signals, row {row}, column {name!r}: a value is not finite; score that rollout again")
    found = _features(flat["j"], flat["logit_var"], lengths, window)
    starts = np.cumsum(lengths) - lengths
    means = {name: np.add.reduceat(flat[name], starts) / lengths for name in MEANS}
    keys = {name: signal_rows[name].to_numpy() for name in ("cell", "problem_id", "rollout")}
    top = {"j_max": np.maximum.reduceat(flat["j"], starts)}
    scored = pd.DataFrame({**keys, **found, "n_tokens": whole, **means, **top})[COLUMNS]
    if spans is None:
        return scored
    return scored.assign(junction=scored["junction"] + spans[:, 0], part_start=spans[:, 0], part_end=spans[:, 1])


def _concatenate(lists: pd.Series) -> np.ndarray:
    return np.concatenate([np.asarray(v, np.float64) for v in lists]) if len(lists) else np.zeros(0)


def _features(j: np.ndarray, logit_var: np.ndarray, lengths: np.ndarray, window: int) -> dict[str, np.ndarray]:
    """Return the features of rollouts laid end to end; `lengths` tells them apart."""
    if not len(lengths) or lengths.min() < 1:
        raise SalvageError("a rollout has no tokens and so no features; drop it")
    ends = np.cumsum(lengths)
    starts = ends - lengths
    rollout = np.repeat(np.arange(len(lengths)), lengths)
    largest, mean = np.maximum.reduceat(j, starts), np.add.reduceat(j, starts) / lengths
    index = np.where(j == largest[rollout], np.arange(len(j)), len(j))
    junction = np.minimum.reduceat(index, starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        concentration = np.where(largest > 0, np.log10(largest / mean), 0.0)
    low, high = np.maximum(junction - window, starts), np.minimum(junction + window + 1, ends)
    # reduceat over low, high, low, high, ...: every other sum is a window's; the pad lets high be the very end
    pairs = np.stack([low, high], axis=1).ravel()
    around = np.add.reduceat(np.append(logit_var, 0.0), pairs)[::2] / (high - low)
    return {
        "junction": junction - starts,
        "spread": np.add.reduceat((j > 0).astype(np.float64), starts) / lengths,
        "concentration": concentration,
        "logit_dispersion": np.log10(np.maximum(around, FLOOR)),
    }
