"""A study is the same for a seed, however it was stopped, resumed or shared."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest

from salvage.studies.tuning import GENERATION, Study, _store, best, tune

WORKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_tuning import study
from salvage.studies.tuning import tune
tune([study(24, pause=0.05)], Path("."), label="t", quiet=True)
"""


def study(trials: int, *, pause: float = 0.0, seed: int = 0, name: str = "s") -> Study:
    def hill(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", -3, 3)
        kind = trial.suggest_categorical("kind", ["a", "b"])
        time.sleep(pause)
        for step in range(3):
            trial.report(-((x - 1) ** 2) - step, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return -((x - 1) ** 2) - (kind == "b")

    return Study(name, "m", hill, seed, trials, ({"x": 0.0, "kind": "a"},))


def told(trials: list[Any]) -> list[tuple[Any, ...]]:
    return [(t.user_attrs["slot"], t.params, t.value, t.state) for t in trials]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    return told(tune([study(24)], tmp_path_factory.mktemp("alone"), label="t", quiet=True)[0])


def test_a_seed_gives_the_same_trials_and_another_gives_others(tmp_path: Path, undisturbed: list[Any]) -> None:
    again = tune([study(24)], tmp_path / "again", label="t", quiet=True)[0]
    assert told(again) == undisturbed
    assert {slot for slot, *_ in undisturbed} == set(range(24))
    assert undisturbed[0][1] == {"x": 0.0, "kind": "a"}, "what is to be tried first is"
    other = tune([study(24, seed=1)], tmp_path / "other", label="t", quiet=True)[0]
    assert told(other)[1:] != undisturbed[1:]


def test_it_searches_and_prunes(undisturbed: list[Any]) -> None:
    states = [state.name for *_, state in undisturbed]
    assert "PRUNED" in states[GENERATION:] and "PRUNED" not in states[:GENERATION]
    early = max(value for _, _, value, _ in undisturbed[:GENERATION])
    assert max(value for _, _, value, state in undisturbed if state.name == "COMPLETE") > early


def test_best_leaves_out_what_was_pruned(tmp_path: Path) -> None:
    trials = tune([study(24)], tmp_path, label="t", quiet=True)[0]
    found = best(trials)
    assert found.state.name == "COMPLETE"
    assert found.value == max(t.value for t in trials if t.state.name == "COMPLETE")


@pytest.mark.parametrize("first", [1, 5, 8])
def test_a_study_stopped_and_gone_on_with_is_the_undisturbed_one(
    tmp_path: Path, undisturbed: list[Any], first: int
) -> None:
    tune([study(first)], tmp_path, label="t", quiet=True)
    assert told(tune([study(24)], tmp_path, label="t", quiet=True)[0]) == undisturbed


def test_a_smaller_search_is_the_beginning_of_a_larger_one(tmp_path: Path, undisturbed: list[Any]) -> None:
    tune([study(24)], tmp_path, label="t", quiet=True)
    assert told(tune([study(7)], tmp_path, label="t", quiet=True)[0]) == undisturbed[:7]


def test_studies_side_by_side_do_not_change_each_other(tmp_path: Path, undisturbed: list[Any]) -> None:
    both = tune([study(24), study(10, name="other")], tmp_path, label="t", quiet=True)
    assert told(both[0]) == undisturbed and len(both[1]) == 10


def test_an_objective_that_fails_says_so(tmp_path: Path) -> None:
    def broken(trial: optuna.Trial) -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        tune([Study("broken", "m", broken, 0, 2)], tmp_path, label="t", quiet=True)


def start(folder: Path) -> subprocess.Popen:
    source = str(Path(__file__).parents[2] / "src")
    code = WORKER.format(tests=str(Path(__file__).parent))
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env={**os.environ, "PYTHONPATH": source})


def _made(store: Path) -> bool:
    """Tell whether a worker has made its store: Optuna would make its tables here too, and one of them would fail."""
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as database:
            return bool(database.execute("select count(*) from alembic_version").fetchone()[0])
    except sqlite3.OperationalError:  # no file, or not its last table yet
        return False


def recorded(folder: Path) -> list[Any]:
    if not _made(folder / "optuna.db"):
        return []
    try:
        # opened as the workers do, under their lock: whoever opens it first makes its tables
        return optuna.load_study(study_name="s-m", storage=_store(folder)).get_trials()
    except KeyError:  # the study is yet to be made
        return []


@pytest.mark.slow
def test_two_processes_share_a_study(tmp_path: Path, undisturbed: list[Any]) -> None:
    workers = [start(tmp_path), start(tmp_path)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    assert told(sorted(recorded(tmp_path), key=lambda t: t.user_attrs["slot"])) == undisturbed


@pytest.mark.slow
def test_a_killed_study_loses_and_doubles_no_trial(tmp_path: Path, undisturbed: list[Any]) -> None:
    for enough in (3, 11):
        worker = start(tmp_path)
        while len(recorded(tmp_path)) < enough:
            assert worker.poll() is None
            time.sleep(0.02)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    assert len(recorded(tmp_path)) < 24
    assert start(tmp_path).wait(timeout=120) == 0
    trials = recorded(tmp_path)
    assert sorted(t.user_attrs["slot"] for t in trials) == list(range(24))
    assert told(sorted(trials, key=lambda t: t.user_attrs["slot"])) == undisturbed
