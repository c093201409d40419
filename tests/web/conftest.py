"""A browser, pages in it, and a server that plays what a test has written.

Whatever a test is about, its page makes no request to another origin, runs nothing that the
content security policy forbids, and logs no error; a test that provokes one says so by
`view.expected`.

Nothing is read right after an action whose effect comes later: the page is asked until it says what
is expected, for as long as PATIENCE_S, so that a machine that others use only takes longer.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from nanochat.tokenizer.tokenizer import Tokenizer
from tests.web.browser import ARGUMENTS, find_browser
from tests.web.stage import Stage, stage

# What the browser itself reports of answers with an error status, and of lines that were cut.
NETWORK_ERROR = re.compile(r"Failed to load resource|net::ERR_")

PATIENCE_S = 40.0

LOADED = "() => performance.getEntriesByType('resource').map((entry) => entry.name)"

WATCH = """
window.violations = [];
window.ran = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.effectiveDirective} ${event.blockedURI}`));
window.xss = (what) => window.ran.push(what ?? "xss");
"""

# The server's models, or why there are none: the page looks for them when all else is ready.
READY = """() => document.documentElement.dataset.ready !== undefined
  && (document.getElementById("model").value || document.querySelector("#notice .problem"))"""

# All that the page has asked its database for is done: a transaction that touches every table waits
# for those before it, and their answers are on the page by then.
SETTLED = """async () => {
  const { Store } = await import("/store.js");
  const store = await Store.open();
  if (store.isKept) {
    await new Promise((resolve) => {
      const tables = [...store.database.objectStoreNames];
      store.database.transaction(tables, "readwrite").oncomplete = resolve;
    });
    store.database.close();
  }
  store.channel.close();
}"""


@dataclass
class View:
    """A page with what a person does on it."""

    page: Any
    url: str
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Patterns of log lines that this test provokes."""
    listeners: list[tuple[str, Callable[[Any], object]]] = field(default_factory=list)

    def open(self, path: str = "/") -> None:
        self.page.goto(self.url + path)
        self.page.wait_for_function(READY)

    def reload(self) -> None:
        self.page.reload()
        self.page.wait_for_function(READY)

    def ask(self, text: str, *, wait: bool = True) -> None:
        """Send a question; returns when it is shown, or when its answer has come to an end."""
        self.page.evaluate(
            "() => document.querySelectorAll('.message').forEach((node) => node.dataset.old = '')"
        )
        self.page.fill("#question", text)
        self.page.click("#send")
        self.page.wait_for_selector(".message.user:not([data-old])")
        if wait:
            self.wait_done()

    def wait_done(self) -> None:
        """Until nothing is being written, and the list of conversations says so too."""
        self.page.wait_for_selector("#stop", state="hidden")
        self.settle()

    def settle(self) -> None:
        """Until what the page writes to its database, and reads from it, is done."""
        self.page.evaluate(SETTLED)

    def comes(self, read: Callable[[], Any], expected: Any) -> None:
        """What is read becomes what is expected."""
        end_s = time.monotonic() + PATIENCE_S
        while (found := read()) != expected and time.monotonic() < end_s:
            self.page.wait_for_timeout(20)
        assert found == expected

    def wait_writing(self, text: str) -> None:
        """Until this much of an answer is shown, and more is to come."""
        self.page.wait_for_selector(f".message.writing:has-text({text!r})")

    @property
    def messages(self) -> list[str]:
        """The words of each message."""
        return list(self.page.locator(".message > .bubble, .message > .prose").all_inner_texts())

    @property
    def status(self) -> str:
        return str(self.page.locator("#status").inner_text())

    def forget_status(self) -> None:
        """Clear the line, where the same words are to come once more."""
        self.page.evaluate("() => { document.getElementById('status').textContent = ''; }")

    def wait_status(self, text: str) -> None:
        self.page.wait_for_function(
            "t => document.getElementById('status').textContent.includes(t)", arg=text
        )

    def press(self, label: str, message: int = -1) -> None:
        """A button below a message, which shows when the pointer is there."""
        node = self.page.locator(".message").nth(message)
        node.hover()
        node.get_by_role("button", name=label, exact=True).click()

    def listen(self, event: str, listener: Callable[[Any], object]) -> None:
        """Be told of what the page does, until the test ends."""
        self.page.on(event, listener)
        self.listeners.append((event, listener))

    def stop_listening(self) -> None:
        for event, listener in self.listeners:
            self.page.remove_listener(event, listener)
        self.listeners.clear()

    def check(self) -> None:
        """Nothing went wrong unseen."""
        if not self.page.is_closed() and self.page.url.startswith("http"):
            assert self.page.evaluate("[window.violations, window.ran]") == [[], []]
            foreign = self.page.evaluate(LOADED)
            assert [
                url for url in foreign if not url.startswith((self.url, "blob:", "data:"))
            ] == []
        unexpected = [
            problem
            for problem in self.problems
            if not any(re.search(pattern, problem) for pattern in self.expected)
        ]
        assert unexpected == []


@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    """The browser; where there is none the test is skipped, in CI it fails."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=1000 * PATIENCE_S)
    with sync_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
        if path is None:
            reason = "no Chrome or Chromium here: apt-get install chromium, or playwright install"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def theatre(tiny_tokenizer: Tokenizer) -> Iterator[Stage]:
    """One server for all tests of the page."""
    with stage(tiny_tokenizer) as it:
        yield it


@pytest.fixture
def play(theatre: Stage) -> Iterator[Stage]:
    """The server with nothing left over from another test."""
    engine = theatre.engine
    engine.replies.clear()
    engine.requests.clear()
    engine.cancelled.clear()
    engine.running.clear()
    engine.go.clear()
    engine.refusal = None
    theatre.saboteur.cuts = False
    yield theatre
    engine.go.set()


@pytest.fixture
def new_view(chromium: Any, play: Stage) -> Iterator[Callable[..., View]]:
    """Makes pages, each in a profile of its own unless a context is given; checks them later."""
    views: list[View] = []
    contexts: list[Any] = []

    def make(context: Any = None, *, url: str | None = None, **options: Any) -> View:
        if context is None:
            context = _profile(chromium, **options)
            contexts.append(context)
        view = View(context.new_page(), url or play.url)
        views.append(view)
        _watch(view)
        return view

    yield make
    try:
        for view in views:
            view.check()
    finally:
        for context in contexts:
            context.close()


def _watch(view: View) -> None:
    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            view.problems.append(message.text)

    view.page.on("console", on_console)
    view.page.on("pageerror", lambda error: view.problems.append(f"pageerror {error}"))
    view.page.on("dialog", lambda dialog: view.problems.append(f"dialog {dialog.message}"))


@pytest.fixture(scope="package")
def seat(chromium: Any, theatre: Stage) -> Iterator[View]:
    """One page for all tests that need no other: a new profile costs half a second of a core."""
    context = _profile(chromium)
    view = View(context.new_page(), theatre.url)
    _watch(view)
    yield view
    context.close()


@pytest.fixture
def view(seat: View, play: Stage) -> Iterator[View]:
    """A page that is open, in a profile with nothing in it."""
    page, context = seat.page, seat.page.context
    seat.problems.clear()
    seat.expected.clear()
    seat.open()
    yield seat
    try:
        seat.check()
    finally:
        seat.stop_listening()
        context.set_offline(False)
        context.clear_permissions()
        page.unroute_all(behavior="ignoreErrors")
        for other in context.pages[1:]:
            other.close()
        page.evaluate("() => sessionStorage.clear()")
        page.goto("about:blank")
        session = context.new_cdp_session(page)
        kinds = "indexeddb,local_storage"
        session.send("Storage.clearDataForOrigin", {"origin": seat.url, "storageTypes": kinds})
        session.detach()


def _profile(chromium: Any, **options: Any) -> Any:
    options = {"viewport": {"width": 1200, "height": 800}, "locale": "en-GB", **options}
    context = chromium.new_context(**options)
    context.set_default_timeout(1000 * PATIENCE_S)
    context.add_init_script(WATCH)
    return context
