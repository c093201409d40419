"""nanochat compare   in: results of evaluations   out: which differences are real; 1 if worse
who calls: cli.main

Read next: evals/compare.py (the tests), docs/evaluate.md.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from nanochat.cli.terminal import neutralize, notice
from nanochat.common.config import CommonOptions
from nanochat.common.errors import CheckpointError, ConfigError
from nanochat.common.files import home_dir

if TYPE_CHECKING:
    from nanochat.evals.compare import Comparison, Difference

__all__ = ["Config", "find_results", "run"]

SUMMARY = "summary.json"  # evals/results.py: SUMMARY_FILE
HEAD = ("", "n", "A", "{}", "{} - A", "95% interval", "p", "Holm", "")


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Compare evaluations of the same questions, and say which differences are real.

    Right-or-wrong tasks: McNemar's exact test; composites and scores between: paired bootstrap and
    sign flips, both of which have to show it. p-values are corrected by Holm, over all tasks and
    over all composites.
    """

    results: tyro.conf.Positional[tuple[str, ...]]
    """Two or more: directories or files that nanochat eval --out wrote, or models, whose newest
    results are taken. All are compared with the first."""
    alpha: float = 0.05
    """A difference is called real where its corrected p-value is at most this."""
    tasks: tuple[str, ...] = ()
    """Only these tasks, as globs."""
    fail_if_worse: bool = False
    """Exit with 1 when a later one is worse than the first in any composite or any task, at alpha
    after correction: for CI."""
    allow_changed: bool = False
    """Compare what is shared, even where mode, limit, versions or data differ."""

    def __post_init__(self) -> None:
        if len(self.results) < 2:
            raise ConfigError(f"{len(self.results)} result given, expected two or more to compare")
        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha is {self.alpha}, expected more than 0 and less than 1")


def run(config: Config) -> int:
    """0; 1 with --fail-if-worse where something is worse.

    Raises: EvalError where the same was not asked; DataError for results that cannot be read.
    """
    from nanochat.evals.compare import compare
    from nanochat.evals.results import read_results

    found = [find_results(reference, config.home) for reference in config.results]
    comparisons = compare(
        [read_results(path) for path in found],
        tasks=config.tasks,
        allow_changed=config.allow_changed,
    )
    worse = [each for one in comparisons for each in one.worse(config.alpha)]
    if config.json:
        shown = {
            "alpha": config.alpha,
            "results": [str(path) for path in found],
            "comparisons": [one.to_json(config.alpha) for one in comparisons],
            "is_worse": bool(worse),
        }
        print(json.dumps(shown, allow_nan=False))
    else:
        print(neutralize("\n".join(_lines(comparisons, found, config.alpha))))
    if config.fail_if_worse and worse:
        notice(
            f"worse than {comparisons[0].first} in {', '.join(each.name for each in worse)} "
            f"(p by Holm at most {config.alpha:g})"
        )
        return 1
    return 0


def find_results(reference: str, home: Path | None = None) -> Path:
    """The directory with the results that a path names, or the newest of a model.

    Raises: CheckpointError where there are none, saying where they were looked for.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        path = path.parent
    if (path / SUMMARY).is_file():
        return path
    evals, step = _evals_of(reference, home)
    found = [
        summary
        for summary in evals.rglob(SUMMARY)
        if not step or step in str(summary.relative_to(evals).parent)
    ]
    if not found:
        raise CheckpointError(
            f"{reference} has no results in {evals}: nanochat eval {reference} makes them"
        )
    return max(found, key=lambda summary: summary.stat().st_mtime_ns).parent


def _evals_of(reference: str, home: Path | None) -> tuple[Path, str]:
    """Where a model's results lie, and the step they are of if it is named.

    Those of a run lie with its stage, all others in the home, by name.
    """
    from nanochat.evals.results import folder_name

    place = home_dir(home)
    named = place / "evals" / folder_name(reference)
    if named.is_dir():
        return named, ""
    from nanochat.checkpoint.hub import PREFIX
    from nanochat.checkpoint.resolve import candidates

    if reference.startswith(PREFIX):  # never a run's: nothing is loaded to find that out
        return named, ""
    checkpoint = candidates(reference, home)[0]
    if place / "runs" not in checkpoint.absolute().parents:
        return named, ""
    step = checkpoint.name if "@" in reference else ""
    return checkpoint.parents[1] / "evals", step


def _lines(comparisons: "Sequence[Comparison]", found: Sequence[Path], alpha: float) -> list[str]:
    names = [comparisons[0].first, *(one.second for one in comparisons)]
    lines = [f"{_letter(i)}  {name}   {found[i]}" for i, name in enumerate(names)]
    for index, one in enumerate(comparisons, 1):
        rows = [tuple(cell.format(_letter(index)) for cell in HEAD)]
        rows += [_row(each, alpha) for each in (*one.composites, *one.tasks)]
        wide = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
        lines.append("")
        lines += [f"changed: {key}" for key in one.changed]
        lines += [
            "  ".join(
                f"{cell:{width}}" if column in (0, len(HEAD) - 1) else f"{cell:>{width}}"
                for column, (cell, width) in enumerate(zip(row, wide, strict=True))
            ).rstrip()
            for row in rows
        ]
    return [
        *lines,
        "",
        f"better, worse: p at most {alpha:g} after Holm's correction over "
        f"{_amount(sum(len(one.tasks) for one in comparisons), 'task')}, and over "
        f"{_amount(sum(len(one.composites) for one in comparisons), 'composite')}.",
        "p: McNemar's exact test for right and wrong (+only B, -only A), else the larger of a "
        "paired bootstrap's and of sign flips'.",
    ]


def _row(each: "Difference", alpha: float) -> tuple[str, ...]:
    low, high = each.interval
    counts = ""
    if each.num_only_first is not None:
        counts = f" (+{each.num_only_second} -{each.num_only_first})"
    return (
        each.name,
        f"{each.count:,}",
        f"{each.first:.4f}",
        f"{each.second:.4f}",
        f"{each.difference:+.4f}{counts}",
        f"{low:+.4f} to {high:+.4f}",
        f"{each.p_value:.4f}",
        f"{each.corrected:.4f}",
        each.verdict(alpha),
    )


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"#{index + 1}"


def _amount(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
