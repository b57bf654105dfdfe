"""What a checkpoint's files say without loading it: where they are, their size in memory, whether two are the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open

from salvage.errors import SalvageError


def folder_of(name: str | Path) -> Path:
    """Return the folder that holds a model's files; a name on the hub is downloaded.

    Raises
    ------
    SalvageError
        Where there is no such model, or it has no weights in safetensors.
    """
    path = Path(name)
    if not path.exists():
        try:
            path = Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors"]))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise SalvageError(f"model {str(name)!r} cannot be had: {str(error).splitlines()[0]}") from error
    if not weight_files(path):
        raise SalvageError(f"model {str(name)!r} has no weights in safetensors; save it with save_pretrained")
    return path


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: those of its index where there is one.

    Some repositories have the same weights a second time under another name.
    """
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    for index in folder.glob("model.safetensors.index.json"):
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(folder.glob("*.safetensors"))


def entries(folder: Path) -> int:
    """Return how many numbers a checkpoint's weights are."""
    return sum(prod(tensor.get_shape()) for _, tensor in _tensors(folder))


def weight_bytes(name: str | Path, kind: torch.dtype) -> int:
    """Return the bytes that a checkpoint's weights take in a data type."""
    return entries(folder_of(name)) * kind.itemsize


def saved(config: Any) -> torch.dtype:
    """Return the data type that a checkpoint was saved in, as its config says."""
    said = getattr(config, "dtype", None) or getattr(config.get_text_config(decoder=True), "dtype", None)
    kind = str(said or "float32").removeprefix("torch.")
    return getattr(torch, kind)  # type: ignore[no-any-return]


def cache_bytes(config: Any, kind: torch.dtype) -> int:
    """Return the bytes of one token in a model's KV cache."""
    config = config.get_text_config(decoder=True)  # of models that also see, the part that speaks
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * kind.itemsize)


def same_weights(one: Path, other: Path) -> bool:
    """Tell whether two checkpoints hold the same tensors under the same names, to the bit of the data type."""
    theirs = dict(_tensors(other))
    mine = dict(_tensors(one))
    if mine.keys() != theirs.keys():
        return False
    # the last layers first: fine-tuning leaves none of them alone, and one difference is enough
    for name in sorted(mine, reverse=True):
        a, b = mine[name], theirs[name]
        if a.get_shape() != b.get_shape() or not torch.equal(a[:], b[:]):
            return False
    return True


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield every tensor of a checkpoint by name, not read yet.

    Raises
    ------
    SalvageError
        Where a file is damaged, or cut short.
    """
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - no dict
                    yield name, tensors.get_slice(name)
        except (OSError, SafetensorError) as error:
            raise SalvageError(f"{file} is not a whole safetensors file ({error}); copy it again") from error
