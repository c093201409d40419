"""messages.py: JSON becomes messages, or an error that names the place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import DataError
from nanochat.common.messages import (
    Message,
    Part,
    conversation_from_json,
    conversation_to_json,
)

parts = st.builds(Part, st.sampled_from(["text", "python", "python_output"]), st.text())
messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant"]), st.text()
) | st.builds(Message, st.just("assistant"), st.lists(parts, min_size=1).map(tuple))


@given(conversation=st.lists(messages, min_size=1).map(tuple))
@pytest.mark.req("US-2")
def test_conversations_survive_json(conversation: tuple[Message, ...]) -> None:
    text = json.dumps(conversation_to_json(conversation))
    assert conversation_from_json(json.loads(text)) == conversation


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "here: expected a non-empty list of messages, got []"),
        ("hi", "here: expected a non-empty list of messages, got 'hi'"),
        ({"role": "user"}, "expected a non-empty list of messages"),
        (["hi"], 'here, message 0: expected {"role": ..., "content": ...}, got \'hi\''),
        ([{"role": "user"}], 'expected {"role": ..., "content": ...}'),
        ([{"role": "boss", "content": ""}], "role is 'boss', expected one of system, user"),
        ([{"role": "user", "content": 3}], "content of a user message must be a string, got 3"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "must be a string"),
        ([{"role": "assistant", "content": []}], "must be a string, got []"),
        ([{"role": "assistant", "content": ["x"]}], "expected a part"),
        ([{"role": "assistant", "content": [{"type": "image", "text": ""}]}], "expected a part"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "x" * 99}, 3]}], "got 3"),
        ([{"role": "user", "content": ["x" * 99]}], "xxx..."),
    ],
)
def test_anything_else_is_refused_by_name(raw: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        conversation_from_json(raw, "here")  # type: ignore[arg-type]
    assert str(caught.value).startswith("here")
    assert message in str(caught.value)
