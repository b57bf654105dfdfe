"""Arms side by side: the closed loop under several policies on the same problems, seeds and budgets (`--compare`).

An attempt is decoded once, whichever arms ask for it: its seed depends on (cell, problem, operator, attempt), so arms
differ only where their policies do, and the comparison is paired attempt by attempt.
"""

from __future__ import annotations

import json
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salvage.engine.base import Completion, Engine, Request, Sampling, seed_of
from salvage.engine.opening import open_engine, settled
from salvage.errors import SalvageError
from salvage.evaluation.groups import groups
from salvage.evaluation.resampling import bootstrap, interval
from salvage.lab import task
from salvage.lab.problems import lab_problems, lab_table
from salvage.method import facts
from salvage.method.profiles import Tallies, made_by, make_profiles, tally
from salvage.policies.fitted import POLICIES, Fitted
from salvage.problems.judging import Judge
from salvage.project.pool import each
from salvage.project.settings import Cell, Settings
from salvage.rescue.loop import SOLVED, Budget, Loop, Outcome, fingerprint
from salvage.rescue.waves import Waves
from salvage.serving import policy_uri
from salvage.tables import files, schema, shards, vocabulary

RETRY = "retry"
TABLES = Path("data/rescue")
TIMES = shards.SHARDS / "rescue"  # of the traced problems: what a second run would not repeat
MEANS = ["solved", "model_tokens", "scored_tokens", "attempts"]  # of each problem; the first two with intervals
MORE = 4  # retry is followed beyond the largest budget, to find where it has spent as much as another arm


# ------------------------------------------------------------------ arms and problems


def fit_arms(settings: Settings, names: list[str]) -> dict[str, Fitted | None]:
    """Fit each arm's policy on the tables of params.yaml; an arm may also be a policy file or a registered
    policy's URI.

    They learn from what the loop will know: the first rollouts that failed, all of them. Where two tables have a cell
    of one name, the first counts.
    """
    arms: dict[str, Fitted | None] = {}
    learnt: tuple[pd.DataFrame, Tallies] | None = None
    for name in names:
        if name == RETRY:
            arms[name] = None
        elif name.startswith("models:/") or name.endswith(".json"):
            arms[name] = policy_uri.load(name)
        elif name in POLICIES:
            learnt = learnt or first_failures(settings)
            arms[name] = Fitted.fit(name, *learnt, vocabulary.OPERATORS)
        else:
            raise SalvageError(
                f"arm {name!r} is not one of retry, {', '.join(POLICIES)}, a policy file or a models:/ URI; correct it"
            )
    return arms


def first_failures(settings: Settings) -> tuple[pd.DataFrame, Tallies]:
    """Return the failures of params.yaml's `rescue.data` as the loop meets them, and what was tried on them."""
    values, first = settings["intervene"], int(settings["rescue"]["rollouts"])
    parts: list[tuple[pd.DataFrame, Tallies]] = []
    known: set[str] = set()
    for folder in map(Path, settings["rescue"]["data"]):
        features = schema.read(folder / "features", schema.FEATURE_ROWS)
        features = features[(features["rollout"] < first) & ~features["cell"].isin(known)]
        known |= set(features["cell"])
        tried = made_by(schema.read(folder / "attempts", schema.ATTEMPTS), values["anchor"], values["continuation"])
        failures = make_profiles(features, tried, anchor=values["anchor"], continuation=values["continuation"])
        failures = failures.merge(_facts(features), on=facts.KEY)
        failures = failures[failures["n_failed_rollouts"] == first].reset_index(drop=True)
        parts.append((failures, tally(failures, tried)[0]))
    tables, tallies = zip(*parts, strict=True)
    joined = (np.concatenate([getattr(t, name) for t in tallies]) for name in ("correct", "tried", "tokens"))
    return pd.concat(tables, ignore_index=True), Tallies(*joined)


def _facts(features: pd.DataFrame) -> pd.DataFrame:
    """Return the facts of failures whose first rollouts all failed; of one rollout, the answer agrees with itself."""
    scaled = features.assign(junction=features["junction"] / features["n_tokens"])
    grouped = scaled.groupby(facts.KEY, sort=False)
    told = grouped[["n_tokens", "entropy", "kl", "junction"]].mean().assign(failed_share=1.0)
    return told.assign(agreement=np.where(grouped.size() == 1, 1.0, np.nan)).reset_index()


