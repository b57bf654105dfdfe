"""A page of a run that is not at its end: what it says of shards that are there, and of steps that have not begun."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from salvage.errors import SalvageError
from salvage.pipeline import results, stages
from salvage.project import settings
from salvage.project.settings import problem_file
from salvage.tables import schema, shards
from salvage.tables.vocabulary import OPERATORS, SIGNALS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one pair, whose 40 problems are written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text("")
    pair = "name: mine, specialist: spec, ancestor: base, problems: mine.jsonl"
    (tmp_path / "params.yaml").write_text(f"profile: own\ncells:\n- {{{pair}}}\n")
    columns = {"task": "t", "prompt": "1<2?", "answer": "3", "verifier": "exact", "metadata": ""}
    table = pd.DataFrame({"problem_id": [f"p{i}" for i in range(40)]}).assign(**columns)
    schema.write(table, schema.PROBLEMS, problem_file("mine.jsonl"))
    return tmp_path


def rollouts(n: int) -> pd.DataFrame:
    """Return two rollouts a problem; every other problem fails both, the others one."""
    keys = [(f"p{i}", k) for i in range(n) for k in range(2)]
    told = pd.DataFrame(keys, columns=["problem_id", "rollout"])
    told = told.assign(cell="mine|mine", tokens=[[1, 2, 3]] * len(keys), text="so <b>4</b>", n_tokens=3, seed=1)
    return told.assign(correct=[int(p[1:]) % 2 == 1 and k == 0 for p, k in keys])


def signals(failed: pd.DataFrame) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    values = {name: [rng.random(3).astype("float32") for _ in range(len(failed))] for name in SIGNALS}
    return failed[["cell", "problem_id", "rollout"]].reset_index(drop=True).assign(**values)


def attempts(problems: list[str]) -> pd.DataFrame:
    keys = [(p, o, a) for p in problems for o in OPERATORS for a in range(4)]
    told = pd.DataFrame(keys, columns=["problem_id", "operator", "attempt"])
    told = told.assign(cell="mine|mine", anchor="online", continuation="temperature", correct=told["attempt"] == 0)
    return told.assign(n_tokens=3, n_ancestor_tokens=0, n_prefill=1, position=-1)


def shard(name: str, table: object, rows: pd.DataFrame, number: int = 0) -> None:
    """Leave a shard as a stage that is at work has done."""
    path = shards.SHARDS / name / "mine--mine" / "mark" / f"{number:05d}.parquet"
    schema.write(rows, table, path, "mark")  # type: ignore[arg-type]


def test_before_the_first_shard_it_says_so(project: Path) -> None:
    with pytest.raises(SalvageError, match="there is nothing to report yet: no shard of rollouts is finished"):
        results.partial(settings.load())
    assert not (project / "partial.html").exists()


def test_the_first_shard_of_rollouts_is_a_picture_of_the_failures(project: Path) -> None:
    shard("rollouts", schema.ROLLOUTS, rollouts(16))
    page, told = results.partial(settings.load())
    assert told == "mine|mine: 16 of 40 problems sampled, 0 failed rollouts scored, 0 failures tried again"
    text = page.read_text()
    assert "16 of 16 problems were failed at least once; 25% of 32 rollouts are right" in text
    assert "Without a verdict" not in text
    assert "Problem p0, failed 2 of 2 times; right answer" in text
    lost = project / "data/rollouts/mine--mine.unverified.jsonl"
    lost.parent.mkdir(parents=True)
    lost.write_text('{"mark": "mark"}\n{"problem_id": "p0", "rollout": 2, "text": "", "trouble": "too slow"}\n')
    assert "(the median). Without a verdict: 1." in results.partial(settings.load())[0].read_text()
    assert "<svg" in text and "so &lt;b&gt;4&lt;/b&gt;" in text and "1&lt;2?" in text
    assert "from the shards that are finished" in text and "Rescued by one attempt" not in text


def test_later_shards_add_features_operators_and_regimes(project: Path) -> None:
    whole = rollouts(40)
    schema.write(whole, schema.ROLLOUTS, "data/rollouts/mine--mine.parquet", "mark")
    failed = whole[~whole["correct"]]
    schema.write(signals(failed), schema.SIGNAL_ROWS, "data/signals/mine--mine.parquet", "mark")
    shard("attempts", schema.ATTEMPTS, attempts([f"p{i}" for i in range(8)]))
    page, told = results.partial(settings.load())
    assert told == "mine|mine: 40 of 40 problems sampled, 60 of 60 failed rollouts scored, 8 of 40 failures tried again"
    text = page.read_text()
    assert '<th scope="row">retry</th><td>25.0</td><td>8</td>' in text and "concentration" in text
    assert "Of the failures that were tried again: 8 " in text


def test_the_first_shard_of_ones_own_is_small() -> None:
    cell = settings.Cell("m|t", "s", "a", "mine.jsonl", "unknown", 0, "own")
    lab = settings.Cell("m|t", "s", "a", settings.LAB_PROBLEMS, "sft", 0, "qwen3")
    rows = pd.DataFrame({"x": range(500)})

    def sizes(*how: object) -> list[int]:
        return [len(piece) for piece in stages._pieces(*how)]  # type: ignore[arg-type]

    assert sizes(rows, 200, cell) == [16, 200, 200, 84] and sizes(rows, 200, lab) == [200, 200, 100]
    assert sizes(list(range(150)), 100, cell) == [8, 100, 42] and sizes(list(range(150)), 100, lab) == [100, 50]
    assert sizes(rows.head(5), 200, cell) == [5] and sizes(rows.head(16), 200, cell) == [16]
    assert sizes(rows.head(0), 200, cell) == [] and sizes(rows.head(200), 200, lab) == [200]
    assert pd.concat(stages._pieces(rows, 200, cell)).equals(rows)
