"""lm-evaluation-harness asks our server what we ask our engine, and hears the same.

The small form: forty short questions of arithmetic and of words.  With ARC-Easy and HellaSwag, 200
questions each: scripts/agree_lm_eval.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.engine.engine import Engine
from nanochat.evals.custom import load_task
from nanochat.evals.questions import TaskSpec
from nanochat.evals.task import Task
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from scripts import agree_lm_eval
from scripts.agree_lm_eval import LIMIT_NATS, Agreement, Options, agreement, main

pytest.importorskip("lm_eval", reason="needs lm-eval, of the extra interop")


def tiny_engine(tokenizer: Tokenizer, context_len: int = 128) -> Engine:
    """A random model whose tokens depend on those before them."""
    config = GPTConfig.from_depth(
        2,
        vocab_size=tokenizer.vocab_size,
        context_len=context_len,
        head_dim=16,
        aspect_ratio=16,
    )
    model = GPT(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data = values * (0.6 if parameter.ndim == 1 else parameter.size(-1) ** -0.5)
    model.embedding.weight.data *= 8
    return Engine(model.eval().requires_grad_(False), tokenizer)


def tasks(folder: Path) -> list[Task]:
    """Sums with a line before the answer, and sentences that go on after a blank."""
    sums: list[dict[str, Any]] = [
        {"question": f"{a} + {b} = ?", "choices": [str(a + b), str(a - b), "many"], "answer": 0}
        for a, b in zip(range(20), range(7, 27), strict=True)
    ]
    endings = ["over the dog.", "the mat", "lazily, and then some", "fox"]
    words: list[dict[str, Any]] = [
        {
            "question": f"The quick brown fox {number} jumps",
            "choices": endings[: 2 + number % 3],
            "answer": number % 2,
        }
        for number in range(20)
    ]
    for name, rows in (("sums", sums), ("words", words)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    kinds = {"sums": "\nAnswer: ", "words": " "}
    return [
        load_task(
            str(folder / f"{name}.jsonl"), TaskSpec(kind="multiple-choice", delimiter=delimiter)
        )
        for name, delimiter in kinds.items()
    ]


@pytest.mark.req("FR-037", "FR-038", "FR-044", "FR-053")
def test_the_harness_hears_what_we_compute(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    found = agreement(tiny_engine(tiny_tokenizer), tasks(tmp_path))
    assert [(each.label, each.num_questions, each.num_options) for each in found] == [
        ("sums", 20, 60),
        ("words", 20, 59),
    ]
    for each in found:
        assert each.largest_nats < LIMIT_NATS, each
        assert each.accuracy == each.harness_accuracy, each
        assert each.normalized == each.harness_normalized, each
        assert each.holds


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.req("FR-037", "FR-038")
def test_arc_and_hellaswag_in_full(
    shared_dir: Path, tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanochat.engine import load

    engine = tiny_engine(tiny_tokenizer, 1024)
    monkeypatch.setattr(load, "load_engine", lambda spec: type("", (), {"engine": engine})())
    assert main(Options(model="tiny", data_dir=shared_dir / "data" / "eval")) == 0


def test_a_disagreement_is_one() -> None:
    same = Agreement("x", 2, 4, 1e-5, 0.5, 0.5, 1.0, 1.0)
    assert same.holds
    for name, value in (("largest_nats", 2e-3), ("accuracy", 1.0), ("normalized", 0.5)):
        fields = {key: getattr(same, key) for key in Agreement.__slots__}
        assert not Agreement(**{**fields, name: value}).holds
    assert agree_lm_eval.TASKS.keys() == {
        "world_knowledge/arc_easy",
        "language_understanding/hellaswag",
    }
