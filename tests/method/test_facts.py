"""The facts of a failure: by hand on a small table."""

from __future__ import annotations

import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.method.facts import make_facts, stated_answer, with_facts
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


def test_each_problem_may_have_its_own_verifier() -> None:
    rollouts, features = tables()
    rollouts["text"] = ["7 of 9", "8 of 9", "it is 9", "", "x", ""]
    each = make_facts(rollouts, features, {"p": "numeric", "q": "exact"})
    assert each["agreement"].tolist() == pytest.approx([1, 1])  # all end on 9
    other = make_facts(rollouts, features, {"p": "exact", "q": "numeric"})
    assert other["agreement"].tolist() == pytest.approx([1 / 3, 1])
    pd.testing.assert_frame_equal(make_facts(rollouts, features, {"p": "exact", "q": "exact"}), other)
    pd.testing.assert_frame_equal(make_facts(rollouts, features, "exact"), other)


def test_facts_are_of_each_cell_by_itself_and_in_the_order_of_the_features() -> None:
    rollouts, features = tables()
    other = rollouts["problem_id"] == "p"
    rollouts = pd.concat([rollouts, rollouts[other].assign(cell="a|t", text="same#1")], ignore_index=True)
    more = features[features["problem_id"] == "p"].assign(cell="a|t", entropy=[0.5, 0.5, 0.8], n_tokens=[2, 4, 9])
    facts = make_facts(rollouts, pd.concat([features, more], ignore_index=True), "lab")
    assert facts.columns.tolist() == ["cell", "problem_id", *vocabulary.FACTS]
    assert facts[["cell", "problem_id"]].to_numpy().tolist() == [["m|t", "p"], ["m|t", "q"], ["a|t", "p"]]
    assert facts["agreement"].tolist() == pytest.approx([2 / 3, 1, 1])
    assert facts["entropy"].tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert facts["n_tokens"].tolist() == [4, 6, 5] and facts["failed_share"].tolist() == [0.75, 0.5, 0.75]
    assert facts["junction"].tolist() == pytest.approx([0.25, 0.5, (0 + 1 / 4 + 2 / 9) / 3])


def test_a_scored_rollout_that_is_not_there_is_named() -> None:
    rollouts, features = tables()
    gone = rollouts[rollouts["problem_id"] == "p"]
    for given, problem, row, rollout in ((gone, "q", 3, 0), (rollouts[rollouts["rollout"] != 1], "p", 1, 1)):
        with pytest.raises(SalvageError) as told:
            make_facts(given, features, "lab")
        assert str(told.value) == (
            f"features: row {row}: rollout {rollout} of problem '{problem}' is not among the failed rollouts; "
            "featurize them again"
        )
    right = rollouts.assign(correct=rollouts["correct"] | (rollouts["problem_id"] == "q"))
    with pytest.raises(SalvageError, match="row 3: rollout 0 of problem 'q'"):  # there, and not failed
        make_facts(right, features, "lab")
    with pytest.raises(SalvageError, match="row 2: rollout 2"):  # of two, the first
        make_facts(rollouts[(rollouts["rollout"] < 2) & (rollouts["problem_id"] == "p")], features, "lab")


def test_facts_stand_beside_their_failures() -> None:
    facts = make_facts(*tables(), "lab")
    failures = pd.DataFrame({"cell": "m|t", "problem_id": ["q", "p"], "spread": [0.1, 0.2]})
    assert with_facts(failures, None) is failures
    both = with_facts(failures, facts)
    assert both["failed_share"].tolist() == [0.5, 0.75] and both["spread"].tolist() == [0.1, 0.2]
    lacking = pd.concat([failures, failures.assign(cell="a|t"), failures.assign(problem_id=["x", "y"])])
    with pytest.raises(SalvageError) as told:
        with_facts(lacking, facts)
    assert str(told.value) == (
        "facts: problem 'q' of cell 'a|t' has none; give the facts that were made with these profiles"
    )


@pytest.mark.parametrize(
    ("verifier", "text", "answer"),
    [
        ("lab", "6+0=6#2", "2"),
        ("lab", "6#3#2", "2"),
        ("lab", "1,234.50", "1,234.50"),
        ("numeric", "so it is 1,234.50", "2469/2"),
        ("numeric", "no number", "no number"),
        ("exact", "<answer> yes </answer> I think", "yes"),
        ("exact", "<answer>12 apples</answer>", "12 apples"),  # a number is read for `numeric` alone
        ("reasoning_gym", "<answer>2 3</answer>", "2 3"),
        ("mine:check", "all 7 of them", "all 7 of them"),
        ("zoo:check", "all 7 of them", "all 7 of them"),
        ("math", "first\nlast line", "last line"),
        ("math", r"so \boxed{7} it is", "7"),
        ("exact", r"so \boxed{7} it is", r"so \boxed{7} it is"),  # a box is read for `math` alone
        ("aaa:check", r"so \boxed{7} it is", r"so \boxed{7} it is"),
        ("numeric", r"\boxed{7} of 9", "7"),
        ("numeric", "<think>3 or 4?</think> five", "five"),  # thoughts are no answer
        ("exact", "<think>yes</think>no", "no"),
        ("numeric", "<think>3 or 4", "<think>3 or 4"),  # unfinished it has none: the text as a whole
        ("lab", "<think>1#3</think>1#2", "2"),
    ],
)
def test_the_stated_answer_is_what_a_verifier_would_look_for(verifier: str, text: str, answer: str) -> None:
    assert stated_answer(verifier.encode().decode(), text) == answer  # read from a file, not the code's own string
