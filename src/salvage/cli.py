"""The command line: one command a stage. It parses arguments and hands on; what is slow to import waits for its use."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from salvage import __version__
from salvage.errors import SalvageError, shown
from salvage.project import extras, warned

if TYPE_CHECKING:
    from salvage.project.settings import Settings

app = typer.Typer(
    name="salvage",
    help="Tells which failed reasoning traces are fixable, and by what.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

NEEDS = {  # of a stage of the pipeline, beyond what every command has
    "lab": ("engine", "lab", "track"),
    "problems": ("track",),
    "sample": ("engine", "track"),
    "featurize": ("engine", "track"),
    "intervene": ("engine", "track"),
    "profile": ("track",),
    "evaluate": ("track", "studies"),
    "register": ("track", "studies"),
    "regimes": ("track", "studies", "report"),
    "methods": ("track", "studies", "report"),
    "rescue": ("engine", "track", "studies"),
    "report": ("track", "report"),
    "run": ("engine", "track", "studies", "report"),
}
PREPARED = dict.fromkeys(  # what the workers of a stage import
    ("sample", "featurize", "intervene", "rescue"), ("salvage.rescue.comparison", "salvage.engine.transformers")
) | {"lab": ("salvage.pipeline.stages", "salvage.lab.specialists")}
Limit = Annotated[int, typer.Option("--limit", min=0, help="Take the first so many problems alone. 0: all.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but results and errors.")]


def main() -> None:
    """Run the program; a user's mistake is one sentence on standard error and exit code 2."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else vLLM's start on a CPU ends in torch's own warnings
    warned.in_our_words()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # a full disk says so here, while there is a sentence for it
    except SalvageError as error:
        _end(str(error))
    except BrokenPipeError:  # `salvage evaluate | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:  # a library's own word, not the system's
            raise
        named = shown(str(error.filename or "the system"))
        _end(f"{named}: {error.strerror}; check the path, its permissions and the space left")
    except ModuleNotFoundError as error:
        extra = extras.brings(error.name or "")
        if extra is None:
            raise
        _end(extras.lacking(f"this ({error.name})", [extra]))
    except KeyboardInterrupt:
        sys.exit(130)


def _end(sentence: str) -> None:
    print(f"salvage: {sentence}", file=sys.stderr)
    sys.exit(2)


