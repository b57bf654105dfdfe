"""From a policy to a route: each failure's own budget is planned for, and what is told of why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.method.profiles import Tallies
from salvage.policies.fitted import Fitted
from salvage.policies.policy import Fixed
from salvage.policies.portfolio import Portfolio
from salvage.policies.rule import Rule
from salvage.rescue import guide
from salvage.rescue.guide import Route, routes
from salvage.tables.vocabulary import FACTS, FEATURES, OPERATORS


class Place:
    """Stands for the trees of a portfolio: a failure lies where its spread says."""

    def place(self, failures: pd.DataFrame) -> np.ndarray:
        return np.column_stack([failures["spread"], np.zeros((len(failures), 5))])


def portfolio(**changes: Any) -> Portfolio:
    """Return a portfolio that remembers two kinds of failures, at spread 0 and at spread 1.

    At 0 retry succeeds three times of four, sparse_steer once of two. At 1 dense_steer always solves every second one,
    and nothing the others.
    """
    near, far = [18, 12, 0, 0, 0], [0, 0, 0, 0, 24]
    correct = np.array([near] * 300 + [far, [0] * 5] * 150, float)
    place = np.zeros((600, 6))
    place[:, 0] = np.repeat([0, 1], 300) + np.tile(np.arange(300), 2) * 1e-6  # no two are equally far
    cost = np.array([1.0, 2, 2, 2, 2])
    return Portfolio(tuple(OPERATORS), Place(), place, correct, np.full((600, 5), 24.0), cost, **changes)  # type: ignore[arg-type]


def two() -> Portfolio:
    """Return the same with two operators alone: there are few mixes, however large the budget."""
    whole = portfolio()
    kept = {"correct_": whole.correct_[:, [0, 4]], "tried_": whole.tried_[:, [0, 4]], "cost_": whole.cost_[[0, 4]]}
    return replace(whole, choices=("retry", "dense_steer"), **kept)


RULE = Rule(np.zeros(3), np.ones(3))


def fitted(policy: Any, name: str = "portfolio") -> Fitted:
    made = Fitted(name, RULE, policy, frozenset())
    made.__dict__["version"] = "v1"  # a cached property: the stand-in cannot be frozen as JSON
    return made


def failures(*spread: float) -> pd.DataFrame:
    table = pd.DataFrame({"spread": spread, "concentration": -1.0, "logit_dispersion": -2.0})
    return table.assign(cell="m|t", problem_id=[f"p{i}" for i in range(len(spread))], n_failed_rollouts=1).assign(
        **dict.fromkeys(FACTS, 0.5)
    )


# ------------------------------------------------------------------ routes, step by step


def test_a_route_gives_its_plan_then_what_goes_on() -> None:
    route = Route(["dense_steer", "retry"], "stop", [0.5, 0.25])
    assert [route.next(i) for i in range(4)] == ["dense_steer", "retry", "stop", "stop"]
    assert [route.value(i) for i in range(4)] == [0.5, 0.25, 0.0, 0.0]


# ------------------------------------------------------------------ the portfolio


def test_each_failure_is_planned_within_its_own_budget() -> None:
    told = routes(fitted(portfolio()), failures(0, 0, 0, 0), np.array([3.0, 1.0, 3.0, 6.0]), by_attempts=False)
    assert [len(route.order) for route in told] == [3, 1, 3, 6]
    assert {name for route in told for name in route.order} == {"retry"}
    assert [route.then for route in told] == ["retry"] * 4


def test_operators_that_cost_two_retries_take_two() -> None:
    near, far = routes(fitted(portfolio()), failures(0, 1), np.array([2.0, 2.0]), by_attempts=False)
    assert near.order == ["retry", "retry"] and far.order == ["dense_steer"]
    assert near.worth == pytest.approx([18 / 24, 18 / 23])  # of the 24, one is known to have failed
    assert far.worth == pytest.approx([0.25])


def test_where_attempts_are_counted_every_operator_costs_one() -> None:
    made = portfolio()
    far = routes(fitted(made), failures(1), np.array([1.0]), by_attempts=True)[0]
    assert far.order == ["dense_steer"] and far.worth == pytest.approx([0.5])
    assert routes(fitted(made), failures(1), np.array([1.0]), by_attempts=False)[0].order == ["retry"]  # all it buys


def test_a_large_budget_is_planned_as_the_largest_and_retries_go_on() -> None:
    told = routes(fitted(two()), failures(0, 0), np.array([16.0, 400.0]), by_attempts=True)
    assert len(told[0].order) == len(told[1].order) == 16 and told[1].then == "retry"


def test_without_a_budget_of_its_own_all_that_was_ever_tried_is_ordered() -> None:
    (told,) = routes(fitted(portfolio()), failures(1), None, by_attempts=True)
    assert len(told.order) == 5 * 24 and told.order[0] == "dense_steer"
    assert told.why["plan"] == told.order[:20]


def test_nothing_left_is_no_plan() -> None:
    (told,) = routes(fitted(portfolio()), failures(0), np.array([0.0]), by_attempts=True)
    assert told.order == [] and told.then == "retry" and told.why["operator"] == "retry" and told.why["plan"] == []


def test_a_price_stops_a_plan_before_its_end() -> None:
    (free,) = routes(fitted(portfolio()), failures(1), np.array([4.0]), by_attempts=False)
    assert free.order[0] == "dense_steer" and free.then == "retry"
    (dear,) = routes(fitted(portfolio()), failures(1), np.array([4.0]), by_attempts=False, price=0.2)
    assert dear.order == ["dense_steer"] and dear.then == "stop" and dear.why["operator"] == "dense_steer"
    (none,) = routes(fitted(portfolio()), failures(1), np.array([4.0]), by_attempts=False, price=0.9)
    assert none.order == [] and none.then == "stop" and none.why["operator"] == "stop"


def test_the_policys_own_price_holds_where_none_is_given() -> None:
    made = fitted(portfolio(price=0.2))
    assert routes(made, failures(1), np.array([4.0]), by_attempts=False)[0].then == "stop"
    assert routes(made, failures(1), np.array([4.0]), by_attempts=False, price=0.3)[0].order == []


def test_why_holds_scores_expected_rates_and_regimes_of_failures_alike() -> None:
    near, far = routes(fitted(portfolio()), failures(0, 1), np.array([2.0, 2.0]), by_attempts=True)
    assert near.why["policy"] == "portfolio" and near.why["policy_version"] == "v1"
    assert far.why["z_spread"] == 1.0 and far.why["margin"] == 2.0
    assert near.why["expected"] == dict(zip(OPERATORS, [0.75, 0.5, 0, 0, 0], strict=True))
    assert far.why["expected"] == dict(zip(OPERATORS, [0, 0, 0, 0, 0.5], strict=True))
    assert near.why["regime"] == {"beyond reach": 0.0, "retry-solvable": 1.0, "steerable-hard": 0.0}
    assert far.why["regime"] == {"beyond reach": 0.5, "retry-solvable": 0.0, "steerable-hard": 0.5}
    assert near.why["plan"] == near.order and near.why["operator"] == near.order[0]


def test_regimes_need_every_operator() -> None:
    (told,) = routes(fitted(two()), failures(1), np.array([2.0]), by_attempts=False)
    assert told.why["regime"] == {} and told.order == ["dense_steer"]
    assert set(told.why["expected"]) == {"retry", "dense_steer"}


def test_shares_and_rates_are_told_to_four_digits() -> None:
    """Of three remembered failures, one beyond reach: 0.3333, not 0.333333."""
    whole = portfolio()
    three = replace(
        whole, place_=whole.place_[:3] + np.arange(3)[:, None], correct_=whole.correct_[[0, 0, 301]],
        tried_=whole.tried_[:3],
    )  # fmt: skip
    (told,) = routes(fitted(three), failures(0), np.array([1.0]), by_attempts=True)
    assert told.why["regime"] == {"beyond reach": 0.3333, "retry-solvable": 0.6667}
    assert told.why["expected"]["sparse_steer"] == 0.3333


# ------------------------------------------------------------------ other policies


def test_the_rule_is_tried_again_and_again_and_says_its_scores() -> None:
    told = routes(fitted(None, "rule"), failures(2.123456, -3), np.array([4.0, 4.0]), by_attempts=True)
    assert [r.order for r in told] == [[], []] and [r.then for r in told] == ["dense_steer", "sparse_steer_random"]
    assert [r.next(0) for r in told] == ["dense_steer", "sparse_steer_random"] and told[0].value(0) == 0
    assert told[0].why["z_spread"] == 2.1235 and told[0].why["policy"] == "rule"
    assert told[0].why["operator"] == "dense_steer" and "expected" not in told[0].why


def test_another_policys_operator_is_tried_again_and_again() -> None:
    made = Fixed(tuple(OPERATORS), np.array([0.1, 0.2, 0.3, 0.25, 0.123456]), {})
    (told,) = routes(fitted(made, "fixed"), failures(2), np.array([4.0]), by_attempts=True)
    assert told.then == told.why["operator"] == "sparse_steer_random" and told.order == []
    assert told.why["expected"]["dense_steer"] == 0.1235


@pytest.mark.parametrize("policy", [None, Fixed(tuple(OPERATORS), np.zeros(5), {})])
def test_a_price_needs_a_portfolio(policy: Any) -> None:
    with pytest.raises(SalvageError, match="this one is 'fixed'; leave it out"):
        routes(fitted(policy, "fixed"), failures(0), np.array([1.0]), by_attempts=True, price=0.1)


def test_a_fitted_portfolio_takes_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stands in here: budgets of several sizes at once give the plans of each alone."""
    rng = np.random.default_rng(3)
    table = pd.DataFrame(rng.random((40, 3)), columns=FEATURES).assign(
        cell="m|t", task="t", problem_id=[f"q{i}" for i in range(40)], n_failed_rollouts=1
    )
    tried = np.full((40, 5), 8.0)
    tallies = Tallies(rng.binomial(8, 0.4, (40, 5)).astype(float), tried, np.tile([10.0, 20, 20, 20, 20], (40, 1)))
    made = Fitted.fit("portfolio", table, tallies, OPERATORS)
    asked = table.head(4).assign(problem_id=list("abcd"))
    left = np.array([2.0, 5.0, 2.0, 3.5])
    together = routes(made, asked, left, by_attempts=False)
    alone = [routes(made, asked.iloc[[i]], left[[i]], by_attempts=False)[0] for i in range(4)]
    assert [r.order for r in together] == [r.order for r in alone]
    assert guide.LARGEST == 16
