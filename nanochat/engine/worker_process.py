"""The process of an engine.   in: commands from a pipe   out: events, into the same pipe
who calls: worker.py, which starts it

    main thread   reads the pipe and does nothing else, so that whoever sends never waits
    orders        submits and cancels, in the order they came; a schema takes up to 0.3 s to compile
                  and has a thread beside, so that it holds up no other request
    engine        steps the batch and sends its events
    stats         says every quarter of a second what has changed, and every second that it lives
Read next: worker.py (the other side), load.py, engine.py.
"""

import os
import queue
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from nanochat.common.errors import EngineError, NanochatError
from nanochat.engine.load import EngineSpec, load_engine
from nanochat.engine.request import Request, TokenEvent
from nanochat.engine.stats import EngineStats
from nanochat.engine.streams import SWITCH_INTERVAL_S
from nanochat.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from nanochat.engine.engine import Engine

__all__ = ["WorkerModel", "send", "serve"]

STATS_S = 0.25  # how often the process says what it is doing, if that has changed
ALIVE_S = 1.0  # and at least so often
SCHEMAS_AT_ONCE = 2  # more would only share the cores that the model needs


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerModel:
    """What the process has told of its model: a server needs no more, and no torch."""

    tokenizer: Tokenizer
    context_len: int
    is_chat: bool
    model_hash: str
    device: str


def serve(spec: EngineSpec, pipe: Connection) -> None:
    """Load an engine and obey until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # so does systemd's; it closes the pipe
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        loaded = load_engine(spec)
    except Exception as error:
        pipe.send(_known(error))
        return
    engine = loaded.engine
    model = WorkerModel(
        tokenizer=engine.tokenizer,
        context_len=engine.context_len,
        is_chat=loaded.is_chat,
        model_hash=loaded.model_hash,
        device=str(engine.forward.device),
    )
    pipe.send(model)
    orders = _Orders(engine, pipe)
    for work in (orders.obey, orders.tell_stats):
        threading.Thread(target=work, daemon=True).start()
    while True:
        try:
            command, value = pipe.recv()
        except (EOFError, OSError):
            command, value = "close", None
        if command == "close":
            os._exit(0)  # whatever still runs has nobody to run for
        orders.waiting.put((command, value))


def send(pipe: Connection, message: Any) -> None:
    """Send, unless the other side has just died: its reader says so."""
    try:
        pipe.send(message)
    except OSError:
        pass


class _Orders:
    """What the engine is told, and what it says."""

    def __init__(self, engine: "Engine", pipe: Connection) -> None:
        self.waiting: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._engine, self._pipe = engine, pipe
        self._sending = threading.Lock()
        self._compiler = ThreadPoolExecutor(SCHEMAS_AT_ONCE, "nanochat-schema")
        self._compiling: dict[str, Future[None]] = {}

    def obey(self) -> None:
        """One command after the other."""
        while True:
            command, value = self.waiting.get()
            if command == "cancel":
                self._cancel(value)
            elif value.schema is None:
                self._submit(value)
            else:
                self._compiling = {
                    n: each for n, each in self._compiling.items() if not each.done()
                }
                self._compiling[value.request_id] = self._compiler.submit(self._submit, value)

    def tell_stats(self) -> None:
        """What it is doing, and that it lives."""
        last, told_s = EngineStats(), time.monotonic()
        while True:
            stats = EngineStats(*self._engine.stats())
            if stats != last or time.monotonic() - told_s >= ALIVE_S:
                self._tell("stats", "", stats)
                last, told_s = stats, time.monotonic()
            time.sleep(STATS_S)

    def _submit(self, request: Request) -> None:
        name = request.request_id

        def deliver(event: TokenEvent | Exception) -> None:
            self._tell("event", name, event)

        try:
            self._engine.submit(request, deliver)
        except Exception as error:
            deliver(_known(error))

    def _cancel(self, name: str) -> None:
        """At once, or as soon as it has been submitted."""
        if compiling := self._compiling.get(name):
            compiling.add_done_callback(lambda _: self._engine.cancel(name))
        else:
            self._engine.cancel(name)

    def _tell(self, kind: str, name: str, value: object) -> None:
        with self._sending:
            send(self._pipe, (kind, name, value))


def _known(error: Exception) -> NanochatError:
    if isinstance(error, NanochatError):
        return error
    return EngineError(f"{type(error).__name__}: {error}")
