"""What one's own cells are made from and DVC cannot see: models, problem files, imported rollouts, verifiers.

dvc.yaml cannot name them, since params.yaml does. So `salvage run` notes what they contain in a small file that the
stages depend on: where one of them changes, the file does, and DVC has the stages look. Which cells then have to be
made again, the fingerprints of their tables decide.
"""

from __future__ import annotations

import json
from pathlib import Path

from salvage.engine.checkpoint import folder_of
from salvage.problems import sets
from salvage.project.settings import DATA, Cell, Settings
from salvage.tables.files import write_text
from salvage.tables.shards import fingerprint

INPUTS = DATA / "inputs.json"


def note(settings: Settings) -> None:
    """Write down what the own cells' inputs contain now.

    Raises
    ------
    SalvageError
        Where a model of the hub cannot be had.
    """
    known: dict[str, str] = {}
    told = {cell.name: _marks(cell, known) for cell in settings.own}
    write_text(INPUTS, json.dumps(told, indent=1) + "\n")


def _marks(cell: Cell, known: dict[str, str]) -> dict[str, str]:
    """Return a mark for each input of a cell; `known` spares reading what several cells share."""
    marks = {}
    for what in ("specialist", "ancestor", "problems", "rollouts"):
        name = sets.place(cell.problems) if what == "problems" else getattr(cell, what)
        if what in ("specialist", "ancestor") and not Path(name).exists():
            folder_of(name)  # so that its revision is known before anything is made with it
        elif not name or not Path(name).exists():
            continue
        known[name] = known.get(name) or fingerprint(files=[Path(name)])
        marks[what] = known[name]
    if "problems" in marks and (files := sets.verifier_files(sets.load(cell.problems))):
        marks["verifiers"] = fingerprint(files=files)
    return marks
