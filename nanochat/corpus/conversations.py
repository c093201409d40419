"""Files -> conversations.   in: .jsonl .json .csv .parquet .arrow   out: Conversation
who calls: batches.store (through cli), evals

Every record says by its keys which shape it has (SHAPES); the shapes found are reported by file.
What training cannot use as it stands is mended or left out, and counted by reason in a ReadReport:
a leading answer is dropped, turns of one side after another are joined, a question at the end is
dropped, a conversation with an empty turn is left out.  A record of no known shape is an error.
Read next: common/messages.py (what comes out), tokenizer/chat.py (its tokens).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from nanochat.common.errors import DataError
from nanochat.common.messages import Conversation, Message, Part, Role, conversation_to_json
from nanochat.corpus.files import TABLES, Paths, ReadReport, Record, read_records
from nanochat.corpus.places import find_places, split_places
from nanochat.corpus.split import Reader, Split, SplitRule, split_files

__all__ = [
    "SHAPES",
    "calculator_parts",
    "find_conversation_files",
    "multiple_choice_prompt",
    "read_conversations",
    "shape_of",
    "split_conversations",
]

CALCULATION = re.compile("<<([^>]+)>>")
FORMATS = ("lines", "json", *TABLES)
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


class _Turn(NamedTuple):
    role: Role
    content: Content


class _Unusable(Exception):
    """A conversation that cannot be trained on; the text is the reason it is counted under."""


def find_conversation_files(paths: Paths) -> list[Path]:
    """The conversation files that paths and names (corpus/places.py) stand for, in reading order.

    Raises: DataError for a path that does not exist, an unknown suffix, a folder without any.
    """
    return list(find_places(FORMATS, paths).files)


def read_conversations(
    paths: Paths, *, report: ReadReport | None = None, home: Path | None = None
) -> Iterator[Conversation]:
    """Every conversation of the files that can be trained on: user and assistant in turns.

    The paths are checked before the first; `report` is filled meanwhile.
    Raises: DataError for paths as `find_conversation_files`; while reading, with file and line, for
            what is not JSON or has no known shape; at the end, if no conversation was left.
    """
    places = find_places(FORMATS, paths, home)
    report = report if report is not None else ReadReport()
    return _conversations(places.files, places.columns, report)


def split_conversations(
    paths: Paths, rule: SplitRule | None = None, *, home: Path | None = None
) -> Split[Conversation]:
    """The conversations to train on and those held out; without a rule, what a data set holds out.

    Raises: DataError as `read_conversations`, and when one side would be empty.
    """
    places, rule = split_places(FORMATS, paths, rule, home)
    named = [places.columns.get(path) for path in places.files]

    def read(files: Sequence[Path], report: ReadReport | None) -> Iterator[Conversation]:
        report = report if report is not None else ReadReport()
        return _conversations(files, places.columns, report)

    reader = Reader(
        name="conversations" + (f":{named}" if any(named) else ""),
        read=read,
        text_of=lambda conversation: json.dumps(conversation_to_json(conversation)),
    )
    return split_files(reader, places.files, rule)


def shape_of(value: Any) -> str | None:
    """Which of SHAPES a record has; None where it is no conversation."""
    value = _unpacked(value)
    if isinstance(value, dict):
        value = {key: field for key, field in value.items() if field is not None}
    return next((name for name, shape in SHAPES.items() if shape.fits(value)), None)


def multiple_choice_prompt(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    """A question with its choices, to be answered by a letter.

    The letter follows "=" without a space, so that it is the same token as the answer.
    Source: render_mc in tasks/common.py of karpathy/nanochat at 92d63d4.
    """
    lines = "".join(
        f"- {choice}={letter}\n" for letter, choice in zip(letters, choices, strict=True)
    )
    return (
        f"Multiple Choice question: {question}\n{lines}\n"
        "Respond only with the letter of the correct answer."
    )


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


# ---------------------------------------------------------------------------------------- reading


def _conversations(
    files: Sequence[Path], columns: Mapping[Path, str], report: ReadReport
) -> Iterator[Conversation]:
    for path in files:
        shapes = report.shapes.setdefault(str(path), type(report.counts)())
        for read in read_records(path):
            record = _conversation_record(read, columns.get(path))
            shape = _shape(record)
            shapes[shape] += 1
            for conversation in _usable_ones(record, SHAPES[shape], report):
                report.num_kept += 1
                yield conversation
    if not report.num_kept:
        reasons = "; ".join(f"{count} {reason}" for reason, count in report.counts.items())
        raise DataError(f"{files[0]}: no conversation to train on ({reasons or 'nothing in it'})")


def _usable_ones(record: Record, shape: "_Shape", report: ReadReport) -> list[Conversation]:
    usable: list[Conversation] = []
    with _counted(report):
        for turns in shape.turns(record, report):
            with _counted(report):
                usable.append(_usable(turns, report))
    return usable


@contextmanager
def _counted(report: ReadReport) -> Iterator[None]:
    try:
        yield
    except _Unusable as reason:
        report.counts[f"conversations left out: {reason}"] += 1


def _conversation_record(record: Record, column: str | None) -> Record:
    """The column that was asked for, with nested values that are kept as JSON text unpacked."""
    value = record.value
    if column is not None:
        if not isinstance(value, dict) or column not in value:
            raise DataError(
                f"{record.where}: no {column!r} in {_short(value)}, expected that column"
            )
        value = _unpacked_text(value[column])
    return Record(_unpacked(value), record.where)


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    packed = [key for key in NESTED if isinstance(value.get(key), str)]
    return {**value, **{key: _unpacked_text(value[key]) for key in packed}} if packed else value


def _unpacked_text(value: Any) -> Any:
    """What a cell holds as JSON, as tables without lists do; other text as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _shape(record: Record) -> str:
    value = record.value
    if (name := shape_of(value)) is not None:
        return name
    found = f"the keys {', '.join(value)}" if isinstance(value, dict) else _short(value)
    raise DataError(
        f"{record.where}: no conversation in {found or 'no key'}, expected one of the shapes "
        f"{'; '.join(f'{name} ({shape.keys})' for name, shape in SHAPES.items())}"
    )


