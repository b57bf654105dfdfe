"""The engine decodes by the letter of method.md, token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from salvage.engine.base import COV, PATH, Intervention, Request, Sampling, seed_of
from salvage.engine.transformers import TransformersEngine
from salvage.method.reference import Array, Model, decode

PROMPTS = ["1+2:", "3*4-5:", "6-7+8*9:"]
ACTS = [
    Intervention(),
    Intervention("sparse", threshold=0.5, warmup=2),
    Intervention("sparse", threshold=0.5, warmup=1, wrong=True, alpha=0.3),
    Intervention("sparse", position=4, mix=COV, alpha=0.4),
    Intervention("sparse", position=2, alpha=0.4),
    Intervention("local_temp", threshold=0.8, warmup=1, local_temperature=2.0),
    Intervention("local_temp", position=3, local_temperature=2.0),
    Intervention("dense", mix=PATH),
    Intervention("dense", mix=COV, alpha=0.5, greedy=True),
]


def forward(folder: Path) -> Model:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()

    def logits(tokens: list[int]) -> Array:
        with torch.no_grad():
            return model(torch.tensor([tokens])).logits[0, -1].double().numpy()

    return logits


@pytest.mark.parametrize("greedy", [False, True])
def test_the_engine_decodes_by_the_letter(pair: tuple[Path, Path], greedy: bool) -> None:
    engine, models = TransformersEngine(*pair, top_k_cov=3), [forward(folder) for folder in pair]
    some = [
        Request(engine.encode(p), seed_of(p, k), prefix=engine.encode(p)[:k], intervention=act, greedy=greedy)
        for p in PROMPTS
        for k in range(2)
        for act in ACTS
    ]
    done = engine.decode(some, sampling=Sampling(0.6), max_tokens=12)
    told = [decode(*models, r, sampling=Sampling(0.6), max_tokens=12, ends=engine.ends, top_k_cov=3) for r in some]
    assert done == told
    assert sum(c.position >= 0 for c in told) > len(some) / 3
