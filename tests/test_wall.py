"""Whoever has a profiles file routes on a laptop: signals to evaluation import no model or tracking library."""

import subprocess
import sys

import pytest

FAR_SIDE = {"torch", "mlflow", "transformers", "optuna", "dvc", "matplotlib"}


@pytest.mark.parametrize(
    "modules",
    [("signals", "features"), ("profiles", "profile_files", "routing", "evaluation"), ("traces", "answers")],
)
def test_the_core_imports_no_heavy_library(modules):
    code = f"import sys, {', '.join(f'salvage.{name}' for name in modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not FAR_SIDE & set(done.stdout.split())
