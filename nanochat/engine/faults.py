"""What went wrong -> one line for who asked.   in: an exception   out: EngineError
who calls: engine.py

Read next: engine.py.
"""

import torch

from nanochat.common.errors import EngineError, NanochatError
from nanochat.engine.answer import Answer

__all__ = ["explained", "overflowed"]


def overflowed(answer: Answer) -> EngineError:
    """The model's numbers are none any more."""
    return EngineError(
        f"the model's numbers overflowed after {len(answer.sequence.tokens)} tokens: its weights "
        "may be damaged; try --dtype float32"
    )


def explained(error: Exception) -> NanochatError:
    """Any exception, in words for who asked."""
    if isinstance(error, NanochatError):
        return error
    text = " ".join(str(error).split())[:200]
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return EngineError(f"out of memory ({text}): ask for fewer tokens or fewer answers at once")
    return EngineError(f"the engine failed ({type(error).__name__}: {text}); other requests go on")
