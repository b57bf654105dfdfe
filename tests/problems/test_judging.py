"""Verdicts on what a verifier can do wrong: that problem is marked, the others are judged, no process is left."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.problems import judging
from salvage.problems.judging import Judge, Verdict

OWN = r"""
import os, re, signal, sys, threading, time
import numpy as np

def check(problem, text):
    return text == problem["answer"]

def numpys(problem, text):
    return np.bool_(text == problem["answer"])

def raising(problem, text):
    raise ValueError("x")

def nothing(problem, text):
    return None

def words(problem, text):
    return "correct"

def leaving(problem, text):
    sys.exit(3)

def interrupting(problem, text):
    raise KeyboardInterrupt

def crashing(problem, text):
    os.kill(os.getpid(), signal.SIGSEGV)

def ending(problem, text):
    os._exit(3)

def hanging(problem, text):
    time.sleep(60)

def wild(problem, text):
    return bool(re.match("(a+)+$", "a" * 60 + "b"))  # never lets another thread run

def printing(problem, text):
    print('{"correct": true}', flush=True)
    os.write(1, b'{"correct": true}\n')
    return input() if text == "ask" else text == problem["answer"]

def forking(problem, text):
    if os.fork() == 0:
        raise ValueError("in the child")
    os.wait()
    return True

def alarming(problem, text):
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    return True

def littering(problem, text):
    if text == "litter":
        threading.Thread(target=lambda: (time.sleep(0.2), os._exit(7)), daemon=True).start()
    else:
        time.sleep(0.4)
    return True

class Mute(Exception):
    def __repr__(self):
        raise RuntimeError

def mute(problem, text):
    raise Mute

def lengthy(problem, text):
    raise ValueError("\ud800\n" + "y" * 10_000)

def surrogates(problem, text):
    return [ord(c) for c in text] == [0xD83D, 0xDE00, 0xDC80, 10, 0x2028]

def spawning(problem, text):
    import subprocess
    child = subprocess.Popen(["sleep", "60"])
    open("child", "w").write(str(child.pid))
    time.sleep(60)
