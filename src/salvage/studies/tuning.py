"""Optuna studies in SQLite: they resume after a kill, several processes share them, and a seed reproduces them.

Trials are numbered (`slot`) and come in generations. What a trial tries, and whether it is pruned, depends on the seed,
its slot and the generations before its own: not on who ran it, or on what ran beside it. A trial is written when it is
finished, in one transaction, under a lock on its slot that the operating system frees when its process dies; so a
killed one is simply run again, the same.
"""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

from salvage.project.pool import bar
from salvage.tables.shards import fingerprint

GENERATION = 4  # trials that do not know of each other: what may run side by side in one study
Objective = Callable[[optuna.Trial], float]


@dataclass(frozen=True)
class Study:
    """A search to be finished.

    Attributes
    ----------
    name : str
        Searches of other names try other things.
    mark : str
        Of all that the objective rests on. In the store, searches of one name and mark are one.
    objective : callable
        Gets an Optuna trial and returns what is to be as large as possible; may report and prune.
    seed, trials : int
    first : tuple of dict
        Settings to try before the sampler is asked.
    """

    name: str
    mark: str
    objective: Objective
    seed: int
    trials: int
    first: tuple[dict[str, Any], ...] = ()

    @property
    def stored(self) -> str:
        """What it is called in the store."""
        return f"{self.name}-{self.mark}"


def mark(modules: list[str], arrays: list[np.ndarray], *rest: Any) -> str:
    """Hash what an objective rests on: modules of this package, arrays, and what JSON takes.

    A search under another hash is another search, so that a stale one is never gone on with.
    """
    content = [hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest() for array in arrays]
    code = [*modules, "studies/classifiers.py", "studies/tuning.py"]
    return fingerprint(content, *rest, optuna.__version__, code=code)[:12]


def tune(studies: list[Study], folder: Path, *, label: str, quiet: bool = False) -> list[list[FrozenTrial]]:
    """Finish every study, on all cores, and return each one's trials by slot.

    Parameters
    ----------
    folder : Path
        Holds `optuna.db` and the locks; what other processes do there at the same time is shared.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    store = _store(folder)
    shared = [
        optuna.create_study(storage=store, study_name=s.stored, direction="maximize", load_if_exists=True)
        for s in studies
    ]
    workers, stop = len(os.sched_getaffinity(0)), Event()
    with threadpool_limits(1), ThreadPoolExecutor(workers) as executor, bar(quiet) as progress:
        jobs = [executor.submit(_work, studies, shared, folder, turn, stop) for turn in range(workers)]
        task, told = progress.add_task(label, total=sum(study.trials for study in studies)), set[str]()
        try:
            while not all(job.done() for job in jobs):
                wait(jobs, timeout=0.5, return_when=FIRST_EXCEPTION)
                done = list(map(_finished, studies, shared))
                progress.update(task, completed=sum(map(len, done)))
                if not quiet and not progress.console.is_terminal:
                    _tell(studies, done, told)
                if any(job.done() and job.exception() for job in jobs):
                    break
        finally:  # interrupted, or one has failed: the others end with the trial they are at
            stop.set()
        for job in jobs:
            job.result()
    return [list(done.values()) for done in map(_finished, studies, shared)]


def _tell(studies: list[Study], done: list[dict[int, FrozenTrial]], told: set[str]) -> None:
    for study, trials in zip(studies, done, strict=True):
        if len(trials) == study.trials and study.name not in told:
            told.add(study.name)
            pruned = sum(trial.state == TrialState.PRUNED for trial in trials.values())
            print(f"{study.name}: {study.trials} trials, {pruned} of them pruned", flush=True)


def best(trials: list[FrozenTrial]) -> FrozenTrial:
    """Return the best trial that was not pruned; the first of equals."""
    return max((t for t in trials if t.state == TrialState.COMPLETE), key=lambda t: (t.value, -t.user_attrs["slot"]))


def _store(folder: Path) -> optuna.storages.RDBStorage:
    with FileLock(folder / "optuna.lock"):  # two processes that make its tables at once would trip over each other
        url = f"sqlite:///{folder / 'optuna.db'}"
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def _finished(study: Study, shared: optuna.Study) -> dict[int, FrozenTrial]:
    """Return the finished trials by slot; of a search that was once larger, those that are asked for now."""
    slots = {trial.user_attrs["slot"]: trial for trial in shared.get_trials(deepcopy=False)}
    return {slot: trial for slot, trial in sorted(slots.items()) if slot < study.trials}


def _work(studies: list[Study], shared: list[optuna.Study], folder: Path, turn: int, stop: Event) -> None:
    """Take trials until none is left; each worker starts at another study."""
    left = [(turn * len(studies) // 2 + i) % len(studies) for i in range(len(studies))]
    while left and not stop.is_set():
        for i in list(left):
            if _advance(studies[i], shared[i], folder):
                break
            if len(_finished(studies[i], shared[i])) == studies[i].trials:
                left.remove(i)
        else:
            time.sleep(0.1)  # others are at work on what is left


def _advance(study: Study, shared: optuna.Study, folder: Path) -> bool:
    """Run one trial of the generation that is due, unless others are at work on all that is left of it."""
    done = _finished(study, shared)
    due = next(slot for slot in range(study.trials + 1) if slot not in done) // GENERATION * GENERATION
    for slot in range(due, min(due + GENERATION, study.trials)):
        if slot in done:
            continue
        try:
            with FileLock(folder / f"{study.stored}-{slot}.lock", blocking=False):
                if slot not in _finished(study, shared):
                    earlier = [done[i] for i in range(due)]
                    shared.add_trial(_run(study, slot, earlier))
                    return True
        except Timeout:
            continue
    return False


def _run(study: Study, slot: int, earlier: list[FrozenTrial]) -> FrozenTrial:
    seed = np.random.SeedSequence([study.seed, zlib.crc32(study.name.encode()), slot, 1]).generate_state(1)[0]
    alone = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=int(seed)),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=GENERATION),
    )
    alone.add_trials(earlier)
    if slot < len(study.first):
        alone.enqueue_trial(study.first[slot])
    alone.optimize(study.objective, n_trials=1)
    trial, end = alone.trials[-1], time.time()
    start = end - (trial.duration.total_seconds() if trial.duration else 0.0)
    return optuna.trial.create_trial(
        state=trial.state,
        value=trial.value,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values=trial.intermediate_values,
        user_attrs={"slot": slot, "start": start, "end": end},
    )
