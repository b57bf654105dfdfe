"""The closed loop: sample, verify, score what failed, route, intervene, verify, and round again.

A problem ends solved, stopped (its policy says that more tokens are not worth it), spent (its budget is) or unverified
(its verifier broke). The loop decides, `waves` does. Given the same results it decides the same: a killed job goes on
by running the loop again over what is recorded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
import pandas as pd

from salvage.engine import fitting
from salvage.engine.opening import engine_mark, open_engine, settled, weights
from salvage.errors import SalvageError
from salvage.policies.fitted import Fitted
from salvage.problems import sets as problem_sets
from salvage.problems import verifiers
from salvage.project import settings as params
from salvage.project.settings import Cell, Settings
from salvage.rescue.guide import STOP, Route, routes
from salvage.rescue.waves import SAMPLE, Try, Waves, forget
from salvage.serving import policy_uri
from salvage.tables import shards
from salvage.tables.files import whole_lines, writing
from salvage.tables.locks import locked

SOLVED, STOPPED, SPENT, UNVERIFIED = "solved", "stopped", "spent", "unverified"
CODE = [
    "engine",
    "method/operators.py",
    *verifiers.CODE,
    "method/features.py",
    "method/facts.py",
    "rescue/guide.py",
    "rescue/waves.py",
    "rescue/loop.py",
]


@dataclass(frozen=True)
class Budget:
    """What may be spent: attempts or model-tokens, on each problem or on all of them; first rollouts count.

    A token budget is kept on average: an attempt is begun where at least half of what it should cost is left, and then
    finished, since half a completion is worth nothing. Scoring is prefill, and told apart (method.md, "Cost").
    """

    amount: int
    unit: str = "attempts"  # or tokens
    in_all: bool = False

    def __post_init__(self) -> None:
        if self.amount < 1:
            raise SalvageError(f"a budget of {self.amount} {self.unit} buys nothing; give at least 1")


@dataclass(frozen=True)
class Attempt:
    """One decode of a problem, verified: a first rollout (operator `sample`) or an operator's attempt."""

    operator: str
    correct: bool | None  # None: there is no verdict
    model_tokens: int
    position: int  # where the operator acted, -1 where it did not
    text: str
    truncated: bool = False  # met max_tokens before an end


@dataclass
class Outcome:
    """What became of one problem.

    Attributes
    ----------
    status : {"solved", "stopped", "spent", "unverified"}
    answer, operator : str or None
        The right completion, and what it is owed to.
    attempts : list of Attempt
        In order, first rollouts included.
    model_tokens, scored_tokens : int
        Decoded by both models over all attempts; prefilled through both to score failed rollouts.
    why : dict
        What the policy saw and said; empty where it was not asked.
    failure : dict
        How the first failed rollout looks (`salvage.method.looks`), with its features.
    trouble : str
        Why there is no verdict.
    times : list of (str, int, int)
        What was done, in order (sample, verify, score, route, intervene), its start and end in nanoseconds since 1970;
        0 and 0 for what a killed job had done before. Of the whole wave, since a wave is done together.
    """

    cell: str
    problem_id: str
    prompt: str
    reference: str
    status: str
    answer: str | None
    operator: str | None
    attempts: list[Attempt]
    model_tokens: int
    scored_tokens: int
    why: dict[str, Any]
    failure: dict[str, Any]
    trouble: str = ""
    times: list[tuple[str, int, int]] = field(default_factory=list, repr=False)

    def line(self) -> str:
        """Return it as a line of JSON, without its times: the same job gives the same line."""
        told = asdict(self)
        del told["times"]
        return json.dumps(told)


@dataclass
class _Problem:
    """A problem on its way."""

    row: int
    problem_id: str
    failed: list[list[int]] = field(default_factory=list)  # tokens of failed first rollouts
    attempts: list[Attempt] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)
    spent: int = 0
    trouble: str = ""
    scored: dict[str, Any] | None = None
    route: Route | None = None
    times: list[tuple[str, int, int]] = field(default_factory=list)


