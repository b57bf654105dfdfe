"""Models, loaded: config, tokenizer, weights, and what they make of hidden states; what cannot be run is a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from salvage.engine.checkpoint import weight_files
from salvage.errors import SalvageError

UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # what transformers raises of files that are odd
ATTENTION = {"full_attention", "sliding_attention"}  # layers whose cache the engines know how to keep


def tokenizer(name: str | Path) -> Any:
    """Load a model's tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(name)
    except UNREADABLE as error:
        raise SalvageError(f"tokenizer {str(name)!r} cannot be loaded: {first_line(error)}") from error


def config(name: str | Path) -> Any:
    """Load a model's config.

    Raises
    ------
    SalvageError
        Where it cannot be read, or the model is of a kind that Salvage does not run: quantised, saved by pickle alone,
        an encoder with a decoder.
    """
    try:
        read = AutoConfig.from_pretrained(name)
    except UNREADABLE as error:
        raise SalvageError(f"model {str(name)!r} cannot be loaded: {first_line(error)}") from error
    told = f"model {str(name)!r}"
    if method := quantised(name, read):
        raise SalvageError(
            f"{told} is quantised ({method}), and Salvage compares the models' own distributions; "
            "give the checkpoint in full or half precision"
        )
    if read.is_encoder_decoder:
        raise SalvageError(f"{told} has an encoder ({read.model_type}); give a decoder, a causal language model")
    if pickled(name):
        raise SalvageError(
            f"{told} has its weights as .bin alone, which is pickle and can run code when it is read; "
            "save it anew as safetensors: model.save_pretrained(FOLDER)"
        )
    return read


def text_config(config: Any) -> Any:
    """Return what a config says of the language model; models that also see have it under `text_config`."""
    return config.get_text_config(decoder=True)


def quantised(name: str | Path, config: Any) -> str:
    """Return how a checkpoint is quantised, nothing where it is not."""
    for part in (config, text_config(config)):
        said = getattr(part, "quantization_config", None)
        if said:
            values = said if isinstance(said, dict) else said.to_dict()
            return str(getattr(values.get("quant_method"), "value", values.get("quant_method") or "unnamed method"))
    return "ModelOpt" if (Path(name) / "hf_quant_config.json").exists() else ""


def pickled(folder: str | Path) -> bool:
    """Tell whether a local checkpoint has weights as pickles only."""
    return any(Path(folder).glob("*.bin")) and not weight_files(Path(folder))


def model(name: str | Path, device: torch.device) -> Any:
    """Load a causal language model in the data type that it was saved in.

    Raises
    ------
    SalvageError
        Where it cannot be loaded, or its layers or its head do what the transformers engine cannot follow.
    """
    logging.disable_progress_bar()  # of the weights: a line a model, whatever the terminal
    try:
        loaded, told = AutoModelForCausalLM.from_pretrained(
            name, dtype="auto", use_safetensors=True, output_loading_info=True
        )
    except (*UNREADABLE, RuntimeError, SafetensorError) as error:
        raise SalvageError(f"model {str(name)!r} cannot be loaded: {first_line(error)}") from error
    if told["missing_keys"]:  # transformers would draw them at random
        raise SalvageError(
            f"model {str(name)!r} lacks weights, first {min(told['missing_keys'])!r}; save the whole model anew"
        )
    loaded = loaded.to(device).eval()
    _refuse_unknown(str(name), loaded)
    return loaded


def hidden_states(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return what a model's head gets [rows, positions, width]."""
    states: torch.Tensor = model.base_model(input_ids=ids).last_hidden_state
    return states


def logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return the logits of hidden states: what the head gives, scaled or capped as some models do."""
    z: torch.Tensor = model.get_output_embeddings()(hidden)
    said = text_config(model.config)
    if scale := getattr(said, "logit_scale", None):  # Cohere
        z = z * scale
    if scale := getattr(said, "logits_scaling", None):  # Granite
        z = z / scale
    if cap := getattr(said, "final_logit_softcapping", None):  # Gemma
        z = torch.tanh(z / cap) * cap
    return z


@torch.inference_mode()
def _refuse_unknown(name: str, model: Any) -> None:
    layers = set(getattr(text_config(model.config), "layer_types", None) or ()) - ATTENTION
    if layers or getattr(model, "_is_stateful", False):
        what = ", ".join(sorted(layers)) or "a recurrent state"
        raise SalvageError(f"model {name!r} has layers that engine transformers does not run ({what}); use engine vllm")
    ids = torch.tensor([[0, 1]], device=model.device)
    if not torch.allclose(model(input_ids=ids).logits, logits(model, hidden_states(model, ids)), rtol=1e-3, atol=1e-3):
        raise SalvageError(
            f"model {name!r} makes more of its hidden states than engine transformers knows of "
            f"({type(model).__name__}); use engine vllm"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of what a library said."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
