"""chat_talk.py: turns are whole, nothing is forgotten in silence, a broken answer is kept."""

from typing import Any

import pytest

from nanochat.cli.chat_talk import (
    Reply,
    Settings,
    Talk,
    check_turns,
    fit_conversation,
)
from nanochat.common.errors import ConfigError, DataError, EngineError, RequestTooLong
from nanochat.common.messages import Conversation, Message
from tests.cli.chat_fakes import TOO_LONG, Scripted, whole


def talk_with(backend: Scripted, **options: Any) -> Talk:
    return Talk(backend, Settings(), **options)


def turns(*contents: str, system: str = "") -> Conversation:
    """The contents by user and assistant in turns."""
    said = tuple(
        Message("assistant" if number % 2 else "user", text) for number, text in enumerate(contents)
    )
    return (Message("system", system), *said) if system else said


@pytest.mark.req("FR-051")
def test_what_was_said_is_read_again() -> None:
    backend = Scripted([["one"], ["tw", "o"], []])
    talk = talk_with(backend, system="Be kind.")
    assert [whole(talk.ask(question)) for question in "abc"] == ["one", "two", ""]
    assert backend.asked[2] == turns("a", "one", "b", "two", "c", system="Be kind.")
    assert talk.conversation == turns("a", "one", "b", "two", "c", "", system="Be kind.")
    assert talk.pending is None
    talk.clear()
    assert talk.conversation == (Message("system", "Be kind."),)
    assert talk.num_context_tokens == 0


def test_half_an_answer_is_kept_and_no_answer_is_not() -> None:
    backend = Scripted([["half", KeyboardInterrupt()], [KeyboardInterrupt()], ["a", "b", "c"]])
    talk = talk_with(backend)
    with pytest.raises(KeyboardInterrupt):
        whole(talk.ask("1"))
    with pytest.raises(KeyboardInterrupt):
        whole(talk.ask("2"))
    assert (talk.turns, talk.pending) == (turns("1", "half"), "2")
    pieces = talk.ask("3")
    next(pieces)
    pieces.close()  # the reader goes away
    assert (talk.turns, talk.pending) == (turns("1", "half", "3", "a"), None)
    assert talk.last is not None and talk.last.finish_reason is None


def test_retry_asks_the_same_with_another_seed_and_keeps_the_old_answer_if_nothing_comes() -> None:
    backend = Scripted(
        [["old"], [EngineError("down")], ["new"], [EngineError("down")], ["at last"]]
    )
    talk = Talk(backend, Settings(seed=2**63 - 1))
    with pytest.raises(DataError, match="nothing was asked yet"):
        talk.retry().send(None)
    whole(talk.ask("q"))
    with pytest.raises(EngineError, match="down"):
        whole(talk.retry())
    assert (talk.turns, talk.pending) == (turns("q", "old"), None)
    assert whole(talk.retry()) == "new"
    assert talk.turns == turns("q", "new")
    with pytest.raises(EngineError):
        whole(talk.ask("next"))
    assert whole(talk.retry()) == "at last"
    assert talk.turns == turns("q", "new", "next", "at last")
    assert [settings.seed for settings in backend.settings] == [2**63 - 1, 0, 1, 2, 3]


def test_undo_gives_the_question_back() -> None:
    talk = talk_with(Scripted([["one"], [EngineError("down")]], context_len=99))
    whole(talk.ask("first"))
    assert talk.num_context_tokens == len("firstone")
    with pytest.raises(EngineError):
        whole(talk.ask("second"))
    assert [talk.undo(), talk.undo()] == ["second", "first"]
    assert (talk.turns, talk.num_context_tokens) == ((), 0)
    with pytest.raises(DataError, match="nothing was asked yet"):
        talk.undo()


@pytest.mark.req("EC-4", "FR-014")
def test_beyond_the_context_the_question_is_refused_with_the_numbers() -> None:
    backend = Scripted([["b" * 10], ["d" * 10]], context_len=50)
    talk = talk_with(backend, remedy="do this")
    whole(talk.ask("a" * 10))
    whole(talk.ask("c" * 10))
    with pytest.raises(RequestTooLong) as caught:
        whole(talk.ask("e" * 10))
    assert str(caught.value) == (
        "the conversation has 50 tokens with this question but the context is 50, answer included: "
        "do this"
    )
    assert len(talk.turns) == 4 and talk.pending == "e" * 10
    # As many as the question needs with room for an answer: 50 // 4 of the context stay free.
    assert talk.drop() == 1
    assert whole(talk.retry()) == "ok"
    assert talk.turns == turns("c" * 10, "d" * 10, "e" * 10, "ok")
    assert talk.drop(5) == 2
    assert talk.turns == ()
    with pytest.raises(RequestTooLong, match="the prompt has 51 tokens but the context is 50"):
        whole(talk.ask("f" * 51))


