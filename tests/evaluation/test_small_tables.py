"""Tables of a few failures: an answer, or a sentence; never a traceback."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from salvage.errors import SalvageError
from salvage.evaluation.gate import judge
from salvage.evaluation.protocols import evaluate
from salvage.method.profiles import tally
from salvage.policies.fitted import Fitted
from salvage.reports import tables
from salvage.studies import regimes
from salvage.studies.failures import put_together
from salvage.tables.vocabulary import OPERATORS
from worlds import planted


@pytest.mark.parametrize("n", range(1, 16))
def test_case_34_a_few_failures_are_evaluated(n: int, capsys: pytest.CaptureFixture) -> None:
    truth = np.random.default_rng(n).random((n, 5)) * (n % 3 > 0)  # in every third world nothing is ever right
    profiles, attempts = planted(truth, attempts=3, cells=1 + n % 2, seed=n)
    for tried in (None, attempts):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # profiles alone: the paper's protocol alone
            rows = evaluate(profiles, tried, resamples=20, permutations=10, policies=("calibrated", "portfolio"))
        mine = [row for row in rows if (row["cell"], row["scope"], row["policy"]) == ("all", "all", "retry")]
        assert mine[0]["n"] == n and mine[0]["rescue"] == pytest.approx(profiles["retry"].mean())
        tables.show(rows)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 9])
def test_case_34_a_few_failures_are_judged_or_refused(n: int) -> None:
    profiles, attempts = planted(np.random.default_rng(n).random((n, 5)), attempts=3, seed=n)
    tallies = tally(profiles, attempts)[0]
    try:
        champion = Fitted.fit("calibrated", profiles, tallies, OPERATORS)
        verdict = judge("calibrated", champion, profiles, tallies, seed=0, resamples=20)
    except SalvageError as error:
        assert n <= 2 and "1 failure" in str(error)
    else:
        assert verdict.failures == n and verdict.difference == 0


def test_case_34_a_study_of_a_few_failures_is_refused(tmp_path) -> None:
    profiles, attempts = planted(np.random.default_rng(0).random((6, 5)), attempts=4)
    with pytest.raises(SalvageError, match="6 problems are too few to learn regimes from"):
        regimes.study(put_together(profiles, attempts), trials=1, seed=0, folder=tmp_path)
