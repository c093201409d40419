"""What a body may say, as types; tests/server/test_app.py has the same through HTTP."""

import pytest
from pydantic import ValidationError

from nanochat.server.requests import ChatMessage, StreamOptions

pytestmark = pytest.mark.req("FR-080", "FR-062")


def test_content_is_text_or_parts_of_text() -> None:
    assert ChatMessage(role="user", content="hi").content == "hi"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = ChatMessage.model_validate({"role": "developer", "content": parts})
    assert "a" in message.content and "b" in message.content


@pytest.mark.parametrize("body", [{"role": "tool", "content": "x"}, {"role": "user"}])
def test_other_roles_and_no_content_are_refused(body: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        ChatMessage.model_validate(body)


def test_usage_is_a_truth_value() -> None:
    assert StreamOptions().include_usage is None
    with pytest.raises(ValidationError):
        StreamOptions.model_validate({"include_usage": "yes"})
