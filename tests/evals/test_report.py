"""The page: whole, balanced, closed to everything outside, and it shows the numbers."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common.messages import Message, Part
from nanochat.corpus import world
from nanochat.evals import report as report_module
from nanochat.evals.exam import Exam, ExamAnswer
from nanochat.evals.report import Report, StageReport, render_report, write_report

VOID = {"meta", "br", "hr", "img", "input", "link"}
# What could load, run or lead elsewhere.
FORBIDDEN_TAGS = {"script", "link", "img", "iframe", "object", "embed", "form", "base", "a", "use"}
FORBIDDEN_ATTRIBUTES = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "style"}


class Page(HTMLParser):
    """Tags in order, all texts outside the stylesheet; complains about what is not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").split())


def report_of(text: str) -> Report:
    """A whole report with `text` wherever there is text of users, models or callers."""
    identity = world.baseline_guess("identity")
    answers = tuple(
        ExamAnswer("identity", (Message("user", text),), identity, text, is_right)
        for is_right in (True, False, False)
    )
    return Report(
        title=text,
        summary=text,
        facts=[(text, text), ("wall time", "5:12")],
        stages=[
            StageReport(
                name=text,
                why=text,
                plan_lines=[(text, text, text), ("steps", "2", "")],
                metrics=[
                    {"step": 1, "loss": 4.0, "num_targets": 600_000, "tokens_per_s": 900.0,
                     "elapsed_s": 10.0},
                    {"step": 2, "loss": 1.25, "num_targets": 634_000, "tokens_per_s": 1100.0,
                     "elapsed_s": 185.2, "val_bpb": 0.5678},
                ],
                val_bpb_before=1.75,
            )
        ],
        exam_before=Exam(answers[1:]),
        exam_after=Exam(answers),
        conversations=[
            (Message("system", text), Message("user", text), Message("assistant", text)),
            (
                Message("user", text),
                Message("assistant", (Part("text", text), Part("python", text),
                                      Part("python_output", text))),
            ),
        ],
        conversations_note=text,
        commands=[(text, text)],
    )  # fmt: skip


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_report(report_of("words")))


@pytest.mark.req("FR-043", "US-4", "SC-003")
def test_the_numbers_are_there(page: Page) -> None:
    text = page.text
    assert "wall time 5:12" in text
    assert "Steps 2" in text and "Tokens trained on 1.23 million" in text
    assert "Time 3 min 05 s" in text and "Tokens per second 1,000" in text
    assert "Training loss 4.000 \u2192 1.250" in text
    assert "Validation, bits per byte 1.750 \u2192 0.568" in text
    assert "3 questions that stand in no training data, in 1 categories" in text
    assert "in all 3 0 0% 1 33% 3 100%" in text
    assert "What it got wrong: 2 of 3" in text
    assert text.count("nanochat") == 4  # two answers, and the right one of two mistakes
    assert "Stage 1 words" in text and "The plan words" in text


@pytest.mark.req("FR-043")
def test_nothing_is_loaded_nothing_runs(page: Page) -> None:
    names = {tag for tag, _ in page.tags}
    attributes = {name for _, names in page.tags for name in names}
    assert not names & FORBIDDEN_TAGS
    assert not attributes & FORBIDDEN_ATTRIBUTES
    assert not [name for name in attributes if name.startswith("on")]
    html = render_report(report_of("words"))
    assert "http:" not in html and "https:" not in html and "//" not in html
    assert not re.search(r"url\(|@import|@font-face|javascript:", html)
    assert "default-src &#x27;none&#x27;" not in html and "default-src 'none'" in html
    assert len(page.ids) == len(set(page.ids)) == 2


@settings(max_examples=25)
@given(text=st.text(min_size=1).map(lambda text: "x" + text))
@pytest.mark.req("FR-043")
def test_no_text_changes_the_page(page: Page, text: str) -> None:
    other = Page(render_report(report_of(text)))
    assert other.tags == page.tags
    assert other.ids == page.ids


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "</style><script>alert(1)</script>",
        "</title></svg></p><img src=x onerror=alert(1)>",
        "'\"><svg onload=alert(1)>",
        "<!--",
        "]]><![CDATA[",
        "&lt;script&gt; &amp;",
        "<a href='javascript:alert(1)'>https://elsewhere.example</a>",
    ],
)
@pytest.mark.req("FR-043")
def test_an_attack_is_shown_as_the_text_it_is(page: Page, attack: str) -> None:
    other = Page(render_report(report_of(attack)))
    assert other.tags == page.tags
    assert other.texts.count(attack) == page.texts.count("words") > 15


def test_what_html_or_utf8_cannot_hold_is_marked(tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", Report(title="a\x00b\x1b[0m\ud800c\r\nd"))
    text = (tmp_path / "a.html").read_bytes().decode()
    assert "<h1>a\ufffdb\ufffd[0m?c\nd</h1>" in text


@pytest.mark.req("FR-043")
def test_the_page_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "run" / "report.html"
    write_report(path, report_of("one"))
    write_report(path, report_of("two"))
    assert path.read_text() == render_report(report_of("two"))
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_what_is_empty_is_left_out() -> None:
    page = Page(render_report(Report(title="nothing")))
    assert [tag for tag, _ in page.tags if tag in ("section", "svg", "table", "dl", "ol")] == []
    assert page.text.startswith("nothing nothing This page is one file")


def test_a_stage_without_numbers_a_step_alone_and_an_exam_taken_once() -> None:
    report = Report(
        title="tiny",
        stages=[
            StageReport(name="pretrain", why="One step.", metrics=[{"step": 1, "loss": 6.9}]),
            StageReport(name="sft", why="Not run."),
        ],
        exam_after=Exam(report_of("x").exam_after.answers[:1]),  # type: ignore[union-attr]
        conversations=[(), (Message("user", "Hm?"), Message("assistant", "  "))],
    )
    page = Page(render_report(report))
    assert [tag for tag, _ in page.tags].count("svg") == 3  # a curve, bars of two rows
    assert "Steps 1 \u2013" in page.text and "Training loss 6.900 \u2013" in page.text
    assert "Tokens" not in page.text and "Validation" not in page.text
    assert "before SFT" not in page.text and "Every answer was right." in page.text
    assert "you Hm? nanochat nothing" in page.text


def test_an_exam_taken_only_before_is_shown_alone() -> None:
    exam = report_of("x").exam_after
    before, after = (
        render_report(Report(title="x", exam_before=exam)),
        render_report(Report(title="x", exam_after=exam)),
    )
    assert before == after


def test_of_many_mistakes_some_are_shown() -> None:
    exam = Exam.from_replies(["no"] * len(world.held_out()))
    page = Page(render_report(Report(title="x", exam_after=exam)))
    assert page.texts.count("no") == report_module.MOST_MISTAKES
    assert f"And {exam.num_asked - report_module.MOST_MISTAKES:,} more." in page.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(8.24, "8.2 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")],
)
def test_times_are_read_easily(seconds: float, text: str) -> None:
    rows = [{"step": 1, "loss": 1.0, "elapsed_s": seconds, "num_targets": 2_345_000_000}]
    page = Page(
        render_report(Report(title="x", stages=[StageReport(name="s", why="", metrics=rows)]))
    )
    assert f"Time {text} " in page.text
    assert "2.35 billion" in page.text or "2.34 billion" in page.text
