"""frames.py: what is put together by hand is the JSON that a library would write."""

import json
import sys
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.engine.request import Request, TokenEvent
from nanochat.server.completion_frames import CompletionFrames, Echo
from nanochat.server.frames import (
    DONE,
    ChatFrames,
    Head,
    Piece,
    as_json,
    as_number,
    frame_of,
    is_written,
    token_bytes,
    token_string,
)
from nanochat.server.responses import ChatCompletionChunk, TextCompletion, Usage
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.server.fakes import event

pytestmark = [pytest.mark.req("FR-082")]

REQUEST = Request(request_id="r", prompt_tokens=(1, 2))
HEAD = Head("chatcmpl-1", 'a "model" \u2603', 7)


def told(text: str, reason: Any = None, choice: int = 0) -> Piece:
    return Piece(choice, event(REQUEST, text, 65, reason))


def bodies(frames: bytes) -> list[dict[str, Any]]:
    events = frames.decode().split("\n\n")
    assert events.pop() == ""
    return [json.loads(each.removeprefix("data: ")) for each in events]


@given(st.text(min_size=1))
def test_any_text_survives(tiny_tokenizer: Tokenizer, text: str) -> None:
    chat = ChatFrames(HEAD, tiny_tokenizer, num_choices=1)
    [chunk] = bodies(chat.of(told(text)))
    assert chunk["choices"][0]["delta"] == {"content": text}
    assert chunk["model"] == HEAD.model
    ChatCompletionChunk.model_validate(chunk)
    completion = CompletionFrames(HEAD, tiny_tokenizer, echoes=[None])
    [chunk] = bodies(completion.of(told(text)))
    assert chunk["choices"][0]["text"] == text
    TextCompletion.model_validate(chunk)


def test_what_has_nothing_to_tell_is_no_frame(tiny_tokenizer: Tokenizer) -> None:
    chat = ChatFrames(HEAD, tiny_tokenizer, num_choices=2, has_usage_frame=True)
    assert [body["choices"][0]["index"] for body in bodies(chat.first())] == [0, 1]
    assert chat.of(told("")) == b""
    text, end = bodies(chat.of(told("a", "length", choice=1)))
    assert text["choices"][0]["index"] == end["choices"][0]["index"] == 1
    assert (text["choices"][0]["finish_reason"], end["choices"][0]["delta"]) == (None, {})
    assert end["usage"] is None
    assert chat.last(Usage(3, 4)).endswith(DONE)
    assert b'"total_tokens":7' in chat.last(Usage(3, 4))
    completion = CompletionFrames(HEAD, tiny_tokenizer, echoes=[Echo("hi", 0)], has_answer=False)
    assert completion.first() == b""
    [begin] = bodies(completion.of(told("a")))
    assert begin["choices"][0]["text"] == "hi"
    assert completion.of(told("b")) == b""
    [end] = bodies(completion.of(told("c", "stop")))
    assert (end["choices"][0]["text"], end["choices"][0]["finish_reason"]) == ("", "length")
    assert completion.last(Usage(3, 4)) == DONE


def test_tokens_and_numbers_as_openai_writes_them(tiny_tokenizer: Tokenizer) -> None:
    assert token_string(tiny_tokenizer, 65) == "A"
    assert token_string(tiny_tokenizer, 0xE2) == "bytes:\\xe2"
    assert token_string(tiny_tokenizer, tiny_tokenizer.bos) == "<|bos|>"
    assert token_bytes(tiny_tokenizer, 0xE2) == b"\xe2"
    assert as_number(-0.5) == -0.5
    assert as_number(float("-inf")) == -9999.0
    assert as_json({"a": "\u2603"}) == '{"a":"\u2603"}'.encode()
    assert frame_of({"a": 1}) == b'data: {"a":1}\n\n'
    assert Head.new("x", "m").created == pytest.approx(time.time(), abs=5)


def test_a_token_that_only_ends_an_answer_is_not_written() -> None:
    def of(token: int, reason: Any) -> TokenEvent:
        return event(REQUEST, "", token, reason)

    stops = frozenset({7})
    assert is_written(of(5, None), stops)
    assert is_written(of(5, "length"), stops)
    assert is_written(of(5, "stop"), stops)  # a stop string, or the end of JSON
    assert not is_written(of(7, "stop"), stops)
    assert not is_written(of(-1, "abort"), stops)


def test_a_frame_costs_less_than_half_of_a_rendered_type(tiny_tokenizer: Tokenizer) -> None:
    """Several times less, in fact, so that the bound holds on a busy machine too."""
    chat = ChatFrames(HEAD, tiny_tokenizer, num_choices=1)
    piece = told(" there")
    chunk = ChatCompletionChunk.model_validate(bodies(chat.of(piece))[0])

    def seconds(work: Any) -> float:
        best, tracer = float("inf"), sys.gettrace()
        sys.settrace(None)  # what coverage costs is not meant: Python's lines, and not Rust's
        try:
            for _ in range(7):
                begin_s = time.perf_counter()
                for _ in range(300):
                    work()
                best = min(best, time.perf_counter() - begin_s)
        finally:
            sys.settrace(tracer)
        return best

    ours = seconds(lambda: chat.of(piece))
    theirs = seconds(
        lambda: ChatCompletionChunk.model_validate(chunk.model_dump()).model_dump_json()
    )
    assert ours < theirs / 2, f"{ours:.2g} s, {theirs:.2g} s"
