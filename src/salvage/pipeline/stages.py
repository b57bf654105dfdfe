"""The stages that run models, over all cells of params.yaml: lab, problems, sample, featurize, intervene, profile.

Each reads and writes tables under data/, one file a cell, and does nothing for a cell whose table is up to date.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salvage.engine.base import Engine, Request, Sampling, seed_of
from salvage.engine.opening import (
    admit,
    engine_mark,
    engine_of,
    from_generation_config,
    open_engine,
    settled,
    weights,
)
from salvage.errors import SalvageError
from salvage.lab.problems import lab_problems
from salvage.method import facts, features, operators, profiles
from salvage.pipeline.verdicts import Unverified, beside, refuse_none_right, tell, unverified
from salvage.problems import sets, thinking, verifiers
from salvage.problems.judging import Judge, Verdict
from salvage.project.pool import each, share
from salvage.project.settings import DATA, LAB_PROBLEMS, MODELS, Cell, LabModel, Settings, problem_file
from salvage.tables import schema, shards, vocabulary

LAB = ["lab/task.py", "lab/ancestors.py", "lab/specialists.py"]  # what a lab model is made by
SHARD = 200  # problems a shard: enough for full batches, few enough to lose little
FIRST = 16  # problems in the first of one's own: a run of hours has something to show in minutes


# ------------------------------------------------------------------ lab, problems


def lab(settings: Settings, *, quiet: bool = False) -> int:
    """Train the lab's models, ancestors first; return how many were trained."""
    steps = settings.profile_values["lab"].get("steps", {})
    trained = 0
    for ancestors in (True, False):
        models = [m for m in settings.lab if (m.method == "ancestor") == ancestors]
        trained += each("lab", _train, {m.name: (m, settings.seed, steps) for m in models}, quiet=quiet)
    MODELS.mkdir(parents=True, exist_ok=True)  # also where only one's own pairs run: DVC looks for it
    _drop_others(MODELS, {m.name for m in settings.lab})
    return trained


def _train(model: LabModel, seed: int, steps: dict[str, int]) -> bool:
    from salvage.lab import ancestors, specialists

    ancestor = LabModel(model.family, "ancestor", model.ancestor_seed, model.ancestor_seed).folder
    made_from = [] if model.method == "ancestor" else [ancestor]
    count = steps[model.family if model.method == "ancestor" else model.method]
    mark = shards.fingerprint(model.name, seed, count, files=made_from, code=LAB)
    own_seed = seed_of(seed, model.family, model.seed) % 2**31

    def train(folder: Path) -> None:
        if model.method == "ancestor":
            ancestors.train(model.family, own_seed, count, folder)
        else:
            specialists.train(model.method, own_seed, count, ancestor, folder)

    return shards.folder_once(model.folder, mark, train)


def problem_set(spec: str, settings: Settings) -> pd.DataFrame:
    """Return the problems that a cell names: the lab's, or one's own."""
    if spec == LAB_PROBLEMS:
        return lab_problems(settings.profile_values["problems"], settings.seed)
    return sets.load(spec)


def problem_sets(settings: Settings, limit: int = 0, *, quiet: bool = False) -> int:
    """Write the problem set of every cell, or the first problems of each, so many; return how many sets there are."""
    specs = dict.fromkeys(cell.problems for cell in settings.cells)
    for spec in specs:
        table = problem_set(spec, settings)
        table = table.head(limit) if limit else table
        schema.write(table, schema.PROBLEMS, problem_file(spec))
        if not quiet:
            print(f"problems: {spec}: {len(table)} problems", flush=True)
    _drop_others(DATA / "problems", {problem_file(spec).name for spec in specs})
    return len(specs)


# ------------------------------------------------------------------ sample


