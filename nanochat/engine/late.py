"""What a step has chosen, read while the next one is computed.   in: Sampled   out: tokens
who calls: engine.py (which reads), steps.py and forward.py (which feed what nobody has read)

On a GPU the host would wait for every token, and the device for the host.  So a step is sent off
with the tokens where they are, in the device's memory, and read when the next is on its way.
Read next: engine.py (_step), tests/engine/test_late.py.
"""

from collections.abc import Sequence as Items
from typing import NamedTuple

from torch import Tensor

from nanochat.common.transfer import Arrival, send
from nanochat.engine.answer import Answer
from nanochat.engine.request import NO_TOKEN
from nanochat.engine.sampling import Sampled
from nanochat.engine.sequence import Sequence

__all__ = ["Choice", "Chosen", "Late"]


class Late(NamedTuple):
    """Tokens to feed that only the device knows."""

    rows: Items[int]
    """Rows that are fed one."""
    sources: Items[int]
    """Where among the chosen it is."""
    chosen_B: Tensor

    def put(self, tokens_B: Tensor) -> None:
        """Write them into the tokens that are fed, in place."""
        rows, sources = send([*self.rows, *self.sources], tokens_B.device).chunk(2)
        tokens_B.index_copy_(0, rows, self.chosen_B.index_select(0, sources))


class Choice(NamedTuple):
    """One answer's next token."""

    answer: Answer
    token: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]


class Chosen:
    """The tokens of one step, on their way to the host."""

    def __init__(self, answers: Items[Answer], sampled: Sampled) -> None:
        self._answers, self._tokens_B = answers, sampled.tokens_B
        self._rows = {answer.sequence: row for row, answer in enumerate(answers)}
        tops = (sampled.top_tokens_BC, sampled.top_logprobs_BC)
        self._arrival = Arrival(
            [sampled.tokens_B, sampled.logprobs_B, *(top for top in tops if top is not None)]
        )

    def may_be_fed(self) -> bool:
        """Whether a step can go on from all of them unread: nothing ends for certain, gives way,
        or depends on the token beyond its being fed."""
        return all(
            answer.tools is None and not answer.ends_next and answer.sequence.state == "running"
            for answer in self._answers
            if answer.sequence.state != "finished"
        )

    def late(self, fed: Items[Sequence]) -> Late | None:
        """Where the tokens of these sequences are that nobody has read; None if all are known."""
        rows = [row for row, sequence in enumerate(fed) if sequence.tokens[-1] == NO_TOKEN]
        sources = [self._rows[fed[row]] for row in rows]
        return Late(rows, sources, self._tokens_B) if rows else None

    def read(self) -> list[Choice]:
        """All of them; waits for this step, and for none that came after it."""
        tokens, logprobs, *tops = self._arrival.read()
        if not tops:
            tops = [[[]] * len(tokens)] * 2
        return [
            Choice(
                answer,
                token,
                logprob,
                tuple(zip(*top, strict=True))[: answer.request.sampling.logprobs or 0],
            )
            for answer, token, logprob, *top in zip(
                self._answers, tokens, logprobs, *tops, strict=True
            )
        ]
