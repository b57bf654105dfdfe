"""Ancestors: micro language models of two families, trained from scratch on a corpus of mixed style and quality."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils import logging

from salvage.lab import task

BATCH = 64  # documents a step
POOL = 16  # steps' worth of documents sorted by length at once: a third less padding
LEARNING_RATE = 5e-3
CONTEXT = 96  # tokens: the longest prompt (12) and trace (49) with room


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the lab's tokenizer: a character a token, `</s>` at the end, `<pad>`."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", *task.CHARACTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def blank(family: str) -> PreTrainedModel:
    """Return an untrained model of 0.64 M parameters: 3 layers, width 128, 4 heads; `qwen3` or `llama`."""
    shape = {
        "vocab_size": 2 + len(task.CHARACTERS),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**shape))
    return LlamaForCausalLM(LlamaConfig(**shape))


def untrained_pair(folder: Path) -> tuple[Path, Path]:
    """Save a pair of two families that share a vocabulary, with random weights, and return specialist and ancestor.

    Random weights decode varied tokens, which is all that a check of an engine needs.
    """
    paths = []
    for seed, family in enumerate(("qwen3", "llama")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = blank(family)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)  # sharper than at initialisation, so that argmax and mixes differ
        paths.append(folder / family)
        save(model, paths[-1])
    return paths[0], paths[1]


def batch(documents: list[str], speaker: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """Return documents with their end token as right-padded ids, mask and labels, each [documents, longest]."""
    ids = speaker([f"{d}</s>" for d in documents], padding=True, padding_side="right", return_tensors="pt")
    labels = ids["input_ids"].masked_fill(ids["attention_mask"] == 0, -100)
    return {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"], "labels": labels}


def train(family: str, seed: int, steps: int, folder: Path) -> float:
    """Train an ancestor and save it as an ordinary Hugging Face checkpoint.

    The budget is in steps, not in seconds, or the checkpoint would not be the same twice.

    Returns
    -------
    float
        The mean loss of the last 50 steps, nats a token.
    """
    torch.manual_seed(seed)
    logging.disable_progress_bar()  # of the one file that is saved
    rng, speaker, model = random.Random(f"ancestor/{family}/{seed}"), tokenizer(), blank(family)
    half = _halves_fast()
    model.set_attn_implementation("eager" if half else "sdpa")  # what is faster with each on a CPU, twice in bfloat16
    fitted_by = optimizers(model)
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(o, LEARNING_RATE, total_steps=steps, pct_start=0.05, cycle_momentum=False)
        for o in fitted_by
    ]
    model.train()
    losses: list[float] = []
    for documents in islice(steps_of_documents(rng), steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(**batch(documents, speaker)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(fitted_by, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
    save(model, folder)
    return sum(losses[-50:]) / len(losses[-50:])


def steps_of_documents(rng: random.Random) -> Iterator[list[str]]:
    """Yield a step's documents at a time, of nearly one length, the lengths in random order."""
    while True:
        pool = sorted(task.corpus(POOL * BATCH, rng), key=len)
        steps = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        rng.shuffle(steps)
        yield from steps


def optimizers(model: PreTrainedModel) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, which so learn in less than half of AdamW's steps, AdamW for the rest."""
    layers = [p for p in model.base_model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not layer for layer in layers)]
    muon = torch.optim.Muon(layers, lr=LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.98), fused=True)]


def _halves_fast() -> bool:
    """Tell whether the CPU multiplies bfloat16 in hardware; where it does not, float32 takes half the time."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def save(model: PreTrainedModel, folder: Path) -> None:
    """Save a model and the lab's tokenizer under `folder`."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
