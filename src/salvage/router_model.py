"""The registered router: MLflow loads this file ("models from code") and the frozen rule, a JSON; nothing is pickled.

A request has one row a failure: spread, concentration, logit_dispersion, each a finite number, and optionally the cell,
which is not used. The answer has one row a failure: the operator, the three z-scores, the margin.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from salvage.answers import answer
from salvage.errors import SalvageError
from salvage.routing import Rule


class Router(PythonModel):
    """The rule with its reference mean and standard deviation, as MLflow's serving wants it."""

    def load_context(self, context: Any) -> None:
        """Read the rule that was registered."""
        self.rule_ = Rule.from_dict(json.loads(Path(context.artifacts["rule"]).read_text()))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict]:
        """Return operator, z-scores and margin of each row, or refuse with a sentence (HTTP 400)."""
        try:
            columns = answer(self.rule_, model_input, "request")
        except SalvageError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


set_model(Router())