def held_out(cell: Cell, settings: Settings, n: int) -> pd.DataFrame:
    """Return n of the lab's problems for a cell, none of which any table of the project has."""
    most = max(int(profile["problems"]) for profile in settings.raw["profiles"].values())
    used = set(lab_problems(most, settings.seed)["prompt"])
    rng = random.Random(f"held-out problems/{settings.seed}/{cell.name}")
    drawn = task.expressions(n + len(used), rng, judged=True, distinct=True)
    fresh = [e for e in drawn if f"{e}:" not in used][:n]
    return lab_table("held-out", fresh)


# ------------------------------------------------------------------ one cell


class Shared:
    """An engine that decodes and scores once what several arms ask for."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.context = engine, engine.context
        self.prompt, self.encode, self.text = engine.prompt, engine.encode, engine.text
        self.ends, self.span = engine.ends, engine.span
        self.alternatives, self.close = engine.alternatives, engine.close
        self._decoded: dict[int, Completion] = {}
        self._scored: dict[tuple[int, ...], dict[str, np.ndarray]] = {}

    def decode(self, requests: list[Request], *, sampling: Sampling, max_tokens: int) -> list[Completion]:
        """Answer every request, in order (see `salvage.engine.base.Engine.decode`)."""
        new = {r.seed: r for r in requests if r.seed not in self._decoded}
        done = self.engine.decode(list(new.values()), sampling=sampling, max_tokens=max_tokens)
        self._decoded |= zip(new, done, strict=True)
        return [self._decoded[r.seed] for r in requests]

    def signals(
        self, prompts: list[list[int]], completions: list[list[int]], *, temperature: float, top_k_cov: int
    ) -> list[dict[str, np.ndarray]]:
        """Return the signals of every completion (see `salvage.engine.base.Engine.signals`)."""
        keys = [(*prompt, -1, *completion) for prompt, completion in zip(prompts, completions, strict=True)]
        new = {key: i for i, key in enumerate(keys) if key not in self._scored}
        told = self.engine.signals(
            [prompts[i] for i in new.values()],
            [completions[i] for i in new.values()],
            temperature=temperature,
            top_k_cov=top_k_cov,
        )
        self._scored |= zip(new, told, strict=True)
        return [self._scored[key] for key in keys]


def _compare(
    cell: Cell,
    settings: Settings,
    problems: pd.DataFrame,
    arms: dict[str, Fitted | None],
    budgets: list[int],
    folder: Path,
) -> bool:
    """Run every arm at every budget in one cell; write what became of each problem, and how a few of them looked."""
    values, path = settings["rescue"], folder / cell.file
    versions = {name: arm.version if arm else RETRY for name, arm in arms.items()}
    mark = fingerprint(cell, problems, settings, versions, budgets, code=["rescue/comparison.py"])
    if schema.fingerprint(path) == mark:
        return False
    with (
        closing(open_engine(cell, settings, ancestor=True)) as engine,
        Judge(problems, seconds=values["verify_seconds"]) as judge,
    ):
        shared = Shared(engine)

        def run(arm: Fitted | None, budget: Budget, look: bool = False) -> list[Outcome]:
            waves = Waves(problems, lambda: shared, settings, cell=cell.name, look=look, judge=judge)
            return list(Loop(problems, waves, arm, budget, first=values["rollouts"]).run())

        sampled = {o.problem_id: o for o in run(None, Budget(1))}
        failed = [o for o in sampled.values() if o.status != SOLVED]
        worth = float(np.mean([o.model_tokens for o in failed or sampled.values()]))  # a retry: of what fails
        _retry_ahead(shared, judge, cell, settings, failed, max(budgets) + MORE, problems)
        shown = [name for name, arm in arms.items() if arm is not None][-1:]
        rows = []
        # the arm that is shown comes first, while its attempts still take the time they take
        for name in [*shown, *(n for n in arms if n not in shown)]:
            for budget in sorted(range(1, max(budgets) + MORE + 1) if name == RETRY else budgets, reverse=True):
                look = name in shown and budget == max(budgets)
                outcomes = run(arms[name], Budget(max(2, round(budget * worth)), "tokens"), look)
                rows += [_row(o, name, budget) for o in outcomes]
                if look:
                    _keep_looks(path, [_timed(o, sampled[o.problem_id]) for o in outcomes], values["shown"])
    table = pd.DataFrame(rows).sort_values(["arm", "budget", "problem_id"], ignore_index=True)
    schema.write(table, schema.RESCUES, path, mark)
    return True


def _retry_ahead(
    shared: Shared,
    judge: Judge,
    cell: Cell,
    settings: Settings,
    failed: list[Outcome],
    most: int,
    problems: pd.DataFrame,
) -> None:
    """Decode retries several at a time: an arm asks for one a wave, and few problems make a small, slow batch."""
    sampling, max_tokens = Sampling.of(settings["sample"]), settings["sample"]["max_tokens"]
    prompts = {p["problem_id"]: shared.prompt(p) for p in problems.to_dict("records")}
    ids = [o.problem_id for o in failed]
    for low, high in ((0, most // 4), (most // 4, most)):
        keys = [(p, seed_of(settings.seed, cell.name, p, RETRY, k)) for p in ids for k in range(low, high)]
        asked = [Request(prompts[p], seed) for p, seed in keys]
        done = shared.decode(asked, sampling=sampling, max_tokens=max_tokens)
        verdicts = judge.verify([p for p, _ in keys], [shared.text(c.tokens) for c in done])
        solved = {p for (p, _), verdict in zip(keys, verdicts, strict=True) if verdict.correct}
        ids = [p for p in ids if p not in solved]


def _row(outcome: Outcome, arm: str, budget: int) -> dict[str, Any]:
    told = {name: getattr(outcome, name) for name in ("cell", "problem_id", "status", "model_tokens", "scored_tokens")}
    return told | {
        "arm": arm,
        "budget": budget,
        "operator": outcome.operator or "",
        "attempts": len(outcome.attempts),
    }


def _timed(outcome: Outcome, sampled: Outcome) -> Outcome:
    """Give the first rollout the time that it took when it was decoded; here it was only looked up."""
    return replace(outcome, times=[*sampled.times[:2], *outcome.times[2:]])


def _keep_looks(path: Path, outcomes: list[Outcome], most: int) -> None:
    """Keep a few failures to be shown: solved by an intervention first, then not solved, then by a retry."""

    def kind(outcome: Outcome) -> tuple[bool, bool]:
        steered = any(a.operator in vocabulary.INTERVENTIONS for a in outcome.attempts)
        return outcome.operator not in vocabulary.INTERVENTIONS, not steered

    chosen = sorted((o for o in outcomes if o.failure), key=kind)[:most]
    for folder, timed in ((path.parent, False), (TIMES, True)):
        lines = [json.dumps({"times": o.times} | json.loads(o.line())) if timed else o.line() for o in chosen]
        files.write_text(folder / f"{path.stem}.jsonl", "".join(f"{line}\n" for line in lines))


# ------------------------------------------------------------------ all cells


def compare(
    settings: Settings,
    cells: dict[str, tuple[Cell, pd.DataFrame]],
    arms: list[str],
    folder: Path,
    *,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Run the arms in every cell and return what each budget solved, with paired intervals.

    Parameters
    ----------
    cells : dict
        A cell's name to the cell and the problems it is compared on, which no policy was fitted on.
    arms : list of str
        retry, policies by name, URIs of registered ones. Retry is added where it is missing.
    folder : Path
        Where the tables of what became of each problem are kept, one a cell.

    Returns
    -------
    list of dict
        One row a group of cells, arm and budget, see `rows`.
    """
    arms = list(dict.fromkeys([RETRY, *arms]))
    fitted = fit_arms(settings, arms)
    for arm in fitted.values():
        for _, problems in cells.values():
            if arm is not None:
                arm.refuse_seen(problems)
    budgets = sorted(int(b) for b in settings["rescue"]["budgets"])
    jobs = {
        n: (cell, settled(cell, settings), problems, fitted, budgets, folder) for n, (cell, problems) in cells.items()
    }
    each("rescue", _compare, jobs, quiet=quiet)
    table = pd.concat([schema.read(folder / cell.file, schema.RESCUES) for cell, _ in cells.values()])
    return rows(table, budgets, resamples=settings["evaluate"]["resamples"], seed=settings.seed)


