"""Stop strings.   in: text as it comes   out: text that may be told   who calls: engine.py

A stop string is never told, not even its beginning: what may become one is held back until it has
or has not.  However the text is cut into pieces, the result is the same.
Read next: request.py (SamplingParams.stop), tests/engine/test_stops.py.
"""

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Looks for stop strings in one answer; without any, text passes as it is."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._most_held = max(map(len, stops), default=1) - 1
        self._held = ""
        self.is_found = False
        """Whether one has come: the answer ends, and nothing more is told."""

    def feed(self, text: str) -> str:
        """What can be told now; if a stop string ends in it, the text before that one."""
        if not self._stops:
            return text
        if self.is_found:
            return ""
        text = self._held + text
        ends = [
            (start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0
        ]
        if ends:  # the first to end, as if the text came character by character
            self.is_found = True
            self._held = ""
            return text[: min(ends)[1]]
        told = len(text) - self._num_held(text)
        self._held = text[told:]
        return text[:told]

    def flush(self) -> str:
        """What was held back and did not become a stop string; for the end of an answer."""
        text, self._held = self._held, ""
        return text

    def _num_held(self, text: str) -> int:
        """Characters at the end with which a stop string may begin."""
        for length in range(min(self._most_held, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
