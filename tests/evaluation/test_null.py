"""The null line: what would be seen if every operator were only retry."""

from __future__ import annotations

import numpy as np

from salvage.evaluation.null import null_line


def test_the_null_line_of_what_always_fails_has_no_one_steerable() -> None:
    rows = null_line(
        np.zeros((4, 5)), np.full((4, 5), 8.0), np.array([0, 0, 1, 1]), np.array(["a", "b"]), np.random.default_rng(0)
    )
    assert [r["cell"] for r in rows] == ["a"] * 3 + ["b"] * 3 + ["all"] * 3
    assert [r["policy"] for r in rows[:3]] == ["null: retry", "null: random", "null: oracle"]
    assert all(r["n"] == 0 and r["rescue"] is None and r["low"] is None and r["high"] is None for r in rows)
    assert all(r["k"] == 1 and r["protocol"] == "paper" and r["over_retry_low"] is None for r in rows)


def test_the_null_line_shows_what_selection_alone_gives() -> None:
    rows = null_line(
        np.full((40, 5), 2.0), np.full((40, 5), 8.0), np.zeros(40, int), np.array(["a"]), np.random.default_rng(0)
    )
    retry, chance, oracle = (r["rescue"] for r in rows[:3])
    assert retry < chance < oracle and 0 < rows[0]["n"] < 40
    assert rows[0]["low"] <= retry <= rows[0]["high"]
