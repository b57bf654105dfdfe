"""The tables of the full run that are kept with the project: whole, of one run, enough for what comes after them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from salvage.method.facts import with_facts
from salvage.method.profiles import made_by, make_profiles
from salvage.tables import schema
from salvage.tables.profile_files import read_profiles
from salvage.tables.vocabulary import OPERATORS

FULL = Path(__file__).parents[1] / "data/full"


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    return (
        read_profiles(FULL / "profiles"),
        schema.read(FULL / "features", schema.FEATURE_ROWS),
        schema.read(FULL / "attempts", schema.ATTEMPTS),
    )


def test_six_seeds_a_method_in_both_families(tables: tuple[pd.DataFrame, ...]) -> None:
    cells = pd.Series(tables[0]["cell"].unique()).str.extract(r"(\w+)-(\w+)-(\d)\|digits")
    assert (cells.groupby([0, 1])[2].nunique() == 6).all() and len(cells) == 48


def test_profiles_follow_from_features_and_attempts(tables: tuple[pd.DataFrame, ...]) -> None:
    profiles, features, attempts = tables
    made = make_profiles(features, attempts, anchor="online", continuation="temperature")
    key = ["cell", "problem_id"]
    pd.testing.assert_frame_equal(
        schema.check(made.sort_values(key), schema.PROFILES, "made"),
        schema.check(profiles.sort_values(key), schema.PROFILES, "kept"),
    )


def test_twelve_attempts_an_operator_twice_as_many_retries_and_every_anchor_side_by_side_once(
    tables: tuple[pd.DataFrame, ...],
) -> None:
    attempts = tables[2]
    mine = made_by(attempts, "online", "temperature")
    default = mine[mine["operator"].isin(OPERATORS)]
    sizes = default.groupby(["cell", "problem_id", "operator"]).size()
    assert (sizes.drop("retry", level="operator") == 12).all() and (sizes.xs("retry", level="operator") == 24).all()
    ways = attempts.groupby("cell")[["anchor", "continuation"]].apply(lambda rows: len(rows.drop_duplicates()))
    assert (ways == 6).sum() == 8, "the first seed of each method, in both families"


def test_every_failure_has_its_facts(tables: tuple[pd.DataFrame, ...]) -> None:
    both = with_facts(tables[0], schema.read(FULL / "facts", schema.FACT_ROWS))
    assert len(both) == len(tables[0]) and (both["failed_share"] * 8 == both["n_failed_rollouts"]).all()