def _usable(turns: Sequence[_Turn], report: ReadReport) -> Conversation:
    """The turns as training needs them: a system message at most, then user and assistant."""
    counts = report.counts
    if any(_is_empty(turn.content) for turn in turns if turn.role != "system"):
        raise _Unusable("an empty turn")
    num_system = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    if any(turn.role == "system" for turn in turns[num_system:]):
        raise _Unusable("a system message after the start")
    system = [turn for turn in turns[:num_system] if not _is_empty(turn.content)]
    said = list(turns[num_system:])
    while said and said[0].role == "assistant":
        counts["leading assistant turns dropped"] += 1
        said = said[1:]
    while said and said[-1].role == "user":
        counts["trailing user turns dropped"] += 1
        said = said[:-1]
    if not said:
        raise _Unusable("no answer to a question")
    joined = _joined([*system, *said])
    if num_fewer := len(system) + len(said) - len(joined):
        counts["turns joined to the one before"] += num_fewer
    return tuple(Message(turn.role, turn.content) for turn in joined)


def _joined(turns: Sequence[_Turn]) -> list[_Turn]:
    joined: list[_Turn] = []
    for turn in turns:
        if joined and joined[-1].role == turn.role:
            joined[-1] = _Turn(turn.role, _together(joined[-1].content, turn.content))
        else:
            joined.append(turn)
    return joined


def _together(first: Content, second: Content) -> Content:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return (*_parts(first), Part("text", "\n\n"), *_parts(second))


def _parts(content: Content) -> tuple[Part, ...]:
    return (Part("text", content),) if isinstance(content, str) else content


def _is_empty(content: Content) -> bool:
    return not any(part.text.strip() for part in _parts(content))


# ---------------------------------------------------------------------------------------- shapes


def _listed_turns(record: Record, report: ReadReport) -> Iterator[list[_Turn]]:
    yield _turns(record.value, record.where, report)


def _message_turns(record: Record, report: ReadReport) -> Iterator[list[_Turn]]:
    value = record.value
    key = next(key for key in MESSAGE_KEYS if isinstance(value.get(key), list))
    yield [*_instructions(value, report), *_turns(value[key], record.where, report)]


