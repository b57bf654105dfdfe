"""Which verifier would agree: each that could judge some texts, held against verdicts that are known, or hoped for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.problems.judging import Judge
from salvage.problems.thinking import answer_part

MOST = 200  # texts that are tried: enough to tell one verifier from another, and seconds for the slowest
MOST_OWN = 2000  # texts that the problems' own verifiers are held to
LONGEST_ANSWER, LONGEST_END = 60, 80  # characters of an answer and of a text's end


@dataclass(frozen=True)
class Agreement:
    """How a verifier's verdicts agree with those it is held against.

    Attributes
    ----------
    verifier : str
    at : tuple of int
        The texts that it was tried on, by their index among all that were given.
    others : tuple of int
        Those of them of which it says otherwise, or nothing.
    abstained : int
        Of how many it says nothing, since it cannot read the reference or breaks.
    """

    verifier: str
    at: tuple[int, ...]
    others: tuple[int, ...]
    abstained: int

    @property
    def tried(self) -> int:
        """Return on how many texts it was tried."""
        return len(self.at)

    @property
    def agree(self) -> int:
        """Return of how many texts both say the same."""
        return len(self.at) - len(self.others)

    @property
    def share(self) -> float:
        """Return the share of the texts of which both say the same."""
        return self.agree / self.tried if self.tried else 0.0


def compare(
    problems: pd.DataFrame,
    problem_ids: Sequence[str],
    texts: Sequence[str],
    verdicts: Sequence[bool | None] | None = None,
    *,
    names: Sequence[str] | None = None,
    seconds: float = 10.0,
    most: int | None = MOST,
) -> list[Agreement]:
    """Hold each verifier's verdicts against those that are known.

    Parameters
    ----------
    problems : DataFrame
        schema.PROBLEMS; their own verifiers are among those that are tried.
    problem_ids, texts : sequences of str, of one length
        For each completion its problem and its text.
    verdicts : sequence of bool or None, optional
        What is known of each text, such as an imported file's own verdicts; a text with None is passed over. Left out:
        every text is hoped to be right, so that `share` is what a verifier would accept.
    names : sequence of str, optional
        The verifiers to try; by default `candidates`.
    seconds : float
        What each may take for a text.
    most : int, optional
        How many texts are tried, spread evenly over all; None: every one.

    Returns
    -------
    list of Agreement
        The one that agrees most first; of those that agree alike the problems' own, then in the order of `names`.
    """
    known = [True] * len(texts) if verdicts is None else list(verdicts)
    at = _spread(known, most)
    some = _asked(problems, problem_ids, at)
    found = []
    for name in candidates(some) if names is None else names:
        try:
            with Judge(some.assign(verifier=name), seconds=seconds) as judge:
                found.append(_held(name, judge, problem_ids, texts, known, at))
        except SalvageError:  # it cannot be had here, so it is no advice
            continue
    return sorted(found, key=lambda agreement: -agreement.agree)


def own(
    problems: pd.DataFrame,
    problem_ids: Sequence[str],
    texts: Sequence[str],
    verdicts: Sequence[bool | None],
    *,
    seconds: float = 10.0,
    workers: int = 1,
    most: int | None = MOST_OWN,
) -> Agreement:
    """Hold the verdicts of the problems' own verifiers, each problem's of its own, against those that are known.

    Parameters are those of `compare`, with how many processes may judge at once.

    Raises
    ------
    SalvageError
        Where one of them cannot be had.
    """
    at = _spread(verdicts, most)
    some = _asked(problems, problem_ids, at)
    with Judge(some, seconds=seconds, workers=workers) as judge:
        return _held(" and ".join(sorted(set(some["verifier"]))), judge, problem_ids, texts, verdicts, at)


def _spread(known: Sequence[bool | None], most: int | None) -> list[int]:
    """Return which texts are tried: those of which something is known, spread evenly where they are too many."""
    at = [i for i, verdict in enumerate(known) if verdict is not None]
    if most is not None and len(at) > most:
        at = [at[i] for i in np.linspace(0, len(at) - 1, most).round().astype(int)]
    return at


def _asked(problems: pd.DataFrame, problem_ids: Sequence[str], at: list[int]) -> pd.DataFrame:
    return problems[problems["problem_id"].isin({problem_ids[i] for i in at})]


def _held(
    name: str,
    judge: Judge,
    problem_ids: Sequence[str],
    texts: Sequence[str],
    known: Sequence[bool | None],
    at: list[int],
) -> Agreement:
    said = judge.verify([problem_ids[i] for i in at], [texts[i] for i in at])
    others = tuple(i for i, verdict in zip(at, said, strict=True) if verdict.correct is not known[i])
    return Agreement(name, tuple(at), others, sum(verdict.correct is None for verdict in said))


def candidates(problems: pd.DataFrame) -> list[str]:
    """Return the verifiers that could judge these problems: their own, then those that need no more than an answer."""
    own = list(dict.fromkeys(problems["verifier"]))
    with_answer = ["exact", "numeric", *(["math"] if importlib.util.find_spec("math_verify") else [])]
    return list(dict.fromkeys([*own, *with_answer]))


def told(problem_id: str, answer: str, text: str) -> str:
    """Return a text beside the answer that it is held to, its end alone where it is long."""
    answer = answer if len(answer) <= LONGEST_ANSWER else answer[:LONGEST_ANSWER] + "…"
    end = repr(text if len(text) <= LONGEST_END else "…" + text[-LONGEST_END:])
    thought = " (an unfinished thought, which no verifier reads)" if answer_part(text) is None else ""
    return f"{problem_id!r}: answer {answer!r}, text {end}{thought}"
