"""Which verifier would agree: each that could judge some texts, held against verdicts that are known, or hoped for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from salvage.errors import SalvageError
from salvage.problems.judging import Judge

MOST = 200  # texts that are tried: enough to tell one verifier from another, and seconds for the slowest


@dataclass(frozen=True)
class Agreement:
    """How a verifier's verdicts agree with those it is held against.

    Attributes
    ----------
    verifier : str
    agree, tried : int
        Texts of which both say the same, and all that it was tried on.
    abstained : int
        Texts of which it says nothing, since it cannot read the reference or breaks; they do not agree.
    first : int or None
        The first text, by its index among all that were given, of which it says otherwise or nothing.
    """

    verifier: str
    agree: int
    tried: int
    abstained: int
    first: int | None

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
    at = [i for i, verdict in enumerate(known) if verdict is not None]
    if most is not None and len(at) > most:
        at = [at[i] for i in np.linspace(0, len(at) - 1, most).round().astype(int)]
    wanted = {problem_ids[i] for i in at}
    some = problems[problems["problem_id"].isin(wanted)]
    found = []
    for name in candidates(some) if names is None else names:
        try:
            with Judge(some.assign(verifier=name), seconds=seconds) as judge:
                said = judge.verify([problem_ids[i] for i in at], [texts[i] for i in at])
        except SalvageError:  # it cannot be had here, so it is no advice
            continue
        agrees = [verdict.correct is known[i] for i, verdict in zip(at, said, strict=True)]
        first = next((i for i, agreed in zip(at, agrees, strict=True) if not agreed), None)
        abstained = sum(verdict.correct is None for verdict in said)
        found.append(Agreement(name, sum(agrees), len(at), abstained, first))
    return sorted(found, key=lambda agreement: -agreement.agree)


def candidates(problems: pd.DataFrame) -> list[str]:
    """Return the verifiers that could judge these problems: their own, then those that need no more than an answer."""
    own = list(dict.fromkeys(problems["verifier"]))
    with_answer = ["exact", "numeric", *(["math"] if importlib.util.find_spec("math_verify") else [])]
    return list(dict.fromkeys([*own, *with_answer]))
