"""An evaluation -> report.md.   in: EvalResult   out: Markdown   who calls: report_eval.py
(imports no torch)

For a terminal, a pull request or a wiki: the tables, and a few failures of each task.
Read next: report_eval.py (the page with all of it), failures.py.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from nanochat.evals.failures import Failure, count_failures, failures_of, percent
from nanochat.evals.results import SAMPLES_FILE, EvalResult, TaskResult
from nanochat.tokenizer.tokenizer import replace_surrogates

__all__ = ["render_markdown"]

MOST_PER_TASK = 3
SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#!|~&])")


def render_markdown(result: EvalResult) -> str:
    """The report as text; whatever a model wrote stands in fences that it cannot close.

    A lone surrogate, which is legal in JSON and not in UTF-8, becomes U+FFFD.
    """
    return replace_surrogates("\n".join(_lines(result)) + "\n")


def _lines(result: EvalResult) -> Iterator[str]:
    yield from (f"# Evaluation of {_plain(result.model)}", "")
    settings = ", ".join(f"{_plain(str(k))} {_plain(str(v))}" for k, v in result.settings.items())
    yield from (f"Procedure: {result.mode}{'; ' if settings else ''}{settings}.", "")
    if result.composites:
        composites = [
            (name, f"{each.value:.4f}", f"{each.interval.low:.4f} to {each.interval.high:.4f}",
             str(len(each.baselines)))
            for name, each in result.composites.items()
        ]  # fmt: skip
        yield from _table(("composite", "value", "95% interval", "tasks"), composites)
    scored = [task for task in result.tasks.values() if task.kind != "bits_per_byte"]
    if scored:
        head = ("task", "accuracy", "95% interval", "centred", "guessing", "questions")
        yield from _table(head, [_row(task) for task in scored])
    bits = [task for task in result.tasks.values() if task.kind == "bits_per_byte"]
    if bits:
        about = ("text", "bits per byte", "95% interval", "documents")
        yield from _table(about, [_bits_row(task) for task in bits])
    for task in result.tasks.values():
        yield from _task(task)


def _row(task: TaskResult) -> tuple[str, ...]:
    if not task.is_scored:
        return (task.label, f"no result: {task.error or 'no questions'}", "", "", "", "")
    low, high = task.interval
    return (
        task.label,
        percent(task.accuracy),
        f"{percent(low)} to {percent(high)}",
        f"{task.centered:.3f}",
        percent(task.baseline),
        f"{task.count:,}",
    )


def _bits_row(task: TaskResult) -> tuple[str, ...]:
    if not task.is_scored:
        return (task.label, f"no result: {task.error or 'no documents'}", "", "")
    low, high = task.interval
    return (task.label, f"{task.bits_per_byte:.4f}", f"{low:.4f} to {high:.4f}", f"{task.count:,}")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|---|{'---:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(_plain(cell) for cell in row)} |"
    yield ""


def _task(task: TaskResult) -> Iterator[str]:
    num_failed = count_failures(task)
    told = [*(f"pass@{k}: {percent(value)}" for k, value in task.pass_at.items()), *task.notes]
    if not num_failed and not told:
        return
    yield from (f"## {_plain(task.label)}", "")
    yield from (f"- {_plain(each)}" for each in told)
    if told:
        yield ""
    for failure in islice(failures_of(task), MOST_PER_TASK):
        yield from _failure(failure)
    if num_failed:
        yield f"{num_failed:,} of {task.count:,} were not right; all of them are in {SAMPLES_FILE}."
        yield ""


def _failure(failure: Failure) -> Iterator[str]:
    asked = f"[{failure.num_cut:,} letters before]\n" if failure.num_cut else ""
    text = [f"asked: {asked}{failure.asked}", f"said:  {failure.said}", f"right: {failure.right}"]
    if failure.why:
        text.append(f"why:   {failure.why}")
    text += [
        f"{line.logprob:10.3f} nats, {line.num_tokens} tokens: {line.text}"
        for line in failure.choices
        if line.logprob is not None
    ]
    body = "\n".join(text)
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    yield from (f"Sample {_plain(failure.sample_id)}:", "", f"{fence}text")
    yield from body.splitlines()
    yield from (fence, "")


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))
