"""POST /tokenize and /detokenize.   in: texts, conversations, tokens   out: the other
who calls: app.py

The bodies are vLLM's.  A text is tokenized as /v1/completions reads it, a conversation as
/v1/chat/completions does; neither can make a special token, whatever it says.  No engine is asked,
so that a bound of their own says how many there are at once.
Read next: serving.py; tokenizer/tokenizer.py.
"""

import asyncio

from nanochat.server.chat import conversation_of
from nanochat.server.errors import ApiError
from nanochat.server.frames import token_string
from nanochat.server.requests import DetokenizeRequest, TokenizeRequest
from nanochat.server.responses import Detokenized, Tokenized
from nanochat.server.serving import Serving
from nanochat.tokenizer.chat import render_prompt

__all__ = ["detokenize", "tokenize"]


async def tokenize(serving: Serving, body: TokenizeRequest) -> Tokenized:
    """The tokens of a text or a conversation."""
    if body.model is not None:
        serving.check_model(body.model)
    with serving.tokenizing():
        return await asyncio.to_thread(_tokenized, serving, body)


async def detokenize(serving: Serving, body: DetokenizeRequest) -> Detokenized:
    """The text of tokens; special ones are told by name."""
    if body.model is not None:
        serving.check_model(body.model)
    vocab_size = serving.model.tokenizer.vocab_size
    if body.tokens and max(body.tokens) >= vocab_size:
        message = (
            f"Invalid value for 'tokens': expected token ids below {vocab_size}, the size of the "
            "vocabulary."
        )
        raise ApiError(400, message, "invalid_value", param="tokens")
    with serving.tokenizing():
        text = await asyncio.to_thread(serving.model.tokenizer.decode, body.tokens)
    return Detokenized(prompt=text)


def _tokenized(serving: Serving, body: TokenizeRequest) -> Tokenized:
    tokenizer = serving.model.tokenizer
    if body.messages is not None:
        tokens = render_prompt(conversation_of(body.messages), tokenizer)
    else:
        assert body.prompt is not None, "the request was checked"
        begin = [] if body.add_special_tokens is False else [tokenizer.bos]
        tokens = [*begin, *tokenizer.encode(body.prompt)]
    strings = [token_string(tokenizer, token) for token in tokens]
    return Tokenized(
        count=len(tokens),
        max_model_len=serving.model.context_len,
        tokens=tokens,
        token_strs=strings if body.return_token_strs else None,
    )
