"""An adapter of PEFT as specialist: merged into its base once, and kept under data/cache as an ordinary models.

The folder is named by what it was made from, so that another adapter, or another base, makes another one.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from salvage.errors import SalvageError
from salvage.project.settings import CACHE, adapter_base
from salvage.tables import shards

MERGED = CACHE / "merged"
PARTS = {".json", ".safetensors", ".jinja", ".txt", ".model"}  # of a PEFT folder: not what its trainer left
CANNOT = {  # what a LoRA config may ask for that no merged matrix can be, or that only its own trainer can load
    "alora_invocation_tokens": "an activated LoRA, which acts from certain tokens on",
    "arrow_config": "Arrow routing",
    "layer_replication": "replicated layers",
    "megatron_config": "Megatron",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "loftq_config": "LoftQ, on a quantised base",
}
TOLERANCE = {"float32": 1e-3, "float64": 1e-3}  # of logits, in their standard deviations; halves round more
HALVES = 0.1


def whole(specialist: str, ancestor: str) -> str:
    """Return a specialist that an engine can load: itself, or where it is an adapter the folder of the merged model.

    Raises
    ------
    SalvageError
        Where the adapter cannot be merged; the sentence names what it has that stands against it.
    """
    if not adapter_base(specialist):
        return specialist
    folder, base = Path(specialist), base_for(specialist, ancestor)
    _refuse(folder)
    if base != adapter_base(specialist) and not _same(adapter_base(specialist), ancestor):
        warnings.warn(
            f"adapter {specialist!r} was trained on {adapter_base(specialist)!r}, which is not here; "
            f"{base!r} is taken for it",
            stacklevel=2,
        )
    elif ancestor and not _same(base, ancestor):
        warnings.warn(
            f"adapter {specialist!r} was trained on {base!r} and is merged into that; "
            f"the ancestor given, {ancestor!r}, is what it is compared with",
            stacklevel=2,
        )
    files = [path for path in sorted(folder.iterdir()) if path.suffix in PARTS]
    mark = shards.fingerprint(base, files=[*files, Path(base)], code=["engine/adapters.py"])
    merged = MERGED / f"{folder.resolve().name}-{mark[:12]}"
    if not merged.exists():
        with _beside(merged) as part:
            _merge(folder, whole(base, ""), part)
    return str(merged)


def base_for(specialist: str, ancestor: str) -> str:
    """Return the base that an adapter is merged into: its own where it is to be had, else the ancestor given."""
    base = adapter_base(specialist)
    if not ancestor or _same(base, ancestor):
        return ancestor or base
    return base if _is_here(base) else ancestor


def _same(base: str, ancestor: str) -> bool:
    """Tell whether an ancestor is the base that an adapter names, or a copy of it under the base's own name."""
    if Path(base).exists():
        return Path(ancestor).exists() and Path(base).samefile(ancestor)
    return Path(base).name == Path(ancestor).name


def _is_here(base: str) -> bool:
    if Path(base).exists():
        return True
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(base)
    except (OSError, ValueError):
        return False
    return True


