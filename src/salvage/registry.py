"""Registers a fitted policy as `salvage-router`, champion or challenger, and reads a registered one back."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

import salvage
from salvage.errors import SalvageError
from salvage.routing import Fitted
from salvage.schema import FACTS, FEATURES

NAME = "salvage-router"
CHAMPION = f"models:/{NAME}@champion"
EXAMPLE = {"spread": 0.16, "concentration": 2.1, "logit_dispersion": -0.86, "cell": "demo"}
# The features are declared as Any, not as double: for a double MLflow converts the column before the model sees it,
# takes the text "1.5", and names no row when it refuses. The model checks them itself (answers.numbers).
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            *(ColSpec(AnyType(), name) for name in FEATURES),
            *(ColSpec(AnyType(), name, required=False) for name in ("cell", "n_failed_rollouts", *FACTS)),
        ],
    ),
    outputs=Schema(
        [
            ColSpec(DataType.string, "operator"),
            *(ColSpec(DataType.double, name) for name in (*(f"z_{name}" for name in FEATURES), "margin")),
            *(ColSpec(DataType.string, name) for name in ("policy", "policy_version")),
            *(ColSpec(AnyType(), name) for name in ("expected", "expected_low", "expected_high")),
            ColSpec(AnyType(), "plan", required=False),
        ]
    ),
)


def register(fitted: Fitted, alias: str, tags: dict[str, Any] | None = None) -> int:
    """Log a fitted policy to the open run, register it and give it an alias.

    Parameters
    ----------
    fitted : Fitted
    alias : str
        `champion` or `challenger`.
    tags : dict, optional
        What it was fitted on and what the gate said, for the model version.

    Returns
    -------
    int
        The version.
    """
    package = Path(salvage.__file__).parent
    frozen = fitted.to_dict()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on type hints, which would cost us our own refusals
        logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
        artifact = Path(folder) / "policy.json"
        artifact.write_text(json.dumps(frozen) + "\n")
        model = mlflow.pyfunc.log_model(
            name=NAME,
            python_model=str(package / "router_model.py"),
            artifacts={"policy": str(artifact)},
            code_paths=[str(package)],
            signature=SIGNATURE,
            input_example=pd.DataFrame([EXAMPLE]),
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in _needs()],
            metadata={"features": "double, finite, required", "answer": "one row a failure"},
        )
    client = mlflow.MlflowClient()
    own = {"policy": fitted.name, "policy_version": frozen["version"]}
    told = {key: str(value) for key, value in (own | (tags or {})).items()}
    made = mlflow.register_model(model.model_uri, NAME, tags=told)
    client.set_registered_model_alias(NAME, alias, made.version)
    return int(made.version)


def _needs() -> list[str]:
    """List the distributions that a served router imports; XGBoost's name depends on the machine."""
    return ["mlflow", "numpy", "pandas", "pandera", "pyarrow", "scipy", *packages_distributions()["xgboost"][:1]]


def load(uri: str) -> Fitted:
    """Return the frozen policy of a registered model, without its server.

    Parameters
    ----------
    uri : str
        For example `models:/salvage-router@champion`, or a model's folder.
    """
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        return Fitted.from_dict(json.loads((folder / "artifacts" / "policy.json").read_text()))
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise SalvageError(
            f"--model {uri}: there is no such router ({reason}); register one, or correct the URI"
        ) from error


def champion() -> Fitted | None:
    """Return the champion, or None where nothing is registered yet."""
    try:
        mlflow.MlflowClient().get_model_version_by_alias(NAME, "champion")
    except MlflowException:
        return None
    return load(CHAMPION)


def versions() -> set[str]:
    """Return the policy versions (hashes) of everything registered."""
    found = mlflow.MlflowClient().search_model_versions(f"name='{NAME}'")
    return {version.tags.get("policy_version", "") for version in found}
