"""Reports of evaluations: every number is there, every text is harmless, large runs stay small."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.evals import failures
from nanochat.evals.curves import bars
from nanochat.evals.failures import count_failures, failures_of, most_shown, percent
from nanochat.evals.intervals import Interval
from nanochat.evals.page import render_page, safe_text, section, wrapped
from nanochat.evals.report_eval import render_html, write_reports
from nanochat.evals.report_markdown import render_markdown
from nanochat.evals.results import EvalResult, TaskResult, read_results, write_results
from nanochat.evals.shares import ShareRow, interval_bar, interval_chart
from nanochat.evals.task import Verdict
from tests.evals.makers import (
    choice_record,
    make_bits,
    make_composite,
    make_task,
    written_record,
)
from tests.evals.test_report import FORBIDDEN_ATTRIBUTES, FORBIDDEN_TAGS, VOID, Page

pytestmark = pytest.mark.req("FR-043", "US-4")

VOID.add("input")


def result_of(text: str) -> EvalResult:
    """A whole result with `text` wherever there is text of users, models or files."""
    choices = TaskResult(
        label=text,
        version=text,
        kind="multiple_choice",
        baseline=0.25,
        records=tuple(choice_record(text, i, score, text) for i, score in enumerate((1, 0, 0, 1))),
        data_sha256={text: "ab" * 32},
        notes=(text,),
    )
    written = TaskResult(
        label=f"{text} 2",
        version="1",
        kind="generative",
        baseline=0.0,
        records=tuple(written_record(text, i, score, text) for i, score in enumerate((0, 0.5, 1))),
        pass_at={1: 0.5, 2: 0.75},
    )
    failed = replace(make_task(f"{text} 3", ()), error=text)
    tasks = {task.label: task for task in (choices, written, failed)}
    return EvalResult(
        model=text,
        tasks={
            **tasks,
            "bpb": make_bits("bpb", [100.0, 120.0]),
            "text 2": replace(make_bits("text 2", []), error="no folder"),
        },
        composites={text: make_composite(text, {text: choices})},
        settings={text: text, "limit": 4},
    )


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render_html(result_of("words")))


def test_the_numbers_are_there(page: Page) -> None:
    text = page.text
    assert text.startswith("Evaluation of words Evaluation of words")
    assert "words words 50.0% 15.0% to 85.0% 0.333 25.0% 4" in text
    assert "words 2 50.0% pass@1 50.0% pass@2 75.0%" in text
    assert "words 3 no result: words" in text
    assert "bpb 1.1000 1.0000 to 1.2000 2" in text
    assert "text 2 no result: no folder" in text
    assert "What went wrong" in text and "words: 2 of 4" in text and "words 2: 2 of 3" in text
    assert "asked words 1 said other right words" in text
    # the right choice and the chosen one, with log-likelihood, tokens, and nats per token
    assert "right words -2.500 2 -1.250 chosen other -1.500 1 -1.500" in text
    assert "score 0.50 why words" in text and "also said words" in text
    assert "limit 4" in text and "words (abababababab)" in text
    assert "of_samples" not in text and "samples.jsonl beside this page" in text


def test_nothing_is_loaded_nothing_runs(page: Page) -> None:
    html = render_html(result_of("words"))
    names = {tag for tag, _ in page.tags}
    attributes = {name for _, names in page.tags for name in names}
    assert not names & (FORBIDDEN_TAGS - {"form"}) and "form" not in names
    assert not attributes & FORBIDDEN_ATTRIBUTES
    assert not [name for name in attributes if name.startswith("on")]
    assert "http:" not in html and "https:" not in html and "//" not in html
    assert not re.search(r"url\(|@import|@font-face|javascript:", html)
    assert "default-src 'none'" in html
    assert len(page.ids) == len(set(page.ids))


@settings(max_examples=25)
@given(text=st.text(min_size=1).map(lambda text: "x" + text))
def test_no_text_changes_the_page(page: Page, text: str) -> None:
    other = Page(render_html(result_of(text)))
    assert other.tags == page.tags
    assert other.ids == page.ids


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "</style><script>alert(1)</script>",
        "</pre></details><img src=x onerror=alert(1)>",
        "'\"><svg onload=alert(1)>",
        "<!--",
        "``` \n<script>",
        "[a](javascript:alert(1)) | cell | ~~~",
    ],
)
def test_an_attack_is_shown_as_the_text_it_is(page: Page, attack: str) -> None:
    other = Page(render_html(result_of(attack)))
    assert other.tags == page.tags
    assert sum(attack.split("\n")[0] in text for text in other.texts) > 15
    markdown = render_markdown(result_of(attack))
    outside, is_inside, fence = [], False, ""
    for line in markdown.splitlines():
        match = re.match(r"(`{3,})(text)?$", line)
        if match and not is_inside:
            is_inside, fence = True, match[1]
        elif is_inside and line == fence:
            is_inside = False
        elif not is_inside:
            outside.append(line)
    assert not is_inside
    for line in outside:  # between fences nothing is left that Markdown or HTML would take up
        assert not re.search(r"(?<!\\)[<`]|(?<!\\)\]\(", line), line


def test_of_a_task_the_others_are_hidden_by_style_alone(page: Page) -> None:
    html = render_html(result_of("words"))
    rules = re.findall(r"section:has\(#only-(\d+):checked\) .of-task:not\(.task-(\d+)\)", html)
    assert rules == [("0", "0"), ("1", "1")]
    assert page.ids.count("only-all") == 1 and 'id="only-all" checked' in html
    assert html.count('class="of-task task-') == 2


def test_large_runs_stay_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert most_shown(1) == failures.MOST_PER_TASK and most_shown(10_000) == 5
    long = "word " * 10_000
    tasks = {
        f"t{index}": TaskResult(
            label=f"t{index}",
            version="1",
            kind="multiple_choice",
            baseline=0.25,
            records=tuple(choice_record(f"t{index}", i, 0.0, long) for i in range(100)),
        )
        for index in range(22)
    }
    html = render_html(EvalResult(model="m", tasks=tasks))
    most = most_shown(22)
    assert html.count('<details class="failure">') == 22 * most
    assert f'And {100 - most} more in samples.jsonl, where "task" is "t3"' in html
    assert len(html) < 12_000_000
    assert "letters stand before this" in html and "more letters)" in html
    assert len(render_markdown(EvalResult(model="m", tasks=tasks))) < 2_000_000


def test_what_counts_as_a_failure() -> None:
    task = make_task("x", [1.0, 0.0, 0.5])
    assert count_failures(task) == 2 == len(list(failures_of(task)))
    assert (
        count_failures(make_bits("bpb", [1.0]))
        == 0
        == len(list(failures_of(make_bits("b", [1.0]))))
    )
    [failure, _] = failures_of(task)
    assert failure.right == " words" and [line.is_right for line in failure.choices] == [
        True,
        False,
    ]
    assert failure.choices[1].per_token == -1.5
    nan = replace(
        task.records[1],
        verdict=Verdict(sample_id="1", score=0.0, choice_logprobs=(math.nan, -1.0)),
    )
    [failure] = failures_of(replace(task, records=(nan,)))
    assert failure.choices[0].logprob is None and failure.choices[0].per_token is None
    schema = replace(
        task.records[1], sample=replace(task.records[1].sample, prompt="", ending="the end")
    )
    [failure] = failures_of(replace(task, records=(schema,)))
    assert failure.asked.endswith("[...]the end")


def test_markdown_has_the_tables() -> None:
    text = render_markdown(result_of("words"))
    lines = text.splitlines()
    assert lines[0] == "# Evaluation of words"
    assert "| words | 50.0% | 15.0% to 85.0% | 0.333 | 25.0% | 4 |" in lines
    assert "| bpb | 1.1000 | 1.0000 to 1.2000 | 2 |" in lines
    assert "| text 2 | no result: no folder |  |  |" in lines and "nan" not in text
    assert "- pass@1: 50.0%" in lines and "- pass@2: 75.0%" in lines
    assert "| words 3 | no result: words |  |  |  |  |" in lines
    assert "2 of 4 were not right; all of them are in samples.jsonl." in lines
    assert "    -1.500 nats, 1 tokens:  other" in lines


def test_two_files_are_written(tmp_path: Path) -> None:
    result = result_of("words")
    paths = write_reports(result, tmp_path / "out")
    assert [path.name for path in paths] == ["report.html", "report.md"]
    assert paths[0].read_text() == render_html(result)
    assert paths[1].read_text() == render_markdown(result)


@pytest.mark.req("FR-043")
def test_half_a_surrogate_pair_is_marked_in_every_file(tmp_path: Path) -> None:
    result = result_of("x \ud800 y")  # legal in JSON and in Python, not in UTF-8
    write_results(tmp_path, result)
    html, markdown = (path.read_text() for path in write_reports(result, tmp_path))
    assert html.count("x ? y") > 15 and markdown.count("x \ufffd y") > 15
    back = read_results(tmp_path)
    assert back.model == result.model and back.tasks.keys() == result.tasks.keys()
    first = result.tasks[result.model].records
    assert back.tasks[result.model].records[: len(first)] == first  # the text itself is not lost


def test_an_evaluation_where_all_is_right_or_nothing_was_asked() -> None:
    right = Page(render_html(EvalResult(model="m", tasks={"x": make_task("x", [1.0, 1.0])})))
    assert "What went wrong" not in right.text and "100.0%" in right.text
    nothing = Page(render_html(EvalResult(model="m", tasks={})))
    assert "tasks 0 questions 0" in nothing.text and "Scores" not in nothing.text
    assert percent(math.nan) == "-"


# -------------------------------------------------------------------------------------- drawings


@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(0, 0.5), st.floats(0, 0.5), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_every_row_lies_on_the_paper(rows: list[tuple[float, float, float, bool]]) -> None:
    shares = [
        ShareRow(f"name {i}", value, Interval(value - below, value + above), is_composite)
        for i, (value, below, above, is_composite) in enumerate(rows)
    ]
    svg = interval_chart(shares, "t", "u", "c")
    width, height = map(float, re.search(r'viewBox="0 0 (\S+) (\S+)"', svg).groups())  # type: ignore[union-attr]
    dots = re.findall(r'<circle class="\w+" cx="([^"]+)" cy="([^"]+)"', svg)
    spreads = re.findall(r'class="spread \w+" d="M([\d.]+) [\d.]+H([\d.]+)"', svg)
    assert len(dots) == len(spreads) == len(rows)
    for (x, y), (low, high) in zip(dots, spreads, strict=True):
        assert 196 <= float(low) <= float(x) + 0.01 <= float(high) + 0.02 <= 500.03 < width
        assert 0 < float(y) < height
    ys = [float(y) for _, y in dots]
    assert ys == sorted(ys) and len(set(ys)) == len(ys)


def test_better_lies_to_the_right_and_guessing_is_marked() -> None:
    rows = [ShareRow(name, value, Interval(value - 0.1, value + 0.1)) for name, value in
            (("a", 0.0), ("b" * 50, 0.5), ("none", math.nan))]  # fmt: skip
    svg = interval_chart(rows, "<Title>", "unit", "c")
    first, second = (float(x) for x in re.findall(r'<circle class="task" cx="([^"]+)"', svg))
    guesser = float(re.search(r'class="guesser" d="M([\d.]+)', svg)[1])  # type: ignore[index]
    assert first == pytest.approx(guesser) and second > first
    assert "b" * 23 + "..." in svg and "none" not in svg
    assert "&lt;Title&gt;" in svg and "a: 0.000, from -0.100 to 0.100." in svg
    assert interval_chart([], "t", "u", "c") == ""


def test_a_bar_shows_its_interval() -> None:
    svg = interval_bar(0.4, Interval(0.3, 0.5), 0.25)
    assert 'width="40"' in svg and 'd="M30 10H50"' in svg and 'd="M25 0V20"' in svg
    assert interval_bar(2.0, Interval(-1.0, math.nan), 0.0).count("NaN") == 0
    assert bars(None, 0.4, 0.25).count("rect") == 2  # the examination's, of which this is a kind


def test_pieces_of_a_page() -> None:
    assert safe_text("<a>\x00") == "&lt;a&gt;\ufffd"
    assert wrapped("p", "", "x") == "" and wrapped("p", "y", "x") == '<p class="x">\ny</p>\n'
    assert "<h2>&lt;</h2>" in section("<", "<p>x</p>")
    html = render_page("<t>", "<p>body</p>", ".x { color: red; }\n")
    assert "<title>&lt;t&gt;</title>" in html and ".x { color: red; }\n</style>" in html
