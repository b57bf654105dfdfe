"""Tiny models of the shapes that people have, made on the spot: random weights, a character a token, no hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers import Regex as Pattern
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Cohere2Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|spare|>"]
CHARACTERS = [chr(i) for i in range(32, 127)] + ["\n"]
LENGTH = len(SPECIAL) + len(CHARACTERS)
CHATML = (
    "{{ bos_token }}{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tool may speak') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>\n{% endif %}{% endif %}"
)
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**SHAPE, vocab_size=LENGTH, tie_word_embeddings=False),
    "llama tied": lambda: LlamaConfig(**SHAPE, vocab_size=LENGTH, tie_word_embeddings=True),
    "qwen padded": lambda: Qwen3Config(**SHAPE, vocab_size=128, tie_word_embeddings=True),
    "mistral sliding": lambda: MistralConfig(**SHAPE, vocab_size=LENGTH, sliding_window=6),
    "gemma capped": lambda: Gemma2Config(
        **SHAPE, vocab_size=LENGTH, sliding_window=6, final_logit_softcapping=12.0, query_pre_attn_scalar=32
    ),
    "gemma text": lambda: Gemma3TextConfig(
        **SHAPE, vocab_size=LENGTH, sliding_window=6, layer_types=["sliding_attention", "full_attention"]
    ),
    "gemma wrapped": lambda: Gemma3Config(
        text_config={**SHAPE, "vocab_size": LENGTH, "sliding_window": 6},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 28,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        image_token_index=LENGTH - 1,
        boi_token_index=LENGTH - 2,
        eoi_token_index=LENGTH - 3,
    ),
    "granite scaled": lambda: GraniteConfig(**SHAPE, vocab_size=LENGTH, logits_scaling=3.0),
    "cohere scaled": lambda: Cohere2Config(**SHAPE, vocab_size=LENGTH, logit_scale=0.25, sliding_window=6),
}


def tokenizer(
    *,
    names: Iterable[str] = SPECIAL,
    more: Iterable[str] = (),
    bos: bool = False,
    eos: bool = False,
    template: str | None = None,
    ends: str = "</s>",
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one character a token; `bos` and `eos` are what it writes around every text."""
    first = [*names, *CHARACTERS]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(first)}, unk_token=first[0]))
    core.pre_tokenizer = pre_tokenizers.Split(Pattern(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True) for token in [*names, *more]])
    around = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    if bos or eos:
        core.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 1), ("</s>", 2)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token=ends, pad_token=first[0], clean_up_tokenization_spaces=False
    )
    made.chat_template = template
    return made


def model(shape: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Return an untrained model, sharper than at initialisation, so that argmax and mixes differ."""
    torch.manual_seed(seed)
    config = CONFIGS[shape]()
    for name, value in changes.items():
        setattr(config, name, value)
    made = Auto.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 and "vision" not in name:
                parameter.mul_(2.0 if "embed" in name else 9.0)
    return made


def save(folder: Path, model: PreTrainedModel, speaker: PreTrainedTokenizerFast, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    speaker.save_pretrained(folder)
    return folder


def pair(folder: Path, shape: str, **speaking: Any) -> tuple[Path, Path]:
    """Save a specialist and an ancestor of one shape."""
    speaker = tokenizer(**speaking)
    return tuple(save(folder / name, model(shape, seed), speaker) for seed, name in enumerate(("mine", "base")))  # type: ignore[return-value]


def rewrite(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
