"""A policy by its file: the same answers as the policy itself, and a sentence where it is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.policies import Rule
from salvage.policies.fitted import Fitted
from salvage.serving import policy_uri
from salvage.tables.vocabulary import FEATURES


def test_a_file_is_the_policy_that_was_written(tmp_path: Path) -> None:
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(20, 3)), columns=FEATURES)
    fitted = Fitted("rule", Rule.fit(table), None, frozenset())
    (tmp_path / "policy.json").write_text(json.dumps(fitted.to_dict()))
    loaded = policy_uri.load(str(tmp_path / "policy.json"))
    assert loaded.version == fitted.version and (loaded.route(table) == fitted.route(table)).all()


def test_the_champion_has_one_name() -> None:
    registry = pytest.importorskip("salvage.serving.registry")
    assert policy_uri.CHAMPION == registry.CHAMPION


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"policy": "rule"}', '{"policy": "other", "fitted": {}}', "no"])
def test_another_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(SalvageError, match="policy"):
        policy_uri.load(str(tmp_path / "policy.json"))
    with pytest.raises(SalvageError, match=r"none.json cannot be read: No such file"):
        policy_uri.load(str(tmp_path / "none.json"))
