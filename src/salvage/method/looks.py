"""How a failed rollout looks: tokens as text, j, the junction, and what both models would rather have said there."""

from __future__ import annotations

from typing import Any

import numpy as np

from salvage.engine.base import Engine
from salvage.method import operators

ALTERNATIVES = 5  # of each model at the junction


def looks(
    engine: Engine, failed: list[tuple[list[int], operators.FailedRollout, np.ndarray]], temperature: float
) -> list[dict[str, Any]]:
    """Return how failed rollouts look: tokens as text, j, the junction, and both models' alternatives there.

    Parameters
    ----------
    failed : list of (prompt tokens, rollout, j [tokens])
    """
    prefixes = [prompt + rollout.tokens[: rollout.junction] for prompt, rollout, _ in failed]
    told = engine.alternatives(prefixes, temperature=temperature, k=ALTERNATIVES)
    return [_look(engine, rollout, j, *both) for (_, rollout, j), both in zip(failed, told, strict=True)]


def _look(engine: Engine, rollout: operators.FailedRollout, j: np.ndarray, *both: list[tuple[int, float]]) -> Any:
    return {
        "tokens": [engine.text([t]) for t in rollout.tokens],
        "j": [round(float(x), 4) for x in j],
        "junction": rollout.junction,
        "alternatives": {
            name: [[engine.text([t]), round(p, 4)] for t, p in some]
            for name, some in zip(("specialist", "ancestor"), both, strict=True)
        },
    }
