"""POST /chat/completions, as karpathy/nanochat's chat_web.py had it.   in: LegacyRequest
out: server-sent events of its own shape   who calls: app.py

    data: {"token": "Hel", "gpu": 0}     and at the end     data: {"done": true}
so that its page and programs written for it (nanochat-rs) work.  Always streamed; its limits hold
here and nowhere else.  Errors are OpenAI's, as everywhere; one in mid-answer is a last frame.
Source: scripts/chat_web.py of karpathy/nanochat at 2f09686.
Read next: chat.py.
"""

from json.encoder import encode_basestring

from fastapi import Request
from fastapi.responses import Response

from nanochat.engine.request import Request as EngineRequest
from nanochat.server.chat import prompt_of
from nanochat.server.frames import Piece, as_json
from nanochat.server.requests import LegacyRequest, SampledRequest
from nanochat.server.responses import Usage
from nanochat.server.serving import Serving, new_id
from nanochat.server.words import Words
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["LegacyFrames", "answer_legacy"]

USUAL_MAX_TOKENS = 512  # chat_web.py's --max-tokens


class LegacyFrames:
    """Text as it comes, brackets of the calculator included, and a word at the end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._words = Words(tokenizer, is_shown=True)
        self._texts: list[str] = []

    def first(self) -> bytes:
        """Nothing."""
        return b""

    def of(self, piece: Piece) -> bytes:
        """A frame of text, if there is any."""
        text = self._words.of(piece.event)
        if not text:
            return b""
        return b'data: {"token": %s, "gpu": 0}\n\n' % encode_basestring(text).encode()

    def last(self, usage: Usage) -> bytes:
        """That it is done."""
        return b'data: {"done": true}\n\n'

    def add(self, piece: Piece) -> None:
        """One more token of all of the text."""
        self._texts.append(self._words.of(piece.event))

    def whole(self, usage: Usage) -> bytes:
        """All of the text; nobody is answered so over HTTP."""
        return as_json({"token": "".join(self._texts), "done": True})


async def answer_legacy(serving: Serving, body: LegacyRequest, request: Request) -> Response:
    """An answer to a conversation, in frames of chat_web.py's shape."""
    serving.gate.check()
    prompt = await prompt_of(serving, body.messages)
    room = serving.max_tokens(len(prompt), None, "messages")
    said = {"temperature": body.temperature, "top_k": body.top_k}
    sampled = SampledRequest.model_validate({"model": serving.model.name, **said})
    engine_request = EngineRequest(
        request_id=new_id("chat"),
        prompt_tokens=tuple(prompt),
        sampling=sampled.sampling(
            serving.model.defaults,
            # Its page always says 512, whatever the context: what does not fit is not promised.
            max_tokens=min(body.max_tokens or USUAL_MAX_TOKENS, room),
            stop_tokens=serving.stop_tokens,
            logprobs=None,
        ),
        tools=serving.model.has_tools,
    )
    return await serving.respond(
        [engine_request],
        LegacyFrames(serving.model.tokenizer),
        request,
        policy=serving.policy(sampled, request),
        is_stream=True,
    )
