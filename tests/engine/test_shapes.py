"""Models of the shapes that people have: both engines run them, or say in a sentence why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import shapes
from salvage.engine.base import Intervention, Request, Sampling
from salvage.engine.transformers import TransformersEngine
from salvage.errors import SalvageError

QUESTION = {"problem_id": "p", "prompt": "What is 6 times 7?"}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    return {shape: shapes.pair(tmp_path_factory.mktemp("shapes"), shape, bos=True) for shape in shapes.CONFIGS}


@pytest.mark.parametrize("shape", shapes.CONFIGS)
def test_case_21_a_shape_decodes_as_its_own_library_does_and_scores_its_own_logits(
    pairs: dict[str, tuple[Path, Path]], shape: str
) -> None:
    engine = TransformersEngine(*pairs[shape], top_k_cov=3)
    assert engine.vocabulary == shapes.LENGTH and engine.context == 128
    prompt = engine.prompt(QUESTION)
    (done,) = engine.decode([Request(prompt, 0, greedy=True)], sampling=Sampling(1.0), max_tokens=40)
    model = AutoModelForCausalLM.from_pretrained(pairs[shape][0], dtype="float32").eval()
    ids = torch.tensor([prompt])
    padding = list(range(shapes.LENGTH, model.get_output_embeddings().weight.shape[0])) or None
    theirs = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, suppress_tokens=padding
    )
    assert done.tokens == theirs[0, len(prompt) :].tolist() and len(set(done.tokens)) > 3
    (scored,) = engine.signals([prompt], [done.tokens], temperature=1.0, top_k_cov=3)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + done.tokens])).logits[0, len(prompt) - 1 : -1, : shapes.LENGTH]
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy().numpy()
    np.testing.assert_allclose(scored["entropy"], entropy, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [shape for shape in shapes.CONFIGS if shape not in ("gemma wrapped", "cohere scaled")]
)
def test_case_21_both_engines_agree_on_a_shape(pairs: dict[str, tuple[Path, Path]], shape: str) -> None:
    from salvage.engine.vllm import VllmEngine

    theirs, mine = TransformersEngine(*pairs[shape], top_k_cov=3), VllmEngine(*pairs[shape], top_k_cov=3, batch=8)
    try:
        prompts = [mine.prompt({"prompt": f"What is {i} times 7?"}) for i in range(8)]
        for act in (Intervention(), Intervention("dense", mix=0)):
            some = [Request(prompt, i, intervention=act) for i, prompt in enumerate(prompts)]
            done = theirs.decode(some, sampling=Sampling(1.0), max_tokens=30)
            assert mine.decode(some, sampling=Sampling(1.0), max_tokens=30) == done
        tokens = [c.tokens for c in done]
        told = [engine.signals(prompts, tokens, temperature=1.0, top_k_cov=3) for engine in (mine, theirs)]
        for a, b in zip(*told, strict=True):
            np.testing.assert_allclose(a["entropy"], b["entropy"], atol=1e-3)
    finally:
        mine.close()


def test_a_token_that_is_padding_of_the_embeddings_is_never_said(pairs: dict[str, tuple[Path, Path]]) -> None:
    engine = TransformersEngine(*pairs["qwen padded"])
    assert engine.specialist.get_input_embeddings().weight.shape[0] == 128
    some = [Request(engine.prompt(QUESTION), seed) for seed in range(40)]
    said = {token for c in engine.decode(some, sampling=Sampling(50.0), max_tokens=20) for token in c.tokens}
    assert len(said) > 60 and max(said) < shapes.LENGTH


def test_sharded_safetensors_are_read(tmp_path: Path) -> None:
    whole, parts = shapes.model("llama"), tmp_path / "parts"
    shapes.save(tmp_path / "whole", whole, shapes.tokenizer())
    shapes.save(parts, whole, shapes.tokenizer(), max_shard_size="40KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    told = []
    for folder in (tmp_path / "whole", parts):
        engine = TransformersEngine(folder)
        done = engine.decode([Request(engine.prompt(QUESTION), 3)], sampling=Sampling(1.0), max_tokens=30)
        told.append(done[0].tokens)
    assert told[0] == told[1]


def _pickled(folder: Path) -> None:
    torch.save(AutoModelForCausalLM.from_pretrained(folder).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


ODD = {
    "bin alone": (_pickled, r"has its weights as .bin alone, which is pickle .*save it anew as safetensors"),
    "bitsandbytes": (
        lambda f: shapes.rewrite(f / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        r"is quantised \(bitsandbytes\).*full or half precision",
    ),
    "gptq": (
        lambda f: shapes.rewrite(f / "config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"is quantised \(gptq\)",
    ),
    "modelopt": (lambda f: (f / "hf_quant_config.json").write_text("{}"), r"is quantised \(ModelOpt\)"),
    "own code": (
        lambda f: shapes.rewrite(f / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Mine"}),
        r"cannot be loaded: ",
    ),
    "unknown": (lambda f: shapes.rewrite(f / "config.json", model_type="mine"), r"cannot be loaded: .*`mine`"),
    "encoder": (
        lambda f: shapes.rewrite(f / "config.json", model_type="t5", architectures=["T5ForConditionalGeneration"]),
        r"has an encoder \(t5\)",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"cannot be loaded: .*model\.safetensors"),
    "no head": (
        lambda f: shapes.rewrite(f / "config.json", tie_word_embeddings=False),
        r"lacks weights, first 'lm_head.weight'; save the whole model anew",
    ),
    "torn weights": (lambda f: (f / "model.safetensors").write_bytes(b"torn"), r"cannot be loaded: "),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_cannot_be_run_is_refused_by_name(pairs: dict[str, tuple[Path, Path]], tmp_path: Path, odd: str) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(pairs["llama tied"][0], folder)
    breaks, message = ODD[odd]
    breaks(folder)
    with pytest.raises(SalvageError, match=f"'{folder}' {message}"):
        TransformersEngine(folder)


def test_a_recurrent_model_is_refused_by_the_engine_that_cannot_keep_its_state(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=shapes.LENGTH, hidden_size=16, num_hidden_layers=1, state_size=4))
    shapes.save(tmp_path, model, shapes.tokenizer())
    with pytest.raises(SalvageError, match=r"has layers that engine transformers does not run .*use engine vllm"):
        TransformersEngine(tmp_path)
