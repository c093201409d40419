"""What went wrong -> one line for who asked.   in: an exception   out: EngineError
who calls: engine.py

Read next: engine.py.
"""

from typing import NamedTuple

from nanochat.common.device import is_out_of_memory
from nanochat.common.errors import EngineError, NanochatError, Overflowed
from nanochat.engine.answer import Answer

__all__ = ["Load", "explained", "overflowed"]


class Load(NamedTuple):
    """What an engine held when a step broke."""

    num_rows: int
    num_tokens: int
    """Of prompts and answers together."""
    kv_bytes: int
    """Reserved for keys and values."""
    device: str

    def __str__(self) -> str:
        rows = "answer" if self.num_rows == 1 else "answers"
        return (
            f"{self.num_rows} {rows} of {self.num_tokens:,} tokens on {self.device}, "
            f"{self.kv_bytes / 2**30:.2f} GiB kept for keys and values"
        )


def overflowed(answer: Answer) -> Overflowed:
    """The model's numbers are none any more."""
    num_tokens = len(answer.sequence.tokens) - 1  # the last is the one that could not be chosen
    return Overflowed(
        f"the model's numbers overflowed after {num_tokens} tokens: its weights "
        "may be damaged; try --dtype float32"
    )


def explained(error: Exception, load: Load) -> NanochatError:
    """Any exception, in words for who asked."""
    if isinstance(error, NanochatError):
        return error
    text = " ".join(str(error).split())[:200]
    if is_out_of_memory(error):
        return EngineError(
            f"out of memory: {load} ({text}): ask for fewer answers at once, or start with a "
            "smaller --kv-memory"
        )
    return EngineError(f"the engine failed ({type(error).__name__}: {text}); other requests go on")
