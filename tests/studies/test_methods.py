"""Telling methods: a method is told, a checkpoint's own mark is not taken for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.project.settings import Cell
from salvage.studies import classifiers, methods
from salvage.studies.failures import Failures, bag_statistics, put_together
from salvage.tables.vocabulary import FEATURES, OPERATORS

FAMILIES, METHODS = ("q", "l"), ("dpo", "grpo", "sft")


def cells(seeds: int = 4, ancestors: int = 2) -> list[Cell]:
    return [
        Cell(f"{f}-{m}-{s}|t", "", f"{f}-{s % ancestors}", "t", m, s, f)
        for f in FAMILIES
        for m in METHODS
        for s in range(seeds)
    ]


def world(seed: int, known: list[Cell], *, method: float, checkpoint: float, n: int = 60) -> Failures:
    """Draw failures whose features are shifted by their method, and by their checkpoint."""
    rng = np.random.default_rng(seed)
    by_method = dict(zip(METHODS, np.eye(3), strict=True))
    tables = []
    for cell in known:
        shift = method * by_method[cell.method] + checkpoint * rng.normal(size=3)
        rows = pd.DataFrame(rng.normal(size=(n, 3)) + shift, columns=FEATURES)
        rows["problem_id"] = [f"p{i}" for i in rng.permutation(120)[:n]]
        tables.append(rows.assign(cell=cell.name, model="m", task="t", n_failed_rollouts=rng.integers(1, 9, n)))
    return put_together(pd.concat(tables, ignore_index=True).assign(**dict.fromkeys(OPERATORS, 0.5)))


def accuracy(found: methods.Study, split: str, bag: int, way: str = "bag", inputs: str = "features + signals") -> dict:
    wanted = {"measure": "accuracy", "split": split, "bag": bag, "way": way, "inputs": inputs}
    return next(row for row in found.rows if all(row[k] == v for k, v in wanted.items()))


def run(failures: Failures, known: list[Cell], folder: Path, seed: int = 0) -> methods.Study:
    return methods.study(failures, known, trials=3, seed=seed, folder=folder, quiet=True)


@pytest.fixture(scope="module", autouse=True)
def quicker() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "BAGS", 12)
        patch.setattr(classifiers, "TREES", 20)
        yield


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> methods.Study:
    known = cells()
    return run(world(0, known, method=1.5, checkpoint=0.1), known, tmp_path_factory.mktemp("s"))


def test_a_method_is_told_the_better_the_larger_the_bag(told: methods.Study) -> None:
    for split in (methods.SEEDS, methods.ANCESTORS, methods.FAMILIES):
        large = accuracy(told, split, 25)
        assert large["value"] > 0.9 and large["p_value"] < 0.01 and large["checkpoints"] == 24
        assert accuracy(told, split, 1)["value"] < large["value"]
    assert accuracy(told, methods.SEEDS, 25)["majority"] == pytest.approx(1 / 3, abs=1e-4)
    assert told.families == ("l", "q") and set(told.classifiers) == {5, 10, 25, 50}


def test_what_tells_nothing_is_shown_to(told: methods.Study) -> None:
    row = accuracy(told, methods.SEEDS, 25, way="logistic", inputs="failed_share")
    assert row["low"] < 1 / 3 < row["high"] + 0.1


def test_a_checkpoints_own_mark_is_not_taken_for_a_method(tmp_path: Path) -> None:
    """Every checkpoint is far from every other, its method no matter: seen checkpoints would be told at 100%."""
    known = cells()
    found = run(world(1, known, method=0.0, checkpoint=3.0), known, tmp_path)
    row = accuracy(found, methods.SEEDS, 25)
    assert row["value"] < 0.5 and row["p_value"] > 0.01


def test_no_checkpoint_and_no_problem_is_on_both_sides() -> None:
    about = pd.DataFrame([vars(cell) for cell in cells(seeds=6)])
    cuts = methods.splits(about, METHODS, 0)
    assert {cut.kind for cut in cuts} == {methods.SEEDS, methods.ANCESTORS, methods.FAMILIES}
    for cut in cuts:
        assert not (cut.train & cut.test).any() and (cut.train | cut.test).all()
        assert not set(cut.learnt) & set(cut.judged)
    seeds = [cut for cut in cuts if cut.kind == methods.SEEDS]
    assert len({cut.train.tobytes() for cut in seeds}) == len(seeds) == 2 * methods.PAIRS
    for cut in seeds:
        sides = [set(zip(about["method"][side], about["seed"][side], strict=True)) for side in (cut.train, cut.test)]
        assert not sides[0] & sides[1], "one training seed of a method stands on one side, in both families"
        assert all(about["ancestor"][side].nunique() == 4 for side in (cut.train, cut.test))
    ancestors = [cut for cut in cuts if cut.kind == methods.ANCESTORS]
    assert all(not set(about["ancestor"][c.train]) & set(about["ancestor"][c.test]) for c in ancestors)


def test_one_family_and_one_ancestor_leave_seeds_alone() -> None:
    about = pd.DataFrame([vars(cell) for cell in cells(seeds=2, ancestors=1) if cell.family == "q"])
    assert {cut.kind for cut in methods.splits(about, METHODS, 0)} == {methods.SEEDS}


def test_two_seeds_a_method_are_enough(tmp_path: Path) -> None:
    known = cells(seeds=2, ancestors=1)
    found = run(world(0, known, method=1.5, checkpoint=0.1), known, tmp_path)
    assert accuracy(found, methods.SEEDS, 25)["value"] > 0.8


def test_the_same_seed_gives_the_same_figures(tmp_path: Path, told: methods.Study) -> None:
    known = cells()
    again = run(world(0, known, method=1.5, checkpoint=0.1), known, tmp_path)
    assert again.rows == told.rows and again.accuracy == told.accuracy


def test_one_seed_a_method_is_refused(tmp_path: Path) -> None:
    known = cells(seeds=1)
    with pytest.raises(SalvageError, match="two methods with two training seeds each"):
        run(world(0, known, method=1, checkpoint=0), known, tmp_path)


def test_a_cell_that_params_does_not_know_is_refused(tmp_path: Path) -> None:
    known = cells()
    with pytest.raises(SalvageError, match=r"cell 'l-dpo-0\|t' is not in params\.yaml"):
        run(world(0, known, method=1, checkpoint=0), [c for c in known if c.name != "l-dpo-0|t"], tmp_path)


def test_a_bags_statistics() -> None:
    bags = np.random.default_rng(0).normal(size=(3, 25, 2))
    made = bag_statistics(bags)
    assert made.shape == (3, 10)
    np.testing.assert_allclose(made[1, :2], bags[1].mean(axis=0))
    np.testing.assert_allclose(made[:, 6:8], np.median(bags, axis=1))
    np.testing.assert_array_equal(bag_statistics(bags[:, :1]), bags[:, 0])
    shuffled = bags[:, np.random.default_rng(1).permutation(25)]
    np.testing.assert_allclose(bag_statistics(shuffled), made), "a bag has no order"
