"""How a cell is sampled where params.yaml says `auto`: as its specialist's generation config does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from salvage.engine.base import Sampling
from salvage.engine.opening import from_generation_config, settled
from salvage.errors import SalvageError
from salvage.project import settings
from salvage.project.settings import Cell, Settings

AUTO = dict.fromkeys(("temperature", "top_p", "top_k", "min_p"), "auto")
FITTED = (("max_tokens", 16), ("batch", 8), ("top_k_cov", 3), ("warmup", 1))


def told(folder: Path, config: Any, **sample: Any) -> tuple[Cell, Settings]:
    """Return a cell whose specialist has this generation config (None: none), and settings of how it is sampled."""
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "generation_config.json").write_text(text)
    loaded = settings.load(folder / "params.yaml")
    cell = Cell("m|t", str(folder), str(folder), "p.jsonl", "sft", 0, "own", own=FITTED)
    return cell, replace(loaded, cells=[cell], raw=loaded.raw | {"sample": loaded["sample"] | sample})


def sampling(cell: Cell, given: Settings) -> Sampling:
    return Sampling.of(settled(cell, given)["sample"])


def test_auto_is_what_the_generation_config_says_and_what_it_leaves_out_is_off(tmp_path: Path) -> None:
    config = {"temperature": 0.7, "top_p": 0.8, "top_k": 50, "do_sample": True, "eos_token_id": 1}
    assert sampling(*told(tmp_path, config, **AUTO)) == Sampling(0.7, 0.8, 50, 0.0)
    assert sampling(*told(tmp_path, config, top_p="auto", temperature=0.3)) == Sampling(0.3, 0.8)
    assert sampling(*told(tmp_path, {"min_p": 0.05, "top_k": -1}, **AUTO)) == Sampling(1.0, 1.0, 0, 0.05)
    (tmp_path / "generation_config.json").unlink()
    assert sampling(*told(tmp_path, None, **AUTO)) == Sampling(1.0)
    assert sampling(*told(tmp_path, None)) == Sampling(0.6)  # the built-in settings


def test_where_nothing_is_auto_the_generation_config_is_not_read(tmp_path: Path) -> None:
    cell, given = told(tmp_path, "{broken")
    assert settled(cell, given)["sample"]["temperature"] == 0.6
    assert from_generation_config(given) == {}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"temperature": 0.0}, "generation config: temperature is 0.0, but must be a finite number above 0"),
        ({"top_p": 1.5}, "top_p is 1.5, but must be above 0 and at most 1; correct it, or say a number under sample"),
        ({"top_k": "many"}, "generation config: .*'top_k': 'many'.* is not all numbers"),
        ("{broken", r"generation_config\.json cannot be read: "),
    ],
)
def test_a_generation_config_that_cannot_be_followed_is_named(tmp_path: Path, config: Any, sentence: str) -> None:
    with pytest.raises(SalvageError, match=sentence) as error:
        settled(*told(tmp_path, config, **AUTO))
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_it_is_said_what_was_taken_and_what_is_not_applied(tmp_path: Path) -> None:
    config = {"temperature": 0.7, "repetition_penalty": 1.05, "typical_p": 1.0}
    line = from_generation_config(told(tmp_path, config, **AUTO)[1])["m|t"]
    assert line.startswith("temperature 0.7, top_p 1.0, top_k 0, min_p 0.0 (auto: the specialist's generation config")
    assert "its repetition_penalty 1.05 is not applied" in line and "typical_p" not in line
