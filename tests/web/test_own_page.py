"""--ui-path: a page of one file, as karpathy/nanochat's, works in a browser under our policy."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.server.app import ServedModel, create_app
from nanochat.server.settings import ServerSettings
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.web.conftest import View
from tests.web.stage import StageEngine, served

PAGE = """<!doctype html>
<title>One file</title>
<link rel="icon" href="data:,">
<style>.bold { font-weight: 700 }</style>
<button id="clear" onclick="clear_('&quot;new&quot;')">New</button>
<textarea id="question" onkeydown="if (event.key === 'Enter' &amp;&amp; !event.shiftKey) send()">
</textarea>
<button id="send" onclick="send()">Send</button>
<pre id="answer"></pre>
<script>
const API_URL = `http://${window.location.hostname}:8000`;
const answer = document.getElementById("answer");
function clear_(text) { answer.textContent = text; }
async function send() {
  const messages = [{ role: "user", content: document.getElementById("question").value.trim() }];
  const response = await fetch(`${API_URL}/chat/completions`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ messages, temperature: 0.8, top_k: 50, max_tokens: 512 }),
  });
  for (const line of (await response.text()).split("\\n")) {
    if (line.startsWith("data: ")) answer.textContent += JSON.parse(line.slice(6)).token ?? "!";
  }
}
</script>
"""


@pytest.mark.req("FR-049")
def test_handlers_in_the_page_send_and_clear(
    new_view: Callable[..., View], tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "ui.html").write_text(PAGE)
    model = ServedModel(name="stage", tokenizer=tiny_tokenizer, context_len=200)
    app = create_app(StageEngine(), model, ServerSettings(ui_path=tmp_path / "ui.html"))
    with served(app) as url:
        view = new_view(url=url)
        page, answer = view.page, view.page.locator("#answer")
        page.goto(url)
        page.fill("#question", "Hello")
        page.click("#send")
        view.comes(answer.inner_text, "A reply.!")
        page.click("#clear")
        view.comes(answer.inner_text, '"new"')
        page.press("#question", "Enter")
        view.comes(answer.inner_text, '"new"A reply.!')
