"""The model stages on a tiny pair: tables out, resumption after kill -9, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from salvage.errors import SalvageError
from salvage.pipeline import stages
from salvage.project import settings
from salvage.tables import schema
from worlds import in_place_of_auto

STAGES = ["problem_sets", "sample", "featurize", "intervene", "profile"]
TABLES = ["rollouts", "signals", "features", "attempts", "profiles"]
ROOT = Path(__file__).parents[2]


def params(pair: tuple[Path, Path], folder: Path, *, side_by_side: int = 0, **cell: object) -> Path:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["profile"] = "own"
    raw["profiles"]["own"] |= {"problems": 12, "attempts": 3, "retries": 5, "side_by_side": side_by_side}
    in_place_of_auto(raw)["sample"] |= {"rollouts": 2, "max_tokens": 16}
    own = {
        "name": "tiny",
        "specialist": str(pair[0]),
        "ancestor": str(pair[1]),
        "problems": "lab",
        "engine": "transformers",
        **cell,
    }
    raw["cells"] = [{**own, "engine": "transformers", **cell}]
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    return folder


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> list[int]:
    monkeypatch.chdir(folder)
    return [getattr(stages, name)(settings.load(), quiet=True) for name in names or STAGES]


def tables(folder: Path) -> dict[str, bytes]:
    return {name: next((folder / "data" / name).glob("*.parquet")).read_bytes() for name in TABLES}


def test_every_operator_anchor_and_continuation_comes_out_with_its_cost(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(params(pair, tmp_path, side_by_side=2), monkeypatch)
    attempts = schema.read(tmp_path / "data/attempts", schema.ATTEMPTS)
    per = attempts.groupby(["operator", "anchor", "continuation"]).size()
    failures = attempts["problem_id"].nunique()
    assert len(per) == 7 * 3 * 2
    assert per["retry", "online", "temperature"] == 5 * failures and per["retry", "replay", "greedy"] == 2 * failures
    one_model = attempts[
        (attempts["operator"] == "retry") | ((attempts["operator"] == "local_temp") & (attempts["anchor"] != "online"))
    ]
    assert (one_model["n_ancestor_tokens"] == 0).all()
    dense = attempts[attempts["operator"] == "dense_steer"]
    assert (dense["n_ancestor_tokens"] == dense["n_tokens"]).all() and (dense["n_tokens"] > 0).all()
    replayed = attempts[(attempts["operator"] == "sparse_steer") & (attempts["anchor"] == "replay")]
    assert (replayed["n_ancestor_tokens"] == 1).all() and (replayed["position"] >= 0).all()
    profiles = schema.read(tmp_path / "data/profiles", schema.PROFILES)
    assert len(profiles) == failures and set(profiles["cell"]) == {"tiny|lab"} and set(profiles["task"]) == {"lab"}


def change(folder: Path, **sections: dict) -> None:
    """Set values in sections of a folder's params.yaml."""
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    for name, values in sections.items():
        raw[name] = raw.get(name, {}) | values
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def test_what_met_max_tokens_is_recorded_counted_and_left_out_where_asked(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(params(pair, tmp_path), monkeypatch)
    rollouts = schema.read(tmp_path / "data/rollouts", schema.ROLLOUTS)
    cut = rollouts["truncated"]
    assert cut.tolist() == [t[-1] != 1 for t in rollouts["tokens"]]
    assert 0 < cut.sum() < len(cut) and (rollouts.loc[cut, "n_tokens"] == 16).all()
    assert schema.read(tmp_path / "data/attempts", schema.ATTEMPTS)["truncated"].any()
    change(tmp_path, featurize={"truncated": "leave out"})
    capsys.readouterr()
    loaded = settings.load()
    for name in STAGES[1:]:
        getattr(stages, name)(loaded)
    told = capsys.readouterr().out
    assert f"sample: tiny|lab: {cut.sum()} of {len(cut)} rollouts truncated" in told
    failed = rollouts[~rollouts["correct"]]
    out = int(failed["truncated"].sum())
    assert f"featurize: tiny|lab: {out} of {len(failed)} failed rollouts left out (truncated)" in told
    assert f"failures ({told.rpartition('failures (')[2].rpartition(')')[0]}); {cut.sum()} of {len(cut)}" in told
    kept = schema.read(tmp_path / "data/features", schema.FEATURE_ROWS)
    whole = failed[~failed["truncated"]]
    assert list(zip(kept["problem_id"], kept["rollout"], strict=True)) == list(
        zip(whole["problem_id"], whole["rollout"], strict=True)
    )
    schema.write(rollouts.assign(truncated=True), schema.ROLLOUTS, tmp_path / "mine.parquet")
    params(pair, tmp_path, rollouts="mine.parquet")
    change(tmp_path, featurize={"truncated": "leave out"})
    with pytest.raises(SalvageError, match=r"every failed rollout is left out \(truncated\); raise sample.max_tokens"):
        run(tmp_path, monkeypatch, "sample", "featurize")


@pytest.fixture
def thinkers(tmp_path: Path) -> tuple[Path, Path]:
    """Return the folders of two tiny models whose tokens are characters, and one that closes a thought."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    characters = {c: i for i, c in enumerate("\0</>abcdehiknot0123456789+=: ")}
    core = Tokenizer(models.WordLevel(characters, unk_token="\0"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    core.add_tokens([AddedToken("</think>", special=False)])
    speaker = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="\0")
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folders = tmp_path / "specialist", tmp_path / "ancestor"
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        config = LlamaConfig(**shape, vocab_size=len(speaker), max_position_embeddings=64, eos_token_id=0)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(20.0)
        model.save_pretrained(folder)
        speaker.save_pretrained(folder)
    return folders


def test_features_of_thinking_or_answer_alone_and_what_lacks_the_part_is_left_out(
    thinkers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from salvage.engine.speaker import Speaker

    texts = ["<think>12 a</think>ab 3", "<think>no end", "ab", "1+1=3</think>5"]
    encode = Speaker(*thinkers).encode
    tokens = [encode(text) for text in texts]
    own = {"cell": "m|t", "problem_id": "p", "rollout": range(4), "tokens": tokens, "text": texts, "correct": False}
    table = pd.DataFrame(own | {"n_tokens": [len(t) for t in tokens], "seed": -1})
    schema.write(table, schema.ROLLOUTS, tmp_path / "mine.parquet")
    problem = {"problem_id": "p", "prompt": "1+1:", "answer": "2", "verifier": "exact"}
    (tmp_path / "p.jsonl").write_text(json.dumps(problem) + "\n")
    seen = {}
    for part in ("both", "thinking", "answer"):
        params(thinkers, tmp_path, problems="p.jsonl", rollouts="mine.parquet")
        change(tmp_path, featurize={"part": part})
        run(tmp_path, monkeypatch, "problem_sets", "sample")
        stages.featurize(settings.load())
        seen[part] = schema.read(tmp_path / "data/features", schema.FEATURE_ROWS)
        run(tmp_path, monkeypatch, "intervene", "profile")
    told = capsys.readouterr().out
    assert "featurize: tiny|p: 1 of 4 failed rollouts left out (without the part 'thinking')" in told
    assert "featurize: tiny|p: 1 of 4 failed rollouts left out (without the part 'answer')" in told
    assert {part: rows["rollout"].tolist() for part, rows in seen.items()} == {
        "both": [0, 1, 2, 3], "thinking": [0, 1, 3], "answer": [0, 2, 3],
    }  # fmt: skip
    first = len(encode("<think>12 a</think>"))
    assert seen["answer"]["part_start"].tolist() == [first, 0, len(encode("1+1=3</think>"))]
    assert seen["thinking"]["part_end"].tolist() == [first, len(tokens[1]), len(encode("1+1=3</think>"))]
    assert seen["answer"]["n_tokens"].tolist() == [len(tokens[i]) for i in (0, 2, 3)]
    assert seen["answer"]["junction"][0] >= first > seen["thinking"]["junction"][0]
    j = schema.read(tmp_path / "data/signals", schema.SIGNAL_ROWS)["j"][0]
    assert len(j) == len(tokens[0]) and seen["answer"]["j_max"][0] == pytest.approx(j[first:].max())


def test_how_it_is_sampled_is_of_the_specialists_generation_config_where_auto(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "specialist"
    shutil.copytree(pair[0], own)
    (own / "generation_config.json").write_text('{"temperature": 1.3, "top_k": 2, "eos_token_id": 1}')
    tables_of = []
    for values in ({"temperature": "auto", "top_k": "auto"}, {"temperature": 1.3, "top_k": 2}, {"temperature": 1.3}):
        params((own, pair[1]), tmp_path)
        change(tmp_path, sample=values)
        run(tmp_path, monkeypatch, "problem_sets", "sample")
        tables_of.append(next((tmp_path / "data/rollouts").glob("*.parquet")).read_bytes())
    assert tables_of[0] == tables_of[1] != tables_of[2]  # the values are in the fingerprint, not where they are from


def test_without_models_of_the_lab_their_folder_is_there_for_dvc(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(params(pair, tmp_path), monkeypatch, "lab") == [0]
    assert list((tmp_path / "data/models").iterdir()) == []


@pytest.mark.slow
def test_the_tables_show_a_failure_and_arms_are_compared_on_problems_they_lack(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = params(pair, tmp_path)
    raw = yaml.safe_load((folder / "params.yaml").read_text())
    raw["profiles"]["own"]["rescue"] = 10
    raw["rescue"] |= {"data": ["data"], "budgets": [2, 4], "shown": 2}
    raw["evaluate"]["resamples"] = 100
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    run(folder, monkeypatch)
    (folder / "data/full").symlink_to("../data")  # dvc.yaml names it
    shutil.copy(ROOT / "dvc.yaml", folder)
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(ROOT / "src")}

    def salvage(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "salvage", *arguments]
        return subprocess.run(command, cwd=folder, env={**os.environ, **store}, capture_output=True, text=True)

    problem = schema.read(folder / "data/profiles", schema.PROFILES)["problem_id"].iloc[0]
    shown = salvage("show", problem)
    assert shown.returncode == 0, shown.stderr
    assert "marks the junction" in shown.stdout and "of 5" in shown.stdout and "by rule" in shown.stdout
    assert "has no failed rollout" in salvage("show", "nothing").stderr
    first = salvage("rescue")
    assert first.returncode == 0, first.stderr
    assert "rescue: tiny|lab done" in first.stdout and "beats retry" in first.stdout
    rows = json.loads((folder / "metrics/rescue.json").read_text())
    assert {(r["arm"], r["budget"]) for r in rows} == {(a, b) for a in raw["rescue"]["arms"] for b in (2, 4)}
    views = json.loads((folder / "data/rescue/views.json").read_text())
    assert len(views) == 2 and all(v["attempts"][0]["operator"] == "sample" for v in views)
    import mlflow

    client = mlflow.MlflowClient(store["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("salvage")
    assert experiment is not None
    assert len(client.search_traces(locations=[experiment.experiment_id])) == 2
    again = salvage("rescue", "--quiet")
    assert again.returncode == 0 and json.loads((folder / "metrics/rescue.json").read_text()) == rows
    assert len(client.search_traces(locations=[experiment.experiment_id])) == 2  # nothing is traced twice


def test_a_second_run_does_nothing_and_a_third_from_nothing_gives_the_same_bytes(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [params(pair, tmp_path / name) for name in ("a", "b") if not (tmp_path / name).mkdir()]
    run(folders[0], monkeypatch)
    before = tables(folders[0])
    assert run(folders[0], monkeypatch, "sample", "featurize", "intervene") == [0, 0, 0]
    run(folders[1], monkeypatch)
    assert tables(folders[1]) == before == tables(folders[0])
    assert not list((folders[0] / "data/shards").rglob("*.parquet"))


def test_imported_rollouts_take_the_place_of_sampling(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(params(pair, tmp_path), monkeypatch, "problem_sets", "sample")
    sampled = schema.read(tmp_path / "data/rollouts", schema.ROLLOUTS)
    schema.write(sampled.assign(cell="elsewhere"), schema.ROLLOUTS, tmp_path / "mine.parquet")
    run(params(pair, tmp_path, rollouts="mine.parquet"), monkeypatch, "sample", "featurize")
    assert set(schema.read(tmp_path / "data/features", schema.FEATURE_ROWS)["cell"]) == {"tiny|lab"}
    schema.write(sampled.assign(problem_id="stranger").head(1), schema.ROLLOUTS, tmp_path / "mine.parquet")
    with pytest.raises(SalvageError, match=r"mine.parquet: row 0: problem 'stranger' is not in lab"):
        run(tmp_path, monkeypatch, "sample")


def test_what_another_profiles_cells_left_is_dropped(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(params(pair, tmp_path), monkeypatch, "problem_sets", "sample")
    run(params(pair, tmp_path, name="renamed"), monkeypatch, "problem_sets", "sample")
    assert [p.name for p in (tmp_path / "data/rollouts").iterdir()] == ["renamed--lab.parquet"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sample", "intervene"])
def test_killed_in_the_middle_it_goes_on_to_the_same_table(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(stages, "SHARD", 2)
    folders = [params(pair, tmp_path / name) for name in ("whole", "killed") if not (tmp_path / name).mkdir()]
    earlier = STAGES[: STAGES.index(stage)]
    run(folders[0], monkeypatch, *earlier, stage)
    run(folders[1], monkeypatch, *earlier)
    code = "from salvage.pipeline import stages\nfrom salvage.project import settings\n"
    code += f"stages.SHARD = 2\nstages.{stage}(settings.load())"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folders[1], stdout=subprocess.DEVNULL, env=env)
    deadline = time.monotonic() + 120
    written = "rollouts" if stage == "sample" else "attempts"
    kept = folders[1] / "data/shards" / written
    while len(list(kept.rglob("0*.parquet"))) < 2:
        assert process.poll() is None and time.monotonic() < deadline, "ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not list((folders[1] / "data" / written).glob("*.parquet")), "no half table"
    done = {p: p.stat().st_mtime_ns for p in kept.rglob("0*.parquet")}
    assert 2 <= len(done) < 6
    run(folders[1], monkeypatch, stage)
    whole, killed = (next((f / "data" / written).glob("*.parquet")).read_bytes() for f in folders)
    assert killed == whole


def test_a_cell_without_failures_is_refused_in_a_sentence(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = params(pair, tmp_path)
    run(folder, monkeypatch, "problem_sets", "sample")
    file = next((folder / "data/rollouts").glob("*.parquet"))
    schema.write(schema.read(file, schema.ROLLOUTS).assign(correct=True), schema.ROLLOUTS, file, "x")
    with pytest.raises(SalvageError, match=r"'tiny\|lab' has no failed rollout; give it harder problems"):
        run(folder, monkeypatch, "featurize")


def test_a_prompt_longer_than_the_context_names_its_problem(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "long.jsonl").write_text(
        '{"problem_id": "short", "prompt": "1+1:", "answer": "2"}\n'
        + '{"problem_id": "long", "prompt": "'
        + "1+" * 60
        + '1:", "answer": "1"}\n'
    )
    folder = params(pair, tmp_path, problems="long.jsonl")
    with pytest.raises(SalvageError, match=r"long.*prompt of 122 tokens .* context of 96"):
        run(folder, monkeypatch, "problem_sets", "sample")
    assert not (folder / "data/rollouts").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"profile": "nope"}, "profile 'nope' is not one of quick, default, full, own"),
        ({"cells": [{"name": "x"}]}, r"cells\[0\].specialist is missing"),
        ({"cells": [{"name": "x", "specialist": "a", "ancestor": "b", "problems": "p"}] * 2}, r"'x\|p' stands twice"),
    ],
)
def test_bad_params_are_refused(tmp_path: Path, change: dict, sentence: str) -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text()) | change
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(SalvageError, match=sentence):
        settings.load(tmp_path / "params.yaml")


def test_lab_seeds_take_turns_on_the_ancestors() -> None:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    lab = settings._lab_models(raw["profiles"]["full"]["lab"], raw["methods"])
    table = pd.DataFrame([vars(m) for m in lab if m.method != "ancestor"])
    assert (table.groupby(["family", "method"])["ancestor_seed"].nunique() == 2).all()
    assert (table.groupby(["family", "method"]).size() == 6).all()
