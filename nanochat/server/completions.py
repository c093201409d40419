"""POST /v1/completions.   in: CompletionRequest   out: texts that go on   who calls: app.py

A text is read as a document: it begins with <|bos|>, as in pretraining; tokens are taken as they
are.  max_tokens 0 with echo tells how likely a prompt is: an engine always writes a token, which is
then not told.  So does max_tokens 1, with one entry more at the end: programs that score texts
through this API (lm-evaluation-harness) ask so.
Read next: completion_frames.py, serving.py.
"""

import asyncio

from fastapi import Request
from fastapi.responses import Response

from nanochat.engine.request import Request as EngineRequest
from nanochat.server.completion_frames import CompletionFrames, Echo
from nanochat.server.errors import ApiError
from nanochat.server.fields import Prompt
from nanochat.server.frames import Head
from nanochat.server.requests import CompletionRequest
from nanochat.server.serving import Serving, new_id
from nanochat.tokenizer.tokenizer import Tokenizer, replace_surrogates

__all__ = ["answer_completion", "prompt_tokens"]

USUAL_MAX_TOKENS = 16  # OpenAI's, where a request says nothing


async def answer_completion(
    serving: Serving, body: CompletionRequest, request: Request
) -> Response:
    """Texts that go on where the prompts end: one JSON object, or server-sent events."""
    serving.check_model(body.model)
    serving.check_bias(body)
    num_samples = body.n or 1
    serving.gate.check(len(body.prompt) * num_samples)
    for prompt in body.prompt:
        _check(serving, prompt)
    tokenizer = serving.model.tokenizer
    prompts = await asyncio.to_thread(
        lambda: [prompt_tokens(prompt, tokenizer) for prompt in body.prompt]
    )
    id = new_id("cmpl")
    requests = [
        _request(serving, body, tokens, f"{id}-{place}" if place else id)
        for place, tokens in enumerate(prompts)
    ]
    frames = CompletionFrames(
        Head.new(id, serving.model.name),
        tokenizer,
        echoes=[_echo(prompt, tokenizer) if body.echo else None for prompt in body.prompt],
        num_samples=num_samples,
        has_logprobs=body.logprobs is not None,
        has_answer=body.max_tokens != 0,
        has_usage_frame=body.has_usage_frame,
    )
    return await serving.respond(
        requests,
        frames,
        request,
        policy=serving.policy(body, request),
        is_stream=bool(body.stream),
        param="prompt",
    )


def prompt_tokens(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """The tokens of a prompt: a text's after <|bos|>, and tokens as they are."""
    return [tokenizer.bos, *tokenizer.encode(prompt)] if isinstance(prompt, str) else [*prompt]


def _request(
    serving: Serving, body: CompletionRequest, tokens: list[int], id: str
) -> EngineRequest:
    asked = body.max_tokens
    if asked is None:  # OpenAI's default, as far as there is room
        asked = max(1, min(USUAL_MAX_TOKENS, serving.model.context_len - len(tokens)))
    return EngineRequest(
        request_id=id,
        prompt_tokens=tuple(tokens),
        sampling=body.sampling(
            serving.model.defaults,
            max_tokens=serving.max_tokens(len(tokens), asked, "prompt"),
            stop_tokens=serving.stop_tokens,
            logprobs=body.logprobs,
        ),
        num_samples=body.n or 1,
        prompt_logprobs=_prompt_logprobs(body, is_full=len(tokens) >= serving.model.context_len),
    )


def _prompt_logprobs(body: CompletionRequest, *, is_full: bool) -> int | None:
    """What an engine is to say of the prompt; one that fills the context it can only score."""
    if is_full and body.max_tokens == 0:
        return body.logprobs or 0
    return body.logprobs if body.echo else None


def _check(serving: Serving, prompt: Prompt) -> None:
    vocab_size = serving.model.tokenizer.vocab_size
    if isinstance(prompt, str):
        serving.check_characters(len(prompt), "prompt")
    elif max(prompt) >= vocab_size:
        message = (
            f"Invalid value for 'prompt': expected token ids below {vocab_size}, the size of the "
            "vocabulary."
        )
        raise ApiError(400, message, "invalid_value", param="prompt")


def _echo(prompt: Prompt, tokenizer: Tokenizer) -> Echo:
    if isinstance(prompt, str):
        return Echo(replace_surrogates(prompt), num_added=1)
    return Echo(tokenizer.decode(prompt), num_added=0)
