"""An engine that plays what a test has written, and a server on a real port around it."""

import contextlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanochat.cli.http_server import answering, reserve
from nanochat.engine.request import NO_TOKEN, FinishReason, Request, TokenEvent
from nanochat.server.app import ServedModel, create_app
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.server.fakes import FakeEngine

CONTEXT_LEN = 6000


@dataclass
class Reply:
    """One answer: its words one after the other, or an exception in their place."""

    text: str | Exception = "A reply."
    pace_s: float = 0.0
    reason: FinishReason = "stop"
    hold_at: int | None = None
    """Before this piece it waits until the test says `engine.go.set()`."""
    hold_again_at: int | None = None
    """And before this one, once more."""


@dataclass
class StageEngine(FakeEngine):
    """Plays its replies in turn, then the default one."""

    replies: deque[Reply] = field(default_factory=deque)

    def __post_init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.running: set[str] = set()

    def say(self, text: str | Exception, **more: Any) -> None:
        self.replies.append(Reply(text, **more))

    def submit(self, request: Request, deliver: Callable[..., None], /) -> None:
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        self.requests.append(request)
        self.running.add(request.request_id)
        reply = self.replies.popleft() if self.replies else Reply()
        threading.Thread(target=self._play, args=(request, deliver, reply), daemon=True).start()

    def cancel(self, request_id: str, /) -> None:
        if request_id in self.running:
            self.cancelled.add(request_id)
            self.running.discard(request_id)

    def _play(self, request: Request, deliver: Callable[..., None], reply: Reply) -> None:
        def tell(text: str, token: int, reason: FinishReason | None = None) -> None:
            deliver(
                TokenEvent(
                    request_id=request.request_id,
                    token=token,
                    text=text,
                    logprob=-0.5,
                    finish_reason=reason,
                )
            )

        if isinstance(reply.text, Exception):
            self.running.discard(request.request_id)
            deliver(reply.text)
            return
        for number, piece in enumerate(re.findall(r"\s*\S+\s?|\s+", reply.text)):
            if number == reply.hold_again_at:
                self.go.clear()
            is_held = number in (reply.hold_at, reply.hold_again_at)
            while is_held and not self.go.wait(0.01):
                if request.request_id in self.cancelled:
                    break
            if request.request_id in self.cancelled:
                tell("", NO_TOKEN, "abort")
                return
            if reply.pace_s:
                time.sleep(reply.pace_s)
            tell(piece, 65)
        ended_by_it = reply.reason == "stop" and request.sampling.stop_tokens
        tell("", request.sampling.stop_tokens[0] if ended_by_it else NO_TOKEN, reply.reason)
        self.running.discard(request.request_id)


class Saboteur:
    """ASGI middleware that breaks answers: while `cuts`, no more of them gets through."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.cuts = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_answer = scope.get("path") == "/v1/chat/completions"

        async def unless_cut(message: Message) -> None:
            if self.cuts and is_answer and message["type"] == "http.response.body":
                raise ConnectionAbortedError("the test has cut the wire")
            await send(message)

        with contextlib.suppress(ConnectionAbortedError):
            await self.app(scope, receive, unless_cut)


@dataclass
class Stage:
    """The server, what is behind it, and where it is."""

    engine: StageEngine
    saboteur: Saboteur
    tokenizer: Tokenizer
    url: str = ""

    def prompt(self, number: int = -1) -> str:
        """What the model was given to read, as text."""
        return self.tokenizer.decode(list(self.engine.requests[number].prompt_tokens))


@contextlib.contextmanager
def stage(tokenizer: Tokenizer, **model: Any) -> Iterator[Stage]:
    """A served StageEngine."""
    engine = StageEngine()
    settings: dict[str, Any] = {"name": "stage", "context_len": CONTEXT_LEN, **model}
    api = create_app(engine, ServedModel(tokenizer=tokenizer, **settings))
    app = Saboteur(api)
    with served(app) as url:
        yield Stage(engine, app, tokenizer, url)
    engine.go.set()


@contextlib.contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """The app on a free port of this machine, as `nanochat serve` would serve it; the address."""
    with reserve("127.0.0.1", 0) as place, answering(app, place):
        yield place.url
