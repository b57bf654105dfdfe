"""Two models in one vLLM engine: all that touches vLLM's internals. Tested on the versions in
`choice.TESTED`, and refused on others.

A pair is a model by composition: both are vLLM's own, under the prefixes `specialist` and `ancestor`, so that layers
and KV caches have names of their own. Its hidden states are both models', side by side, since the runner selects rows
outside the model. What is done to the logits is done where they are born: `Steering` in the sampler (the same
arithmetic as the transformers engine, `steering.choose`), `Signals` in the pooler. Importing this module registers the
models; a worker process imports it because its extension class is named by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from itertools import groupby
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from transformers import AutoConfig
from vllm import ModelRegistry
from vllm.model_executor.layers.pooler import Pooler
from vllm.model_executor.layers.pooler.common import PoolingParamsUpdate
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from salvage.engine.base import Sampling
from salvage.engine.signals import token_signals
from salvage.engine.steering import Plan, choose, uniforms
from salvage.tables.vocabulary import SIGNALS

EXTENSION = f"{__name__}.Extension"
STEERING = f"{__name__}:Steering"

# by the engine's key: here its model, sampler and worker meet
_pairs: WeakValueDictionary[str, Pair] = WeakValueDictionary()
_steerings: WeakValueDictionary[str, Steering] = WeakValueDictionary()


def key_of(config: Any) -> str:
    """Return the name of the engine that a vLLM config belongs to."""
    return str(config.model_config.hf_config.salvage_key)


class Pair(torch.nn.Module):
    """A specialist and its ancestor, run on the same tokens; to vLLM one model that answers with the specialist.

    Without an ancestor it is the specialist alone.
    """

    specialist: Any
    ancestor: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.specialist = init_vllm_registered_model(
            vllm_config,
            prefix=maybe_prefix(prefix, "specialist"),
            hf_config=config,
            architectures=config.salvage_architectures,
        )
        self.ancestor = None
        if config.salvage_ancestor:
            self.ancestor = init_vllm_registered_model(
                vllm_config,
                prefix=maybe_prefix(prefix, "ancestor"),
                hf_config=AutoConfig.from_pretrained(config.salvage_ancestor),
            )
            self.secondary_weights = [DefaultModelLoader.Source(config.salvage_ancestor, None, prefix="ancestor.")]
        self.width = config.get_text_config().hidden_size
        self.hears = self.ancestor is not None  # False too while no request needs the ancestor: then it is not run
        self.heard: torch.Tensor | None = None  # the ancestor's logits, row for row those last returned
        _pairs[key_of(vllm_config)] = self

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.specialist.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden = self.specialist(input_ids, positions, intermediate_tensors, inputs_embeds)
        if not self.hears:
            return hidden
        return torch.cat([hidden, self.ancestor(input_ids, positions, intermediate_tensors, None)], -1)

    def logits(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Split hidden states of both models and return the logits of each; None where the ancestor was not run."""
        answered = self.specialist.compute_logits(hidden[:, : self.width].contiguous())
        if not self.hears or hidden.shape[1] == self.width:
            return answered, None
        return answered, self.ancestor.compute_logits(hidden[:, self.width :].contiguous())

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        answered, self.heard = self.logits(hidden_states)
        return answered

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Hand each model its weights as they are read: the specialist's first, then those named `ancestor.`."""
        loaded: set[str] = set()
        mark = "ancestor."
        for ancestor, some in groupby(weights, lambda item: item[0].startswith(mark)):
            model, name = (self.ancestor, "ancestor") if ancestor else (self.specialist, "specialist")
            read = model.load_weights((n.removeprefix(mark) if ancestor else n, tensor) for n, tensor in some)
            loaded |= {f"{name}.{n}" for n in read or ()}
        return loaded