def _version(asked: bool) -> None:
    if asked:
        print(f"salvage {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    """Tell which failed reasoning traces are fixable, and by what."""


def _load(stage: str) -> Settings:
    """Read the settings, and where the stage has several jobs let its workers' imports begin beside this process's."""
    from salvage.project import pool, settings

    extras.need(f"salvage {stage}", *NEEDS[stage])
    loaded = settings.load()
    if stage in PREPARED and len(loaded.lab if stage == "lab" else loaded.cells) > 1:
        pool.prepare(*PREPARED[stage])
    return loaded


def _stage(name: str, quiet: bool) -> None:
    loaded = _load(name)
    _declared_stage(name, loaded, quiet=quiet)


def _declared_stage(name: str, loaded: Settings, function: str = "", **how: Any) -> None:
    """Do a stage's work; what runs models is imported once there is a project to do it in."""
    from salvage.pipeline.declared import stage

    def work() -> None:
        from salvage.pipeline import stages

        getattr(stages, function or name)(loaded, **how)

    stage(name, work)


@app.command()
def lab(
    family: Annotated[str, typer.Option(help="smollm2: a real language model instead, and a specialist of it.")] = "",
    steps: Annotated[int, typer.Option(min=1, help="Of fine-tuning smollm2, 16 problems each.")] = 50,
    adapter: Annotated[bool, typer.Option("--adapter", help="As a LoRA adapter, trained on chats.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train the lab's micro models, ancestors and specialists."""
    if not family:
        _stage("lab", quiet)
        return
    extras.need("salvage lab", *NEEDS["lab"])
    from salvage.lab import smollm2
    from salvage.project import settings

    if family != "smollm2":
        raise SalvageError(f"--family {family!r} is not known; the only one is smollm2, the others are params.yaml's")
    if adapter:
        made, chats = smollm2.make_adapter(steps, settings.load().seed, quiet=quiet)
        if not quiet:
            print(f"lab: {made} is an adapter; next: salvage run --specialist {made} --problems {chats}")
        return
    specialist, ancestor = smollm2.make(steps, settings.load().seed, quiet=quiet)
    if not quiet:
        print(
            f"lab: {specialist} was fine-tuned from {ancestor}; next: "
            f"salvage run --specialist {specialist} --ancestor {ancestor} --problems {smollm2.PROBLEMS}"
        )


@app.command()
def problems(limit: Limit = 0, quiet: Quiet = False) -> None:
    """Write the problem set of every cell."""
    _declared_stage("problems", _load("problems"), "problem_sets", limit=limit, quiet=quiet)


@app.command()
def sample(quiet: Quiet = False) -> None:
    """Sample and verify rollouts of every problem."""
    _stage("sample", quiet)


@app.command()
def featurize(quiet: Quiet = False) -> None:
    """Score failed rollouts with both models; write signals and features."""
    _stage("featurize", quiet)


@app.command()
def intervene(quiet: Quiet = False) -> None:
    """Decode every failure again under every operator."""
    _stage("intervene", quiet)


@app.command()
def profile(quiet: Quiet = False) -> None:
    """Gather features and rescue rates into profiles."""
    _stage("profile", quiet)


@app.command()
def route(
    profiles: Annotated[str, typer.Option(help="Failures with their three features: CSV, Parquet, or a folder of it.")],
    reference: Annotated[str, typer.Option(help="Fit the rule on this table instead of cell by cell.")] = "",
    model: Annotated[str, typer.Option(help="Take a frozen policy: a file, or models:/salvage-router@champion.")] = "",
    no_fallback: Annotated[bool, typer.Option("--no-fallback", help="Always the largest z, even below 0.")] = False,
    out: Annotated[str, typer.Option(help="Write the answers here as CSV instead of printing them.")] = "",
) -> None:
    """Say for every failure which operator to spend the next tokens on."""
    from salvage.serving import answers, policy_uri

    if model and reference:
        raise SalvageError("--reference and --model were both given; choose one")
    table = answers.read_table(profiles)
    if model:
        if no_fallback:
            raise SalvageError("--no-fallback does not go with --model: a registered rule is frozen; leave one out")
        told = answers.answer_fitted(policy_uri.load(model), table, profiles)
    elif reference:
        rule = answers.fit(answers.read_table(reference), reference, fallback=not no_fallback)
        told = answers.answer(rule, table, profiles)
    else:
        told = answers.answer_by_cell(table, profiles, fallback=not no_fallback)
    _tell(answers.beside(table, told), out)


def _tell(routed: Any, out: str) -> None:
    if out:
        from salvage.tables import csv_tables

        csv_tables.write(routed, Path(out))
        return
    from salvage.reports.tables import answer_table, show_table

    show_table(answer_table(routed))


@app.command()
def evaluate(
    profiles: Annotated[str, typer.Option(help="A profiles table; the default is the pipeline's own.")] = "",
    attempts: Annotated[str, typer.Option(help="The attempts behind it, for the cross-fitted protocol.")] = "",
    facts: Annotated[str, typer.Option(help="The facts of its failures, for the policies that use them.")] = "",
    policies: Annotated[
        str, typer.Option(help="Beside the baselines: calibrated,learned,portfolio,calibrated:20.")
    ] = "",
    folds: Annotated[int, typer.Option(help="Of problems; policies are fitted on the others. 0: params.yaml.")] = 0,
    repeats: Annotated[int, typer.Option(help="Deal the folds so often. 0: params.yaml.")] = 0,
    seed: Annotated[int, typer.Option(help="Of folds, halves and resamples. -1: params.yaml.")] = -1,
    json: Annotated[str, typer.Option(help="Write the rows here as JSON.")] = "",
    csv: Annotated[str, typer.Option(help="Write the rows here as CSV.")] = "",
    quiet: Quiet = False,
) -> None:
    """Compare policies and their baselines, by both protocols, with intervals."""
    from salvage.pipeline import results
    from salvage.project import settings
    from salvage.reports.tables import show as show_rows
    from salvage.tables import files

    if (attempts or facts) and not profiles:
        raise SalvageError("--attempts and --facts go with --profiles; give the profiles that they belong to")
    chosen: dict[str, Any] = {name: value for name, value in (("folds", folds), ("repeats", repeats)) if value}
    chosen |= {"seed": seed} if seed >= 0 else {}
    chosen |= {"policies": tuple(policies.split(","))} if policies else {}
    if profiles:
        sources = [Path(table) if table else None for table in (attempts, facts)]
        rows = results.evaluate(settings.load(), Path(profiles), *sources, **chosen)
        if json:
            files.write_json(Path(json), rows)
    else:
        rows = results.evaluate_stage(_load("evaluate"), Path(json) if json else None, **chosen)
    if csv:
        results.write_csv(Path(csv), rows)
    if not quiet and (profiles or not _is_child()):
        show_rows(rows)


def _is_child() -> bool:
    """Tell whether this is a stage of the main job, which shows what matters itself, last."""
    from salvage.project import tracking

    return tracking.PARENT in os.environ


@app.command()
def register(
    policy: Annotated[str, typer.Option(help="rule, fixed, random, calibrated, learned, portfolio.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Make it the champion whatever the gate says.")] = False,
    out: Annotated[str, typer.Option(help="Write the fitted policy to this JSON file instead of registering it.")] = "",
    quiet: Quiet = False,
) -> None:
    """Register a fitted policy as salvage-router: the champion where it beats the one before, else the challenger."""
    from salvage.pipeline import results
    from salvage.project import settings

    if out:
        if force:
            raise SalvageError("--force is for the registry, and --out registers nothing; leave one out")
        told = results.write_policy(settings.load(), policy, Path(out))
    else:
        told = results.register_stage(_load("register"), policy, force=force)
    if not quiet:
        print(f"register: {told}")


Profiles = Annotated[str, typer.Option(help="A profiles table; the default is the study's, see params.yaml.")]
Attempts = Annotated[str, typer.Option(help="The attempts behind it: labels then come from halves of them.")]
Facts = Annotated[str, typer.Option(help="The facts of its failures.")]
Features = Annotated[str, typer.Option(help="The features of its failed rollouts.")]
Trials = Annotated[int, typer.Option(help="Of Optuna, in every search. 0: params.yaml.")]
Json = Annotated[str, typer.Option(help="Write the figures here as JSON.")]


@app.command()
def regimes(
    profiles: Profiles = "",
    attempts: Attempts = "",
    facts: Facts = "",
    features: Features = "",
    trials: Trials = 0,
    json: Json = "",
    quiet: Quiet = False,
) -> None:
    """Cluster failures, and tell their regimes before any attempt; registers salvage-regimes."""
    _study("regimes", [profiles, attempts, facts, features], trials, json, quiet)


@app.command()
def methods(
    profiles: Profiles = "",
    facts: Facts = "",
    features: Features = "",
    trials: Trials = 0,
    json: Json = "",
    quiet: Quiet = False,
) -> None:
    """Tell from a bag of failures which method made the checkpoint; registers salvage-methods."""
    _study("methods", [profiles, "", facts, features], trials, json, quiet)


def _study(name: str, given: list[str], trials: int, json: str, quiet: bool) -> None:
    if any(given[1:]) and not given[0]:
        raise SalvageError("tables go with --profiles; give the profiles that they belong to")
    extras.need(f"salvage {name}", *(("studies",) if given[0] else NEEDS[name]))
    from salvage.pipeline import studying
    from salvage.project import settings
    from salvage.reports import study_report
    from salvage.studies.study import Tables

    tables = Tables(Path(given[0]), *(Path(table) if table else None for table in given[1:])) if given[0] else None
    told = studying.study(settings.load(), name, tables, trials, Path(json) if json else None, quiet=quiet)
    if not quiet and (tables or not _is_child()):
        study_report.show(told)


@app.command()
def rescue(
    specialist: Annotated[str, typer.Option(help="The post-trained model: folder or hub name.")] = "",
    ancestor: Annotated[
        str, typer.Option(help="The model that it was post-trained from; an adapter names its own.")
    ] = "",
    cell: Annotated[str, typer.Option(help="A pair of params.yaml by name, in place of the two.")] = "",
    problems: Annotated[str, typer.Option(help="A problem file (JSONL) or set; a lab cell has held-out ones.")] = "",
    limit: Limit = 0,
    policy: Annotated[
        str, typer.Option(help="A policy file, a registered one's URI, or retry; else the champion.")
    ] = "",
    attempts: Annotated[int, typer.Option(help="Budget a problem, first rollout included; 8 where none is given.")] = 0,
    tokens: Annotated[int, typer.Option(help="Budget a problem, in model-tokens.")] = 0,
    in_all: Annotated[bool, typer.Option("--in-all", help="The budget is for all problems together.")] = False,
    price: Annotated[float, typer.Option(help="Stop where a retry's worth of tokens has a smaller chance.")] = 0.0,
    compare: Annotated[
        str, typer.Option(help="Compare arms instead: retry,rule,portfolio, or a policy's file or URI.")
    ] = "",
    out: Annotated[str, typer.Option(help="Outcomes, a line of JSON each; goes on where it was.")] = "rescued.jsonl",
    traces: Annotated[float, typer.Option(help="Share of the problems to trace in MLflow, 0 to 1.")] = 0.1,
    json: Annotated[str, typer.Option(help="Write the comparison's rows here as JSON.")] = "",
    engine: Annotated[str, typer.Option(help="What runs one's own pair: vllm, transformers, or auto.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Solve problems, spending where failures say it pays; without a pair of models, the stage that compares arms."""
    own = any((specialist, ancestor, cell, problems))
    values = {"policy": policy, "attempts": attempts, "tokens": tokens, "in-all": in_all, "price": price}
    idle = [f"--{name}" for name, value in values.items() if value]
    if idle and (compare or not own):
        raise SalvageError(
            f"{', '.join(idle)}: for a policy that solves one's own problems (--specialist and --ancestor, or --cell); "
            "arms are compared as the section `rescue` of params.yaml says, so leave that out"
        )
    if limit and not own:
        raise SalvageError("--limit is of one's own problems; give --problems, or a --cell with held-out ones")
    if attempts and tokens:
        raise SalvageError("--attempts and --tokens were both given; choose one")
    if not own:
        from salvage.pipeline import results

        rows = results.rescue_stage(_load("rescue"), compare, quiet=quiet)
    else:
        extras.need("salvage rescue", "engine")
        from salvage.project import settings
        from salvage.rescue import choosing

        loaded = settings.load()
        mine, table = choosing.choose(loaded, cell, specialist, ancestor, problems, engine, limit)
        from salvage.rescue import solving
        from salvage.rescue.loop import Budget

        budget = Budget(tokens or attempts or 8, "tokens" if tokens else "attempts", in_all)
        if not compare:
            sys.exit(bool(solving.solve(loaded, mine, table, policy, budget, price, Path(out), traces, quiet=quiet)))
        rows = solving.compare(loaded, mine, table, compare.split(","), quiet=quiet)
    _tell_arms(rows, json, quiet or (not own and _is_child()))


def _tell_arms(rows: list[dict[str, Any]], json: str, quiet: bool) -> None:
    from salvage.rescue import solving
    from salvage.tables import files

    if json:
        files.write_json(Path(json), rows)
    if not quiet:
        solving.show(rows)


@app.command()
def show(
    problem: Annotated[str, typer.Argument(help="The problem's id.")],
    outcomes: Annotated[str, typer.Option(help="What `salvage rescue --out` wrote; else the pipeline's tables.")] = "",
    cell: Annotated[str, typer.Option(help="Which specialist; else the first that failed it.")] = "",
    rollout: Annotated[int, typer.Option(help="Which failed rollout; -1: the first.")] = -1,
) -> None:
    """Print a failed rollout: its tokens shaded by j, the junction, what was tried and what came of it."""
    from salvage.project import settings
    from salvage.reports import plain
    from salvage.reports import show as showing

    if outcomes:
        told = showing.from_outcomes(Path(outcomes), problem)
    else:
        told = showing.from_tables(settings.load(), problem, cell, rollout)
    showing.show(told, plain.console(140))


@app.command()
def doctor(
    specialist: Annotated[str, typer.Option(help="One's own post-trained model: folder or hub name.")] = "",
    ancestor: Annotated[
        str, typer.Option(help="The model that it was post-trained from; an adapter names its own.")
    ] = "",
    problems: Annotated[str, typer.Option(help="A problem file (JSONL) or set: do its prompts fit?")] = "",
    limit: Limit = 0,
    engine: Annotated[str, typer.Option(help="What is to run the pair: vllm, transformers, or auto.")] = "auto",
    json: Annotated[str, typer.Option(help="Write what was found here as JSON.")] = "",
) -> None:
    """Look at this machine, at a pair of models (or those of params.yaml), and check every operator."""
    extras.need("salvage doctor", "engine")
    from rich.console import Console

    from salvage.problems import sets
    from salvage.project import settings
    from salvage.tables import files

    ancestor = ancestor or settings.adapter_base(specialist)
    if bool(specialist) != bool(ancestor):
        raise SalvageError("a pair is both: give --specialist and --ancestor")
    if not specialist and (problems or limit):
        raise SalvageError("--problems and --limit are of a pair; give --specialist and --ancestor with them")
    loaded = settings.load()
    if specialist:
        rows = sets.load(sets.limited(problems, limit)).to_dict("records") if problems or limit else None
        pairs = {Path(specialist).name: (specialist, ancestor, engine, rows)}
    else:
        pairs = {cell.name: (cell.specialist, cell.ancestor, cell.engine, None) for cell in loaded.own}
    from salvage.pipeline import doctor as looking  # with the models' libraries, which a mistake need not wait for

    console = Console()
    found: list[dict[str, Any]] = []
    for section, finding in looking.doctor(pairs, loaded["vllm"]):
        looking.show(console, section, finding, first=not found or found[-1]["section"] != section)
        found.append({"section": section, **vars(finding)})
    if json:
        files.write_json(Path(json), found)
    wrong = [f"{one['about']} ({one['section']})" for one in found if one["ok"] is False]
    print(f"{len(wrong)} wrong: {', '.join(wrong)}" if wrong else "nothing is wrong")
    if wrong:
        raise typer.Exit(1)


@app.command()
def report(
    partial: Annotated[
        bool, typer.Option("--partial", help="Of a run that goes on: what its finished shards say so far.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Draw the pictures and write the page of them."""
    if partial:
        extras.need("salvage report", "report")
        from salvage.pipeline import results
        from salvage.project import settings

        page, told = results.partial(settings.load())
        print(f"report: {page}: {told}")
        return
    from salvage.pipeline import results

    results.report_stage(_load("report"))
    if not quiet:
        print(f"report: {results.REPORT}/index.html")


@app.command()
def run(
    profile: Annotated[str, typer.Option(help="A profile of params.yaml: quick, default, full, own.")] = "",
    specialist: Annotated[str, typer.Option(help="One's own post-trained model: folder or hub name.")] = "",
    ancestor: Annotated[
        str, typer.Option(help="The model that it was post-trained from; an adapter names its own.")
    ] = "",
    problems: Annotated[str, typer.Option(help="A problem file (JSONL) or set.")] = "",
    limit: Limit = 0,
    engine: Annotated[str, typer.Option(help="vllm, transformers, or auto.")] = "",
    name: Annotated[str, typer.Option(help="What to call one's own pair; else its specialist's folder.")] = "",
    quiet: Quiet = False,
) -> None:
    """Do the main job: every stage that is not up to date, ending in a registered champion."""
    extras.need("salvage run", *NEEDS["run"])
    from salvage.pipeline.run import run as every_stage
    from salvage.problems import sets

    given = (profile, specialist, ancestor, sets.limited(problems, limit), engine)
    every_stage(*(value or None for value in given), name=name or None, quiet=quiet)


@app.command()
def new(
    folder: Annotated[str, typer.Argument(help="Where; made if it is not there.")],
    quiet: Quiet = False,
) -> None:
    """Lay down a project for one's own models: params.yaml, dvc.yaml, MLproject and an example problem file."""
    from salvage.project.new import lay_down

    files = lay_down(Path(folder))
    if not quiet:
        print(f"new: {', '.join(str(path) for path in files)}")
        print(f"next: cd {shlex.quote(folder)}, write your problems into problems.jsonl, and")
        print("  salvage run --specialist MODEL --ancestor BASE --problems problems.jsonl")


@app.command("import-rollouts")
def import_rollouts(
    file: Annotated[str, typer.Argument(help="A file of rollouts, in any of the formats that the docs list.")],
    cell: Annotated[str, typer.Option(help="What to call this specialist on this task.")],
    out: Annotated[str, typer.Option(help="The rollouts table to write (Parquet).")],
    format: Annotated[str, typer.Option(help="What wrote the file; auto: its fields tell.")] = "auto",
    problems: Annotated[str, typer.Option(help="The problem set; a file may bring its own.")] = "",
    tokenizer: Annotated[str, typer.Option(help="The specialist's folder or hub name, where lines lack tokens.")] = "",
    verifier: Annotated[str, typer.Option(help="Judges a file that brings its own problems.")] = "exact",
    metric: Annotated[str, typer.Option(help="Which of the file's verdicts to go by; none: verify all here.")] = "",
    metric_filter: Annotated[str, typer.Option("--filter", help="Which of a harness file's filters to take.")] = "",
    problems_out: Annotated[str, typer.Option(help="Write the file's own problems here (Parquet).")] = "",
    limit: Limit = 0,
) -> None:
    """Turn rollouts that exist already into a rollouts table."""
    from salvage.pipeline import verdicts
    from salvage.problems import formats, importing
    from salvage.problems import sets as problem_sets
    from salvage.project import settings
    from salvage.tables import schema

    if problems and problems_out:
        raise SalvageError("--problems and --problems-out were both given; the file's own are written, so choose one")
    records = formats.records(Path(file), format, metric, metric_filter)
    whole, most = problem_sets.whole(problem_sets.limited(problems, limit)) if problems else ("", limit)
    answered = problem_sets.load(whole) if problems else importing.file_problems(records, verifier)
    seconds = settings.load()["rescue"]["verify_seconds"]
    own = _tokenizer(tokenizer) if tokenizer else None
    made = importing.import_rollouts(records, answered, cell, own, limit=most, seconds=seconds)
    if problems_out:
        schema.write(answered.head(most or len(answered)), schema.PROBLEMS, problems_out)
    schema.write(made.table, schema.ROLLOUTS, out)
    verdicts.keep(Path(out), made.unverified)
    print(f"import-rollouts: {out}: {made.told()}")
    if made.unverified:
        print(f"import-rollouts: those without a verdict are in {verdicts.beside(Path(out))}")


@app.command("import-profiles")
def import_profiles(
    source: Annotated[str, typer.Argument(help="CSV (the authors' form) or Parquet: a file, a folder, or a URL.")],
    out: Annotated[str, typer.Option(help="The file to write: .parquet, or .csv in the authors' form.")],
    quiet: Quiet = False,
) -> None:
    """Check profiles from elsewhere and write them as a table; or the pipeline's own as a CSV."""
    from salvage.tables import profile_files

    table = profile_files.fetch_profiles(source)
    profile_files.write_profiles(table, out)
    if not quiet:
        print(f"import-profiles: {out}: {len(table)} failures of {table['cell'].nunique()} cells")


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    from salvage.problems.importing import Tokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise SalvageError(
            f"--tokenizer {name}: no tokenizer there ({str(error).splitlines()[0]}); correct it"
        ) from None
    return Tokenizer(lambda text: tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
