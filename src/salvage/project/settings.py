"""The settings, read once: built-in ones, and over them those of the params.yaml that lies here."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from salvage.errors import SalvageError
from salvage.project import params
from salvage.tables.names import file_stem

PARAMS = Path("params.yaml")
DATA = Path("data")
MODELS = DATA / "models"
CACHE = DATA / "cache"  # what can be made again at any time
LAB_PROBLEMS = "lab"
FITTED = {"max_tokens": "sample", "batch": "sample", "top_k_cov": "featurize", "warmup": "intervene"}  # a cell may say
NO_LAB: dict[str, Any] = {"lab": {"families": [], "seeds": {}, "ancestors": 0, "steps": {}}}
NO_LAB |= dict.fromkeys(("problems", "side_by_side", "rescue"), 0)  # what a profile has that says nothing of the lab


@dataclass(frozen=True)
class Cell:
    """One specialist on one problem set (method.md, "Units"): what is sampled, scored and steered together."""

    name: str  # model|task, as in a profiles file
    specialist: str
    ancestor: str
    problems: str
    method: str
    seed: int
    family: str
    engine: str = "auto"
    rollouts: str = ""  # a table of `import-rollouts`, where there are rollouts already
    own: tuple[tuple[str, int], ...] = ()  # settings of FITTED that are this pair's own, by name

    @property
    def file(self) -> str:
        """The cell's file name in every folder of tables."""
        return f"{file_stem(self.name)}.parquet"


@dataclass(frozen=True)
class LabModel:
    """One model of the lab: an ancestor (method `ancestor`) or a specialist made from one."""

    family: str
    method: str
    seed: int
    ancestor_seed: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.method}-{self.seed}"

    @property
    def folder(self) -> Path:
        return MODELS / self.name


@dataclass(frozen=True)
class Settings:
    """params.yaml as the stages see it: `raw` whole, and what is derived from it."""

    raw: dict[str, Any]
    seed: int
    profile: str
    lab: list[LabModel]
    cells: list[Cell]

    @property
    def profile_values(self) -> dict[str, Any]:
        return dict(self.raw["profiles"][self.profile])

    def of(self, cell: Cell) -> Settings:
        """Return the settings as a cell has them: its own over those of all.

        Raises
        ------
        SalvageError
            Where one is `auto` still: `salvage run` fits it to the pair and writes it down.
        """
        own: dict[str, Any] = {}
        for name, value in cell.own:
            own.setdefault(FITTED[name], {})[name] = value
        told = replace(self, raw=_over(self.raw, own)) if own else self
        for name, section in FITTED.items():
            if told.raw[section][name] == "auto":
                raise SalvageError(
                    f"params.yaml: {section}.{name} is auto, and {cell.name!r} was not looked at yet; start with "
                    "`salvage run`, which fits it, or write a number"
                )
        return told

    def __getitem__(self, section: str) -> dict[str, Any]:
        return dict(self.raw[section])

    @property
    def own(self) -> list[Cell]:
        """One's own pairs, in the order of `cells` in params.yaml."""
        return self.cells[len(self.cells) - len(self.raw["cells"]) :]


def load(path: str | Path = PARAMS) -> Settings:
    """Read the settings: those that are built in, where there is a params.yaml its own over them.

    Raises
    ------
    SalvageError
        Where the file is not YAML, the profile unknown, or a cell incomplete or named twice.
    """
    path = Path(path)
    built_in = resources.files("salvage.project").joinpath("template/params.yaml").read_text(encoding="utf-8")
    raw = _over(yaml.safe_load(built_in), params.read(path))
    if isinstance(raw["profiles"], dict):
        raw["profiles"] = {n: NO_LAB | v if isinstance(v, dict) else v for n, v in raw["profiles"].items()}
    raw = {"methods": [], "lab": None} | raw
    params.check(raw, path)
    profile = raw["profile"]
    if profile not in raw["profiles"]:
        raise SalvageError(f"{path}: profile {profile!r} is not one of {', '.join(raw['profiles'])}")
    lab = _lab_models(raw["profiles"][profile]["lab"], raw["methods"])
    cells = lab_cells(raw, profile)
    tasks = _tasks([str(entry.get("problems", "")) for entry in raw["cells"]])
    cells += [_own_cell(path, i, entry, tasks) for i, entry in enumerate(raw["cells"])]
    names = [cell.name for cell in cells]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SalvageError(f"{path}: cell {twice!r} stands twice; give each cell its own name")
    _refuse_shared_files(path, "cells", {cell.name: cell.file for cell in cells})
    _refuse_shared_files(path, "problem sets", {cell.problems: problem_file(cell.problems).name for cell in cells})
    return Settings(raw=raw, seed=int(raw["seed"]), profile=profile, lab=lab, cells=cells)


