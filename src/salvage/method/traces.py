"""Per-token signals in a user's rows: read strictly, and made into features and facts by the pipeline's own functions.

A row has `j` and `logit_var` (`salvage.method.signals`), each a list of numbers, one entry a token of one failed
rollout, or a list of such lists, one a failed rollout of the problem. `entropy` and `kl` may be such lists too; as
plain numbers they are facts already, and stay as they are.
"""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.method.features import rollout_features
from salvage.tables import vocabulary
from salvage.tables.numbers import NotFiniteError, finite

SIGNALS = ("j", "logit_var")  # what the features are made of
AVERAGED = ("entropy", "kl")  # signals whose means are facts
COMPUTED = (*vocabulary.FEATURES, "junction")  # what the answer tells of a row given by signals
_LISTS = (list, tuple, np.ndarray)  # Parquet's lists come as arrays


def featurised(table: pd.DataFrame, where: str) -> tuple[pd.DataFrame, dict[str, list[Any]]]:
    """Return the table with features and facts in place of signals, and what was computed.

    A failure's features and facts are the means over its rollouts, as in `profiles.make_profiles` and
    `facts.make_facts`. The window of logit_dispersion is `features.rollout_features`' default, 8 tokens: a frozen
    policy does not say which window its features had.

    Parameters
    ----------
    table : DataFrame
        One row a failure [n], given by signals or by features; what a row does not give is None or NaN.
    where : str
        What to call the table in an error.

    Returns
    -------
    DataFrame
        The rows [n] in their order. Those given by signals have the features instead; entropy and kl as numbers; and
        n_tokens, junction and n_failed_rollouts, where they did not give these themselves.
    dict
        `COMPUTED`, a list [n] each, None for rows given by features; junction as a share of the rollout, 0 to 1.
        Empty where no row has signals.

    Raises
    ------
    SalvageError
        Naming row and column, and rollout and token (0 is the first), of what is not a list, empty, uneven, not a
        finite number, or below 0; or the row that has both features and signals, or one signal without the other.
    """
    given = np.any([_present(table, name) for name in SIGNALS], axis=0)
    if not given.any():
        return table, {}
    _refuse_mixtures(table, given, where)
    rows = np.flatnonzero(given)
    means = _means(table, rows, where)
    filled = table.drop(columns=list(SIGNALS))  # both are there: no row has one alone
    for name in means:
        values = means[name].to_numpy()
        # a list gives way to its mean; of the other facts, the row's own word stands
        wanted = ~np.isnan(values) if name in AVERAGED else ~_present(table, name)[rows]
        if wanted.any():
            filled[name] = _put(filled, name, rows[wanted], values[wanted])
    return filled, {name: _put(table[[]], name, rows, means[name].to_numpy()).tolist() for name in COMPUTED}


def _present(table: pd.DataFrame, name: str) -> np.ndarray:
    return table[name].notna().to_numpy() if name in table else np.zeros(len(table), dtype=bool)


