"""One's own pair is looked at and fitted before it is run, and what was fitted is written where it can be changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from salvage.errors import SalvageError
from salvage.pipeline.preparing import prepare
from salvage.project import settings

TEXT = """profile: own # mine
cells: # of mine
  - name: tiny # a remark
    specialist: {0}
    ancestor: {1}
    problems: problems.jsonl
    engine: transformers
"""


@pytest.fixture
def project(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("problems.jsonl").write_text('{"problem_id": "a", "prompt": "1+2:", "answer": "3"}\n')
    Path("params.yaml").write_text(TEXT.format(*pair))
    return tmp_path


def test_what_is_auto_is_fitted_and_written_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = prepare(settings.load(), quiet=False)
    said = capsys.readouterr().out
    entry = yaml.safe_load(Path("params.yaml").read_text())["cells"][0]
    # the one rollout took 65 tokens: twice that is more than the context leaves
    assert {name: entry[name] for name in settings.FITTED} == {
        "max_tokens": 92,
        "batch": 512,
        "top_k_cov": 2,
        "warmup": 8,
    }
    assert dict(told.cells[0].own) == {name: entry[name] for name in settings.FITTED}
    assert "tiny|problems: difference: their weights differ" in said
    assert "max_tokens 92 (the first rollouts took 65 to 65 tokens)" in said
    assert "# mine" in Path("params.yaml").read_text() and "# a remark" in Path("params.yaml").read_text()
    before = Path("params.yaml").read_bytes()
    assert prepare(settings.load(), quiet=True).raw == told.raw
    assert Path("params.yaml").read_bytes() == before and not capsys.readouterr().out


def test_what_is_fitted_stands_with_its_entry_and_the_empty_line_after_it(project: Path) -> None:
    Path("params.yaml").write_text(Path("params.yaml").read_text() + "\nmethods: [sft] # below\n")
    prepare(settings.load(), quiet=True)
    _, _, after = Path("params.yaml").read_text().partition("engine: transformers\n")
    assert after == "  max_tokens: 92\n  batch: 512\n  top_k_cov: 2\n  warmup: 8\n\nmethods: [sft] # below\n"


def test_a_number_that_stands_there_is_kept(project: Path) -> None:
    with Path("params.yaml").open("a") as file:
        file.write("    max_tokens: 20\nfeaturize: {top_k_cov: 7}\n")
    told = prepare(settings.load(), quiet=True)
    assert dict(told.cells[0].own) == {"max_tokens": 20, "batch": 512, "warmup": 2}
    assert told.of(told.cells[0])["featurize"]["top_k_cov"] == 7


def test_a_pair_that_cannot_be_compared_is_refused_and_nothing_is_written(project: Path, pair: tuple) -> None:
    shutil.copytree(pair[0], "same")
    text = Path("params.yaml").read_text().replace(str(pair[1]), "same")
    Path("params.yaml").write_text(text)
    with pytest.raises(SalvageError, match="specialist and ancestor have the same weights"):
        prepare(settings.load(), quiet=True)
    assert Path("params.yaml").read_text() == text
