"""An engine that says what it is told to, when it is told to."""

import threading
from collections.abc import Callable, Sequence

from nanochat.engine.request import NO_TOKEN, FinishReason, PromptLogprob, Request, TokenEvent

Deliver = Callable[[TokenEvent | Exception], None]
Piece = str | tuple[str, int] | Exception


class FakeEngine:
    """Answers every request with `script`: pieces of text, each with its token if that matters, or
    an exception to end with; every answer to one request alike.

    With `gate` closed, an answer waits before its second piece until the gate opens or the request
    is cancelled.
    """

    def __init__(
        self, script: Sequence[Piece] = ("Hel", "lo"), reason: FinishReason = "stop"
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
        samples = range(request.num_samples)
        for number, piece in enumerate(self.script):
            while number == 1 and not self.gate.wait(0.01):
                if request.request_id in self.cancelled:
                    for sample in samples:
                        deliver(event(request, "", NO_TOKEN, "abort", sample))
                    return
            if isinstance(piece, Exception):
                deliver(piece)
                return
            text, token = (piece, 65) if isinstance(piece, str) else piece
            for sample in samples:
                is_first = number == 0 and sample == 0
                deliver(event(request, text, token, sample=sample, is_first=is_first))
        stops = request.sampling.stop_tokens
        last = stops[0] if stops and self.reason == "stop" else 66
        for sample in samples:
            is_first = not self.script and sample == 0
            deliver(event(request, "", last, self.reason, sample, is_first=is_first))


def event(
    request: Request,
    text: str,
    token: int,
    reason: FinishReason | None = None,
    sample: int = 0,
    *,
    is_first: bool = False,
) -> TokenEvent:
    prompt: tuple[PromptLogprob, ...] = ()
    if is_first and request.prompt_logprobs is not None:
        prompt = tuple(
            PromptLogprob(each, -0.25 if place else None, likeliest(request.prompt_logprobs))
            if place
            else PromptLogprob(each, None)
            for place, each in enumerate(request.prompt_tokens)
        )
    return TokenEvent(
        request_id=request.request_id,
        sample=sample,
        token=token,
        text=text,
        logprob=-0.5,
        top_logprobs=likeliest(request.sampling.logprobs),
        prompt_logprobs=prompt,
        finish_reason=reason,
    )


def likeliest(num: int | None) -> tuple[tuple[int, float], ...]:
    """As many tokens as are asked for, with their log-probabilities."""
    return tuple((70 + place, -0.1 - place) for place in range(num or 0))
