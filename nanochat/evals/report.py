"""A run -> one page.   in: Report, plain values   out: report.html   who calls: cli (demo)
(imports no torch)

Read next: page.py (one closed file), curves.py (its drawings), report.css (its looks), exam.py
(where the answers come from).
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.files import write_text_atomically
from nanochat.common.messages import Conversation, Message
from nanochat.evals.curves import Curve, bars, curve_of, loss_chart
from nanochat.evals.exam import Exam, ExamAnswer
from nanochat.evals.page import render_page, safe_text, section, wrapped

__all__ = ["Report", "StageReport", "render_report", "write_report"]

MOST_MISTAKES = 60  # shown in full; of more, how many there are
DASH = "&ndash;"
ARROW = '<span class="arrow">&rarr;</span>'


@dataclass(frozen=True, kw_only=True, slots=True)
class StageReport:
    """One stage: what it is for, what was planned, what was measured."""

    name: str
    why: str
    """One short paragraph: what happened and why."""
    plan_lines: Sequence[tuple[str, str, str]] = ()
    """Name, value, reason; the reason may be empty."""
    metrics: Sequence[Mapping[str, float]] = ()
    """The rows of metrics.jsonl: step, loss, and where known val_bpb, num_targets, tokens_per_s,
    elapsed_s."""
    val_bpb_before: float | None = None
    """Validation bits per byte before the first step, where they were measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything on the page; what is empty is left out of it."""

    title: str
    summary: str = ""
    """A sentence or two below the title."""
    facts: Sequence[tuple[str, str]] = ()
    """Name and value: wall time, parameters, machine, versions."""
    stages: Sequence[StageReport] = ()
    exam_before: Exam | None = None
    exam_after: Exam | None = None
    conversations: Sequence[Conversation] = ()
    conversations_note: str = "The last answer of each conversation is written by the model."
    commands: Sequence[tuple[str, str]] = ()
    """A command and what it does: how to go on."""


def write_report(path: Path, report: Report) -> None:
    """The page at `path`, whole or not at all."""
    write_text_atomically(path, render_report(report))


def render_report(report: Report) -> str:
    """The page as HTML: equal reports, equal pages."""
    curves = [curve_of(stage.metrics, stage.val_bpb_before) for stage in report.stages]
    body = [
        _header(report),
        _glance(report.stages, curves),
        *(
            _stage(stage, curve, number)
            for number, (stage, curve) in enumerate(zip(report.stages, curves, strict=True), 1)
        ),
        _exam(report.exam_before, report.exam_after),
        _conversations(report.conversations, report.conversations_note),
        _commands(report.commands),
    ]
    return render_page(report.title, "".join(body))


# -------------------------------------------------------------------------------------- parts


def _header(report: Report) -> str:
    summary = f'<p class="summary">{safe_text(report.summary)}</p>\n' if report.summary else ""
    facts = "".join(
        f"<div><dt>{safe_text(name)}</dt><dd>{safe_text(value)}</dd></div>\n"
        for name, value in report.facts
    )
    return (
        f"<header>\n<h1>{safe_text(report.title)}</h1>\n{summary}"
        f"{wrapped('dl', facts, 'facts')}</header>\n"
    )


def _glance(stages: Sequence[StageReport], curves: Sequence[Curve]) -> str:
    """What each stage cost and brought, one column each."""
    if not stages:
        return ""
    head = "".join(f'<th scope="col">{safe_text(stage.name)}</th>' for stage in stages)
    measures = [_measures(stage, curve) for stage, curve in zip(stages, curves, strict=True)]
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td>{column[name] or DASH}</td>" for column in measures)
        + "</tr>\n"
        for name in measures[0]
        if any(column[name] for column in measures)
    )
    return section(
        "The stages at a glance",
        '<div class="scroll"><table class="glance">\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n",
    )


def _measures(stage: StageReport, curve: Curve) -> dict[str, str]:
    """Name -> HTML, empty where nothing is known."""
    steps = int(curve.last_step) if curve.losses else 0
    tokens = sum(_column(stage.metrics, "num_targets"))
    times = _column(stage.metrics, "elapsed_s")
    speeds = _column(stage.metrics, "tokens_per_s")
    return {
        "Steps": f"{steps:,}" if steps else "",
        "Tokens trained on": _amount(tokens) if tokens else "",
        "Time": _duration(times[-1]) if times else "",
        "Tokens per second": f"{statistics.median(speeds):,.0f}" if speeds else "",
        "Training loss": _change([loss for _, loss in curve.smooth]),
        "Validation, bits per byte": _change([value for _, value in curve.validation]),
    }


def _stage(stage: StageReport, curve: Curve, number: int) -> str:
    """Why, the curve, the plan."""
    chart = loss_chart(curve, stage.name, f"stage-{number}")
    figure = f"<figure>{chart}\n{_caption(curve)}</figure>\n" if chart else ""
    plan = "".join(
        f'<tr><th scope="row">{safe_text(name)}</th><td>{safe_text(value)}</td>'
        f'<td class="reason">{safe_text(reason)}</td></tr>\n'
        for name, value, reason in stage.plan_lines
    )
    table = (
        f'<table class="plan">\n<caption>The plan</caption>\n<tbody>\n{plan}</tbody>\n</table>\n'
        if plan
        else ""
    )
    return section(
        stage.name,
        f'<p class="why">{safe_text(stage.why)}</p>\n{wrapped("div", figure + table, "beside")}',
        before=f'<span class="number">Stage {number}</span> ',
        kind="stage",
    )


def _caption(curve: Curve) -> str:
    if not curve.reach:
        return ""
    return (
        f"<figcaption>Thin: every step. Thick: the mean of up to {2 * curve.reach + 1} "
        "neighbouring steps.</figcaption>\n"
    )


def _exam(before: Exam | None, after: Exam | None) -> str:
    """The table by category, and what went wrong.  An exam taken only before is shown alone."""
    if after is None:
        before, after = None, before
    if after is None or not after.answers:
        return ""
    guesser = after.guesser
    was = before.results if before else {}
    examples = {answer.category: answer.question for answer in reversed(after.answers)}
    rows = "".join(
        _exam_row(
            f'{safe_text(category)}<q class="example">{safe_text(examples[category])}</q>',
            asked,
            was.get(category, (0, 0))[0] if before else None,
            correct,
            guesser[category],
        )
        for category, (correct, asked) in after.results.items()
    )
    in_all = _exam_row(
        "in all",
        after.num_asked,
        before.num_correct if before else None,
        after.num_correct,
        sum(guesser.values()),
    )
    head = "".join(
        f'<th scope="col" class="{kind}"><span class="swatch"></span>{name}</th>'
        for kind, name in (("before", "before SFT"), ("after", "after SFT"), ("guesser", "guesser"))
        if before or kind != "before"
    )
    return section(
        "The examination",
        f"<p>{after.num_asked:,} questions that stand in no training data, in "
        f"{len(after.results)} categories. An answer counts only when all of it is right. The "
        "guesser always gives the most frequent answer of its category.</p>\n"
        '<table class="exam">\n<thead><tr><th scope="col">category</th>'
        f'<th scope="col" class="asked">asked</th>{head}<td class="drawn"></td></tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n<tfoot>\n{in_all}</tfoot>\n</table>\n{_mistakes(after)}",
    )


def _exam_row(name: str, asked: int, before: int | None, after: int, guesser: int) -> str:
    cells = "".join(
        f'<td class="{kind}"><b>{count}</b> <span>{100 * count // asked}%</span></td>'
        for kind, count in (("before", before), ("after", after), ("guesser", guesser))
        if count is not None
    )
    drawn = bars(None if before is None else before / asked, after / asked, guesser / asked)
    return (
        f'<tr><th scope="row">{name}</th><td class="asked">{asked}</td>{cells}'
        f'<td class="drawn">{drawn}</td></tr>\n'
    )


def _mistakes(exam: Exam) -> str:
    wrong = [answer for answer in exam.answers if not answer.is_correct]
    if not wrong:
        return '<p class="all-right">Every answer was right.</p>\n'
    shown = "".join(_mistake(answer) for answer in wrong[:MOST_MISTAKES])
    rest = len(wrong) - MOST_MISTAKES
    more = f"<p>And {rest:,} more.</p>\n" if rest > 0 else ""
    return (
        f"<details>\n<summary>What it got wrong: {len(wrong):,} of {exam.num_asked:,}</summary>\n"
        f'<ol class="mistakes">\n{shown}</ol>\n{more}</details>\n'
    )


def _mistake(answer: ExamAnswer) -> str:
    asked = " / ".join(
        safe_text(message.content)
        for message in answer.conversation
        if isinstance(message.content, str)
    )
    said = safe_text(answer.reply) if answer.reply.strip() else "<i>nothing</i>"
    return (
        f'<li><p class="asked">{safe_text(answer.category)}: <span dir="auto">{asked}</span></p>\n'
        f'<dl><div><dt>said</dt><dd dir="auto">{said}</dd></div>\n'
        f'<div><dt>right</dt><dd dir="auto">{safe_text(answer.expected)}</dd></div></dl></li>\n'
    )


def _conversations(conversations: Sequence[Conversation], note: str) -> str:
    shown = "".join(
        f'<li class="talk">\n{"".join(_message(message) for message in conversation)}</li>\n'
        for conversation in conversations
        if conversation
    )
    if not shown:
        return ""
    paragraph = f"<p>{safe_text(note)}</p>\n" if note else ""
    return section("Conversations", f'{paragraph}<ol class="talks">\n{shown}</ol>\n')


def _message(message: Message) -> str:
    who = {"user": "you", "assistant": "nanochat", "system": "system"}[message.role]
    if isinstance(message.content, str):
        words = safe_text(message.content) if message.content.strip() else "<i>nothing</i>"
    else:
        words = "".join(
            safe_text(part.text)
            if part.kind == "text"
            else f'<code class="{part.kind}">{safe_text(part.text)}</code>'
            for part in message.content
        )
    return (
        f'<div class="message {message.role}"><span class="who">{who}</span>'
        f'<p dir="auto">{words}</p></div>\n'
    )


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    if not commands:
        return ""
    shown = "".join(
        f"<li><p>{safe_text(what)}</p>\n<pre><code>{safe_text(command)}</code></pre></li>\n"
        for command, what in commands
    )
    return section("How to go on", f'<ul class="commands">\n{shown}</ul>\n')


# ------------------------------------------------------------------------------------- pieces


def _column(rows: Iterable[Mapping[str, float]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name) is not None]


def _change(values: Sequence[float]) -> str:
    """The first and the last value; a single one stands alone."""
    if not values:
        return ""
    last = f"{values[-1]:.3f}"
    return last if len(values) == 1 else f"{values[0]:.3f} {ARROW} <b>{last}</b>"


def _amount(number: float) -> str:
    """31,500, and from a million on three digits: 1.23 million."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            scaled = number / size
            digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
            return f"{scaled:,.{digits}f} {name}"
    return f"{number:,.0f}"


def _duration(seconds: float) -> str:
    """8.2 s, 3 min 05 s, 1 h 02 min, a number never parted from its unit."""
    whole = round(seconds)
    if seconds < 60:
        parts = [f"{seconds:.1f} s"]
    elif whole < 3600:
        parts = [f"{whole // 60} min", f"{whole % 60:02} s"]
    else:
        parts = [f"{whole // 3600} h", f"{whole % 3600 // 60:02} min"]
    return " ".join(part.replace(" ", "&nbsp;") for part in parts)
