"""The embedded engine: two transformers models in step, a KV cache each, on a CPU or one GPU.

Decoding is one loop over positions for a whole batch; rows differ in what is done to them, and all of it is tensor
arithmetic. Requests of one length share a batch, so no padding is needed and a row's logits do not depend on its
neighbours' lengths.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from salvage.engine import models
from salvage.engine.base import Completion, Request, Sampling
from salvage.engine.signals import token_signals
from salvage.engine.speaker import Speaker
from salvage.engine.steering import Plan, choose, uniforms
from salvage.errors import SalvageError


class _RoomyLayer(DynamicLayer):
    """A cache layer that grows in place: concatenating the whole cache at every token is most of the time else."""

    used = 0
    _room: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[2]
        if self.used == 0 or end > self._room[0].shape[2]:
            self._grow(key_states, value_states, end)
        self._room[0][:, :, self.used : end] = key_states
        self._room[1][:, :, self.used : end] = value_states
        self.used = end
        self.keys, self.values = self._room[0][:, :, :end], self._room[1][:, :, :end]
        return self.keys, self.values

    def _grow(self, key_states: torch.Tensor, value_states: torch.Tensor, end: int) -> None:
        rooms = []
        for i, new in enumerate((key_states, value_states)):
            room = new.new_empty(*new.shape[:2], max(end + 32, end * 3 // 2), new.shape[3])
            if self.used:
                room[:, :, : self.used] = self._room[i][:, :, : self.used]
            rooms.append(room)
        self._room = tuple(rooms)

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows of the batch."""
        self._room = tuple(room.index_select(0, rows) for room in self._room)
        self.keys, self.values = self._room[0][:, :, : self.used], self._room[1][:, :, : self.used]


