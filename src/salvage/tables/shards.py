"""Long stages keep what they have done: a table is made in shards, and a second start goes on where the first ended.

A shard is always the same rows in the same batches, so that an interrupted run and an undisturbed one give the same
bytes. Shards and tables carry a fingerprint of everything they were made from; a stale one is never taken.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import pandas as pd
import pandera.pandas as pa

from salvage.tables import schema
from salvage.tables.locks import locked

SHARDS = Path("data/shards")
SOURCE = Path(__file__).parents[1]  # the package


def fingerprint(*parts: Any, files: list[Path] | None = None, code: list[str] | None = None) -> str:
    """Hash parameters (anything JSON takes), files or folders by their content, and modules of this package.

    A folder is hashed file by file; a name that is neither (a model on a hub) by itself and its revision.
    """
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode())
    for path in [*(files or []), *(SOURCE / name for name in code or [])]:
        inside = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        for file in inside if path.is_dir() else [path]:
            digest.update((file.name if file.exists() else _on_hub(str(path))).encode())
            if file.exists():
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:32]


def _on_hub(name: str) -> str:
    """Return a hub name whole, since two owners may have models of one name, with the revision that is here of it."""
    if find_spec("huggingface_hub") is None:
        return name
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(name, file) for file in ("config.json", "adapter_config.json")]
    except HFValidationError:  # a path to nothing
        return name
    here = next((Path(file) for file in found if isinstance(file, str)), None)  # .../snapshots/REVISION/config.json
    return f"{name}@{here.parent.name}" if here else name


def folder_once(folder: Path, mark: str, make: Callable[[Path], None]) -> bool:
    """Make a folder unless it is there with this fingerprint; tell whether there was work to do.

    It is made beside and then renamed, so that it is whole or not there.
    """
    label = "salvage.json"
    with _alone(folder):
        if (folder / label).exists() and json.loads((folder / label).read_text())["fingerprint"] == mark:
            return False
        beside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        make(beside)
        (beside / label).write_text(json.dumps({"fingerprint": mark}) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)
        return True


def _alone(path: Path) -> AbstractContextManager[int]:
    """Refuse a second writer of a table or folder while the first lives."""
    lock = SHARDS / path.parent.name / f".{path.name}.lock"
    return locked(lock, f"{path} is being made by another salvage; let it end, then start again")


def build(
    path: Path, table: pa.DataFrameSchema, mark: str, pieces: list[Any], make: Callable[[Any], pd.DataFrame]
) -> bool:
    """Write a table piece by piece, unless it is there with this fingerprint; tell whether there was work to do.

    Parameters
    ----------
    path : Path
        The table's file.
    table : DataFrameSchema
        What its rows look like.
    mark : str
        Fingerprint of everything the table depends on.
    pieces : list
        What each call of `make` gets, one shard each.
    """
    with _alone(path):
        if schema.fingerprint(path) == mark:
            return False
        folder = SHARDS / path.parent.name / path.stem / mark
        ends = list(accumulate(map(len, pieces)))  # in the name, so that one of pieces cut otherwise is not taken
        files = [folder / f"{i:05d}-{end:07d}.parquet" for i, end in enumerate(ends)]
        for shard, piece in zip(files, pieces, strict=True):
            if not shard.exists():
                schema.write(make(piece), table, shard, mark)
        tables = [schema.read(shard, table) for shard in files]
        whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(table.columns))
        schema.write(whole, table, path, mark)
        shutil.rmtree(folder.parent, ignore_errors=True)
        return True


def so_far(path: Path, table: pa.DataFrameSchema) -> pd.DataFrame | None:
    """Return what there is of a table that may be in the making: its newest shards, else the table, else None."""
    folders = sorted((SHARDS / path.parent.name / path.stem).glob("*/"), key=lambda folder: folder.stat().st_mtime)
    shards = sorted(folders[-1].glob("*.parquet")) if folders else []
    if shards:
        return pd.concat([schema.read(shard, table) for shard in shards], ignore_index=True)
    return schema.read(path, table) if path.exists() else None
