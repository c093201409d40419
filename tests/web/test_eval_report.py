"""report.html of an evaluation in a browser: tasks are chosen without a script, nothing overflows,
both schemes can be read."""

from pathlib import Path
from typing import Any

import pytest

from nanochat.evals.report_eval import render_html
from nanochat.evals.results import EvalResult
from tests.evals.makers import make_composite, make_task

pytestmark = pytest.mark.req("FR-043", "US-4")

SCORES = [1.0, 0.0] * 10


@pytest.fixture(scope="module")
def page(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    labels = ("arc_easy", "arc_challenge", "bigbench_language_identification")
    tasks = {label: make_task(label, SCORES) for label in labels}
    result = EvalResult(
        model="d12", tasks=tasks, composites={"core_3": make_composite("core_3", tasks)}
    )
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_html(result))
    page = chromium.new_page(java_script_enabled=True)
    page.goto(path.as_uri())
    yield page
    page.close()


def test_a_button_leaves_the_failures_of_one_task(page: Any) -> None:
    shown = page.locator(".of-task:visible")
    assert shown.count() == 3
    page.get_by_role("radio", name="arc_challenge").check()
    assert shown.count() == 1 and "arc_challenge: 10 of 20" in shown.inner_text()
    failure = shown.locator("details").first
    assert not failure.locator("dl").is_visible()
    failure.locator("summary").click()
    words = failure.inner_text()
    for text in ("asked", "words 1", "said", "other", "right", "chosen", "-2.500", "-1.250"):
        assert text in words
    page.get_by_role("radio", name="all tasks").check()
    assert shown.count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_and_can_be_read(page: Any, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in (".shares .name", ".shares circle", ".scores b", ".filter label"):
        assert page.locator(selector).first.is_visible()
    left = page.evaluate(
        "Math.min(...[...document.querySelectorAll('.shares text')]"
        ".map((text) => text.getBoundingClientRect().left))"
    )
    assert left >= 0  # the longest name of CORE has room on a phone too
    luminance = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert (sum(luminance) < 300) == (scheme == "dark")