def _alpaca_turns(record: Record, report: ReadReport) -> Iterator[list[_Turn]]:
    value, where = record
    turns = _instructions(value, report)
    for pair in value.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError(f"{where}: history holds {_short(pair)}, expected [question, answer]")
        turns += _pair(pair[0], pair[1], where)
    question = _with_input(value["instruction"], value.get("input"), where)
    yield [*turns, *_pair(question, _first(value, ("output", "response")), where)]


def _instance_turns(record: Record, report: ReadReport) -> Iterator[list[_Turn]]:
    value, where = record
    for instance in value["instances"]:
        if not isinstance(instance, dict) or "output" not in instance:
            raise DataError(f'{where}: an instance is {_short(instance)}, expected "output" in it')
        question = _with_input(value["instruction"], instance.get("input"), where)
        yield _pair(question, instance["output"], where)


def _choice_turns(record: Record, report: ReadReport) -> Iterator[list[_Turn]]:
    value, where = record
    question = value["question"]
    if isinstance(question, dict):  # the original ARC files
        value = {**value, "choices": question.get("choices"), "question": question.get("stem")}
    letters, choices = _choices(value["choices"], where)
    question = _with_passage(value, where)
    prompt = multiple_choice_prompt(question, letters, choices)
    yield _pair(prompt, _answer_letter(_first(value, ANSWER_KEYS), letters, choices, where), where)


def _pair_turns(record: Record, report: ReadReport) -> Iterator[list[_Turn]]:
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
    yield [*turns, _Turn("user", question), _Turn("assistant", _checked(answer, where))]


class _Shape(NamedTuple):
    keys: str
    """How to recognise it, for the user."""
    fits: Callable[[Any], bool]
    turns: Callable[[Record, ReadReport], Iterator[list[_Turn]]]


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
SHAPES: Mapping[str, _Shape] = {
    "list of messages": _Shape(
        "[{role, content}, ...]",
        lambda value: isinstance(value, list),
        _listed_turns,
    ),
    "messages": _Shape(
        "messages: [{role, content}, ...]",
        lambda value: _has(value, "messages") and isinstance(value["messages"], list),
        _message_turns,
    ),
    "ShareGPT": _Shape(
        "conversations: [{from, value}, ...]",
        lambda value: any(
            _has(value, key) and isinstance(value[key], list) for key in MESSAGE_KEYS
        ),
        _message_turns,
    ),
    "multiple choice": _Shape(
        "question, choices, answer or answerKey",
        lambda value: (
            _has(value, "question")
            and (_has(value, "choices") or isinstance(value["question"], dict))
            and _has_any(value, ANSWER_KEYS)
        ),
        _choice_turns,
    ),
    "instruction with instances": _Shape(
        "instruction, instances: [{input, output}, ...]",
        lambda value: _has(value, "instruction", "instances"),
        _instance_turns,
    ),
    "Alpaca": _Shape(
        "instruction, input, output",
        lambda value: _has(value, "instruction") and _has_any(value, ("output", "response")),
        _alpaca_turns,
    ),
    "question and answer": _Shape(
        "prompt, completion or question, answer",
        lambda value: any(_has(value, *keys) for keys in PAIR_KEYS),
        _pair_turns,
    ),
}


def _turns(raw: Any, where: str, report: ReadReport) -> list[_Turn]:
    """Messages as {role, content} or {from, value}."""
    turns = []
    for index, message in enumerate(raw):
        place = f"{where}, message {index}"
        if not isinstance(message, dict) or not _has_any(message, ("role", "from")):
            raise DataError(
                f"{place}: {_short(message)}, expected {{role, content}} or {{from, value}}"
            )
        name = message["role"] if _has(message, "role") else message["from"]
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise DataError(f"{place}: role is {_short(name)}, expected one of {', '.join(ROLES)}")
        content = message.get("content", message.get("value"))
        if calls := message.get("tool_calls"):
            content = "\n".join(filter(None, [content, *(_call(call) for call in calls)]))
        if name in TOOL_ROLES or calls:
            report.counts["tool calls and results kept as text"] += 1
        turns.append(_Turn(role, _content(content, role, place)))
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
    raise DataError(f"{where}: content of a {role} message is {_short(raw)}, expected a string")


