"""Rollout, scored and steered tokens a second of the transformers engine, side by side in one run.

Usage: python benchmarks/engine.py SPECIALIST ANCESTOR   (folders of a lab pair, such as data/models/qwen3-sft-0)
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from salvage.engine.base import PATH, Intervention, Request, seed_of
from salvage.engine.transformers import TransformersEngine
from salvage.lab import task

ROUNDS = 3


def main(specialist: str, ancestor: str) -> None:
    """Time each kind of work ROUNDS times in turn and print the medians and their ratios."""
    engine = TransformersEngine(specialist, ancestor, top_k_cov=3)
    drawn = task.expressions(150, random.Random(0), judged=True)
    plain = [Request(engine.encode(f"{e}:"), seed_of(e, k)) for e in drawn for k in range(8)]
    dense = [replace(r, intervention=Intervention("dense", mix=PATH)) for r in plain]
    watch = [replace(r, intervention=Intervention("sparse", threshold=1e9)) for r in plain]
    done = engine.decode(plain, temperature=0.6, max_tokens=64)
    completions = [c.tokens for c in done]

    def decode(requests: list[Request]) -> Callable[[], int]:
        return lambda: sum(c.n_tokens for c in engine.decode(requests, temperature=0.6, max_tokens=64))

    def score() -> int:
        engine.signals([r.prompt for r in plain], completions, temperature=0.6, top_k_cov=3)
        return sum(map(len, completions))

    work = {
        "rollouts": decode(plain),
        "dense_steer": decode(dense),
        "watching j": decode(watch),
        "scored, both models": score,
    }
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, call in work.items():
            start = time.perf_counter()
            tokens = call()
            rates[name].append(tokens / (time.perf_counter() - start))
    medians = {name: sorted(values)[ROUNDS // 2] for name, values in rates.items()}
    print(f"{len(plain)} rollouts of {specialist}, {torch.get_num_threads()} threads, median of {ROUNDS}")
    for name, rate in medians.items():
        print(f"{name:20} {rate:9.0f} tokens/s   {rate / medians['rollouts']:.2f} of plain rollouts")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
