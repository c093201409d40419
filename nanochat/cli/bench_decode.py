"""nanochat bench decode   in: a size, peers   out: one JSON object, or a table   who calls:
cli.main

Read next: bench/decode.py.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Measure decoding at a size with random weights, beside karpathy/nanochat and llama.cpp where
    they are at hand."""

    depth: int = 12
    """Layers."""
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """What weights are kept in; auto: bfloat16 where the processor multiplies it fast."""
    batch_sizes: str = "1,16"
    """Rows decoded at once, separated by commas."""
    context: int = 256
    """Tokens that each row has read before."""
    num_steps: int = 48
    """Tokens each row is given."""
    vocab_size: int = 32_768
    """Entries of the vocabulary."""
    head_dim: int = 128
    """Width of one attention head."""
    device: str | None = None
    """cuda, mps or cpu. None: the fastest there is."""
    peer_nanochat: Path | None = None
    """A checkout of karpathy/nanochat to measure in the same run."""
    peer_llama_cpp: bool = False
    """Measure llama.cpp too, through llama-cpp-python."""
    llama_cpp_python: Path | None = None
    """The interpreter that has llama-cpp-python. None: this one."""

    def __post_init__(self) -> None:
        sizes = [size.strip() for size in self.batch_sizes.split(",")]
        if not all(size.isdecimal() and int(size) >= 1 for size in sizes):
            raise ConfigError(
                f"batch_sizes is {self.batch_sizes!r}, expected numbers from 1 on, such as 1,16"
            )
        wrong = [
            f"{name} is {value}, expected at least {least}"
            for name, value, least in (
                ("depth", self.depth, 1),
                ("context", self.context, 1 + max(int(size) for size in sizes) // 2),
                ("num_steps", self.num_steps, 1),
                ("vocab_size", self.vocab_size, 128),
            )
            if value < least
        ]
        if wrong:
            raise ConfigError("; ".join(wrong))
        peer = self.peer_nanochat
        if peer is not None and not (peer / "nanochat" / "gpt.py").is_file():
            raise ConfigError(f"--peer-nanochat {peer}: no nanochat/gpt.py there; give a checkout")
        if self.llama_cpp_python is not None and not self.llama_cpp_python.is_file():
            raise ConfigError(
                f"--llama-cpp-python {self.llama_cpp_python}: no such file; give an interpreter"
            )


def run(config: Config) -> int:
    """0 once everything is measured.

    Raises: ConfigError if llama.cpp is asked for and not installed.
    """
    from nanochat.bench.decode import DecodeBench, bench_decode

    interpreter = None
    if config.peer_llama_cpp:
        interpreter = config.llama_cpp_python or Path(sys.executable)
        if config.llama_cpp_python is None and importlib.util.find_spec("llama_cpp") is None:
            raise ConfigError(
                "--peer-llama-cpp: llama_cpp is not installed here; install llama-cpp-python, or "
                "name an interpreter that has it with --llama-cpp-python"
            )
    result = bench_decode(
        DecodeBench(
            depth=config.depth,
            dtype=config.dtype,
            batch_sizes=tuple(int(size) for size in config.batch_sizes.split(",")),
            context=config.context,
            num_steps=config.num_steps,
            vocab_size=config.vocab_size,
            head_dim=config.head_dim,
            device=config.device,
            peer_nanochat=config.peer_nanochat.resolve() if config.peer_nanochat else None,
            llama_cpp_python=interpreter,
            home=config.home,
        )
    )
    if config.json:
        print(json.dumps(result))
        return 0
    for name, rows in {f"ours {result['dtype']}": result["rows"], **result["peers"]}.items():
        for row in rows:
            share = row.get("bandwidth_share")
            print(
                f"{name:<20}{row['batch_size']:>4} rows {row['tokens_per_s']:>10,.1f} tok/s"
                f"   first token {1000 * row['ttft_s']:>7.1f} ms"
                + (f"   {share:.0%} of memory bandwidth" if share is not None else "")
            )
    for name, ratios in result["ratios"].items():
        print(f"over {name:<20}" + "".join(f"{ratio:>8.2f}" for ratio in ratios))
    return 0
