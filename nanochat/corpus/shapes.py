"""Records -> turns.   in: one record, by whose keys its shape is known   out: who said what
who calls: conversations.py, survey.py

Nothing is left out or mended here; a record that has the keys of a shape and not its contents is an
error that names the file and the line.
Read next: choices.py (questions with choices), conversations.py (which turns can be trained on).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from nanochat.common.errors import DataError
from nanochat.common.messages import Part, Role
from nanochat.common.quote import quoted
from nanochat.corpus.choices import answer_letter, letters_and_texts, multiple_choice_prompt
from nanochat.corpus.files import ReadReport, Record

__all__ = [
    "SHAPES",
    "Content",
    "Shape",
    "Turn",
    "Unusable",
    "calculator_parts",
    "shape_of",
    "unpacked",
    "unpacked_text",
]

CALCULATION = re.compile("<<([^>]+)>>")
NESTED = ("messages", "conversations", "conversation", "choices", "instances", "history")

Content = str | tuple[Part, ...]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    # Tools other than our calculator: the call is what the model says, the result what it is told.
    "function_call": "assistant",
    "tool_call": "assistant",
    "function": "user",
    "function_response": "user",
    "observation": "user",
    "tool": "user",
    "tool_response": "user",
}
TOOL_ROLES = frozenset(name for name in ROLES if name.startswith(("function", "tool", "observ")))


class Turn(NamedTuple):
    """What one side said."""

    role: Role
    content: Content


class Unusable(Exception):
    """A conversation that cannot be trained on; the text is the reason it is counted under."""


class Shape(NamedTuple):
    """One way in which conversations are written down."""

    keys: str
    """How to recognise it, for the user."""
    fits: Callable[[Any], bool]
    turns: Callable[[Record, ReadReport], Iterator[list[Turn]]]


def shape_of(value: Any) -> str | None:
    """Which of SHAPES a record has; None where it is no conversation."""
    value = unpacked(value)
    if isinstance(value, dict):
        value = {key: field for key, field in value.items() if field is not None}
    return next((name for name, shape in SHAPES.items() if shape.fits(value)), None)


def calculator_parts(answer: str) -> tuple[Part, ...]:
    """An answer with GSM8K's <<expression=result>> marks as words, expressions and results.

    Source: tasks/gsm8k.py of karpathy/nanochat at 92d63d4; the last "=" divides.
    """
    parts: list[Part] = []
    for index, stretch in enumerate(CALCULATION.split(answer)):
        if index % 2:
            expression, equals, result = stretch.rpartition("=")
            parts.append(Part("python", expression if equals else stretch))
            parts.append(Part("python_output", result if equals else ""))
        else:
            parts.append(Part("text", stretch))
    return tuple(part for part in parts if part.text or part.kind != "text")


def unpacked(value: Any) -> Any:
    """A record with nested values that are kept as JSON text as what that says."""
    if not isinstance(value, dict):
        return value
    packed = [key for key in NESTED if isinstance(value.get(key), str)]
    return {**value, **{key: unpacked_text(value[key]) for key in packed}} if packed else value


def unpacked_text(value: Any) -> Any:
    """What a cell holds as JSON, as tables without lists do; other text as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


# ---------------------------------------------------------------------------- whole records


def _listed_turns(record: Record, report: ReadReport) -> Iterator[list[Turn]]:
    yield _turns(record.value, record.where, report)


def _message_turns(record: Record, report: ReadReport) -> Iterator[list[Turn]]:
    value = record.value
    key = next(key for key in MESSAGE_KEYS if isinstance(value.get(key), list))
    yield [*_instructions(value, report), *_turns(value[key], record.where, report)]


def _alpaca_turns(record: Record, report: ReadReport) -> Iterator[list[Turn]]:
    value, where = record
    turns = _instructions(value, report)
    for pair in value.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{where}: history holds {quoted(pair)}, expected [question, answer]")
        turns += _pair(pair[0], pair[1], where)
    question = _with_input(value["instruction"], value.get("input"), where)
    yield [*turns, *_pair(question, _first(value, ("output", "response")), where)]


