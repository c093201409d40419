"""Tensors by name -> a .safetensors file.   in: a mapping, a path   out: the file
who calls: format.py, and whoever writes tensors that do not fit the memory together

The same bytes as safetensors.torch.save_file, but one tensor after the other: of tensors that are
read on demand no more than one is in memory, and of those that are there none is copied.
Source: the format is that of https://github.com/huggingface/safetensors (header size as 8 bytes,
        JSON header padded with blanks to a multiple of 8, then the tensors).
Read next: torch_file.py (StoredTensors, read on demand).
"""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nanochat.checkpoint.torch_file import StoredTensors

__all__ = ["save_tensors"]

# In the order in which safetensors lays them out: the widest first, so that all are aligned.
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write all tensors.

    StoredTensors knows their shapes; any other mapping is asked for every tensor twice.
    Raises: OSError as the disk does; ValueError for a dtype that no checkpoint has, and for tensors
            that change meanwhile.
    """
    described = (
        tensors.described
        if isinstance(tensors, StoredTensors)
        else {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    )
    order = sorted(described, key=lambda name: (list(_DTYPES).index(described[name][0]), name))
    header: dict[str, object] = {}
    end = 0
    for name in order:
        dtype, shape = described[name]
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {
            "dtype": _DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            tensor = tensors[name].detach().cpu().contiguous()
            if (tensor.dtype, tuple(tensor.shape)) != described[name]:
                raise ValueError(f"{name} changed while it was written")
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
            del tensor  # before the next one is read
