"""An engine of ours answers a chat.   in: a loaded model   out: a Backend   who calls: chat.py

The calculator is on for models that were taught conversations: what they write between
<|python_start|> and <|python_end|> is computed, and told apart from their words.
Read next: chat_talk.py (Backend), engine/tools.py, tokenizer/chat.py (turns -> tokens).
"""

import itertools
import secrets
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace

from nanochat.cli.chat_talk import Piece, Reply, Settings
from nanochat.cli.model_options import Opened
from nanochat.cli.terminal import neutralize
from nanochat.common.messages import Conversation, PartKind
from nanochat.engine.request import Request, SamplingParams
from nanochat.tokenizer.chat import parse_reply, render_prompt, render_training, stop_tokens

__all__ = ["LocalBackend"]


class LocalBackend:
    """A model in this process."""

    def __init__(self, opened: Opened) -> None:
        self.name, self.place = neutralize(opened.name), "this machine"
        self.context_len: int | None = opened.engine.context_len
        self.defaults: SamplingParams | None = SamplingParams()
        self._engine, self._has_tools = opened.engine, opened.is_chat
        self._tokenizer = opened.engine.tokenizer
        special = self._tokenizer.special
        self._kinds: dict[int, PartKind] = {
            **dict.fromkeys(self._tokenizer.special_tokens.values(), "text"),
            special("<|python_start|>"): "python",
            special("<|output_start|>"): "python_output",
        }
        # An identifier of its own for each: the one before may still be on its way out.
        self._numbers = itertools.count(1)

    def stream(
        self, conversation: Conversation, settings: Settings, reply: Reply
    ) -> Generator[Piece, None, None]:
        """The pieces of the answer; closing cancels the request.

        Raises: RequestTooLong, EngineError.
        """
        tokens: list[int] = []
        request = self._request(conversation, settings)
        reply.tokens, reply.num_prompt_tokens = tokens, len(request.prompt_tokens)
        kind: PartKind = "text"
        try:
            with closing(self._engine.stream(request)) as events:
                for event in events:
                    reply.has_begun = True
                    reply.finish_reason = event.finish_reason
                    if event.finish_reason in (None, "length"):
                        tokens.append(event.token)
                    reply.num_tokens = len(tokens)
                    yield Piece(kind, event.text)  # a special token ends the part before it
                    kind = self._kinds.get(event.token, kind)
        finally:
            reply.message = parse_reply(tokens, self._tokenizer)

    def count(self, conversation: Conversation) -> int:
        """Tokens of the conversation, with the mark after which an answer to it begins."""
        if conversation[-1].role == "user":
            return len(render_prompt(conversation, self._tokenizer))
        return len(render_training(conversation, self._tokenizer).tokens)

    def close(self) -> None:
        """Nothing: the engine's thread ends with its work."""

    def _request(self, conversation: Conversation, settings: Settings) -> Request:
        sampling = settings.sampling()
        return Request(
            request_id=f"chat-{next(self._numbers)}",
            prompt_tokens=tuple(render_prompt(conversation, self._tokenizer)),
            sampling=replace(
                sampling,
                seed=secrets.randbelow(2**63) if settings.seed is None else sampling.seed,
                stop_tokens=stop_tokens(self._tokenizer),
            ),
            tools=self._has_tools,
        )
