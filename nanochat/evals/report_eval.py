"""An evaluation -> report.html and report.md.   in: EvalResult   out: two files
who calls: cli (eval)   (imports no torch)

The numbers with their intervals, drawn and in a table, then what went wrong, task by task: prompt,
answer, log-likelihoods of every choice, explanation.  A page shows some hundred failures at most
and says how many more samples.jsonl holds.  Tasks are chosen with radio buttons and a stylesheet,
so the page runs nothing.
Read next: failures.py (what is shown), shares.py (drawings), report_markdown.py, page.py.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from nanochat.common.files import write_text_atomically
from nanochat.evals.failures import Failure, count_failures, failures_of, most_shown, percent
from nanochat.evals.page import render_page, safe_text, section, wrapped
from nanochat.evals.report_markdown import render_markdown
from nanochat.evals.results import SAMPLES_FILE, EvalResult, TaskResult
from nanochat.evals.shares import ShareRow, interval_bar, interval_chart

__all__ = ["HTML_FILE", "MARKDOWN_FILE", "render_html", "write_reports"]

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
EXCERPT_LETTERS = 90


def write_reports(result: EvalResult, directory: Path) -> list[Path]:
    """report.html and report.md beside the samples, each whole or not at all; where they are."""
    paths = [directory / HTML_FILE, directory / MARKDOWN_FILE]
    write_text_atomically(paths[0], render_html(result))
    write_text_atomically(paths[1], render_markdown(result))
    return paths


def render_html(result: EvalResult) -> str:
    """The page: equal results, equal pages."""
    failed = [
        (index, task)
        for index, task in enumerate(result.tasks.values())
        if task.is_scored and count_failures(task)
    ]
    body = "".join(
        [
            _header(result),
            _scores(result),
            _bits(result),
            _failures(failed, most_shown(len(failed))),
            _made(result),
        ]
    )
    return render_page(f"Evaluation of {result.model}", body, _filter_style(failed))


# --------------------------------------------------------------------------------------- scores


def _header(result: EvalResult) -> str:
    facts = [
        (name, f"{each.value:.4f} ({each.interval.low:.4f} to {each.interval.high:.4f})")
        for name, each in result.composites.items()
    ]
    facts += [
        ("tasks", f"{sum(task.is_scored for task in result.tasks.values()):,}"),
        ("questions", f"{sum(task.count for task in result.tasks.values()):,}"),
        ("procedure", result.mode),
    ]
    shown = "".join(
        f"<div><dt>{safe_text(name)}</dt><dd>{safe_text(value)}</dd></div>\n"
        for name, value in facts
    )
    return (
        f"<header>\n<h1>Evaluation of {safe_text(result.model)}</h1>\n"
        '<p class="summary">Every number with its 95% interval: where it would lie with other '
        f"questions of the same kind.</p>\n{wrapped('dl', shown, 'facts')}</header>\n"
    )


def _scores(result: EvalResult) -> str:
    """The drawing, and the table by task."""
    tasks = [task for task in result.tasks.values() if task.kind != "bits_per_byte"]
    if not tasks:
        return ""
    rows = [
        ShareRow(name, each.value, each.interval, is_composite=True)
        for name, each in result.composites.items()
    ]
    rows += [ShareRow(task.label, task.centered, _centered(task)) for task in tasks]
    chart = interval_chart(rows, "Centred accuracy", "0 is guessing, 1 is all right", "shares")
    figure = f'<figure class="wide">{chart}</figure>\n' if chart else ""
    table = "".join(_score_row(task) for task in tasks)
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("task", "accuracy", "95% interval", "centred", "guessing", "questions")
    )
    return section(
        "Scores",
        f'{figure}<div class="scroll"><table class="scores">\n<thead><tr>{head}'
        f'<td class="drawn"></td></tr></thead>\n<tbody>\n{table}</tbody>\n</table></div>\n',
    )


def _centered(task: TaskResult) -> Any:
    low, high = task.interval
    scale = 1 - task.baseline
    return type(task.interval)((low - task.baseline) / scale, (high - task.baseline) / scale)


def _score_row(task: TaskResult) -> str:
    name = f'<th scope="row">{safe_text(task.label)}'
    if not task.is_scored:
        reason = safe_text(task.error or "no questions")
        return f'<tr class="failed">{name}</th><td colspan="6">no result: {reason}</td></tr>\n'
    low, high = task.interval
    notes = "".join(f'<span class="note">{safe_text(note)}</span>' for note in task.notes)
    passes = "".join(
        f'<span class="note">pass@{k} {percent(value)}</span>' for k, value in task.pass_at.items()
    )
    cells = "".join(
        f"<td>{cell}</td>"
        for cell in (
            f"<b>{percent(task.accuracy)}</b>{passes}",
            f"{percent(low)} to {percent(high)}",
            f"{task.centered:.3f}",
            percent(task.baseline),
            f"{task.count:,}",
        )
    )
    bar = interval_bar(task.accuracy, task.interval, task.baseline)
    return f'<tr>{name}{notes}</th>{cells}<td class="drawn">{bar}</td></tr>\n'


def _bits(result: EvalResult) -> str:
    tasks = [task for task in result.tasks.values() if task.kind == "bits_per_byte"]
    rows = "".join(
        f'<tr><th scope="row">{safe_text(task.label)}</th>'
        + (
            f"<td><b>{task.bits_per_byte:.4f}</b></td>"
            f"<td>{task.interval.low:.4f} to {task.interval.high:.4f}</td>"
            f"<td>{task.count:,}</td></tr>\n"
            if task.is_scored
            else f'<td colspan="3">no result: {safe_text(task.error or "no documents")}</td></tr>\n'
        )
        for task in tasks
    )
    if not rows:
        return ""
    return section(
        "Bits per byte",
        '<table class="scores">\n<thead><tr><th scope="col">text</th><th scope="col">bits per byte'
        '</th><th scope="col">95% interval</th><th scope="col">documents</th></tr></thead>\n<tbody>'
        f"\n{rows}</tbody>\n</table>\n",
    )


def _made(result: EvalResult) -> str:
    """What decides the numbers, and what each task was made from."""
    settings = _rows({"procedure": result.mode, **result.settings})
    versions = "".join(
        f'<tr><th scope="row">{safe_text(task.label)}</th><td>version {safe_text(task.version)}'
        f"</td><td>{safe_text(_files(task))}</td><td>{task.seconds:,.1f}&nbsp;s</td></tr>\n"
        for task in result.tasks.values()
    )
    return section(
        "How it was made",
        f'<table class="plan">\n<tbody>\n{settings}</tbody>\n</table>\n<details>\n'
        "<summary>Versions and files of the tasks</summary>\n"
        f'<div class="scroll"><table class="plan">\n<tbody>\n{versions}</tbody>\n</table></div>\n'
        "</details>\n",
    )


def _rows(values: Mapping[str, Any]) -> str:
    return "".join(
        f'<tr><th scope="row">{safe_text(str(name))}</th><td>{safe_text(str(value))}</td></tr>\n'
        for name, value in values.items()
    )


def _files(task: TaskResult) -> str:
    return ", ".join(f"{name} ({sha256[:12]})" for name, sha256 in task.data_sha256.items())


# ------------------------------------------------------------------------------------- failures


def _failures(failed: Sequence[tuple[int, TaskResult]], most: int) -> str:
    if not failed:
        return ""
    buttons = "".join(
        f'<label><input type="radio" name="task" id="only-{index}"> {safe_text(task.label)}</label>'
        "\n"
        for index, task in failed
    )
    shown = "".join(_task_failures(index, task, most) for index, task in failed)
    return section(
        "What went wrong",
        f"<p>At most {most} of each task, in the order they were asked; every sample, right and "
        f"wrong, is in {SAMPLES_FILE} beside this page.</p>\n"
        '<fieldset class="filter"><legend>Show</legend>\n'
        '<label><input type="radio" name="task" id="only-all" checked> all tasks</label>\n'
        f"{buttons}</fieldset>\n{shown}",
        kind="part failures",
    )


def _filter_style(failed: Sequence[tuple[int, TaskResult]]) -> str:
    """One rule a task: while its button is chosen, the others are hidden."""
    return "".join(
        f"section:has(#only-{index}:checked) .of-task:not(.task-{index}) {{ display: none; }}\n"
        for index, _ in failed
    )


def _task_failures(index: int, task: TaskResult, most: int) -> str:
    num_failed = count_failures(task)
    shown = "".join(_failure(each) for each in islice(failures_of(task), most))
    more = num_failed - most
    rest = (
        f'<p class="more">And {more:,} more in {SAMPLES_FILE}, where "task" is '
        f'"{safe_text(task.label)}" and "is_correct" is false.</p>\n'
        if more > 0
        else ""
    )
    return (
        f'<div class="of-task task-{index}">\n<h3>{safe_text(task.label)}: {num_failed:,} of '
        f"{task.count:,}</h3>\n{shown}{rest}</div>\n"
    )


def _failure(failure: Failure) -> str:
    excerpt = " ".join(failure.asked[-4 * EXCERPT_LETTERS :].split())[-EXCERPT_LETTERS:]
    before = (
        f'<p class="cut">{failure.num_cut:,} letters stand before this.</p>'
        if failure.num_cut
        else ""
    )
    score = "" if failure.score == 0 else f"{failure.score:.2f}"
    entries = [
        ("asked", f'{before}<pre dir="auto">{safe_text(failure.asked)}</pre>'),
        ("said", _block(failure.said)),
        *(("also said", _block(other)) for other in failure.others),
        ("right", _block(failure.right)),
        ("score", safe_text(score)),
        ("why", safe_text(failure.why)),
        ("choices", _choices(failure)),
        ("numbers", f"<code>{safe_text(failure.details)}</code>" if failure.details else ""),
    ]
    listed = "".join(
        f"<div><dt>{name}</dt><dd>{html}</dd></div>\n" for name, html in entries if html
    )
    return (
        f'<details class="failure"><summary><span class="id">{safe_text(failure.sample_id)}</span> '
        f'<span dir="auto">{safe_text(excerpt)}</span></summary>\n<dl>\n{listed}</dl></details>\n'
    )


def _block(text: str) -> str:
    return f'<pre dir="auto">{safe_text(text)}</pre>' if text.strip() else "<i>nothing</i>"


def _choices(failure: Failure) -> str:
    """Each choice's log-likelihood, the chosen and the right one marked in words."""
    if not any(line.logprob is not None for line in failure.choices):
        return ""
    rows = "".join(
        f"<tr><td>{'chosen' if line.is_chosen else ''}{' ' if line.is_chosen else ''}"
        f"{'right' if line.is_right else ''}</td>"
        f'<td dir="auto">{safe_text(line.text)}</td><td>{_number(line.logprob)}</td>'
        f"<td>{'' if line.num_tokens is None else line.num_tokens}</td>"
        f"<td>{_number(line.per_token)}</td></tr>\n"
        for line in failure.choices
    )
    head = "".join(
        f'<th scope="col">{name}</th>'
        for name in ("", "choice", "log-likelihood, nats", "tokens", "per token")
    )
    return (
        f'<div class="scroll"><table class="choices">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table></div>"
    )


def _number(value: float | None) -> str:
    return "&ndash;" if value is None or not math.isfinite(value) else f"{value:.3f}"
