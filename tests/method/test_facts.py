"""The facts of a failure: by hand on a small table."""

from __future__ import annotations

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.method.facts import make_facts, stated_answer
from salvage.tables import schema, vocabulary


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return rollouts and features: problem p fails three times of four, q once of two."""
    texts = [("p", 0, "1#4", False), ("p", 1, "2#4", False), ("p", 2, "3#5", False), ("p", 3, "#9", True)]
    texts += [("q", 0, "x#1", False), ("q", 1, "#2", True)]
    rollouts = pd.DataFrame(texts, columns=["problem_id", "rollout", "text", "correct"])
    rollouts = rollouts.assign(cell="m|t", tokens=[[1]] * 6, n_tokens=3, seed=0)
    features = rollouts.loc[~rollouts["correct"], ["cell", "problem_id", "rollout"]].assign(
        junction=[0, 1, 2, 3], n_tokens=[4, 4, 4, 6], entropy=[0.1, 0.2, 0.3, 0.4], kl=[1.0, 2.0, 3.0, 4.0]
    )
    features = features.assign(**dict.fromkeys((*vocabulary.FEATURES, "delta_path", "g_cov", "j_max"), 0.5))
    return schema.check(rollouts, schema.ROLLOUTS, "r"), schema.check(features, schema.FEATURE_ROWS, "f")


def test_facts_are_means_over_the_failed_rollouts() -> None:
    facts = schema.check(make_facts(*tables(), "lab"), schema.FACT_ROWS, "facts").set_index("problem_id")
    assert facts["failed_share"].to_dict() == {"p": 0.75, "q": 0.5}
    assert facts["n_tokens"].to_dict() == {"p": 4, "q": 6}
    assert facts["agreement"].to_dict() == pytest.approx({"p": 2 / 3, "q": 1})
    assert facts["junction"].to_dict() == pytest.approx({"p": 0.25, "q": 0.5})
    assert facts["entropy"].to_dict() == pytest.approx({"p": 0.2, "q": 0.4})
    assert facts["kl"].to_dict() == pytest.approx({"p": 2, "q": 4})


def test_a_scored_rollout_that_is_not_there_is_named() -> None:
    rollouts, features = tables()
    with pytest.raises(SalvageError, match="row 3: rollout 0 of problem 'q' is not among the failed rollouts"):
        make_facts(rollouts[rollouts["problem_id"] == "p"], features, "lab")


@pytest.mark.parametrize(
    ("verifier", "text", "answer"),
    [
        ("lab", "6+0=6#2", "2"),
        ("numeric", "so it is 1,234.50", "2469/2"),
        ("numeric", "no number", "no number"),
        ("exact", "<answer> yes </answer> I think", "yes"),
        ("math", "first\nlast line", "last line"),
    ],
)
def test_the_stated_answer_is_what_a_verifier_would_look_for(verifier: str, text: str, answer: str) -> None:
    assert stated_answer(verifier, text) == answer