class Loop:
    """One specialist on a set of problems, under one policy and one budget.

    Parameters
    ----------
    problems : DataFrame
        schema.PROBLEMS.
    waves : Waves
        Makes the attempts.
    policy : Fitted or None
        None retries, and scores nothing.
    first : int
        Rollouts that must fail before the policy is asked.
    price : float
        See `salvage.rescue.guide.routes`.
    """

    def __init__(
        self,
        problems: pd.DataFrame,
        waves: Waves,
        policy: Fitted | None,
        budget: Budget,
        *,
        first: int = 1,
        price: float = 0.0,
    ) -> None:
        self.waves, self.policy, self.budget, self.first, self.price = waves, policy, budget, first, price
        self.rows = problems.to_dict("records")
        self.open = [_Problem(i, str(row["problem_id"])) for i, row in enumerate(self.rows)]
        self.left = budget.amount  # of a budget for all problems together
        self.sampled = Counter[str]()  # tokens and number of first rollouts

    def run(self) -> Iterator[Outcome]:
        """Work until every problem has ended; yield outcomes as they come."""
        while wave := self._next():
            results = self.waves.make([self._try(p) for p in wave])
            for problem, result in zip(wave, results, strict=True):
                self._book(problem, result)
            self._ask([p for p in wave if p.scored is not None and p.route is None and self._ended(p) is None])
            for problem in wave:
                if status := self._ended(problem):
                    yield self._outcome(problem, status)
            self.open = [p for p in self.open if not self._ended(p)]
        for problem in self.open:  # a budget for all is spent
            yield self._outcome(problem, SPENT)

    # ---------------------------------------------------------------- what to try

    def _next(self) -> list[_Problem]:
        """Return the problems whose next attempts are worth most: first rollouts, then as the policy knows."""
        most = int(self.waves.settings["sample"]["batch"])
        if not self.budget.in_all:
            return sorted(self.open, key=self._urgency)[:most] if len(self.open) > most else list(self.open)
        urgent = sorted(self.open, key=self._urgency)[:most]
        before = np.cumsum([0.0, *map(self._cost, urgent)])
        return [p for p, spent in zip(urgent, before, strict=False) if self._affords(p, self.left - spent)]

    def _cost(self, problem: _Problem) -> float:
        """Return what the next attempt should cost, by the length of the problem's own rollouts."""
        if self.budget.unit == "attempts":
            return 1.0
        if not problem.attempts:
            known = self.sampled["number"]
            return self.sampled["tokens"] / known if known else float(self.waves.settings["sample"]["max_tokens"])
        own = sum(a.model_tokens for a in problem.attempts[: self.first]) / len(problem.attempts[: self.first])
        return own if self._operator(problem) in (SAMPLE, "retry") else 2 * own  # the ancestor runs beside it

    def _affords(self, problem: _Problem, left: float) -> bool:
        return left >= self._cost(problem) / 2  # of attempts, which are whole, that is one

    def _operator(self, problem: _Problem) -> str:
        if len(problem.attempts) < self.first:
            return SAMPLE
        return problem.route.next(self._step(problem)) if problem.route else "retry"

    def _urgency(self, problem: _Problem) -> tuple[float, int, int]:
        if not problem.attempts:
            return (-np.inf, 0, problem.row)
        worth = problem.route.value(self._step(problem)) if problem.route and self.budget.in_all else 0.0
        return (-worth, len(problem.attempts), problem.row)

    def _step(self, problem: _Problem) -> int:
        """Return how many attempts were made since the policy was asked."""
        return len(problem.attempts) - self.first

    def _try(self, problem: _Problem) -> Try:
        operator = self._operator(problem)
        last = self.policy is not None and len(problem.attempts) == self.first - 1
        return Try(
            problem.problem_id,
            operator,
            problem.tried[operator],
            score=last,
            failed=problem.failed if last else [],
            scored=problem.scored,
        )

    def _ask(self, failed: list[_Problem]) -> None:
        """Ask the policy about failures that were just scored."""
        if not failed or self.policy is None:
            return
        table = pd.DataFrame([p.scored["facts"] for p in failed if p.scored])
        left, by_attempts = None, self.budget.unit == "attempts"
        if not self.budget.in_all:
            spent = np.array([len(p.attempts) if by_attempts else p.spent for p in failed], float)
            # a problem's own rollouts say best what another would cost: lengths differ between problems, not within
            retry = 1.0 if by_attempts else np.array([p.spent / len(p.attempts) for p in failed])
            left = np.round(2 * (self.budget.amount - spent) / retry) / 2  # planned for many at once, by half retries
        start = time_ns()
        told = routes(self.policy, table, left, by_attempts=by_attempts, price=self.price)
        for problem, route in zip(failed, told, strict=True):
            problem.route = route
            problem.times.append(("route", start, time_ns()) if self.waves.clock else ("route", 0, 0))

    # ---------------------------------------------------------------- what came of it

    def _book(self, problem: _Problem, result: dict[str, Any]) -> None:
        operator, cost = result["operator"], result["n_tokens"] + result["n_ancestor_tokens"]
        told = (result[name] for name in ("position", "text", "truncated"))
        problem.attempts.append(Attempt(operator, result["correct"], cost, *told))
        problem.tried[operator] += 1
        problem.spent += cost
        problem.trouble = result["trouble"]
        problem.scored = result.get("scored", problem.scored)
        if operator == SAMPLE:
            problem.failed.append(result["tokens"])
            self.sampled += Counter(tokens=cost, number=1)
        self.left -= cost if self.budget.unit == "tokens" else 1
        clock = self.waves.clock
        steps = [(SAMPLE if operator == SAMPLE else "intervene", "decode"), ("verify", "verify")]
        steps += [("score", "score")] if "scored" in result else []
        problem.times += [(name, *clock.get(part, (0, 0))) for name, part in steps]

    def _ended(self, problem: _Problem) -> str | None:
        if problem.attempts and problem.attempts[-1].correct is not False:
            return SOLVED if problem.attempts[-1].correct else UNVERIFIED
        if problem.route and problem.route.next(self._step(problem)) == STOP:
            return STOPPED
        if self.budget.in_all or not problem.attempts:
            return None
        spent = len(problem.attempts) if self.budget.unit == "attempts" else problem.spent
        return None if self._affords(problem, self.budget.amount - spent) else SPENT

    def _outcome(self, problem: _Problem, status: str) -> Outcome:
        row, scored = self.rows[problem.row], problem.scored or {}
        right = problem.attempts[-1] if status == SOLVED else None
        return Outcome(
            cell=self.waves.cell,
            problem_id=problem.problem_id,
            prompt=row["prompt"],
            reference=row["answer"],
            status=status,
            answer=right.text if right else None,
            operator=right.operator if right else None,
            attempts=problem.attempts,
            model_tokens=problem.spent,
            scored_tokens=scored.get("n_prefill", 0),
            why=problem.route.why if problem.route else {},
            failure=scored.get("view", {}),
            trouble=problem.trouble,
            times=problem.times,
        )