def _refuse(folder: Path) -> None:
    """Refuse an adapter that cannot be merged."""
    told = f"adapter {str(folder)!r}"
    said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if said.get("peft_type") != "LORA":
        raise SalvageError(
            f"{told} is of kind {said.get('peft_type')}, and Salvage merges LoRA alone; merge it into its base "
            "yourself and give the folder of the whole model"
        )
    if said.get("task_type") not in ("CAUSAL_LM", None):
        raise SalvageError(f"{told} is for {said['task_type']}; give one of a causal language model (CAUSAL_LM)")
    asked = [what for name, what in CANNOT.items() if said.get(name)]
    if asked:
        raise SalvageError(f"{told} uses {asked[0]}, which Salvage does not merge; give the folder of a whole model")
    if any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise SalvageError(f"{told} holds a whole model too; keep one of the two in the folder")
    if not (folder / "adapter_model.safetensors").exists():
        pickle = (folder / "adapter_model.bin").exists()
        why = "has its weights as .bin alone, which is pickle" if pickle else "has no adapter_model.safetensors"
        raise SalvageError(f"{told} {why}; save it anew: model.save_pretrained(FOLDER)")


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Yield a folder to write in, which takes the name given when the block ends well."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        part.mkdir(parents=True, exist_ok=True)
        yield part
        if not folder.exists():  # another process may have been as quick
            part.rename(folder)
    except OSError as error:
        raise SalvageError(f"{folder} cannot be written: {error.strerror or error}; see to its disk") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _merge(folder: Path, base: str, out: Path) -> None:
    """Merge an adapter into its base, in the base's data type, and save the result with the specialist's tokenizer."""
    import torch
    from peft import PeftModel

    from salvage.engine import models

    models.config(base)
    device = torch.device("cpu")
    model = models.model(base, device)
    told = f"adapter {str(folder)!r}"
    ids = torch.tensor([list(range(8))])
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")
        _resize(told, model, folder)
        try:
            adapted = PeftModel.from_pretrained(model, str(folder)).eval()
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise SalvageError(
                f"{told} does not fit its base {base!r}: {models.first_line(error)}; give the base that it was "
                "trained on (--ancestor)"
            ) from error
        _refuse_others(told, base, adapted, folder)
        before = adapted(input_ids=ids).logits.float()
        _untie(adapted)
        try:
            merged = adapted.merge_and_unload(safe_merge=True)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            why = models.first_line(error)
            raise SalvageError(f"{told} cannot be merged: {why}; give the folder of a whole model") from error
        _note_tie(merged)
        after = merged(input_ids=ids).logits.float()
        most = TOLERANCE.get(str(merged.dtype).removeprefix("torch."), HALVES)
        if not (before - after).abs().mean() <= most * before.std():  # NaN too
            raise SalvageError(f"{told} does not answer the same once it is merged; give the folder of a whole model")
        merged.save_pretrained(out)
        if not torch.equal(models.model(out, device)(input_ids=ids).logits.float(), after):
            raise SalvageError(f"{told} does not answer the same once it is saved; give the folder of a whole model")
    own = any((folder / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    models.tokenizer(folder if own else base).save_pretrained(out)


def _resize(told: str, model: Any, folder: Path) -> None:
    """Give the base as many embeddings as the adapter was saved with, where tokens were added."""
    from safetensors import safe_open

    ends = {model.get_input_embeddings(), model.get_output_embeddings()}
    names = [name for name, module in model.named_modules() if module in ends]
    most, held = len(model.get_input_embeddings().weight), set()
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            shape = tensors.get_slice(key).get_shape()
            name = next((n for n in names if key.removeprefix("base_model.model.").startswith(f"{n}.")), None)
            if name is None or "lora_A" in key:
                continue
            if "lora_embedding_A" in key:
                most = max(most, shape[1])
            elif key.endswith("lora_B.weight"):
                most = max(most, shape[0])
            elif key.endswith(".weight") and "lora_" not in key:
                most = max(most, shape[0])
                held.add(name)
    if most == len(model.get_input_embeddings().weight):
        return
    tied = model.get_input_embeddings().weight is getattr(model.get_output_embeddings(), "weight", None)
    if len(held) < (1 if tied else len(names)):
        raise SalvageError(
            f"{told} was trained with {most - len(model.get_input_embeddings().weight)} tokens more than its base, and "
            "does not hold their embeddings; save it anew (save_embedding_layers=True) or give a whole model"
        )
    model.resize_token_embeddings(most, mean_resizing=False)


def _refuse_others(told: str, base: str, adapted: Any, folder: Path) -> None:
    """Refuse an adapter whose weights are not those that its base has places for: PEFT passes over them."""
    from peft import get_peft_model_state_dict, load_peft_weights

    there = set(load_peft_weights(str(folder), device="cpu"))
    most, least = (set(get_peft_model_state_dict(adapted, save_embedding_layers=some)) for some in (True, False))
    odd = sorted((there - most) | (least - there))
    if odd:
        raise SalvageError(
            f"{told} does not fit its base {base!r}, first at {odd[0]!r}; give the base that it was trained on "
            "(--ancestor)"
        )


def _untie(adapted: Any) -> None:
    """Give the head a matrix of its own where it shares the embedding's and a LoRA is to be merged into one of them."""
    import torch

    model = adapted.get_base_model()
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    inner = [getattr(end, "base_layer", end) for end in ends]
    if any(hasattr(end, "lora_A") for end in ends) and getattr(inner[0], "weight", 0) is getattr(inner[1], "weight", 1):
        inner[1].weight = torch.nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)


def _note_tie(merged: Any) -> None:
    """Have the config say that head and embedding are not one, where merging has parted them: a head would be lost."""
    import torch

    from salvage.engine import models

    ends = [merged.get_input_embeddings().weight, merged.get_output_embeddings().weight]
    if ends[0].shape != ends[1].shape or not torch.equal(*ends):
        for config in (merged.config, models.text_config(merged.config)):
            config.tie_word_embeddings = False
