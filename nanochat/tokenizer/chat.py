"""Conversation <-> tokens.   in: Conversation   out: Rendered(tokens, loss_mask), prompts, Message
who calls: batches, train, evals, engine, server, cli

    <|bos|> <|user_start|> question <|user_end|>
            <|assistant_start|> answer <|assistant_end|>  and so on in turns

An answer may hold <|python_start|> expression <|python_end|> and <|output_start|> result
<|output_end|>.  Trained (mask 1) are the assistant's words, its expressions with their brackets,
and <|assistant_end|>; the rest is only read, the tool's results included.  A system message joins
the first user message.
Source: nanochat/tokenizer.py of karpathy/nanochat at 92d63d4, ids and masks equal to its own.
Read next: tests/tokenizer/test_chat.py (the four properties), batches/packing.py (who packs these).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, assert_never

from nanochat.common.errors import DataError
from nanochat.common.messages import Conversation, Message, Part, PartKind, Role
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Rendered", "parse_reply", "render_prompt", "render_training", "stop_tokens"]


class Rendered(NamedTuple):
    """A conversation as tokens, and for each whether it is trained (1) or only read (0)."""

    tokens: list[int]
    loss_mask: list[int]


def render_training(
    conversation: Conversation, tokenizer: Tokenizer, max_tokens: int | None = None
) -> Rendered:
    """A whole conversation for training, cut after max_tokens (None: not cut).

    Raises: DataError with the index of the message that is out of turn or has the wrong content.
    """
    tokens, loss_mask = [tokenizer.bos], [0]
    for role, parts in _turns(conversation):
        for segment, is_trained in _segments(role, parts, tokenizer):
            tokens.extend(segment)
            loss_mask.extend([is_trained] * len(segment))
    assert len(tokens) == len(loss_mask), f"{len(tokens)} tokens, {len(loss_mask)} mask entries"
    return Rendered(tokens[:max_tokens], loss_mask[:max_tokens])


def render_prompt(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """The tokens after which the model writes the next answer; never cut.

    A final assistant message is left out, as the reference does: the answer is what is asked for.
    Raises: DataError where there is no user message to answer, and as `render_training` does.
    """
    if conversation and conversation[-1].role == "assistant":
        conversation = conversation[:-1]
    if not conversation or conversation[-1].role != "user":
        raise DataError(
            f"the conversation has {len(conversation)} messages before the answer and the last is "
            "not from user: expected a question to answer"
        )
    return [
        *render_training(conversation, tokenizer).tokens,
        tokenizer.special("<|assistant_start|>"),
    ]


def stop_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an answer: <|assistant_end|>, and <|bos|> for a new document."""
    return tokenizer.special("<|assistant_end|>"), tokenizer.bos


def parse_reply(tokens: Sequence[int], tokenizer: Tokenizer) -> Message:
    """The assistant's message that a model wrote after a prompt: the inverse of rendering it.

    Reads up to the first stop token.  Words alone become a string, tool use becomes parts.  A model
    may write anything: a bracket that is never closed ends with the reply, and other misplaced
    special tokens are dropped.
    Raises: TokenizerError for a number outside the vocabulary.
    """
    stops = stop_tokens(tokenizer)
    opens: dict[int, PartKind] = {
        tokenizer.special("<|python_start|>"): "python",
        tokenizer.special("<|output_start|>"): "python_output",
    }
    special_ids = set(tokenizer.special_tokens.values())
    parts: list[Part] = []
    kind: PartKind = "text"
    held: list[int] = []
    for token in tokens:
        if token in stops:
            break
        if token not in special_ids:
            held.append(token)
            continue
        _close(parts, kind, tokenizer.decode(held))
        kind, held = opens.get(token, "text"), []
    _close(parts, kind, tokenizer.decode(held))
    if all(part.kind == "text" for part in parts):
        return Message("assistant", "".join(part.text for part in parts))
    return Message("assistant", tuple(parts))


def _close(parts: list[Part], kind: PartKind, text: str) -> None:
    """Add what a stretch of tokens says; words that follow words continue them."""
    if kind != "text":
        parts.append(Part(kind, text))  # even an empty expression is something the model did
    elif parts and parts[-1].kind == "text":
        parts[-1] = Part("text", parts[-1].text + text)
    elif text:
        parts.append(Part("text", text))


def _turns(conversation: Conversation) -> list[tuple[Role, tuple[Part, ...]]]:
    """Who speaks and in which parts, checked; the system message is merged into the question."""
    if not conversation:
        raise DataError("the conversation is empty: expected at least one message")
    offset = 1 if conversation[0].role == "system" else 0
    if offset == len(conversation):
        raise DataError("message 0 is from system and nothing follows: expected a user message")
    turns: list[tuple[Role, tuple[Part, ...]]] = []
    for index, message in enumerate(conversation[offset:], start=offset):
        expected: Role = "assistant" if (index - offset) % 2 else "user"
        if message.role != expected:
            raise DataError(
                f"message {index} is from {message.role}, expected {expected}: "
                "user and assistant take turns, after at most one system message"
            )
        turns.append((message.role, _parts(message, index)))
    if offset:
        system, question = _parts(conversation[0], 0)[0].text, turns[0][1][0].text
        turns[0] = ("user", (Part("text", f"{system}\n\n{question}"),))
    return turns


def _parts(message: Message, index: int) -> tuple[Part, ...]:
    if isinstance(message.content, str):
        return (Part("text", message.content),)
    if message.role != "assistant":
        raise DataError(
            f"message {index} is from {message.role} and has parts, expected a string: "
            "only an assistant uses tools"
        )
    return message.content


def _segments(
    role: Role, parts: tuple[Part, ...], tokenizer: Tokenizer
) -> Iterator[tuple[list[int], int]]:
    """Stretches of one turn with their masks: each is trained as a whole or not at all."""
    special, encode = tokenizer.special, tokenizer.encode
    if role != "assistant":
        yield [special("<|user_start|>"), *encode(parts[0].text), special("<|user_end|>")], 0
        return
    yield [special("<|assistant_start|>")], 0
    for part in parts:
        if part.kind == "text":
            yield encode(part.text), 1
        elif part.kind == "python":
            yield [special("<|python_start|>"), *encode(part.text), special("<|python_end|>")], 1
        elif (
            part.kind == "python_output"
        ):  # written by the tool when the model runs, so never learnt
            yield [special("<|output_start|>"), *encode(part.text), special("<|output_end|>")], 0
        else:
            assert_never(part.kind)
    yield [special("<|assistant_end|>")], 1
