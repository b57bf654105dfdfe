"""The learned policy: boosted trees on features, facts and cell rates, tuned for the rescue of what they choose.

Trees predict a failure's level (its mean rescue) and each operator's advantage over it. Apart, because the level varies
ten times as much as the advantages, which alone decide.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from salvage.method.profiles import Tallies, problem_folds
from salvage.policies.calibrated import CellRates, cells_of
from salvage.policies.policy import codes, pick
from salvage.tables.vocabulary import FACTS, FEATURES

if TYPE_CHECKING:
    from xgboost import Booster

INNER = 5  # folds in which the training failures' own cell rates, and predictions for tuning, come from other problems
UNTUNED = {"eta": 0.1, "max_depth": 3, "min_child_weight": 20.0, "reg_lambda": 10.0, "rounds": 60}
TUNING = 3  # folds in tuning
MOST = 6000  # failures that tuning looks at
BINS = 10  # of predictions, for the intervals


@dataclass(frozen=True)
class Learned:
    """Fitted trees, with the cell rates that they start from.

    Attributes
    ----------
    choices : tuple of str
    rates_ : CellRates
    most_failed_ : float
        The largest n_failed_rollouts seen, which stands for all rollouts where facts are missing.
    booster_ : xgboost.Booster
        Outputs [n, 1 + choices]: what to add to level and advantages.
    edges_, reach_ : array [choices, BINS - 1], [choices, BINS, 2]
        Bins of predictions that were made out of fold, and the mean rescue's 95% interval in each.
    """

    choices: tuple[str, ...]
    rates_: CellRates
    most_failed_: float
    booster_: Booster
    edges_: np.ndarray
    reach_: np.ndarray

    @classmethod
    def fit(
        cls,
        failures: pd.DataFrame,
        tallies: Tallies,
        choices: Sequence[str],
        *,
        trials: int = 0,
        seed: int = 0,
        held_out: bool = True,
    ) -> Learned:
        """Learn from failures and their attempts.

        Parameters
        ----------
        failures : DataFrame
            Profiles (their rates are not read), with the columns of vocabulary.FACTS where they are known.
        tallies : Tallies
        choices : sequence of str
        trials : int
            Of Optuna, each judged by the rescue of the chosen operator on folds of problems it did not see.
        held_out : bool
            Whether to predict the training failures out of fold, for `interval`; without, it is 0 to 1.
        """
        rates = tallies.rates[:, codes(choices)]
        most = float(failures["n_failed_rollouts"].max())
        values = UNTUNED | (_tuned(failures, rates, choices, most, trials, seed) if trials else {})
        booster = _boost(failures, rates, most, values, seed)
        cell = failures["cell"].to_numpy(str)
        edges, reach = np.zeros((len(choices), BINS - 1)), np.tile([0.0, 1.0], (len(choices), BINS, 1))
        if held_out:
            told = _rates_at(out_of_fold(failures, rates, most, values, seed))
            for c in range(len(choices)):
                edges[c], reach[c] = _bins(told[:, c], rates[:, c])
        return cls(tuple(choices), CellRates.fit(cell, rates), most, booster, edges, reach)

    def place(self, failures: pd.DataFrame) -> np.ndarray:
        """Return where failures lie: level and advantages, [n, 1 + choices]."""
        level, advantage, _ = self.rates_.of(cells_of(failures))
        start = np.column_stack([level, advantage])
        return _centred(start + self.booster_.inplace_predict(_inputs(failures, start, self.most_failed_)))

    def expected(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the expected rescue rates, [n, choices]."""
        return _rates_at(self.place(failures))

    def interval(self, failures: pd.DataFrame) -> np.ndarray:
        """Return the 95% interval of the mean rescue among failures predicted alike, [n, choices, 2].

        Wide enough to hold the prediction itself, where that disagrees.
        """
        told = self.expected(failures)
        bins = np.stack([np.searchsorted(self.edges_[c], told[:, c]) for c in range(len(self.choices))], axis=1)
        low, high = np.moveaxis(self.reach_[np.arange(len(self.choices)), bins], -1, 0)
        return np.stack([np.minimum(low, told), np.maximum(high, told)], axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """Return the policy as JSON takes it: the trees as XGBoost's own JSON."""
        return {
            "choices": list(self.choices),
            "rates": self.rates_.to_dict(),
            "most_failed": self.most_failed_,
            "booster": json.loads(self.booster_.save_raw("json")),
            "edges": self.edges_.tolist(),
            "reach": self.reach_.tolist(),
        }

    @classmethod
    def from_dict(cls, frozen: dict[str, Any]) -> Learned:
        """Return the policy that `to_dict` described."""
        from xgboost import Booster

        booster = Booster()
        booster.set_param({"nthread": 1})
        booster.load_model(bytearray(json.dumps(frozen["booster"]).encode()))
        edges, reach = (np.array(frozen[name], np.float64) for name in ("edges", "reach"))
        rates = CellRates.from_dict(frozen["rates"])
        return cls(tuple(frozen["choices"]), rates, float(frozen["most_failed"]), booster, edges, reach)


def out_of_fold(
    failures: pd.DataFrame, rates: np.ndarray, most: float, values: dict[str, Any], seed: int, folds: int = INNER
) -> np.ndarray:
    """Return where the training failures lie, each by trees that never saw its problem: level, advantages."""
    fold = problem_folds(failures, folds, np.random.default_rng([seed, 11]))
    place = np.empty((len(rates), 1 + rates.shape[1]))
    for k in np.unique(fold):
        held, other = fold == k, fold != k
        if held.all():  # one problem alone: nothing is held out
            other = held
        booster = _boost(failures[other], rates[other], most, values, seed)
        start = np.column_stack(CellRates.fit(cells_of(failures[other]), rates[other]).of(cells_of(failures[held]))[:2])
        place[held] = _centred(start + booster.inplace_predict(_inputs(failures[held], start, most)))
    return place


def _centred(place: np.ndarray) -> np.ndarray:
    place[:, 1:] -= place[:, 1:].mean(axis=1, keepdims=True)
    return place


def _rates_at(place: np.ndarray) -> np.ndarray:
    return np.clip(place[:, :1] + place[:, 1:], 0, 1)


def _boost(failures: pd.DataFrame, rates: np.ndarray, most: float, values: dict[str, Any], seed: int) -> Booster:
    """Fit trees to what the cell rates of other problems leave unexplained."""
    import xgboost

    fold = problem_folds(failures, INNER, np.random.default_rng([seed, 12]))
    cell = cells_of(failures)
    start = np.zeros((len(failures), 1 + rates.shape[1]))
    for k in np.unique(fold):
        held = fold == k
        other = ~held if not held.all() else held
        start[held] = np.column_stack(CellRates.fit(cell[other], rates[other]).of(cell[held])[:2])
    level = rates.mean(axis=1, keepdims=True)
    target = np.hstack([level, rates - level]) - start
    settings = {name: value for name, value in values.items() if name != "rounds"}
    settings |= {"objective": "reg:squarederror", "base_score": 0.0, "tree_method": "hist", "seed": seed, "nthread": 1}
    matrix = xgboost.QuantileDMatrix(_inputs(failures, start, most), label=target)
    return xgboost.train(settings, matrix, num_boost_round=values["rounds"])


def _tuned(
    failures: pd.DataFrame, rates: np.ndarray, choices: Sequence[str], most: float, trials: int, seed: int
) -> dict[str, Any]:
    """Search the trees' settings for the rescue of the chosen operator, out of fold (Optuna, TPE)."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if len(failures) > MOST:
        few = np.sort(np.random.default_rng([seed, 13]).choice(len(failures), MOST, replace=False))
        failures, rates = failures.iloc[few], rates[few]

    def rescue(trial: optuna.Trial) -> float:
        values = {
            "eta": trial.suggest_float("eta", 0.02, 0.3, log=True),
            "max_depth": trial.suggest_int("max_depth", 1, 5),
            "min_child_weight": trial.suggest_float("min_child_weight", 5, 200, log=True),
            "reg_lambda": trial.suggest_float("reg_lambda", 1, 300, log=True),
            "rounds": trial.suggest_int("rounds", 20, 150),
        }
        told = _rates_at(out_of_fold(failures, rates, most, values, seed, TUNING))
        chosen = codes(pick(told, choices))
        return float(rates[np.arange(len(rates)), np.searchsorted(codes(choices), chosen)].mean())

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial(UNTUNED)
    study.optimize(rescue, n_trials=trials)
    return study.best_params


def _inputs(failures: pd.DataFrame, start: np.ndarray, most: float) -> np.ndarray:
    """Return what the trees see, [n, features + facts + 1 + choices]; an unknown fact is NaN."""
    known = {name: failures[name].to_numpy(np.float64) for name in (*FEATURES, *FACTS) if name in failures}
    if "failed_share" not in known and "n_failed_rollouts" in failures:
        known["failed_share"] = failures["n_failed_rollouts"].to_numpy(np.float64) / most
    nothing = np.full(len(failures), np.nan)
    return np.column_stack([*(known.get(name, nothing) for name in (*FEATURES, *FACTS)), start])


def _bins(told: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of bins of predictions and the 95% interval of the mean rate in each."""
    edges = np.quantile(told, np.linspace(0, 1, BINS + 1)[1:-1])
    index = np.searchsorted(edges, told)
    n = np.bincount(index, minlength=BINS).astype(np.float64)
    few = n < 2
    mean = np.bincount(index, rates, minlength=BINS) / np.maximum(n, 1)
    square = np.bincount(index, rates**2, minlength=BINS) / np.maximum(n, 1)
    half = 1.96 * np.sqrt(np.maximum(square - mean**2, 0) / np.maximum(n - 1, 1))
    reach = np.clip(np.stack([mean - half, mean + half], axis=-1), 0, 1)
    return edges, np.where(few[:, None], [0.0, 1.0], reach)
