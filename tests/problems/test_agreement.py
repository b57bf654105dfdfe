"""Verifiers held against known verdicts: the one that agrees is found, the first text that parts them is named."""

import pandas as pd

from salvage.problems.agreement import Agreement, candidates, compare, own


def problems(*answers, verifier="exact"):
    rows = [(f"p{i}", answer) for i, answer in enumerate(answers)]
    table = pd.DataFrame(rows, columns=["problem_id", "answer"])
    return table.assign(task="t", prompt="?", verifier=verifier, metadata="{}")


def test_case_15_the_verifier_that_agrees_with_a_files_verdicts_is_found():
    table = problems("2", "3", "1/2")
    texts = [r"so $\boxed{2}$.", r"\boxed{4}", r"it is $\boxed{\frac{1}{2}}$"]
    found = {a.verifier: a for a in compare(table, ["p0", "p1", "p2"], texts, [True, False, True])}
    assert found["math"] == Agreement("math", (0, 1, 2), (), 0)
    assert found["numeric"] == Agreement("numeric", (0, 1, 2), (), 0)
    assert found["exact"] == Agreement("exact", (0, 1, 2), (0, 2), 0)
    assert found["exact"].share == 1 / 3


def test_case_15_each_problem_is_held_to_its_own_verifier():
    table = problems("2", "3", "2").assign(verifier=["numeric", "exact", "exact"])
    texts, ids = ["it is 2", "so\n3", "it is 2"], ["p0", "p1", "p2"]
    found = own(table, ids, texts, [True, True, True])
    assert found == Agreement("exact and numeric", (0, 1, 2), (2,), 0)
    assert own(table, ids, texts, [True, None, False]) == Agreement("exact and numeric", (0, 2), (), 0)
    assert own(table, ids * 3, texts * 3, [True] * 9, most=3).at == (0, 4, 8)


def test_case_17_without_verdicts_the_share_that_would_be_accepted_is_told():
    table = problems(*["7"] * 60)
    ids = [f"p{i % 60}" for i in range(480)]
    found = compare(table, ids, ["3+4=7#7"] * 480)
    assert next((a.verifier, a.agree, a.tried) for a in found) == ("numeric", 200, 200)
    assert [a.agree for a in found if a.verifier == "exact"] == [0]
    assert compare(table, ids, ["3+4=7#7"] * 480, names=["exact"], most=None)[0].tried == 480


def test_texts_without_a_verdict_are_passed_over_and_unread_references_are_abstained_from():
    table = problems("twelve", "2")
    found = compare(table, ["p0", "p1", "p1"], ["12", "2", "3"], [True, True, None], names=["numeric"])
    assert found == [Agreement("numeric", (0, 1), (0,), 1)]


def test_a_verifier_that_cannot_be_had_is_left_out():
    table = problems("2")
    assert [a.verifier for a in compare(table, ["p0"], ["2"], names=["no_such:thing", "exact"])] == ["exact"]
    assert candidates(problems("2", verifier="numeric"))[:2] == ["numeric", "exact"]
