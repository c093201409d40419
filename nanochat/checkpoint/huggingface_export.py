"""A checkpoint -> a directory for Hugging Face.   in: Checkpoint   out: the files that
huggingface.py lists   who calls: cli (`nanochat export --to hf`)

Nothing of transformers is needed to write it.  The model file and the chat template lie in hf/.
Read next: hf/modeling_nanochat.py (what runs there), docs/interop.md (what differs and why).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

import nanochat
from nanochat.checkpoint.format import FORMAT_VERSION, Checkpoint
from nanochat.checkpoint.huggingface import (
    MODEL_TYPES,
    PADDING,
    TEMPLATE,
    WEIGHTS,
    is_native,
    v1_name,
)
from nanochat.common.errors import CheckpointError
from nanochat.common.files import write_json_atomically, write_text_atomically
from nanochat.model.cost import count_parameters
from nanochat.tokenizer.chat import stop_tokens
from nanochat.tokenizer.huggingface import tokenizer_to_hf_json
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["MODEL_FILE", "ROUNDING_NOTE", "Export", "export_huggingface"]

PACKAGED = Path(__file__).parent / "hf"  # files that go into a directory as they are
MODEL_FILE = "modeling_nanochat.py"
ROUNDING_NOTE = (
    "transformers keeps the rotary table in float32 where this model rounds it to bfloat16: its "
    "logits differ from ours by about 7e-4 (measured), and from a near tie another token may follow"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What an export has written."""

    directory: Path
    is_native: bool
    """Whether transformers knows the model itself; else it runs the model file beside it."""
    notes: tuple[str, ...]
    """What there differs from here."""


def export_huggingface(
    checkpoint: Checkpoint, directory: Path, *, dtype: torch.dtype = torch.float32
) -> Export:
    """Write a directory that transformers (5.0 or later) loads; it appears whole or not at all.

    Raises: CheckpointError if it exists and is not empty, or the disk refuses.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise CheckpointError(f"{directory} exists already and is not empty: choose another --out")
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    native = is_native(config)
    notes = (ROUNDING_NOTE,) if native and config.rope_dtype == "bfloat16" else ()
    temporary = directory.with_name(f".{directory.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_json_atomically(temporary / "config.json", _config_json(checkpoint, dtype))
        _write_weights(checkpoint, temporary, dtype)
        _write_compactly(temporary / "tokenizer.json", tokenizer_to_hf_json(tokenizer))
        write_json_atomically(
            temporary / "tokenizer_config.json", _tokenizer_config_json(config.context_len)
        )
        write_json_atomically(temporary / "generation_config.json", _generation_json(tokenizer))
        for name in (TEMPLATE, *(() if native else (MODEL_FILE,))):
            shutil.copyfile(PACKAGED / name, temporary / name)
        write_text_atomically(temporary / "README.md", _card(checkpoint, directory.name, notes))
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: not written, {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # once renamed, there is none
    return Export(directory=directory, is_native=native, notes=notes)


# ------------------------------------------------------------------------------------- writing


def _config_json(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, Any]:
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    native = is_native(config)
    own_file = MODEL_FILE.removesuffix(".py")
    name = "NanoChatForCausalLM" if native else "NanoChatGPTForCausalLM"
    raw: dict[str, Any] = {
        "architectures": [name],
        "model_type": MODEL_TYPES[0] if native else MODEL_TYPES[1],
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": 4 * config.model_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_len,
        "hidden_act": "relu2",
        "attention_bias": False,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "final_logit_softcapping": config.logit_softcap,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": str(dtype).removeprefix("torch."),
        "pad_token_id": None,  # a padding row would never be trained again
        **_token_ids(tokenizer),
        "nanochat": config.to_json(),
        "nanochat_state": {
            "format_version": FORMAT_VERSION,
            "stage": checkpoint.state.get("stage", "pretrain"),
            "step": checkpoint.state.get("step", 0),
        },
    }
    if not native:
        raw["auto_map"] = {
            "AutoConfig": f"{own_file}.NanoChatGPTConfig",
            "AutoModelForCausalLM": f"{own_file}.{name}",
        }
    return raw


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    return {"bos_token_id": tokenizer.bos, "eos_token_id": list(stop_tokens(tokenizer))}


def _generation_json(tokenizer: Tokenizer) -> dict[str, Any]:
    pad = tokenizer.special("<|assistant_end|>")
    return _token_ids(tokenizer) | {"pad_token_id": pad}


def _tokenizer_config_json(context_len: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        "pad_token": "<|assistant_end|>",
        "add_bos_token": False,  # as Tokenizer.encode; the template writes it for conversations
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context_len,
    }


def _write_compactly(path: Path, value: Any) -> None:
    write_text_atomically(path, json.dumps(value, ensure_ascii=False) + "\n")


def _write_weights(checkpoint: Checkpoint, directory: Path, dtype: torch.dtype) -> None:
    config = checkpoint.config
    weights = {
        name: tensor.detach().cpu().to(dtype).contiguous()
        for name, tensor in checkpoint.weights.items()
    }
    if is_native(config):
        rows = config.vocab_size
        padding = {
            name: weights[name][rows:].clone()
            for name in ("embedding.weight", "head.weight")
            if weights[name].size(0) > rows
        }
        weights |= {name: weights[name][:rows].contiguous() for name in padding}
        if padding:
            _save(padding, directory / PADDING)
        weights = {v1_name(name): tensor for name, tensor in weights.items()}
    _save(weights, directory / WEIGHTS)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})  # transformers asks for the format
    shutil.copymode(path.parent / "config.json", path)  # safetensors makes its files private


# ------------------------------------------------------------------------------------- the card


def _card(checkpoint: Checkpoint, name: str, notes: tuple[str, ...]) -> str:
    config = checkpoint.config
    native = is_native(config)
    trust = "" if native else ", trust_remote_code=True"
    how = (
        "transformers (5.0 or later) has this architecture itself."
        if native
        else "transformers (5.0 or later) runs `modeling_nanochat.py`, which lies beside the "
        "weights: hence `trust_remote_code=True`."
    )
    stage = checkpoint.state.get("stage", "pretrain")
    differences = "".join(f"- {note}.\n" for note in notes)
    return CARD.format(
        name=name,
        how=how,
        trust=trust,
        stage=stage,
        step=checkpoint.state.get("step", 0),
        parameters=count_parameters(config).total,
        version=nanochat.__version__,
        config=config,
        differences=differences,
    )


CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- nanochat
---
# {name}

A nanochat model: {config.num_layers} layers of width {config.model_dim}, {parameters:,} \
parameters, {config.vocab_size:,} tokens, context {config.context_len:,}. Stage {stage}, step \
{step}; written by nanochat {version}. {how}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY"{trust})
model = AutoModelForCausalLM.from_pretrained("DIRECTORY"{trust})

# A conversation; the template writes the tokens the model was trained on.
inputs = tokenizer.apply_chat_template(
    [{{"role": "user", "content": "Why is the sky blue?"}}],
    add_generation_prompt=True, return_dict=True, return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)
print(tokenizer.decode(answer[0, inputs["input_ids"].size(1):], skip_special_tokens=True))

# A text to continue begins with <|bos|>, which is not added by itself.
inputs = tokenizer("<|bos|>Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64, do_sample=False)[0]))
```

What to know:

{differences}- Greedy continuations in float32 are those of nanochat.
- `tokenizer(text)` takes a special token's name in a text for the token; nanochat does not. \
`split_special_tokens=True` switches that off. In the chat template what people say stays text.
- `nanochat import DIRECTORY --run NAME` brings it back, bit for bit if it was exported in float32.
"""
