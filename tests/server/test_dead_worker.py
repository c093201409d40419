"""A process that dies in mid-answer, seen by a client: a clean error, then the next answer."""

import os
import signal
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from nanochat.checkpoint.format import Checkpoint, save_checkpoint
from nanochat.checkpoint.resolve import run_directory
from nanochat.engine.load import EngineSpec
from nanochat.engine.worker import EngineProcess
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.endless import endless_model
from tests.patience import wait_until
from tests.server.conftest import live


@pytest.mark.req("FR-054")
@pytest.mark.timeout(300)  # two processes import torch, one after the other
def test_a_stream_ends_with_an_error_and_the_next_request_is_answered(
    tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = endless_model(tiny_tokenizer)
    checkpoint = Checkpoint(
        config=model.config,
        weights={name: weight.to(torch.float32) for name, weight in model.named_parameters()},
        tokenizer=tiny_tokenizer,
        state={"stage": "sft", "step": 3},
    )
    folder = run_directory(tmp_path, "endless") / "sft" / "checkpoints" / "step_000003"
    save_checkpoint(folder, checkpoint)
    spec = EngineSpec(
        model="endless", home=tmp_path, device="cpu", format="float32", max_rows=4,
        kv_memory_bytes=64 << 20,
    )  # fmt: skip
    worker = EngineProcess(spec)
    try:
        context_len = worker.start().context_len
        served = ServedModel(name="tiny", tokenizer=tiny_tokenizer, context_len=context_len)
        with (
            live(create_app(worker, served)) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            asked: Any = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
            stream = client.chat.completions.create(**asked, temperature=0, stream=True)
            first = worker.process_id
            assert first is not None
            with pytest.raises(openai.APIError, match="was ended by SIGKILL: ask again") as broken:
                for number, _ in enumerate(stream):
                    if number == 10:
                        os.kill(first, signal.SIGKILL)
            assert broken.value.code == "engine_error"
            wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200, 200)
            answer = client.chat.completions.create(**asked, temperature=0, max_tokens=20)
            assert answer.usage is not None and answer.usage.completion_tokens == 20
            assert worker.process_id not in (None, first)
    finally:
        worker.close()
