"""Problem sets in, and every bad file named where it is bad."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salvage.errors import SalvageError
from salvage.problems.sets import from_jsonl, from_reasoning_gym, load
from salvage.problems.verifiers import verify
from salvage.tables import schema

GOOD = {"problem_id": "a", "prompt": "1+1?", "answer": "2"}


def put(tmp_path, *lines):
    path = tmp_path / "set.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_a_file_becomes_the_table_with_defaults(tmp_path):
    second = {"problem_id": 7, "prompt": "é\u2028?", "answer": 2.5, "verifier": "numeric", "task": "sums", "more": 1}
    table = from_jsonl(put(tmp_path, GOOD, "", second | {"metadata": {"level": 3}}))
    assert list(table.columns) == [name for name, column in schema.PROBLEMS.columns.items() if column.required]
    assert table.iloc[0].to_list() == ["a", "set", "1+1?", "2", "exact", "{}"]
    assert table.iloc[1].to_list() == ["7", "sums", "é\u2028?", "2.5", "numeric", '{"level": 3}']


@pytest.mark.parametrize("cut", [{"task": None, "metadata": None}, {"metadata": "{}"}])
def test_nulls_and_text_metadata_are_taken(tmp_path, cut):
    assert from_jsonl(put(tmp_path, GOOD | cut)).iloc[0].to_list() == ["a", "set", "1+1?", "2", "exact", "{}"]


def test_windows_files_are_read(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert len(from_jsonl(path)) == 1


BAD = {
    "answer list": (GOOD | {"answer": ["2"]}, "column 'answer' is \\[\"2\"\\]"),
    "answer object": (GOOD | {"answer": {"a": 1}}, "column 'answer'"),
    "answer bool": (GOOD | {"answer": True}, "column 'answer' is true"),
    "answer null": (GOOD | {"answer": None}, "column 'answer' is missing"),
    "answer empty": (GOOD | {"answer": " "}, "empty answer"),
    "answer infinite": ('{"problem_id": "a", "prompt": "?", "answer": 1e999}', "column 'answer' is Infinity"),
    "answer no number": (GOOD | {"answer": "two", "verifier": "numeric"}, "'two', in which there is no number"),
    "no answer": ({"problem_id": "a", "prompt": "?"}, "column 'answer' is missing"),
    "no prompt": ({"problem_id": "a", "answer": "2"}, "column 'prompt' is missing"),
    "prompt empty": (GOOD | {"prompt": " \n"}, "column 'prompt' is empty"),
    "prompt number": (GOOD | {"prompt": 3}, "column 'prompt' is 3, but must be a text;"),
    "prompt surrogate": (GOOD | {"prompt": "\ud800"}, "column 'prompt' has half of a surrogate"),
    "no id": ({"prompt": "?", "answer": "2"}, "column 'problem_id' is missing"),
    "id empty": (GOOD | {"problem_id": ""}, "column 'problem_id' is empty"),
    "id bool": (GOOD | {"problem_id": True}, "column 'problem_id' is true"),
    "id float": (GOOD | {"problem_id": 1.0}, "column 'problem_id' is 1.0"),
    "id twice": (GOOD | {"problem_id": "first"}, "'first' stands in line 1 already"),
    "task": (GOOD | {"task": 3}, "column 'task'"),
    "verifier": (GOOD | {"verifier": "exakt"}, "no verifier 'exakt'"),
    "verifier's module": (GOOD | {"verifier": "nowhere_at_all:f"}, "module 'nowhere_at_all' cannot be imported"),
    "misspelt": (GOOD | {"verifer": "numeric"}, "'verifer' is not known; did you mean 'verifier'"),
    "metadata": (GOOD | {"metadata": [1]}, "column 'metadata' is no JSON object"),
    "metadata text": (GOOD | {"metadata": "level 3"}, "column 'metadata' is no JSON object"),
    "no entry": (GOOD | {"verifier": "reasoning_gym"}, "no Reasoning Gym entry"),
    "broken": ('{"problem_id": "a", ', "character 21 is not JSON"),
    "deep": ("[" * 100_000, "cannot be read|is not JSON"),
    "array": ("[1]", "is no JSON object but \\[1\\]"),
    "field twice": ('{"prompt": "?", "prompt": "!"}', "field 'prompt' stands twice"),
    "endless number": ('{"answer": ' + "9" * 5000 + "}", "cannot be read"),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path, line, message):
    path = put(tmp_path, GOOD | {"problem_id": "first"}, "", line)
    with pytest.raises(SalvageError, match=f"set.jsonl, line 3.*({message})"):
        from_jsonl(path)


def test_a_bad_file_is_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": 1}\n{"prompt": "caf\xe9"}')
    for name, message in [
        ("none.jsonl", "none.jsonl: there is no such file"),
        ("empty.jsonl", "empty.jsonl is empty"),
        ("", "is a folder"),
    ]:
        with pytest.raises(SalvageError, match=message):
            from_jsonl(tmp_path / name)
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "caf\xe9"}')
    with pytest.raises(SalvageError, match=r"latin.jsonl, line 2, byte 16 is not UTF-8"):
        from_jsonl(tmp_path / "latin.jsonl")


@settings(max_examples=40, deadline=None)  # each writes a file
@given(prompt=st.text(min_size=1).filter(str.strip), answer=st.text(min_size=1).filter(str.strip) | st.integers())
def test_any_text_comes_back_as_it_was_and_meets_its_own_answer(tmp_path_factory, prompt, answer):
    folder = tmp_path_factory.mktemp("any")
    table = from_jsonl(put(folder, {"problem_id": "a", "prompt": prompt, "answer": answer}))
    schema.write(table, schema.PROBLEMS, folder / "set.parquet")
    again = load(str(folder / "set.parquet"))
    assert again.equals(table)
    assert (again.loc[0, "prompt"], again.loc[0, "answer"]) == (prompt, str(answer))
    assert verify(again, ["a"], [str(answer)])[0]


def test_reasoning_gym_makes_the_same_problems_each_time_and_takes_its_own_answers():
    table = load("reasoning_gym:chain_sum:5:7")
    assert table.equals(from_reasoning_gym("chain_sum", 5, 7))
    assert not table.equals(from_reasoning_gym("chain_sum", 5, 8))
    assert list(table["problem_id"]) == [f"chain_sum-{i}" for i in range(5)]
    assert set(table["task"]) == {"chain_sum"}
    assert verify(table, list(table["problem_id"]), list(table["answer"])).all()


def test_reasoning_gym_problems_of_many_answers_have_none_of_their_own():
    table = from_reasoning_gym("rubiks_cube", 1, 1)
    assert table.loc[0, "answer"] == ""
    solution = json.loads(table.loc[0, "metadata"])["metadata"]["example_correct_answer"]
    assert verify(table, ["rubiks_cube-0"] * 2, [solution, "R"]).tolist() == [True, False]


def test_reasoning_gym_problems_survive_as_jsonl(tmp_path):
    table = from_reasoning_gym("chain_sum", 2, 1)
    again = from_jsonl(put(tmp_path, *table.to_dict("records")))
    assert verify(again, list(again["problem_id"]), list(table["answer"])).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("reasoning_gym:chainsum:5:7", "no dataset 'chainsum'; did you mean chain_sum"),
        ("reasoning_gym:chain_sum:5", "is not reasoning_gym:NAME:SIZE:SEED"),
        ("reasoning_gym:chain_sum:5:-1", "is not reasoning_gym:NAME:SIZE:SEED"),
        ("reasoning_gym:chain_sum:0:1", "a size of 0 makes no problem"),
        ("reasoning_gym:countdown:5:7", "runs answers as Python code"),
        ("reasoning_gym:composite:5:7", "'composite'"),
        ("reasoning_gym:arc_agi:1:1", "refuses the answer of its own problem 0"),
        ("nowhere.parquet", "nowhere.parquet: there is no such table"),
        ("nowhere.jsonl", "nowhere.jsonl: there is no such file"),
    ],
)
def test_a_bad_name_of_a_problem_set_is_told(spec, message):
    with pytest.raises(SalvageError, match=message):
        load(spec)
