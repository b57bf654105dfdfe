"""An adapter as specialist: merged once, the same as merged by hand, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

import shapes
from salvage.engine import adapters
from salvage.errors import SalvageError
from salvage.project import settings

LINEAR = ["q_proj", "v_proj", "down_proj"]
IDS = torch.tensor([[7, 8, 9, 10, 11, 12]])


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for shape in ("llama", "llama tied", "gemma wrapped"):
        folder = tmp_path_factory.mktemp("bases") / shape.replace(" ", "-")
        made[shape] = shapes.save(folder, shapes.model(shape), shapes.tokenizer(template=shapes.CHATML))
    return made


def adapter(folder: Path, base: Path, *, rows: int = 0, speaker: Any = None, dtype: Any = "auto", **how: Any) -> Path:
    """Train nothing: give an adapter random weights and save it as PEFT does."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if rows:
        torch.manual_seed(5)
        model.resize_token_embeddings(rows)
    values = {"task_type": "CAUSAL_LM", "target_modules": LINEAR, "r": 4, "lora_alpha": 8} | how
    adapted = peft.get_peft_model(model, peft.LoraConfig(**values))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    adapted.save_pretrained(folder)
    if speaker is not None:
        speaker.save_pretrained(folder)
    return folder


def by_hand(folder: Path, base: Path, rows: int = 0) -> torch.Tensor:
    """Return what the adapter itself answers, unmerged."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        return peft.PeftModel.from_pretrained(model, folder).eval()(input_ids=IDS).logits


def answers(folder: str) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=IDS).logits


KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "all linear": {"target_modules": "all-linear"},
    "head saved": {"modules_to_save": ["lm_head"]},
    "embeddings and head saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "lora on embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "some tokens": {"trainable_token_indices": [3, 4]},
    "some layers": {"layers_to_transform": [1], "rank_pattern": {"q_proj": 2}},
    "bias": {"bias": "all"},
    "pissa": {"init_lora_weights": "pissa"},
}
TIED = ["lora", "head saved", "embeddings and head saved", "lora on embeddings", "lora on the head", "some tokens"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "shape"), [*((kind, "llama") for kind in KINDS), *((k, "llama tied") for k in TIED)])
def test_case_23_merged_it_answers_as_the_adapter_does(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shape: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = adapter(tmp_path / "mine", bases[shape], **KINDS[kind])
    merged = adapters.whole(str(folder), "")
    assert merged.startswith("data/cache/merged/mine-") and not list(Path("data/cache/merged").glob(".*"))
    torch.testing.assert_close(answers(merged), by_hand(folder, bases[shape]), rtol=1e-3, atol=1e-3)
    assert (answers(merged) - answers(str(bases[shape]))).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", ["llama", "llama tied"])
@pytest.mark.parametrize("kind", ["lora", "embeddings and head saved"])
def test_case_23_tokens_that_were_added_come_with_the_adapter(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, shape: str
) -> None:
    from salvage.engine.speaker import Speaker

    monkeypatch.chdir(tmp_path)
    rows, speaker = shapes.LENGTH + 2, shapes.tokenizer(more=["[PAD]", "[TOOL]"])
    folder = adapter(tmp_path / "mine", bases[shape], rows=rows, speaker=speaker, **KINDS[kind])
    merged = adapters.whole(str(folder), str(bases[shape]))
    torch.testing.assert_close(answers(merged), by_hand(folder, bases[shape], rows), rtol=1e-3, atol=1e-3)
    assert Speaker(merged, None).vocabulary == rows


def test_case_23_the_data_type_is_the_base_s_and_the_tokenizer_the_specialist_s(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    half = tmp_path / "half"
    shapes.save(half, shapes.model("llama").bfloat16(), shapes.tokenizer(template=shapes.CHATML))
    own = adapter(tmp_path / "own", half, speaker=shapes.tokenizer(template="{{ messages }}"))
    bare = adapter(tmp_path / "bare", half)
    told = [json.loads((Path(adapters.whole(str(f), "")) / "config.json").read_text())["dtype"] for f in (own, bare)]
    assert told == ["bfloat16", "bfloat16"]
    templates = [(Path(adapters.whole(str(f), "")) / "chat_template.jinja").read_text() for f in (own, bare)]
    assert templates == ["{{ messages }}", shapes.CHATML]


def test_case_23_it_is_merged_once_and_anew_where_it_was_trained_on(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = adapter(tmp_path / "mine", bases["llama"])
    (folder / "optimizer.pt").write_bytes(b"what a trainer left")
    first = adapters.whole(str(folder), "")
    with monkeypatch.context() as context:
        context.setattr(adapters, "_merge", None)
        (folder / "optimizer.pt").write_bytes(b"and left again")
        assert adapters.whole(str(folder), str(bases["llama"])) == first
    adapter(folder, bases["llama"], lora_alpha=16)
    assert adapters.whole(str(folder), "") != first


def test_case_23_the_base_is_found_given_or_told(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, other = bases["llama"], tmp_path / "other"
    folder = str(adapter(tmp_path / "mine", base))
    assert settings.adapter_base(folder) == str(base) and settings.adapter_base(str(base)) == ""
    shapes.save(other, shapes.model("llama", 7), shapes.tokenizer())
    with pytest.warns(
        UserWarning, match=rf"trained on '{base}' and is merged into that; the ancestor given, '{other}'"
    ):
        assert adapters.whole(folder, str(other)) == adapters.whole(folder, str(base))
    shapes.rewrite(Path(folder) / "adapter_config.json", base_model_name_or_path="/gone/base")
    with pytest.warns(UserWarning, match=rf"trained on '/gone/base', which is not here; '{other}' is taken for it"):
        adapters.whole(folder, str(other))
    with pytest.raises(SalvageError, match="model '/gone/base' cannot be loaded"):
        adapters.whole(folder, "")
    shutil.copytree(base, tmp_path / "base")  # a copy under the base's own name is the base
    torch.testing.assert_close(answers(adapters.whole(folder, str(tmp_path / "base"))), by_hand(Path(folder), base))


def test_an_adapter_on_an_adapter_is_merged_from_the_ground(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    below = adapter(tmp_path / "below", bases["llama"])
    above = adapter(tmp_path / "above", Path(adapters.whole(str(below), "")))
    shapes.rewrite(above / "adapter_config.json", base_model_name_or_path=str(below))
    merged = adapters.whole(str(above), "")
    torch.testing.assert_close(answers(merged), by_hand(above, Path(adapters.whole(str(below), ""))))


@pytest.mark.filterwarnings("ignore")
def test_case_23_tokens_that_were_added_but_not_saved_are_told(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = shapes.LENGTH + 2
    folder = adapter(tmp_path / "mine", bases["llama"], rows=rows, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(SalvageError, match="trained with 2 tokens more than its base, and does not hold their embedd"):
        adapters.whole(str(folder), "")


@pytest.mark.filterwarnings("ignore")
def test_case_23_what_peft_cannot_merge_is_said_in_its_words(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = adapter(tmp_path / "mine", bases["llama"], lora_bias=True)
    with pytest.raises(SalvageError, match=r"cannot be merged: .*lora_bias=True.*give the folder of a whole model"):
        adapters.whole(str(folder), "")


def _config(**changes: Any) -> Any:
    return lambda folder: shapes.rewrite(folder / "adapter_config.json", **changes)


def _renamed(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({k.replace("layers.1.", "layers.9."): v for k, v in load_file(path).items()}, path)


def _pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


ODD = {
    "prompt tuning": (_config(peft_type="PROMPT_TUNING"), r"is of kind PROMPT_TUNING, and Salvage merges LoRA alone"),
    "ia3": (_config(peft_type="IA3"), r"is of kind IA3"),
    "a classifier's": (_config(task_type="SEQ_CLS"), r"is for SEQ_CLS; give one of a causal language model"),
    "activated": (_config(alora_invocation_tokens=[3]), r"uses an activated LoRA"),
    "qalora": (_config(use_qalora=True), r"uses QALoRA"),
    "loftq": (_config(loftq_config={"loftq_bits": 4}), r"uses LoftQ, on a quantised base"),
    "layers again": (_config(layer_replication=[[0, 2], [0, 2]]), r"uses replicated layers"),
    "no base": (_config(base_model_name_or_path=None), r"does not name the model that it was trained on"),
    "pickle": (_pickled, r"has its weights as \.bin alone, which is pickle; save it anew"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), r"has no adapter_model\.safetensors"),
    "other layers": (_renamed, r"does not fit its base .*layers\.1\..*give the base that it was trained on"),
    "other width": (_config(r=8), r"does not fit its base .*give the base that it was trained on"),
    "both": (lambda f: (f / "model.safetensors").write_bytes(b""), r"holds a whole model too; keep one of the two"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ODD)
def test_case_23_what_cannot_be_merged_is_refused_by_name(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = adapter(tmp_path / "mine", bases["llama"])
    breaks, message = ODD[odd]
    breaks(folder)
    with pytest.raises(SalvageError, match=message) as error:
        adapters.whole(str(folder), "")
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
    assert not list(Path("data/cache/merged").glob("*")) and not list(Path("data/cache/merged").glob(".*"))


def test_case_23_a_quantised_base_is_refused_by_name(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = adapter(tmp_path / "mine", bases["llama"])
    quantised = tmp_path / "bnb"
    shutil.copytree(bases["llama"], quantised)
    shapes.rewrite(quantised / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    shapes.rewrite(folder / "adapter_config.json", base_model_name_or_path=str(quantised))
    with pytest.raises(SalvageError, match=r"model '.*bnb' is quantised \(bitsandbytes\)"):
        adapters.whole(str(folder), "")