def sample(settings: Settings, *, quiet: bool = False) -> int:
    """Sample and verify K rollouts a problem in every cell; return in how many cells there was work.

    Raises
    ------
    SalvageError
        Where no rollout is right in a cell of one's own (`verdicts.refuse_none_right`).
    """
    if not quiet:
        for name, line in from_generation_config(settings).items():
            print(f"sample: {name}: {line}", flush=True)
    worked = _each_cell("sample", _sample, settings, ["rollouts"], quiet)
    for cell in settings.cells if not quiet else []:
        print(f"sample: {cell.name}: {_met_max_tokens(cell)}", flush=True)
    if not quiet:
        tell("sample", "rollouts", settings)
    refuse_none_right(settings)
    return worked


def _met_max_tokens(cell: Cell) -> str:
    """Say how many of a cell's rollouts are truncated."""
    known = schema.truncated(DATA / "rollouts" / cell.file)
    return (
        "not known which rollouts met max_tokens"
        if known is None
        else f"{known[0]:,} of {known[1]:,} rollouts truncated"
    )


def _sample(cell: Cell, settings: Settings) -> bool:
    values = settings["sample"]
    if cell.rollouts:
        return _take_imported(cell)
    table = schema.read(problem_file(cell.problems), schema.PROBLEMS)
    mark = shards.fingerprint(
        cell.name,
        settings.seed,
        values,
        engine_mark(cell, settings, table),
        files=[*weights(cell, ancestor=False), problem_file(cell.problems), *sets.verifier_files(table)],
        code=["engine", *verifiers.CODE],
    )
    path = DATA / "rollouts" / cell.file
    if schema.fingerprint(path) == mark:
        return False
    unverified = Unverified(path, mark)
    with _judge(table, settings) as judge, closing(open_engine(cell, settings, ancestor=False)) as engine:
        admit(table, engine, values["max_tokens"], cell.problems)

        def make(rows: pd.DataFrame) -> pd.DataFrame:
            keys = [(p, k) for p in rows["problem_id"] for k in range(values["rollouts"])]
            seeds = [seed_of(settings.seed, cell.name, p, "sample", k) for p, k in keys]
            prompts = _prompts(engine, rows)
            done = engine.decode(
                [Request(prompts[p], s) for (p, _), s in zip(keys, seeds, strict=True)],
                sampling=Sampling.of(values),
                max_tokens=values["max_tokens"],
            )
            texts = [engine.text(c.tokens) for c in done]
            ends = {p: engine.text(prompt[-thinking.TAIL :]) for p, prompt in prompts.items()}
            asked = [thinking.within(ends[p], text) for (p, _), text in zip(keys, texts, strict=True)]
            verdicts = judge.verify([p for p, _ in keys], asked)
            unverified.note([{"problem_id": p, "rollout": k} for p, k in keys], texts, verdicts)
            made = pd.DataFrame(
                {
                    "cell": cell.name,
                    "problem_id": [p for p, _ in keys],
                    "rollout": [k for _, k in keys],
                    "tokens": [c.tokens for c in done],
                    "text": texts,
                    "correct": [verdict.correct for verdict in verdicts],
                    "n_tokens": [c.n_tokens for c in done],
                    "seed": seeds,
                    "truncated": [c.truncated for c in done],
                }
            )
            return made[made["correct"].notna()]  # without a verdict it is neither right nor a failure

        return shards.build(path, schema.ROLLOUTS, mark, _pieces(table, SHARD, cell), make)


def _take_imported(cell: Cell) -> bool:
    """Take rollouts that exist already instead of sampling."""
    source, path = Path(cell.rollouts), DATA / "rollouts" / cell.file
    known = set(schema.read(problem_file(cell.problems), schema.PROBLEMS)["problem_id"])
    rows = schema.read(source, schema.ROLLOUTS)
    strangers = ~rows["problem_id"].isin(known)
    limited = bool(sets.whole(cell.problems)[1]) and not strangers.all()
    if limited:
        rows = rows[~strangers]
    elif strangers.any():
        row = int(strangers.to_numpy().argmax())
        raise SalvageError(
            f"{source}: row {row}: problem {rows['problem_id'].iloc[row]!r} is not in {cell.problems}; "
            "import the rollouts with the cell's own problems"
        )
    none = [line for line in unverified(source) if line["problem_id"] in known]
    about = [*none, *(sorted(known) if limited else [])]
    mark = shards.fingerprint(cell.name, *about, files=[source])
    keys = [{name: line[name] for name in ("problem_id", "rollout")} for line in none]
    verdicts = [Verdict(None, line["trouble"]) for line in none]
    Unverified(path, mark).note(keys, [line["text"] for line in none], verdicts)
    return shards.build(path, schema.ROLLOUTS, mark, [rows], lambda some: some.assign(cell=cell.name))


