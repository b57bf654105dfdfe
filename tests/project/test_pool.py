"""The pool of worker processes: what happens to them when the one that started them is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CODE = """
import os, pathlib, time
from salvage.project.pool import each

def work(name):
    pathlib.Path(name).write_text(str(os.getpid()))
    time.sleep(60)
    return True

if __name__ == "__main__":
    each("work", work, {name: (name,) for name in ("a", "b", "c")}, quiet=True)
"""


@pytest.mark.slow
def test_workers_of_a_killed_process_end_too(tmp_path):
    (tmp_path / "jobs.py").write_text(CODE)
    process = subprocess.Popen([sys.executable, "jobs.py"], cwd=tmp_path)
    first = tmp_path / "a"
    for _ in range(600):
        if first.exists() and first.read_text():
            break
        assert process.poll() is None
        time.sleep(0.1)
    worker = int(first.read_text())
    os.kill(worker, 0)  # it is there
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(100):
        if _gone(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker went on without its parent")


def _gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
