"""Which part of the installation a command needs, said in one sentence where it is not there."""

from __future__ import annotations

from importlib.util import find_spec

from salvage.errors import SalvageError

EXTRAS = {  # as in pyproject.toml: the modules by which each is known to be there
    "engine": ("torch", "transformers", "math_verify", "peft", "datasets"),
    "vllm": ("vllm",),
    "lab": ("trl", "reasoning_gym"),
    "track": ("mlflow", "dvc", "ruamel"),
    "studies": ("sklearn", "xgboost", "optuna", "skops", "filelock", "threadpoolctl"),
    "report": ("matplotlib", "jinja2"),
}


def need(what: str, *extras: str) -> None:
    """Refuse to begin where an extra is not installed.

    Raises
    ------
    SalvageError
        Naming every extra that is missing, and how to get it.
    """
    missing = [extra for extra in extras if not has(extra)]
    if missing:
        raise SalvageError(lacking(what, missing))


def has(extra: str) -> bool:
    """Tell whether an extra is installed; nothing is imported."""
    return all(find_spec(module) is not None for module in EXTRAS[extra])


def lacking(what: str, extras: list[str]) -> str:
    """Return the sentence on what is missing."""
    named = f"the extra {extras[0]}" if len(extras) == 1 else f"the extras {', '.join(extras)}"
    return f"{what} needs {named}, not installed here; install with: pip install 'salvage[{','.join(extras)}]'"


def brings(module: str) -> str | None:
    """Return the extra that brings a module, None where none does."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)
