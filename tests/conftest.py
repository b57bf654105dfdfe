"""A pair of tiny untrained models: random weights decode varied tokens, which is all the engine's tests need."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a specialist and an ancestor of two families with one vocabulary."""
    import torch

    from salvage.lab import ancestors

    folders = []
    for seed, family in enumerate(("qwen3", "llama")):
        torch.manual_seed(seed)
        model = ancestors.blank(family)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)  # sharper than at initialisation, so that argmax and mixes differ
        folders.append(tmp_path_factory.mktemp(family))
        ancestors.save(model, folders[-1])
    return folders[0], folders[1]
