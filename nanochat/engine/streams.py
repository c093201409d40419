"""Events on their way to who asked.   in: events from the engine's thread   out: iterators
who calls: engine.py, worker_process.py, cli/http_server.py

Read next: engine.py (who delivers), server/stream.py (another reader).
"""

import asyncio
from collections.abc import Callable, Iterator

from nanochat.engine.request import TokenEvent

__all__ = ["SWITCH_INTERVAL_S", "TokenStream", "hand_over"]

# The engine's thread gives Python's lock up at every operator; at the usual 5 ms it waits for the
# threads that read its events longer than it computes (dev/LOG.md has what little was measured).
SWITCH_INTERVAL_S = 0.0005


class TokenStream(Iterator[TokenEvent]):
    """The events of one request, to the last finish_reason; `close` cancels what is left."""

    def __init__(
        self,
        get: Callable[[], TokenEvent | Exception],
        cancel: Callable[[], None],
        num_answers: int,
    ) -> None:
        self._get, self._cancel, self._num_left = get, cancel, num_answers

    def __next__(self) -> TokenEvent:
        if not self._num_left:
            raise StopIteration
        event = self._get()
        if isinstance(event, Exception):
            self._num_left = 0
            raise event
        self._num_left -= event.finish_reason is not None
        return event

    def close(self) -> None:
        """Cancel the request unless it has ended; harmless twice."""
        if self._num_left:
            self._num_left = 0
            self._cancel()

    def __del__(self) -> None:
        self.close()


def hand_over(
    loop: asyncio.AbstractEventLoop,
    events: "asyncio.Queue[TokenEvent | Exception]",
    event: TokenEvent | Exception,
) -> None:
    """Put an event into an event loop's queue, from another thread."""
    loop.call_soon_threadsafe(events.put_nowait, event)