def _part(raw: Mapping[str, Any], where: str) -> Part:
    kind, text = raw.get("type"), raw.get("text")
    if isinstance(text, str):
        if kind in ("text", "input_text", "output_text"):
            return Part("text", text)
        if kind == "python" or kind == "python_output":
            return Part(kind, text)
    if isinstance(kind, str) and kind != "text":
        raise _Unusable(f"a part of type {kind}")
    raise DataError(
        f"{where}: a part is {_short(dict(raw))}, expected "
        '{"type": "text"|"python"|"python_output", "text": ...}'
    )


def _call(raw: Any) -> str:
    """An OpenAI tool call as the JSON of its function."""
    function = raw.get("function", raw) if isinstance(raw, dict) else raw
    return json.dumps(function, ensure_ascii=False)


def _instructions(value: Mapping[str, Any], report: ReadReport) -> list[_Turn]:
    """A system message, and the list of tools, which stands beside the messages."""
    turns = []
    if isinstance(system := value.get("system"), str):
        turns.append(_Turn("system", system))
    tools = value.get("tools")
    tools = tools if isinstance(tools, str) else json.dumps(tools or [], ensure_ascii=False)
    if tools.strip() not in ("", "[]"):
        report.counts["lists of tools put into the system message"] += 1
        turns.append(_Turn("system", f"You can call these tools with JSON: {tools}"))
    return turns


def _pair(question: Any, answer: Any, where: str) -> list[_Turn]:
    if not isinstance(question, str):
        raise DataError(f"{where}: the question is {_short(question)}, expected a string")
    return [_Turn("user", question), _Turn("assistant", _checked(answer, where))]


def _checked(answer: Any, where: str) -> Content:
    if isinstance(answer, str | tuple):
        return answer
    raise DataError(f"{where}: the answer is {_short(answer)}, expected a string")


def _with_input(instruction: Any, given: Any, where: str) -> str:
    for text in (instruction, given):
        if text is not None and not isinstance(text, str):
            raise DataError(f"{where}: instruction or input is {_short(text)}, expected a string")
    return f"{instruction}\n\n{given}" if given and given.strip() else str(instruction)


def _with_passage(value: Mapping[str, Any], where: str) -> str:
    question = value["question"]
    if not isinstance(question, str):
        raise DataError(f"{where}: the question is {_short(question)}, expected a string")
    passage = value.get("passage", value.get("context"))
    return f"{passage}\n\n{question}" if isinstance(passage, str) and passage else question


def _choices(raw: Any, where: str) -> tuple[list[str], list[str]]:
    """Letters and texts, from ARC's two lists, a list of {label, text}, or texts alone."""
    letters: list[Any] = []
    texts: list[Any] = []
    if isinstance(raw, dict):
        letters, texts = raw.get("label") or [], raw.get("text") or []
    elif isinstance(raw, list) and all(isinstance(choice, dict) for choice in raw):
        letters = [choice.get("label") for choice in raw]
        texts = [choice.get("text") for choice in raw]
    elif isinstance(raw, list):
        letters, texts = [chr(ord("A") + index) for index in range(len(raw))], raw
    if (
        not texts
        or len(letters) != len(texts)
        or not all(isinstance(item, str) for item in [*letters, *texts])
    ):
        raise DataError(
            f"{where}: the choices are {_short(raw)}, expected texts, with labels or not"
        )
    return letters, texts


def _answer_letter(raw: Any, letters: Sequence[str], choices: Sequence[str], where: str) -> str:
    """The letter of the answer, which is given as a letter, an index, or the text of a choice."""
    if isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < len(letters):
        return letters[raw]
    if raw in letters:
        return str(raw)
    if raw in choices:
        return letters[choices.index(raw)]
    if isinstance(raw, str) and raw.isdecimal() and int(raw) < len(letters):  # a cell of CSV
        return letters[int(raw)]
    raise DataError(f"{where}: the answer is {_short(raw)}, expected one of {', '.join(letters)}")


def _first(value: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next(value[key] for key in keys if value.get(key) is not None)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