def drop_others(names: set[str]) -> None:
    """Remove what an earlier run with other cells left in the stage's folder, which DVC hashes whole."""
    stems = {Path(name).stem for name in names}
    for path in TABLES.glob("*"):
        if path.stem not in stems and path.name != ".gitignore":
            path.unlink()


def rows(table: pd.DataFrame, budgets: list[int], *, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Return what each arm solved within each budget, for groups of cells and each cell.

    Parameters
    ----------
    table : DataFrame
        schema.RESCUES; retry at every budget from 1 on, the other arms at `budgets`.

    Returns
    -------
    list of dict
        cells, arm, budget (in retries), problems, solved [low, high], model_tokens, scored_tokens and attempts (means a
        problem),
        over_retry [_low, _high] (more than retry solves within the same budget, paired; None for retry), same_tokens
        [_low, _high] (more than retry solves with the budget at which it spends as much; absent where none was run).
    """
    counted = table.assign(solved=table["status"] == SOLVED)
    wide = counted.pivot(index=["cell", "problem_id"], columns=["arm", "budget"])
    arms = sorted(wide["solved"].columns)  # budgets rise, in whatever order the rows come
    seen = np.stack([wide[name][arms].to_numpy(np.float64) for name in MEANS], axis=2)  # [problems, arms, means]
    names, cell = np.unique(wide.index.get_level_values("cell"), return_inverse=True)
    drawn = [sums.reshape(resamples, len(arms), 2) for sums in bootstrap(_flat(seen[..., :2]), cell, resamples, seed)]
    found = []
    single = {str(name): [i] for i, name in enumerate(names)} if len(names) > 1 else {}
    for group, inside in (groups(names) | single).items():
        mine = seen[np.isin(cell, inside)]
        resampled = np.sum([drawn[i] for i in inside], axis=0) / len(mine)
        sheet = np.concatenate([mine[..., :2].mean(axis=0)[None], resampled])  # what was seen, then what was drawn
        means = dict(zip(MEANS[2:], mine[..., 2:].mean(axis=0).T, strict=True))
        for budget in budgets:
            for arm in dict.fromkeys([RETRY, *table["arm"]]):
                i = arms.index((arm, budget))
                told = _against_retry(sheet, arms, arm, budget, len(mine))
                rest = {name: float(values[i]) for name, values in means.items()}
                found.append({"cells": group, "arm": arm, "budget": budget, "problems": len(mine), **told, **rest})
    return found


def _flat(table: np.ndarray) -> np.ndarray:
    return table.reshape(len(table), -1)


def _against_retry(
    sheet: np.ndarray, arms: list[tuple[str, int]], arm: str, budget: int, n: int
) -> dict[str, float | None]:
    """Return an arm's figures from `sheet` [seen and resamples, arms, (solved, model-tokens)]."""
    solved, tokens = np.moveaxis(sheet[:, arms.index((arm, budget))], -1, 0)
    told: dict[str, float | None] = _figure("solved", solved, n) | {"model_tokens": float(tokens[0])}
    told["low"], told["high"] = told.pop("solved_low"), told.pop("solved_high")
    if arm == RETRY:
        return told | dict.fromkeys(("over_retry", "over_retry_low", "over_retry_high"))
    told |= _figure("over_retry", solved - sheet[:, arms.index((RETRY, budget)), 0], n)
    alone = sheet[:, [i for i, (name, _) in enumerate(arms) if name == RETRY]]
    as_many = _interpolated(tokens, alone[..., 1], alone[..., 0])
    return told | (_figure("same_tokens", solved - as_many, n) if np.isfinite(as_many).all() else {})


def _figure(name: str, values: np.ndarray, n: int) -> dict[str, float | None]:
    low, high = interval(values[1:], n)
    return {name: float(values[0]), f"{name}_low": low, f"{name}_high": high}


def _interpolated(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Return y at x [n] on a rising curve a row, xs and ys [n, points]; NaN beyond its ends."""
    right = np.clip((xs < x[:, None]).sum(axis=1), 1, xs.shape[1] - 1)[:, None]
    (x0, y0), (x1, y1) = ([np.take_along_axis(v, right - back, axis=1)[:, 0] for v in (xs, ys)] for back in (1, 0))
    y = y0 + (y1 - y0) * (x - x0) / np.maximum(x1 - x0, 1e-12)
    return np.where((x < xs[:, 0]) | (x > xs[:, -1]), np.nan, y)
