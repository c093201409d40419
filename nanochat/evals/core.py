"""CORE: 22 tasks for base models, and their mean.   in: rows of the evaluation bundle   out: Task,
Composite   who calls: tasks/__init__.py, runner.py   (imports no torch)

The tasks differ only in data, so they are a table; labels, shots and delimiters are those of the
bundle's core.yaml.  Rows are shuffled with seed 1337 and cut to the limit; the examples before a
question are drawn from what is left, with seed 1234 + its index.

    multiple_choice     query + delimiter + choice, one text a choice
    schema              context + delimiter + continuation, one text a context
    language_modeling   context, stripped, + delimiter + continuation

Baselines come in two versions: v1 is the bundle's and karpathy/nanochat's (GPT-2 XL scores
0.256525), v2 is DCLM's current one.  A set that lacks a task has another name.
Source: Li et al., arXiv:2406.11794 (DCLM); karpathy/nanochat scripts/base_eval.py at 92d63d4.
Read next: scorers.py (who wins), tests/evals/test_core.py (prompts by hand).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from nanochat.common.errors import DataError, EvalError
from nanochat.evals.data import Row, checked_row, shuffled
from nanochat.evals.intervals import ScoredTask, bootstrap_composite
from nanochat.evals.results import Composite, TaskResult
from nanochat.evals.task import Sample, Selection, Task

__all__ = ["BASELINES_V2", "CORE_TABLE", "CORE_TASKS", "CoreEntry", "core_composites"]

SHUFFLE_SEED, EXAMPLES_SEED = 1337, 1234
MOST_MISSING_NAMED = 3  # a set that lacks more is no version of CORE at all

CoreKind = Literal["multiple_choice", "schema", "language_modeling"]


@dataclass(frozen=True, slots=True)
class CoreEntry:
    """One line of the table; what it says of a task is in core.yaml and eval_meta_data.csv."""

    label: str
    kind: CoreKind
    num_shots: int
    delimiter: str
    path: str
    """Under eval_bundle/eval_data, without .jsonl."""
    baseline_percent: float
    """v1."""


_MC: CoreKind = "multiple_choice"
_LM: CoreKind = "language_modeling"
_SC: CoreKind = "schema"
CORE_TABLE = (
    CoreEntry("hellaswag_zeroshot", _MC, 0, " ", "language_understanding/hellaswag", 25),
    CoreEntry("jeopardy", _LM, 10, "\nAnswer: ", "world_knowledge/jeopardy_all", 0),
    CoreEntry("bigbench_qa_wikidata", _LM, 10, " ", "world_knowledge/bigbench_qa_wikidata", 0),
    CoreEntry("arc_easy", _MC, 10, "\nAnswer: ", "world_knowledge/arc_easy", 25),
    CoreEntry("arc_challenge", _MC, 10, "\nAnswer: ", "world_knowledge/arc_challenge", 25),
    CoreEntry("copa", _MC, 0, " ", "commonsense_reasoning/copa", 50),
    CoreEntry("commonsense_qa", _MC, 10, " ", "commonsense_reasoning/commonsense_qa", 20),
    CoreEntry("piqa", _MC, 10, "\nAnswer: ", "commonsense_reasoning/piqa", 50),
    CoreEntry("openbook_qa", _MC, 0, " ", "commonsense_reasoning/openbook_qa", 25),
    CoreEntry("lambada_openai", _LM, 0, " ", "language_understanding/lambada_openai", 0),
    CoreEntry("hellaswag", _MC, 10, " ", "language_understanding/hellaswag", 25),
    CoreEntry("winograd", _SC, 0, " ", "language_understanding/winograd_wsc", 50),
    CoreEntry("winogrande", _SC, 0, " ", "language_understanding/winogrande", 50),
    CoreEntry(
        "bigbench_dyck_languages",
        _LM,
        10,
        " ",
        "symbolic_problem_solving/bigbench_dyck_languages",
        0,
    ),
    CoreEntry("agi_eval_lsat_ar", _MC, 3, " ", "symbolic_problem_solving/agi_eval_lsat_ar", 20),
    CoreEntry(
        "bigbench_cs_algorithms", _LM, 10, " ", "symbolic_problem_solving/bigbench_cs_algorithms", 0
    ),
    CoreEntry("bigbench_operators", _LM, 10, " ", "symbolic_problem_solving/bigbench_operators", 0),
    CoreEntry(
        "bigbench_repeat_copy_logic",
        _LM,
        10,
        " ",
        "symbolic_problem_solving/bigbench_repeat_copy_logic",
        0,
    ),
    CoreEntry("squad", _LM, 10, " ", "reading_comprehension/squad", 0),
    CoreEntry("coqa", _LM, 0, " ", "reading_comprehension/coqa", 0),
    CoreEntry("boolq", _MC, 10, "\nAnswer: ", "reading_comprehension/boolq", 62),
    CoreEntry(
        "bigbench_language_identification",
        _MC,
        10,
        " ",
        "language_understanding/bigbench_language_identification",
        9.1,
    ),
)

BASELINES_V2: Mapping[str, float] = {
    "commonsense_qa": 0.403,  # what always choosing the commonest letter gets
    "agi_eval_lsat_ar": 0.25,  # four choices, not five
    "bigbench_language_identification": 0.25,  # four choices, not eleven
}
"""Where DCLM's current baselines differ from v1."""


