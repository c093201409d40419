"""The page on real models: one with random weights and one that never ends, engine and server."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from nanochat.engine.engine import Engine
from nanochat.engine.request import SamplingParams
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.endless import endless_model
from tests.engine.conftest import CONTEXT_LEN, random_model
from tests.patience import wait_until
from tests.web.conftest import View
from tests.web.stage import served

pytestmark = pytest.mark.req("FR-049", "FR-050", "FR-052", "US-2")


@pytest.fixture(scope="module")
def random_server(tiny_tokenizer: Tokenizer) -> Iterator[tuple[Engine, str]]:
    """An engine with random weights that takes the likeliest token, and where it is served."""
    engine = Engine(random_model(), tiny_tokenizer, max_rows=4)
    defaults = SamplingParams(temperature=0.0)
    model = ServedModel(
        name="random", tokenizer=tiny_tokenizer, context_len=CONTEXT_LEN, defaults=defaults
    )
    with served(create_app(engine, model)) as url:
        yield engine, url


def test_a_conversation_with_a_real_model(
    new_view: Callable[..., View], random_server: tuple[Engine, str]
) -> None:
    engine, url = random_server
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


def titles(view: View) -> list[str]:
    return list(view.page.locator(".conversation-title").all_inner_texts())


def answer_with(view: View, title: str, **settings: str) -> str:
    """What is answered to one question in a new chat of this name, with these in the panel."""
    view.page.click("#new-chat")
    view.page.click("#open-settings")
    for name, value in settings.items():
        view.page.fill(f"#{name}", value)
    view.page.keyboard.press("Escape")
    view.ask("Hi")
    view.page.get_by_role("button", name="Rename Hi", exact=True).click()
    view.page.get_by_label("New name").fill(title)
    view.page.get_by_label("New name").press("Enter")
    view.page.get_by_role("button", name=title, exact=True).wait_for()
    return view.messages[-1]


def test_settings_change_the_answers_which_are_named_found_deleted_and_read_again(
    new_view: Callable[..., View], random_server: tuple[Engine, str], tmp_path: Path
) -> None:
    view = new_view(url=random_server[1])
    view.open()
    plain = answer_with(view, "As it is", **{"setting-max_tokens": "12"})
    taught = answer_with(view, "Taught", system="0")
    short = answer_with(view, "Cut short", **{"setting-max_tokens": "4"})
    assert plain != taught
    assert taught.startswith(short) and 0 < len(short) < len(taught)  # temperature 0
    assert titles(view) == ["Cut short", "Taught", "As it is"]

    word = max(re.findall(r"\w+", taught), key=len)
    answers = {"Cut short": short, "Taught": taught, "As it is": plain}
    having = [title for title, answer in answers.items() if word.lower() in answer.lower()]
    view.page.fill("#search", word)
    view.comes(lambda: titles(view), having)
    view.page.fill("#search", "")

    view.page.click("#open-settings")
    with view.page.expect_download() as download:
        view.page.click("#export")
    download.value.save_as(tmp_path / "all.json")
    view.page.keyboard.press("Escape")
    for title in answers:
        row = view.page.locator(".conversation", has_text=title)
        row.hover()
        row.get_by_role("button", name=f"Delete {title}").click()
        view.page.locator("#confirm").get_by_role("button", name="Delete").click()
        row.wait_for(state="detached")
    assert titles(view) == []
    view.page.set_input_files("#import-file", tmp_path / "all.json")
    view.wait_status("3 conversations were read.")
    view.comes(lambda: titles(view), list(answers))
    view.page.get_by_role("button", name="Taught", exact=True).click()
    view.comes(lambda: view.messages, ["Hi", taught])
    assert view.page.input_value("#system") == "0"


def test_what_goes_on_for_ever_is_stopped_edited_and_exported(
    new_view: Callable[..., View], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    engine = Engine(endless_model(tiny_tokenizer), tiny_tokenizer, max_rows=4)
    model = ServedModel(
        name="endless", tokenizer=tiny_tokenizer, context_len=engine.context_len, has_tools=True,
        defaults=SamplingParams(temperature=0.0),
    )  # fmt: skip

    def stop(view: View, key: str | None = None, before: str = "") -> str:
        """What there is once more has come and it has been stopped, in the engine too."""
        view.wait_writing("qj qj qj")
        view.comes(lambda: len(view.messages[-1]) > len(before), True)
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
        longer = stop(view, "Escape", first)
        assert longer.startswith(first) and "qjqj" not in longer
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
