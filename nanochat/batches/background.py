"""A text -> its chapters, while training goes on.   in: Job   out: chapters on the disk
who calls: on_the_fly.py (here), and the process it starts (`_main`)

The process reads, tokenizes and writes, and imports no torch.  It is told through its input how far
it should be ahead, writes so far and no further, and ends when that input is closed: whatever ends
the process that trains, this one does not outlive it.  Signals of a terminal or a scheduler are not
for it.  What goes wrong is one line of JSON on its output, and is raised again where training waits
for the chapter that is missing.

It is polite (nice 10): on a machine whose processors all train it takes a tenth of one, unless
training waits for it.
Read next: chapters.py (what it writes), on_the_fly.py (who starts it).
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import nanochat
from nanochat.batches.chapter_writer import ChapterWriter, beginning, ending_of
from nanochat.batches.sources import Texts
from nanochat.batches.store_cache import kept_store
from nanochat.batches.store_writer import tokenize_corpus
from nanochat.common import errors
from nanochat.common.errors import NanochatError, TrainingError
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Background", "Job", "fault_of", "write_validation"]

NICENESS = 10
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
LOOKS_S = 1.0  # how often the process looks whether who started it is still there
END_S = 10.0  # for it to end by itself


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is to be written, for a process that knows nothing else."""

    recipe: str
    """Of the texts (sources.py)."""
    tokenizer: str
    """Its file."""
    chapters: str
    """The directory of the chapters."""
    chapter_chars: int
    validation: str
    """The store of the text to validate on."""
    validation_chars: int


class Background:
    """The process, as the one that trains sees it; a `chapters.Helper`.  For several threads."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = -1
        self._fault: NanochatError | None = None
        self._is_done = False

    @property
    def process_id(self) -> int | None:
        """Of the process, once there is one."""
        return self._process.pid if self._process is not None else None

    def want(self, number: int) -> None:
        """Write the chapters up to this one, and the text to validate on; returns at once."""
        with self._lock:
            if number <= self._wanted or self._is_done or self._fault is not None:
                return
            self._wanted = number
            process = self._process = self._process or self._started()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended: `check` says why
                process.stdin.write(f"{number}\n".encode())
                process.stdin.flush()

    def check(self) -> None:
        """Nothing while all is well.

        Raises: what went wrong in the process; TrainingError if it died.
        """
        with self._lock:
            if self._fault is None and not self._is_done and self._process is not None:
                self._hear(self._process)
            if self._fault is not None:
                raise self._fault

    def close(self) -> None:
        """End the process; what it was writing is begun anew another time."""
        with self._lock:
            if self._process is None:
                return
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process, self._wanted = None, -1

    def _started(self) -> subprocess.Popen[bytes]:
        package = str(Path(nanochat.__file__).resolve().parents[1])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        process = subprocess.Popen(
            [sys.executable, "-c", "from nanochat.batches.background import _main; _main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C goes to all processes of a terminal's session
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(self._job)).encode() + b"\n")
        return process

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        poll = select.poll()  # select cannot, where a process has a thousand files open
        poll.register(process.stdout)
        if not poll.poll(0):
            return
        line = process.stdout.readline()
        told = json.loads(line) if line.endswith(b"\n") else None
        if told is not None and told["error"] is None:
            self._is_done = True
        elif told is not None:
            self._fault = fault_of(told["error"], told["message"])
        else:
            self._fault = _death_of(process)


def _main() -> None:
    """Write what the job on the input says, as far as the numbers after it say."""
    for name in SIGNALS:
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    try:
        told = _write(Job(**json.loads(stdin.readline())), _Wanted(stdin))
    except Exception as error:
        told = {"error": type(error).__name__, "message": str(error)}
    with contextlib.suppress(BrokenPipeError):
        stdout.write(json.dumps(told).encode() + b"\n")
        stdout.flush()
    os._exit(0)  # a thread still reads the input: an orderly end would wait for it


def write_validation(texts: Texts, tokenizer: Tokenizer, directory: Path, num_chars: int) -> None:
    """The beginning of what is held out, as a store, if it is not there.

    Raises: DataError for what cannot be read.
    """
    kept_store(
        directory,
        tokenizer,
        lambda place: tokenize_corpus(
            beginning(texts.documents("validation", None), num_chars), tokenizer, place
        ),
    )


def _write(job: Job, wanted: "_Wanted") -> dict[str, str | None]:
    texts, tokenizer = Texts.from_recipe(job.recipe), Tokenizer.load(Path(job.tokenizer))
    write_validation(texts, tokenizer, Path(job.validation), job.validation_chars)
    writer = ChapterWriter(Path(job.chapters), texts.onward, tokenizer, job.chapter_chars)
    number = 0
    while writer.write(number) is not None:
        if ending_of(Path(job.chapters), number).next is None:
            break  # nobody will want what comes after it
        number += 1
        wanted.wait(number)
    return {"error": None}


class _Wanted:
    """How far the other process wants us to be; ends this one when nobody is there to want."""

    def __init__(self, stdin: IO[bytes]) -> None:
        self._number = -1
        self._changed = threading.Condition()
        self._parent = os.getppid()
        for work in (self._listen, self._look):
            threading.Thread(target=work, args=(stdin,), daemon=True).start()

    def wait(self, number: int) -> None:
        """Until this chapter is wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._number >= number)

    def _listen(self, stdin: IO[bytes]) -> None:
        for line in stdin:
            with self._changed:
                self._number = max(self._number, int(line))
                self._changed.notify()
        os._exit(0)

    def _look(self, stdin: IO[bytes]) -> None:
        # A process forked by the one that trains may hold the other end of the pipe open.
        while os.getppid() == self._parent:
            time.sleep(LOOKS_S)
        os._exit(0)


def fault_of(
    kind: str, message: str, what: str = "the text could not be tokenized"
) -> NanochatError:
    """What another process has raised, to be raised here."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, NanochatError):
        return found(message)
    return TrainingError(f"{what} ({kind}: {message})")


def _death_of(process: subprocess.Popen[bytes]) -> TrainingError:
    code = process.wait()
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return TrainingError(
        f"the process that tokenizes the text (process {process.pid}) {how}: the same command "
        "goes on from the last checkpoint; if memory was short, give less of it to training"
    )
