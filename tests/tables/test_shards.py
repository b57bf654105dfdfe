"""Fingerprints and shards: what makes a table stale, what is taken of a start before, what there is so far."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from salvage.tables import schema, shards
from salvage.tables.shards import fingerprint


def rows(*problems: str, text: str = "old") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "cell": "m|t",
            "problem_id": list(problems),
            "rollout": 0,
            "tokens": [[1]] * len(problems),
            "text": text,
            "correct": False,
            "n_tokens": 1,
            "seed": 1,
        }
    )


def test_case_07_shards_of_old_weights_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights, path = tmp_path / "weights", Path("data/rollouts/m--t.parquet")
    weights.mkdir()

    def start(text: str, ends_at: str = "") -> None:
        (weights / "model.safetensors").write_text(text)

        def make(piece: pd.DataFrame) -> pd.DataFrame:
            if ends_at in set(piece["problem_id"]):
                raise KeyboardInterrupt
            return piece.assign(text=text)

        pieces = [rows("a"), rows("b")]
        shards.build(path, schema.ROLLOUTS, fingerprint(files=[weights]), pieces, make)

    with pytest.raises(KeyboardInterrupt):
        start("old", ends_at="b")
    assert shards.so_far(path, schema.ROLLOUTS)["problem_id"].tolist() == ["a"]  # type: ignore[index]
    start("new")
    assert schema.read(path, schema.ROLLOUTS)["text"].tolist() == ["new", "new"]
    assert not list((tmp_path / "data/shards").rglob("*.parquet"))


def test_shards_cut_otherwise_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("data/rollouts/m--t.parquet")

    def fail(_: pd.DataFrame) -> pd.DataFrame:
        if len(_) == 1:
            raise KeyboardInterrupt
        return _

    with pytest.raises(KeyboardInterrupt):
        shards.build(path, schema.ROLLOUTS, "mark", [rows("a", "b"), rows("c")], fail)
    shards.build(path, schema.ROLLOUTS, "mark", [rows("a"), rows("b", "c")], lambda some: some)
    assert schema.read(path, schema.ROLLOUTS)["problem_id"].tolist() == ["a", "b", "c"]


def test_so_far_is_the_newest_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("data/rollouts/m--t.parquet")
    assert shards.so_far(path, schema.ROLLOUTS) is None
    shards.build(path, schema.ROLLOUTS, "one", [rows("a")], lambda some: some)
    assert shards.so_far(path, schema.ROLLOUTS)["problem_id"].tolist() == ["a"]  # type: ignore[index]

    def look(piece: pd.DataFrame) -> pd.DataFrame:
        if piece["problem_id"].tolist() == ["c"]:  # one shard of the next table is there
            found = shards.so_far(path, schema.ROLLOUTS)
            assert found is not None and found["problem_id"].tolist() == ["b"]
        return piece

    shards.build(path, schema.ROLLOUTS, "two", [rows("b"), rows("c")], look)


def test_case_06_two_owners_models_of_one_name_have_two_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fingerprint(files=[Path("one/model")]) != fingerprint(files=[Path("two/model")])
    assert fingerprint(files=[Path("a/path/to/nothing")])  # no hub name


def test_case_07_a_hub_models_revision_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    cache = tmp_path / "models--one--model"
    marks = []
    for revision in ("a" * 40, "b" * 40):
        (cache / "refs").mkdir(parents=True, exist_ok=True)
        (cache / "refs/main").write_text(revision)
        (cache / "snapshots" / revision).mkdir(parents=True)
        (cache / "snapshots" / revision / "config.json").write_text("{}")
        found = huggingface_hub.try_to_load_from_cache
        monkeypatch.setattr(
            huggingface_hub, "try_to_load_from_cache", lambda name, file, found=found: found(name, file, tmp_path)
        )
        marks.append(fingerprint(files=[Path("one/model")]))
        monkeypatch.undo()
    assert len({*marks, fingerprint(files=[Path("one/model")])}) == 3
