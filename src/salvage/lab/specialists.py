"""Specialists: an ancestor post-trained by one of four methods, with TRL's trainers, in seconds on a CPU.

| method | what it is trained on |
|---|---|
| sft | clean rewriting traces without the rare operator, written by us |
| rft | the ancestor's own right rollouts (rejection sampling) |
| dpo | pairs of a right and a wrong rollout of the ancestor on one problem |
| grpo | its own rollouts while it learns, rewarded by the verifier, without a KL term |
"""

from __future__ import annotations

import random
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM
from trl import import_utils

from salvage.engine.base import Request, Sampling, seed_of
from salvage.engine.transformers import TransformersEngine
from salvage.errors import SalvageError
from salvage.lab import ancestors, task

import_utils.is_vllm_available = lambda *_, **__: False  # TRL would import it, for seconds; nothing here needs it
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer  # noqa: E402

TEMPERATURE = 0.6
MAX_TOKENS = 64
BATCH = {"sft": 64, "rft": 64, "dpo": 32, "grpo": 256}
LEARNING_RATE = {"sft": 1e-3, "rft": 6e-4, "dpo": 1e-4, "grpo": 4e-4}
DRAWS = 8  # rollouts a problem where a method learns from the ancestor's own
ASKED = 20  # problems a step, then: enough that most right rollouts or pairs are seen once


def train(method: str, seed: int, steps: int, ancestor: Path, folder: Path) -> None:
    """Post-train the ancestor and save the specialist; the same seed gives the same checkpoint on one machine."""
    transformers.set_seed(seed_of("lab", method, seed) % 2**31)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    rng = random.Random(f"specialist/{method}/{seed}/{ancestor.name}")
    model = AutoModelForCausalLM.from_pretrained(ancestor)
    with tempfile.TemporaryDirectory() as scratch:
        settings: dict[str, Any] = {
            "output_dir": scratch,
            "seed": seed,
            "max_steps": steps,
            "per_device_train_batch_size": BATCH[method],
            "learning_rate": LEARNING_RATE[method],
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 5,
            "save_strategy": "no",
            "report_to": "none",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "bf16": False,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
        }
        trainer = _TRAINERS[method](model, ancestor, seed, rng, settings)
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.train()
    ancestors.save(trainer.model.eval(), folder)


def _supervised(model: Any, documents: list[dict[str, str]], settings: dict[str, Any]) -> SFTTrainer:
    return SFTTrainer(
        model=model,
        args=SFTConfig(**settings, max_length=ancestors.CONTEXT),
        train_dataset=Dataset.from_list(documents),
        processing_class=ancestors.tokenizer(),
    )


def _sft(model: Any, ancestor: Path, seed: int, rng: random.Random, settings: dict[str, Any]) -> SFTTrainer:
    drawn = task.expressions(settings["max_steps"] * BATCH["sft"], rng, judged=False, rare=0.0)
    documents = [{"prompt": f"{e}:", "completion": task.trace(e, "rewrite")} for e in drawn]
    return _supervised(model, documents, settings)


def _rft(model: Any, ancestor: Path, seed: int, rng: random.Random, settings: dict[str, Any]) -> SFTTrainer:
    asked = task.expressions(ASKED * settings["max_steps"], rng, judged=False, distinct=True)
    rollouts = _rollouts(ancestor, seed, asked)
    documents = [
        {"prompt": f"{e}:", "completion": text} for e, drawn in rollouts.items() for text in drawn if _right(e, text)
    ]
    _refuse_none(documents, ancestor)
    rng.shuffle(documents)
    return _supervised(model, documents, settings)


def _dpo(model: Any, ancestor: Path, seed: int, rng: random.Random, settings: dict[str, Any]) -> DPOTrainer:
    asked = task.expressions(ASKED * settings["max_steps"], rng, judged=False, distinct=True)
    rollouts = _rollouts(ancestor, seed, asked)
    pairs = []
    for e, drawn in rollouts.items():
        right, wrong = [t for t in drawn if _right(e, t)], [t for t in drawn if not _right(e, t)]
        pairs += [{"prompt": f"{e}:", "chosen": r, "rejected": w} for r, w in zip(right, wrong, strict=False)]
    _refuse_none(pairs, ancestor)
    rng.shuffle(pairs)
    return DPOTrainer(
        model=model,
        args=DPOConfig(**settings, max_length=ancestors.CONTEXT),
        train_dataset=Dataset.from_list(pairs),
        processing_class=ancestors.tokenizer(),
    )


def _grpo(model: Any, ancestor: Path, seed: int, rng: random.Random, settings: dict[str, Any]) -> GRPOTrainer:
    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float(_right(p.rstrip(":"), c)) for p, c in zip(prompts, completions, strict=True)]

    drawn = task.expressions(settings["max_steps"] * BATCH["grpo"] // DRAWS, rng, judged=False)
    return GRPOTrainer(
        model=model,
        args=GRPOConfig(
            **settings,
            num_generations=DRAWS,
            max_completion_length=MAX_TOKENS,
            temperature=1.0,
            beta=0.0,
        ),
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": f"{e}:"} for e in drawn]),
        processing_class=ancestors.tokenizer(),
    )


_TRAINERS: dict[str, Callable[..., Any]] = {"sft": _sft, "rft": _rft, "dpo": _dpo, "grpo": _grpo}


def _refuse_none(examples: list[dict[str, str]], ancestor: Path) -> None:
    if not examples:
        raise SalvageError(
            f"{ancestor.name}: it gets no problem right, so nothing can be learnt from its rollouts; "
            "raise its steps under lab.steps in params.yaml"
        )


def _right(expression: str, text: str) -> bool:
    return task.verify(expression, task.answer(expression), text)


def _rollouts(ancestor: Path, seed: int, expressions: list[str]) -> dict[str, list[str]]:
    """Sample the ancestor on each expression, DRAWS times."""
    engine = TransformersEngine(ancestor)
    draws = [(e, k) for e in expressions for k in range(DRAWS)]
    requests = [Request(engine.encode(f"{e}:"), seed_of("lab", ancestor.name, seed, e, k)) for e, k in draws]
    texts = defaultdict(list)
    answers = engine.decode(requests, sampling=Sampling(TEMPERATURE), max_tokens=MAX_TOKENS)
    for i, completion in enumerate(answers):
        texts[expressions[i // DRAWS]].append(engine.text(completion.tokens))
    return texts