def _refuse_shared_files(path: Path, what: str, files: dict[str, str]) -> None:
    """Refuse names of one file where case does not count (macOS, Windows), and what only lacks its ending."""
    owner: dict[str, str] = {}
    for name, file in files.items():
        other = owner.setdefault(file.lower(), name)
        if other != name:
            raise SalvageError(f"{path}: {what} {other!r} and {name!r} would share the file {file}; rename one")


def _over(values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return values with one's own over them, section by section."""
    own = {
        name: value for name, value in own.items() if value is not None or name not in values
    }  # left empty: left out
    both = own | {name: value for name, value in values.items() if name not in own}  # errors list one's own first
    sections = [name for name in own if isinstance(values.get(name), dict) and isinstance(own[name], dict)]
    return both | {name: _over(values[name], own[name]) for name in sections}


def lab_cells(raw: dict[str, Any], profile: str) -> list[Cell]:
    """Return the lab's cells under a profile of params.yaml."""
    if profile not in raw["profiles"]:
        raise SalvageError(f"params.yaml: profile {profile!r} is not one of {', '.join(raw['profiles'])}; correct it")
    models = _lab_models(raw["profiles"][profile]["lab"], raw["methods"])
    engine = str(raw.get("engine", "transformers"))
    own = tuple((raw.get("lab") or {}).items())
    return [_lab_cell(model, engine, own) for model in models if model.method != "ancestor"]


def _lab_models(lab: dict[str, Any], methods: list[str]) -> list[LabModel]:
    models = []
    for family in lab["families"]:
        models += [LabModel(family, "ancestor", i, i) for i in range(lab["ancestors"])]
        for seed in range(lab["seeds"][family]):  # seeds take turns on the ancestors, so that method and ancestor part
            models += [LabModel(family, method, seed, seed % lab["ancestors"]) for method in methods]
    return models


def _lab_cell(model: LabModel, engine: str, own: tuple[tuple[str, int], ...]) -> Cell:
    ancestor = LabModel(model.family, "ancestor", model.ancestor_seed, model.ancestor_seed)
    return Cell(
        name=f"{model.name}|digits",
        specialist=str(model.folder),
        ancestor=str(ancestor.folder),
        problems=LAB_PROBLEMS,
        method=model.method,
        seed=model.seed,
        family=model.family,
        engine=engine,
        own=own,
    )


def _tasks(specs: list[str]) -> dict[str, str]:
    """Return what each problem set is called as a task: its file's stem, with folders where an earlier set has that.

    Options behind a question mark, such as a limit, are no part of the name.
    """
    tasks: dict[str, str] = {}
    for spec in specs:
        if spec in tasks:
            continue
        path = Path(spec.partition("?")[0])
        parts = (path.parent / path.stem).parts
        longer = ["/".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        tasks[spec] = next((task for task in longer if task not in tasks.values()), spec)
    return tasks


def _own_cell(path: Path, i: int, entry: dict[str, Any], tasks: dict[str, str]) -> Cell:
    ancestor = entry.get("ancestor") or adapter_base(str(entry.get("specialist") or ""))
    for key in ("name", "specialist", "ancestor", "problems"):
        if not (ancestor if key == "ancestor" else entry.get(key)):
            raise SalvageError(f"{path}: cells[{i}] has no {key!r}; a cell needs name, specialist, ancestor, problems")
    name = str(entry["name"])
    return Cell(
        name=name if "|" in name else f"{name}|{tasks[str(entry['problems'])]}",
        specialist=str(entry["specialist"]),
        ancestor=str(ancestor),
        problems=str(entry["problems"]),
        method=str(entry.get("method", "unknown")),
        seed=int(entry.get("seed", 0)),
        family=str(entry.get("family", "own")),
        engine=str(entry.get("engine", "auto")),
        rollouts=str(entry.get("rollouts", "")),
        own=tuple((name, entry[name]) for name in FITTED if entry.get(name) is not None),
    )


def adapter_base(specialist: str) -> str:
    """Return the base that an adapter was trained on, as its folder says; empty where it is none.

    Raises
    ------
    SalvageError
        Where the folder does not say.
    """
    path = Path(specialist) / "adapter_config.json"
    if not path.exists():
        return ""
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not isinstance(base, str) or not base:
        raise SalvageError(f"{path} does not name the model that it was trained on (base_model_name_or_path); add it")
    return base


def problem_file(spec: str) -> Path:
    """Return where the problems stage keeps a problem set, called as its JSON Lines file or as the spec itself."""
    return DATA / "problems" / f"{file_stem(spec.removesuffix('.jsonl') or spec)}.parquet"
