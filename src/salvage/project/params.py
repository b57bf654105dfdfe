"""What params.yaml may say: every key, its type and its range. What each one means stands in template/params.yaml."""

from __future__ import annotations

import difflib
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from salvage.errors import SalvageError
from salvage.tables.vocabulary import ANCHORS, CONTINUATIONS, PARTS

Count = Annotated[int, Field(ge=1)]
Some = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1)]
Engine = Literal["auto", "vllm", "transformers"]
WANTED = {  # by pydantic's name of a fault, where its own words are a programmer's
    "string_type": "a text (put it in quotes)",
    "string_too_short": "a text that is not empty",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
    "too_short": "a list that is not empty",
    "dict_type": "a table of settings",
    "model_type": "a table of settings",
}


class Section(BaseModel):
    """A table of settings: no key but those that it names, no value made of another type's."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Lab(Section):
    families: list[Literal["qwen3", "llama"]]
    seeds: dict[str, Count]
    ancestors: Some
    steps: dict[str, Count]

    @model_validator(mode="after")
    def _whole(self) -> Lab:
        if self.families and not self.ancestors:
            raise ValueError("ancestors is 0, but specialists are made from one")
        if missing := [family for family in self.families if family not in self.seeds]:
            raise ValueError(f"seeds has no number for {missing[0]}")
        return self


class Profile(Section):
    lab: Lab
    problems: Some
    attempts: Annotated[int, Field(ge=2)]  # the evaluation halves them
    retries: Annotated[int, Field(ge=2)]
    side_by_side: Some
    rescue: Some


class CellEntry(Section):
    name: Name
    specialist: Name
    ancestor: str = ""  # of an adapter, its base
    problems: Name
    method: Name = "unknown"
    seed: Some = 0
    family: Name = "own"
    engine: Engine = "auto"
    rollouts: str = ""
    max_tokens: Count | None = None  # these are the pair's own, as in Fitted
    batch: Count | None = None
    top_k_cov: Count | None = None
    warmup: Some | None = None


class Fitted(Section):
    """What a pair of models may have of its own, in place of what the sections say."""

    max_tokens: Count
    batch: Count
    top_k_cov: Count
    warmup: Some


class Vllm(Section):
    memory: Annotated[float, Field(gt=0, le=1)]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    tensor_parallel_size: Count
    max_model_len: Some


class Sample(Section):
    rollouts: Count
    temperature: Positive | Literal["auto"]
    top_p: Annotated[float, Field(gt=0, le=1)] | Literal["auto"]
    top_k: Some | Literal["auto"]
    min_p: Share | Literal["auto"]
    max_tokens: Count | Literal["auto"]
    batch: Count | Literal["auto"]


class Featurize(Section):
    top_k_cov: Count | Literal["auto"]
    window: Count
    chunk: Count
    part: Literal[tuple(PARTS)]  # type: ignore[valid-type]
    truncated: Literal["keep", "leave out"]


class Intervene(Section):
    alpha: Share
    anchor: Literal[tuple(ANCHORS)]  # type: ignore[valid-type]
    continuation: Literal[tuple(CONTINUATIONS)]  # type: ignore[valid-type]
    warmup: Some | Literal["auto"]
    quantile: Share
    local_temperatures: Annotated[list[Positive], Field(min_length=1)]
    dense_decode: Literal["sample", "argmax"]


class Evaluate(Section):
    policies: list[Name]
    folds: Annotated[int, Field(ge=2)]
    repeats: Count
    trials: Some
    resamples: Count
    permutations: Count


class Register(Section):
    policy: Name


class Rescue(Section):
    rollouts: Count
    arms: Annotated[list[Name], Field(min_length=1)]
    budgets: Annotated[list[Count], Field(min_length=1)]
    data: Annotated[list[Name], Field(min_length=1)]
    shown: Some
    verify_seconds: Positive


class Study(Section):
    data: Name
    profile: Name
    trials: Count


class Params(Section):
    seed: Some
    profile: Name
    profiles: dict[str, Profile]
    cells: list[CellEntry]
    allow_none_right: bool
    lab: Fitted | None
    methods: list[Literal["sft", "rft", "dpo", "grpo"]]
    engine: Engine
    vllm: Vllm
    sample: Sample
    featurize: Featurize
    intervene: Intervene
    evaluate: Evaluate
    registering: Register = Field(alias="register")  # a class of Python has a `register` of its own
    rescue: Rescue
    study: Study

    @model_validator(mode="after")
    def _steps(self) -> Params:
        for name, profile in self.profiles.items():
            models = [*profile.lab.families, *self.methods] if profile.lab.families else []
            if missing := [model for model in models if model not in profile.lab.steps]:
                raise ValueError(f"profiles.{name}.lab.steps has no number for {missing[0]}")
        return self


def check(values: dict[str, Any], path: Path) -> None:
    """Refuse settings that hold a key that is not known, lack one, or have a value of another type or out of range.

    Raises
    ------
    SalvageError
        Naming the file and the key of the first fault, and for a key that is not known the nearest one that is.
    """
    try:
        Params.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"]  # the likeliest reason of the rest
        raise SalvageError(f"{path}: {_told((unknown or faults)[0])}") from None


def _told(fault: Any) -> str:
    loc, auto = fault["loc"], ""
    if loc and loc[-1] in (
        "int",
        "constrained-int",
        "float",
        "constrained-float",
    ):  # pydantic's name of one side of `Count | Literal["auto"]`
        loc, auto = loc[:-1], ", or auto"
    where = _where(loc)
    if fault["type"] == "missing":
        return f"{where} is missing; add it"
    if fault["type"] == "extra_forbidden":
        known = _keys(loc[:-1])
        close = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
        return f"{where} is not known; {hint}"
    if fault["type"] == "value_error":
        return f"{where}{': ' if where else ''}{fault['ctx']['error']}; correct it"
    wanted = WANTED.get(fault["type"], fault["msg"].removeprefix("Input should ").removeprefix("be "))
    return f"{where} is {reprlib.repr(fault['input'])}, but must be {wanted}{auto}; correct it"


def _where(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _keys(parents: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known where a fault stands, from the schema."""
    schema = whole = Params.model_json_schema()
    for part in parents:
        inner = schema["items"] if isinstance(part, int) else schema.get("properties", {}).get(part)
        schema = inner or schema["additionalProperties"]
        schema = whole["$defs"][schema["$ref"].split("/")[-1]] if "$ref" in schema else schema
    return list(schema["properties"])


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would take the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is no text", key.start_mark)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


def read(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings; a file that is not there has none.

    Raises
    ------
    SalvageError
        Where it is not readable YAML, no table, or has a key twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SalvageError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SalvageError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise SalvageError(f"{path} is not a table of settings but {str(values)[:40]!r}; see `salvage new`")
    return values or {}
