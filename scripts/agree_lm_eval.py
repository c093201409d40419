"""The same questions, asked by us and by lm-evaluation-harness.   in: a model, tasks of choices
out: how far log-likelihoods and accuracies lie apart   who calls: make bench-eval, tests/evals

The harness asks our server (`local-completions`: echo, logprobs, prompts as tokens) and reads its
questions from files that are written here; ours are asked of the engine directly, by the runner.
So tokens, regions, scoring and the server's completions are held against a second opinion.

    python scripts/agree_lm_eval.py d12 --data-dir DIR    ARC-Easy and HellaSwag, 200 questions each
Questions that do not fit the model's context are passed over.  It ends in one JSON line; exit code
1 where any log-likelihood differs by more than 1e-3, or an accuracy differs.  The package lm-eval
is part of the extra `interop`.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from nanochat.evals.custom import load_task
from nanochat.evals.questions import TaskSpec
from nanochat.evals.task import Sample, Selection, Task

if TYPE_CHECKING:
    from nanochat.engine.engine import Engine
    from nanochat.evals.results import TaskResult
    from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["LIMIT_NATS", "Agreement", "Options", "agreement", "main", "serving"]

LIMIT_NATS = 1e-3
FOLDER = "eval_bundle/eval_data"
START_S = 60.0
HARNESS_S = 3600.0
PEER = Path(__file__).with_name("peer_lm_eval.py")
TASKS = {
    "world_knowledge/arc_easy": "\nAnswer: ",
    "language_understanding/hellaswag": " ",
}
"""Files of the evaluation bundle, and what stands between question and choice."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Ask the same questions as lm-evaluation-harness does, and compare."""

    model: tyro.conf.Positional[str]
    """A model reference."""
    data_dir: Path
    """The folder that holds eval_bundle/."""
    home: Path | None = None
    limit: int = 200
    """Questions of each task."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """One task, asked twice."""

    label: str
    num_questions: int
    num_options: int
    largest_nats: float
    """Between the two sums of any option."""
    accuracy: float
    """Ours, by the largest sum, as the harness counts it."""
    harness_accuracy: float
    normalized: float
    """Ours, by the largest mean per token, as we count it."""
    harness_normalized: float
    """The same from the harness's sums and our numbers of tokens."""

    @property
    def holds(self) -> bool:
        """Whether the two agree."""
        return (
            self.largest_nats <= LIMIT_NATS
            and self.accuracy == self.harness_accuracy
            and self.normalized == self.harness_normalized
        )


def agreement(
    engine: "Engine", tasks: Sequence[Task], *, limit: int | None = None
) -> list[Agreement]:
    """Both opinions on each task; takes as long as two evaluations and the harness's start.

    Raises: RuntimeError with the end of the harness's words where it fails.
    """
    from nanochat.evals.data import DataFiles
    from nanochat.evals.examinee import EngineExaminee
    from nanochat.evals.runner import RunOptions, run_tasks

    options = RunOptions(source=DataFiles(folders=()), limit=limit)
    fitting = [_fitting(task, engine) for task in tasks]
    ours = run_tasks(EngineExaminee(name="ours", engine=engine), fitting, options)
    with tempfile.TemporaryDirectory(prefix="agree-") as name, serving(engine) as url:
        folder = Path(name)
        _write_tokenizer(engine.tokenizer, engine.context_len, folder / "tokenizer")
        for result in ours.values():
            _write_task(result, folder)
        theirs = _harness(folder, url, list(ours), engine.context_len)
    return [_compared(result, theirs[label]) for label, result in ours.items()]


@contextlib.contextmanager
def serving(engine: "Engine") -> Iterator[str]:
    """Our server over an engine, on a free port of this machine; the address."""
    import uvicorn

    from nanochat.server.app import ServedModel, create_app

    served = ServedModel(
        name="ours", tokenizer=engine.tokenizer, context_len=engine.context_len, created=0
    )
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(engine, served),
            host="127.0.0.1",
            port=0,
            loop="asyncio",
            log_level="error",
            access_log=False,
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + START_S
        while not server.started:
            if time.monotonic() > end or not thread.is_alive():
                raise RuntimeError(f"the server did not start within {START_S:.0f} s")
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def main(options: Options) -> int:
    """0 where all agrees."""
    from nanochat.engine.load import EngineSpec, load_engine

    specs = {
        path: TaskSpec(kind="multiple-choice", question="query", answer="gold", delimiter=delimiter)
        for path, delimiter in TASKS.items()
    }
    tasks = [
        load_task(str(_file(options.data_dir / FOLDER, path)), spec) for path, spec in specs.items()
    ]
    loaded = load_engine(EngineSpec(model=options.model, home=options.home, format="float32"))
    found = agreement(loaded.engine, tasks, limit=options.limit)
    print(json.dumps({each.label: {**_plain(each), "holds": each.holds} for each in found}))
    return 0 if all(each.holds for each in found) else 1


