"""A fitted policy by name: what it routes, what it saw, its version, and JSON."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.method.profiles import Tallies, tally
from salvage.policies.calibrated import Calibrated
from salvage.policies.fitted import POLICIES, Fitted, policy_class, problem_key
from salvage.policies.learned import Learned
from salvage.policies.policy import Fixed, Random, pick
from salvage.policies.portfolio import Portfolio
from salvage.policies.rule import Rule
from salvage.tables.vocabulary import INTERVENTIONS, OPERATORS
from worlds import planted

CLASSES = {"fixed": Fixed, "random": Random, "calibrated": Calibrated, "learned": Learned, "portfolio": Portfolio}
PROFILES, ATTEMPTS = planted(np.random.default_rng(0).beta(1, 2, size=(40, 5)), cells=2)
TALLIES: Tallies = tally(PROFILES, ATTEMPTS)[0]


def read(name: str) -> str:
    """Return the name as it comes from a file: equal to the code's own, and another object."""
    return name.encode().decode()


def fit(name: str, **settings: Any) -> Fitted:
    return Fitted.fit(read(name), PROFILES, TALLIES, OPERATORS, **settings)


def test_policies_are_classes_by_name() -> None:
    assert ["rule", *CLASSES] == POLICIES
    assert {name: policy_class(read(name)) for name in CLASSES} == CLASSES


@pytest.mark.parametrize("name", ["rule", "none", "Fixed"])
def test_an_unknown_policy_is_named(name: str) -> None:
    with pytest.raises(SalvageError) as told:
        policy_class(name)
    names = "rule, fixed, random, calibrated, learned, portfolio"
    assert str(told.value) == f"policy {name!r} is not one of {names}; correct it"


@pytest.mark.parametrize("name", POLICIES)
def test_a_fit_is_the_policys_own_with_the_rules_reference(name: str) -> None:
    fitted = fit(name)
    assert fitted.name == name and fitted.rule.to_dict() == Rule.fit(PROFILES).to_dict()
    assert fitted.problems == {problem_key(f"t/p{i}") for i in range(40)}
    if name == "rule":
        assert fitted.policy is None and fitted.route(PROFILES).tolist() == Rule.fit(PROFILES).route(PROFILES).tolist()
        return
    own = CLASSES[name].fit(PROFILES, TALLIES, tuple(OPERATORS))
    assert fitted.policy is not None and fitted.policy.to_dict() == own.to_dict()
    assert fitted.route(PROFILES).tolist() == pick(own.expected(PROFILES), OPERATORS).tolist()


def test_choices_and_settings_are_passed_on() -> None:
    fitted = Fitted.fit("calibrated", PROFILES, TALLIES, INTERVENTIONS, outcomes=3)
    assert fitted.policy is not None and fitted.policy.choices == tuple(INTERVENTIONS)
    own = Calibrated.fit(PROFILES, TALLIES, INTERVENTIONS, outcomes=3)
    assert fitted.policy.to_dict() == own.to_dict() != fit("calibrated").to_dict()["fitted"]


@pytest.mark.parametrize("name", POLICIES)
def test_frozen_and_back_it_routes_the_same_by_the_same_version(name: str) -> None:
    fitted = fit(name)
    frozen = json.loads(json.dumps(fitted.to_dict(), allow_nan=False))
    assert (frozen["policy"], frozen["fallback"], "fitted" in frozen) == (name, True, name != "rule")
    assert frozen["problems"] == sorted(fitted.problems)
    rest = {key: value for key, value in frozen.items() if key != "version"}
    assert frozen["version"] == hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]
    again = Fitted.from_dict(frozen)
    assert again.version == fitted.version == frozen["version"]
    assert (again.name, again.problems, again.policy is None) == (name, fitted.problems, name == "rule")
    assert again.route(PROFILES).tolist() == fitted.route(PROFILES).tolist()


def test_a_version_is_of_all_that_was_fitted() -> None:
    other = Fitted.fit("fixed", PROFILES.assign(problem_id=[f"q{i}" for i in range(40)]), TALLIES, OPERATORS)
    moved = Fitted.fit("fixed", PROFILES.assign(spread=PROFILES["spread"] + 1), TALLIES, OPERATORS)
    rates = Fitted.fit("fixed", PROFILES, Tallies(TALLIES.correct[::-1] * 0.5, TALLIES.tried[::-1]), OPERATORS)
    versions = [one.version for one in (fit("fixed"), fit("random"), fit("rule"), other, moved, rates)]
    assert len(set(versions)) == 6 and {len(version) for version in versions} == {12}
    assert fit("fixed").version == versions[0]


@pytest.mark.parametrize("name", ["fixed", "random", "rule"])
def test_what_was_seen_is_not_scored(name: str) -> None:
    """The first problem that it saw is named, by its task and name whatever the cell."""
    fitted = fit(name)
    fresh = pd.DataFrame({"cell": ["x|t"] * 3, "problem_id": ["n", "p7", "p8"]})
    with pytest.raises(SalvageError) as told:
        fitted.refuse_seen(fresh)
    assert str(told.value) == (
        f"policy '{name}' was fitted on problem 't/p7' (row 1) and cannot be scored on it; "
        "score it on problems that it has not seen"
    )
    fitted.refuse_seen(fresh.head(1))
    fitted.refuse_seen(fresh.assign(cell="x|u"))  # another task's problem of the same name
    with pytest.raises(SalvageError, match=re.escape("(row 0)")):
        Fitted.from_dict(fitted.to_dict()).refuse_seen(fresh.tail(2))


def test_a_problems_key_is_a_short_hash_that_stays() -> None:
    """Registered policies hold these: another hash would let them be scored on what they were fitted on."""
    assert problem_key("t/p0") == hashlib.blake2b(b"t/p0", digest_size=8).hexdigest() != problem_key("t/p1")
    assert len(problem_key("t/p0")) == 16
