"""An engine in a process of its own.   in: Request   out: TokenEvent   who calls: cli/serve.py

Commands go in and events come out through one pipe.  If the process dies, whoever waited for it is
told, and another one is started: its crash is an error of its requests and nothing more.  A process
that says nothing for HUNG_S is ended, which is a death as any other.

Nobody waits for it: what it is told is sent by a thread of its own, what it says is read by another
that sends nothing.  So both ways are always drained, whatever either side is busy with.

    lazy    the process starts with the first request, and again with the first one after a crash
    start() the process starts now, and after a crash by itself: at once, then after 0.5, 1, 2 ... s
            if it keeps dying; whoever asks meanwhile gets Unavailable instead of waiting for a load
Read next: worker_process.py (the other side), server/pool.py (several of them).
"""

import logging
import multiprocessing
import queue
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from nanochat.common.errors import EngineError, Unavailable
from nanochat.engine.load import EngineSpec
from nanochat.engine.request import Request, TokenEvent
from nanochat.engine.stats import EngineStats
from nanochat.engine.worker_process import WorkerModel, send, serve

__all__ = ["EngineProcess", "WorkerModel"]

Deliver = Callable[[TokenEvent | Exception], None]
HUNG_S = 20.0  # it speaks every second; no step of ours keeps Python's lock for a tenth of this
FIRST_PAUSE_S = 0.5  # before the second start in a row; then twice as long each time
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # who lived that long did not die of being started

logger = logging.getLogger(__name__)


