"""chat_sse.py: events are whole however the network cuts them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.cli.chat_sse import MAX_EVENT_LENGTH, EventParser
from nanochat.common.errors import EngineError

BODY = (
    "\ufeffdata: one\n\n: a comment\n\ndata:two\r\ndata:  lines \r\n\r\nevent: x\rid: 7\r"
    "data\rdata: caf\u00e9 \U0001f408\r\r"
    "retry: 5\n\ndata: a\u2028b\n\ndata: [DONE]\n\ndata: no empty line after it"
).encode()
EVENTS = [
    "one",
    "two\n lines ",
    "\ncaf\u00e9 \U0001f408",
    "a\u2028b",
    "[DONE]",
    "no empty line after it",
]


def events(pieces: list[bytes]) -> list[str]:
    parser = EventParser()
    found = [event for piece in pieces for event in parser.feed(piece)]
    return [*found, *parser.close()]


@pytest.mark.req("FR-050")
def test_every_kind_of_line_end_field_and_comment() -> None:
    assert events([BODY]) == EVENTS
    assert events([BODY[place : place + 1] for place in range(len(BODY))]) == EVENTS
    assert events([]) == []


@pytest.mark.req("FR-050")
@given(st.lists(st.integers(0, len(BODY))))
def test_where_the_body_is_cut_does_not_matter(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(BODY)]
    assert events([BODY[a:b] for a, b in zip(places, places[1:], strict=False)]) == EVENTS


@pytest.mark.parametrize("line", [b"x" * 1000, b"data: " + b"x" * 1000 + b"\n"])
def test_an_event_without_end_is_refused(line: bytes) -> None:
    with pytest.raises(EngineError, match="an event of more than"):
        events([line] * (MAX_EVENT_LENGTH // 1000 + 1))
