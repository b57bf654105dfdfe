"""The gate before the champion, and every policy as a registered router."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.evaluation.gate import judge
from salvage.method.facts import with_facts
from salvage.method.profiles import Tallies, tally
from salvage.pipeline import results
from salvage.policies.fitted import Fitted
from salvage.policies.policy import pick
from salvage.project import settings, tracking
from salvage.serving import registry
from salvage.serving.answers import answer_fitted
from salvage.tables import schema
from salvage.tables.vocabulary import FACTS, FEATURES, OPERATORS
from worlds import planted

ROOT = Path(__file__).parents[2]


def tables(n: int = 240, *, seed: int = 0, signal: float = 0.4) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return profiles, attempts and facts; dense_steer rescues more in one cell, sparse_steer in the other."""
    truth = np.full((n, 5), 0.2)
    truth[::2, OPERATORS.index("dense_steer")] += signal
    truth[1::2, OPERATORS.index("sparse_steer")] += signal
    profiles, attempts = planted(truth, cells=2, seed=seed)
    facts = profiles[["cell", "problem_id"]].assign(**dict.fromkeys(FACTS, 0.5)).assign(n_tokens=9.0)
    return profiles, attempts, facts


def learnt(n: int = 240, **chosen: float) -> tuple[pd.DataFrame, Tallies]:
    profiles, attempts, facts = tables(n, **chosen)  # type: ignore[arg-type]
    return with_facts(profiles, facts), tally(profiles, attempts)[0]


@pytest.mark.parametrize("policy", ["rule", "fixed", "random", "calibrated", "learned", "portfolio"])
def test_every_policy_survives_being_frozen(policy: str) -> None:
    failures, tallies = learnt()
    fitted = Fitted.fit(policy, failures, tallies, OPERATORS)
    frozen = json.loads(json.dumps(fitted.to_dict(), allow_nan=False))
    again = Fitted.from_dict(frozen)
    assert again.route(failures).tolist() == fitted.route(failures).tolist()
    assert (
        again.to_dict()["version"]
        == frozen["version"]
        == Fitted.fit(policy, failures, tallies, OPERATORS).to_dict()["version"]
    )
    told = pd.DataFrame(answer_fitted(again, failures, "here"))
    assert set(told["operator"]) <= set(OPERATORS) and set(told["policy"]) == {policy}
    unseen = failures[FEATURES].head(3)  # neither cell nor facts
    assert len(answer_fitted(again, unseen, "here")["operator"]) == 3
    if policy in ("calibrated", "learned", "portfolio"):
        assert (told["expected_low"] <= told["expected"] + 1e-9).all()
        assert (told["expected"] <= told["expected_high"] + 1e-9).all()
        assert fitted.policy is not None
        assert told["operator"].tolist() != pick(np.zeros((240, 5)), OPERATORS).tolist()


def test_a_bad_fact_is_named_by_row_and_column() -> None:
    failures, tallies = learnt()
    fitted = Fitted.fit("calibrated", failures, tallies, OPERATORS)
    rows = failures.head(3).astype({"entropy": object})
    rows.loc[1, "entropy"] = "abc"
    with pytest.raises(SalvageError, match="row 1, column 'entropy': 'abc' is not a number"):
        answer_fitted(fitted, rows, "request")


def test_the_gate_opens_for_a_gain_and_only_then() -> None:
    failures, tallies = learnt()
    rule = Fitted.fit("rule", failures, tallies, OPERATORS)
    better = judge("calibrated", rule, failures, tallies, seed=0, resamples=500)
    assert better.better and better.low > 0.1 and "both fitted" in better.how
    same = judge("rule", rule, failures, tallies, seed=0, resamples=500)
    assert not same.better and same.difference == same.low == same.high == 0
    worse = judge(
        "rule", Fitted.fit("calibrated", failures, tallies, OPERATORS), failures, tallies, seed=0, resamples=500
    )
    assert not worse.better and worse.high < 0
    no_signal = judge("calibrated", rule, *learnt(signal=0.0), seed=0, resamples=500)
    assert not no_signal.better


def test_a_champion_is_scored_as_it_is_where_it_has_not_seen_the_problems() -> None:
    failures, tallies = learnt()
    half = np.arange(240) < 120
    old = Fitted.fit("calibrated", failures[half], tallies.take(half), OPERATORS)
    verdict = judge("calibrated", old, failures, tallies, seed=0, resamples=200)
    assert verdict.how == "the champion as registered" and verdict.failures == 120


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> settings.Settings:
    """Return the settings of a project with planted tables and a tracking store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    for path, table, kind in zip(
        ("profiles", "attempts", "facts"), tables(), (schema.PROFILES, schema.ATTEMPTS, schema.FACT_ROWS), strict=True
    ):
        schema.write(table, kind, tmp_path / "data" / path / "a.parquet")
    return settings.load()


def test_registering_promotes_what_is_better_and_keeps_the_rest_as_challengers(project: settings.Settings) -> None:
    client = mlflow.MlflowClient

    def registered(policy: str, **chosen: bool) -> str:
        with tracking.run("register"):
            return results.register(project, policy, **chosen)

    assert "rule is version 1 of salvage-router, champion: there was none before it" in registered("")
    frozen = json.loads(results.REGISTERED.read_text())
    assert frozen["policy"] == "rule" and frozen["version"] in registry.versions()
    assert "version 2 of salvage-router, challenger" in registered("rule")
    assert "calibrated is version 3 of salvage-router, champion: against the champion (rule) +" in registered(
        "calibrated"
    )
    told = registered("rule")
    assert "challenger" in told and "No gain with an interval above zero" in told
    version = client().get_model_version_by_alias("salvage-router", "challenger")
    assert int(version.version) == 4 and version.tags["gate.better"] == "False" and version.tags["forced"] == "False"
    assert "champion: forced, though" in registered("random", force=True)
    version = client().get_model_version_by_alias("salvage-router", "champion")
    assert version.tags["forced"] == "True" and version.tags["policy"] == "random"
    assert json.loads(results.REGISTERED.read_text()) == frozen  # only the pipeline's own policy is written there
    assert not results.ensure_registered(project)


@pytest.mark.parametrize("policy", ["learned", "portfolio"])
def test_a_registered_policy_answers_as_it_did(project: settings.Settings, policy: str) -> None:
    with tracking.run("register"):
        results.register(project, policy)
    model = mlflow.pyfunc.load_model(registry.CHAMPION)
    rows = learnt()[0].head(5)[["cell", "n_failed_rollouts", *FEATURES, *FACTS]]
    fitted = registry.load(registry.CHAMPION)
    expected = pd.DataFrame(answer_fitted(fitted, rows, "here")).to_dict("records")
    assert model.predict(rows) == expected
    names = {path.suffix for path in Path("mlruns").rglob("*")}
    assert not names & {".pkl", ".pickle", ".cloudpickle", ".bin"}
