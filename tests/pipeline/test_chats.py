"""A chat model's adapter through the stages: the tables of the model merged by hand, and stale with its template."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import shapes
from salvage.errors import SalvageError
from salvage.pipeline import run as pipeline
from salvage.pipeline import stages
from salvage.project import settings
from salvage.rescue import choosing
from salvage.tables import schema

STAGES = ["problem_sets", "sample", "featurize", "intervene", "profile"]
TABLES = ["rollouts", "signals", "features", "attempts", "profiles", "facts"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    speaker = shapes.tokenizer(bos=True, template=shapes.CHATML)
    base = shapes.save(tmp_path / "base", shapes.model("llama"), speaker)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"])
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(tmp_path / "lora")
    speaker.save_pretrained(tmp_path / "lora")
    adapter_config = tmp_path / "lora/adapter_config.json"
    shapes.rewrite(adapter_config, base_model_name_or_path="base")
    adapted.merge_and_unload().save_pretrained(tmp_path / "by-hand")
    speaker.save_pretrained(tmp_path / "by-hand")
    lines = [
        {
            "problem_id": f"p{i}",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{i}*7?"}],
            "answer": str(7 * i),
            "verifier": "numeric",
        }
        for i in range(3, 7)
    ]
    Path("problems.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def params(specialist: str, engine: str = "transformers", **more: str) -> settings.Settings:
    cell = {"name": "mine|t", "specialist": specialist, "problems": "problems.jsonl", "engine": engine}
    own = {"max_tokens": 12, "batch": 8, "top_k_cov": 3, "warmup": 1}
    profile = {"problems": 0, "attempts": 2, "retries": 2}
    values = {"profile": "own", "profiles": {"own": profile}, "sample": {"rollouts": 2}}
    Path("params.yaml").write_text(yaml.safe_dump(values | {"cells": [cell | own | more]}))
    return settings.load()


def run(loaded: settings.Settings) -> list[int]:
    return [getattr(stages, name)(loaded, quiet=True) for name in STAGES]


def tables(loaded: settings.Settings) -> dict[str, pa.Table]:
    """Run the stages and return each table without its fingerprint, which says what it was made from."""
    run(loaded)
    return {name: pq.read_table(f"data/{name}/{loaded.cells[0].file}").replace_schema_metadata() for name in TABLES}


def test_case_23_an_adapter_gives_the_tables_of_the_model_merged_by_hand(project: Path) -> None:
    told = []
    for specialist, more in (("lora", {}), ("by-hand", {"ancestor": "base"})):
        loaded = params(specialist, **more)
        assert loaded.cells[0].ancestor == "base"
        told.append(tables(loaded))
    assert told[0] == told[1]
    rollouts = schema.read("data/rollouts", schema.ROLLOUTS)
    assert len(rollouts) == 8 and rollouts["text"].nunique() > 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_case_23_an_adapter_that_trl_trained_gives_on_vllm_the_tables_of_the_model_merged_by_hand(
    project: Path,
) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    chats = [json.loads(line) for line in Path("problems.jsonl").read_text().splitlines()]
    said = [{"prompt": c["messages"], "completion": [{"role": "assistant", "content": c["answer"]}]} for c in chats]
    speaker = AutoTokenizer.from_pretrained("base")
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained("base"),
        args=SFTConfig("scratch", max_steps=6, learning_rate=0.1, bf16=False, use_cpu=True, report_to="none"),
        train_dataset=Dataset.from_list(said * 4),
        processing_class=speaker,
        peft_config=peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.model.save_pretrained("trained")
    speaker.save_pretrained("trained")
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "trained")
    adapted.merge_and_unload().save_pretrained("trained-by-hand")
    speaker.save_pretrained("trained-by-hand")
    told = [tables(params(name, "vllm", ancestor="base")) for name in ("trained", "trained-by-hand", "by-hand")]
    assert told[0] == told[1]
    assert all(told[1][name] != told[2][name] for name in TABLES)


def test_a_table_of_chats_is_made_anew_with_another_template_or_system_prompt(project: Path) -> None:
    loaded = params("by-hand", ancestor="base")
    assert run(loaded)[1] == 1 and run(loaded)[1:4] == [0, 0, 0]
    template = project / "by-hand/chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\n", "model\n"))
    assert run(loaded)[1:4] == [1, 1, 1]
    Path("problems.jsonl").write_text(Path("problems.jsonl").read_text().replace("Be brief.", "Be quick."))
    assert run(loaded)[1:4] == [1, 1, 1]
    assert schema.read("data/problems/problems.parquet", schema.PROBLEMS)["prompt"][0] == (
        "[system]\nBe quick.\n\n[user]\n3*7?"
    )


def test_case_23_run_and_rescue_find_an_adapters_base(project: Path) -> None:
    pair = pipeline.own_pair("lora", None, "problems.jsonl", None)
    assert pair is not None and (pair["specialist"], pair["ancestor"]) == ("lora", "base")
    loaded = settings.load()
    cell, table = choosing.choose(loaded, "", "lora", "", "problems.jsonl", "transformers")
    assert cell.ancestor == "base" and len(table) == 4
    with pytest.raises(SalvageError, match="a pair of models is needed"):
        choosing.choose(loaded, "", "by-hand", "", "problems.jsonl", "transformers")


def test_a_chat_is_rescued_from_its_messages(project: Path) -> None:
    from salvage.rescue.loop import Budget, rescue

    loaded = params("lora")
    done = list(rescue("problems.jsonl", loaded.cells[0], None, Budget(2), settings=loaded))
    assert [o.prompt for o in done] == [f"[system]\nBe brief.\n\n[user]\n{i}*7?" for i in range(3, 7)]
    run(loaded)
    rollouts = schema.read("data/rollouts", schema.ROLLOUTS)
    assert {len(o.attempts) for o in done} <= {1, 2} and len(rollouts) == 8
