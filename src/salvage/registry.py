"""Registers the rule as `salvage-router@champion`, and reads the rule of a registered model back."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from importlib.metadata import version
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
from salvage.routing import Rule
from salvage.schema import FEATURES

NAME = "salvage-router"
ALIAS = "champion"
CHAMPION = f"models:/{NAME}@{ALIAS}"
EXAMPLE = {"spread": 0.16, "concentration": 2.1, "logit_dispersion": -0.86, "cell": "demo"}
# The features are declared as Any, not as double: for a double MLflow converts the column before the model sees it,
# takes the text "1.5", and names no row when it refuses. The model checks them itself (answers.numbers).
SIGNATURE = ModelSignature(
    inputs=Schema(
        [*(ColSpec(AnyType(), name) for name in FEATURES), ColSpec(AnyType(), "cell", required=False)],
    ),
    outputs=Schema(
        [
            ColSpec(DataType.string, "operator"),
            *(ColSpec(DataType.double, name) for name in (*(f"z_{name}" for name in FEATURES), "margin")),
        ]
    ),
)


def register(rule: Rule, tags: dict[str, Any] | None = None) -> int:
    """Log the rule to the open run, register it and make it the champion.

    Parameters
    ----------
    rule : Rule
        A fitted rule.
    tags : dict, optional
        What it was fitted on, for the model version.

    Returns
    -------
    int
        The version.
    """
    package = Path(salvage.__file__).parent
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on type hints, which would cost us our own refusals
        logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
        artifact = Path(folder) / "rule.json"
        artifact.write_text(json.dumps(rule.to_dict(), indent=2) + "\n")
        model = mlflow.pyfunc.log_model(
            name=NAME,
            python_model=str(package / "router_model.py"),
            artifacts={"rule": str(artifact)},
            code_paths=[str(package)],
            signature=SIGNATURE,
            input_example=pd.DataFrame([EXAMPLE]),
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in _NEEDS],
            metadata={"features": "double, finite, required", "answer": "one row a failure"},
        )
    client = mlflow.MlflowClient()
    made = mlflow.register_model(model.model_uri, NAME, tags={key: str(value) for key, value in (tags or {}).items()})
    client.set_registered_model_alias(NAME, ALIAS, made.version)
    return int(made.version)


_NEEDS = ["mlflow", "numpy", "pandas", "pandera", "pyarrow"]


def load_rule(uri: str) -> Rule:
    """Return the frozen rule of a registered model, without its server.

    Parameters
    ----------
    uri : str
        For example `models:/salvage-router@champion`, or a model's folder.
    """
    try:
        folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
        return Rule.from_dict(json.loads((folder / "artifacts" / "rule.json").read_text()))
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0][:200]
        raise SalvageError(
            f"--model {uri}: there is no such router ({reason}); register one, or correct the URI"
        ) from error


def champion() -> Rule | None:
    """Return the champion's rule, or None where nothing is registered yet."""
    try:
        mlflow.MlflowClient().get_model_version_by_alias(NAME, ALIAS)
    except MlflowException:
        return None
    return load_rule(CHAMPION)