@pytest.mark.req("EC-4")
def test_the_oldest_turns_are_forgotten_whole_and_aloud_where_that_was_asked_for() -> None:
    told: list[str] = []
    backend = Scripted([["b" * 10], ["d" * 10]], context_len=50)
    talk = talk_with(backend, when_full="drop", announce=told.append, system="S")
    for question in "ace":
        whole(talk.ask(question * 10))
    assert told == ["the context is full: the oldest 2 messages are forgotten"]
    assert backend.asked[2] == turns("c" * 10, "d" * 10, "e" * 10, system="S")


def test_a_server_says_itself_that_it_is_too_much() -> None:
    told: list[str] = []
    script = [["b"], ["d"], [TOO_LONG], [TOO_LONG], ["f"]]
    talk = talk_with(Scripted(script), when_full="drop", announce=told.append)
    for question in "ace":
        whole(talk.ask(question))
    assert talk.turns == turns("e", "f")
    assert len(told) == 2
    talk = talk_with(Scripted([["b"], [TOO_LONG]]), remedy="do this")
    whole(talk.ask("a"))
    with pytest.raises(RequestTooLong, match=r"^too long \(do this\)$"):
        whole(talk.ask("c"))
    assert talk.drop() == 1  # nobody knows how many: one
    talk = talk_with(Scripted([[TOO_LONG]]), when_full="drop")
    with pytest.raises(RequestTooLong):
        whole(talk.ask("too much by itself"))


def test_fitting_keeps_the_last_question_and_never_splits_a_pair() -> None:
    said = turns(*(f"{number}" * 5 for number in range(9)))

    def count(conversation: Conversation) -> int:
        return 5 * len(conversation)

    for room in range(0, 100, 7):
        fitted = fit_conversation(said, room, count)
        assert fitted == said[len(said) - len(fitted) :]
        assert fitted[0].role == fitted[-1].role == "user"
        assert count(fitted) <= room or len(fitted) == 1


def test_loading_takes_the_system_message_and_a_question_that_waits() -> None:
    talk = talk_with(Scripted(), system="old")
    talk.load(turns("a", "b", "c", system="new"))
    assert (talk.system, talk.turns, talk.pending) == ("new", turns("a", "b"), "c")
    assert talk.num_context_tokens is None  # a server tells with an answer
    whole(talk.retry())
    assert talk.num_context_tokens == len("newabc") + len("ok")
    talk.load(turns("x", "y"))
    assert (talk.system, talk.turns, talk.pending) == ("", turns("x", "y"), None)


@pytest.mark.parametrize(
    "conversation",
    [
        (Message("assistant", "a"),),
        (Message("user", "a"), Message("user", "b")),
        (Message("user", "a"), Message("system", "b")),
    ],
)
def test_turns_out_of_order_are_refused(conversation: Conversation) -> None:
    with pytest.raises(DataError, match="user and assistant take turns"):
        check_turns(conversation)
    with pytest.raises(DataError):
        talk_with(Scripted()).load(conversation)


def test_settings_are_checked_and_none_is_the_default() -> None:
    assert Settings().given() == {}
    assert Settings(top_k=0, seed=3).given() == {"top_k": 0, "seed": 3}
    assert Settings(top_k=0).sampling().top_k is None
    assert Settings().sampling().top_k == 50
    with pytest.raises(ConfigError, match="temperature is 11.*; top_p is 2"):
        Settings(temperature=11, top_p=2)


def test_speed_is_of_the_tokens_after_the_first() -> None:
    assert Reply(num_tokens=5, first_s=1.0, last_s=3.0).tokens_per_s == 2.0
    assert Reply(num_tokens=1, first_s=1.0, last_s=3.0).tokens_per_s is None
    assert Reply().tokens_per_s is None


def test_a_lone_surrogate_is_asked_as_a_character() -> None:
    talk = talk_with(Scripted())
    whole(talk.ask("a\udc80"))
    assert talk.turns[0].content == "a\ufffd"
