"""Conversations: every shape people have them in, and nothing changed in silence."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import DataError
from nanochat.common.messages import Conversation, Message, Part, conversation_to_json
from nanochat.corpus.choices import multiple_choice_prompt
from nanochat.corpus.conversations import (
    find_conversation_files,
    read_conversations,
    split_conversations,
)
from nanochat.corpus.files import ReadReport
from nanochat.corpus.shapes import SHAPES, calculator_parts
from nanochat.corpus.split import SplitRule
from nanochat.tokenizer.chat import render_training
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.corpus.test_files import parquet, written

pytestmark = pytest.mark.req("FR-032")

HELLO = (Message("user", "Hi"), Message("assistant", "Hello"))
CHOICES = (
    "Multiple Choice question: 1+1?\n- one=A\n- two=B\n\n"
    "Respond only with the letter of the correct answer."
)
CHOSEN = (Message("user", CHOICES), Message("assistant", "B"))


def read(tmp_path: Path, *records: Any) -> tuple[list[Conversation], ReadReport]:
    path = written(tmp_path / "chats.jsonl", "\n".join(map(json.dumps, records)))
    report = ReadReport()
    return list(read_conversations(path, report=report)), report


def turns(*texts: str, first: str = "user") -> list[dict[str, str]]:
    """Messages that take turns."""
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


def shared(*names: str) -> list[dict[str, str]]:
    return [{"from": name, "value": f"{name} says"} for name in names]


@pytest.mark.parametrize(
    ("record", "shape", "expected"),
    [
        (turns("Hi", "Hello"), "list of messages", HELLO),
        ({"messages": turns("Hi", "Hello"), "topic": "x"}, "messages", HELLO),
        ({"prompt": "x", "messages": turns("Hi", "Hello")}, "messages", HELLO),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            "ShareGPT",
            HELLO,
        ),
        ({"conversation": turns("Hi", "Hello")}, "ShareGPT", HELLO),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, "Alpaca", HELLO),
        ({"instruction": "Hi", "response": "Hello"}, "Alpaca", HELLO),
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3"},
            "Alpaca",
            (Message("user", "Add.\n\n1, 2"), Message("assistant", "3")),
        ),
        (
            {"instruction": "Hi", "instances": [{"input": "", "output": "Hello"}]},
            "instruction with instances",
            HELLO,
        ),
        ({"prompt": "Hi", "completion": "Hello"}, "question and answer", HELLO),
        ({"input": "Hi", "output": "Hello"}, "question and answer", HELLO),
        (
            {"prompt": turns("Hi"), "completion": turns("Hello", first="assistant")},
            "question and answer",
            HELLO,
        ),
        (
            {"question": "is it?", "answer": True},
            "question and answer",
            (Message("user", "is it?"), Message("assistant", "Yes")),
        ),
        (
            {"question": "is it?", "passage": "It is not.", "answer": False},
            "question and answer",
            (Message("user", "It is not.\n\nis it?"), Message("assistant", "No")),
        ),
        (
            {"question": "1+1?", "answer": 2},
            "question and answer",
            (Message("user", "1+1?"), Message("assistant", "2")),
        ),
        (
            {"question": "1+1?", "answer": "It is <<1+1=2>>2\n#### 2"},
            "question and answer",
            (
                Message("user", "1+1?"),
                Message("assistant", calculator_parts("It is <<1+1=2>>2\n#### 2")),
            ),
        ),
        (
            {
                "question": "1+1?",
                "choices": {"text": ["one", "two"], "label": ["A", "B"]},
                "answerKey": "B",
            },
            "multiple choice",
            CHOSEN,
        ),
        ({"question": "1+1?", "choices": ["one", "two"], "answer": 1}, "multiple choice", CHOSEN),
        (
            {"question": "1+1?", "choices": ["one", "two"], "answer": "two"},
            "multiple choice",
            CHOSEN,
        ),
        (
            {
                "question": {
                    "stem": "1+1?",
                    "choices": [{"text": "one", "label": "A"}, {"text": "two", "label": "B"}],
                },
                "answerKey": "B",
            },
            "multiple choice",
            CHOSEN,
        ),
    ],
)
def test_shapes(tmp_path: Path, record: Any, shape: str, expected: Conversation) -> None:
    conversations, report = read(tmp_path, record)
    assert conversations == [expected]
    assert report.shapes == {str(tmp_path / "chats.jsonl"): {shape: 1}}
    assert report.num_kept == 1


def test_files_of_every_format(tmp_path: Path) -> None:
    record = {"messages": turns("Hi", "Hello")}
    written(tmp_path / "a.json.gz", json.dumps([record] * 2, indent=2))
    written(tmp_path / "b.jsonl.zst", json.dumps(record))
    parquet(tmp_path / "c.parquet", {"messages": [record["messages"]] * 3, "source": ["x"] * 3})
    written(tmp_path / "notes.txt", "not a conversation")
    assert len(find_conversation_files(tmp_path)) == 3
    assert list(read_conversations(tmp_path)) == [HELLO] * 6


def test_columns_that_are_null_are_not_there(tmp_path: Path) -> None:
    # Parquet has every column in every row.
    record = {"messages": None, "instruction": "Hi", "input": None, "output": "Hello"}
    assert read(tmp_path, record)[0] == [HELLO]


def test_several_instances_and_a_history(tmp_path: Path) -> None:
    instances = [{"input": "1", "output": "one"}, {"output": ""}, {"input": "3", "output": "three"}]
    conversations, report = read(tmp_path, {"instruction": "Say", "instances": instances})
    assert [chat[0].content for chat in conversations] == ["Say\n\n1", "Say\n\n3"]
    assert report.counts["conversations left out: an empty turn"] == 1
    record = {
        "system": "Be brief.",
        "history": [["a", "b"], ["c", "d"]],
        "instruction": "e",
        "output": "f",
    }
    chat = read(tmp_path, record)[0][0]
    assert [message.content for message in chat] == ["Be brief.", *"abcdef"]


# ---------------------------------------------------------------------------------- what is mended


def test_a_leading_answer_and_a_trailing_question_are_dropped(tmp_path: Path) -> None:
    record = turns("Welcome!", "Hi", "Hello", "Bye", first="assistant")
    conversations, report = read(tmp_path, record)
    assert conversations == [HELLO]
    assert report.counts["leading assistant turns dropped"] == 1
    assert report.counts["trailing user turns dropped"] == 1
    assert "1 leading assistant turns dropped" in report.lines()


def test_turns_of_one_side_are_joined(tmp_path: Path) -> None:
    parts = [{"type": "python", "text": "1+1"}, {"type": "python_output", "text": "2"}]
    record = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "Well:"},
        {"role": "assistant", "content": parts},
    ]
    conversations, report = read(tmp_path, record)
    assert conversations == [
        (
            Message("system", "Be kind.\n\nBe brief."),
            Message("user", "Hi.\n\n1+1?"),
            Message(
                "assistant",
                (
                    Part("text", "Well:"),
                    Part("text", "\n\n"),
                    Part("python", "1+1"),
                    Part("python_output", "2"),
                ),
            ),
        )
    ]
    assert report.counts["turns joined to the one before"] == 3


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (turns("Hi", " \n"), "an empty turn"),
        (turns("", "Hello"), "an empty turn"),
        (
            [*turns("Hi", "Hello"), {"role": "system", "content": "x"}],
            "a system message after the start",
        ),
        (turns("Hi"), "no answer to a question"),
        (turns("Hello", first="assistant"), "no answer to a question"),
        ([], "no answer to a question"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "a part of type image_url",
        ),
    ],
)
@pytest.mark.req("FR-032", "SC-007")
def test_what_cannot_be_trained_on_is_left_out_and_counted(
    tmp_path: Path, record: Any, reason: str
) -> None:
    conversations, report = read(tmp_path, record, turns("Hi", "Hello"))
    assert conversations == [HELLO]
    assert report.counts[f"conversations left out: {reason}"] == 1


def test_empty_system_messages_are_no_message(tmp_path: Path) -> None:
    record = [{"role": "system", "content": ""}, *turns("Hi", "Hello")]
    assert read(tmp_path, record)[0] == [HELLO]


def test_content_in_parts(tmp_path: Path) -> None:
    text = [{"type": "input_text", "text": "Hi"}, {"type": "text", "text": "there"}]
    answer = [{"type": "text", "text": "2 is"}, {"type": "python", "text": "1+1"}]
    record = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    assert read(tmp_path, record)[0] == [
        (
            Message("user", "Hi\nthere"),
            Message("assistant", (Part("text", "2 is"), Part("python", "1+1"))),
        )
    ]


# ---------------------------------------------------------------------------------------- tools


def test_tool_calls_are_kept_as_text(tmp_path: Path) -> None:
    record = {
        "conversations": shared("human", "function_call", "observation", "gpt"),
        "tools": '[{"name": "search"}]',
    }
    (chat,), report = read(tmp_path, record)
    assert [message.role for message in chat] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert chat[0].content == 'You can call these tools with JSON: [{"name": "search"}]'
    assert chat[2].content == "function_call says"
    assert report.counts == {
        "tool calls and results kept as text": 2,
        "lists of tools put into the system message": 1,
    }
    for tools in ("[]", [], None, " "):
        assert read(tmp_path, {**record, "tools": tools})[0][0][0].role == "user"


def test_openai_tool_calls(tmp_path: Path) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    record = {
        "tools": [{"name": "add"}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "Two."},
        ],
    }
    (chat,), _ = read(tmp_path, record)
    assert chat[0].content == 'You can call these tools with JSON: [{"name": "add"}]\n\nBe brief.'
    assert [message.content for message in chat[1:]] == [
        "1+1?",
        '{"name": "add", "arguments": "{}"}',
        "2",
        "Two.",
    ]


# ---------------------------------------------------------------------------------------- bad input


@pytest.mark.req("FR-032", "EC-9")
@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "prose"}, "no conversation in the keys text, expected one of the shapes list of"),
        ({}, "no conversation in the keys"),
        ("words", "no conversation in 'words'"),
        (["words"], r"message 0: 'words', expected \{role, content\} or \{from, value\}"),
        (
            [{"role": "wizard", "content": "x"}],
            "message 0: role is 'wizard', expected one of system",
        ),
        ([{"role": ["user"], "content": "x"}], "message 0: role is \\['user'\\]"),
        (
            [{"role": "user", "content": 3}],
            "message 0: content of a user message is 3, expected a string",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0: a part is"),
        (
            [{"role": "user", "content": [{"type": "python", "text": "1"}]}],
            "content of a user message is",
        ),
        (
            {"question": "q", "choices": ["a", "b"], "answer": 2},
            "the answer is 2, expected one of A, B",
        ),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "the answer is True"),
        ({"question": "q", "choices": ["a", 2], "answer": 0}, "the choices are"),
        (
            {"question": "q", "choices": {"text": ["a"], "label": []}, "answer": 0},
            "the choices are",
        ),
        ({"question": "q", "choices": "ab", "answer": 0}, "the choices are 'ab'"),
        ({"question": 1, "choices": ["a"], "answer": 0}, "the question is 1, expected a string"),
        ({"question": "q", "answer": [1]}, r"the answer is \[1\], expected a string"),
        ({"instruction": "i", "input": 3, "output": "o"}, "instruction or input is 3"),
        ({"instruction": "i", "output": 3}, "the answer is 3, expected a string"),
        ({"instruction": "i", "instances": [3]}, "an instance is 3"),
        ({"instruction": "i", "output": "o", "history": [["a"]]}, "history holds .*, expected"),
        ({"instruction": "i", "output": "o", "history": [[1, "a"]]}, "the question is 1"),
    ],
)
def test_records_that_are_wrong_are_named(tmp_path: Path, record: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"chats.jsonl, line 2.*{message}"):
        read(tmp_path, turns("Hi", "Hello"), record)


@pytest.mark.req("FR-032", "EC-3")
def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no conversation to train on .nothing in it"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"\(1 conversations left out: an empty turn\)"):
        read(tmp_path, turns("Hi", ""))
    with pytest.raises(DataError, match="the suffix is unknown, expected one of .jsonl"):
        read_conversations(written(tmp_path / "a.txt", "x"))


# -------------------------------------------------------------------------------------- renderings


def test_letters_follow_the_equals_sign() -> None:
    assert multiple_choice_prompt("1+1?", "AB", ["one", "two"]) == CHOICES
    with pytest.raises(ValueError):
        multiple_choice_prompt("1+1?", "ABC", ["one", "two"])


def test_calculator_marks_become_parts() -> None:
    assert calculator_parts("48/2 = <<48/2=24>>24 clips.\n#### 24") == (
        Part("text", "48/2 = "),
        Part("python", "48/2"),
        Part("python_output", "24"),
        Part("text", "24 clips.\n#### 24"),
    )
    assert calculator_parts("<<a==b=c>><<d>>") == (
        Part("python", "a==b"),
        Part("python_output", "c"),
        Part("python", "d"),
        Part("python_output", ""),
    )
    assert calculator_parts("2 << 3 >> 1") == (
        Part("text", "2 "),
        Part("python", " 3 "),
        Part("python_output", ""),
        Part("text", " 1"),
    )
    assert calculator_parts("no <<") == (Part("text", "no <<"),)


# ---------------------------------------------------------------------------------------- together

ROLES = ["system", "user", "assistant", "human", "gpt", "function_call", "observation"]


@given(st.lists(st.tuples(st.sampled_from(ROLES), st.sampled_from(["", "a", "b "])), max_size=8))
def test_whatever_is_said_what_comes_out_can_be_rendered(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str]]
) -> None:
    record = [{"from": role, "value": text} for role, text in said]
    directory = tmp_path_factory.mktemp("chats")
    conversations, report = read(directory, record, turns("Hi", "Hello"))
    left_out = sum(count for reason, count in report.counts.items() if "left out" in reason)
    assert len(conversations) + left_out == 2
    tokenizer = Tokenizer([bytes([byte]) for byte in range(256)])
    assert all(any(render_training(chat, tokenizer).loss_mask) for chat in conversations)


def test_split_is_by_what_is_said(tmp_path: Path) -> None:
    chats = [turns(f"question {index}", "yes") for index in range(200)]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, [*chats, *chats])))
    split = split_conversations(path, SplitRule(fraction=0.1))
    train, held_out = list(split.train()), list(split.validation())
    assert len(train) + len(held_out) == 400
    assert not {str(chat) for chat in train} & {str(chat) for chat in held_out}
    named = split_conversations(
        [path, written(tmp_path / "b.jsonl", json.dumps(turns("Hi", "Hello")))],
        SplitRule(validation_files=(tmp_path / "b.jsonl",)),
    )
    assert list(named.validation()) == [HELLO]


def test_every_shape_is_explained() -> None:
    assert all(shape.keys for shape in SHAPES.values())


SHARED_SHAPES = {
    "alpaca_seed_tasks": "instruction with instances",
    "boolq_train_questions": "question and answer",
    "fastchat_dummy": "messages",
    "glaive_toolcall_en_demo": "ShareGPT",
    "gpteacher_codegen": "messages",
    "gpteacher_roleplay": "messages",
    "identity_conversations": "list of messages",
    "llms_from_scratch_1100": "messages",
    "openbookqa_train": "multiple choice",
    "self_dialogue": "messages",
    "sgd_dev": "messages",
    "sgd_train": "messages",
}


def test_real_conversations(shared_dir: Path) -> None:
    files = find_conversation_files(shared_dir / "data" / "chat")
    found = {}
    for path in files:
        report = ReadReport()
        conversations = list(islice(read_conversations(path, report=report), 100))
        assert len(conversations) == 100
        (found[path.name.split(".")[0]],) = report.shapes[str(path)]
    assert found == SHARED_SHAPES
    identity = next(read_conversations(shared_dir / "data/chat/identity_conversations.jsonl.gz"))
    assert identity[0] == Message("user", "hey, what's nanochat")
    assert conversation_to_json(identity)[0]["role"] == "user"
