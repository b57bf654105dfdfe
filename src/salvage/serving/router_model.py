"""The registered router: MLflow loads this file ("models from code") and the frozen policy, a JSON; nothing is pickled.

A request has one row a failure: spread, concentration, logit_dispersion, each a finite number, or the per-token signals
that they are computed from (`salvage.method.traces`); optionally the cell, n_failed_rollouts and the facts
(vocabulary.FACTS), which the rule does not use and other policies do. The answer has one row a failure: the operator,
the three z-scores, the margin, the policy and its version, the expected rescue with its interval where the policy
knows one, and what was computed where the request has signals.
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
from salvage.policies.fitted import Fitted
from salvage.serving.answers import answer_fitted


class Router(PythonModel):
    """A fitted policy, as MLflow's serving wants it."""

    def load_context(self, context: Any) -> None:
        """Read the policy that was registered."""
        self.fitted_ = Fitted.from_dict(json.loads(Path(context.artifacts["policy"]).read_text()))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> list[dict]:
        """Return the answer for each row, or refuse with a sentence (HTTP 400)."""
        try:
            columns = answer_fitted(self.fitted_, model_input, "request")
        except SalvageError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


set_model(Router())
