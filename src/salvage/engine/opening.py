"""A cell's engine, opened as params.yaml says; and what a table owes to it."""

from __future__ import annotations

from typing import Any

import pandas as pd

from salvage.engine.base import Engine
from salvage.engine.choice import chosen
from salvage.errors import SalvageError
from salvage.project.settings import Cell, Settings


def open_engine(cell: Cell, settings: Settings, *, ancestor: bool) -> Engine:
    """Open a cell's engine, with its ancestor or the specialist alone; whoever opens it closes it."""
    values: dict[str, Any] = {
        "specialist": cell.specialist,
        "ancestor": cell.ancestor if ancestor else None,
        "top_k_cov": settings["featurize"]["top_k_cov"],
        "batch": settings["sample"]["batch"],
        "chunk": settings["featurize"]["chunk"],
    }
    if chosen(cell.engine)[0] == "vllm":
        from salvage.engine.vllm import VllmEngine

        return VllmEngine(**values, **settings["vllm"])
    from salvage.engine.transformers import TransformersEngine

    return TransformersEngine(**values)


def engine_mark(cell: Cell, settings: Settings) -> list[Any]:
    """Return what a table owes to the engine that made it, for its fingerprint."""
    name, _ = chosen(cell.engine)
    return [name, settings["vllm"] if name == "vllm" else {}]


def admit(table: pd.DataFrame, engine: Engine, max_tokens: int, where: str) -> None:
    """Refuse a prompt that does not fit before anything is decoded."""
    if engine.context is None:
        return
    for row, (problem_id, prompt) in enumerate(zip(table["problem_id"], table["prompt"], strict=True)):
        length = len(engine.encode(prompt))
        if length + max_tokens > engine.context:
            raise SalvageError(
                f"{where}: row {row}, problem {problem_id!r}: a prompt of {length} tokens and sample.max_tokens "
                f"{max_tokens} exceed the models' context of {engine.context}; shorten the prompt or lower max_tokens"
            )
