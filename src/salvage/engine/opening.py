"""A cell's engine, opened as params.yaml says; and what a table owes to it."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from salvage.engine import adapters
from salvage.engine.base import Engine, Sampling
from salvage.engine.choice import chosen
from salvage.engine.trial import refusal
from salvage.errors import SalvageError
from salvage.project.settings import Cell, Settings, adapter_base


def engine_for(name: str, specialist: str, ancestor: str, vllm: dict[str, Any]) -> tuple[str, str]:
    """Return the engine that runs a pair, and why: under `auto`, transformers too where vLLM is not for the pair.

    Parameters
    ----------
    vllm : dict
        The section `vllm` of params.yaml.

    Raises
    ------
    SalvageError
        Where vLLM is asked for, and cannot start here or is not for the pair.
    """
    engine, why = chosen(name)
    if engine == "vllm" and (refused := refusal(specialist, ancestor, vllm)):
        if name == "vllm":
            raise SalvageError(f"engine vllm is {refused}; use engine transformers")
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


def settled(cell: Cell, settings: Settings) -> Settings:
    """Return the settings as a cell has them; `auto` under `sample` is what its specialist's generation config says."""
    settings = settings.of(cell)
    values = settings["sample"]
    automatic = [field.name for field in fields(Sampling) if values[field.name] == "auto"]
    if not automatic:
        return settings
    off = asdict(Sampling(1.0))
    told = {
        name: value
        for name, value in generation_config(adapters.whole(cell.specialist, cell.ancestor)).items()
        if value is not None
    }
    if told.get("top_k") == -1:  # vLLM's for all
        del told["top_k"]
    values |= {name: (off | told)[name] for name in automatic}
    try:
        Sampling.of(values)
    except TypeError:
        raise SalvageError(f"{cell.specialist}: generation config: {values} is not all numbers; correct it") from None
    except SalvageError as error:
        raise SalvageError(f"{cell.specialist}: generation config: {error}, or say a number under sample") from None
    return replace(settings, raw=settings.raw | {"sample": values})


def from_generation_config(settings: Settings) -> dict[str, str]:
    """Say of each cell how it is sampled, where something of that is `auto`."""
    told = {}
    for cell in settings.cells:
        if "auto" in (settings["sample"][field.name] for field in fields(Sampling)):
            values = asdict(Sampling.of(settled(cell, settings)["sample"]))
            more = [
                f"{name} {value}"
                for name, value in generation_config(adapters.whole(cell.specialist, cell.ancestor)).items()
                if _penal(name, value)
            ]
            also = f"; its {', '.join(more)} is not applied" if more else ""
            drawn = ", ".join(f"{name} {value}" for name, value in values.items())
            told[cell.name] = f"{drawn} (auto: the specialist's generation config{also})"
    return told


def _penal(name: str, value: Any) -> bool:
    """Say whether a generation config asks for what Salvage does not do to a draw."""
    return name.endswith(("_penalty", "_cutoff", "_ngram_size", "typical_p")) and value not in (None, 0, 1)


def generation_config(specialist: str) -> dict[str, Any]:
    """Return what a model's generation config says; nothing where it has none, as vLLM takes it."""
    from transformers import GenerationConfig
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # that flags are ignored without do_sample: here they are not
    try:
        return dict(GenerationConfig.from_pretrained(specialist).to_diff_dict())
    except OSError as error:
        file = Path(specialist) / "generation_config.json"
        if file.exists():
            raise SalvageError(f"{file} cannot be read: {str(error).splitlines()[0]}; correct it") from error
        return {}
    finally:
        logging.set_verbosity(level)


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
