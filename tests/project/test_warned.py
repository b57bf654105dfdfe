"""Warnings of ours are lines of the project's own, in the program and in its workers."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys, warnings
import salvage
from salvage.project import pool, warned

def work(name):
    warnings.warn_explicit(f"{name} has\\nno end", UserWarning, salvage.__file__, 1)
    warnings.warn_explicit(f"{name} is of theirs", UserWarning, "lib.py", 1)
    return True

if __name__ == "__main__":
    if sys.argv[1] == "here":
        warned.in_our_words()
        work("a")
    else:
        pool.each("work", work, {name: (name,) for name in ("a", "b")}, quiet=True)
"""


@pytest.mark.parametrize(("where", "names"), [("here", "a"), ("workers", "ab")])
def test_our_warnings_are_one_line_of_ours_in_a_worker_too(tmp_path: Path, where: str, names: str) -> None:
    (tmp_path / "jobs.py").write_text(CODE)
    done = subprocess.run([sys.executable, "jobs.py", where], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert [line for line in sorted(lines) if "end" in line] == [rf"salvage: {name} has\nno end" for name in names]
    assert [line for line in sorted(lines) if "theirs" in line] == [
        f"lib.py:1: UserWarning: {name} is of theirs" for name in names
    ]