def _instance_turns(record: Record, report: ReadReport) -> Iterator[list[Turn]]:
    value, where = record
    for instance in value["instances"]:
        if not isinstance(instance, dict) or "output" not in instance:
            raise DataError(f'{where}: an instance is {quoted(instance)}, expected "output" in it')
        question = _with_input(value["instruction"], instance.get("input"), where)
        yield _pair(question, instance["output"], where)


def _choice_turns(record: Record, report: ReadReport) -> Iterator[list[Turn]]:
    value, where = record
    question = value["question"]
    if isinstance(question, dict):  # the original ARC files
        value = {**value, "choices": question.get("choices"), "question": question.get("stem")}
    letters, choices = letters_and_texts(value["choices"], where)
    question = _with_passage(value, where)
    prompt = multiple_choice_prompt(question, letters, choices)
    yield _pair(prompt, answer_letter(_first(value, ANSWER_KEYS), letters, choices, where), where)


def _pair_turns(record: Record, report: ReadReport) -> Iterator[list[Turn]]:
    value, where = record
    ask, say = next(keys for keys in PAIR_KEYS if _has(value, *keys))
    turns = _instructions(value, report)
    if isinstance(value[ask], list) and isinstance(value[say], list):  # two lists of messages
        yield [*turns, *_turns([*value[ask], *value[say]], where, report)]
        return
    answer = value[say]
    if isinstance(answer, bool):
        answer = "Yes" if answer else "No"
    elif isinstance(answer, int | float):
        answer = str(answer)
    elif isinstance(answer, str) and "<<" in answer:
        answer = calculator_parts(answer)
    question = _with_passage({**value, "question": value[ask]}, where)
    yield [*turns, Turn("user", question), Turn("assistant", _checked(answer, where))]


def _has(value: Any, *keys: str) -> bool:
    return isinstance(value, dict) and all(value.get(key) is not None for key in keys)


def _has_any(value: Any, keys: Sequence[str]) -> bool:
    return any(_has(value, key) for key in keys)


MESSAGE_KEYS = ("messages", "conversations", "conversation")
ANSWER_KEYS = ("answerKey", "answer", "label")
PAIR_KEYS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("query", "answer"),
    ("input", "output"),
)

# In this order: the first that fits is taken.  To add one: its keys, a test, a function to turns.
SHAPES: Mapping[str, Shape] = {
    "list of messages": Shape(
        "[{role, content}, ...]",
        lambda value: isinstance(value, list),
        _listed_turns,
    ),
    "messages": Shape(
        "messages: [{role, content}, ...]",
        lambda value: _has(value, "messages") and isinstance(value["messages"], list),
        _message_turns,
    ),
    "ShareGPT": Shape(
        "conversations: [{from, value}, ...]",
        lambda value: any(
            _has(value, key) and isinstance(value[key], list) for key in MESSAGE_KEYS
        ),
        _message_turns,
    ),
    "multiple choice": Shape(
        "question, choices, answer or answerKey",
        lambda value: (
            _has(value, "question")
            and (_has(value, "choices") or isinstance(value["question"], dict))
            and _has_any(value, ANSWER_KEYS)
        ),
        _choice_turns,
    ),
    "instruction with instances": Shape(
        "instruction, instances: [{input, output}, ...]",
        lambda value: _has(value, "instruction", "instances"),
        _instance_turns,
    ),
    "Alpaca": Shape(
        "instruction, input, output",
        lambda value: _has(value, "instruction") and _has_any(value, ("output", "response")),
        _alpaca_turns,
    ),
    "question and answer": Shape(
        "prompt, completion or question, answer",
        lambda value: any(_has(value, *keys) for keys in PAIR_KEYS),
        _pair_turns,
    ),
}


# --------------------------------------------------------------------------- parts of them