class EngineProcess:
    """Answers like an Engine.

    Raises: what loading raises, by `start` or the first request; EngineError once it is closed.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._starting = threading.Lock()
        self._lock = threading.Lock()  # guards what follows; never held while anything is sent
        self._link: _Link | None = None
        self._model: WorkerModel | None = None
        self._readers: dict[str, tuple[Deliver, int]] = {}  # and how many answers are to come
        self._stats = EngineStats()
        self._is_kept_alive = False
        self._is_closed = threading.Event()

    @property
    def process_id(self) -> int | None:
        """Of the process, while there is one."""
        link = self._link
        return link.process.pid if link is not None and link.process.is_alive() else None

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken at once."""
        return self._link is not None and not self._is_closed.is_set()

    @property
    def num_active(self) -> int:
        """Requests that wait or run."""
        return len(self._readers)

    def stats(self) -> EngineStats:
        """What it said last; at most a quarter of a second old."""
        return self._stats

    def start(self) -> WorkerModel:
        """Load the model now; from here on a process that dies is replaced by itself.

        Raises: what loading raises.
        """
        with self._starting:
            self._is_kept_alive = True
            if self._link is None or self._model is None or self._is_closed.is_set():
                return self._load()
            return self._model

    def submit(self, request: Request, deliver: Deliver) -> None:
        """As Engine.submit, without waiting for the process: what it refuses a request for (its
        length, its schema) is delivered like any error that ends one.

        Raises: TokenizerError for a token outside the vocabulary, Unavailable while there is no
                process, EngineError for an identifier that is in use.
        """
        name = request.request_id
        if not self._is_kept_alive:
            with self._starting:
                if self._link is None:
                    self._load()
        if self._model is not None:
            request.check_vocabulary(self._model.tokenizer.vocab_size)
        with self._lock:
            if self._is_closed.is_set():
                raise EngineError("the engine is closed")
            if self._link is None:
                raise Unavailable("the engine is being loaded: ask again soon", 5)
            if name in self._readers:
                raise EngineError(f"request {name!r} is running already: give each its own id")
            self._readers[name] = (deliver, request.num_samples)
            self._link.tell("submit", request)

    def cancel(self, request_id: str) -> None:
        """As Engine.cancel."""
        with self._lock:
            if self._link is not None and request_id in self._readers:
                self._link.tell("cancel", request_id)

    def close(self) -> None:
        """End the process; who still waits is told.  Harmless twice."""
        self._is_closed.set()
        with self._lock:
            link = self._link
        if link is not None:
            link.tell("close", None)
            link.process.join(5)
            if link.process.is_alive():
                link.process.kill()
                link.process.join()

    # ------------------------------------------------------------------ life and death

    def _load(self) -> WorkerModel:
        """Start a process and wait until it answers."""
        if self._is_closed.is_set():
            raise EngineError("the engine is closed")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(self.spec, theirs), daemon=True)
        process.start()
        Finalize(self, process.kill, exitpriority=0)  # it ignores the SIGTERM that Python sends
        theirs.close()
        try:
            first: WorkerModel | Exception = ours.recv()
        except EOFError:
            process.join()
            raise EngineError(f"the engine's process {_how(process)} while loading") from None
        if isinstance(first, Exception):
            process.join()
            raise first
        link = _Link(process, ours)
        with self._lock:
            is_late = self._is_closed.is_set()
            if not is_late:
                self._link, self._model = link, first
        if is_late:
            process.kill()
            process.join()
            raise EngineError("the engine is closed")
        for work in (link.write, link.watch, lambda: self._read(link)):
            threading.Thread(target=work, name="nanochat-engine-link", daemon=True).start()
        return first

    def _keep_alive(self) -> None:
        """Start another process, again and again if it has to be."""
        pause_s = FIRST_PAUSE_S
        while not self._is_closed.is_set():
            try:
                self._load()
                return
            except Exception as error:
                logger.error("an engine cannot be started, again in %.1f s: %s", pause_s, error)
            self._is_closed.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _read(self, link: "_Link") -> None:
        began_s = time.monotonic()
        while True:
            try:
                kind, name, value = link.pipe.recv()
            except (EOFError, OSError):
                break
            link.heard_s = time.monotonic()
            if kind == "stats":
                self._stats = value
            else:
                self._deliver(name, value)
        link.process.join()
        link.end()
        how = link.how()
        self._bury(link, how)
        if self._is_kept_alive and not self._is_closed.is_set():
            logger.error("an engine's process %s: starting another", how)
            if time.monotonic() - began_s < STEADY_S:
                self._is_closed.wait(FIRST_PAUSE_S)
            self._keep_alive()

    def _deliver(self, name: str, event: TokenEvent | Exception) -> None:
        with self._lock:
            deliver, num_left = self._readers[name]
            num_left -= 1 if isinstance(event, TokenEvent) and event.finish_reason else 0
            if isinstance(event, Exception) or not num_left:
                del self._readers[name]
            else:
                self._readers[name] = (deliver, num_left)
        try:
            deliver(event)
        except Exception as error:  # its own loss alone, as with an engine in this process
            logger.warning("the reader of %s failed: %r", name, error)
            self.cancel(name)

    def _bury(self, link: "_Link", how: str) -> None:
        """Tell everybody who waits for a process that is gone."""
        error = EngineError(f"the engine's process {how}: ask again, another one starts")
        with self._lock:
            if self._link is link:
                self._link = None
                self._stats = EngineStats()
            readers, self._readers = self._readers, {}
        for name, (deliver, _) in readers.items():
            try:
                deliver(error)
            except Exception as failed:
                logger.warning("the reader of %s failed: %r", name, failed)


class _Link:
    """A process, and the pipe to it."""

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.heard_s = time.monotonic()  # when it said something last
        self._is_hung = False
        self._is_over = threading.Event()
        self._outgoing: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()

    def tell(self, command: str, value: Any) -> None:
        """Have it told, at once or once it reads; never waits."""
        self._outgoing.put((command, value))

    def end(self) -> None:
        """It is gone: its threads may go, too."""
        self._is_over.set()
        self._outgoing.put(None)

    def how(self) -> str:
        """What has become of the process."""
        if self._is_hung:
            return f"said nothing for {HUNG_S:g} s and was ended"
        return _how(self.process)

    def write(self) -> None:
        """A thread's work: send what there is to tell."""
        while (message := self._outgoing.get()) is not None:
            send(self.pipe, message)

    def watch(self) -> None:
        """A thread's work: end a process that says nothing, as it does every second."""
        while not self._is_over.wait(HUNG_S / 4):
            if time.monotonic() - self.heard_s > HUNG_S:
                self._is_hung = True
                self.process.kill()
                return


def _how(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
