"""Programs are run against their tests, within limits, in a sandbox or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from salvage.errors import SalvageError
from salvage.problems import code as module
from salvage.problems.code import UNBOXED, check_tests, code
from salvage.problems.verifiers import verifier

ADD = "def add(a, b):\n    return a + b\n"
needs_bubblewrap = pytest.mark.skipif(not shutil.which("bwrap"), reason="bubblewrap is not installed")


def problem(*tests: str, setup: str = "") -> dict[str, Any]:
    about = {"tests": list(tests) or ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], "setup": setup}
    return {"problem_id": "p", "metadata": json.dumps(about)}


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNBOXED, "1")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (ADD, True),
        (f"Here it is:\n```python\n{ADD}```\nDone.", True),
        (f"```\nnot this\n```\nbut\n```py\n{ADD}```", True),
        ("def add(a, b):\n    return a - b\n", False),
        ("def add(a, b) return", False),
        ("import sys\nsys.exit(0)\n", False),
        ("import os\nos._exit(0)\n", False),
        (f"{ADD}\nraise SystemExit\n", False),
        ("", False),
    ],
)
def test_a_program_is_right_where_it_passes_all_tests(allowed: None, text: str, right: bool) -> None:
    assert code(problem(), text) is right
    assert verifier("code")(problem(), text) is right


def test_setup_comes_first(allowed: None) -> None:
    assert code(problem("assert f() == 3", setup="import math\nthree = 3"), "def f():\n    return math.floor(three)")


@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "x = bytearray(3 << 30)",
        "open('big', 'wb').write(bytes(9 << 20))",
    ],
)
def test_what_takes_too_much_has_not_passed(allowed: None, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 1)
    assert not code(problem(), f"{ADD}{body}\n")


def test_without_a_sandbox_nothing_runs_unless_the_user_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(UNBOXED, raising=False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    text = f"{ADD}\nopen({str(tmp_path / 'there')!r}, 'w')\n"
    for work in (lambda: code(problem(), text), lambda: check_tests(problem())):
        with pytest.raises(SalvageError, match=rf"bubblewrap \(bwrap\) is not installed.*or set {UNBOXED}=1"):
            work()
    assert not (tmp_path / "there").exists()


def test_a_problem_without_tests_is_refused(allowed: None) -> None:
    for about in ("{}", '{"tests": []}', '{"tests": "assert 1"}', '{"tests": [1]}', "no json"):
        with pytest.raises(SalvageError, match="problem 'p' has no tests; write them as a list"):
            check_tests({"problem_id": "p", "metadata": about})


def test_the_sandbox_has_no_network_and_sees_its_own_folder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/bwrap")
    command = module._command("/tmp/own")
    assert command[0] == "/usr/bin/bwrap" and "--unshare-all" in command and "--share-net" not in command
    writable = [command[i + 1] for i, part in enumerate(command) if part == "--bind"]
    assert writable == ["/tmp/own"]
    seen = [command[i + 1] for i, part in enumerate(command) if part == "--ro-bind"]
    assert "/" not in seen and "/home" not in seen and str(Path.home()) not in seen


@needs_bubblewrap
def test_in_the_sandbox_a_program_cannot_reach_out(tmp_path: Path) -> None:
    assert code(problem(), ADD)
    assert not code(problem(), f"{ADD}\nopen({str(tmp_path / 'there')!r}, 'w')\n")
    assert not code(problem(), f"{ADD}\nimport socket\nsocket.create_connection(('127.0.0.1', 80), 1)\n")
    assert not list(tmp_path.iterdir())