class ScoringPair(Pair):
    """The same two models behind a pooler that answers with signals instead of tokens."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.pooler = Signals(self)


class Signals(Pooler):
    """Per-token signals, exact over the vocabulary, computed where the hidden states are.

    A request's `extra_kwargs` say what it wants: `start`, the first position whose token is scored, `temperature`,
    `top_k_cov`, `vocabulary` and `chunk`; or `k`, to get the k likeliest next tokens of both models instead.
    """

    pair: Pair

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        object.__setattr__(self, "pair", pair)  # not a submodule: the pair already owns this pooler

    def get_supported_tasks(self) -> Set[Any]:
        return {"token_classify"}

    def get_pooling_updates(self, task: Any) -> PoolingParamsUpdate:
        return PoolingParamsUpdate(requires_token_ids=True)

    def forward(self, hidden_states: torch.Tensor, pooling_metadata: Any) -> list[torch.Tensor | None]:
        wanted = pooling_metadata.pooling_params[0].extra_kwargs
        cursor = pooling_metadata.get_pooling_cursor()
        if wanted is None:  # vLLM's own dry run at the start
            return [hidden_states.new_zeros(1, len(SIGNALS)) for _ in pooling_metadata.pooling_params]
        if "k" in wanted:
            return self._alternatives(hidden_states[cursor.last_token_indices_gpu], wanted)
        starts = torch.tensor([p.extra_kwargs["start"] for p in pooling_metadata.pooling_params])
        counts = cursor.num_scheduled_tokens_cpu
        row = torch.repeat_interleave(torch.arange(len(counts)), counts)
        # position in its sequence of every token that this step runs on; each says what it expected of the next one
        first = (cursor.seq_lens_cpu - counts)[row] - (counts.cumsum(0) - counts)[row]
        position = torch.arange(len(row)) + first
        scored = (position + 1 >= starts[row]) & (position + 1 < cursor.prompt_lens_cpu[row])
        row, position, index = row[scored], position[scored], scored.nonzero()[:, 0]
        device = hidden_states.device
        tokens = pooling_metadata.prompt_token_ids_cpu[row, position + 1].long().to(device)
        told = self._score(hidden_states, index.to(device), tokens, wanted)
        parts = told.split(torch.bincount(row, minlength=len(counts)).tolist())
        return self._gathered(parts, pooling_metadata.pooling_states, cursor.get_finished_mask())

    def _score(
        self, hidden: torch.Tensor, index: torch.Tensor, tokens: torch.Tensor, wanted: dict[str, Any]
    ) -> torch.Tensor:
        """Return the signals [positions, SIGNALS], a chunk of positions' logits at a time."""
        parts = [torch.empty(0, len(SIGNALS), dtype=torch.float64, device=hidden.device)]
        for some, taken in zip(index.split(wanted["chunk"]), tokens.split(wanted["chunk"]), strict=True):
            both = self.pair.logits(hidden[some])
            z_s, z_a = (z[:, : wanted["vocabulary"]] for z in both if z is not None)
            values = {name: wanted[name] for name in ("temperature", "top_k_cov")}
            told = token_signals(z_s, z_a, taken, **values)
            parts.append(torch.stack([told[name] for name in SIGNALS], -1))
        return torch.cat(parts)

    def _gathered(
        self, parts: Iterable[torch.Tensor], states: list[Any], finished: list[bool]
    ) -> list[torch.Tensor | None]:
        """Keep what a chunk of a long prefill gave until its request is finished."""
        answers: list[torch.Tensor | None] = []
        for part, state, done in zip(parts, states, finished, strict=True):
            state.hidden_states_cache.append(part)
            answers.append(torch.cat(state.hidden_states_cache) if done else None)
            if done:
                state.clean()
        return answers

    def _alternatives(self, hidden: torch.Tensor, wanted: dict[str, Any]) -> list[torch.Tensor | None]:
        rows = []
        for logits in self.pair.logits(hidden):
            assert logits is not None
            p = torch.softmax(logits[:, : wanted["vocabulary"]].double() / wanted["temperature"], -1)
            top = p.topk(min(wanted["k"], p.shape[1]))
            rows += [top.indices.double(), top.values]
        return list(torch.stack(rows, 1))


