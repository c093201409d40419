"""The process that tokenizes ahead: how far, what becomes of its errors, that nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.batches.background import Background, Job, write_validation
from nanochat.batches.chapter_writer import ChapterWriter, is_written
from nanochat.batches.chapters import AHEAD, Chapters, StoreToCome
from nanochat.batches.sources import Texts
from nanochat.batches.store import TokenStore
from nanochat.common.errors import DataError, TrainingError
from tests.batches.conftest import Corpus, write_corpus
from tests.patience import wait_until
from tests.processes import is_alive

pytestmark = pytest.mark.req("FR-034", "FR-035", "EC-7", "EC-9")

CHARS = 2000


@pytest.fixture
def job(corpus: Corpus, tmp_path: Path) -> Job:
    return job_of(corpus, tmp_path)


def job_of(corpus: Corpus, folder: Path) -> Job:
    corpus.tokenizer.save(folder / "tokenizer.json")
    return Job(
        recipe=corpus.texts.recipe,
        tokenizer=str(folder / "tokenizer.json"),
        chapters=str(folder / "chapters"),
        chapter_chars=CHARS,
        validation=str(folder / "validation"),
        validation_chars=1,
    )


@pytest.fixture
def helper(job: Job) -> Iterator[Background]:
    background = Background(job)
    yield background
    background.close()


def chapters_of(corpus: Corpus, job: Job, helper: Background | None) -> Chapters:
    directory = Path(job.chapters)
    return Chapters(directory, corpus.tokenizer, fingerprint="0", num_bytes=1, helper=helper)


def fingerprints(chapters: Chapters) -> list[str]:
    found: list[str] = []
    while (store := chapters.chapter(len(found))) is not None:
        found.append(store.fingerprint)
    return found


def expected(corpus: Corpus, tmp_path: Path) -> list[str]:
    """What one writer in this process writes."""
    directory = tmp_path / "expected"
    writer = ChapterWriter(directory, corpus.texts.onward, corpus.tokenizer, CHARS)
    found: list[str] = []
    while (store := writer.write(len(found))) is not None:
        found.append(store.fingerprint)
    return found


def test_it_writes_what_is_waited_for(
    corpus: Corpus, job: Job, helper: Background, tmp_path: Path
) -> None:
    assert helper.process_id is None  # nothing is started for nothing
    found = chapters_of(corpus, job, helper)
    assert fingerprints(found) == expected(corpus, tmp_path)
    validation = StoreToCome(Path(job.validation), corpus.tokenizer, helper)
    held_out = [document.text for document in corpus.texts.documents("validation", None)]
    assert validation.num_documents == 1 < len(held_out)  # the job asks for one character
    wait_until(lambda: _is_done(helper))
    helper.want(1000)  # no more than nothing
    helper.check()


def test_it_ends_with_the_text_whoever_wants_no_more(
    corpus: Corpus, job: Job, helper: Background, tmp_path: Path
) -> None:
    """Where it was ahead all the time, nobody asks for what would come after the last chapter."""
    helper.want(len(expected(corpus, tmp_path)) - 1)
    wait_until(lambda: _is_done(helper))
    assert fingerprints(chapters_of(corpus, job, helper)) == expected(corpus, tmp_path / "again")


def _is_done(helper: Background) -> bool:
    helper.check()
    return helper._is_done


def test_it_is_ahead_and_no_further(corpus: Corpus, job: Job, helper: Background) -> None:
    chapters = chapters_of(corpus, job, helper)
    assert chapters.chapter(0) is not None
    wait_until(lambda: is_written(Path(job.chapters), AHEAD))
    time.sleep(0.3)
    helper.check()
    assert not is_written(Path(job.chapters), AHEAD + 1)
    assert chapters.chapter(1) is not None
    wait_until(lambda: is_written(Path(job.chapters), AHEAD + 1))


def test_an_error_in_the_text_comes_where_the_chapter_is_missing(
    corpus: Corpus, tmp_path: Path
) -> None:
    with (corpus.folder / "2.jsonl").open("a") as file:
        file.write('{"text": \n')
    corpus = corpus._replace(texts=Texts.from_files([str(corpus.folder)]))
    helper = Background(job := job_of(corpus, tmp_path))
    chapters = chapters_of(corpus, job, helper)
    found = []
    with pytest.raises(DataError, match=r"2\.jsonl, line \d+: not JSON"):
        while (store := chapters.chapter(len(found))) is not None:
            found.append(store)
    assert len(found) == 7  # what stands before it is trained on
    with pytest.raises(DataError, match=r"2\.jsonl, line"):  # and it stays an error
        helper.check()
    helper.want(99)
    helper.close()


def test_an_error_of_ours_names_its_kind(corpus: Corpus, job: Job, tmp_path: Path) -> None:
    from dataclasses import replace

    helper = Background(replace(job, recipe='["files"]'))
    helper.want(0)
    with pytest.raises(TrainingError, match=r"could not be tokenized \(ValueError: "):
        wait_until(lambda: helper.check())
    helper.close()


def test_its_death_is_an_error_and_the_next_one_goes_on(
    corpus: Corpus, job: Job, helper: Background, tmp_path: Path
) -> None:
    chapters = chapters_of(corpus, job, helper)
    assert chapters.chapter(0) is not None and helper.process_id is not None
    wait_until(lambda: is_written(Path(job.chapters), AHEAD))
    os.kill(helper.process_id, signal.SIGKILL)
    message = rf"process {helper.process_id}\) was killed by SIGKILL"
    with pytest.raises(TrainingError, match=message):
        fingerprints(chapters)
    second = Background(job)
    assert fingerprints(chapters_of(corpus, job, second)) == expected(corpus, tmp_path)
    second.close()


@pytest.mark.parametrize("after_s", [0.15, 0.3, 0.45])
def test_killed_at_any_moment_nothing_is_lost(
    corpus: Corpus, tmp_path: Path, after_s: float
) -> None:
    write_corpus(tmp_path / "larger", num_documents=400)
    corpus = corpus._replace(texts=Texts.from_files([str(tmp_path / "larger")]))
    first = Background(job := job_of(corpus, tmp_path))
    first.want(1000)
    assert first.process_id is not None
    time.sleep(after_s)
    os.kill(first.process_id, signal.SIGKILL)
    first.close()
    second = Background(job)
    assert fingerprints(chapters_of(corpus, job, second)) == expected(corpus, tmp_path)
    second.close()
    assert not list(Path(job.chapters).glob(".*.tmp"))


def test_signals_of_the_terminal_are_not_for_it(
    corpus: Corpus, job: Job, helper: Background, tmp_path: Path
) -> None:
    chapters = chapters_of(corpus, job, helper)
    chapters.chapter(0)
    assert helper.process_id is not None
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        os.kill(helper.process_id, getattr(signal, name))
    assert fingerprints(chapters) == expected(corpus, tmp_path)


def test_closing_ends_it(job: Job) -> None:
    helper = Background(job)
    helper.close()  # nothing to end
    helper.want(1)
    assert (number := helper.process_id) is not None
    helper.close()
    assert not is_alive(number)
    helper.want(1)  # and it may begin again
    assert helper.process_id != number
    helper.close()


PARENT = """
import json, sys, time
from nanochat.batches.background import Background, Job

helper = Background(Job(**json.loads(sys.argv[1])))
helper.want(1)
print(helper.process_id, flush=True)
time.sleep(600)
"""


def test_it_does_not_outlive_who_started_it(job: Job) -> None:
    """Not even where that one had no chance to end it."""
    from dataclasses import asdict

    command = [sys.executable, "-c", PARENT, json.dumps(asdict(job))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until(lambda: is_written(Path(job.chapters), 0))
        parent.kill()
    wait_until(lambda: not is_alive(child))


def test_what_is_validated_on_is_the_beginning(corpus: Corpus, tmp_path: Path) -> None:
    held_out = [document.text for document in corpus.texts.documents("validation", None)]
    assert len(held_out) > 1
    place, num_chars = tmp_path / "validation", len(held_out[0])
    write_validation(corpus.texts, corpus.tokenizer, place, num_chars)
    store = TokenStore.open(place)
    assert (store.num_documents, store.num_characters) == (1, num_chars)
    write_validation(corpus.texts, corpus.tokenizer, place, num_chars)  # is there