# ------------------------------------------------------------------ featurize


def featurize(settings: Settings, *, quiet: bool = False) -> int:
    """Score every failed rollout with both models and write its signals and features."""
    worked = _each_cell("featurize", _featurize, settings, ["signals", "features"], quiet)
    for cell in settings.cells if not quiet else []:
        failed = int((~schema.read(DATA / "rollouts" / cell.file, schema.ROLLOUTS)["correct"]).sum())
        if out := failed - len(schema.read(DATA / "features" / cell.file, schema.FEATURE_ROWS)):
            print(
                f"featurize: {cell.name}: {out:,} of {failed:,} failed rollouts left out ({_why(settings)})", flush=True
            )
    return worked


def _why(settings: Settings) -> str:
    """Say for what reasons a failed rollout may be left out of features."""
    values = settings["featurize"]
    reasons = ["truncated"] if values["truncated"] == "leave out" else []
    reasons += [f"without the part {values['part']!r}"] if values["part"] != "both" else []
    return " or ".join(reasons)


def _featurize(cell: Cell, settings: Settings) -> bool:
    values, temperature = settings["featurize"], settings["sample"]["temperature"]
    source = DATA / "rollouts" / cell.file
    table = schema.read(problem_file(cell.problems), schema.PROBLEMS)
    files = [source, problem_file(cell.problems), *weights(cell, ancestor=True)]
    about = [values, temperature, engine_mark(cell, settings, table)]
    mark = shards.fingerprint(about, files=files, code=["engine", "method/features.py"])
    path, features_path = DATA / "signals" / cell.file, DATA / "features" / cell.file
    if schema.fingerprint(path) == schema.fingerprint(features_path) == mark:
        return False
    failed = schema.read(source, schema.ROLLOUTS).query("not correct")
    if failed.empty:
        raise SalvageError(f"{source}: cell {cell.name!r} has no failed rollout; give it harder problems or drop it")
    with closing(open_engine(cell, settings, ancestor=True)) as engine:
        prompts = _prompts(engine, table)
        failed, spans = _counting(engine, failed, prompts, values)
        if failed.empty:
            raise SalvageError(
                f"{source}: cell {cell.name!r}: every failed rollout is left out ({_why(settings)}); raise "
                "sample.max_tokens, or set featurize.truncated to keep and featurize.part to both"
            )

        def make(rows: pd.DataFrame) -> pd.DataFrame:
            signals = engine.signals(
                [prompts[p] for p in rows["problem_id"]],
                [list(map(int, t)) for t in rows["tokens"]],
                temperature=temperature,
                top_k_cov=values["top_k_cov"],
            )
            columns = {name: [s[name].astype("float32") for s in signals] for name in vocabulary.SIGNALS}
            return pd.DataFrame({**{k: rows[k].to_numpy() for k in ("cell", "problem_id", "rollout")}, **columns})

        worked = shards.build(path, schema.SIGNAL_ROWS, mark, _pieces(failed, 10 * SHARD, cell), make)
        scored = features.rollout_features(schema.read(path, schema.SIGNAL_ROWS), values["window"], spans)
        schema.write(scored, schema.FEATURE_ROWS, features_path, mark)
        return worked


