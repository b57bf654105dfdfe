"""A cell's engine, opened as params.yaml says; and what a table owes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from salvage.engine import adapters
from salvage.engine.base import Engine
from salvage.engine.choice import chosen
from salvage.engine.trial import refusal
from salvage.errors import SalvageError
from salvage.project.settings import Cell, Settings, adapter_base


def engine_for(name: str, specialist: str, ancestor: str, vllm: dict[str, Any]) -> tuple[str, str]:
    """Return the engine that runs a pair, and why: under `auto`, transformers too where vLLM refuses the pair.

    Parameters
    ----------
    vllm : dict
        The section `vllm` of params.yaml.
    """
    engine, why = chosen(name)
    if name == "auto" and engine == "vllm" and (refused := refusal(specialist, ancestor, vllm)):
        return "transformers", f"{why}, but {refused}"
    return engine, why


def engine_of(cell: Cell, settings: Settings) -> tuple[str, str]:
    """Return the engine that runs a cell, and why."""
    return engine_for(cell.engine, cell.specialist, cell.ancestor, settings["vllm"])


def open_engine(cell: Cell, settings: Settings, *, ancestor: bool) -> Engine:
    """Open a cell's engine, with its ancestor or the specialist alone; whoever opens it closes it."""
    values: dict[str, Any] = {
        "specialist": adapters.whole(cell.specialist, cell.ancestor),
        "ancestor": cell.ancestor if ancestor else None,
        "top_k_cov": settings["featurize"]["top_k_cov"],
        "batch": settings["sample"]["batch"],
        "chunk": settings["featurize"]["chunk"],
    }
    if engine_of(cell, settings)[0] == "vllm":
        from salvage.engine.vllm import VllmEngine

        engine: Any = VllmEngine(**values, **settings["vllm"])
    else:
        from salvage.engine.transformers import TransformersEngine

        engine = TransformersEngine(**values)
    if not ancestor and cell.ancestor:
        engine.heed(cell.ancestor)  # what is sampled will be scored with it
    return engine  # type: ignore[no-any-return]


def engine_mark(cell: Cell, settings: Settings, problems: pd.DataFrame) -> list[Any]:
    """Return what a table owes to the engine that made it, and to the chat template of its prompts."""
    name, _ = engine_of(cell, settings)
    mark = [name, settings["vllm"] if name == "vllm" else {}]
    if "messages" not in problems:
        return mark
    from salvage.engine import template

    return [*mark, template.mark(adapters.whole(cell.specialist, cell.ancestor))]


def weights(cell: Cell, *, ancestor: bool) -> list[Path]:
    """Return the folders of the models that a table is made by, for its fingerprint."""
    names = [cell.specialist, cell.ancestor] if ancestor else [cell.specialist]
    base = adapters.base_for(cell.specialist, cell.ancestor) if adapter_base(cell.specialist) else ""
    return [Path(name) for name in dict.fromkeys([*names, base]) if name]


def admit(table: pd.DataFrame, engine: Engine, max_tokens: int, where: str) -> None:
    """Refuse a prompt that does not fit, or cannot be made, before anything is decoded."""
    for row, problem in enumerate(table.to_dict("records")):
        try:
            length = len(engine.prompt(problem))
        except SalvageError as error:
            raise SalvageError(f"{where}: row {row}: {error}") from error
        if engine.context is not None and length + max_tokens > engine.context:
            raise SalvageError(
                f"{where}: row {row}, problem {problem['problem_id']!r}: a prompt of {length} tokens and "
                f"sample.max_tokens {max_tokens} exceed the models' context of {engine.context}; "
                "shorten the prompt or lower max_tokens"
            )
