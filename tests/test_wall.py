"""Whoever has a profiles file routes on a laptop: method to evaluation import no model or tracking library."""

import subprocess
import sys

import pytest

FAR_SIDE = {"torch", "mlflow", "transformers", "optuna", "dvc", "matplotlib", "sklearn", "xgboost"}
TABLES = {"pandera", "typer", "rich", "yaml"}  # somebody's training code has no use for them (pyarrow is pandas' own)
CORE = [
    *(f"salvage.method.{name}" for name in ("signals", "features", "operators", "profiles", "facts", "traces")),
    *(f"salvage.policies.{name}" for name in ("rule", "policy", "fitted", "calibrated", "learned", "portfolio")),
    *(f"salvage.evaluation.{name}" for name in ("protocols", "budgets", "null", "resampling", "gate", "rows")),
    "salvage.tables.profile_files",
    "salvage.serving.answers",
]


def imported(*modules: str) -> set[str]:
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_core_imports_no_heavy_library() -> None:
    assert not FAR_SIDE & imported(*CORE)


@pytest.mark.parametrize("room", ["method", "policies", "rescue"])
def test_a_room_hands_on_its_names_without_what_tables_need(room: str) -> None:
    assert not (FAR_SIDE | TABLES) & imported(f"salvage.{room}")


def test_the_public_names_are_there() -> None:
    from salvage.method import regimes, token_signals, trajectory_features
    from salvage.policies import Rule, route_batch
    from salvage.rescue import Budget, pair, rescue

    for name in (regimes, token_signals, trajectory_features, Rule, route_batch, Budget, pair, rescue):
        assert name.__doc__
    with pytest.raises(AttributeError, match="nothing"):
        from salvage import rescue as room

        _ = room.nothing
