"""A project for one's own models, laid down in a folder: what `mlflow run .` and `dvc repro` need, without the lab."""

from __future__ import annotations

import subprocess
from importlib import resources
from pathlib import Path

from salvage.errors import SalvageError
from salvage.tables.files import write_text

HIDDEN = {"gitignore": ".gitignore", "dvcignore": ".dvcignore"}  # packages leave out files that begin with a dot
NO_GIT = "    no_scm = true\n"


def lay_down(folder: Path) -> list[Path]:
    """Write the project's files and return them.

    Raises
    ------
    SalvageError
        Where one of them is there already: nothing is written then.
    """
    template = resources.files("salvage.project").joinpath("template")
    texts = {HIDDEN.get(file.name, file.name): file.read_text(encoding="utf-8") for file in template.iterdir()}
    texts["data/inputs.json"] = "{}\n"  # `salvage run` notes there what the cells are made from
    texts[".dvc/config"] = f"[core]\n    analytics = false\n{'' if _is_top_of_git(folder) else NO_GIT}"
    files = {folder / name: text for name, text in sorted(texts.items())}
    there = [path for path in files if path.exists()]
    if there:
        raise SalvageError(f"{there[0]} is there already; name a folder without a project in it")
    for path, text in files.items():
        write_text(path, text)
    return list(files)


def _is_top_of_git(folder: Path) -> bool:
    """Tell whether git's own folder is there, since DVC looks for it beside its own."""
    asked = ["git", "-C", str(folder), "rev-parse", "--show-prefix"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:  # no git
        return False
    return done.returncode == 0 and not done.stdout.strip()
