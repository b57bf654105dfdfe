"""One's own pairs before they are run: each is looked at, and what is `auto` is fitted to it and written down."""

from __future__ import annotations

from pathlib import Path

from salvage.engine import fitting
from salvage.engine.looking import look, refuse
from salvage.pipeline.stages import problem_set
from salvage.project import settings as params
from salvage.project.settings import Cell, Settings
from salvage.tables import schema
from salvage.tables.files import beside


def prepare(settings: Settings, path: Path = params.PARAMS, *, quiet: bool) -> Settings:
    """Look at every pair whose settings are not fitted yet, fit them, write them to params.yaml; return the settings.

    Raises
    ------
    SalvageError
        Where a pair cannot be run, or its models do not belong together.
    """
    fits: dict[int, dict[str, int]] = {}
    for i, cell in enumerate(settings.own):
        if fitting.wanted(cell, settings):
            fits[i] = _fitted(cell, settings, quiet=quiet)
    if fits:
        _write(path, fits)
    return params.load(path) if fits else settings


def _fitted(cell: Cell, settings: Settings, *, quiet: bool) -> dict[str, int]:
    problems = problem_set(cell.problems, settings).to_dict("records")
    for finding in refuse(look(cell.specialist, cell.ancestor, cell.engine, settings["vllm"], problems=problems)):
        if not quiet:
            print(f"{cell.name}: {finding.about}: {finding.told}", flush=True)
    lengths = schema.read(cell.rollouts, schema.ROLLOUTS)["n_tokens"].tolist() if cell.rollouts else None
    fit = fitting.fit(cell, settings, problems, lengths)
    if not quiet:
        print(f"{cell.name}: set in params.yaml: {', '.join(fit.reasons)}", flush=True)
    return fit.values


def _write(path: Path, fits: dict[int, dict[str, int]]) -> None:
    """Set values of entries of `cells`, comments kept."""
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    values = editor.load(path.read_text(encoding="utf-8"))
    for i, fit in fits.items():
        entry = values["cells"][i]
        last = next(reversed(entry))
        entry.update(fit)
        blank = entry.ca.items.get(last)
        if blank and not blank[2].value.strip():  # the empty line that parts the entry from what follows
            entry.ca.items[next(reversed(entry))] = entry.ca.items.pop(last)
    with beside(path) as part, part.open("w", encoding="utf-8") as file:
        editor.dump(values, file)
