"""One answer while it is written.   in: tokens as they are chosen   out: events for who asked
who calls: engine.py

Keeps what the scheduler need not know: how the next token is chosen, what has been told, when it is
enough.
Read next: engine.py; sampling.py (Chooser), sequence.py (what the scheduler knows of it).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from nanochat.engine.constraint import Constraint
from nanochat.engine.request import NO_TOKEN, FinishReason, Request, TokenEvent
from nanochat.engine.sampling import Chooser
from nanochat.engine.sequence import Sequence
from nanochat.engine.stops import StopStrings
from nanochat.engine.tools import ToolUse
from nanochat.tokenizer.stream import StreamDecoder

__all__ = ["Answer", "Deliver"]

Deliver = Callable[[TokenEvent | Exception], None]
"""Takes the events of a request, or the exception that ends it; the engine's thread calls it."""

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Answer:
    """What one sequence is for."""

    request: Request
    sequence: Sequence
    deliver: Deliver
    chooser: Chooser
    decoder: StreamDecoder
    special_tokens: frozenset[int]
    num_prompt: int
    tools: ToolUse | None = None
    constraint: Constraint | None = None
    num_chosen: int = 0
    """Tokens of its own: those that a tool put there do not count."""
    forced: list[int] = field(default_factory=list)
    """Tokens that come next whatever the model would say."""
    stops: StopStrings = field(init=False)

    def __post_init__(self) -> None:
        self.stops = StopStrings(self.request.sampling.stop)

    def take(
        self,
        token: int,
        logprob: float,
        top_logprobs: tuple[tuple[int, float], ...] = (),
        *,
        is_forced: bool = False,
    ) -> TokenEvent:
        """Append a token, or say which one was promised; what there is to tell of it.

        Raises: EngineError if a constraint cannot be followed further.
        """
        if self.sequence.tokens[-1] == NO_TOKEN:
            self.sequence.tokens[-1] = token
        else:
            self.sequence.tokens.append(token)
        self.chooser.add(token)
        self.num_chosen += not is_forced
        if self.tools is not None:
            self.forced += self.tools.add(token)
        if self.constraint is not None:
            self.constraint.add(token)
        reason = self._reason(token)
        text = self.stops.feed(self._text(token, is_last=reason is not None))
        if self.stops.is_found:
            reason = "stop"
        elif reason is not None or token in self.special_tokens:  # no stop string goes across one
            text += self.stops.flush()
        return TokenEvent(
            request_id=self.request.request_id,
            sample=self.sequence.sample,
            token=token,
            text=text,
            logprob=logprob,
            top_logprobs=top_logprobs,
            is_forced=is_forced,
            finish_reason=reason,
        )

    def promise(self) -> None:
        """Its next token has been chosen, and is not known here yet."""
        self.sequence.tokens.append(NO_TOKEN)

    @property
    def ends_next(self) -> bool:
        """Whether the token that is promised is the last, whichever it is."""
        is_full = len(self.sequence.tokens) >= self.sequence.limit
        return is_full or self.num_chosen + 1 >= self.request.sampling.max_tokens

    def ended(self, reason: FinishReason) -> TokenEvent:
        """The event of an end that no token brought."""
        return TokenEvent(
            request_id=self.request.request_id,
            sample=self.sequence.sample,
            token=NO_TOKEN,
            text="",
            logprob=0.0,
            finish_reason=reason,
        )

    def send(self, event: TokenEvent | Exception) -> bool:
        """Deliver; False if the reader failed, which is its own loss alone."""
        try:
            self.deliver(event)
        except Exception as error:
            logger.warning("the reader of %s failed: %r", self.request.request_id, error)
            return False
        return True

    def _reason(self, token: int) -> FinishReason | None:
        sampling = self.request.sampling
        is_complete = self.constraint is not None and self.constraint.is_complete
        if is_complete or token in sampling.stop_tokens:
            return "stop"
        is_full = len(self.sequence.tokens) >= self.sequence.limit
        return "length" if is_full or self.num_chosen >= sampling.max_tokens else None

    def _text(self, token: int, *, is_last: bool) -> str:
        """Whole characters; special tokens have none, and end what was half a character."""
        is_special = token in self.special_tokens
        text = "" if is_special else self.decoder.feed(token)
        return text + self.decoder.flush() if is_special or is_last else text