def _fitting(task: Task, engine: "Engine") -> Task:
    """Without the questions that leave no room for the one token the harness asks to be written."""

    def load(selection: Selection) -> list[Sample]:
        samples = task.load(replace(selection, limit=None))
        fitting = (
            sample
            for sample in samples
            if max(map(len, engine.tokenizer.encode_batch(sample.texts))) + 2 <= engine.context_len
        )
        return list(islice(fitting, selection.limit))

    return replace(task, load=load)


# ------------------------------------------------------------------------------------ the harness


def _write_tokenizer(tokenizer: "Tokenizer", context_len: int, folder: Path) -> None:
    """What its Hugging Face backend loads: our vocabulary, with <|bos|> before every text."""
    from nanochat.tokenizer.huggingface import tokenizer_to_hf_json

    folder.mkdir()
    bos, text = "<|bos|>", {"Sequence": {"id": "A", "type_id": 0}}
    before = {"SpecialToken": {"id": bos, "type_id": 0}}
    written = tokenizer_to_hf_json(tokenizer) | {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [before, text],
            "pair": [before, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos], "tokens": [bos]}},
        }
    }
    (folder / "tokenizer.json").write_text(json.dumps(written))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": "<|assistant_end|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_len,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _write_task(result: "TaskResult", folder: Path) -> None:
    """The questions as our runner asked them, and a YAML file (JSON is YAML) that says so."""
    questions = folder / f"{result.label}.jsonl"
    with questions.open("w") as file:
        for record in result.records:
            sample = record.sample
            row = {"text": sample.prompt, "choices": list(sample.choices), "gold": sample.gold}
            file.write(json.dumps(row) + "\n")
    task = {
        "task": result.label,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(questions)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc"}],
    }
    (folder / f"{result.label}.yaml").write_text(json.dumps(task))


def _harness(
    folder: Path, url: str, labels: Sequence[str], context_len: int
) -> dict[str, dict[str, Any]]:
    """label -> {"acc": its accuracy, "sums": for each question those of its options}."""
    asked, answered = folder / "asked.json", folder / "answered.json"
    settings = {
        "folder": str(folder),
        "labels": list(labels),
        "model_args": {
            "model": "ours",
            "base_url": f"{url}/v1/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": str(folder / "tokenizer"),
            "add_bos_token": True,
            "max_length": context_len,
            "max_retries": 1,
            "num_concurrent": 1,
        },
    }
    asked.write_text(json.dumps(settings))
    environment = {
        **os.environ,
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, str(PEER), str(asked), str(answered)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HARNESS_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"lm_eval failed with {done.returncode}: {done.stderr[-3000:]}")
    results: dict[str, dict[str, Any]] = json.loads(answered.read_text())
    return results


# --------------------------------------------------------------------------------------- judging


def _compared(ours: "TaskResult", theirs: Mapping[str, Any]) -> Agreement:
    if ours.error is not None:
        raise RuntimeError(f"{ours.label}: {ours.error}")
    if len(theirs["sums"]) != ours.count:
        raise RuntimeError(f"{ours.label}: {ours.count} against {len(theirs['sums'])} questions")
    golds = [int(record.sample.gold) for record in ours.records]
    sums = [list(verdict.choice_logprobs) for verdict in ours.verdicts]
    counts = [verdict.choice_tokens for verdict in ours.verdicts]
    return Agreement(
        label=ours.label,
        num_questions=ours.count,
        num_options=sum(map(len, sums)),
        largest_nats=max(
            abs(one - other)
            for mine, its in zip(sums, theirs["sums"], strict=True)
            for one, other in zip(mine, its, strict=True)
        ),
        accuracy=_share(sums, golds),
        harness_accuracy=theirs["acc"],
        normalized=_share(_per_token(sums, counts), golds),
        harness_normalized=_share(_per_token(theirs["sums"], counts), golds),
    )


def _per_token(
    sums: Sequence[Sequence[float]], counts: Sequence[Sequence[int]]
) -> list[list[float]]:
    return [
        [value / count for value, count in zip(row, each, strict=True)]
        for row, each in zip(sums, counts, strict=True)
    ]


def _share(values: Sequence[Sequence[float]], golds: Sequence[int]) -> float:
    """How many have the largest value at the right option; the first of several."""
    right = [row.index(max(row)) == gold for row, gold in zip(values, golds, strict=True)]
    return math.fsum(right) / len(right)


def _file(folder: Path, path: str) -> Path:
    for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst"):
        if (folder / f"{path}{suffix}").is_file():
            return folder / f"{path}{suffix}"
    raise SystemExit(f"{folder / path}.jsonl is not there, nor with .gz or .zst")


def _plain(found: Agreement) -> dict[str, Any]:
    return {name: getattr(found, name) for name in Agreement.__slots__ if name != "label"}


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
