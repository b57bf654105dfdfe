"""The registered classifiers: no pickle, served by MLflow in a fresh process, and frank about what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.method.profiles import BEYOND_REACH, RETRY_SOLVABLE, STEERABLE_HARD
from salvage.serving.classifier_model import method_answers, refusal, regime_answers
from salvage.studies.classifiers import UNTUNED, Classifier
from salvage.studies.failures import bag_statistics, matrix
from salvage.tables.vocabulary import FEATURES
from served import environment, post, served

REGIMES = (RETRY_SOLVABLE, STEERABLE_HARD, BEYOND_REACH)
INPUTS = [*FEATURES, "failed_share"]
ROW = {"spread": 0.9, "concentration": 1.1, "logit_dispersion": -1.5, "failed_share": 0.25}
FROZEN = {"study": "methods", "inputs": INPUTS, "families": ["qwen3"], "fewest": 5, "accuracy": {"5": 0.7, "25": 0.9}}


def fitted(settings: dict[str, Any]) -> tuple[Classifier, dict[int, Classifier]]:
    rng = np.random.default_rng(0)
    x = rng.random((300, 4))
    regimes = Classifier.fit(x, (3 * x[:, 3]).astype(int), REGIMES, settings, 0)
    y = rng.integers(2, size=200)
    bags = rng.random((200, 25, 4)) + 0.3 * y[:, None, None]
    methods = {n: Classifier.fit(bag_statistics(bags[:, :n]), y, ("grpo", "sft"), settings, 0) for n in (5, 25)}
    return regimes, methods


def bag(n: int, checkpoint: str = "mine", family: str = "qwen3", shift: float = 0.3) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(n).random((n, 4)) + shift
    return [{**dict(zip(INPUTS, row.tolist(), strict=True)), "checkpoint": checkpoint, "family": family}
            for row in drawn]  # fmt: skip


def test_a_regime_is_answered_with_its_probability() -> None:
    regimes, _ = fitted(UNTUNED[2])
    rows = [{**ROW, "failed_share": share} for share in (0.05, 0.5, 0.95)]
    told = regime_answers(regimes, {"inputs": INPUTS}, pd.DataFrame(rows))
    assert [row["regime"] for row in told] == list(REGIMES)
    assert all(sum(row[name] for name in REGIMES) == pytest.approx(1) for row in told)


def test_each_checkpoint_is_a_bag_and_order_does_not_matter() -> None:
    _, methods = fitted(UNTUNED[0])
    rows = [*bag(30, "one"), *bag(7, "two", shift=0.0)]
    told = method_answers(methods, FROZEN, pd.DataFrame(rows))
    assert [(row["checkpoint"], row["n"], row["method"]) for row in told] == [("one", 30, "sft"), ("two", 7, "grpo")]
    assert [row["accuracy"] for row in told] == [0.9, 0.7], "that of bags of the size its classifier learnt from"
    x = matrix(pd.DataFrame(rows[:30]), INPUTS)
    assert told[0]["sft"] == pytest.approx(methods[25].proba(bag_statistics(x[None]))[0, 1])
    shuffled = pd.DataFrame(rows).sample(frac=1, random_state=0)
    again = method_answers(methods, FROZEN, shuffled)
    assert again[0]["sft"] == pytest.approx(told[0]["sft"])


def test_what_is_refused_is_said_in_the_answer() -> None:
    _, methods = fitted(UNTUNED[0])
    rows = [*bag(1, "alone"), *bag(9, "far", family="gemma"), *bag(9, "fine")]
    told = {row["checkpoint"]: row for row in method_answers(methods, FROZEN, pd.DataFrame(rows))}
    assert told["alone"]["refused"] == "1 failure: too few to tell a method by; give 5 or more"
    assert told["far"]["refused"] == "family 'gemma' was never seen; known are qwen3"
    for name in ("alone", "far"):
        assert told[name]["method"] is None and told[name]["sft"] is None and told[name]["accuracy"] is None
    assert told["fine"]["refused"] == "" and told["fine"]["method"] == "sft"
    assert "several families (a, b)" in refusal(FROZEN, 9, ["a", "b"])
    with pytest.raises(SalvageError, match="column 'family' is missing"):
        method_answers(methods, FROZEN, pd.DataFrame(rows).drop(columns="family"))


# ------------------------------------------------------------------ registered and served

REGISTER = """
import sys
sys.path[:0] = {tests!r}
from test_classifier_model import FROZEN, INPUTS, UNTUNED, fitted
from salvage.project import tracking
from salvage.serving import registry
with tracking.run("regimes"):
    frozen = {{"study": "regimes", "inputs": INPUTS}}
    registry.register_classifier(fitted(UNTUNED[2])[0], frozen, "card", {{"data": "x"}})
