"""What smaller weights cost in quality.   in: a model, a text   out: one JSON object
who calls: cli/bench_formats.py

Bits per byte of the same documents in each format that an engine keeps weights in, and how much
more that is than in float32.  The engines are those that serve, the counting is that of `nanochat
eval`: every document, and every stretch of a context of a longer one, begins with <|bos|>.
Read next: engine/operators.py (the formats), evals/examinee.py (the counting).
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.device import best_device, machine_name
from nanochat.corpus.documents import read_documents
from nanochat.engine.load import EngineSpec, load_engine
from nanochat.engine.operators import WeightFormat
from nanochat.evals.examinee import EngineExaminee
from nanochat.evals.task import Sample
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["FormatsBench", "bench_formats"]

CPU_FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16", "int8", "int4")
GPU_FORMATS: tuple[WeightFormat, ...] = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class FormatsBench:
    """What is measured."""

    model: str
    data: tuple[str, ...]
    num_tokens: int
    """Of the beginning of the text; the document that reaches it is read to its end."""
    device: str | None = None
    home: Path | None = None


def bench_formats(bench: FormatsBench) -> dict[str, Any]:
    """A row for each format this device has: bits_per_byte, change_percent against float32, wall_s.

    Raises: CheckpointError for the model, DataError for the text.
    """
    device = best_device(bench.device)
    samples: list[Sample] = []
    rows: list[dict[str, Any]] = []
    for format in CPU_FORMATS if device.type == "cpu" else GPU_FORMATS:
        spec = EngineSpec(model=bench.model, home=bench.home, device=bench.device, format=format)
        engine = load_engine(spec).engine
        samples = samples or _samples(bench, engine.tokenizer)
        start_s = time.perf_counter()
        verdicts = EngineExaminee(name=bench.model, engine=engine).likelihoods(
            samples, "bits_per_byte", "default"
        )
        num_bytes = sum(verdict.details["num_bytes"] for verdict in verdicts)
        bits = math.fsum(verdict.score for verdict in verdicts) / num_bytes
        rows.append(
            {
                "format": format,
                "bits_per_byte": bits,
                "change_percent": 100 * (bits / rows[0]["bits_per_byte"] - 1) if rows else 0.0,
                "wall_s": round(time.perf_counter() - start_s, 1),
            }
        )
    return {
        "machine": machine_name(device),
        "model": bench.model,
        "data": list(bench.data),
        "num_documents": len(samples),
        "num_tokens": sum(verdict.choice_tokens[0] for verdict in verdicts),
        "num_bytes": num_bytes,
        "rows": rows,
    }


def _samples(bench: FormatsBench, tokenizer: Tokenizer) -> list[Sample]:
    samples: list[Sample] = []
    num_tokens = 0
    for document in read_documents(bench.data, home=bench.home):
        if num_tokens >= bench.num_tokens:
            break
        if document.text:
            samples.append(Sample(sample_id=f"{len(samples)}", prompt=document.text))
            num_tokens += len(tokenizer.encode(document.text))
    return samples
