"""Clusters: found where they are, matched across families, and not believed where there are none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.studies import clusters
from salvage.tables.vocabulary import FEATURES, OPERATORS

CENTRES = np.array([[-3.0, 0, 0], [0, 3, 0], [3, 0, 2], [0, -3, -3]])


def world(seed: int, *, k: int = 4, rescued: bool = True, n: int = 600) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(k, size=2 * n)
    table = pd.DataFrame(rng.normal(size=(2 * n, 3)) * 0.5 + CENTRES[truth], columns=FEATURES)
    table["cell"] = np.repeat(["a-sft-0|t", "b-sft-0|t"], n)
    table["problem_id"] = np.tile([f"p{i}" for i in range(n)], 2)
    table["task"] = "t"
    rates = rng.random((2 * n, 5)) * 0.4
    if rescued:
        rates[np.arange(2 * n), truth % 5] += 0.4
    return table.assign(**dict(zip(OPERATORS, rates.T, strict=True))), truth


@pytest.fixture(autouse=True)
def quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"RESAMPLES": 8, "PERMUTATIONS": 200, "INTERVAL_RESAMPLES": 50}
    for name, number in few.items():
        monkeypatch.setattr(clusters, name, number)


def test_what_is_there_is_found_and_matched_across_families() -> None:
    table, truth = world(0)
    rows, found = clusters.study(table, seed=0)
    chosen = [row for row in rows if row.get("chosen")]
    assert len(chosen) == 2 and all(row["k"] == 4 and row["value"] > 0.95 for row in chosen)
    label = np.concatenate([one.label for one in found])
    pairs = pd.crosstab(label, truth)
    assert (pairs.max(axis=1) / pairs.sum(axis=1) > 0.98).all(), "one number means one cluster, in both families"
    agree = [row["value"] for row in rows if row["measure"].startswith("agreement")]
    assert len(agree) == 2 and min(agree) > 0.95
    explained = [row for row in rows if row["measure"] == "explained: which operator"]
    assert all(row["value"] > 0.3 and row["p_value"] < 0.01 for row in explained)
    assert {row["name"].split()[0] for row in rows if row["measure"] == "cluster"} == {"high", "low"}


def test_one_cloud_is_not_cut_into_many() -> None:
    rows, _ = clusters.study(world(0, k=1)[0], seed=0)
    many = [row["value"] for row in rows if row["measure"] == "stability" and row["k"] >= 6]
    assert max(many) < clusters.STABLE


def test_shuffled_rescue_is_not_explained() -> None:
    _, truth = world(2, rescued=False)
    cell = np.repeat([0, 1], 600)
    p = [clusters.explained(np.random.default_rng(i).random((1200, 5)), truth, cell, i)[1] for i in range(20)]
    assert 2 <= sum(value < 0.5 for value in p) <= 18
    value, small = clusters.explained(np.eye(5)[truth % 5], truth, cell, 0)
    assert value == pytest.approx(1, abs=0.01) and small < 0.01


def test_what_cells_differ_by_counts_for_nothing() -> None:
    cell = np.repeat([0, 1], 500)
    label = np.where(np.random.default_rng(0).random(1000) < 0.9, cell, 1 - cell)
    target = np.random.default_rng(1).normal(size=(1000, 5)) + 5 * cell[:, None]
    assert clusters.explained(target, label, cell, 0)[0] < 0.01


def test_too_few_are_refused() -> None:
    with pytest.raises(SalvageError, match="30 failures of a are too few"):
        clusters.study(world(0, n=30)[0], seed=0)