class _Stream:
    """One model and the cache of the batch rows that still need it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache = Cache(layer_class_to_replicate=_RoomyLayer)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Feed tokens [rows, new] and return the logits [rows, vocabulary] after the last of them, in float32."""
        out = self.model(input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        for layer in self.cache.layers:
            layer.keep(rows)


class TransformersEngine(Speaker):
    """Two transformers models of one vocabulary behind the interface of `salvage.engine.base.Engine`.

    Parameters
    ----------
    specialist, ancestor : str or Path
        Folder or hub name of each; without an ancestor only plain decoding is possible.
    top_k_cov : int
        For the j that `online` interventions watch (method.md, g_cov).
    batch : int
        Rows decoded at once.
    chunk : int
        Positions whose logits over the vocabulary are held at once while scoring.
    """

    def __init__(
        self,
        specialist: str | Path,
        ancestor: str | Path | None = None,
        *,
        top_k_cov: int = 20,
        batch: int = 512,
        chunk: int = 4096,
        device: str | None = None,
    ) -> None:
        super().__init__(specialist, ancestor)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.specialist = models.model(specialist, self.device)
        self.ancestor: Any = None if ancestor is None else models.model(ancestor, self.device)
        self.top_k_cov, self.batch, self.chunk = top_k_cov, batch, chunk

    # ---------------------------------------------------------------- decoding

    @torch.inference_mode()
    def decode(self, requests: list[Request], *, sampling: Sampling, max_tokens: int) -> list[Completion]:
        """Answer every request, in order (see `salvage.engine.base.Engine.decode`).

        Raises
        ------
        SalvageError
            Where a prompt does not fit the context, or an intervention needs an ancestor and there is none.
        """
        self.admit(requests, max_tokens)
        groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            length = len(request.prompt) + len(request.prefix)
            groups[length, request.intervention.needs_ancestor].append(i)
        answers: list[Completion | None] = [None] * len(requests)
        for group in groups.values():
            for start in range(0, len(group), self.batch):
                rows = group[start : start + self.batch]
                done = self._decode_batch([requests[i] for i in rows], sampling, max_tokens)
                for i, completion in zip(rows, done, strict=True):
                    answers[i] = completion
        return [answer for answer in answers if answer is not None]

    def _decode_batch(self, requests: list[Request], sampling: Sampling, max_tokens: int) -> list[Completion]:
        n, device = len(requests), self.device
        prompt = torch.tensor([r.prompt + r.prefix for r in requests], device=device)
        plan = Plan.of(Plan.columns(requests), device)
        offset = torch.tensor([len(r.prefix) for r in requests], device=device)
        budget = max_tokens - offset
        longest = int(budget.max())
        uniform = torch.from_numpy(uniforms([r.seed for r in requests], max_tokens)).to(device)
        ends = torch.tensor(self.ends, device=device)

        two = requests[0].intervention.needs_ancestor
        specialist = _Stream(self.specialist)
        ancestor = _Stream(self.ancestor) if two else None
        tokens = torch.zeros(n, longest, dtype=torch.long, device=device)
        n_tokens = torch.zeros(n, dtype=torch.long, device=device)
        n_ancestor = torch.zeros(n, dtype=torch.long, device=device)
        fired_at = torch.full((n,), -1, device=device)

        live = torch.arange(n, device=device)  # batch rows still decoding, in the specialist's cache order
        heard = live  # batch rows that still need the ancestor, in its cache order; a subset of live
        fed = prompt
        heard_fed = prompt
        for step in range(longest):
            logits = specialist.step(fed)[:, : self.vocabulary]
            at = offset[live] + step
            z_a = None
            if ancestor is not None and len(heard):
                z_a = ancestor.step(heard_fed)[:, : self.vocabulary]
                n_ancestor[heard] += 1
            where = torch.searchsorted(live, heard)
            token, fire = choose(
                logits, z_a, where, plan, at, uniform[live, :, at], sampling=sampling, top_k_cov=self.top_k_cov
            )
            fired_at[live] = torch.where(fire & (plan.sparse | plan.local), at, fired_at[live])
            plan.position = torch.where(fire, -1, plan.position)
            plan.watches = plan.watches & ~fire
            tokens[live, step] = token
            n_tokens[live] += 1

            going = ~torch.isin(token, ends) & (step + 1 < budget[live])
            needs = going & (plan.dense | plan.watches | (plan.sparse & (plan.position >= 0)))
            if not going.any():
                break
            if ancestor is not None and len(heard):
                still = needs[where]
                if not still.all():  # rows leave the ancestor's cache as soon as they no longer need it
                    heard = heard[still]
                    if len(heard):
                        ancestor.keep(still.nonzero()[:, 0])
                heard_fed = tokens[heard, step][:, None]
            if not going.all():
                kept = going.nonzero()[:, 0]
                specialist.keep(kept)
                plan, live, token = plan.keep(kept), live[kept], token[kept]
            fed = token[:, None]
        return _completions(requests, tokens, n_tokens, n_ancestor, fired_at, two, self.ends)

    # ---------------------------------------------------------------- scoring

    @torch.inference_mode()
    def signals(
        self, prompts: list[list[int]], completions: list[list[int]], *, temperature: float, top_k_cov: int
    ) -> list[dict[str, np.ndarray]]:
        """Return the per-token signals of every completion (see `salvage.engine.base.Engine.signals`).

        Rollouts of like length share a right-padded batch; causal attention keeps padding from what stands before
        it. Memory is bounded by `chunk` positions of logits over the vocabulary, whatever the lengths.
        """
        self.admit_scoring(completions)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
        answers: list[dict[str, np.ndarray]] = [{} for _ in prompts]
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            scored = self._score([prompts[i] for i in rows], [completions[i] for i in rows], temperature, top_k_cov)
            for i, signals in zip(rows, scored, strict=True):
                answers[i] = signals
        return answers

    def _score(
        self, prompts: list[list[int]], completions: list[list[int]], temperature: float, top_k_cov: int
    ) -> list[dict[str, np.ndarray]]:
        texts = [torch.tensor(p + c) for p, c in zip(prompts, completions, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True).to(self.device)
        row = torch.cat([torch.full((len(c),), i) for i, c in enumerate(completions)])
        column = torch.cat([torch.arange(len(c)) + len(p) - 1 for p, c in zip(prompts, completions, strict=True)])
        row, column = row.to(self.device), column.to(self.device)
        hidden = [models.hidden_states(m, ids)[row, column] for m in (self.specialist, self.ancestor)]
        taken = ids[row, column + 1]
        parts = []
        for start in range(0, len(row), self.chunk):
            span = slice(start, start + self.chunk)
            z_s = models.logits(self.specialist, hidden[0][span])[:, : self.vocabulary]
            z_a = models.logits(self.ancestor, hidden[1][span])[:, : self.vocabulary]
            parts.append(token_signals(z_s, z_a, taken[span], temperature=temperature, top_k_cov=top_k_cov))
        whole = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
        ends = np.cumsum([len(c) for c in completions])[:-1]
        split = {name: np.split(values, ends) for name, values in whole.items()}
        return [{name: split[name][i] for name in split} for i in range(len(completions))]

    @torch.inference_mode()
    def alternatives(
        self, prefixes: list[list[int]], *, temperature: float, k: int
    ) -> list[tuple[list[tuple[int, float]], list[tuple[int, float]]]]:
        """Return each model's k likeliest next tokens (see `salvage.engine.base.Engine.alternatives`)."""
        if self.ancestor is None:
            raise SalvageError("alternatives need an ancestor model; none was given")
        answers = []
        for start in range(0, len(prefixes), self.batch):
            some = prefixes[start : start + self.batch]
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in some], batch_first=True).to(self.device)
            at = torch.arange(len(some)), torch.tensor([len(p) - 1 for p in some])
            told = []
            for model in (self.specialist, self.ancestor):
                logits = models.logits(model, models.hidden_states(model, ids)[at])[:, : self.vocabulary]
                top = torch.softmax(logits.double() / temperature, -1).topk(min(k, self.vocabulary))
                rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
                told.append([list(zip(*row, strict=True)) for row in rows])
            answers += list(zip(*told, strict=True))
        return answers


def _completions(
    requests: list[Request],
    tokens: torch.Tensor,
    n_tokens: torch.Tensor,
    n_ancestor: torch.Tensor,
    fired_at: torch.Tensor,
    two: bool,
    ends: list[int],
) -> list[Completion]:
    columns = zip(tokens.tolist(), n_tokens.tolist(), n_ancestor.tolist(), fired_at.tolist(), strict=True)
    return [
        Completion(
            tokens=list(r.prefix) + row[:count],
            n_tokens=count,
            n_ancestor_tokens=heard,
            n_prefill=(len(r.prompt) + len(r.prefix)) * (2 if two else 1),
            position=fired,
            truncated=not count or row[count - 1] not in ends,
        )
        for r, (row, count, heard, fired) in zip(requests, columns, strict=True)
    ]