def rescue(
    problems: pd.DataFrame | str,
    cell: Cell,
    policy: Fitted | str | None = policy_uri.CHAMPION,
    budget: Budget = Budget(8),
    *,
    price: float = 0.0,
    look: bool = True,
    out: Path | None = None,
    settings: Settings | None = None,
) -> Iterator[Outcome]:
    """Solve problems with a specialist, spending what its failures cost where they say; yield outcomes as they come.

    Parameters
    ----------
    problems : DataFrame or str
        schema.PROBLEMS, a problem file or a set by name.
    cell : Cell
        The pair of models: `salvage.rescue.pair(specialist, ancestor)` makes one.
    policy : Fitted, str or None
        A fitted policy, a policy file or a registered one's URI, or None for retries alone.
    budget : Budget
    price : float
        Stop where another retry's worth of tokens would rescue with a smaller chance; for a portfolio.
    look : bool
        Whether outcomes keep how a failed rollout looks.
    out : Path, optional
        Write outcomes there too, a line of JSON each, as they come. The same call goes on where a killed one was; its
        attempts are recorded beside the file.
    settings : Settings, optional
        params.yaml by default.

    Raises
    ------
    SalvageError
        Where the problems, models or verifiers cannot be had, or `out` belongs to another job or is being written.

    Examples
    --------
    >>> for outcome in rescue("problems.jsonl", pair("my/specialist", "my/ancestor")):  # doctest: +SKIP
    ...     print(outcome.problem_id, outcome.status, outcome.operator)
    """
    record = out.with_name(f".{out.name}.record") if out else None
    if out and record and out.exists() and not record.exists():
        raise SalvageError(f"{out} is there already and has no record beside it to go on from; write to another file")
    busy = f"{out} is being written by another salvage rescue; let it end, or write to another file"
    with locked(record, busy) if record else nullcontext():
        settings = settings or params.load()
        table = problem_sets.load(problems) if isinstance(problems, str) else problems
        cell = fitting.fitted(cell, settings, table.to_dict("records"))
        settings = settled(cell, settings)
        fitted = policy_uri.load(policy) if isinstance(policy, str) else policy
        first = int(settings["rescue"]["rollouts"])
        told = [asdict(budget), price, look, fitted.version if fitted else "retry"]
        mark = fingerprint(cell, table, settings, told)
        if out and record and not whole_lines(out):
            forget(record, mark)
        waves = Waves(
            table,
            lambda: open_engine(cell, settings, ancestor=fitted is not None),
            settings,
            cell=cell.name,
            look=look,
            record=record,
            mark=mark,
        )
        try:
            outcomes = Loop(table, waves, fitted, budget, first=first, price=price).run()
            yield from outcomes if out is None else _written(outcomes, out)
        finally:
            waves.close()


def fingerprint(cell: Cell, problems: pd.DataFrame, settings: Settings, *parts: Any, code: Sequence[str] = ()) -> str:
    """Hash all that the loop's attempts in a cell depend on, and what else is given."""
    return shards.fingerprint(
        cell.name,
        settings.seed,
        [settings[name] for name in ("sample", "featurize", "intervene", "rescue")],
        engine_mark(cell, settings, problems),
        problems.to_dict("list"),
        *parts,
        files=[*weights(cell, ancestor=True), *problem_sets.verifier_files(problems)],
        code=[*CODE, *code],
    )


def pair(specialist: str, ancestor: str, name: str = "", engine: str = "auto") -> Cell:
    """Return a cell of one's own: what `rescue` and `salvage rescue` call a pair of models."""
    return Cell(name or Path(specialist).name, specialist, ancestor, "", "unknown", 0, "own", engine)


def _written(outcomes: Iterator[Outcome], out: Path) -> Iterator[Outcome]:
    """Append outcomes to a file as they come; those that are there come first again, and are not written twice."""
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        there = whole_lines(out)
        file = out.open("a", encoding="utf-8")
    with file:
        for i, outcome in enumerate(outcomes):
            if i >= len(there):
                with writing(out):
                    file.write(outcome.line() + "\n")
                    file.flush()
            elif there[i] != outcome.line():
                raise SalvageError(f"{out}: line {i + 1} is not what this job found; write to another file")
            yield outcome
