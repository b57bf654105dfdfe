"""A pair of tiny untrained models: random weights decode varied tokens, which is all the engine's tests need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import scipy.special  # noqa: F401

# scipy.special stands here to be loaded before transformers: skops seeks the home of each of its functions through all
# loaded modules in order, and asking transformers' lazy ones takes 45 s.

# Two test processes share the cores, and these models' matrices are smaller than what it costs to share one out: with
# a thread on each core, torch waits ten times as long for its threads. Commands that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A name that is no folder is asked of the hub, five times with pauses: 23 s where there is no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the folders of a specialist and an ancestor of two families with one vocabulary."""
    from salvage.lab import ancestors

    return ancestors.untrained_pair(tmp_path_factory.mktemp("pair"))
