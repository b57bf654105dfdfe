"""A pair of models is looked at before it is run: do both load, do they belong together, do they fit this machine?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salvage.errors import SalvageError
from salvage.project.machine import gpu, memory

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what, whether it is as it should be (None: a remark), and a sentence."""

    about: str
    ok: bool | None
    told: str


def look(
    specialist: str,
    ancestor: str,
    engine: str,
    vllm: dict[str, Any],
    *,
    problems: list[dict[str, Any]] | None = None,
    max_tokens: int = 0,
) -> Iterator[Finding]:
    """Yield what is found out about a pair; the first thing that is wrong with how they load ends it.

    Parameters
    ----------
    engine : str
        `auto`, `vllm` or `transformers`.
    vllm : dict
        The section `vllm` of params.yaml.
    problems : list of dict, optional
        Rows of the problems table that are to be decoded: the longest prompt must fit the context.
    max_tokens : int
        Of a completion.
    """
    from salvage.engine.adapters import whole
    from salvage.engine.checkpoint import folder_of, same_weights
    from salvage.engine.opening import engine_for
    from salvage.engine.speaker import Speaker
    from salvage.engine.vllm import VllmEngine

    try:
        merged = whole(specialist, ancestor)
        speaker = Speaker(merged, ancestor)
        folders = [folder_of(name) for name in (merged, ancestor)]
        called = specialist if merged == specialist else f"{specialist}, an adapter, merged"
        yield from map(_model, ("specialist", "ancestor"), (called, ancestor), speaker.configs, folders)
        same = same_weights(*folders)
    except SalvageError as error:
        yield Finding("models", False, str(error))
        return
    if same:
        told = (
            "specialist and ancestor have the same weights, so nothing tells them apart; give the one before training"
        )
        yield Finding("difference", False, told)
    else:
        yield Finding("difference", True, "their weights differ")
    yield _tokens(speaker)
    try:
        yield _context(speaker, problems, max_tokens)
    except SalvageError as error:
        yield Finding("prompts", False, str(error))
    name = ""
    try:
        name, why = engine_for(engine, specialist, ancestor, vllm)
        yield Finding("engine", True, f"{name} ({why})")
    except SalvageError as error:
        yield Finding("engine", False, str(error))
    try:
        yield _memory(speaker, folders, VllmEngine(merged, ancestor, **vllm) if name == "vllm" else None)
    except SalvageError as error:
        yield Finding("memory", False, str(error))


def refuse(findings: Iterator[Finding]) -> list[Finding]:
    """Return what was found; raise the first thing that is wrong.

    Raises
    ------
    SalvageError
        With its sentence.
    """
    known = []
    for finding in findings:
        if finding.ok is False:
            raise SalvageError(finding.told)
        known.append(finding)
    return known


def _model(about: str, name: str, config: Any, folder: Path) -> Finding:
    from salvage.engine.checkpoint import entries, saved

    kind = (getattr(config, "architectures", None) or ["of no named architecture"])[0]
    number, dtype = f"{entries(folder) / 1e6:,.2f} M", str(saved(config)).removeprefix("torch.")
    return Finding(about, True, f"{name}: {kind}, {number} parameters, saved in {dtype}")


def _tokens(speaker: Any) -> Finding:
    tokenizer = speaker.tokenizer
    ends = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(speaker.ends)))
    first = f"begins with {speaker.begin!r}" if speaker.begin else "no first token (BOS)"
    template = "a chat template" if getattr(tokenizer, "chat_template", None) else "no chat template"
    return Finding("tokens", True, f"{speaker.vocabulary:,} that both have; {first}, ends with {ends}; {template}")


def _context(speaker: Any, problems: list[dict[str, Any]] | None, max_tokens: int) -> Finding:
    if not speaker.context:
        return Finding("context", None, "the configs name no bound")
    if not problems:
        return Finding("context", True, f"{speaker.context:,} tokens of prompt and completion")
    longest = max(len(speaker.prompt(problem)) for problem in problems)
    told = f"{speaker.context:,} tokens; the longest prompt has {longest:,}"
    if max_tokens:
        told += f", a completion at most {max_tokens:,}"
    if longest + max_tokens > speaker.context:
        return Finding("context", False, f"{told}; lower max_tokens or shorten that prompt")
    return Finding("context", True, told)


def _memory(speaker: Any, folders: list[Path], vllm: Any) -> Finding:
    """Compare what a pair needs with what is free; vLLM, where it runs the pair, refuses by a rule of its own.

    Raises
    ------
    SalvageError
        Where vLLM does.
    """
    import torch

    from salvage.engine.checkpoint import cache_bytes, entries, saved

    if vllm:
        vllm.room()
        speaker = vllm  # its context may be bounded
    kinds = [saved(config) for config in speaker.configs]
    weights = sum(entries(folder) * kind.itemsize for folder, kind in zip(folders, kinds, strict=True))
    one = sum(cache_bytes(c, kind) for c, kind in zip(speaker.configs, kinds, strict=True)) * (speaker.context or 1)
    if gpu():
        free, whole = torch.cuda.mem_get_info()
        where = "GPU"
    else:
        whole, free = memory()
        where = "machine"
    told = (
        f"{_size(weights)} of weights and {_size(one)} for one sequence of full length; "
        f"{_size(free)} of the {where}'s {_size(whole)} are free"
    )
    if weights > free:
        return Finding("memory", False, f"{told}; that is too little: give it more, or take smaller models")
    return Finding("memory", True, told)


def _size(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"
