"""CORE: prompts by hand, drawn examples, names of composites, and karpathy/nanochat's verdicts."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from nanochat.checkpoint.resolve import load
from nanochat.common.errors import DataError, EvalError
from nanochat.engine.engine import Engine
from nanochat.evals.chatcore import all_composites, chatcore_composites
from nanochat.evals.core import BASELINES_V2, CORE_TABLE, CORE_TASKS, core_composites
from nanochat.evals.data import DataFiles
from nanochat.evals.examinee import EngineExaminee
from nanochat.evals.records import SampleRecord
from nanochat.evals.results import TaskResult
from nanochat.evals.runner import RunOptions, run_tasks
from nanochat.evals.task import Mode, Sample, Selection, Task, Verdict
from tests.evals.bundle import CHOICE_ROWS, CONTEXT_ROWS, SCHEMA_ROWS, write_bundle

BY_NAME = {task.name: task for task in CORE_TASKS}


def load_samples(
    task: Task, folder: Path, limit: int | None = None, mode: Mode = "default"
) -> list[Sample]:
    return list(task.load(Selection(source=DataFiles([folder]), limit=limit, mode=mode)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("data"))


def shuffled(rows: list[Any]) -> list[Any]:
    rows = list(rows)
    random.Random(1337).shuffle(rows)
    return rows


@pytest.mark.req("FR-037")
def test_a_multiple_choice_prompt_is_ten_answered_questions_and_one_to_answer(folder: Path) -> None:
    rows = shuffled(CHOICE_ROWS)
    others = [index for index in range(14) if index != 3]
    shots = [rows[index] for index in random.Random(1234 + 3).sample(others, 10)]
    expected = "".join(
        f"{shot['query']}\nAnswer: {shot['choices'][shot['gold']]}\n\n" for shot in shots
    )
    sample = load_samples(BY_NAME["arc_easy"], folder)[3]
    assert sample.prompt == f"{expected}{rows[3]['query']}\nAnswer: "
    assert sample.choices == tuple(rows[3]["choices"])
    assert sample.gold == rows[3]["gold"]
    assert sample.texts[1] == f"{sample.prompt}{rows[3]['choices'][1]}"


@pytest.mark.req("FR-037")
def test_a_schema_prompt_ends_alike_and_begins_otherwise(folder: Path) -> None:
    rows = shuffled(SCHEMA_ROWS)
    sample = load_samples(BY_NAME["winograd"], folder)[0]
    assert sample.texts == tuple(f"{context} was near." for context in rows[0]["context_options"])


@pytest.mark.req("FR-037")
def test_a_language_modelling_context_is_trimmed_and_the_query_of_others_is_not(
    folder: Path,
) -> None:
    row = shuffled(CONTEXT_ROWS)[0]
    sample = load_samples(BY_NAME["lambada_openai"], folder)[0]
    assert sample.texts == (f"{row['context'].strip()} {row['continuation']}",)


@pytest.mark.req("FR-037")
def test_a_limit_takes_the_first_rows_and_their_examples_from_them(folder: Path) -> None:
    all_of_them = load_samples(BY_NAME["copa"], folder)
    assert load_samples(BY_NAME["copa"], folder, limit=5) == all_of_them[:5]
    few = load_samples(BY_NAME["piqa"], folder, limit=12)
    assert str(few[0].prompt).count("Question:") == 11
    assert all(row["query"] in str(few[0].prompt) for row in shuffled(CHOICE_ROWS)[1:3])


@pytest.mark.req("FR-037")
def test_more_examples_than_rows_end_the_reference_and_are_fewer_by_default(folder: Path) -> None:
    with pytest.raises(EvalError, match="needs --limit above 10"):
        load_samples(BY_NAME["piqa"], folder, limit=4, mode="nanochat")
    few = load_samples(BY_NAME["piqa"], folder, limit=4)
    assert str(few[0].prompt).count("Question:") == 4
    assert {str(each.extra) for each in few} == {"{'flags': ['fewer_shots'], 'num_shots': 3}"}
    assert not any(each.extra for each in load_samples(BY_NAME["piqa"], folder, limit=11))


@pytest.mark.req("FR-037")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"copa.jsonl, line 2: not JSON"),
        ("[1]", r"line 2: '\[1\]', expected a JSON object"),
        ('{"query": "a", "choices": ["b"], "gold": 1}', "line 2: gold is 1 of 1 choices"),
        ('{"query": "a", "choices": [1], "gold": 0}', "line 2: a choice is no string"),
        ('{"query": 5, "choices": ["b"], "gold": 0}', "line 2: query is 5, expected str"),
        ('{"query": "a", "choices": ["b"], "gold": true}', "line 2: gold is True, expected int"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "eval_bundle/eval_data/commonsense_reasoning/copa.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"query": "a", "choices": ["b"], "gold": 0}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        load_samples(BY_NAME["copa"], tmp_path)


@pytest.mark.req("FR-037")
def test_the_table_is_what_the_bundle_says(shared_dir: Path) -> None:
    bundle = shared_dir / "data/eval/eval_bundle"
    found = []
    for block in (bundle / "core.yaml").read_text().split("\n-\n")[1:]:
        words = dict(line.strip().split(": ", 1) for line in block.strip().splitlines())
        delimiter = json.loads(words.get("continuation_delimiter", '" "'))
        [num_shots] = json.loads(words["num_fewshot"])
        path = words["dataset_uri"].removesuffix(".jsonl")
        found.append((words["label"], words["icl_task_type"], num_shots, delimiter, path))
    assert found == [(e.label, e.kind, e.num_shots, e.delimiter, e.path) for e in CORE_TABLE]
    with (bundle / "eval_meta_data.csv").open(newline="") as file:
        baselines = {row["Eval Task"]: row["Random baseline"] for row in csv.DictReader(file)}
    for entry in CORE_TABLE:
        assert entry.baseline_percent == float(baselines[entry.label]), entry.label


# ---------------------------------------------------------------------------------- composites


def result(label: str, scores: list[float], baseline: float) -> TaskResult:
    return TaskResult(
        label=label,
        version="1",
        kind="multiple_choice",
        baseline=baseline,
        records=tuple(
            SampleRecord(
                task=label,
                sample=Sample(sample_id=str(n), prompt=""),
                verdict=Verdict(sample_id=str(n), score=score),
            )
            for n, score in enumerate(scores)
        ),
    )


def all_core(scores: list[float]) -> dict[str, TaskResult]:
    return {e.label: result(e.label, scores, e.baseline_percent / 100) for e in CORE_TABLE}


@pytest.mark.req("FR-037")
def test_core_has_two_versions_of_baselines_and_a_name_for_what_is_missing() -> None:
    results = all_core([1.0, 0.0])
    found = core_composites(results)
    assert list(found) == ["core_v1", "core_v2"]
    centred = [
        (0.5 - e.baseline_percent / 100) / (1 - e.baseline_percent / 100) for e in CORE_TABLE
    ]
    assert found["core_v1"].value == pytest.approx(sum(centred) / 22)
    assert found["core_v2"].baselines["commonsense_qa"] == BASELINES_V2["commonsense_qa"] == 0.403
    del results["coqa"]
    assert list(core_composites(results)) == ["core_21_no_coqa", "core_21_no_coqa_v2"]
    results["squad"] = TaskResult(
        label="squad", version="1", kind="language_modeling", baseline=0.0, error="no file"
    )
    assert list(core_composites(results))[0] == "core_20_no_squad_no_coqa"
    for label in ("boolq", "copa"):
        del results[label]
    assert core_composites(results) == {}


@pytest.mark.req("FR-037")
def test_gpt2_scores_what_the_bundle_says(shared_dir: Path) -> None:
    """A model right in these shares has the published CORE: 0.256525 for GPT-2 XL."""
    table = shared_dir / "data/eval/eval_bundle/openai-community-gpt2-xl.csv"
    results = {}
    for line in table.read_text().splitlines()[1:]:
        label, accuracy, _ = (cell.strip() for cell in line.split(","))
        if label in BY_NAME:
            results[label] = result(label, [float(accuracy)], BY_NAME[label].baseline)
    found = core_composites(results)
    assert found["core_v1"].value == pytest.approx(0.256525, abs=1e-5)
    assert found["core_v2"].value == pytest.approx(0.2309, abs=1e-4)


@pytest.mark.req("FR-042")
def test_chatcore_names_its_variant_and_needs_all_its_tasks() -> None:
    labels = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval")
    results = {label: result(label, [1.0, 0.0], 0.25) for label in labels}
    found = chatcore_composites(results)
    assert list(found) == ["chatcore_5"]
    assert found["chatcore_5"].value == pytest.approx((0.5 - 0.25) / 0.75)
    results["SpellingBee"] = result("SpellingBee", [1.0], 0.0)
    assert list(all_composites(results)) == ["chatcore_5", "chatcore_6"]
    del results["MMLU"]
    assert chatcore_composites(results) == {}


# -------------------------------------------------------------------------------------- parity

NUM_IN_TEST = 4  # of 30 examples of each task; the slow test has all


@pytest.mark.req("FR-037", "SC-004")
def test_verdicts_losses_and_tokens_are_those_of_the_reference(shared_dir: Path) -> None:
    """The first examples of each task of a run of 30, whose prompts need all 30."""
    parity = shared_dir / "parity/core-eval"
    expected = json.loads((parity / "expected_core.json").read_text())["tasks"]
    loaded = load(str(parity / "base/base_checkpoints/d4"))
    engine = Engine(loaded.model, loaded.tokenizer, format="float32")
    examinee = EngineExaminee(name="d4", engine=engine)
    source = DataFiles([shared_dir / "data/eval"])
    for task in CORE_TASKS:
        if task.name == "coqa":
            continue
        wanted = expected[task.name]
        samples = task.load(Selection(source=source, limit=30, mode="nanochat"))[:NUM_IN_TEST]
        verdicts = examinee.likelihoods(samples, task.kind, "nanochat")
        agree(verdicts, wanted)


def agree(verdicts: list[Verdict], wanted: dict[str, Any]) -> None:
    for verdict, right, details in zip(
        verdicts, wanted["correct"], wanted["details"], strict=False
    ):
        found = verdict.details
        assert verdict.is_correct == right
        if "mean_losses" in details:
            assert found["mean_losses"] == pytest.approx(details["mean_losses"], abs=1e-4)
            assert found["num_tokens"] == details["num_tokens"]
            continue
        assert found["actual"] == details["actual"]
        assert found["num_prompt_tokens"] == details["num_prompt_tokens"]
        for said, theirs, margin in zip(
            found["predicted"], details["predicted"], found["margins"], strict=True
        ):
            assert said == theirs or margin <= 2e-4


@pytest.mark.slow
@pytest.mark.req("FR-037", "SC-004")
def test_all_630_verdicts_are_those_of_the_reference(shared_dir: Path) -> None:
    parity = shared_dir / "parity/core-eval"
    expected = json.loads((parity / "expected_core.json").read_text())
    loaded = load(str(parity / "base/base_checkpoints/d4"))
    engine = Engine(loaded.model, loaded.tokenizer, format="float32")
    tasks = [task for task in CORE_TASKS if task.name != "coqa"]
    options = RunOptions(source=DataFiles([shared_dir / "data/eval"]), limit=30, mode="nanochat")
    found = run_tasks(EngineExaminee(name="d4", engine=engine), tasks, options)
    assert sum(each.count for each in found.values()) == 630
    for label, each in found.items():
        agree(list(each.verdicts), expected["tasks"][label])
    core = core_composites(found)["core_21_no_coqa"].value
    assert core == pytest.approx(expected["core_metric_21"], abs=1e-9)
