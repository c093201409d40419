"""The screenshots in docs/, taken anew.   usage: python -m tests.web.screenshots [FOLDER] [URL]

With a URL the model that is served there answers; without one a played conversation shows what the
page can: Markdown, code, a table, the calculator.  Review the pictures before committing them.
"""

import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from nanochat.tokenizer.train import train_tokenizer
from tests.web.browser import ARGUMENTS, find_browser
from tests.web.stage import stage

PREFIX_SUMS = '''A **prefix sum** turns every question about a range into one subtraction. Walk through the numbers *once* and keep the running total:

```python
def prefix_sums(numbers: list[int]) -> list[int]:
    """The totals before each place; one longer than the numbers."""
    totals = [0]
    for number in numbers:
        totals.append(totals[-1] + number)  # all before, and this one
    return totals
```

From then on the sum of `numbers[a:b]` is `totals[b] - totals[a]`, however long the range is.

| range | additions by hand | with totals |
|:--|--:|--:|
| 10 numbers | 9 | 1 |
| 1,000 numbers | 999 | 1 |

It pays off from the second question on. If the numbers change in between, look at [Fenwick trees](https://en.wikipedia.org/wiki/Fenwick_tree).'''  # noqa: E501
ADD = """For a million numbers and a hundred questions:

<|python_start|>1000000 + 100 * 1<|python_end|><|output_start|>1000100<|output_end|>

That is **1,000,100** additions in all, where adding each range by hand would take up to a hundred million."""  # noqa: E501
STORY = """Here are three, from the shortest to the longest:

1. **The lantern.** A snail carries a lantern and is late for everything, but nobody who walks with her is ever lost.
2. **Two clocks.** One is right twice a day and proud of it; the other is a minute slow and keeps people waiting for each other.
3. **The baker of Lindenau**, who writes a question on every loaf and reads the answers in the crumbs.

> Tell me a number, and I will tell the whole story."""  # noqa: E501

TALK = [
    ("Why is a prefix sum one longer than the numbers?", PREFIX_SUMS),
    ("And how many additions is that in all?", ADD),
]
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 860}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 860}},
    "phone": {
        "color_scheme": "light",
        "viewport": {"width": 390, "height": 800},
        "device_scale_factor": 1.5,
        "is_mobile": True,
        "has_touch": True,
    },
}
QUESTIONS = ["Who are you?", "What is 12 + 30?", "Tell me a short story."]


def take(folder: Path, url: str, say: Any = None) -> list[Path]:
    """One picture for each look."""
    taken = []
    with sync_playwright() as playwright:
        path = find_browser(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        for look, options in LOOKS.items():
            page = browser.new_context(locale="en-GB", **options).new_page()
            page.goto(url)
            page.wait_for_selector("html[data-ready]")
            talks: list[Any] = [[(question, None)] for question in QUESTIONS]
            if say is not None:
                talks = [[("Three ideas for a bedtime story", STORY)], TALK]
            for number, talk in enumerate(talks):
                if number:
                    page.evaluate("() => document.getElementById('new-chat').click()")
                    page.wait_for_selector("#welcome:not([hidden])")
                for question, answer in talk:
                    if answer is not None:
                        say(answer, pace_s=0.004)
                    page.fill("#question", question)
                    page.click("#send")
                    page.wait_for_selector("#stop", state="hidden", timeout=60_000)
            page.evaluate("() => document.activeElement.blur()")
            page.mouse.move(5, 400)
            page.wait_for_timeout(500)
            taken.append(folder / f"page-{look}.png")
            page.screenshot(path=taken[-1])
        browser.close()
    return taken


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    if len(sys.argv) > 2:
        taken = take(folder, sys.argv[2])
    else:
        tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog " * 40], 280)
        with stage(tokenizer, name="played") as it:
            taken = take(folder, it.url, it.engine.say)
    for path in taken:
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
