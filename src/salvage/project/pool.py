"""One job a cell on every core: processes of their own, one progress bar, a clear word when one of them dies."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, get_context, parent_process
from multiprocessing.connection import wait

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from salvage.errors import SalvageError
from salvage.project import warned
from salvage.project.machine import gpu

_share: list[int] = []  # a worker's, of the cores


def share() -> int:
    """Return how many cores this process may use: in a job of `each` its share, else all of them."""
    return _share[0] if _share else len(os.sched_getaffinity(0))


def prepare(*modules: str) -> None:
    """Begin to import what jobs need in a process beside this one, of which workers will be copies.

    Not where a GPU is: CUDA does not survive the copying, and an import may wake it.
    """
    if not gpu():
        forkserver.set_forkserver_preload(list(modules))
        forkserver.ensure_running()


def each(label: str, work: Callable[..., bool], jobs: dict[str, tuple], *, quiet: bool = False) -> int:
    """Call `work(*job)` for every job, several at once, and return how many had something to do.

    Threads are shared out evenly, so that the same jobs on the same machine compute with the same number of threads
    and give the same bits.

    Raises
    ------
    SalvageError
        What a job raised as one, or that a worker process died; other jobs keep what they have finished.
    """
    cores = len(os.sched_getaffinity(0))
    workers, start = (1, "spawn") if gpu() else (max(1, min(cores, len(jobs))), "forkserver")
    if len(jobs) <= 1:
        return sum(report(label, name, work(*job), quiet) for name, job in jobs.items())
    done = 0
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with (
        ProcessPoolExecutor(
            workers, mp_context=get_context(start), initializer=_settle, initargs=(max(1, cores // workers),)
        ) as executor,
        bar(quiet) as progress,
    ):
        futures = {executor.submit(work, *job): name for name, job in jobs.items()}
        task = progress.add_task(label, total=len(jobs))
        try:
            for future in as_completed(futures):
                done += report(label, futures[future], future.result(), quiet or progress.console.is_terminal)
                progress.advance(task)
        except BrokenProcessPool:
            raise SalvageError(
                f"{label}: a worker process died (killed, or out of memory); what is finished is kept: start again"
            ) from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
    return done


def report(label: str, name: str, worked: bool, quiet: bool) -> bool:
    """Say whether a job had something to do, and return it."""
    if not quiet:
        print(f"{label}: {name} {'done' if worked else 'is up to date'}", flush=True)
    return worked


def bar(quiet: bool) -> Progress:
    """Return a progress bar that shows on a terminal alone."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True)


def _settle(count: int) -> None:
    """Give a worker process its share of the cores and our words, and silence bars that libraries would draw.

    A worker whose parent was killed ends too: it would go on with its cell and write over what a second start makes.
    """
    import torch
    import transformers

    _share[:] = [count]
    warned.in_our_words()
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()
    torch.set_num_threads(count)
    transformers.utils.logging.disable_progress_bar()
