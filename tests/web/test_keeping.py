"""What this browser keeps: conversations, drafts, branches; and two tabs that share it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.web.conftest import View
from tests.web.stage import Stage

pytestmark = pytest.mark.req("FR-051", "US-2")


def titles(view: View) -> list[str]:
    return list(view.page.locator(".conversation-title").all_inner_texts())


@pytest.fixture
def three(view: View, play: Stage) -> View:
    """Three conversations; the last one is open."""
    for question, answer in (
        ("About foxes", "They are red."),
        ("About frogs", "They are green."),
        ("About crows", "They are black."),
    ):
        view.page.click("#new-chat")
        play.engine.say(answer)
        view.ask(question)
        view.page.get_by_text(answer).wait_for()
    return view


def test_conversations_are_there_after_a_reload(three: View) -> None:
    three.comes(lambda: titles(three), ["About crows", "About frogs", "About foxes"])
    three.reload()
    three.page.get_by_text("They are black.").wait_for()
    assert three.messages == ["About crows", "They are black."]
    three.comes(lambda: titles(three), ["About crows", "About frogs", "About foxes"])
    three.page.get_by_role("button", name="About foxes", exact=True).click()
    three.page.get_by_text("They are red.").wait_for()
    assert three.messages == ["About foxes", "They are red."]
    assert three.page.title() == "About foxes · nanochat"


def test_the_list_is_searched_by_titles_and_by_words(three: View) -> None:
    three.page.fill("#search", "frog")
    three.page.wait_for_function("() => document.querySelectorAll('.conversation').length === 1")
    assert titles(three) == ["About frogs"]
    three.page.fill("#search", "RED they")
    three.page.get_by_role("button", name="About foxes", exact=True).wait_for()
    assert titles(three) == ["About foxes"]
    three.wait_status("1 conversation found.")
    three.page.fill("#search", "zebra")
    three.page.get_by_text("Nothing found.").wait_for()
    three.page.press("#search", "Escape")
    assert len(titles(three)) == 3
    three.page.fill("#search", "foxes")
    three.page.press("#search", "Enter")
    three.page.get_by_text("They are red.").wait_for()


def test_a_conversation_is_renamed(three: View) -> None:
    three.page.get_by_role("button", name="Rename About crows").click()
    box = three.page.get_by_label("New name")
    assert box.input_value() == "About crows"
    box.fill("Black birds")
    box.press("Enter")
    three.page.get_by_role("button", name="Black birds", exact=True).wait_for()
    three.page.get_by_role("button", name="Rename Black birds").click()
    three.page.get_by_label("New name").fill("no")
    three.page.get_by_label("New name").press("Escape")
    assert titles(three)[0] == "Black birds"
    three.reload()
    three.page.get_by_role("button", name="Black birds", exact=True).wait_for()


def test_a_conversation_is_deleted_once_one_is_sure(three: View) -> None:
    three.page.get_by_role("button", name="Delete About crows").click()
    assert "About crows" in three.page.locator("#confirm").inner_text()
    three.page.get_by_role("button", name="Cancel").click()
    expect(three.page.locator("#confirm")).to_be_hidden()
    three.settle()
    assert len(titles(three)) == 3
    three.page.get_by_role("button", name="Delete About crows").click()
    three.page.locator("#confirm").get_by_role("button", name="Delete").click()
    three.wait_status("The conversation is deleted.")
    three.comes(lambda: titles(three), ["About frogs", "About foxes"])
    assert three.messages == []
    three.reload()
    three.page.get_by_role("button", name="About frogs", exact=True).wait_for()
    rows = three.page.evaluate(
        """async () => {
          const { Store } = await import("/store.js");
          return (await (await Store.open()).all("messages")).length;
        }"""
    )
    assert rows == 4, "its messages are gone too"


def test_everything_goes_into_a_file_and_comes_back(
    three: View, new_view: Callable[..., View], tmp_path: Path
) -> None:
    three.press("Answer again")
    three.wait_status("The answer is complete.")
    three.page.click("#open-settings")
    with three.page.expect_download() as download:
        three.page.click("#export")
    path = tmp_path / "all.json"
    download.value.save_as(path)
    data = json.loads(path.read_text())
    assert data["format"] == "nanochat-conversations" and len(data["conversations"]) == 3
    assert [len(row["messages"]) for row in data["conversations"]] == [3, 2, 2]

    other = new_view()
    other.open()
    other.page.set_input_files("#import-file", path)
    other.wait_status("3 conversations were read.")
    other.page.get_by_role("button", name="About crows", exact=True).click()
    other.page.get_by_text("A reply.").wait_for()
    assert "2 / 2" in other.page.locator(".message").last.inner_text()
    other.forget_status()
    other.page.set_input_files("#import-file", path)  # nothing is doubled
    other.wait_status("3 conversations were read.")
    other.settle()
    other.page.get_by_role("button", name="About foxes", exact=True).click()
    other.page.get_by_text("They are red.").wait_for()
    assert titles(other) == ["About crows", "About frogs", "About foxes"]


WRONG_FILES: list[tuple[Any, str]] = [
    ("{", "is not JSON"),
    ([], "has no conversations"),
    ({"format": "other"}, "has no conversations"),
    ({"format": "nanochat-conversations", "version": 9, "conversations": []}, "version is 9"),
    ({"conversations": [{"id": "../x", "messages": []}]}, "conversation 1 has no id"),
    ({"conversations": [{"id": "a", "messages": [{"id": "b"}]}]}, "message 1 has no role"),
    (
        {"conversations": [{"id": "a", "title": "t", "messages": [
            {"id": "b", "role": "user", "parent": "c", "content": "x"}]}]},
        "follows one that is not there",
    ),
    (
        {"conversations": [{"id": "a", "title": "t", "messages": [
            {"id": "b", "role": "user", "parent": None, "content": {"x": 1}}]}]},
        "has no content",
    ),
    (
        {"conversations": [{"id": "a", "title": "t", "messages": [
            {"id": "b", "role": "user", "parent": None, "content": "x"},
            {"id": "b", "role": "user", "parent": None, "content": "y"}]}]},
        "has 2 messages, but 1 ids",
    ),
    (
        {"conversations": [{"id": "a", "title": "t", "messages": [
            {"id": "b", "role": "user", "parent": "b", "content": "x"}]}]},
        "message b follows b, which comes after it",
    ),
    (
        {"conversations": [{"id": "a", "title": "t", "messages": [
            {"id": "z", "role": "user", "parent": None, "content": "x"},
            {"id": "b", "role": "user", "parent": "c", "content": "x"},
            {"id": "c", "role": "assistant", "parent": "b", "content": "x"}]}]},
        "message b follows c, which comes after it",
    ),
    ({"conversations": [{"id": True, "messages": []}]}, "conversation 1 has no id"),
]  # fmt: skip


def test_a_wrong_file_is_refused_with_the_reason(view: View, tmp_path: Path) -> None:
    for number, (content, reason) in enumerate(WRONG_FILES):
        if isinstance(content, dict) and "format" not in content:
            content = {"format": "nanochat-conversations", "version": 1, **content}
        path = tmp_path / f"{number}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        view.forget_status()
        view.page.set_input_files("#import-file", path)
        view.wait_status(reason)
        assert view.status.startswith("Nothing was read")
    assert titles(view) == []


KEEP_A_RING = """async () => {
  const { Store } = await import("/store.js");
  const store = await Store.open();
  const row = (id, parent, created) => ({
    id, parent, created, conversation: "ring", role: "user", content: `This is ${id}`, finish: null,
  });
  await store.put("messages", [row("c", "b", 1), row("a", "b", 2), row("b", "a", 3)]);
  await store.put("conversations",
    { id: "ring", title: "Ring", created: 1, updated: 1, leaf: "c", system: "" });
}"""


def test_messages_in_a_ring_do_not_hang_the_page(view: View) -> None:
    """An older page took them in."""
    view.page.evaluate(KEEP_A_RING)
    view.reload()
    view.page.get_by_role("button", name="Ring", exact=True).click()
    view.comes(lambda: view.messages, ["This is a", "This is b", "This is c"])
    view.press("Next version")
    view.comes(lambda: view.messages, ["This is a", "This is b"])


def test_what_is_joined_into_a_conversation_is_shown_and_found(view: View, tmp_path: Path) -> None:
    view.ask("About foxes")
    view.page.fill("#search", "marmalade")
    view.page.get_by_text("Nothing found.").wait_for()
    view.page.click("#open-settings")
    with view.page.expect_download() as download:
        view.page.click("#export")
    view.page.keyboard.press("Escape")
    data = json.loads(Path(download.value.path()).read_text())
    answer = data["conversations"][0]["messages"][1]
    data["conversations"][0]["messages"].append(
        {
            **answer,
            "id": "other",
            "content": "They eat marmalade.",
            "created": answer["created"] + 1,
        }
    )
    path = tmp_path / "more.json"
    path.write_text(json.dumps(data))
    view.page.set_input_files("#import-file", path)
    view.wait_status("1 conversation was read.")
    view.page.get_by_text("1 / 2").wait_for()
    view.press("Next version")
    view.comes(lambda: view.messages, ["About foxes", "They eat marmalade."])
    view.settle()
    view.page.fill("#search", "marmalade fox")
    view.wait_status("1 conversation found.")
    assert titles(view) == ["About foxes"]


def test_drafts_are_kept_for_each_conversation(view: View) -> None:
    view.ask("First question")
    view.page.fill("#question", "half a thought")
    view.page.click("#new-chat")
    assert view.page.input_value("#question") == ""
    view.page.fill("#question", "another thought")
    view.page.get_by_role("button", name="First question", exact=True).click()
    view.page.wait_for_function(
        "() => document.getElementById('question').value === 'half a thought'"
    )
    view.settle()
    view.reload()
    view.page.wait_for_function(
        "() => document.getElementById('question').value === 'half a thought'"
    )
    view.page.click("#new-chat")
    view.page.wait_for_function(
        "() => document.getElementById('question').value === 'another thought'"
    )
    view.ask("sent")
    view.page.click("#new-chat")
    view.wait_status("A new chat.")
    view.settle()
    assert view.page.input_value("#question") == ""


def test_an_answer_is_not_lost_with_the_page(view: View, play: Stage) -> None:
    play.engine.say("Some words that were written " * 20, hold_at=90, hold_again_at=95)
    view.ask("Long", wait=False)
    view.page.wait_for_function("() => document.querySelector('.prose').textContent.length > 510")
    view.page.wait_for_timeout(1100)  # it is saved once a second, when a piece comes
    play.engine.go.set()
    view.page.wait_for_function("() => document.querySelector('.prose').textContent.length > 540")
    view.settle()
    view.reload()
    view.page.get_by_text("Some words that were written").wait_for()
    assert view.messages[0] == "Long" and len(view.messages[1]) > 510


def test_two_tabs_see_the_same(view: View, new_view: Callable[..., View], play: Stage) -> None:
    view.ask("From the first tab")
    other = new_view(view.page.context)
    other.open()
    other.page.get_by_role("button", name="From the first tab", exact=True).click()
    other.page.get_by_text("A reply.").wait_for()
    play.engine.say("Seen in both.")
    other.ask("From the second tab")
    play.engine.say("A branch of its own.")
    view.ask("From the first again")
    view.page.get_by_text("2 / 2").first.wait_for()
    assert view.messages[2:] == ["From the first again", "A branch of its own."]
    other.page.get_by_text("1 / 2").first.wait_for()
    assert other.messages[2:] == ["From the second tab", "Seen in both."]
    other.settle()
    view.settle()
    view.page.get_by_role("button", name="Rename From the first tab").click()
    view.page.get_by_label("New name").fill("Renamed")
    view.page.get_by_label("New name").press("Enter")
    other.page.get_by_role("button", name="Renamed", exact=True).wait_for()
    view.page.get_by_role("button", name="Delete Renamed").click()
    view.page.locator("#confirm").get_by_role("button", name="Delete").click()
    other.page.locator(".conversation").wait_for(state="detached")
    assert other.messages == []


FILL = """() => {
  window.realPut = IDBObjectStore.prototype.put;
  IDBObjectStore.prototype.put = () => {
    throw new DOMException("The quota has been exceeded.", "QuotaExceededError");
  };
}"""
MAKE_ROOM = "() => { IDBObjectStore.prototype.put = window.realPut; }"


def test_a_browser_without_room_says_so_and_keeps_it_once_there_is_some(view: View) -> None:
    view.ask("Before")
    view.page.evaluate(FILL)
    view.ask("After")
    view.wait_status("The answer is complete. It is not kept.")
    assert view.page.locator(".writing").count() == 0
    assert "no room to keep more" in view.page.locator("#notice").inner_text()
    view.page.click("#new-chat")
    view.ask("And on")
    assert view.messages == ["And on", "A reply."]
    view.comes(lambda: titles(view), ["And on", "Before"])
    view.page.get_by_role("button", name="Before", exact=True).click()
    view.page.get_by_text("After").wait_for()
    assert view.messages == ["Before", "A reply.", "After", "A reply."]
    view.page.get_by_role("button", name="Try again").click()
    assert "no room to keep more" in view.page.locator("#notice").inner_text()
    view.page.evaluate(MAKE_ROOM)
    view.page.get_by_role("button", name="Try again").click()
    view.page.locator("#notice .problem").wait_for(state="detached")
    view.reload()
    view.page.get_by_text("After").wait_for()
    assert view.messages == ["Before", "A reply.", "After", "A reply."]
    view.comes(lambda: titles(view), ["And on", "Before"])


def test_a_deleted_conversation_makes_room(view: View) -> None:
    view.ask("Old")
    view.page.click("#new-chat")
    view.page.evaluate(FILL)
    view.ask("New")
    view.page.locator("#notice .problem").wait_for()
    view.page.evaluate(MAKE_ROOM)
    view.page.locator(".conversation", has_text="Old").hover()
    view.page.get_by_role("button", name="Delete Old").click()
    view.page.locator("#confirm").get_by_role("button", name="Delete").click()
    view.page.locator("#notice .problem").wait_for(state="detached")
    view.reload()
    view.page.get_by_role("button", name="New", exact=True).wait_for()
    assert view.messages == ["New", "A reply."]


def test_a_browser_that_keeps_nothing_still_chats(new_view: Callable[..., View]) -> None:
    view = new_view()
    view.page.context.add_init_script("Object.defineProperty(window, 'indexedDB', {value: null})")
    view.open()
    assert view.page.locator("#not-kept").is_visible()
    view.ask("Hello")
    view.page.click("#new-chat")
    view.page.get_by_role("button", name="Hello", exact=True).click()
    view.page.get_by_text("A reply.").wait_for()
    assert view.messages == ["Hello", "A reply."]
