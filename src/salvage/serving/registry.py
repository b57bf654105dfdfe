"""Registers what was fitted, a policy as `salvage-router`, the studies' classifiers, and reads a policy back."""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType

import salvage
from salvage.errors import SalvageError
from salvage.method.traces import COMPUTED, SIGNALS
from salvage.policies.fitted import Fitted
from salvage.project.store_faults import sentence
from salvage.studies.classifiers import Classifier
from salvage.tables.vocabulary import FACTS, FEATURES

# what MLflow says of a model, a version and an alias that are not there; all else is the store's fault
MISSING, WRONG = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), ErrorCode.Name(INVALID_PARAMETER_VALUE)
NAME = "salvage-router"
CLASSIFIERS = {"regimes": "salvage-regimes", "methods": "salvage-methods"}
CHAMPION = f"models:/{NAME}@champion"
EXAMPLE = {"spread": 0.16, "concentration": 2.1, "logit_dispersion": -0.86, "cell": "demo"}
# The features are declared as Any, not as double: for a double MLflow converts the column before the model sees it,
# takes the text "1.5", and names no row when it refuses. The model checks them itself (answers.numbers), also that each
# row has either features or signals, so that no column is required.
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(AnyType(), name, required=False)
            for name in (*FEATURES, *SIGNALS, "cell", "n_failed_rollouts", *FACTS)
        ],
    ),
    outputs=Schema(
        [
            ColSpec(DataType.string, "operator"),
            *(ColSpec(DataType.double, name) for name in (*(f"z_{name}" for name in FEATURES), "margin")),
            *(ColSpec(DataType.string, name) for name in ("policy", "policy_version")),
            *(ColSpec(AnyType(), name) for name in ("expected", "expected_low", "expected_high")),
            *(ColSpec(AnyType(), name, required=False) for name in ("plan", *COMPUTED)),
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
    frozen = fitted.to_dict()
    own = {"policy": fitted.name, "policy_version": frozen["version"]}
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "policy.json"
        artifact.write_text(json.dumps(frozen) + "\n")
        metadata = {"features": "double, finite; or per-token signals", "answer": "one row a failure"}
        saved = _Saved("serving/router_model.py", {"policy": artifact}, SIGNATURE, EXAMPLE, ["xgboost"], metadata)
        return _register(NAME, saved, alias, own | (tags or {}))


def register_classifier(
    classifiers: Classifier | dict[int, Classifier], frozen: dict[str, Any], card: str, tags: dict[str, Any]
) -> int:
    """Log a study's classifier to the open run and register it as champion.

    Parameters
    ----------
    classifiers : Classifier or dict
        One; or one for each size of bag.
    frozen : dict
        What it needs to answer (`salvage.serving.classifier_model`); `study` is `regimes` or `methods`.
    card : str
        The version's description.

    Returns
    -------
    int
        The version.
    """
    study = frozen["study"]
    named = classifiers if isinstance(classifiers, dict) else {0: classifiers}
    example = dict.fromkeys(frozen["inputs"], 0.5)
    ids = {"checkpoint": "mine", "family": frozen["families"][0]} if study == "methods" else {}
    asked = Schema([ColSpec(AnyType(), name) for name in (*frozen["inputs"], *ids)])
    classes = next(iter(named.values())).classes
    texts = ["checkpoint", "n", "method", "accuracy", "refused"] if study == "methods" else ["regime"]
    answer = Schema([ColSpec(AnyType(), name) for name in (*texts, *classes)])
    needs = {"xgboost"} if any(c.settings["kind"] == "xgboost" for c in named.values()) else set()
    needs |= {"skops", "scikit-learn"}
    with tempfile.TemporaryDirectory() as folder:
        for n, one in named.items():
            inside = Path(folder) / str(n)
            inside.mkdir()
            one.save(inside)
        (Path(folder) / "study.json").write_text(json.dumps(frozen) + "\n")
        signature = ModelSignature(inputs=asked, outputs=answer)
        artifacts = {"classifier": Path(folder)}
        saved = _Saved(
            "serving/classifier_model.py", artifacts, signature, example | ids, sorted(needs), {"study": study}
        )
        version = _register(CLASSIFIERS[study], saved, "champion", tags)
    mlflow.MlflowClient().update_model_version(CLASSIFIERS[study], str(version), card)
    return version


@dataclass(frozen=True)
class _Saved:
    code: str  # the module that MLflow loads
    artifacts: dict[str, Path]
    signature: ModelSignature
    example: dict[str, Any]
    needs: list[str]  # modules, beyond what every model of ours imports
    metadata: dict[str, Any]


def _register(name: str, saved: _Saved, alias: str, tags: dict[str, Any]) -> int:
    package = Path(salvage.__file__).parent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on type hints, which would cost us our own refusals
        logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
        model = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(package / saved.code),
            artifacts={key: str(path) for key, path in saved.artifacts.items()},
            code_paths=[str(package)],
            signature=saved.signature,
            input_example=pd.DataFrame([saved.example]),
            pip_requirements=[f"{need}=={version(need).split('+')[0]}" for need in _distributions(saved.needs)],
            metadata=saved.metadata,
        )
    client = mlflow.MlflowClient()
    made = mlflow.register_model(model.model_uri, name, tags={key: str(value) for key, value in tags.items()})
    client.set_registered_model_alias(name, alias, made.version)
    return int(made.version)


def _distributions(modules: list[str]) -> list[str]:
    """List the distributions that a served model imports; XGBoost's name depends on the machine."""
    found = [packages_distributions()["xgboost"][0] if name == "xgboost" else name for name in modules]
    return ["mlflow", "numpy", "pandas", "pandera", "pyarrow", "scipy", *found]


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
        if isinstance(error, MlflowException) and error.error_code not in (MISSING, WRONG):
            raise SalvageError(sentence(error, mlflow.get_registry_uri())) from error
        reason = str(error).splitlines()[0][:200]
        raise SalvageError(
            f"--model {uri}: there is no such router ({reason}); register one, or correct the URI"
        ) from error


def champion() -> Fitted | None:
    """Return the champion, or None where nothing is registered yet."""
    return load(CHAMPION) if version_called("champion") else None


def version_called(alias: str) -> ModelVersion | None:
    """Return the router's version that has an alias, with its tags; None where there is none.

    Raises
    ------
    SalvageError
        Where the store is at fault.
    """
    client = mlflow.MlflowClient()
    try:
        versions = client.get_registered_model(NAME).aliases
        return client.get_model_version(NAME, versions[alias]) if alias in versions else None
    except MlflowException as error:
        if error.error_code == MISSING:
            return None
        raise SalvageError(sentence(error, mlflow.get_registry_uri())) from error


def versions() -> set[str]:
    """Return the policy versions (hashes) of everything registered."""
    try:
        found = mlflow.MlflowClient().search_model_versions(f"name='{NAME}'")
    except MlflowException as error:
        raise SalvageError(sentence(error, mlflow.get_registry_uri())) from error
    return {version.tags.get("policy_version", "") for version in found}
