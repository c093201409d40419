"""A size -> a file that llama.cpp reads.   in: widths, a format   out: a GGUF file of noise
who calls: decode.py

The architecture is Llama's, which every build of llama.cpp knows; its three matrices of the MLP are
as wide as makes them as large as our two.  Weights are noise: what is measured is reading them.
A server needs a vocabulary too; it is written as SentencePiece's, which needs no merges.
Source: github.com/ggml-org/ggml docs/gguf.md, version 3; block_q8_0 and block_q4_0 in
        ggml-common.h.
Read next: peer_decode.py (what runs it).
"""

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nanochat.model.config import GPTConfig

__all__ = ["FORMATS", "write_gguf"]

FORMATS = {"bf16": 30, "q8_0": 8, "q4_0": 2}
"""ggml's numbers of the types."""
F32 = 0
ALIGNMENT = 32
U32, I32, FLOAT32, STRING, ARRAY = 4, 5, 6, 8, 9  # types of metadata values
NORMAL, CONTROL, BYTE = 1, 3, 6  # kinds of tokens
BLOCK = 32  # weights that share a scale


def write_gguf(
    path: Path, config: GPTConfig, format: str, *, tokens: Sequence[bytes] | None = None
) -> int:
    """Write the file; the number of weights in its matrices, without the token table.

    `tokens` begin with the 256 bytes; what the vocabulary has beyond them is special.  None: no
    vocabulary.
    """
    width, ffn = config.model_dim, _ffn_width(config.model_dim)
    kv_width = config.num_kv_heads * config.head_dim
    metadata: list[tuple[str, int, Any]] = [
        ("general.architecture", STRING, "llama"),
        ("llama.context_length", U32, config.context_len),
        ("llama.embedding_length", U32, width),
        ("llama.block_count", U32, config.num_layers),
        ("llama.feed_forward_length", U32, ffn),
        ("llama.attention.head_count", U32, config.num_heads),
        ("llama.attention.head_count_kv", U32, config.num_kv_heads),
        ("llama.attention.layer_norm_rms_epsilon", FLOAT32, 1e-5),
        ("llama.rope.dimension_count", U32, config.head_dim),
        ("llama.vocab_size", U32, config.padded_vocab_size),
        *([("tokenizer.ggml.model", STRING, "no_vocab")] if tokens is None else []),
        *(_vocabulary(tokens, config.padded_vocab_size) if tokens is not None else []),
    ]
    kind = FORMATS[format]
    tensors: list[tuple[str, tuple[int, ...], int]] = [
        ("token_embd.weight", (config.padded_vocab_size, width), kind),
        ("output_norm.weight", (width,), F32),
        ("output.weight", (config.padded_vocab_size, width), kind),
    ]
    for layer in range(config.num_layers):
        tensors += [
            (f"blk.{layer}.{name}.weight", shape, kind if len(shape) == 2 else F32)
            for name, shape in (
                ("attn_norm", (width,)),
                ("attn_q", (config.num_heads * config.head_dim, width)),
                ("attn_k", (kv_width, width)),
                ("attn_v", (kv_width, width)),
                ("attn_output", (width, config.num_heads * config.head_dim)),
                ("ffn_norm", (width,)),
                ("ffn_gate", (ffn, width)),
                ("ffn_up", (ffn, width)),
                ("ffn_down", (width, ffn)),
            )
        ]
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, type_number, value in metadata:
            file.write(_string(key) + struct.pack("<I", type_number) + _value(type_number, value))
        offset = 0
        for name, shape, type_number in tensors:
            file.write(_string(name) + struct.pack("<I", len(shape)))
            file.write(struct.pack(f"<{len(shape)}Q", *reversed(shape)))
            file.write(struct.pack("<IQ", type_number, offset))
            offset += _padded(_num_bytes(shape, type_number))
        file.write(bytes(_padded(file.tell()) - file.tell()))
        generator = np.random.default_rng(0)
        for _, shape, type_number in tensors:
            _write_tensor(file, shape, type_number, generator)
    return sum(shape[0] * shape[1] for _, shape, _ in tensors[1:] if len(shape) == 2)


def _vocabulary(tokens: Sequence[bytes], vocab_size: int) -> list[tuple[str, int, Any]]:
    texts = [f"<0x{byte:02X}>" for byte in range(256)]
    texts += [token.decode().replace(" ", "\u2581") for token in tokens[256:]]
    num_special = vocab_size - len(texts)
    kinds = [BYTE] * 256 + [NORMAL] * (len(texts) - 256) + [CONTROL] * num_special
    special = range(len(texts), vocab_size)
    texts += [f"<|special_{token}|>" for token in special]
    return [
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, texts)),
        ("tokenizer.ggml.scores", ARRAY, (FLOAT32, [-float(rank) for rank in range(vocab_size)])),
        ("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
        ("tokenizer.ggml.bos_token_id", U32, special[0]),
        ("tokenizer.ggml.eos_token_id", U32, special[1]),
        ("tokenizer.ggml.unknown_token_id", U32, special[2]),
    ]


def _ffn_width(width: int) -> int:
    """3 * width * ffn is 8 * width^2, to the nearest block."""
    return max(BLOCK, round(8 * width / 3 / BLOCK) * BLOCK)


def _write_tensor(
    file: BinaryIO, shape: tuple[int, ...], kind: int, generator: np.random.Generator
) -> None:
    for rows in _slices(shape):
        count = int(np.prod(rows))
        if kind == F32:
            file.write(np.ones(count, "<f4").tobytes())
        elif kind == FORMATS["bf16"]:
            values = (generator.standard_normal(count, np.float32) * 0.02).view("<u4") >> 16
            file.write(values.astype("<u2").tobytes())
        else:
            payload = BLOCK if kind == FORMATS["q8_0"] else BLOCK // 2
            blocks = np.empty((count // BLOCK, 2 + payload), np.uint8)
            scale = np.array([0.02 / (64 if payload == BLOCK else 4)], "<f2")
            blocks[:, :2] = scale.view(np.uint8)
            blocks[:, 2:] = generator.integers(0, 256, (len(blocks), payload), np.uint8)
            file.write(blocks.tobytes())
    file.write(bytes(_padded(file.tell()) - file.tell()))


def _slices(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The shape in parts of 1024 rows: a vocabulary's table never lies in memory whole."""
    for start in range(0, shape[0], 1024) if len(shape) == 2 else (0,):
        yield (min(1024, shape[0] - start), *shape[1:]) if len(shape) == 2 else shape


def _num_bytes(shape: tuple[int, ...], kind: int) -> int:
    count = int(np.prod(shape))
    bytes_per_block = {F32: 128, FORMATS["bf16"]: 64, FORMATS["q8_0"]: 34, FORMATS["q4_0"]: 18}
    return count * bytes_per_block[kind] // BLOCK


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    content = text.encode()
    return struct.pack("<Q", len(content)) + content


def _value(kind: int, value: Any) -> bytes:
    if kind == ARRAY:
        inner, items = value
        head = struct.pack("<IQ", inner, len(items))
        return head + b"".join(_value(inner, item) for item in items)
    if kind == STRING:
        return _string(value)
    return struct.pack({FLOAT32: "<f", I32: "<i", U32: "<I"}[kind], value)
