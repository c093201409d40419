"""The page on a real model: a small one with random weights, its engine, its server."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from nanochat.engine.engine import Engine
from nanochat.engine.request import SamplingParams
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
        view.page.click("#new-chat")
        view.ask("Stop me", wait=False)
        if view.page.locator("#stop").is_visible():
            view.page.keyboard.press("Escape")
        view.wait_done()
        wait_until(lambda: engine.num_active == 0)
