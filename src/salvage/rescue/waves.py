"""Waves of the closed loop: one attempt on each of many problems, decoded together, verified, the failures scored.

All that costs time happens here. A wave's results are plain data, one line of JSON in the record; what is recorded is
read back instead of computed, so that a killed job goes on where it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
import pandas as pd

from salvage.engine.base import Completion, Engine, Request, Sampling, seed_of
from salvage.engine.opening import admit
from salvage.errors import SalvageError
from salvage.method import operators
from salvage.method.facts import make_facts
from salvage.method.features import rollout_features
from salvage.method.looks import looks
from salvage.problems import thinking
from salvage.problems.judging import Judge, Verdict
from salvage.project.settings import Settings
from salvage.tables import vocabulary
from salvage.tables.files import whole_lines, writing

SAMPLE = "sample"  # a first rollout, before the policy is asked
FACTS = ["cell", "problem_id", "n_failed_rollouts", *vocabulary.FEATURES, *vocabulary.FACTS]  # what a policy is told


@dataclass(frozen=True)
class Try:
    """One attempt to be made.

    Attributes
    ----------
    operator : str
        `sample` or one of vocabulary.OPERATORS.
    attempt : int
        Which one under that operator, counted from 0; it and the names alone give the seed.
    score : bool
        Whether its failure, with the `failed` before it, is to be scored.
    failed : list of list of int
        Tokens of the problem's failed first rollouts.
    scored : dict or None
        What scoring them gave, which every intervention needs.
    """

    problem_id: str
    operator: str
    attempt: int
    score: bool = False
    failed: list[list[int]] = field(default_factory=list)
    scored: dict[str, Any] | None = None


class Waves:
    """Makes attempts on problems; see the module.

    Parameters
    ----------
    problems : DataFrame
        schema.PROBLEMS.
    open_engine : callable
        Called when the first wave has to be computed.
    cell : str
        Seeds depend on it.
    look : bool
        Whether to keep how a failed rollout looks: its tokens as text, and what both models would rather have said.
    judge : Judge, optional
        Shared with others, who close it.
    record : Path, optional
        Where waves are recorded.
    mark : str
        Fingerprint of all that the waves depend on.

    Raises
    ------
    SalvageError
        Where the record was made with another mark.
    """

    def __init__(
        self,
        problems: pd.DataFrame,
        open_engine: Callable[[], Engine],
        settings: Settings,
        *,
        cell: str,
        look: bool = True,
        judge: Judge | None = None,
        record: Path | None = None,
        mark: str = "",
    ) -> None:
        self.problems, self.settings, self.cell, self.look = problems, settings, cell, look
        self.rows = {row["problem_id"]: row for row in problems.to_dict("records")}
        self._open_engine, self._record = open_engine, record
        self._engine: Engine | None = None
        self._judge, self._own_judge = judge, judge is None
        self._recorded = [] if record is None else _read(record, mark)
        self._made = 0
        # start and end of decode, verify and score in the last wave; empty where it was recorded
        self.clock: dict[str, tuple[int, int]] = {}

    def make(self, tries: list[Try]) -> list[dict[str, Any]]:
        """Make a wave; return a result for each try.

        A result has operator, correct (None: no verdict), trouble, text, tokens, n_tokens, n_ancestor_tokens, position,
        truncated and, where it was to be scored, scored: facts, rollouts, threshold, n_prefill, view.
        """
        asked = [[t.problem_id, t.operator, t.attempt] for t in tries]
        self._made += 1
        if self._made <= len(self._recorded):
            entry = self._recorded[self._made - 1]
            if entry["asked"] != asked:
                raise SalvageError(f"{self._record}: wave {self._made} is not of this job; delete it and start again")
            self.clock = {}
            return list(entry["results"])
        results = self._compute(tries)
        if self._record is not None:
            with writing(self._record), self._record.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"asked": asked, "results": results}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return results

    def close(self) -> None:
        """End the verifiers' process and what the engine holds."""
        if self._engine is not None:
            self._engine.close()
        if self._judge is not None and self._own_judge:
            self._judge.close()

    def _opened(self) -> tuple[Engine, Judge]:
        if self._judge is None:  # before the models: a verifier that is missing says so first
            self._judge = Judge(self.problems, seconds=self.settings["rescue"]["verify_seconds"])
        if self._engine is None:
            self._engine = self._open_engine()
            admit(self.problems, self._engine, self.settings["sample"]["max_tokens"], "problems")
        return self._engine, self._judge

    def _compute(self, tries: list[Try]) -> list[dict[str, Any]]:
        engine, judge = self._opened()
        started = time_ns()
        sample = self.settings["sample"]
        requests = [self._request(engine, t) for t in tries]
        done = engine.decode(requests, sampling=Sampling.of(sample), max_tokens=sample["max_tokens"])
        texts = [engine.text(c.tokens) for c in done]
        decoded = time_ns()
        ends = [engine.text(request.prompt[-thinking.TAIL :]) for request in requests]
        verdicts = judge.verify([t.problem_id for t in tries], list(map(thinking.within, ends, texts)))
        verified = time_ns()
        results = [_result(*row) for row in zip(tries, done, texts, verdicts, strict=True)]
        failed = {
            i: self._counting(engine, t.problem_id, [*t.failed, done[i].tokens])
            for i, t in enumerate(tries)
            if t.score and verdicts[i].correct is False
        }
        if to_score := [i for i, some in failed.items() if some]:
            scored = self._score(engine, [tries[i].problem_id for i in to_score], [failed[i] for i in to_score])
            for i, told in zip(to_score, scored, strict=True):
                results[i]["scored"] = told
        self.clock = {"decode": (started, decoded), "verify": (decoded, verified), "score": (verified, time_ns())}
        return results

    def _request(self, engine: Engine, t: Try) -> Request:
        prompt = engine.prompt(self.rows[t.problem_id])
        if t.scored is None:  # a first rollout, or a retry that needs nothing of the failure
            seed = seed_of(self.settings.seed, self.cell, t.problem_id, t.operator, t.attempt)
            return Request(prompt, seed)
        values = self.settings["intervene"]
        rollouts = [
            operators.FailedRollout(r["tokens"], r["junction"], np.array(r["mixes"])) for r in t.scored["rollouts"]
        ]
        return operators.request(
            operators.Failure(t.problem_id, prompt, rollouts, t.scored["threshold"]),
            t.operator,
            t.attempt,
            cell=self.cell,
            anchor=values["anchor"],
            continuation=values["continuation"],
            donors=[],
            seed=self.settings.seed,
            settings=values,
        )

    def _counting(self, engine: Engine, problem_id: str, rollouts: list[list[int]]) -> list[list[int]]:
        """Return the failed rollouts that features are taken of; a problem without any is not scored, and retried."""
        values = self.settings["featurize"]
        if values["truncated"] == "leave out":
            rollouts = [tokens for tokens in rollouts if tokens[-1] in engine.ends]
        if values["part"] == "both":
            return rollouts
        prompt = engine.prompt(self.rows[problem_id])
        spans = [engine.span(prompt, tokens, values["part"]) for tokens in rollouts]
        return [tokens for tokens, (start, end) in zip(rollouts, spans, strict=True) if start < end]

    def _score(self, engine: Engine, ids: list[str], rollouts: list[list[list[int]]]) -> list[dict[str, Any]]:
        """Score the failed rollouts of each problem with both models."""
        values, temperature = self.settings["featurize"], self.settings["sample"]["temperature"]
        prompts = {p: engine.prompt(self.rows[p]) for p in ids}
        flat = [(p, k, tokens) for p, some in zip(ids, rollouts, strict=True) for k, tokens in enumerate(some)]
        signals = engine.signals(
            [prompts[p] for p, _, _ in flat],
            [tokens for _, _, tokens in flat],
            temperature=temperature,
            top_k_cov=values["top_k_cov"],
        )
        keys = {"cell": self.cell, "problem_id": [p for p, _, _ in flat], "rollout": [k for _, k, _ in flat]}
        texts = [engine.text(tokens) for _, _, tokens in flat]
        table = pd.DataFrame(keys | {"tokens": [t for _, _, t in flat], "text": texts, "correct": False})
        rows = pd.DataFrame(keys | {name: [s[name] for s in signals] for name in vocabulary.SIGNALS})
        spans = None
        if values["part"] != "both":
            spans = np.array([engine.span(prompts[p], tokens, values["part"]) for p, _, tokens in flat])
        features = rollout_features(rows, values["window"], spans)
        verifier = self.problems.set_index("problem_id")["verifier"]
        known = make_facts(table, features, verifier.to_dict()).set_index("problem_id")
        means = features.groupby("problem_id", sort=False)[vocabulary.FEATURES].mean()
        count = features.groupby("problem_id", sort=False).size().rename("n_failed_rollouts")
        known = known.join(means).join(count).reset_index()[FACTS]
        failures = operators.failures(prompts, table, rows, features, self.settings["intervene"]["quantile"])
        looks = self._looks(engine, failures, rows) if self.look else [{} for _ in failures]
        lines = zip(failures, known.to_dict("records"), looks, strict=True)
        return [_scored(failure, row, view) for failure, row, view in lines]

    def _looks(self, engine: Engine, failures: list[operators.Failure], rows: pd.DataFrame) -> list[dict[str, Any]]:
        """Return how each problem's first failed rollout looks."""
        j = rows[rows["rollout"] == 0].set_index("problem_id")["j"]
        temperature = self.settings["sample"]["temperature"]
        return looks(engine, [(f.prompt, f.rollouts[0], j[f.problem_id]) for f in failures], temperature)