def core_composites(results: Mapping[str, TaskResult]) -> dict[str, Composite]:
    """CORE under both versions of the baselines, by name; empty where too much is missing.

    All 22 tasks give core_v1 and core_v2; 21 without coqa give core_21_no_coqa (v1) and
    core_21_no_coqa_v2.
    """
    present = [e.label for e in CORE_TABLE if e.label in results and results[e.label].is_scored]
    missing = [e.label for e in CORE_TABLE if e.label not in present]
    if len(missing) > MOST_MISSING_NAMED:
        return {}
    if missing:
        stem = f"core_{len(present)}_no_{'_no_'.join(missing)}"
        names = {"v1": stem, "v2": f"{stem}_v2"}
    else:
        names = {"v1": "core_v1", "v2": "core_v2"}
    return {
        name: _composite(name, version, [results[label] for label in present])
        for version, name in names.items()
    }


def _composite(name: str, version: str, results: Sequence[TaskResult]) -> Composite:
    baselines = {
        each.label: BASELINES_V2.get(each.label, each.baseline)
        if version == "v2"
        else each.baseline
        for each in results
    }
    scored = [
        ScoredTask([verdict.score for verdict in each.verdicts], baselines[each.label])
        for each in results
    ]
    return Composite(
        name=name,
        value=sum(task.centered for task in scored) / len(scored),
        interval=bootstrap_composite(scored),
        baselines=baselines,
        baseline_version=version,
    )


# ------------------------------------------------------------------------------------- samples


def _load(entry: CoreEntry, selection: Selection) -> list[Sample]:
    path = f"eval_bundle/eval_data/{entry.path}.jsonl"
    rows = selection.source.rows(path, limit=selection.limit, order=shuffled(SHUFFLE_SEED))
    items = [_CHECKS[entry.kind](row) for row in rows]
    num_shots = entry.num_shots
    if num_shots > len(items) - 1:
        if selection.mode == "nanochat":
            raise EvalError(
                f"{entry.label} takes {num_shots} examples from the other {len(items) - 1} rows: "
                f"--compat nanochat needs --limit above {num_shots}"
            )
        num_shots = len(items) - 1
    render = _RENDERERS[entry.kind]
    samples = [
        render(
            entry, f"{row.number}", item, [items[i] for i in _shots(index, len(items), num_shots)]
        )
        for index, (row, item) in enumerate(zip(rows, items, strict=True))
    ]
    if num_shots == entry.num_shots:
        return samples
    extra = {"flags": ["fewer_shots"], "num_shots": num_shots}
    return [replace(sample, extra=extra) for sample in samples]


def _shots(index: int, count: int, num_shots: int) -> list[int]:
    """Which rows are shown before the one at `index`: never itself."""
    if num_shots == 0:
        return []
    # `sample` looks at a length only, so drawing from a range draws from the list of all others.
    drawn = random.Random(EXAMPLES_SEED + index).sample(range(count - 1), num_shots)
    return [other + (other >= index) for other in drawn]


def _multiple_choice(
    entry: CoreEntry, name: str, item: Mapping[str, Any], shots: Sequence[Mapping[str, Any]]
) -> Sample:
    examples = "".join(
        f"{shot['query']}{entry.delimiter}{shot['choices'][shot['gold']]}\n\n" for shot in shots
    )
    return Sample(
        sample_id=name,
        prompt=f"{examples}{item['query']}{entry.delimiter}",
        choices=tuple(item["choices"]),
        gold=item["gold"],
    )


def _schema(
    entry: CoreEntry, name: str, item: Mapping[str, Any], shots: Sequence[Mapping[str, Any]]
) -> Sample:
    delimiter = entry.delimiter
    examples = "".join(
        f"{shot['context_options'][shot['gold']]}{delimiter}{shot['continuation']}\n\n"
        for shot in shots
    )
    return Sample(
        sample_id=name,
        prompt=examples,
        choices=tuple(f"{context}{delimiter}" for context in item["context_options"]),
        ending=item["continuation"],
        gold=item["gold"],
    )


def _language_modeling(
    entry: CoreEntry, name: str, item: Mapping[str, Any], shots: Sequence[Mapping[str, Any]]
) -> Sample:
    delimiter = entry.delimiter
    examples = "".join(
        f"{shot['context'].strip()}{delimiter}{shot['continuation']}\n\n" for shot in shots
    )
    return Sample(
        sample_id=name,
        prompt=f"{examples}{item['context'].strip()}{delimiter}",
        choices=(item["continuation"],),
    )


def _check_choices(row: Row) -> dict[str, Any]:
    return _checked_gold(row, checked_row(row, query=str, choices=list, gold=int)["choices"])


def _check_contexts(row: Row) -> dict[str, Any]:
    item = checked_row(row, context_options=list, continuation=str, gold=int)
    return _checked_gold(row, item["context_options"])


def _check_continuation(row: Row) -> dict[str, Any]:
    return checked_row(row, context=str, continuation=str)


def _checked_gold(row: Row, choices: Sequence[Any]) -> dict[str, Any]:
    if not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{row.where}: a choice is no string")
    if not 0 <= row.value["gold"] < len(choices):
        raise DataError(f"{row.where}: gold is {row.value['gold']} of {len(choices)} choices")
    return row.value


_CHECKS: Mapping[CoreKind, Callable[[Row], dict[str, Any]]] = {
    "multiple_choice": _check_choices,
    "schema": _check_contexts,
    "language_modeling": _check_continuation,
}
_RENDERERS: Mapping[CoreKind, Callable[..., Sample]] = {
    "multiple_choice": _multiple_choice,
    "schema": _schema,
    "language_modeling": _language_modeling,
}

CORE_TASKS = tuple(
    Task(
        name=entry.label,
        version="1",
        kind=entry.kind,
        load=partial(_load, entry),
        baseline=entry.baseline_percent / 100,
    )
    for entry in CORE_TABLE
)
"""In the order of core.yaml."""
