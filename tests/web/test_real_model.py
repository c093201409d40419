"""The page on a real model: a small one with random weights, its engine, its server."""

from collections.abc import Callable

import pytest

from nanochat.engine.engine import Engine
from nanochat.engine.request import SamplingParams
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import CONTEXT_LEN, random_model
from tests.web.conftest import View
from tests.web.stage import served, wait_until

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
        view.page.wait_for_function("() => document.getElementById('model').value === 'random'")
        view.ask("Hi")
        first = view.messages[-1]
        assert len(first) > 5
        view.press("Answer again")
        view.page.get_by_text("2 / 2").wait_for()
        view.wait_done()
        assert view.messages[-1] == first  # temperature 0
        view.ask("And?")  # the context is full by now: the oldest turn is left unread
        assert len(view.messages) == 4
        view.page.click("#new-chat")
        view.ask("Stop me", wait=False)
        view.page.wait_for_selector(".message.assistant")
        if view.page.locator("#stop").is_visible():
            view.page.keyboard.press("Escape")
        view.wait_done()
        wait_until(lambda: engine.num_active == 0)
