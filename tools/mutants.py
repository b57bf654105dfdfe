"""Do the tests bite? Break a random sample of the code's places, one at a time, and count what the quick tests see.

`make mutants EACH=40 SEED=1`. Operators are cosmic-ray's. A place is drawn first (so many a room), then one of the
operators that apply there; annotations are left out, docstrings and texts are never touched. A mutant runs against the
tests of its room in a forked process, its own module's first; what computes longer than LIMIT counts as killed.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import hypothesis  # noqa: F401 - loaded once, before the forks; so are the next
import pandas  # noqa: F401
import pandera.pandas  # noqa: F401
import pyarrow.parquet  # noqa: F401
import pytest
import scipy.stats
from cosmic_ray.ast import Visitor, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOMS = {"method": ["method"], "policies": ["policies"], "evaluation": ["evaluation"], "rescue": ["rescue"]}
LEFT_OUT = ["test_loop.py", "test_protocols.py"]  # most of a minute each for every mutant that lives: rates are too low
LIMIT = 60  # seconds of computing a mutant: a machine that is busy with something else does not kill any
WAITING = 600.0  # seconds until one that hangs is given up
WORKERS = 2
SRC = Path("src")


class Places(Visitor):
    """Gathers, for every place of a module, the operators that apply there and their occurrence."""

    def __init__(self) -> None:
        self.found: dict[tuple, list[tuple[str, int]]] = defaultdict(list)
        self.seen: dict[str, int] = defaultdict(int)
        self.operators = {}
        for name in sorted(operator_names()):
            with contextlib.suppress(TypeError):  # those that need arguments
                self.operators[name] = get_operator(name)()

    def visit(self, node):
        for name, operator in self.operators.items():
            for place in operator.mutation_positions(node):
                self.found[place].append((name, self.seen[name]))
                self.seen[name] += 1
        return node


def without_annotations(code: str) -> str:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def drawn(room: str, each: int, seed: int) -> list[tuple[Path, str]]:
    """Return a room's mutants: the module and what it becomes."""
    rng, places = random.Random(f"{room}/{seed}"), []
    for path in sorted((SRC / "salvage" / room).glob("*.py")):
        visitor = Places()
        visitor.walk(get_ast(path.read_text()))
        places += [(path, place, ways) for place, ways in sorted(visitor.found.items())]
    mutants: list[tuple[Path, str]] = []
    for path, _, ways in rng.sample(places, len(places)):
        name, occurrence = rng.choice(ways)
        code = path.read_text()
        mutant = mutate_code(code, get_operator(name)(), occurrence)
        with contextlib.suppress(SyntaxError):
            if mutant and without_annotations(mutant) != without_annotations(code):
                mutants.append((path, mutant))
        if len(mutants) == each:
            break
    return mutants


def passes(room: str, module: str, copy: Path) -> bool:
    """Run the room's quick tests on a copy of the code; what hangs does not pass."""
    files = [p for folder in ROOMS[room] for p in sorted(Path("tests", folder).glob("test_*.py"))]
    files = [p for p in files if p.name not in LEFT_OUT]
    files.sort(key=lambda p: (module not in p.name, p.parent.name != room, p.stat().st_size))
    child = os.fork()
    if not child:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 1))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        sys.path.insert(0, str(copy))
        os.environ["PYTHONPATH"] = str(copy)
        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "ignore"]
        try:
            code = int(pytest.main([*options, *map(str, files)]))
        finally:
            os._exit(locals().get("code", 1))
    until = time.monotonic() + WAITING
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main(each: int, seed: int, rooms: list[str]) -> None:
    """Print each mutant's fate, the survivors' diffs, and the rates with exact binomial 95% intervals."""
    sys.dont_write_bytecode = True  # two mutants of one size within a second would share their bytecode
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as threads:
        copies: Queue[Path] = Queue()
        for i in range(WORKERS):
            copies.put(Path(shutil.copytree(SRC, Path(folder) / str(i))))

        def killed(room: str, path: Path, mutant: str) -> bool:
            copy = copies.get()
            target = copy / path.relative_to(SRC)
            target.write_text(mutant)
            try:
                alive = passes(room, path.stem, copy)
            finally:
                target.write_text(path.read_text())
                copies.put(copy)
            if alive:
                lines = [text.splitlines() for text in (path.read_text(), mutant)]
                print("\n".join(difflib.unified_diff(*lines, str(path), "survivor", lineterm="", n=1)), flush=True)
            return not alive

        counts: dict[str, list[bool]] = {}
        for room in rooms:
            start = time.monotonic()
            if not threads.submit(passes, room, "", copies.queue[0]).result():
                sys.exit(f"the quick tests of {room} fail, or take over {LIMIT} s, as the code is")
            print(f"{room}: as it is {time.monotonic() - start:.1f} s", flush=True)
            counts[room] = list(threads.map(lambda m, room=room: killed(room, *m), drawn(room, each, seed)))
            if not threads.submit(passes, room, "", copies.queue[0]).result():  # something else broke: no kill counts
                sys.exit(f"the quick tests of {room} fail at the end as the code is; no rate can be told")
            rate(room, counts[room])
        rate("in all", [one for room in counts.values() for one in room])


def rate(name: str, killed: list[bool]) -> None:
    low, high = scipy.stats.binomtest(sum(killed), len(killed)).proportion_ci()
    print(
        f"{name}: {sum(killed)} of {len(killed)} killed, {sum(killed) / len(killed):.0%} [{low:.0%}, {high:.0%}]",
        flush=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or list(ROOMS))
