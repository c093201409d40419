"""Settings, models, theme, keys, telephones, screen readers."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from nanochat.common.errors import Overloaded
from nanochat.engine.request import SamplingParams
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.web.conftest import View
from tests.web.stage import Stage, stage

pytestmark = pytest.mark.req("FR-049")

PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


def bodies(view: View) -> list[dict[str, Any]]:
    """What is asked from now on."""
    seen: list[dict[str, Any]] = []
    view.listen(
        "request",
        lambda request: seen.append(json.loads(request.post_data)) if request.post_data else None,
    )
    return seen


# ------------------------------------------------------------------------------------- settings

CHOICES = {
    "temperature": 0.35, "top_p": 0.9, "min_p": 0.05, "top_k": 40, "max_tokens": 64, "seed": 7,
    "presence_penalty": 0.5, "frequency_penalty": -0.5,
}  # fmt: skip


@pytest.mark.req("FR-012")
def test_what_is_set_is_sent_and_reset_leaves_it_to_the_server(view: View) -> None:
    view.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            body='data: {"choices":[{"delta":{"content":"ok"},"finish_reason":"stop"}]}\n\n'
            "data: [DONE]\n\n",
        ),
    )
    seen = bodies(view)
    view.ask("Nothing set")
    assert not set(seen[-1]) & {*CHOICES, "stop"}
    view.page.click("#open-settings")
    for name, value in CHOICES.items():
        view.page.fill(f"#setting-{name}", str(value))
    view.page.fill("#stop-texts", "END\n\n###\n")
    view.page.keyboard.press("Escape")
    view.ask("All set")
    assert {name: seen[-1][name] for name in CHOICES} == CHOICES
    assert seen[-1]["stop"] == ["END", "###"]
    view.reload()
    view.page.click("#open-settings")
    assert view.page.input_value("#setting-top_k") == "40"
    assert view.page.input_value("#stop-texts") == "END\n###"
    view.page.click("#reset")
    assert view.page.input_value("#setting-top_k") == ""
    view.page.keyboard.press("Escape")
    view.ask("Reset")
    assert not set(seen[-1]) & {*CHOICES, "stop"}


def test_the_servers_defaults_are_shown_and_wrong_values_are_not_sent(view: View) -> None:
    seen = bodies(view)
    view.page.click("#open-settings")
    temperature = view.page.locator("#setting-temperature")
    assert temperature.get_attribute("placeholder") == "0.8"
    assert view.page.locator("#setting-top_k").get_attribute("placeholder") == "50"
    temperature.fill("9")
    assert temperature.get_attribute("aria-invalid") == "true"
    slider = view.page.get_by_label("Temperature, slider")
    slider.focus()
    slider.press("Home")
    assert temperature.input_value() == "0"
    temperature.fill("9")
    view.page.keyboard.press("Escape")
    view.ask("Go")
    assert "temperature" not in seen[-1]


def test_a_system_prompt_belongs_to_its_conversation(view: View, play: Stage) -> None:
    view.page.click("#open-settings")
    view.page.fill("#system", "You are a fox.")
    view.page.keyboard.press("Escape")
    view.ask("Who?")
    assert "You are a fox." in play.prompt()
    view.page.click("#new-chat")
    view.page.click("#open-settings")
    assert view.page.input_value("#system") == "You are a fox."
    view.page.fill("#system", "You are a crow.")
    view.page.keyboard.press("Escape")
    view.ask("And you?")
    assert "You are a crow." in play.prompt()
    view.page.get_by_role("button", name="Who?", exact=True).click()
    view.page.locator(".bubble", has_text="Who?").wait_for()
    view.ask("Still?")
    assert "You are a fox." in play.prompt()


def test_one_of_several_models_is_picked(new_view: Callable[..., View]) -> None:
    view = new_view()
    models = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in ("a", "b")]
    view.page.route(
        "**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": models})
    )
    view.page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body="data: [DONE]\n\n"),
    )
    view.open()
    expect(view.page.locator("#model")).to_have_value("a")
    seen = bodies(view)
    view.page.select_option("#model", "b")
    view.ask("Hi")
    assert seen[-1]["model"] == "b"
    view.reload()
    expect(view.page.locator("#model")).to_have_value("b")


@pytest.mark.req("FR-014")
def test_defaults_of_another_server(
    new_view: Callable[..., View], tiny_tokenizer: Tokenizer
) -> None:
    defaults = SamplingParams(temperature=0.25, top_k=None)
    with stage(tiny_tokenizer, name="other", context_len=300, defaults=defaults) as other:
        view = new_view(url=other.url)
        view.open()
        expect(view.page.locator("#model")).to_have_value("other")
        view.ask("Hello")
        assert "of 300 tokens" in view.page.locator("#meter").inner_text()
        view.page.click("#open-settings")
        assert view.page.locator("#setting-temperature").get_attribute("placeholder") == "0.25"


# ---------------------------------------------------------------------------------------- theme


def background(view: View) -> str:
    return str(view.page.evaluate("() => getComputedStyle(document.body).backgroundColor"))


def test_light_dark_and_as_the_system_has_it(new_view: Callable[..., View]) -> None:
    view = new_view(color_scheme="dark")
    view.open()
    dark = background(view)
    view.page.get_by_role("radio", name="Light").check()
    light = background(view)
    assert light != dark
    view.reload()
    assert background(view) == light
    view.page.get_by_role("radio", name="Dark").check()
    assert background(view) == dark
    view.page.get_by_role("radio", name="System").check()
    view.page.emulate_media(color_scheme="light")
    view.comes(lambda: background(view), light)


def test_motion_is_reduced_where_that_is_wished(new_view: Callable[..., View]) -> None:
    view = new_view(reduced_motion="reduce")
    view.open()
    longest = view.page.evaluate(
        """() => Math.max(...[...document.querySelectorAll("*")].map((node) => {
          const style = getComputedStyle(node);
          return Math.max(...[style.transitionDuration, style.animationDuration].map(parseFloat));
        }))"""
    )
    assert longest <= 0.01


# ----------------------------------------------------------------------------------------- keys

# What Chrome, Edge, Firefox and Safari do with Alt+Shift+letter (Option+Shift on a Mac), from
# their lists of shortcuts: focus the toolbar, the inactive dialog, send feedback, the favourites.
TAKEN = {"KeyA", "KeyB", "KeyI", "KeyT", "KeyP"}


def test_shortcuts_are_listed_work_and_take_nothing_from_the_browser(
    view: View, play: Stage
) -> None:
    shortcuts = view.page.evaluate('async () => (await import("/keys.js")).SHORTCUTS')
    codes = [shortcut["code"] for shortcut in shortcuts]
    assert len(set(codes)) == len(codes) and not TAKEN & set(codes)
    keys = view.page.keyboard
    keys.press("Alt+Shift+H")
    listed = view.page.locator("#help dt").all_inner_texts()
    assert {shortcut["what"] for shortcut in shortcuts} <= set(listed)
    keys.press("Escape")
    expect(view.page.locator("#help")).to_be_hidden()
    play.engine.say("First.")
    play.engine.say("Second.")
    view.ask("Question")
    keys.press("Alt+Shift+R")
    view.wait_status("The answer is complete.")
    assert view.messages == ["Question", "Second."]
    keys.press("Alt+Shift+N")
    view.wait_status("A new chat.")
    expect(view.page.locator("#welcome")).to_be_visible()
    keys.press("Alt+Shift+K")
    expect(view.page.locator("#search")).to_be_focused()
    keys.press("Alt+Shift+M")
    expect(view.page.locator("#question")).to_be_focused()
    keys.press("Alt+Shift+S")
    expect(view.page.locator("#settings")).to_be_visible()
    keys.press("Escape")
    expect(view.page.locator("#settings")).to_be_hidden()
    keys.press("Alt+Shift+X")
    expect(view.page.locator("#sidebar")).to_be_hidden()
    keys.press("Alt+Shift+X")
    expect(view.page.locator("#sidebar")).to_be_visible()


PRESS = """([key, code, more]) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown",
  { key, code, altKey: true, shiftKey: true, bubbles: true, cancelable: true, ...more }))"""


def pressed(view: View, key: str, code: str, **more: bool) -> bool:
    """Whether a shortcut took the key from what has the focus."""
    return not view.page.evaluate(PRESS, [key, code, more])


def test_keys_that_write_a_character_are_no_shortcut_in_a_text_box(view: View) -> None:
    view.page.focus("#question")
    for key, code in (("\u015a", "KeyS"), ("\u0143", "KeyN"), ("\u00c7", "KeyC")):
        assert not pressed(view, key, code)
    assert view.page.locator("dialog[open]").count() == 0
    assert pressed(view, "\u042b", "KeyS")  # a Cyrillic keyboard, where Alt writes nothing
    expect(view.page.locator("#settings")).to_be_visible()
    view.page.keyboard.press("Escape")
    view.page.focus("#question")
    assert pressed(view, "S", "KeyS")
    expect(view.page.locator("#settings")).to_be_visible()


def test_on_a_mac_control_makes_a_shortcut_of_them(new_view: Callable[..., View]) -> None:
    view = new_view()
    view.page.add_init_script(
        "Object.defineProperty(Navigator.prototype, 'platform', { get: () => 'MacIntel' })"
    )
    view.open()
    view.page.focus("#question")
    assert not any(pressed(view, key, "KeyX") for key in ("\u02db", "\u0179", "\u2248"))
    assert pressed(view, "\u02db", "KeyX", ctrlKey=True)
    expect(view.page.locator("#sidebar")).to_be_hidden()
    view.page.focus("#new-chat-bar")
    assert pressed(view, "\u00d3", "KeyH")  # no text box
    assert "Any of these, from a text box" in view.page.locator("#help").inner_text()


def test_copying_an_answer_and_its_code(view: View, play: Stage) -> None:
    view.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    play.engine.say("Look:\n\n```py\nprint(1)\n```\n\n<|python_start|>1+1<|python_end|>done")
    view.ask("Code?")

    def copied() -> str:
        return str(view.page.evaluate("() => navigator.clipboard.readText()"))

    view.page.evaluate(  # the button says so for a second and a half
        """() => {
          const button = document.querySelector(".copy-code");
          new MutationObserver(() => { window.label ??= button.innerText; })
            .observe(button, { childList: true, characterData: true, subtree: true });
        }"""
    )
    view.page.locator(".copy-code").click()
    view.page.wait_for_function("() => window.label === 'Copied'")
    assert copied() == "print(1)"
    for copy in (
        lambda: view.page.keyboard.press("Alt+Shift+C"),
        lambda: view.press("Copy"),
    ):
        view.page.evaluate("() => navigator.clipboard.writeText('')")
        view.forget_status()
        copy()
        view.wait_status("Copied.")
        assert copied() == "Look:\n\n```py\nprint(1)\n```\n\ndone"


def test_enter_sends_shift_enter_does_not_and_composing_never(view: View) -> None:
    view.page.click("#question")
    keys = view.page.keyboard
    keys.type("one")
    keys.press("Shift+Enter")
    keys.type("two")
    assert view.page.input_value("#question") == "one\ntwo"
    for extra in ("isComposing: true", "keyCode: 229"):
        view.page.evaluate(
            f"""() => document.getElementById("question").dispatchEvent(new KeyboardEvent(
              "keydown", {{ key: "Enter", bubbles: true, cancelable: true, {extra} }}))"""
        )
    assert view.messages == []
    keys.press("Enter")
    view.wait_status("The answer is complete.")
    assert view.messages[0] == "one\ntwo"
    assert view.page.input_value("#question") == ""


def test_an_input_method_is_not_disturbed(view: View) -> None:
    view.page.click("#question")
    session = view.page.context.new_cdp_session(view.page)
    session.send(
        "Input.imeSetComposition", {"text": "にほ", "selectionStart": 2, "selectionEnd": 2}
    )
    session.send("Input.insertText", {"text": "日本"})
    view.page.keyboard.press("Enter")
    view.wait_status("The answer is complete.")
    assert view.messages[0] == "日本"


def test_everything_can_be_done_without_a_mouse(view: View) -> None:
    keys = view.page.keyboard
    view.page.focus("#question")
    keys.type("By keys alone")
    keys.press("Enter")
    view.wait_status("The answer is complete.")
    view.settle()
    assert view.page.evaluate("() => document.activeElement.id") == "question"
    seen = set()
    for _ in range(40):
        keys.press("Tab")
        seen.add(
            view.page.evaluate(
                "() => document.activeElement.ariaLabel ?? document.activeElement.innerText.trim()"
            )
        )
    assert {"Answer again", "Edit", "Copy", "Settings", "New chat", "By keys alone"} <= seen


# ----------------------------------------------------------------------------------- telephones


@pytest.mark.parametrize("width", [320, 390])
def test_a_telephone(new_view: Callable[..., View], play: Stage, width: int) -> None:
    view = new_view(**{**PHONE, "viewport": {"width": width, "height": 700}})
    view.open()
    play.engine.say(
        "| a | b | c |\n|---|---|---|\n| " + "wide " * 20 + "| 2 | 3 |\n\n"
        "```py\n"
        + "x = 1  # "
        + "long " * 40
        + "\n```\n\n"
        + "word" * 60
        + "\n\n`"
        + "c" * 80
        + "`"
    )
    view.page.tap("#question")
    view.page.keyboard.type("One")
    view.page.keyboard.press("Enter")  # a new line: there is a button to send
    view.page.keyboard.type("Two")
    assert view.page.input_value("#question") == "One\nTwo"
    view.page.tap("#send")
    view.wait_status("The answer is complete.")
    assert view.page.evaluate("() => document.documentElement.scrollWidth") == width
    assert view.page.evaluate(
        "() => { const s = document.getElementById('scroller');"
        " return s.scrollWidth - s.clientWidth; }"
    ) == 0  # fmt: skip
    small = view.page.evaluate(
        """() => [...document.querySelectorAll("button, select, summary, input, textarea")]
          .filter((node) => node.checkVisibility() && !["radio", "range"].includes(node.type))
          .map((node) => [node.ariaLabel ?? node.id, node.getBoundingClientRect()])
          .filter(([, box]) => box.width < 44 || box.height < 44)
          .map(([name, box]) => [name, box.width, box.height])"""
    )
    assert small == []
    view.settle()
    view.page.tap("#toggle-sidebar")
    expect(view.page.locator("#sidebar")).to_be_visible()
    assert view.page.evaluate("() => document.getElementById('main').inert")
    view.page.get_by_role("button", name=re.compile("^One")).first.tap()
    view.page.locator("#sidebar").wait_for(state="hidden")
    view.page.tap("#toggle-sidebar")
    view.page.keyboard.press("Escape")
    view.page.locator("#sidebar").wait_for(state="hidden")
    view.page.tap("#open-settings")
    view.page.wait_for_function(  # once it has slid in
        """() => {
          const { left, right } = document.getElementById("settings").getBoundingClientRect();
          return left >= 0 && Math.round(right) === window.innerWidth;
        }"""
    )
    view.page.get_by_role("button", name="Close the settings").tap()
    view.page.tap(".message.user .bubble")
    view.page.get_by_role("button", name="Edit", exact=True).tap()
    view.page.get_by_label("Edit your message").fill("Three")
    view.page.get_by_role("button", name="Send", exact=True).first.tap()
    view.page.get_by_text("A reply.").wait_for()


# ------------------------------------------------------------------------------- accessibility


@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_axe_finds_nothing(new_view: Callable[..., View], play: Stage, look: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    options: dict[str, Any] = {"color_scheme": "dark" if look == "dark" else "light"}
    view = new_view(
        bypass_csp=True, reduced_motion="reduce", **options, **(PHONE if look == "phone" else {})
    )
    view.open()

    def check(where: str) -> None:
        found = axe.run(view.page).response["violations"]
        short = [
            (row["id"], row["nodes"][0]["html"][:200], row["nodes"][0]["any"][:1]) for row in found
        ]
        assert short == [], where

    check("welcome")
    play.engine.say(
        "# Head\n\nText **bold** `code` [link](https://x.org)\n\n- [x] a\n\n> quote\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "```python\n@x\ndef f(a): # note\n    return 'b' + 1\n```\n\n"
        "<|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>"
    )
    view.ask("Everything?")
    view.page.locator("details.call summary").click()
    check("a conversation")
    if look == "light":
        play.engine.say("Some words", hold_at=1)
        view.ask("More?", wait=False)
        view.wait_writing("Some")
        check("while it is written")
        view.page.click("#stop")
        view.wait_done()
    play.engine.refusal = Overloaded("full", retry_after_s=60)
    view.expected.append("Failed to load")
    view.ask("Trouble?")
    view.page.locator(".problem").wait_for()
    check("a problem")
    view.page.click("#open-settings")
    check("settings")
    view.page.keyboard.press("Escape")
    view.page.keyboard.press("Alt+Shift+H")
    check("help")
    view.page.keyboard.press("Escape")


def test_only_the_status_is_announced(view: View, play: Stage) -> None:
    live = view.page.evaluate(
        """() => [...document.querySelectorAll(
            "[aria-live], [role=status], [role=alert], [role=log]")]
          .map((node) => [node.id, node.getAttribute("role"), node.ariaLive])"""
    )
    assert live == [["transcript", "log", "off"], ["status", "status", None]]
    view.ask("Hello")
    assert view.status == "The answer is complete."
