"""What a deployment knows of a failure besides its three features, without reading its text: schema.FACT_ROWS."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from salvage.errors import SalvageError
from salvage.problems.numbers import boxed
from salvage.problems.thinking import answer_part
from salvage.problems.verifiers import final_answer, last_number
from salvage.tables import vocabulary

KEY = ["cell", "problem_id"]


def make_facts(rollouts: pd.DataFrame, features: pd.DataFrame, verifier: str | Mapping[str, str]) -> pd.DataFrame:
    """Return the facts of every failure, means over its failed rollouts.

    Parameters
    ----------
    rollouts : DataFrame
        schema.ROLLOUTS of the same cells, right ones too.
    features : DataFrame
        schema.FEATURE_ROWS: one row a failed rollout.
    verifier : str or mapping
        The problems' own, or each problem's by its problem_id; it says what of a text is the final answer.

    Raises
    ------
    SalvageError
        Where a scored rollout is not among the rollouts.
    """
    share = (~rollouts["correct"]).groupby([rollouts[k] for k in KEY], sort=False).mean().rename("failed_share")
    failed = rollouts.loc[~rollouts["correct"], [*KEY, "rollout", "text"]]
    scored = features.merge(failed, on=[*KEY, "rollout"], how="left", validate="one_to_one")
    if scored["text"].isna().any():
        row = int(scored["text"].isna().argmax())
        raise SalvageError(
            f"features: row {row}: rollout {scored['rollout'].iloc[row]} of problem {scored['problem_id'].iloc[row]!r} "
            "is not among the failed rollouts; featurize them again"
        )
    scored["junction"] = scored["junction"] / scored["n_tokens"]
    names = [verifier] * len(scored) if isinstance(verifier, str) else scored["problem_id"].map(verifier)
    scored["answer"] = [stated_answer(name, text) for name, text in zip(names, scored["text"], strict=True)]
    grouped = scored.groupby(KEY, sort=False)
    facts = grouped[["n_tokens", "entropy", "kl", "junction"]].mean()
    commonest = scored.groupby([*KEY, "answer"], sort=False).size().groupby(level=KEY, sort=False).max()
    facts = facts.join(share).assign(agreement=commonest / grouped.size())
    return facts.reset_index()[[*KEY, *vocabulary.FACTS]]


def stated_answer(verifier: str, text: str) -> str:
    """Return what a text gives as its answer, as a verifier would look for it; nothing is judged here."""
    if verifier == "lab":
        return text.rpartition("#")[2]
    part = answer_part(text)
    text = text if part is None else part  # an unfinished thought has none; texts then differ as a whole
    number = last_number(text) if verifier == "numeric" else None
    box = boxed(text) if verifier == "math" else None
    return str(number) if number is not None else final_answer(text) if box is None else box


def with_facts(failures: pd.DataFrame, facts: pd.DataFrame | None) -> pd.DataFrame:
    """Return the failures with the columns of their facts beside them, where there are any."""
    if facts is None:
        return failures
    both = failures.merge(facts, on=["cell", "problem_id"], how="left", validate="one_to_one")
    if both["failed_share"].isna().any():
        row = int(both["failed_share"].isna().argmax())
        raise SalvageError(
            f"facts: problem {both['problem_id'].iloc[row]!r} of cell {both['cell'].iloc[row]!r} has none; "
            "give the facts that were made with these profiles"
        )
    return both
