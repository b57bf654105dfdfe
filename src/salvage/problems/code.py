"""The verifier `code`: does a program that a model wrote pass the problem's tests? It runs in a sandbox or not at all.

The sandbox is bubblewrap's: no network, no files but its own folder and the system's libraries, limits on memory, time
and processes. Where it is not installed, code is refused unless the user says that it may run without.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salvage.errors import SalvageError

UNBOXED = "SALVAGE_CODE_WITHOUT_SANDBOX"  # set to 1: the user says so
SECONDS = 4  # of a processor; twice as many by the clock
MEMORY = 1 << 30  # bytes
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def code(problem: Mapping[str, Any], text: str) -> bool:
    """Tell whether the program in a text passes the tests of its problem.

    The program is what the last fenced block holds; without one, the whole text. The tests are `tests` in the problem's
    `metadata`, a list of lines of Python, run after it and after `setup`. What takes too long has not passed.

    Raises
    ------
    SalvageError
        Where the problem has no tests, or there is no sandbox and the user has not said that it may go without.
    """
    blocks = _FENCED.findall(text)
    passed = secrets.token_hex(16)  # a program that ends itself early has not passed
    setup, tests = _tests(problem)
    program = "\n".join([setup, blocks[-1] if blocks else text, *tests, f"print({passed!r})", ""])
    with tempfile.TemporaryDirectory(prefix="salvage-code-") as folder:
        Path(folder, "program.py").write_text(program, encoding="utf-8", errors="replace")
        return _output(folder).rstrip().endswith(passed)


def check_tests(problem: Mapping[str, Any]) -> None:
    """Refuse a problem without tests, and any where there is no sandbox, before a model has run."""
    _tests(problem)
    _command("")


def _tests(problem: Mapping[str, Any]) -> tuple[str, list[str]]:
    try:
        about = json.loads(problem["metadata"])
    except ValueError:
        about = {}
    tests, setup = about.get("tests"), about.get("setup", "")
    if not isinstance(tests, list) or not tests or not all(isinstance(t, str) for t in [*tests, setup]):
        raise SalvageError(
            f"problem {problem.get('problem_id')!r} has no tests; write them as a list of texts to metadata.tests"
        )
    return setup, tests


def _command(folder: str) -> list[str]:
    """Return what runs a folder's program.

    Raises
    ------
    SalvageError
        Where bubblewrap is not installed and the user has not said that it may go without.
    """
    python = [sys.executable, "-I", "-B", "program.py"]
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        if os.environ.get(UNBOXED) == "1":
            return python
        raise SalvageError(
            "the verifier code runs what a model wrote, and bubblewrap (bwrap) is not installed to run it in; install "
            f"it, or set {UNBOXED}=1 where such code may do no harm, as in a container of its own"
        )
    # the interpreter's libraries, wherever it is installed, may be read; nothing else of the machine is seen
    there = dict.fromkeys(["/usr", "/bin", "/lib", "/lib64", sys.base_prefix, sys.prefix])
    seen = [part for path in there if Path(path).exists() for part in ("--ro-bind", path, path)]
    closed = ["--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    own = ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", folder, "/work", "--chdir", "/work"]  # noqa: S108
    return [bubblewrap, *closed, *seen, *own, *python]


def _output(folder: str) -> str:
    """Run a folder's program within its limits and return what it printed; nothing where it failed."""
    process = subprocess.Popen(  # noqa: S603 (a list of arguments, no shell)
        _command(folder),
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": folder},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_limit,
        text=True,
        errors="replace",
    )
    try:
        told, _ = process.communicate(timeout=2 * SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return told if process.returncode == 0 else ""


def _limit() -> None:
    for what, most in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
