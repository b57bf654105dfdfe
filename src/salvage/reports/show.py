"""One failed rollout in the terminal: its tokens coloured by j, the junction, what was tried and what came of it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from salvage.errors import SalvageError
from salvage.method import operators
from salvage.method.looks import looks
from salvage.method.profiles import made_by
from salvage.policies.rule import Rule, decide
from salvage.project.settings import DATA, Cell, Settings, problem_file
from salvage.reports.plain import PlainTable, plain
from salvage.tables import schema, vocabulary
from salvage.tables.jsonl import read_lines

OUTCOME = {"cell", "problem_id", "prompt", "reference", "status", "failure", "why", "attempts"}  # and its tokens
ORANGE = (213, 94, 0)  # Okabe and Ito's vermilion, as j grows


def from_outcomes(path: Path, problem_id: str) -> dict[str, Any]:
    """Return a problem's outcome from what `salvage rescue --out` wrote.

    Raises
    ------
    SalvageError
        Where it is another kind of file, the problem is not there, or it never failed a rollout that was scored.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in read_lines(path, growing=True):
        if not line.fields.keys() >= OUTCOME:
            line.refuse(
                f"it is no outcome of `salvage rescue --out`, which has {', '.join(sorted(OUTCOME))}, but has "
                f"{', '.join(line.fields) or 'no field'}; give what --out wrote"
            )
        found[str(line.fields["problem_id"])] = line.fields
    if problem_id not in found:
        raise SalvageError(f"{path}: problem {problem_id!r} is not among its {len(found)} outcomes; correct it")
    if not found[problem_id]["failure"]:
        raise SalvageError(
            f"{path}: problem {problem_id!r} is {found[problem_id]['status']} and no failure of it was scored; "
            "there is nothing to show"
        )
    return found[problem_id]


def from_tables(settings: Settings, problem_id: str, cell_name: str = "", rollout: int = -1) -> dict[str, Any]:
    """Return a problem's failed rollout from the pipeline's tables, with what the operators' attempts gave.

    Parameters
    ----------
    cell_name : str
        The first cell that failed the problem where none is named.
    rollout : int
        Which one; the first that failed where it is -1.
    """
    cell, rows = _failed(settings, problem_id, cell_name)
    known = rows["rollout"].tolist()
    if rollout >= 0 and rollout not in known:
        raise SalvageError(
            f"rollout {rollout} of {problem_id!r} did not fail in {cell.name!r}, or is left out of its features; "
            f"take one of {known}"
        )
    number = rollout if rollout >= 0 else known[0]
    signals, rollouts, features = (
        _of(schema.read(DATA / name / cell.file, kind), problem_id, number)
        for name, kind in (
            ("signals", schema.SIGNAL_ROWS),
            ("rollouts", schema.ROLLOUTS),
            ("features", schema.FEATURE_ROWS),
        )
    )
    problem = (
        schema.read(problem_file(cell.problems), schema.PROBLEMS).set_index("problem_id", drop=False).loc[problem_id]
    )
    from salvage.engine.opening import open_engine, settled  # slow: a mistake above need not wait for it

    settings = settled(cell, settings)
    tokens = [int(t) for t in rollouts["tokens"]]
    failed = operators.FailedRollout(tokens, int(features["junction"]), np.zeros(len(tokens)))
    temperature = settings["sample"]["temperature"]
    with closing(open_engine(cell, settings, ancestor=True)) as engine:
        (look,) = looks(engine, [(engine.prompt(problem), failed, signals["j"])], temperature)
    return {
        "cell": cell.name,
        "problem_id": problem_id,
        "prompt": problem["prompt"],
        "reference": problem["answer"],
        "rollout": number,
        "rollouts_failed": known,
        "truncated": bool(rollouts.get("truncated", False)),
        "failure": look | {"features": {name: float(features[name]) for name in vocabulary.FEATURES}},
        "why": _decision(settings, cell, problem_id),
        "rates": _rates(settings, cell, problem_id),
    }


def _failed(settings: Settings, problem_id: str, cell_name: str) -> tuple[Cell, Any]:
    """Return the cell that failed the problem, and its failed rollouts."""
    cells = {cell.name: cell for cell in settings.cells}
    if cell_name and cell_name not in cells:
        raise SalvageError(f"cell {cell_name!r} is not one of {', '.join(cells)}; correct --cell")
    for cell in [cells[cell_name]] if cell_name else cells.values():
        rows = schema.read(DATA / "features" / cell.file, schema.FEATURE_ROWS)
        rows = rows[rows["problem_id"] == problem_id]
        if len(rows):
            return cell, rows
    where = f"cell {cell_name!r}" if cell_name else f"any of the {len(cells)} cells"
    raise SalvageError(f"problem {problem_id!r} has no failed rollout in {where}; take one of data/profiles")


def _of(table: Any, problem_id: str, rollout: int) -> Any:
    return table[(table["problem_id"] == problem_id) & (table["rollout"] == rollout)].iloc[0]


