"""An engine in a process of its own.   in: Request   out: TokenEvent   who calls: cli/serve.py

Commands go in and events come out through one pipe.  If the process dies, whoever waited for it is
told, and another one is started: its crash is an error of its requests and nothing more.

    lazy    the process starts with the first request, and again with the first one after a crash
    start() the process starts now, and after a crash by itself: at once, then after 0.5, 1, 2 ... s
            if it keeps dying; whoever asks meanwhile gets Unavailable instead of waiting for a load
Read next: engine.py (what runs there), server/pool.py (several of them).
"""

import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

from nanochat.common.errors import EngineError, NanochatError, Unavailable
from nanochat.engine.load import EngineSpec, load_engine
from nanochat.engine.request import Request, TokenEvent
from nanochat.engine.stats import EngineStats
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["EngineProcess", "WorkerModel"]

Deliver = Callable[[TokenEvent | Exception], None]
STATS_S = 0.25  # how often the process says what it is doing, if that has changed
FIRST_PAUSE_S = 0.5  # before the second start in a row; then twice as long each time
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # who lived that long did not die of being started

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerModel:
    """What the process has told of its model: a server needs no more, and no torch."""

    tokenizer: Tokenizer
    context_len: int
    is_chat: bool
    model_hash: str


class EngineProcess:
    """Answers like an Engine.

    Raises: what loading raises, by `start` or the first request; EngineError once it is closed.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._starting = threading.Lock()
        self._lock = threading.Lock()  # guards sending and what follows
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._model: WorkerModel | None = None
        self._readers: dict[str, tuple[Deliver, int]] = {}  # and how many answers are to come
        self._replies: dict[str, queue.SimpleQueue[Exception | None]] = {}
        self._stats = EngineStats()
        self._is_kept_alive = False
        self._is_closed = threading.Event()

    @property
    def process_id(self) -> int | None:
        """Of the process, while there is one."""
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken at once."""
        return self._pipe is not None and not self._is_closed.is_set()

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
            if self._pipe is None or self._model is None or self._is_closed.is_set():
                return self._load()
            return self._model

    def submit(self, request: Request, deliver: Deliver) -> None:
        """As Engine.submit: what is wrong with the request is raised here."""
        name = request.request_id
        reply: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        if not self._is_kept_alive:
            with self._starting:
                if self._pipe is None:
                    self._load()
        with self._lock:
            if self._is_closed.is_set():
                raise EngineError("the engine is closed")
            if self._pipe is None:
                raise Unavailable("the engine is being loaded: ask again soon", 5)
            if name in self._readers:
                raise EngineError(f"request {name!r} is running already: give each its own id")
            self._readers[name] = (deliver, request.num_samples)
            self._replies[name] = reply
            _send(self._pipe, ("submit", request))
        if error := reply.get():
            raise error

    def cancel(self, request_id: str) -> None:
        """As Engine.cancel."""
        with self._lock:
            if self._pipe is not None and request_id in self._readers:
                _send(self._pipe, ("cancel", request_id))

    def close(self) -> None:
        """End the process; who still waits is told.  Harmless twice."""
        self._is_closed.set()
        with self._lock:
            process, pipe = self._process, self._pipe
            if pipe is not None:
                _send(pipe, ("close", None))
        if process is not None:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    # ------------------------------------------------------------------ life and death

    def _load(self) -> WorkerModel:
        """Start a process and wait until it answers."""
        if self._is_closed.is_set():
            raise EngineError("the engine is closed")
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.spec, theirs), daemon=True)
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
        with self._lock:
            is_late = self._is_closed.is_set()
            if not is_late:
                self._process, self._pipe, self._model = process, ours, first
        if is_late:
            process.kill()
            process.join()
            raise EngineError("the engine is closed")
        threading.Thread(
            target=self._read, args=(process, ours), name="nanochat-engine-reader", daemon=True
        ).start()
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

    def _read(self, process: BaseProcess, pipe: Connection) -> None:
        began_s = time.monotonic()
        while True:
            try:
                kind, name, value = pipe.recv()
            except (EOFError, OSError):
                break
            if kind == "reply":
                self._answer(name, value)
            elif kind == "stats":
                self._stats = value
            else:
                self._deliver(name, value)
        process.join()
        self._bury(process)
        if self._is_kept_alive and not self._is_closed.is_set():
            logger.error("an engine's process %s: starting another", _how(process))
            if time.monotonic() - began_s < STEADY_S:
                self._is_closed.wait(FIRST_PAUSE_S)
            self._keep_alive()

    def _answer(self, name: str, error: Exception | None) -> None:
        with self._lock:
            reply = self._replies.pop(name)
            if error is not None:
                del self._readers[name]
        reply.put(error)

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

    def _bury(self, process: BaseProcess) -> None:
        """Tell everybody who waits for a process that is gone."""
        error = EngineError(f"the engine's process {_how(process)}: ask again, another one starts")
        with self._lock:
            if self._process is process:
                self._process = self._pipe = None
                self._stats = EngineStats()
            readers, self._readers = self._readers, {}
            replies, self._replies = self._replies, {}
        for name, (deliver, _) in readers.items():
            if name in replies:
                replies[name].put(error)
            else:
                deliver(error)


def _how(process: BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _send(pipe: Connection, message: Any) -> None:
    try:
        pipe.send(message)
    except OSError:  # it has just died: its reader says so
        pass


# ----------------------------------------------------------------------- the other process


def _serve(spec: EngineSpec, pipe: Connection) -> None:
    """Until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so does systemd's; it closes the pipe
    try:
        loaded = load_engine(spec)
    except Exception as error:
        known = isinstance(error, NanochatError)
        pipe.send(error if known else EngineError(f"{type(error).__name__}: {error}"))
        return
    engine = loaded.engine
    model = WorkerModel(
        tokenizer=engine.tokenizer,
        context_len=engine.context_len,
        is_chat=loaded.is_chat,
        model_hash=loaded.model_hash,
    )
    pipe.send(model)
    lock = threading.Lock()

    def tell(kind: str, name: str, value: object) -> None:
        with lock:
            _send(pipe, (kind, name, value))

    def tell_stats() -> None:
        last: EngineStats | None = None
        while True:
            stats = EngineStats(*engine.stats())
            if stats != last:
                tell("stats", "", stats)
                last = stats
            time.sleep(STATS_S)

    threading.Thread(target=tell_stats, daemon=True).start()
    while True:
        try:
            command, value = pipe.recv()
        except (EOFError, OSError):
            command, value = "close", None
        if command == "close":
            os._exit(0)  # whatever still runs has nobody to run for
        if command == "cancel":
            engine.cancel(value)
            continue
        name = value.request_id
        replied = threading.Event()

        def deliver(
            event: TokenEvent | Exception, name: str = name, replied: threading.Event = replied
        ) -> None:
            replied.wait()
            tell("event", name, event)

        reply: NanochatError | None = None
        try:
            engine.submit(value, deliver)
        except NanochatError as refused:
            reply = refused
        tell("reply", name, reply)
        replied.set()