class Steering(LogitsProcessor, LogitsProcessorV2):
    """Decides every token itself and tells the sampler by an infinite logit; requests are greedy to vLLM.

    Random numbers are each request's own, as in the transformers engine, so that vLLM's batches change nothing. One
    class for both of vLLM's model runners: V1 gives (config, device, ...) and moves requests between rows, V2 gives
    (config, request states) and fixed slots. V2 runs only where Triton does and is untested on a GPU.

    A request's row of the plan is what it was given at the start (`plan`), told by `extra_args`. A row that vLLM
    samples twice at one position (a prefill that was not finished, a preemption) is judged anew: only interventions
    at earlier positions count as done.
    """

    def __init__(self, vllm_config: Any, *rest: Any) -> None:
        self.key = key_of(vllm_config)
        states = rest[0]
        self.device = states if isinstance(states, torch.device) else states.device
        self.requests: dict[int, tuple[int, list[int]]] = {}  # V1: row to number and output, which vLLM appends to
        self.outputs: list[list[int]] = []
        self.states = states
        self.slots = None if isinstance(states, torch.device) else np.zeros(states.max_num_reqs, dtype=np.int64)
        self.numbers = torch.zeros(0, dtype=torch.long, device=self.device)
        self.plan: Plan | None = None
        _steerings[self.key] = self

    def begin(self, call: dict[str, Any]) -> None:
        """Take what a call of `decode` wants of its requests: columns of a plan, and what they share."""
        self.plan = Plan.of(call["plan"], self.device)
        self.uniform = torch.from_numpy(uniforms(call["seeds"], call["max_tokens"])).to(self.device)
        self.offset = torch.tensor(call["offset"], device=self.device)
        self.fired = torch.full_like(self.offset, -1)
        self.sampling, self.top_k_cov = Sampling(**call["sampling"]), call["top_k_cov"]
        self.vocabulary = call["vocabulary"]
        pair = _pairs.get(self.key)
        if pair is not None:
            pair.hears = call["hears"]

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """V1: follow the requests from row to row."""
        if process_dict_updates(self.requests, batch_update, _own):
            rows = [self.requests[i] for i in range(len(self.requests))]
            self.numbers = torch.tensor([number for number, _ in rows], dtype=torch.long, device=self.device)
            self.outputs = [output for _, output in rows]

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: note which request a slot holds."""
        assert self.slots is not None
        self.slots[req_idx] = sampling_params.extra_args["salvage"]
        return True

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Decide the next token of every row, and make it the greedy one."""
        if self.plan is None or not (self.requests or ctx):  # nothing of ours in the batch
            return logits
        if ctx is None:
            numbers = self.numbers
            lengths = np.fromiter(map(len, self.outputs), np.int64, len(self.outputs))
            at = self.offset[numbers] + torch.from_numpy(lengths).to(self.device)
        else:
            slots = ctx.expanded_idx_mapping.long()
            assert self.slots is not None
            numbers = torch.from_numpy(self.slots).to(self.device)[slots]
            at = self.offset[numbers] + ctx.pos.long() + 1 - self.states.prompt_len.gpu[slots].long()
        token = self._choose(logits[:, : self.vocabulary], numbers, at)
        return logits.scatter_(1, token[:, None], torch.inf)

    def _choose(self, logits: torch.Tensor, numbers: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        assert self.plan is not None
        plan, fired = self.plan.keep(numbers), self.fired[numbers]
        plan.watches &= (fired < 0) | (fired >= at)
        heard, z_a = torch.arange(len(numbers), device=self.device), None
        pair = _pairs.get(self.key)
        if pair is not None and pair.heard is not None:
            z_a = pair.heard[:, : self.vocabulary]
        token, fire = choose(
            logits,
            z_a,
            heard,
            plan,
            at,
            self.uniform[numbers, :, at],
            sampling=self.sampling,
            top_k_cov=self.top_k_cov,
        )
        acted = fire & (plan.sparse | plan.local)
        self.fired[numbers] = torch.where(acted, at, torch.where(fired >= at, -1, fired))
        return token


def _own(params: Any, prompt: Any, output: list[int]) -> tuple[int, list[int]]:
    return params.extra_args["salvage"], output


class Extension:
    """Methods that every worker of an engine gets, for `LLM.collective_rpc`: plain data in, plain data out."""

    def salvage_begin(self, call: dict[str, Any]) -> None:
        _steerings[key_of(self.vllm_config)].begin(call)  # type: ignore[attr-defined]

    def salvage_fired(self) -> list[int]:
        """Return where interventions acted, a number for each request of the call, -1 for none."""
        return _steerings[key_of(self.vllm_config)].fired.tolist()  # type: ignore[attr-defined]


ModelRegistry.register_model("SalvagePair", Pair)
ModelRegistry.register_model("SalvageScoringPair", ScoringPair)