def _turns(raw: Any, where: str, report: ReadReport) -> list[Turn]:
    """Messages as {role, content} or {from, value}."""
    turns = []
    for index, message in enumerate(raw):
        place = f"{where}, message {index}"
        if not isinstance(message, dict) or not _has_any(message, ("role", "from")):
            raise DataError(
                f"{place}: {quoted(message)}, expected {{role, content}} or {{from, value}}"
            )
        name = message["role"] if _has(message, "role") else message["from"]
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise DataError(f"{place}: role is {quoted(name)}, expected one of {', '.join(ROLES)}")
        content = message.get("content", message.get("value"))
        if calls := message.get("tool_calls"):
            content = "\n".join(filter(None, [content, *(_call(call) for call in calls)]))
        if name in TOOL_ROLES or calls:
            report.counts["tool calls and results kept as text"] += 1
        turns.append(Turn(role, _content(content, role, place)))
    return turns


def _content(raw: Any, role: Role, where: str) -> Content:
    if raw is None or isinstance(raw, str):
        return raw or ""
    if isinstance(raw, list) and all(isinstance(part, dict) for part in raw):
        parts = [_part(part, where) for part in raw]
        if all(part.kind == "text" for part in parts):
            return "\n".join(part.text for part in parts) if role != "assistant" else tuple(parts)
        if role == "assistant":
            return tuple(parts)
    raise DataError(f"{where}: content of a {role} message is {quoted(raw)}, expected a string")


def _part(raw: Mapping[str, Any], where: str) -> Part:
    kind, text = raw.get("type"), raw.get("text")
    if isinstance(text, str):
        if kind in ("text", "input_text", "output_text"):
            return Part("text", text)
        if kind == "python" or kind == "python_output":
            return Part(kind, text)
    if isinstance(kind, str) and kind != "text":
        raise Unusable(f"a part of type {kind}")
    raise DataError(
        f"{where}: a part is {quoted(dict(raw))}, expected "
        '{"type": "text"|"python"|"python_output", "text": ...}'
    )


def _call(raw: Any) -> str:
    """An OpenAI tool call as the JSON of its function."""
    function = raw.get("function", raw) if isinstance(raw, dict) else raw
    return json.dumps(function, ensure_ascii=False)


def _instructions(value: Mapping[str, Any], report: ReadReport) -> list[Turn]:
    """A system message, and the list of tools, which stands beside the messages."""
    turns = []
    if isinstance(system := value.get("system"), str):
        turns.append(Turn("system", system))
    tools = value.get("tools")
    tools = tools if isinstance(tools, str) else json.dumps(tools or [], ensure_ascii=False)
    if tools.strip() not in ("", "[]"):
        report.counts["lists of tools put into the system message"] += 1
        turns.append(Turn("system", f"You can call these tools with JSON: {tools}"))
    return turns


def _pair(question: Any, answer: Any, where: str) -> list[Turn]:
    if not isinstance(question, str):
        raise DataError(f"{where}: the question is {quoted(question)}, expected a string")
    return [Turn("user", question), Turn("assistant", _checked(answer, where))]


def _checked(answer: Any, where: str) -> Content:
    if isinstance(answer, str | tuple):
        return answer
    raise DataError(f"{where}: the answer is {quoted(answer)}, expected a string")


def _with_input(instruction: Any, given: Any, where: str) -> str:
    for text in (instruction, given):
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: instruction or input is {quoted(text)}, expected a string")
    return f"{instruction}\n\n{given}" if given and given.strip() else str(instruction)


def _with_passage(value: Mapping[str, Any], where: str) -> str:
    question = value["question"]
    if not isinstance(question, str):
        raise DataError(f"{where}: the question is {quoted(question)}, expected a string")
    passage = value.get("passage", value.get("context"))
    return f"{passage}\n\n{question}" if isinstance(passage, str) and passage else question


def _first(value: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next(value[key] for key in keys if value.get(key) is not None)
