"""Verdicts that a broken verifier cannot stop: it may raise, hang, crash, print or leave threads; the rest goes on.

Verifiers that are not Salvage's own run in worker processes, ``python -m salvage.problems.judging``. One that takes too
long for a text is killed, and another is started for the next text. Many texts are shared out among several workers.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from salvage.errors import SalvageError
from salvage.problems import verifiers

OURS = frozenset({"exact", "numeric", "lab"})  # quick, and safe with any text: judged in the caller's process
LOADING = 60.0  # seconds for a worker's start and a verifier's import
EACH = 64  # texts for which a further worker is worth its start
_LONGEST = 500  # characters of a trouble: an exception may quote the whole text

_resolve = cache(verifiers.verifier)


@dataclass(frozen=True)
class Verdict:
    """What a verifier said of a text: `correct`, or None and in `trouble` a sentence that names the verifier."""

    correct: bool | None
    trouble: str = ""


class Judge:
    """Gives verdicts on texts; a context manager, since it may keep worker processes.

    Parameters
    ----------
    problems : DataFrame
        A problems table (`schema.PROBLEMS`).
    seconds : float
        How long a verifier outside this process may take for one text.
    workers : int
        How many processes may judge at once; each is started when there are texts enough.

    Raises
    ------
    SalvageError
        Where a verifier that a problem names cannot be had: before any text is judged, so before any model has run.
    """

    def __init__(self, problems: pd.DataFrame, *, seconds: float = 10.0, workers: int = 1) -> None:
        from salvage.tables import schema  # slow to import, and the worker needs none of it

        table = schema.check(problems, schema.PROBLEMS, "the problems")
        self._problems = table.set_index("problem_id", drop=False).to_dict("index")
        folder = Path.cwd()  # a worker that starts later imports from where this one did
        self._desks = [_Desk(folder, seconds) for _ in range(max(workers, 1))]
        self._lock = threading.Lock()
        names = [name for name in table["verifier"].unique() if name not in OURS]
        for name in names:
            if ":" not in name:
                verifiers.verifier(name)
        for name in names:
            if failed := self._desks[0].load(name):
                self.close()
                raise SalvageError(failed.trouble)

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes, if there are any, with all that their verifiers have started."""
        for desk in self._desks:
            desk.close()

    def verify(self, problem_ids: Sequence[str], texts: Sequence[str]) -> list[Verdict]:
        """Judge each text by its problem's verifier, in order; several threads take turns.

        Raises
        ------
        SalvageError
            Where a problem is unknown or the two are not of one length; a verifier's trouble is in its verdict.
        """
        if len(problem_ids) != len(texts):
            raise SalvageError(f"{len(problem_ids)} problem ids for {len(texts)} texts; give one id a text")
        for i, problem_id in enumerate(problem_ids):
            if problem_id not in self._problems:
                raise SalvageError(
                    f"text {i}: problem {problem_id!r} is not in the problems table; add it or drop the text"
                )
        pairs = [(self._problems[i], text) for i, text in zip(problem_ids, texts, strict=True)]
        with self._lock:
            outside = [i for i, (problem, _) in enumerate(pairs) if problem["verifier"] not in OURS]
            verdicts = dict(zip(outside, self._outside([pairs[i] for i in outside]), strict=True))
            return [verdicts[i] if i in verdicts else _here(*pair) for i, pair in enumerate(pairs)]

    def _outside(self, pairs: list[tuple[Mapping[str, Any], str]]) -> list[Verdict]:
        desks = self._desks[: max(len(pairs) // EACH, 1)]
        if len(desks) == 1:
            return [desks[0].verdict(*pair) for pair in pairs]
        found: list[Verdict] = [Verdict(None)] * len(pairs)
        waiting, stopped = (
            iter(range(len(pairs))),
            threading.Event(),
        )  # `next` of a range is one step of the interpreter

        def work(desk: _Desk) -> None:
            for i in waiting:
                if stopped.is_set():
                    return
                found[i] = desk.verdict(*pairs[i])

        with ThreadPoolExecutor(len(desks)) as threads:
            try:
                for done in [threads.submit(work, desk) for desk in desks]:
                    done.result()
            except BaseException:
                stopped.set()
                self.close()  # their threads wait for no answer any more
                raise
        return found


def _here(problem: Mapping[str, Any], text: str) -> Verdict:
    name = str(problem["verifier"])
    try:
        return Verdict(_resolve(name)(problem, text))
    except Exception as error:
        return Verdict(None, _trouble(name, problem, error))


class _Desk:
    """A place where one text at a time is judged, by a worker process that is started anew after it was killed."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._worker: _Worker | None = None

    def verdict(self, problem: Mapping[str, Any], text: str) -> Verdict:
        """Return what the problem's verifier says of a text, or its trouble."""
        name = str(problem["verifier"])
        littered = self._worker is not None and self._worker.littered
        verdict = self.load(name) or self._ask({"name": name, "problem": problem, "text": text}, self._seconds)
        if littered and self._worker is None:  # a thread that another text left may be to blame: once more, alone
            return self.verdict(problem, text)
        return verdict

    def load(self, name: str) -> Verdict | None:
        """Have a verifier imported; return its trouble, or None."""
        worker = self._worker
        if worker is not None and name in worker.loaded:
            return None
        verdict = self._ask({"name": name}, LOADING)
        if verdict.trouble or self._worker is None:
            return verdict
        self._worker.loaded.add(name)
        return None

    def close(self) -> None:
        """End the worker, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def _ask(self, request: dict[str, Any], seconds: float) -> Verdict:
        doing = "" if "text" in request else " while it was imported"
        worker = self._worker = self._worker or _Worker(self._folder)
        try:
            return worker.ask(request, seconds)
        except TimeoutError:
            told = f"took longer than {seconds:g} s"
        except OSError:  # its end is closed
            code = worker.end()
            told = f"ended its process ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
        except BaseException:  # the answer to come would be taken for the next text's
            self.close()
            raise
        self.close()
        return Verdict(None, f"the verifier {request['name']} {told}{doing}")


class _Worker:
    """The worker as its parent sees it: one request, one answer, each a line of JSON."""

    def __init__(self, folder: Path) -> None:
        self.loaded: set[str] = set()
        self.littered = False
        self._ending = threading.Lock()
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", "salvage.problems.judging", *sys.path]
        with theirs:
            # nothing is ever written to its stdin; that it closes tells the worker that its parent is no more
            self._process = subprocess.Popen(  # noqa: S603 (this module, by this Python)
                command, stdin=subprocess.PIPE, stdout=theirs.fileno(), cwd=folder, start_new_session=True
            )

    def ask(self, request: dict[str, Any], seconds: float) -> Verdict:
        """Return the answer; raise TimeoutError where none comes in time, ConnectionError where none can come."""
        until = time.monotonic() + seconds
        self._socket.settimeout(seconds)
        self._socket.sendall(_line(request))
        said = b""
        while not said.endswith(b"\n"):
            self._socket.settimeout(max(until - time.monotonic(), 1e-3))
            piece = self._socket.recv(65536)
            if not piece:
                raise ConnectionError
            said += piece
        answer = _read(said)
        self.littered |= answer["littered"]
        return Verdict(answer["correct"], answer["trouble"])

    def end(self) -> int:
        """Kill the worker and its group; return its own exit code where it had ended before."""
        with self._ending:
            if self._process.returncode is None:  # not waited for yet: the number is still its own
                os.killpg(self._process.pid, signal.SIGKILL)
            self._socket.close()
            if self._process.stdin is not None:
                self._process.stdin.close()
            return self._process.wait()


def _line(message: dict[str, Any]) -> bytes:
    # a model's text may hold lone surrogates, which UTF-8 has no place for
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _read(line: bytes) -> dict[str, Any]:
    return dict(json.loads(line.decode("utf-8", "surrogatepass")))


def _trouble(name: str, problem: Mapping[str, Any], error: BaseException) -> str:
    """Return one sentence that names the verifier but not the problem, which the caller knows."""
    if isinstance(error, SalvageError):
        told, named = str(error).removesuffix("; correct it"), f"problem {problem.get('problem_id')!r}"
        if told.startswith(named):
            told = told.removeprefix(f"{named}: ").replace(named, "the problem", 1)
    else:
        try:
            told = f"the verifier {name} raised {error!r}"
        except BaseException:
            told = f"the verifier {name} raised {type(error).__name__}"
    told = told if told.startswith("the verifier ") else f"the verifier {name}: {told}"
    told = " ".join(told.split()).encode("utf-8", "backslashreplace").decode()
    return told if len(told) <= _LONGEST else told[: _LONGEST - 1] + "…"


def _work() -> None:
    """Answer the parent's requests until it closes the socket or dies."""
    sys.path[:], sys.argv[1:] = sys.argv[1:], []
    channel = socket.socket(fileno=os.dup(1))
    _die_with_parent(os.dup(0))
    with contextlib.suppress(OSError):  # if memory runs out, it is not the parent that has to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    process = os.getpid()
    for line in channel.makefile("rb"):
        answer = _line(_answer(_read(line)))
        if os.getpid() != process:  # a verifier that forked, and came back twice
            os._exit(1)
        channel.sendall(answer)
    os._exit(0)  # threads that verifiers left are not waited for


def _die_with_parent(lifeline: int) -> None:
    # A thread that waits for the end of stdin would not get its turn while a regular expression runs wild, so the
    # kernel is told to kill the group when the pipe closes. prctl's signal comes when the parent's thread ends already.
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    name, problem, threads = request["name"], request.get("problem", {}), threading.active_count()
    correct, trouble = None, ""
    try:
        if "text" in request:
            correct = _resolve(name)(problem, request["text"])
        else:
            _warm_up(name)
    except BaseException as error:  # sys.exit too
        trouble = _trouble(name, problem, error)
    signal.alarm(0)  # one that a verifier left would hit the next text
    littered = "text" in request and threading.active_count() > threads
    return {"correct": correct, "trouble": trouble, "littered": littered}


def _warm_up(name: str) -> None:
    judge = _resolve(name)
    if name == "math":
        judge({"answer": "1"}, "1")  # its first parse takes as long as its import
    elif name == "reasoning_gym":
        importlib.import_module(name)


if __name__ == "__main__":
    _work()
