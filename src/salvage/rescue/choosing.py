"""Which pair of models is meant, and which problems: known before the libraries that run models are imported."""

from __future__ import annotations

import pandas as pd

from salvage.errors import SalvageError
from salvage.problems import sets as problem_sets
from salvage.project.settings import LAB_PROBLEMS, Cell, Settings, adapter_base


def choose(
    settings: Settings, cell: str, specialist: str, ancestor: str, problems: str, engine: str, limit: int = 0
) -> tuple[Cell, pd.DataFrame]:
    """Return the pair of models that is meant, and its problems, the first so many where there is a limit.

    The lab's cells have held-out ones.
    """
    known = {c.name: c for c in settings.cells}
    if cell and (specialist or ancestor):
        raise SalvageError("--cell names a pair of params.yaml; leave --specialist and --ancestor out, or it")
    if cell and cell not in known:
        raise SalvageError(f"cell {cell!r} is not one of {', '.join(known)}; correct --cell")
    ancestor = ancestor or adapter_base(specialist)
    if not cell and not (specialist and ancestor):
        raise SalvageError("a pair of models is needed: --specialist with --ancestor, or --cell of params.yaml")
    own = problem_sets.load(problem_sets.limited(problems, limit)) if problems else None
    if own is None and not (cell and known[cell].problems == LAB_PROBLEMS):
        raise SalvageError("--problems is missing; give a problem file (JSONL) or a set by name")
    from salvage.rescue.comparison import held_out  # with the models' libraries
    from salvage.rescue.loop import pair

    mine = known[cell] if cell else pair(specialist, ancestor, engine=engine)
    if own is not None:
        return mine, own
    most = int(settings.profile_values["rescue"])
    return mine, held_out(mine, settings, min(limit or most, most))
