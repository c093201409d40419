"""An engine that says what it is told to, when it is told to."""

import threading
from collections.abc import Callable, Sequence

from nanochat.engine.request import NO_TOKEN, FinishReason, Request, TokenEvent

Deliver = Callable[[TokenEvent | Exception], None]


class FakeEngine:
    """Answers every request with `script`: pieces of text, or an exception to end with.

    With `gate` closed, an answer waits before its second piece until the gate opens or the request
    is cancelled.
    """

    def __init__(
        self, script: Sequence[str | Exception] = ("Hel", "lo"), reason: FinishReason = "stop"
    ) -> None:
        self.script, self.reason = tuple(script), reason
        self.requests: list[Request] = []
        self.cancelled: set[str] = set()
        self.refusal: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()

    def submit(self, request: Request, deliver: Deliver, /) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        threading.Thread(target=self._answer, args=(request, deliver)).start()

    def cancel(self, request_id: str, /) -> None:
        self.cancelled.add(request_id)

    def _answer(self, request: Request, deliver: Deliver) -> None:
        for number, piece in enumerate(self.script):
            while number == 1 and not self.gate.wait(0.01):
                if request.request_id in self.cancelled:
                    deliver(event(request, "", NO_TOKEN, "abort"))
                    return
            if isinstance(piece, Exception):
                deliver(piece)
                return
            deliver(event(request, piece, 65))
        deliver(event(request, "", 66, self.reason))


def event(
    request: Request, text: str, token: int, reason: FinishReason | None = None
) -> TokenEvent:
    return TokenEvent(
        request_id=request.request_id, token=token, text=text, logprob=-0.5, finish_reason=reason
    )
