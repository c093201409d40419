"""The page on real models: one with random weights and one that never ends, engine and server."""

import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect

from nanochat.engine.engine import Engine
from nanochat.engine.request import SamplingParams
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.init import initialize
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import CONTEXT_LEN, random_model
from tests.patience import wait_until
from tests.web.conftest import View
from tests.web.stage import served

pytestmark = pytest.mark.req("FR-049", "FR-050", "FR-052", "US-2")


def test_a_conversation_with_a_real_model(
    new_view: Callable[..., View], tiny_tokenizer: Tokenizer
) -> None:
    engine = Engine(random_model(), tiny_tokenizer, max_rows=4)
    defaults = SamplingParams(temperature=0.0)
    model = ServedModel(
        name="random", tokenizer=tiny_tokenizer, context_len=CONTEXT_LEN, defaults=defaults
    )
    with served(create_app(engine, model)) as url:
        view = new_view(url=url)
        view.open()
        expect(view.page.locator("#model")).to_have_value("random")
        view.ask("Hi")
        first = view.messages[-1]
        assert len(first) > 5
        view.press("Answer again")
        view.wait_done()
        view.page.get_by_text("2 / 2").wait_for()
        assert view.messages[-1] == first  # temperature 0
        view.ask("And?")  # the context is full by now: the oldest turn is left unread
        assert len(view.messages) == 4
        wait_until(lambda: engine.num_active == 0)


def endless_model(tokenizer: Tokenizer) -> GPT:
    """Computes 6*7, and then writes "qj qj" for ever.

    Its blocks add nothing and each token has a direction of its own, so that the head says which
    token follows which.
    """
    special, letter = tokenizer.special, lambda text: tokenizer.encode(text)[0]
    start, end = special("<|python_start|>"), special("<|python_end|>")
    chain = [special("<|assistant_start|>"), start, *map(letter, "6*7"), end]
    loop = [special("<|output_end|>"), *map(letter, "qj q")]
    config = GPTConfig.from_depth(
        2, vocab_size=300, context_len=50_000, head_dim=32, aspect_ratio=160
    )
    model = GPT(dataclasses.replace(config, num_kv_heads=1))
    initialize(model)
    weight = model.embedding.weight
    assert weight.size(0) <= weight.size(1), "a direction for each token"
    weight.data = torch.eye(*weight.shape)
    model.head.weight.data.zero_()
    for before, after in (*pairwise(chain), *pairwise(loop)):
        model.head.weight.data[after, before] = 1
    return model.eval().requires_grad_(False)


def test_what_goes_on_for_ever_is_stopped_edited_and_exported(
    new_view: Callable[..., View], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    engine = Engine(endless_model(tiny_tokenizer), tiny_tokenizer, max_rows=4)
    model = ServedModel(
        name="endless", tokenizer=tiny_tokenizer, context_len=engine.context_len, has_tools=True,
        defaults=SamplingParams(temperature=0.0),
    )  # fmt: skip

    def stop(view: View, key: str | None = None) -> str:
        """What there is once it has been stopped, on the page and in the engine."""
        view.wait_writing("qj qj qj")
        assert engine.num_active == 1
        view.forget_status()
        if key is None:
            view.page.click("#stop")
        else:
            view.page.keyboard.press(key)
        view.wait_status("Stopped.")
        view.wait_done()
        wait_until(lambda: engine.num_active == 0)
        return view.messages[-1]

    with served(create_app(engine, model)) as url:
        view = new_view(url=url)
        view.open()
        view.ask("Compute", wait=False)
        first = stop(view)
        assert "6*7 = 42" in view.page.locator("details.call summary").inner_text()
        view.page.get_by_role("button", name="Continue").click()
        longer = stop(view, "Escape")
        assert len(longer) > len(first) and longer.split("qj", 1)[1].split(" ")[1] == "qj"
        view.press("Edit", 0)
        view.page.get_by_label("Edit your message").fill("Once more")
        view.page.keyboard.press("Enter")
        stop(view)
        assert view.messages[0] == "Once more"
        view.page.get_by_text("2 / 2").wait_for()
        view.page.click("#open-settings")
        with view.page.expect_download() as download:
            view.page.click("#export")
        download.value.save_as(tmp_path / "all.json")
        [conversation] = json.loads((tmp_path / "all.json").read_text())["conversations"]
        asked = [row["content"] for row in conversation["messages"] if row["role"] == "user"]
        assert asked == ["Compute", "Once more"]
        assert "<|output_start|>42<|output_end|>qj qj" in conversation["messages"][1]["content"]
