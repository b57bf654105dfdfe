"""The tables: columns, types, checks; Parquet in and out.

Every arrow of the pipeline is one of these tables. A table is checked when it is written and when it is read, so that
a wrong row is named where it enters and not ten stages later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow
import pyarrow.parquet as parquet

from salvage.errors import SalvageError
from salvage.tables import parquet_tables
from salvage.tables.files import beside
from salvage.tables.vocabulary import ANCHORS, CONTINUATIONS, CONTROLS, FEATURES, OPERATORS, SIGNALS

_rate = pa.Check.in_range(0, 1)
_finite = pa.Check(lambda s: s.abs() < float("inf"), error="must be finite")
_count = pa.Check.ge(0)


def _table(columns: dict[str, pa.Column], key: list[str]) -> pa.DataFrameSchema:
    return pa.DataFrameSchema(columns, strict=True, coerce=True, ordered=True, unique=key)


PROBLEMS = _table(
    {
        "problem_id": pa.Column(str),
        "task": pa.Column(str),
        "prompt": pa.Column(str, pa.Check.str_length(min_value=1)),
        "answer": pa.Column(str),
        "verifier": pa.Column(str),
        "metadata": pa.Column(str),  # JSON that the verifier may need (reasoning-gym's entry)
        # JSON of a chat's messages, tools and template keywords, empty where the prompt is plain; `prompt` is then what
        # a person reads. Only a set with a chat in it has the column.
        "messages": pa.Column(str, required=False),
    },
    key=["problem_id"],
)

ROLLOUTS = _table(
    {
        "cell": pa.Column(str),
        "problem_id": pa.Column(str),
        "rollout": pa.Column("int32", _count),
        "tokens": pa.Column(object),  # list of int32 token ids, without the end token's padding
        "text": pa.Column(str),
        "correct": pa.Column(bool),  # what has no verdict is no rollout (pipeline/verdicts.py)
        "n_tokens": pa.Column("int32", pa.Check.ge(1)),
        "seed": pa.Column("int64"),
        "truncated": pa.Column(bool, required=False),  # met max_tokens before an end; not there where it is not known
    },
    key=["cell", "problem_id", "rollout"],
)

SIGNAL_ROWS = _table(
    {
        "cell": pa.Column(str),
        "problem_id": pa.Column(str),
        "rollout": pa.Column("int32", _count),
        **{name: pa.Column(object) for name in SIGNALS},  # one list of float32 a rollout, one entry a token
    },
    key=["cell", "problem_id", "rollout"],
)

FEATURE_ROWS = _table(
    {
        "cell": pa.Column(str),
        "problem_id": pa.Column(str),
        "rollout": pa.Column("int32", _count),
        "junction": pa.Column("int32", _count),
        **{name: pa.Column("float64", _finite) for name in FEATURES},
        "n_tokens": pa.Column("int32", pa.Check.ge(1)),
        "entropy": pa.Column("float64", _finite),  # mean over the rollout's tokens, nats
        "kl": pa.Column("float64", _finite),  # mean, nats
        "delta_path": pa.Column("float64", _finite),  # mean
        "g_cov": pa.Column("float64", _finite),  # mean
        "j_max": pa.Column("float64", _finite),
        "part_start": pa.Column(
            "int32", _count, required=False
        ),  # of the part of the rollout that all but junction and
        "part_end": pa.Column("int32", pa.Check.ge(1), required=False),  # n_tokens are of, where that is not the whole
    },
    key=["cell", "problem_id", "rollout"],
)

ATTEMPTS = _table(
    {
        "cell": pa.Column(str),
        "problem_id": pa.Column(str),
        "operator": pa.Column(str, pa.Check.isin([*OPERATORS, *CONTROLS])),
        "anchor": pa.Column(str, pa.Check.isin(ANCHORS)),
        "continuation": pa.Column(str, pa.Check.isin(CONTINUATIONS)),
        "attempt": pa.Column("int32", _count),
        "correct": pa.Column(bool),
        "n_tokens": pa.Column("int32", _count),  # decoded by the specialist
        "n_ancestor_tokens": pa.Column("int32", _count),  # decoded by the ancestor
        "n_prefill": pa.Column("int32", _count),  # prompt and replayed tokens, both models together
        "position": pa.Column("int32", pa.Check.ge(-1)),  # where the operator acted; -1: it did not act
        "truncated": pa.Column(bool, required=False),  # as in ROLLOUTS
    },
    key=["cell", "problem_id", "operator", "anchor", "continuation", "attempt"],
)

PROFILES = _table(
    {
        **{name: pa.Column(str, pa.Check.str_length(min_value=1)) for name in ("cell", "model", "task", "problem_id")},
        "n_failed_rollouts": pa.Column("int64", pa.Check.ge(1)),
        **{name: pa.Column("float64", _finite) for name in FEATURES},
        **{name: pa.Column("float64", _rate) for name in OPERATORS},
    },
    key=["cell", "problem_id"],
)

FACT_ROWS = _table(  # what else a deployment knows of a failure; one row each, as in the profiles
    {
        "cell": pa.Column(str),
        "problem_id": pa.Column(str),
        "failed_share": pa.Column("float64", _rate),  # of the problem's rollouts
        "n_tokens": pa.Column("float64", pa.Check.ge(1)),  # mean over the failed rollouts, as all that follow
        "entropy": pa.Column("float64", _finite),  # nats
        "kl": pa.Column("float64", _finite),  # nats
        "junction": pa.Column("float64", _rate),  # where it lies: 0 the first token, 1 the end
        "agreement": pa.Column("float64", _rate),  # share of them that give the commonest final answer
    },
    key=["cell", "problem_id"],
)

RESCUES = _table(  # what became of each problem in the closed loop, under each arm and budget
    {
        "cell": pa.Column(str),
        "problem_id": pa.Column(str),
        "arm": pa.Column(str),
        "budget": pa.Column("int32", pa.Check.ge(1)),  # in retries' worth of model-tokens
        "status": pa.Column(str, pa.Check.isin(["solved", "stopped", "spent", "unverified"])),
        "operator": pa.Column(str),  # what solved it; empty where nothing did
        "attempts": pa.Column("int32", pa.Check.ge(1)),
        "model_tokens": pa.Column("int64", _count),
        "scored_tokens": pa.Column("int64", _count),
    },
    key=["cell", "problem_id", "arm", "budget"],
)

KINDS = {  # by what a table of each is called, those with the more columns first
    "rollouts": ROLLOUTS,
    "features": FEATURE_ROWS,
    "signals": SIGNAL_ROWS,
    "attempts": ATTEMPTS,
    "profiles": PROFILES,
    "facts": FACT_ROWS,
    "rescue": RESCUES,
    "problems": PROBLEMS,
}


def check(table: pd.DataFrame, schema: pa.DataFrameSchema, where: str | Path) -> pd.DataFrame:
    """Return the table with the schema's columns in order and types, or say what is wrong.

    Parameters
    ----------
    table : DataFrame
        Any table; columns that the schema does not know are dropped.
    schema : DataFrameSchema
        One of this module's schemas.
    where : str or Path
        What to call the table in an error, normally its file.

    Raises
    ------
    SalvageError
        Naming the table, the row (0 is the first) and the column of the first offence.
    """
    needed = _needed(schema)
    missing = [name for name in needed if name not in table.columns]
    if missing:
        told = f"{where}: column {missing[0]!r} is missing; it needs the columns {', '.join(needed)}"
        kind = next((name for name, other in KINDS.items() if set(_needed(other)) <= set(table.columns)), "")
        raise SalvageError(f"{told}; it seems to be the table of {kind}" if kind else told)
    columns = [name for name in schema.columns if name in table.columns]
    _refuse_fractions(table, schema, where)
    try:
        return schema.validate(table[columns].reset_index(drop=True))
    except pa.errors.SchemaErrors as errors:  # pandera's plural: what coercion finds
        raise SalvageError(f"{where}: {_first_offence(errors.schema_errors[0])}") from None
    except pa.errors.SchemaError as error:
        raise SalvageError(f"{where}: {_first_offence(error)}") from None


def _needed(schema: pa.DataFrameSchema) -> list[str]:
    return [name for name, column in schema.columns.items() if column.required]


def _refuse_fractions(table: pd.DataFrame, schema: pa.DataFrameSchema, where: str | Path) -> None:
    # coercion to an integer would cut 3.7 down to 3 and wrap 1e30 round in silence
    for name, column in schema.columns.items():
        kind = str(column.dtype)
        if name not in table.columns:
            continue
        if kind.startswith("int") and pd.api.types.is_float_dtype(table[name]):
            values = table[name].to_numpy("float64", na_value=np.nan)
            with np.errstate(invalid="ignore"):
                bad = np.isfinite(values) & (values.astype(kind) != values)  # what is not finite, coercion names
            if bad.any():
                row = int(bad.argmax())
                told = f"{where}: row {row}, column {name!r}: {values[row].item()!r} is not allowed"
                raise SalvageError(f"{told} (expected a whole number, {kind}); correct or drop that row")


def _first_offence(error: Any) -> str:
    column = getattr(error.schema, "name", None)
    cases = error.failure_cases
    if column is None:  # the table's own check: rows that repeat the key
        rows = sorted({int(i) for i in cases["index"]}) if isinstance(cases, pd.DataFrame) else []
        keys = ", ".join(error.schema.unique or [])
        return f"rows {rows[:2]} have the same {keys}; each may stand once"
    if isinstance(cases, pd.DataFrame) and len(cases) and pd.notna(cases["index"].iloc[0]):
        value, row = cases["failure_case"].iloc[0], int(cases["index"].iloc[0])
        value = value.item() if hasattr(value, "item") else value
        return f"row {row}, column {column!r}: {value!r} is not allowed ({_rule(error)}); correct or drop that row"
    return f"column {column!r} has the wrong type ({_rule(error)}); correct it"


def _rule(error: Any) -> str:
    told = getattr(error.check, "error", None) or str(error.check)
    return str(told).replace("coerce_dtype", "expected type ").replace("not_nullable", "a value is required")


def write(table: pd.DataFrame, schema: pa.DataFrameSchema, path: str | Path, fingerprint: str = "") -> None:
    """Check the table and write it as Parquet, beside and then renamed, so that no half file is ever seen.

    The same table gives the same bytes: rows keep their order, no index, no pandas metadata, one writer's settings.

    Parameters
    ----------
    fingerprint : str, optional
        What the table was made from (see `salvage.tables.shards`), kept in the file's metadata.
    """
    path = Path(path)
    data = arrow.Table.from_pandas(check(table, schema, path), preserve_index=False)
    data = data.replace_schema_metadata({"salvage.fingerprint": fingerprint})
    with beside(path) as part:
        parquet.write_table(data, part, compression="zstd", compression_level=9)


def read(path: str | Path, schema: pa.DataFrameSchema) -> pd.DataFrame:
    """Read a table from a Parquet file, or from every Parquet file of a folder in name order, and check it."""
    texts = [name for name, column in schema.columns.items() if str(column.dtype).startswith("str")]
    tables = [check(parquet_tables.read(file, texts), schema, file) for file in parquet_tables.files(Path(path))]
    return pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]


def truncated(path: str | Path) -> tuple[int, int] | None:
    """Return how many rows of a table, or of a folder of them, are truncated, of how many; None where none says it."""
    path = Path(path)
    found = []
    for file in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        try:
            found.append(parquet.read_table(file, columns=["truncated"])["truncated"].to_numpy())
        except (OSError, arrow.ArrowInvalid):  # there is no such column, or no table, which who reads it whole will say
            continue
    return (int(sum(rows.sum() for rows in found)), sum(map(len, found))) if found else None


def fingerprint(path: str | Path) -> str | None:
    """Return the fingerprint that `write` left in a Parquet file, or None where the file or the mark is missing."""
    try:
        metadata = parquet.read_schema(path).metadata or {}
    except (OSError, arrow.ArrowInvalid):
        return None
    mark = metadata.get(b"salvage.fingerprint")
    return mark.decode() if mark else None
