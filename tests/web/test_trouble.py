"""What goes wrong between page and server: said in words, with a way on, and nothing lost."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect

from nanochat.common.errors import EngineError, Overloaded
from tests.web.conftest import View
from tests.web.stage import Stage

pytestmark = pytest.mark.req("FR-049", "EC-10")

ASK = "**/v1/chat/completions"
LOAD = r"Failed to load resource|ERR_"


@pytest.fixture
def timeless(new_view: Callable[..., View]) -> View:
    """A page on which no time passes but what the test says: a countdown waits for it."""
    view = new_view()
    view.page.clock.install(time=0)
    view.page.clock.pause_at(1000)
    view.open()
    return view


def error(message: str, code: str) -> str:
    return json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}})


def refuse(view: View, times: int, **answer: Any) -> list[Any]:
    """Have the next requests for an answer answered so."""
    seen: list[Any] = []

    def handle(route: Any) -> None:
        seen.append(route.request)
        if len(seen) <= times:
            route.fulfill(content_type="application/json", **answer)
        else:
            route.continue_()

    view.page.route(ASK, handle)
    view.expected.append(LOAD)
    return seen


def test_a_busy_server_is_asked_again_when_it_said(timeless: View) -> None:
    view = timeless
    body = error("The queue is full: try again in 2 s", "rate_limit_exceeded")
    seen = refuse(view, 1, status=429, headers={"Retry-After": "2"}, body=body)
    view.ask("Now?")
    assert "The queue is full" in view.page.locator(".problem").inner_text()
    button = view.page.locator(".problem").get_by_role("button")
    expect(button).to_have_text("Trying again in 2 s")
    view.page.clock.run_for(1000)
    expect(button).to_have_text("Trying again in 1 s")
    assert len(seen) == 1
    view.page.clock.run_for(1000)
    view.wait_status("The answer is complete.")
    assert len(seen) == 2
    assert view.messages == ["Now?", "A reply."]


def test_one_need_not_wait(view: View) -> None:
    body = error("Loading the model", "loading")
    refuse(view, 1, status=503, headers={"Retry-After": "60"}, body=body)
    view.ask("Ready?")
    view.page.get_by_role("button", name=re.compile("Trying again in")).click()
    view.page.get_by_text("A reply.").wait_for()


def test_without_a_time_there_is_a_button(view: View, play: Stage) -> None:
    view.expected.append(LOAD)
    play.engine.say(EngineError("the engine has stopped"))
    view.ask("Hm?")
    view.page.get_by_role("button", name="Try again").click()
    view.page.get_by_text("A reply.").wait_for()
    assert view.messages == ["Hm?", "A reply."]
    assert view.page.locator(".problem").count() == 0


def test_the_servers_own_refusal_is_understood(timeless: View, play: Stage) -> None:
    view = timeless
    view.expected.append(LOAD)
    play.engine.refusal = Overloaded("32 requests wait")
    view.ask("Full?")
    assert "32 requests wait" in view.page.locator(".problem").inner_text()
    view.page.get_by_role("button", name=re.compile("[Tt]ry")).click()
    view.wait_done()
    assert view.messages == ["Full?", "A reply."]


def test_a_key_is_asked_for_and_kept_for_this_tab(view: View, play: Stage) -> None:
    body = error("Incorrect API key provided", "invalid_api_key")
    seen = refuse(view, 1, status=401, body=body)
    view.ask("Secret?")
    view.page.locator(".problem").get_by_label("API key").fill("sk-test")
    view.page.get_by_role("button", name="Use this key").click()
    view.page.get_by_text("A reply.").wait_for()
    assert seen[1].headers["authorization"] == "Bearer sk-test"
    assert view.page.evaluate("() => sessionStorage.getItem('nanochat.key')") == "sk-test"
    assert "sk-test" not in view.page.evaluate("() => JSON.stringify(localStorage)")
    view.page.click("#open-settings")
    assert view.page.input_value("#api-key") == "sk-test"
    view.page.fill("#api-key", "")
    view.page.keyboard.press("Escape")
    view.ask("Without?")
    assert "authorization" not in seen[-1].headers


def test_a_key_wanted_from_the_start_is_asked_for(new_view: Callable[..., View]) -> None:
    view = new_view()
    view.expected.append(LOAD)

    def handle(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.continue_()
        else:
            body = error("You did not provide an API key", "invalid_api_key")
            route.fulfill(status=401, content_type="application/json", body=body)

    view.page.route("**/v1/*", handle)
    view.page.route(ASK, handle)
    view.open()
    view.page.locator("#notice").get_by_label("API key").fill("right")
    view.page.keyboard.press("Enter")
    view.page.locator("#notice .problem").wait_for(state="detached")
    expect(view.page.locator("#model")).to_have_value("stage")
    view.ask("Let me in")
    assert view.messages[-1] == "A reply."


def break_off(view: View, play: Stage) -> None:
    """Have the connection break after three words of six."""
    view.expected.append(LOAD)
    play.engine.say("One two three four five six", hold_at=3)
    view.ask("Count", wait=False)
    view.wait_writing("One two three")
    play.saboteur.cuts = True
    play.engine.go.set()
    view.page.locator(".problem", has_text="The connection broke").wait_for()
    play.saboteur.cuts = False
    assert view.messages == ["Count", "One two three"]


def test_a_connection_that_breaks_keeps_the_part_that_came(view: View, play: Stage) -> None:
    break_off(view, play)
    play.engine.say("four five six")
    view.reload()
    view.page.get_by_text("One two three").wait_for()
    view.page.get_by_role("button", name="Continue").click()
    view.wait_status("The answer is complete.")
    assert view.messages == ["Count", "One two three four five six"]


def test_a_broken_answer_can_be_had_anew(view: View, play: Stage) -> None:
    break_off(view, play)
    view.page.get_by_role("button", name="Try again").click()
    view.wait_status("The answer is complete.")
    assert view.messages == ["Count", "A reply."]
    assert "2 / 2" in view.page.locator(".message").last.inner_text()


def test_a_server_that_is_gone_and_comes_back(view: View) -> None:
    view.expected.append(LOAD)
    view.page.context.set_offline(True)
    view.ask("Anybody?")
    assert "cannot be reached" in view.page.locator(".problem").inner_text()
    assert view.status.startswith("The server cannot be reached")
    view.page.context.set_offline(False)
    view.page.get_by_role("button", name="Try again").click()
    view.page.get_by_text("A reply.").wait_for()


def test_the_models_are_looked_for_again(new_view: Callable[..., View]) -> None:
    view = new_view()
    view.expected.append(LOAD)
    view.page.route("**/v1/models", lambda route: route.abort())
    view.open()
    view.page.locator("#notice .problem").wait_for()
    view.page.unroute("**/v1/models")
    view.page.get_by_role("button", name="Try again").click()
    view.page.locator("#notice .problem").wait_for(state="detached")
    expect(view.page.locator("#model")).to_have_value("stage")


def test_an_answer_that_is_no_json_is_an_error_in_words(view: View) -> None:
    refuse(view, 1, status=502, body="<html>Bad gateway</html>")
    view.ask("Hello?")
    assert "status 502" in view.page.locator(".problem").inner_text()


# How many characters of the answer are shown each time that there are more, and after how long.
WATCH_THE_ANSWER = """() => {
  const beganMs = performance.now();
  window.lens = [];
  new MutationObserver(() => {
    const length = document.querySelector(".message.assistant .prose")?.innerText.length ?? 0;
    if (length === 0 || length === window.lens.at(-1)) return;
    window.lens.push(length);
    window.tookS = (performance.now() - beganMs) / 1000;
  }).observe(document.getElementById("transcript"),
    { childList: true, subtree: true, characterData: true });
}"""


def test_a_slow_network_only_takes_longer(view: View, play: Stage) -> None:
    session = view.page.context.new_cdp_session(view.page)
    session.send("Network.enable")
    slow = {"latency": 250, "downloadThroughput": 12_000, "uploadThroughput": 6_000}
    session.send("Network.emulateNetworkConditions", {"offline": False, **slow})
    play.engine.say("Words — “slow” ones — 🦊 " * 20)
    view.page.evaluate(WATCH_THE_ANSWER)
    try:
        view.ask("Slowly")
        assert view.messages[-1] == ("Words — “slow” ones — 🦊 " * 20).strip()
        lens, took_s = view.page.evaluate("() => [window.lens, window.tookS]")
        assert len(lens) > 3 and lens == sorted(lens)  # in parts, as they came
        assert took_s > 1  # some 25 kB at 12 kB/s
    finally:
        session.detach()