def _decision(settings: Settings, cell: Cell, problem_id: str) -> dict[str, Any]:
    """Return what the rule says of the failure, scaled over its cell."""
    profiles = schema.read(DATA / "profiles" / cell.file, schema.PROFILES)
    row = profiles[profiles["problem_id"] == problem_id]
    told = decide(row, Rule.fit(profiles)).iloc[0].to_dict() if len(profiles) > 1 else {}
    return {"policy": "rule"} | told


def _rates(settings: Settings, cell: Cell, problem_id: str) -> dict[str, tuple[int, int]]:
    values = settings["intervene"]
    tried = made_by(
        schema.read(DATA / "attempts" / cell.file, schema.ATTEMPTS), values["anchor"], values["continuation"]
    )
    counts = tried[tried["problem_id"] == problem_id].groupby("operator")["correct"].agg(["sum", "size"])
    return {str(name): (int(row["sum"]), int(row["size"])) for name, row in counts.iterrows()}


# ------------------------------------------------------------------ what is printed


def show(told: dict[str, Any], console: Console) -> None:
    """Print a failure: the rollout, the junction, the decision, what came of it."""
    look, why = told["failure"], told["why"]
    title = f"{told['problem_id']} in {told['cell']}, failed rollout {told.get('rollout', 0)}"
    console.print(plain(title + (", truncated: it met max_tokens" if _met_max_tokens(told) else ""), "bold"))
    console.print(Text.assemble(("problem    ", "dim"), plain(told["prompt"])))
    console.print(Text.assemble(("reference  ", "dim"), plain(told["reference"])))
    console.print(Text.assemble(("rollout    ", "dim"), rollout_text(look)))
    at, features = look["junction"], look["features"]
    shades = f"shaded by the root of j, 0 to {max(look['j']):.2f}"
    console.print(Text(f"           {shades}; ▸◂ marks the junction, token {at} of {len(look['tokens'])}", style="dim"))
    console.print(Text.assemble(("there it took ", "dim"), repr(look["tokens"][at]), (", where the models say", "dim")))
    console.print(_alternatives(look))
    scores = [
        f"{name} {value:.2f} (z {why[f'z_{name}']:+.2f})" if f"z_{name}" in why else f"{name} {value:.2f}"
        for name, value in features.items()
    ]
    console.print(Text.assemble(("features   ", "dim"), ", ".join(scores)))
    console.print(Text.assemble(("routed to  ", "dim"), plain(_routed(why))))
    ended = "attempts of the pipeline"
    if "status" in told:
        ended = f"{told['status']}, {told['model_tokens']} model-tokens, {told['scored_tokens']} more to score"
    console.print(Text.assemble(("came to    ", "dim"), ended))
    console.print(_tried(told))


def _met_max_tokens(told: dict[str, Any]) -> bool:
    """Say whether the rollout that is shown is truncated: of an outcome, its first attempt is."""
    return bool(told["truncated"] if "truncated" in told else told["attempts"][0].get("truncated", False))


def rollout_text(look: dict[str, Any]) -> Text:
    """Return the rollout with each token shaded by its j and the junction marked."""
    most = max(max(look["j"]), 1e-9)
    text = Text()
    for i, (token, j) in enumerate(zip(look["tokens"], look["j"], strict=True)):
        shade = np.sqrt(j / most)  # in proportion, the junction alone would be seen
        marked = f"▸{token}◂" if i == look["junction"] else token
        red, green, blue = (round(255 - shade * (255 - part)) for part in ORANGE)
        style = f"black on rgb({red},{green},{blue})" if shade > 0.02 else ""
        text.append_text(plain(marked, f"bold underline {style}" if i == look["junction"] else style))
    return text


def _alternatives(look: dict[str, Any]) -> Table:
    """Return what both models would have said at the junction."""
    table = PlainTable()
    both = look["alternatives"]
    for name in both:
        table.add_column(name)
        table.add_column("p", justify="right")
    for row in zip(*both.values(), strict=True):
        table.add_row(*(part for token, p in row for part in (repr(token), f"{p:.3f}")))
    return table


def _routed(why: dict[str, Any]) -> str:
    if not why:
        return "nothing: no policy was asked"
    told = f"{why.get('operator', '?')} by {why['policy']}"
    if "margin" in why:
        told += f", z margin {why['margin']:.2f}"
    if why.get("plan"):
        told += f"; plan: {', '.join(why['plan'])}"
    if why.get("regime"):
        told += "; of failures alike " + ", ".join(f"{share:.0%} {name}" for name, share in why["regime"].items())
    return told


def _tried(told: dict[str, Any]) -> Table:
    """Return what was tried: each attempt, or counts by operator."""
    if "rates" in told:
        table = PlainTable("operator", "right")
        for name, (right, of) in told["rates"].items():
            table.add_row(name, f"{right} of {of}")
        return table
    table = PlainTable("operator", "verdict", "model-tokens", "acted at", "completion")
    verdicts = {True: "right", False: "wrong", None: "no verdict"}
    for attempt in told["attempts"]:
        at = str(attempt["position"]) if attempt["position"] >= 0 else ""
        verdict = verdicts[attempt["correct"]] + (", truncated" if attempt.get("truncated") else "")
        table.add_row(attempt["operator"], verdict, str(attempt["model_tokens"]), at, attempt["text"])
    return table