with tracking.run("methods"):
    registry.register_classifier(fitted(UNTUNED[1])[1], FROZEN, "card", {{"data": "x"}})
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with both classifiers registered: trees of XGBoost, and forests of scikit-learn."""
    folder = tmp_path_factory.mktemp("store")
    code = REGISTER.format(tests=[str(folder) for folder in Path(__file__).parents[:2]])
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(), check=True)
    return folder


@pytest.fixture(scope="module")
def ports(store: Path) -> Iterator[dict[str, int]]:
    with served(store, "salvage-regimes") as regimes, served(store, "salvage-methods") as methods:
        yield {"regimes": regimes, "methods": methods}


@pytest.mark.slow
def test_served_answers_are_the_classifiers(ports: dict[str, int]) -> None:
    regimes, methods = fitted(UNTUNED[2])[0], fitted(UNTUNED[1])[1]
    status, told = post(ports["regimes"], json.dumps({"dataframe_records": [ROW] * 3}))
    assert status == 200
    expected = regime_answers(regimes, {"inputs": INPUTS}, pd.DataFrame([ROW] * 3))
    assert [row["regime"] for row in told["predictions"]] == [row["regime"] for row in expected]
    np.testing.assert_allclose(told["predictions"][0][REGIMES[0]], expected[0][REGIMES[0]], rtol=1e-6)
    rows = [*bag(30), *bag(1, "alone")]
    status, told = post(ports["methods"], json.dumps({"dataframe_records": rows}))
    assert status == 200
    alone, mine = sorted(told["predictions"], key=lambda row: row["n"])
    assert mine["method"] == "sft" and mine["refused"] == "" and alone["refused"].startswith("1 failure")
    expected = method_answers(methods, FROZEN, pd.DataFrame(rows))
    np.testing.assert_allclose(mine["sft"], expected[1]["sft"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["NaN", '"0.5"', "null", "-1"])
def test_a_bad_value_is_answered_400_with_its_row_and_column(ports: dict[str, int], value: str) -> None:
    bad = json.dumps({**ROW, "failed_share": "@"}).replace('"@"', value)
    status, told = post(ports["regimes"], f'{{"dataframe_records": [{json.dumps(ROW)}, {bad}]}}')
    assert status == 400 and "row 1, column 'failed_share'" in told["message"]


@pytest.mark.slow
def test_a_missing_column_is_answered_400(ports: dict[str, int]) -> None:
    for study, rows in (("regimes", [ROW]), ("methods", bag(9))):
        for missing in rows[0]:
            some = [{name: value for name, value in row.items() if name != missing} for row in rows]
            status, told = post(ports[study], json.dumps({"dataframe_records": some}))
            assert status == 400 and missing in told["message"]


@pytest.mark.slow
def test_nothing_registered_is_a_pickle(store: Path) -> None:
    files = [path for path in (store / "mlruns").rglob("*") if path.is_file()]
    assert {"model.json", "model.skops", "classifier.json", "study.json"} <= {path.name for path in files}
    assert not [path for path in files if path.suffix in {".pkl", ".pickle", ".pt", ".bin", ".pyc", ".joblib"}]
    for path in files:
        assert path.read_bytes()[:2] not in (b"\x80\x04", b"\x80\x05"), path


@pytest.mark.slow
def test_a_version_has_its_card(store: Path) -> None:
    code = (
        "import mlflow\nmlflow.set_tracking_uri('sqlite:///mlflow.db')\nclient = mlflow.MlflowClient()\n"
        "for name in ('salvage-regimes', 'salvage-methods'):\n"
        "    version = client.get_model_version_by_alias(name, 'champion')\n"
        "    assert version.description == 'card' and version.tags['data'] == 'x'\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=store, env=environment(), check=True)