def _put(table: pd.DataFrame, name: str, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a column [n] of objects with values put into some rows; a column that is not there has None."""
    column = table[name].to_numpy(object, copy=True) if name in table else np.full(len(table), None, object)
    column[rows] = values.tolist()  # Python's floats, as in any other row
    return column


def _refuse_mixtures(table: pd.DataFrame, given: np.ndarray, where: str) -> None:
    for name in SIGNALS:
        alone = given & ~_present(table, name)
        if alone.any():
            told = f"{where}: row {int(alone.argmax())}, column {name!r} is missing"
            raise SalvageError(f"{told}; a row given by signals needs {' and '.join(SIGNALS)}")
    for name in vocabulary.FEATURES:
        both = given & _present(table, name)
        if both.any():
            told = f"{where}: row {int(both.argmax())} has both {name!r} and signals"
            raise SalvageError(f"{told}, and these may differ; give its features or its signals")
    for name in (name for name in AVERAGED if name in table):
        for row, value in enumerate(table[name].tolist()):
            if not given[row] and isinstance(value, _LISTS):
                told = f"{where}: row {row}, column {name!r} is a list, and the row has no {' and '.join(SIGNALS)}"
                raise SalvageError(f"{told}; give them too, or the mean instead of the list")


def _means(table: pd.DataFrame, rows: np.ndarray, where: str) -> pd.DataFrame:
    """Return features and facts of the rows given by signals; entropy and kl are NaN where they are no lists."""
    columns = {name: table[name].tolist() for name in (*SIGNALS, *AVERAGED) if name in table}
    signals: dict[str, list[np.ndarray]] = {name: [] for name in vocabulary.SIGNALS}
    owners: list[int] = []
    listed: list[list[bool]] = []
    for row in rows.tolist():
        mine = {}
        for name, values in columns.items():
            if name in SIGNALS or isinstance(values[row], _LISTS):
                mine[name] = _rollouts(values[row], name, f"{where}: row {row}, column {name!r}")
        _refuse_uneven(mine, f"{where}: row {row}")
        listed.append([name in mine for name in AVERAGED])
        for name, rollouts in signals.items():  # what is not told is 0 to rollout_features, and left out below
            rollouts += mine.get(name) or [np.zeros(len(j)) for j in mine["j"]]
        owners += [row] * len(mine["j"])
    keys = {"cell": "", "problem_id": owners, "rollout": range(len(owners))}
    with np.errstate(over="ignore", invalid="ignore"):  # sums beyond any double are infinite, and refused as features
        found = rollout_features(pd.DataFrame({**keys, **signals}))
    found["junction"] = found["junction"] / found["n_tokens"]
    failures = found.groupby("problem_id", sort=False)
    means = failures[[*COMPUTED, "n_tokens", *AVERAGED]].mean()
    means[list(AVERAGED)] = means[list(AVERAGED)].where(np.array(listed))
    return means.assign(n_failed_rollouts=failures.size())


def _refuse_uneven(mine: dict[str, list[np.ndarray]], at: str) -> None:
    lengths = [len(tokens) for tokens in mine["j"]]
    for name, rollouts in mine.items():
        if len(rollouts) != len(lengths):
            told = f"{at}, column {name!r} has {_counted(len(rollouts), 'rollout')}, 'j' has {len(lengths)}"
            raise SalvageError(f"{told}; each signal needs every failed rollout")
        for i, tokens in enumerate(rollouts):
            if len(tokens) != lengths[i]:
                told = f"{at}, column {name!r}, rollout {i} has {_counted(len(tokens), 'token')}, in 'j' {lengths[i]}"
                raise SalvageError(f"{told}; each signal needs one entry a token")


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _rollouts(value: Any, name: str, at: str) -> list[np.ndarray]:
    """Return a row's signal as one array [tokens] of float64 a failed rollout."""
    several = isinstance(value, _LISTS) and len(value) > 0 and isinstance(value[0], _LISTS)
    rollouts = value if several else [value]
    return [_tokens(tokens, name, f"{at}, rollout {i}") for i, tokens in enumerate(rollouts)]


def _tokens(values: Any, name: str, at: str) -> np.ndarray:
    if not isinstance(values, _LISTS):
        told = f"{at}: {reprlib.repr(values)} is not a list of numbers"
        raise SalvageError(f"{told}; give one number a token, and one list a failed rollout")
    if not len(values):
        raise SalvageError(f"{at} has no tokens; give one number a token, or leave the rollout out")
    try:
        tokens = finite(values)
    except NotFiniteError as fault:
        raise SalvageError(f"{at}, token {fault.at}{fault.told}; each token needs a finite number") from None
    if name in SIGNALS and tokens.min() < 0:
        t = int((tokens < 0).argmax())
        raise SalvageError(f"{at}, token {t}: {tokens[t]} is below 0, which {name} never is; score the rollout again")
    return tokens
