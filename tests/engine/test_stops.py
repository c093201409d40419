"""stops.py: a stop string is never told, in whatever pieces it comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.engine import Engine
from nanochat.engine.request import Request, SamplingParams
from nanochat.engine.stops import StopStrings

STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def twin(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text up to the first stop string to end, looked for at every place."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(st.lists(st.text("abc\n", max_size=4), max_size=12), STOPS)
@pytest.mark.req("FR-012", "FR-013")
def test_pieces_change_nothing(pieces: list[str], stops: list[str]) -> None:
    found = StopStrings(stops)
    told = ""
    for piece in pieces:
        told += found.feed(piece)
        assert not any(stop in told for stop in stops)
        rest = twin("".join(pieces), stops)[0][len(told) :]
        assert len(rest) >= 0 and twin("".join(pieces), stops)[0].startswith(told)
    is_found = found.is_found
    assert (told + found.flush(), is_found) == twin("".join(pieces), stops)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    stops = StopStrings(("\nUser:", "END"))
    assert [stops.feed(text) for text in ("Hello", "\nUs", "ual", " E", "N", "T")] == [
        "Hello",
        "",
        "\nUsual",
        " ",
        "",
        "ENT",
    ]
    assert stops.feed(" and\nUser: more") == " and"
    assert stops.is_found
    assert stops.feed("more") == stops.flush() == ""


def test_without_stops_text_passes() -> None:
    stops = StopStrings(())
    assert (stops.feed("a"), stops.flush(), stops.is_found) == ("a", "", False)


def test_nothing_is_held_back_across_a_special_token(engine: Engine) -> None:
    """What was held back is told before a bracket of the calculator, not inside it."""
    tokenizer = engine.tokenizer
    sampling = SamplingParams(max_tokens=9, stop=("ab",))
    request = Request(request_id="r", prompt_tokens=(1,), sampling=sampling, tools=True)
    answer = engine._admission.answer(request, lambda event: None)
    start = tokenizer.special("<|python_start|>")
    tokens = [ord("x"), ord("a"), start, ord("b"), ord("a"), ord("b")]
    events = [answer.take(token, -1.0) for token in tokens]
    assert [event.text for event in events] == ["x", "", "a", "b", "", ""]
    assert events[-1].finish_reason == "stop"
