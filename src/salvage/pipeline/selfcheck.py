"""Does an engine do here what the method says? Every operator, on a built-in pair, held to the reference decoder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from salvage.engine.base import COV, PATH, Completion, Intervention, Request, Sampling, seed_of
from salvage.engine.choice import ENGINES, chosen
from salvage.engine.looking import Finding
from salvage.engine.speaker import Speaker
from salvage.errors import SalvageError
from salvage.method import reference
from salvage.method.signals import token_signals

PROMPTS = ["1+2:", "3*4-5:", "6-7+8*9:", "0+0-1:"]
ACTS = {
    "retry": Intervention(),
    "sparse_steer online": Intervention("sparse", threshold=0.5, warmup=2),
    "sparse_steer position": Intervention("sparse", position=4, mix=PATH, alpha=0.4),
    "sparse_steer_wrong": Intervention("sparse", threshold=0.5, warmup=1, wrong=True, alpha=0.3),
    "local_temp online": Intervention("local_temp", threshold=0.8, warmup=1, local_temperature=2.0),
    "local_temp position": Intervention("local_temp", position=5, local_temperature=2.0),
    "dense_steer path": Intervention("dense", mix=PATH),
    "dense_steer cov": Intervention("dense", mix=COV, alpha=0.5),
    "dense_steer argmax": Intervention("dense", mix=COV, greedy=True),
}
TEMPERATURE, MAX_TOKENS, TOP_K_COV = 0.6, 24, 3
ENOUGH = 0.99  # of decodes: logits differ in their last bits, and a draw may fall in between
CLOSE = 1e-4  # nats, of signals


def selfcheck() -> Iterator[Finding]:
    """Yield what came of the check, engine by engine."""
    from transformers.utils import logging

    from salvage.lab.ancestors import untrained_pair

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        pair = untrained_pair(Path(folder))
        for name in ENGINES:
            try:
                chosen(name)
            except SalvageError as error:
                yield Finding(f"engine {name}", None, str(error).split(";")[0])
                continue
            yield _checked(name, pair)


def _checked(name: str, pair: tuple[Path, Path]) -> Finding:
    about = f"engine {name}"
    try:
        with _opened(name, pair) as engine:
            some = _requests(engine)
            expected = _expected(pair, some, engine.ends)
            engine.decode(
                some[:4], sampling=Sampling(TEMPERATURE), max_tokens=MAX_TOKENS
            )  # starts what is slow to start
            start = time.monotonic()
            done = engine.decode(some, sampling=Sampling(TEMPERATURE), max_tokens=MAX_TOKENS)
            seconds = time.monotonic() - start
            off = _signals_off(engine, pair, some, [c.tokens for c in done])
    except SalvageError as error:
        return Finding(about, False, str(error))
    kinds = list(ACTS)
    wrong = [kinds[i % len(kinds)] for i, (a, b) in enumerate(zip(done, expected, strict=True)) if a != b]
    acted = sum(c.position >= 0 or r.intervention.kind == "dense" for c, r in zip(done, some, strict=True))
    told = (
        f"{len(done) - len(wrong)} of {len(done)} decodes as the method says, steering acted in {acted}, signals off "
        f"by {off:.0e} nats at most, {sum(c.n_tokens for c in done) / seconds:,.0f} tokens a second"
    )
    if len(wrong) > (1 - ENOUGH) * len(done):
        return Finding(about, False, f"{told}; {wrong[0]} goes wrong, do not trust this engine here")
    if off > CLOSE:
        return Finding(about, False, f"{told}; its signals are wrong, do not trust this engine here")
    return Finding(about, True, told)


@contextmanager
def _opened(name: str, pair: tuple[Path, Path]) -> Iterator[Any]:
    engine: Any
    if name == "vllm":
        from salvage.engine.vllm import VllmEngine

        engine = VllmEngine(*pair, top_k_cov=TOP_K_COV)
    else:
        from salvage.engine.transformers import TransformersEngine

        engine = TransformersEngine(*pair, top_k_cov=TOP_K_COV)
    with closing(engine):
        yield engine


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread: the pair's matrices are smaller than what it costs to share one out."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _requests(engine: Speaker) -> list[Request]:
    plain = [Request(engine.encode(p), seed_of(p, k)) for p in PROMPTS for k in range(3)]
    return [replace(r, intervention=act, greedy=i % 3 == 2) for i, r in enumerate(plain) for act in ACTS.values()]


def _expected(pair: tuple[Path, Path], some: list[Request], ends: list[int]) -> list[Completion]:
    specialist, ancestor = map(_forward, pair)
    return [
        reference.decode(
            specialist,
            ancestor,
            request,
            sampling=Sampling(TEMPERATURE),
            max_tokens=MAX_TOKENS,
            top_k_cov=TOP_K_COV,
            ends=ends,
        )
        for request in some
    ]


def _forward(folder: Path) -> reference.Model:
    """Return a model as a function from tokens to the logits of the next one, which remembers what it was asked."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    known: dict[tuple[int, ...], reference.Array] = {}

    def logits(tokens: list[int]) -> reference.Array:
        key = tuple(tokens)
        if key not in known:
            with torch.no_grad():
                known[key] = model(torch.tensor([tokens])).logits[0, -1].double().numpy()
        return known[key]

    return logits


def _signals_off(engine: Any, pair: tuple[Path, Path], some: list[Request], done: list[list[int]]) -> float:
    """Return by how much the engine's signals differ from the method's in numpy, at most."""
    models = [_forward(folder) for folder in pair]
    some, done = some[:: len(ACTS)], done[:: len(ACTS)]
    told = engine.signals([r.prompt for r in some], done, temperature=TEMPERATURE, top_k_cov=TOP_K_COV)
    off = 0.0
    for request, tokens, mine in zip(some, done, told, strict=True):
        z_s, z_a = (np.stack([m(request.prompt + tokens[:t]) for t in range(len(tokens))]) for m in models)
        exact = token_signals(z_s, z_a, tokens, temperature=TEMPERATURE, top_k_cov=TOP_K_COV)
        off = max(off, *(float(np.abs(mine[name] - exact[name]).max()) for name in exact))
    return off
