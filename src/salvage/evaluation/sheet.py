"""What protocols, budgets and rows share: views of the attempts, the failures, and the sheet of their columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from salvage.evaluation.groups import ALL, family_of
from salvage.method.profiles import STEERABLE_HARD, Tallies, regimes_of

INTERVENE = slice(1, 5)  # the interventions among OPERATORS
SCOPES = [STEERABLE_HARD, ALL]


@dataclass(frozen=True)
class View:
    """Tallies to choose on and tallies to score on."""

    chooses: Tallies
    scores: Tallies

    def mask(self, scope: str) -> np.ndarray:
        """Return which failures a scope holds, as told by the choosing rates."""
        rates = self.chooses.rates
        if scope == ALL:
            return np.ones(len(rates), bool)
        return np.asarray(regimes_of(rates[:, 0], rates[:, INTERVENE]) == STEERABLE_HARD)


@dataclass(frozen=True)
class Data:
    """What is evaluated: failures, the cell of each by number, and how policies are fitted on them."""

    failures: pd.DataFrame
    names: np.ndarray  # of the cells
    cell: np.ndarray  # [failures]
    fold: list[np.ndarray]  # one [failures] a repeat
    seed: int
    trials: int

    kept: dict[tuple[str, bool], list[np.ndarray]] = field(default_factory=dict)  # weights that two protocols share

    @property
    def family(self) -> np.ndarray:
        """Return each failure's family, [failures], as cells called family-method-seed|task tell it; else none."""
        return family_of(self.names)[self.cell]


@dataclass
class Sheet:
    """Columns of what every failure contributes: values and tokens already times weight, summed over views."""

    meta: list[dict[str, Any]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)  # [failures] each
    tokens: list[np.ndarray | None] = field(default_factory=list)
    weights: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)  # (protocol, scope) to [failures]
    p_values: dict[tuple[str, str, str, str], float] = field(default_factory=dict)  # and policy, cell

    def add(self, values: np.ndarray, tokens: np.ndarray | None, **meta: Any) -> None:
        """Add a column; `only` in meta says that it counts for cells alone, or for groups of them alone."""
        self.meta.append({"k": None, "budget": None, "only": None, **meta})
        self.values.append(values)
        self.tokens.append(tokens)


def splits(data: Data, fold: np.ndarray, transfer: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """List masks of failures to score and to fit on: other problems, and for transfer other families too."""
    pairs = [(fold == k, fold != k) for k in np.unique(fold)]
    if not transfer:
        return pairs
    families = data.family
    return [(test & (families == f), train & (families != f)) for test, train in pairs for f in np.unique(families)]


def against(meta: dict[str, Any], policy: str) -> tuple[Any, ...]:
    return (meta["protocol"], meta["scope"], meta["k"], meta["budget"], policy)
