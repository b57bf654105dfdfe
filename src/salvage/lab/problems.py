"""The lab's problems as a table."""

from __future__ import annotations

import random

import pandas as pd

from salvage.lab import task


def lab_problems(n: int, seed: int) -> pd.DataFrame:
    """Return n of the lab's problems, none of which any model of the lab was trained on."""
    drawn = task.expressions(n, random.Random(f"problems/{seed}"), judged=True, distinct=True)
    return lab_table("digits", drawn)


def lab_table(name: str, drawn: list[str]) -> pd.DataFrame:
    """Return expressions as a problems table; a problem is called by the name and a number."""
    return pd.DataFrame(
        {
            "problem_id": [f"{name}-{i:04d}" for i in range(len(drawn))],
            "task": "digits",
            "prompt": [f"{e}:" for e in drawn],
            "answer": [task.answer(e) for e in drawn],
            "verifier": "lab",
            "metadata": "",
        }
    )
