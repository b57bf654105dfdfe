"""What the portfolio's gain rests on: as it is, without the facts, and with the three features shuffled within cells.

python benchmarks/ablation.py data/full
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from salvage.evaluation.protocols import evaluate
from salvage.tables import schema, vocabulary
from salvage.tables.profile_files import read_profiles

BUDGETS = (2, 4, 8, 16)


def main(folder: str) -> None:
    """Print points over retry at four budgets, all failures, for what the portfolio may know."""
    tables = Path(folder)
    profiles = read_profiles(tables / "profiles")
    attempts = schema.read(tables / "attempts", schema.ATTEMPTS)
    facts = schema.read(tables / "facts", schema.FACT_ROWS)
    shuffled = _shuffled(profiles, vocabulary.FEATURES)
    bare = profiles.assign(n_failed_rollouts=1)
    told = {
        "features and facts": (profiles, facts),
        "facts, features shuffled": (shuffled, facts),
        "features and share failed": (profiles, None),
        "features alone": (bare, None),
        "neither (the cell alone)": (_shuffled(bare, vocabulary.FEATURES), None),
    }
    for name, (table, known) in told.items():
        rows = evaluate(table, attempts, facts=known, policies=("portfolio",), resamples=1000, permutations=2)
        own = {r["budget"]: r for r in rows if (r["cell"], r["policy"], r["protocol"]) == _WHOSE}
        lifts = [f"{b}: {_points(own[b])}" for b in BUDGETS]
        print(f"{name:28s} {'   '.join(lifts)}", flush=True)


_WHOSE = ("all", "portfolio", "cross-fitted")


def _points(row: dict[str, float]) -> str:
    low, high = (100 * row[f"over_retry{end}"] for end in ("_low", "_high"))
    return f"{100 * row['over_retry']:+.2f} [{low:+.2f}, {high:+.2f}]"


def _shuffled(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    result = table.copy()
    for _, rows in table.groupby("cell", sort=True).indices.items():
        result.iloc[rows, [table.columns.get_loc(name) for name in columns]] = (
            table[columns].iloc[rng.permutation(rows)].to_numpy()
        )
    return result


if __name__ == "__main__":
    main(sys.argv[1])
