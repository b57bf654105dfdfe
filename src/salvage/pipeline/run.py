"""The main job: params.yaml set, DVC's pipeline run under one MLflow run, a champion registered, the table shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salvage.engine.choice import chosen
from salvage.errors import SalvageError
from salvage.pipeline import dvc
from salvage.pipeline.own_pair import own_pair, with_pair
from salvage.project import settings
from salvage.project.settings import Settings
from salvage.tables.files import beside
from salvage.tables.locks import locked
from salvage.tables.shards import SHARDS

LOCK = SHARDS / ".run.lock"
BUSY = "another salvage run is at work in this folder, or the DVC of one that was killed; let it end, then run again"


def run(
    profile: str | None = None,
    specialist: str | None = None,
    ancestor: str | None = None,
    problems: str | None = None,
    engine: str | None = None,
    *,
    name: str | None = None,
    quiet: bool = False,
) -> None:
    """Run every stage that is not up to date, and end in a registered champion.

    Parameters
    ----------
    profile : str, optional
        A profile of params.yaml; None leaves what stands there.
    specialist, ancestor, problems : str, optional
        One's own pair and problem set, all three or none: profile `own`, and an entry in `cells`.
    engine : str, optional
        What runs the models, of the own pair where one is given, else of the lab: vllm, transformers or auto. None
        leaves what stands in params.yaml, and is auto for an own pair.
    name : str, optional
        What the own pair is called; its specialist's folder where none is given.
    """
    if engine:
        chosen(engine)  # a name that is not known changes nothing
    pair = own_pair(specialist, ancestor, problems, engine, name)
    _see_project(settings.PARAMS)
    import mlflow  # slow, as are the models' libraries in _checked: a mistake above need not wait for them

    from salvage.pipeline import results
    from salvage.project import tracking

    with locked(LOCK, BUSY) as held:
        with undone(settings.PARAMS):
            changed = override(profile or ("own" if pair else None), pair, None if pair else engine)
            known = _checked(changed, quiet=quiet)
        if not known.lab and not quiet:
            print("meanwhile, salvage report --partial tells what is there so far", flush=True)
        with tracking.run("main") as run_id:
            worked = dvc.repro(run_id, known, held, quiet=quiet)
            mlflow.set_tag("salvage.profile", known.profile)
            registered = results.ensure_registered(known)
            tracking.log_metrics(results.metrics(results.saved_rows()))
            tracking.log_pictures(results.REPORT)
    if not worked and not registered:
        print("nothing to do: all stages are up to date")
    print(closing(quiet=quiet))


def _checked(changed: list[str], *, quiet: bool) -> Settings:
    """See that all that a run needs is there, before it begins, and fit what is `auto`; return the settings."""
    known = settings.load()
    for name in {cell.engine for cell in known.cells}:
        chosen(name)
    if not known.cells:
        raise SalvageError(
            "there is no pair of models to run; give --specialist, --ancestor and --problems, or a profile with cells"
        )
    from salvage.pipeline import inputs
    from salvage.pipeline.preparing import prepare
    from salvage.project import tracking

    told = dvc.ready()
    tracking.connect()
    if not quiet:
        for line in filter(None, [told, f"params.yaml: set {', '.join(changed)}" if changed else ""]):
            print(line, flush=True)
    known = prepare(known, quiet=quiet)
    inputs.note(known)
    return known


@contextmanager
def undone(path: Path) -> Iterator[None]:
    """Give a file its content back where the block fails."""
    before = path.read_bytes()
    try:
        yield
    except BaseException:
        if path.read_bytes() != before:
            with beside(path) as part:
                part.write_bytes(before)
        raise


def closing(*, quiet: bool) -> str:
    """Return the last words: the story of the run, and where the rest is; the latter alone where `quiet`."""
    from salvage.pipeline import story

    figures = story.saved()
    return f"report: {figures.report}   runs: {figures.store}" if quiet else story.told(figures)


def _see_project(path: Path) -> None:
    if not path.exists():
        raise SalvageError(
            f"there is no {path} here, which a project has; run this in a project's folder, "
            "or make one: salvage new FOLDER"
        )


def override(
    profile: str | None, pair: dict[str, Any] | None, engine: str | None = None, path: Path = settings.PARAMS
) -> list[str]:
    """Set the profile, the own pair and the lab's engine in params.yaml, comments kept, and return what changed.

    A pair that is there already stays as it is, and so do all others.
    """
    _see_project(path)
    known = settings.load(path).raw  # what is left out has the built-in value
    if profile is not None and profile not in known["profiles"]:
        raise SalvageError(
            f"{path}: profile {profile!r} is not one of {', '.join(known['profiles'])}; correct --profile"
        )
    wanted: dict[str, Any] = {name: value for name, value in (("profile", profile), ("engine", engine)) if value}
    wanted = {name: value for name, value in wanted.items() if value != known[name]}
    changed = [f"{name} = {value}" for name, value in wanted.items()]
    cells = with_pair(known["cells"], pair, path) if pair else known["cells"]
    if cells != known["cells"]:
        wanted["cells"] = cells
        new = [cell for cell in cells if cell not in known["cells"]]
        changed.append(f"cells: {new[0]['name']}")
    if changed:
        _edit(path, wanted)
    return changed


def _edit(path: Path, wanted: dict[str, Any]) -> None:
    """Set values in a YAML file, its comments kept; of a list, the entries that differ."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedSeq

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    values = editor.load(path.read_text(encoding="utf-8")) or {}
    for name, value in wanted.items():
        old = values.get(name)
        if isinstance(old, CommentedSeq):  # in place, or the comments around it would go
            for i, entry in enumerate(value):
                if i == len(old):
                    old.append(entry)
                else:
                    old[i].update(entry)
            old.fa.set_block_style()
        else:
            values[name] = value
    with beside(path) as part, part.open("w", encoding="utf-8") as file:
        editor.dump(values, file)
