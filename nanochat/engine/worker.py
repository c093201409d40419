"""An engine in a process of its own.   in: Request   out: TokenEvent   who calls: cli (serve)

Commands go in and events come out through one pipe.  If the process dies, whoever waited for it is
told, and the next request starts another: its crash is an error of its requests and nothing more.
Read next: engine.py (what runs there).
"""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from nanochat.common.errors import EngineError, NanochatError
from nanochat.engine.load import EngineSpec, load_engine
from nanochat.engine.request import Request, TokenEvent

__all__ = ["EngineProcess"]

Deliver = Callable[[TokenEvent | Exception], None]


class EngineProcess:
    """Answers like an Engine; the process starts with the first request, and again after a crash.

    Raises: what loading raises, when a request is submitted; EngineError once it is closed.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self._lock = threading.Lock()  # guards starting, sending and the next four
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._readers: dict[str, tuple[Deliver, int]] = {}  # and how many answers are to come
        self._replies: dict[str, queue.SimpleQueue[Exception | None]] = {}
        self._is_closed = False

    @property
    def process_id(self) -> int | None:
        """Of the process, while there is one."""
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    @property
    def num_active(self) -> int:
        """Requests that wait or run."""
        return len(self._readers)

    def submit(self, request: Request, deliver: Deliver) -> None:
        """As Engine.submit: what is wrong with the request is raised here."""
        name = request.request_id
        reply: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        with self._lock:
            pipe = self._started()
            if name in self._readers:
                raise EngineError(f"request {name!r} is running already: give each its own id")
            self._readers[name] = (deliver, request.num_samples)
            self._replies[name] = reply
            _send(pipe, ("submit", request))
        if error := reply.get():
            raise error

    def cancel(self, request_id: str) -> None:
        """As Engine.cancel."""
        with self._lock:
            if self._pipe is not None and request_id in self._readers:
                _send(self._pipe, ("cancel", request_id))

    def close(self) -> None:
        """End the process; who still waits is told.  Harmless twice."""
        with self._lock:
            self._is_closed = True
            process, pipe = self._process, self._pipe
            if pipe is not None:
                _send(pipe, ("close", None))
        if process is not None:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()

    def _started(self) -> Connection:
        if self._is_closed:
            raise EngineError("the engine is closed")
        if self._pipe is not None and self.process_id is not None:
            return self._pipe
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(self.spec, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            error = ours.recv()
        except EOFError:
            process.join()
            raise EngineError(f"the engine's process {_how(process)} while loading") from None
        if error is not None:
            process.join()
            raise error
        self._process, self._pipe = process, ours
        threading.Thread(
            target=self._read, args=(process, ours), name="nanochat-engine-reader", daemon=True
        ).start()
        return ours

    def _read(self, process: BaseProcess, pipe: Connection) -> None:
        while True:
            try:
                kind, name, value = pipe.recv()
            except (EOFError, OSError):
                break
            if kind == "reply":
                self._answer(name, value)
            else:
                self._deliver(name, value)
        process.join()
        self._bury(process)

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
        deliver(event)

    def _bury(self, process: BaseProcess) -> None:
        """Tell everybody who waits for a process that is gone."""
        error = EngineError(f"the engine's process {_how(process)}: ask again, another one starts")
        with self._lock:
            if self._process is process:
                self._process = self._pipe = None
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


def _serve(spec: EngineSpec, pipe: Connection) -> None:
    """The other process: until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    try:
        engine = load_engine(spec).engine
    except Exception as error:
        known = isinstance(error, NanochatError)
        pipe.send(error if known else EngineError(f"{type(error).__name__}: {error}"))
        return
    pipe.send(None)
    lock = threading.Lock()

    def tell(kind: str, name: str, value: object) -> None:
        with lock:
            _send(pipe, (kind, name, value))

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
