"""POST /v1/chat/completions.   in: ChatRequest   out: an answer to a conversation
who calls: app.py

The model knows turns of user and assistant that begin with the user.  What clients send beyond that
is fitted to it without losing a word: a system message joins the question after it, and messages of
one role in a row are one.
The calculator: a model that was taught to use it does, and words alone are told.  Who asks with
tools [{"type": "calculator"}] is told what was computed as well, between brackets as in
<|python_start|>12*7<|python_end|><|output_start|>84<|output_end|>; tool_choice "none" turns it off.
Read next: serving.py, frames.py, words.py; tokenizer/chat.py (a conversation -> tokens).
"""

import asyncio
import json
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import Response

from nanochat.common.errors import DataError
from nanochat.common.messages import Conversation, Message, Role
from nanochat.engine.request import Request as EngineRequest
from nanochat.server.errors import ApiError
from nanochat.server.frames import ChatFrames, Head
from nanochat.server.requests import ChatMessage, ChatRequest, LegacyMessage
from nanochat.server.serving import Serving, new_id
from nanochat.tokenizer.chat import render_prompt

__all__ = ["answer_chat", "conversation_of", "prompt_of", "schema_of"]

BETWEEN = "\n\n"  # messages that become one
ANY_OBJECT = '{"type": "object"}'


async def answer_chat(serving: Serving, body: ChatRequest, request: Request) -> Response:
    """An answer to a conversation: one JSON object, or server-sent events if `stream`."""
    serving.check_model(body.model)
    serving.check_bias(body)
    serving.gate.check(body.n or 1)
    prompt = await prompt_of(serving, body.messages, goes_on=bool(body.continue_final_message))
    asks_for_tools = body.tools and body.tool_choice != "none"
    may_use_tools = serving.model.has_tools and body.tool_choice != "none" and not body.has_json
    engine_request = EngineRequest(
        request_id=new_id("chatcmpl"),
        prompt_tokens=tuple(prompt),
        sampling=body.sampling(
            serving.model.defaults,
            max_tokens=serving.max_tokens(len(prompt), body.most_tokens, "messages"),
            stop_tokens=serving.stop_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ),
        num_samples=body.n or 1,
        schema=schema_of(body),
        tools=asks_for_tools or may_use_tools,
    )
    frames = ChatFrames(
        Head.new(engine_request.request_id, serving.model.name),
        serving.model.tokenizer,
        num_choices=engine_request.num_samples,
        has_logprobs=bool(body.logprobs),
        has_usage_frame=body.has_usage_frame,
        is_tool_shown=asks_for_tools,
        stop_tokens=serving.stop_tokens,
    )
    return await serving.respond(
        [engine_request],
        frames,
        request,
        policy=serving.policy(body, request),
        is_stream=bool(body.stream),
    )


async def prompt_of(
    serving: Serving, messages: Sequence[ChatMessage | LegacyMessage], *, goes_on: bool = False
) -> list[int]:
    """The tokens of a conversation; made beside the event loop, because it takes milliseconds.
    `goes_on`: the last message is what there is of the answer.

    Raises: ApiError for what cannot fit, DataError for what is no conversation.
    """
    serving.check_characters(sum(len(message.content) for message in messages), "messages")
    asked, begun = (messages[:-1], messages[-1].content) if goes_on else (messages, "")
    tokenizer = serving.model.tokenizer
    return await asyncio.to_thread(
        lambda: render_prompt(conversation_of(asked), tokenizer) + tokenizer.encode(begun)
    )


def conversation_of(messages: Sequence[ChatMessage | LegacyMessage]) -> Conversation:
    """The messages as the model knows them: turns of user and assistant.

    Raises: DataError where there is no question to answer, or the assistant begins.
    """
    if not messages:
        raise DataError("there is an answer to go on with, but no question: expected one before it")
    last, place = messages[-1], len(messages) - 1
    if last.role == "assistant":
        raise DataError(f"message {place}, the last, is from assistant: expected a question")
    if not last.content:
        raise DataError("the last message is empty: expected a question of at least one character")
    turns: list[Message] = []
    held: list[str] = []  # system messages, until the question they belong to
    for index, message in enumerate(messages):
        if message.role == "assistant":
            if not turns:
                raise DataError(
                    f"message {index} is from assistant, expected user: a conversation begins with "
                    "the user, after system messages"
                )
            _add(turns, "assistant", message.content)
        elif message.role == "user":
            _add(turns, "user", *held, message.content)
            held = []
        else:
            held.append(message.content)
    if held:
        _add(turns, "user", *held)
    return tuple(turns)


def _add(turns: list[Message], role: Role, *texts: str) -> None:
    """One more turn, or more of the last if that was of the same role."""
    before: list[str] = []
    if turns and turns[-1].role == role:
        content = turns.pop().content
        assert isinstance(content, str), "turns are made of texts here"
        before.append(content)
    turns.append(Message(role, BETWEEN.join(text for text in (*before, *texts) if text)))


def schema_of(body: ChatRequest) -> str | None:
    """The JSON schema that an answer has to keep to; None: any text.

    Raises: ApiError for one that is too deep to be written.
    """
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object" or asked.json_schema.schema_ is None:
        return ANY_OBJECT
    try:
        return json.dumps(asked.json_schema.schema_)
    except RecursionError:
        message = "Invalid value for 'response_format': the schema is nested too deeply."
        raise ApiError(400, message, "invalid_value", param="response_format") from None
