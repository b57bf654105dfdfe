"""The registered classifiers of regimes and methods: this file and JSON or skops; nothing is pickled.

`salvage-regimes` takes one row a failure and answers each with its regime and the three probabilities.
`salvage-methods` takes one row a failure, with its checkpoint and family; each checkpoint's rows are a bag, answered in
one row: the method, the probabilities, how often bags of that size were told right, or why it refuses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from salvage.errors import SalvageError
from salvage.studies.classifiers import Classifier
from salvage.studies.failures import bag_statistics, matrix


class Study(PythonModel):
    """A registered classifier, as MLflow's serving wants it."""

    def load_context(self, context: Any) -> None:
        """Read what was registered."""
        folder = Path(context.artifacts["classifier"])
        self.frozen_ = json.loads((folder / "study.json").read_text())
        self.classifiers_ = {int(part.name): Classifier.load(part) for part in folder.iterdir() if part.is_dir()}

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict]:
        """Return the answers, or refuse with a sentence (HTTP 400)."""
        try:
            if model_input.empty:
                raise SalvageError("request: there are no rows; give at least one failure")
            if self.frozen_["study"] == "regimes":
                return regime_answers(self.classifiers_[0], self.frozen_, model_input)
            return method_answers(self.classifiers_, self.frozen_, model_input)
        except SalvageError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def regime_answers(classifier: Classifier, frozen: dict[str, Any], table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return each failure's likeliest regime and the probability of each."""
    told = classifier.proba(matrix(table, frozen["inputs"], "request"))
    likeliest = told.argmax(axis=1)
    return [
        {"regime": classifier.classes[best], **dict(zip(classifier.classes, row.tolist(), strict=True))}
        for best, row in zip(likeliest, told, strict=True)
    ]


def method_answers(
    classifiers: dict[int, Classifier], frozen: dict[str, Any], table: pd.DataFrame
) -> list[dict[str, Any]]:
    """Return for each checkpoint's bag of failures the likeliest method, or why there is no answer.

    The classifier is that of the largest size not above the bag's.
    """
    for name in ("checkpoint", "family"):
        if name not in table:
            raise SalvageError(f"request: column {name!r} is missing; each failure needs its checkpoint and its family")
    x = matrix(table, frozen["inputs"], "request")
    classes = next(iter(classifiers.values())).classes
    answers = []
    for checkpoint, rows in table.reset_index(drop=True).groupby(table["checkpoint"].astype(str).to_numpy()):
        answer = {"checkpoint": checkpoint, "n": len(rows), "method": None, **dict.fromkeys(classes), "accuracy": None}
        answer["refused"] = refusal(frozen, len(rows), sorted(set(rows["family"].astype(str))))
        if not answer["refused"]:
            size = max(n for n in classifiers if n <= len(rows))
            proba = classifiers[size].proba(bag_statistics(x[rows.index][None]))[0]
            answer |= {"method": classes[int(proba.argmax())], **dict(zip(classes, proba.tolist(), strict=True))}
            answer["accuracy"] = frozen["accuracy"][str(size)]
        answers.append(answer)
    return answers


def refusal(frozen: dict[str, Any], n: int, families: list[str]) -> str:
    """Return why a bag of n failures gets no answer; nothing where it gets one."""
    if n < frozen["fewest"]:
        return f"{n} failure{'' if n == 1 else 's'}: too few to tell a method by; give {frozen['fewest']} or more"
    if len(families) > 1:
        return f"one checkpoint of several families ({', '.join(families)}); correct the rows"
    if families[0] not in frozen["families"]:
        return f"family {families[0]!r} was never seen; known are {', '.join(frozen['families'])}"
    return ""


set_model(Study())