"""


def table(*rows):
    columns = ["problem_id", "verifier", "answer"]
    return pd.DataFrame(rows, columns=columns).assign(task="t", prompt="?", metadata="{}")


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_judging.py").write_text(OWN)
    (tmp_path / "own_sleeping.py").write_text("import time; time.sleep(60)")
    (tmp_path / "own_leaving.py").write_text("import sys; sys.exit('no')")
    (tmp_path / "own_ending.py").write_text("import os; os._exit(4)")
    (tmp_path / "json.py").write_text("1 / 0")  # a file beside the user's own that is not for the worker
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gone(pid, seconds=5.0):
    for _ in range(int(seconds / 0.05)):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_our_own_verifiers_are_judged_in_this_process(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a worker was started"))
    problems = table(
        ("words", "exact", "blue"), ("number", "numeric", "4"), ("lab", "lab", "2"), ("empty", "exact", " ")
    ).assign(prompt="6+2*0-4:")
    with Judge(problems) as judge:
        found = judge.verify(
            ["lab", "empty", "number", "words", "lab"], ["6+0-4=6-4=2#2", "a", "it is 4", "red", "\ud800"]
        )
        assert judge.verify([], []) == []
    assert [verdict.correct for verdict in found] == [True, None, True, False, False]
    assert found[1].trouble == (
        "the verifier exact: the problem has an empty answer, which an empty text would meet; fill it in"
    )
    assert [verdict.trouble for i, verdict in enumerate(found) if i != 1] == [""] * 4
    assert Judge(problems[:0]).verify([], []) == []


def test_one_broken_verifier_does_not_stop_the_others(own, capfd):
    names = [
        *("check", "numpys", "raising", "nothing", "words", "leaving", "interrupting", "crashing", "ending"),
        *("hanging", "wild", "printing", "forking", "mute"),
    ]
    problems = table(*((name, f"own_judging:{name}", "a") for name in names), ("ours", "exact", "a"))
    ids = [each for name in names for each in (name, "check", "ours")]
    with Judge(problems, seconds=0.5) as judge:
        found = judge.verify(ids, ["a"] * len(ids))
        assert judge.verify(["numpys", "check"], ["b", "b"]) == [Verdict(False), Verdict(False)]
    assert found[1::3] == found[2::3] == [Verdict(True)] * len(names)
    assert dict(zip(names, found[::3], strict=True)) == {
        "check": Verdict(True),
        "numpys": Verdict(True),
        "raising": Verdict(None, "the verifier own_judging:raising raised ValueError('x')"),
        "nothing": Verdict(None, "the verifier own_judging:nothing returned None, but must return True or False"),
        "words": Verdict(None, "the verifier own_judging:words returned 'correct', but must return True or False"),
        "leaving": Verdict(None, "the verifier own_judging:leaving raised SystemExit(3)"),
        "interrupting": Verdict(None, "the verifier own_judging:interrupting raised KeyboardInterrupt()"),
        "crashing": Verdict(None, "the verifier own_judging:crashing ended its process (signal 11)"),
        "ending": Verdict(None, "the verifier own_judging:ending ended its process (exit code 3)"),
        "hanging": Verdict(None, "the verifier own_judging:hanging took longer than 0.5 s"),
        "wild": Verdict(None, "the verifier own_judging:wild took longer than 0.5 s"),
        "printing": Verdict(True),
        "forking": Verdict(True),
        "mute": Verdict(None, "the verifier own_judging:mute raised RuntimeError()"),
    }
    out, err = capfd.readouterr()
    assert out == ""
    assert err == '{"correct": true}\n' * 2


def test_a_thread_that_a_text_left_is_not_the_next_ones_fault(own):
    with Judge(table(("p", "own_judging:littering", "a"))) as judge:
        assert judge.verify(["p"] * 3, ["litter", "next", "next"]) == [Verdict(True)] * 3


def test_any_text_passes_and_troubles_are_short_and_printable(own):
    names = ("surrogates", "check", "printing", "lengthy", "alarming", "littering")
    problems = table(*((name, f"own_judging:{name}", "é" * 3_000_000) for name in names))
    with Judge(problems) as judge:
        pairs, long = ["\ud83d\ude00\udc80\n\u2028", "😀\udc80\n\u2028"], ["é" * 3_000_000, "\x00"]
        assert judge.verify(["surrogates"] * 2, pairs) == [Verdict(True), Verdict(False)]
        assert judge.verify(["check"] * 2, long) == [Verdict(True), Verdict(False)]
        asking, lengthy = (verdict.trouble for verdict in judge.verify(["printing", "lengthy"], ["ask", ""]))
        # the alarm that one leaves would go off while the other sleeps
        assert judge.verify(["alarming", "littering"], ["", ""]) == [Verdict(True)] * 2
    assert asking.startswith("the verifier own_judging:printing raised EOFError(")
    assert lengthy.startswith("the verifier own_judging:lengthy raised ValueError('")
    assert len(lengthy) <= 500
    assert "\n" not in lengthy
    lengthy.encode()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exakt", "there is no verifier 'exakt'; take one of exact, numeric"),
        ("own_missing:check", "the verifier 'own_missing:check': module 'own_missing' cannot be imported"),
        ("own_judging:chekc", "'chekc' does not exist in module 'own_judging'"),
        ("own_leaving:check", r"the verifier own_leaving:check raised SystemExit\('no'\)"),
        ("own_ending:check", r"own_ending:check ended its process \(exit code 4\) while it was imported"),
    ],
)
def test_a_verifier_that_cannot_be_had_is_refused_at_once(own, name, message):
    with pytest.raises(SalvageError, match=message):
        Judge(table(("p", "exact", "a"), ("q", "own_judging:check", "a"), ("r", name, "a")))
    assert not workers()


def test_an_import_that_hangs_is_refused(own, monkeypatch):
    monkeypatch.setattr(judging, "LOADING", 2.0)
    with pytest.raises(SalvageError, match="own_sleeping:check took longer than 2 s while it was imported"):
        Judge(table(("p", "own_sleeping:check", "a")))
    assert not workers()


def test_a_verifier_lost_on_the_way_is_the_problems_trouble(own):
    with Judge(table(("p", "own_judging:check", "a"), ("q", "own_judging:ending", "a"))) as judge:
        Path("own_judging.py").write_text("1 / 0  # and then some")
        lost, after = judge.verify(["q", "p"], ["a", "a"])
    assert "exit code 3" in lost.trouble
    assert "module 'own_judging' cannot be imported (division by zero)" in after.trouble


def test_the_worker_imports_from_where_the_judge_was_made(own, monkeypatch, tmp_path_factory):
    with Judge(table(("p", "own_judging:check", "a"), ("q", "own_judging:ending", "a"))) as judge:
        monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert [verdict.correct for verdict in judge.verify(["q", "p"], ["a", "a"])] == [None, True]


def test_texts_and_problems_must_fit():
    with Judge(table(("p", "exact", "a"))) as judge:
        with pytest.raises(SalvageError, match="text 1: problem 'q' is not in the problems table"):
            judge.verify(["p", "q"], ["", ""])
        with pytest.raises(SalvageError, match="1 problem ids for 2 texts"):
            judge.verify(["p"], ["", ""])


def test_threads_take_turns(own):
    problems = table(*((str(i), "own_judging:check", str(i)) for i in range(4)))
    found = {}
    with Judge(problems) as judge:

        def ask(i):
            found[i] = judge.verify([str(i)] * 50, [str(i), "no"] * 25)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {i: [Verdict(True), Verdict(False)] * 25 for i in range(4)}


def test_a_call_that_is_broken_off_leaves_no_answer_for_the_next(own):
    problems = table(("p", "own_judging:littering", "a"), ("q", "own_judging:check", "a"))
    with Judge(problems) as judge:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)  # in the middle of the sleep of 0.4 s
            with pytest.raises(KeyboardInterrupt):
                judge.verify(["p"], ["sleep"])
        finally:
            signal.signal(signal.SIGALRM, before)
        assert judge.verify(["q", "q"], ["b", "a"]) == [Verdict(False), Verdict(True)]


def test_many_texts_are_shared_out_among_workers_and_come_back_in_order(own):
    problems = table(("p", "own_judging:check", "a"), ("c", "own_judging:crashing", "a"), ("o", "exact", "a"))
    ids = ["p", "o"] * 150
    ids[7::100] = ["c"] * 3
    texts = [("a", "b")[i % 4 > 1] for i in range(len(ids))]
    with Judge(problems, workers=3) as judge:
        found = judge.verify(ids, texts)
        assert len(workers()) == 2  # of 150 texts that are judged outside
    assert not workers()
    crashed = Verdict(None, "the verifier own_judging:crashing ended its process (signal 11)")
    assert found == [crashed if i == "c" else Verdict(text == "a") for i, text in zip(ids, texts, strict=True)]


def test_a_call_of_many_texts_that_is_broken_off_ends_its_workers(own):
    with Judge(table(("p", "own_judging:littering", "a")), workers=2) as judge:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with pytest.raises(KeyboardInterrupt):
                judge.verify(["p"] * 200, ["sleep"] * 200)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert judge.verify(["p"], ["sleep"]) == [Verdict(True)]
    assert not workers()


def test_math_runs_in_the_worker(own):
    problems = table(("p", "math", r"\frac{1}{2}"), ("q", "math", ""))
    with Judge(problems, seconds=1) as judge:
        found = judge.verify(["p", "p", "q"], [r"\boxed{0.5}", "2", "1"])
    assert [verdict.correct for verdict in found] == [True, False, None]
    assert found[2].trouble.startswith("the verifier math: the problem has the answer ''")


def test_reasoning_gym_runs_in_the_worker(own):
    entry = {"question": "1 + 3 = ?", "answer": "4", "metadata": {"source_dataset": "chain_sum"}}
    problems = table(("p", "reasoning_gym", "4"), ("q", "reasoning_gym", "4"))
    with Judge(problems.assign(metadata=[json.dumps(entry), "{}"]), seconds=1) as judge:
        found = judge.verify(["p", "p", "q"], ["<answer>4</answer>", "5", "4"])
    assert [verdict.correct for verdict in found] == [True, False, None]
    assert found[2].trouble.startswith("the verifier reasoning_gym: the problem has no Reasoning Gym entry")


def test_no_process_is_left_after_closing(own):
    judge = Judge(table(("p", "own_judging:check", "a"), ("q", "own_judging:spawning", "a")), seconds=0.5)
    judge.verify(["q"], [""])
    assert gone(int(Path("child").read_text()))  # what a verifier started ends with it
    assert judge.verify(["p"], ["a"]) == [Verdict(True)]
    assert len(workers()) == 1
    judge.close()
    judge.close()
    assert not workers()


def workers(parent=None):
    """Return the process ids of the workers of a process, by default this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            about = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if (
                int(about[1]) == (parent or os.getpid())
                and b"salvage.problems.judging" in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


PARENT = """
import pandas as pd
from salvage.problems.judging import Judge

row = {"problem_id": "p", "task": "t", "prompt": "?", "answer": "a", "verifier": "own_judging:%s", "metadata": "{}"}
judge = Judge(pd.DataFrame([row]), seconds=60)
print(judge.verify(["p"], ["a"]) if "%s" == "check" else "judging", flush=True)
judge.verify(["p"], ["a"]) if "%s" != "check" else input()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["check", "hanging", "wild"])
def test_the_worker_of_a_killed_process_ends_too(own, name):
    (own / "parent.py").write_text(PARENT.replace("%s", name))
    (own / "json.py").unlink()
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "parent.py"], cwd=own, stdin=pipe, stdout=pipe, text=True) as parent:
        said = parent.stdout.readline()
        assert said == "[Verdict(correct=True, trouble='')]\n" if name == "check" else "judging\n"
        time.sleep(0.5)  # until the verifier hangs
        (worker,) = workers(parent.pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    if not gone(worker):
        os.kill(worker, signal.SIGKILL)
        pytest.fail("the worker went on without its parent")