def _counting(
    engine: Engine, failed: pd.DataFrame, prompts: dict[str, list[int]], values: dict[str, Any]
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Return the failed rollouts that features are taken of, and where the part that counts begins and ends in each."""
    if values["truncated"] == "leave out" and "truncated" in failed:
        failed = failed[~failed["truncated"]]
    if values["part"] == "both":
        return failed, None
    pairs = zip(failed["problem_id"], failed["tokens"], strict=True)
    spans = [engine.span(prompts[p], list(map(int, t)), values["part"]) for p, t in pairs]
    found = np.array(spans, np.int64).reshape(-1, 2)
    there = found[:, 0] < found[:, 1]
    return failed[there], found[there]


# ------------------------------------------------------------------ intervene


def intervene(settings: Settings, *, quiet: bool = False) -> int:
    """Decode every failure again under every operator, verify, and write the attempts with what they cost."""
    worked = _each_cell("intervene", _intervene, settings, ["attempts"], quiet)
    if not quiet:
        tell("intervene", "attempts", settings)
    return worked


def _combinations(cell: Cell, settings: Settings) -> list[tuple[str, str, str, int]]:
    """List (operator, anchor, continuation, attempts); the first seed of a method may get all of them side by side."""
    values, profile = settings["intervene"], settings.profile_values
    default = (values["anchor"], values["continuation"])
    wanted = [("retry", *default, profile["retries"])]
    wanted += [(operator, *default, profile["attempts"]) for operator in vocabulary.INTERVENTIONS]
    if profile["side_by_side"] and cell.seed == 0:
        for anchor in vocabulary.ANCHORS:
            for continuation in vocabulary.CONTINUATIONS:
                names = (
                    vocabulary.CONTROLS
                    if (anchor, continuation) == default
                    else vocabulary.OPERATORS + vocabulary.CONTROLS
                )
                wanted += [(operator, anchor, continuation, profile["side_by_side"]) for operator in names]
    return wanted


def _intervene(cell: Cell, settings: Settings) -> bool:
    values, sampling = settings["intervene"], settings["sample"]
    wanted = _combinations(cell, settings)
    table = schema.read(problem_file(cell.problems), schema.PROBLEMS)
    sources = [DATA / name / cell.file for name in ("rollouts", "signals", "features")]
    mark = shards.fingerprint(
        cell.name,
        settings.seed,
        values,
        sampling,
        wanted,
        settings["featurize"]["top_k_cov"],
        engine_mark(cell, settings, table),
        files=[*sources, problem_file(cell.problems), *weights(cell, ancestor=True), *sets.verifier_files(table)],
        code=["engine", "method/operators.py", *verifiers.CODE],
    )
    path = DATA / "attempts" / cell.file
    if schema.fingerprint(path) == mark:
        return False
    unverified = Unverified(path, mark)
    with _judge(table, settings) as judge, closing(open_engine(cell, settings, ancestor=True)) as engine:
        prompts = _prompts(engine, table)
        rollouts, signals, scored = (
            schema.read(source, kind)
            for source, kind in zip(sources, (schema.ROLLOUTS, schema.SIGNAL_ROWS, schema.FEATURE_ROWS), strict=True)
        )
        found = operators.failures(prompts, rollouts, signals, scored, values["quantile"])
        junctions = {f.problem_id: [r.junction for r in f.rollouts] for f in found}

        def make(some: list[operators.Failure]) -> pd.DataFrame:
            keys = [
                (failure, operator, anchor, continuation, attempt)
                for failure in some
                for operator, anchor, continuation, attempts in wanted
                for attempt in range(attempts)
            ]
            donors = {f.problem_id: [j for p, js in junctions.items() if p != f.problem_id for j in js] for f in some}
            requests = [
                operators.request(
                    failure,
                    operator,
                    attempt,
                    cell=cell.name,
                    anchor=anchor,
                    continuation=continuation,
                    donors=donors[failure.problem_id],
                    seed=settings.seed,
                    settings=values,
                )
                for failure, operator, anchor, continuation, attempt in keys
            ]
            done = engine.decode(requests, sampling=Sampling.of(sampling), max_tokens=sampling["max_tokens"])
            ids, texts = [key[0].problem_id for key in keys], [engine.text(c.tokens) for c in done]
            ends = {f.problem_id: engine.text(f.prompt[-thinking.TAIL :]) for f in some}
            verdicts = judge.verify(ids, [thinking.within(ends[i], text) for i, text in zip(ids, texts, strict=True)])
            names = ("operator", "anchor", "continuation", "attempt")
            told = [
                {"problem_id": i, **dict(zip(names, key[1:], strict=True))} for i, key in zip(ids, keys, strict=True)
            ]
            unverified.note(told, texts, verdicts)
            return pd.DataFrame(
                {
                    "cell": cell.name,
                    "problem_id": ids,
                    "operator": [key[1] for key in keys],
                    "anchor": [key[2] for key in keys],
                    "continuation": [key[3] for key in keys],
                    "attempt": [key[4] for key in keys],
                    "correct": [verdict.correct is True for verdict in verdicts],
                    **{
                        k: [getattr(c, k) for c in done]
                        for k in ("n_tokens", "n_ancestor_tokens", "n_prefill", "position", "truncated")
                    },
                }
            )

        return shards.build(path, schema.ATTEMPTS, mark, _pieces(found, SHARD // 2, cell), make)


# ------------------------------------------------------------------ profile


def profile(settings: Settings, *, quiet: bool = False) -> int:
    """Gather each cell's features and rescue rates into profiles, and its facts; return how many cells there are."""
    values = settings["intervene"]
    for cell in settings.cells:
        scored, tried, rollouts = (
            schema.read(DATA / name / cell.file, kind)
            for name, kind in (
                ("features", schema.FEATURE_ROWS),
                ("attempts", schema.ATTEMPTS),
                ("rollouts", schema.ROLLOUTS),
            )
        )
        made = profiles.make_profiles(scored, tried, anchor=values["anchor"], continuation=values["continuation"])
        schema.write(made, schema.PROFILES, DATA / "profiles" / cell.file)
        verifier = schema.read(problem_file(cell.problems), schema.PROBLEMS).set_index("problem_id")["verifier"]
        schema.write(
            facts.make_facts(rollouts, scored, verifier.to_dict()), schema.FACT_ROWS, DATA / "facts" / cell.file
        )
        if not quiet:
            shares = pd.Series(profiles.regimes(made)).value_counts(normalize=True)
            told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            print(f"profile: {cell.name}: {len(made)} failures ({told}); {_met_max_tokens(cell)}", flush=True)
    for folder in ("profiles", "facts"):
        _drop_others(DATA / folder, {cell.file for cell in settings.cells})
    return len(settings.cells)


# ------------------------------------------------------------------ shared


def _each_cell(stage: str, work: Callable[..., bool], settings: Settings, folders: list[str], quiet: bool) -> int:
    for engine, why in sorted({engine_of(c, settings.of(c)) for c in settings.cells}):
        if not quiet:
            print(f"{stage}: engine {engine} ({why})", flush=True)
    worked = each(stage, work, {c.name: (c, settled(c, settings)) for c in settings.cells}, quiet=quiet)
    for folder in folders:
        names = {name for cell in settings.cells for name in (cell.file, beside(Path(cell.file)).name)}
        _drop_others(DATA / folder, names)
    return worked


def _judge(problems: pd.DataFrame, settings: Settings) -> Judge:
    return Judge(problems, seconds=settings["rescue"]["verify_seconds"], workers=share())


def _drop_others(folder: Path, names: set[str]) -> None:
    """Remove what an earlier run with other cells left: a folder is read whole, and hashed whole by DVC."""
    for path in folder.glob("*"):
        if path.name not in names and path.name != ".gitignore":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _prompts(engine: Engine, problems: pd.DataFrame) -> dict[str, list[int]]:
    return {str(problem["problem_id"]): engine.prompt(problem) for problem in problems.to_dict("records")}


def _pieces(rows: pd.DataFrame | list[Any], size: int, cell: Cell) -> list[Any]:
    """Cut what a shard is made from into the pieces of one each."""
    first = size if cell.problems == LAB_PROBLEMS else max(1, size * FIRST // SHARD)
    ends = [*range(first, len(rows), size), len(rows)] if len(rows) else []
    parts = rows.iloc if isinstance(rows, pd.DataFrame) else rows
    return [parts[start:end] for start, end in zip([0, *ends], ends, strict=False)]