def _result(t: Try, done: Completion, text: str, verdict: Verdict) -> dict[str, Any]:
    return {
        "operator": t.operator,
        "correct": verdict.correct,
        "trouble": verdict.trouble,
        "text": text,
        "tokens": done.tokens if t.operator == SAMPLE else [],
        "n_tokens": done.n_tokens,
        "n_ancestor_tokens": done.n_ancestor_tokens,
        "position": done.position,
        "truncated": done.truncated,
    }


def _scored(failure: operators.Failure, facts: dict[str, Any], view: dict[str, Any]) -> dict[str, Any]:
    return {
        "facts": facts,
        "rollouts": [{"tokens": r.tokens, "junction": r.junction, "mixes": r.mixes.tolist()} for r in failure.rollouts],
        "threshold": failure.threshold,
        "n_prefill": 2 * sum(len(failure.prompt) + len(r.tokens) for r in failure.rollouts),
        "view": view | {"features": {name: round(facts[name], 4) for name in vocabulary.FEATURES}} if view else {},
    }


def forget(record: Path, mark: str) -> None:
    """Empty the record of another job, one that came to no outcome: a start that failed shall not bar the next."""
    lines = whole_lines(record)
    if lines and json.loads(lines[0]) != {"mark": mark}:
        os.truncate(record, 0)


def _read(record: Path, mark: str) -> list[dict[str, Any]]:
    """Return the recorded waves, begin a record where there is none; a torn last line is cut off."""
    lines = [json.loads(line) for line in whole_lines(record)]
    if not lines:
        lines = [{"mark": mark}]
        with writing(record):
            record.parent.mkdir(parents=True, exist_ok=True)
            with record.open("a", encoding="utf-8") as file:  # in place: it may be locked
                file.write(json.dumps(lines[0]) + "\n")
    if lines[0] != {"mark": mark}:
        raise SalvageError(
            f"{record}: this job was begun with other models, problems, settings or policy; "
            "write to another file, or delete this one and the outcomes beside it"
        )
    return lines[1:]
