"""nanochat bench formats   in: a model, a text   out: one JSON object, or a table   who calls:
cli.main

Read next: bench/formats.py.
"""

import json
from dataclasses import dataclass

import tyro

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Measure what smaller weights cost: bits per byte of a text in float32, bfloat16, int8 and
    int4, and the change in percent."""

    model: tyro.conf.Positional[str]
    """A run (d12, d12/sft, d12/sft@1500), or a directory."""
    data: tuple[str, ...]
    """Text that the model was not trained on: files, folders, globs, names, as for pretrain."""
    num_tokens: int = 100_000
    """How much of it is read, about; documents are not cut."""
    device: str | None = None
    """cuda, mps or cpu; int8 and int4 are a CPU's. None: the fastest there is."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("--data is empty, expected files, folders or globs of text")
        if self.num_tokens < 1:
            raise ConfigError(f"num_tokens is {self.num_tokens}, expected at least 1")


def run(config: Config) -> int:
    """0 once everything is measured.

    Raises: CheckpointError for the model, DataError for the text.
    """
    from nanochat.bench.formats import FormatsBench, bench_formats

    result = bench_formats(
        FormatsBench(
            model=config.model,
            data=config.data,
            num_tokens=config.num_tokens,
            device=config.device,
            home=config.home,
        )
    )
    if config.json:
        print(json.dumps(result))
        return 0
    print(
        f"{result['model']} on {result['machine']}: {result['num_documents']:,} documents, "
        f"{result['num_tokens']:,} tokens, {result['num_bytes']:,} bytes"
    )
    for row in result["rows"]:
        print(
            f"{row['format']:<10}{row['bits_per_byte']:.5f} bits per byte"
            f"{row['change_percent']:>+9.3f}%{row['wall_s']:>9.1f} s"
        )
    return 0
