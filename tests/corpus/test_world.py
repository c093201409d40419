"""What the built-in world promises: nothing held out is in its data; equal seeds, equal bytes."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import pytest

from nanochat.common.errors import ConfigError, EvalError
from nanochat.common.messages import Conversation
from nanochat.corpus import world
from nanochat.corpus.world import arithmetic, context, identity, words
from nanochat.corpus.world.calendar import CALENDAR_FACTS
from nanochat.corpus.world.nature import NATURE_FACTS
from nanochat.corpus.world.people import PEOPLE_FACTS
from nanochat.corpus.world.places import PLACE_FACTS

FACTS = PEOPLE_FACTS + PLACE_FACTS + NATURE_FACTS + CALENDAR_FACTS
HELD_OUT_FACTS = tuple(fact for fact in FACTS if fact.is_held_out)


def texts_of(conversation: Conversation) -> list[str]:
    """Every turn as text, parts joined."""
    return [
        message.content
        if isinstance(message.content, str)
        else "".join(part.text for part in message.content)
        for message in conversation
    ]


def sample_conversations(number: int) -> list[Conversation]:
    return [
        conversation
        for stage in ("midtrain", "sft")
        for seed in (0, 1)
        for conversation in world.conversations(stage, seed, number)
    ]


@pytest.fixture(scope="module")
def prose_text() -> str:
    """Two and a half million characters of pretraining text, from two seeds."""
    return "\n".join([*world.prose(1_500_000, 0), *world.prose(1_000_000, 1)])


@pytest.fixture(scope="module")
def chats() -> list[Conversation]:
    """Twelve thousand conversations of both stages, from two seeds."""
    return sample_conversations(3_000)


@pytest.fixture(scope="module")
def chat_text(chats: list[Conversation]) -> str:
    return "\n".join(text for chat in chats for text in texts_of(chat))


def digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


# --- the examination ----------------------------------------------------------------------------


@pytest.mark.req("SC-003")
def test_there_are_at_least_thirty_different_questions_in_each_of_nine_categories() -> None:
    questions = world.held_out()
    counts = Counter(question.category for question in questions)
    assert tuple(counts) == world.CATEGORIES
    assert min(counts.values()) >= 30
    assert len({question.conversation for question in questions}) == len(questions) >= 200


def test_a_question_ends_with_the_user() -> None:
    for question in world.held_out():
        assert question.conversation[-1].role == "user"
        assert len(question.conversation) == (3 if question.category == "context" else 1)
        assert question.answer == question.answer.strip() != ""


def test_a_guesser_gets_at_most_a_tenth_of_any_category() -> None:
    for category in world.CATEGORIES:
        answers = [item.answer for item in world.held_out() if item.category == category]
        assert answers.count(world.baseline_guess(category)) <= 0.1 * len(answers)


def test_score_counts_exact_replies() -> None:
    questions = world.held_out()
    right = [question.answer for question in questions]
    assert all(correct == asked for correct, asked in world.score(right).values())
    wrong = [reply + " Or not." for reply in right]
    assert all(correct == 0 for correct, _ in world.score(wrong).values())
    assert world.is_correct(f" {right[0]}\n", questions[0])
    with pytest.raises(EvalError, match="replies to"):
        world.score(right[:-1])


# --- nothing held out is in the data ------------------------------------------------------------


@pytest.mark.req("FR-021", "FR-022", "FR-023")
def test_no_held_out_question_occurs_in_any_stage(prose_text: str, chat_text: str) -> None:
    data = f"{prose_text}\n{chat_text}".lower()
    found = [item.unseen for item in world.held_out() if item.unseen.lower().rstrip("?.!") in data]
    assert found == []


@pytest.mark.req("FR-021", "FR-022", "FR-023")
def test_held_out_words_occur_nowhere_not_even_as_the_beginning_of_another(
    prose_text: str, chat_text: str
) -> None:
    seen = set(re.findall(r"[a-z]+", f"{prose_text}\n{chat_text}".lower()))
    assert seen.isdisjoint(words.HELD_OUT_WORDS)
    plurals = {
        word + ending for word in words.HELD_OUT_WORDS for ending in ("s", "es", "ed", "ing")
    }
    assert seen.isdisjoint(plurals)
    assert not set(words.WORDS) & set(words.HELD_OUT_WORDS)


@pytest.mark.req("FR-021", "FR-022", "FR-023")
def test_held_out_pairs_of_numbers_occur_in_no_order(prose_text: str, chat_text: str) -> None:
    left_out = {
        frozenset(pair) for pair in (*arithmetic.HELD_OUT_SUMS, *arithmetic.HELD_OUT_DIFFERENCES)
    }
    between = re.compile(r"(?<!\d)(\d+)(?= (?:\+|-|plus|minus|and|away from|from) (\d+))")
    pairs = Counter(
        frozenset((int(first), int(second)))
        for first, second in between.findall(f"{prose_text}\n{chat_text}")
    )
    assert len(pairs) > 2_000
    assert not left_out & set(pairs)
    assert len(left_out) == 72


def test_held_out_facts_are_told_in_prose(prose_text: str) -> None:
    for fact in HELD_OUT_FACTS:
        assert prose_text.count(fact.answer) >= 10, fact.answer


@pytest.mark.req("FR-022", "FR-023")
def test_held_out_facts_are_in_no_conversation(chat_text: str) -> None:
    for fact in HELD_OUT_FACTS:
        wordings = (fact.answer, *fact.statements, *fact.questions)
        assert [text for text in wordings if text in chat_text] == []


def test_a_held_out_person_and_value_share_no_line_of_conversation(chat_text: str) -> None:
    lines = [set(re.findall(r"\w+", line)) for line in chat_text.splitlines()]
    for fact in HELD_OUT_FACTS:
        if fact in PEOPLE_FACTS:
            assert not any(fact.subject in line and fact.value in line for line in lines)


def test_held_out_facts_are_asked_in_no_quiz(prose_text: str) -> None:
    for fact in HELD_OUT_FACTS:
        assert [question for question in fact.questions if question in prose_text] == []
        with pytest.raises(AssertionError, match="held out"):
            fact.asked(world.dice.Dice("any"))


def test_every_person_has_facts_of_both_sorts() -> None:
    for name in world.people.PERSONS:
        sorts = [fact.is_held_out for fact in PEOPLE_FACTS if fact.subject == name]
        assert 1 <= sum(sorts) <= 2 and len(sorts) == 5


def test_every_kind_of_fact_is_asked_about_someone_else() -> None:
    for kind in {fact.kind for fact in FACTS}:
        sorts = {fact.is_held_out for fact in FACTS if fact.kind == kind}
        assert sorts == {True, False}, kind


def test_every_identity_answer_is_known_from_other_phrasings(chat_text: str) -> None:
    for question, answer in identity.HELD_OUT_PHRASINGS:
        assert question not in chat_text
        assert answer in chat_text


def test_held_out_contexts_use_pairs_that_no_conversation_has(chats: list[Conversation]) -> None:
    told = {texts_of(chat)[0] for chat in chats if len(chat) == 4}
    for turns, answer in context.HELD_OUT_CONTEXTS:
        first = texts_of(turns)[0]
        assert first not in told
        value = answer.rstrip(".").split(" is ")[-1].split(" ", 1)[-1].split()[-1]
        assert value in first
    assert context.is_left_out(0, 0, 0) and not context.is_left_out(0, 1, 0)


# --- answers are true ---------------------------------------------------------------------------


def test_every_worked_sum_and_difference_is_true(prose_text: str, chat_text: str) -> None:
    steps = re.findall(r"(\d+(?: [+*-] \d+)+) = (\d+)", f"{prose_text}\n{chat_text}")
    assert len(steps) > 20_000
    for step, result in set(steps):
        assert eval(step) == int(result), step  # digits and signs only: the pattern allows no more


def test_worked_answers_have_their_documented_form() -> None:
    assert arithmetic.sum_answer(47, 38) == (
        "Ones: 7 + 8 = 15. Tens: 4 + 3 + 1 = 8. So 47 + 38 = 85."
    )
    assert arithmetic.difference_answer(85, 38) == (
        "Ones: 15 - 8 = 7. Tens: 8 - 3 - 1 = 4. So 85 - 38 = 47."
    )


def test_every_spelling_is_the_word(prose_text: str, chat_text: str) -> None:
    found = re.findall(r"word (\w+) is spelled ([a-z-]+)(?:, so it has (\d+) letters)?", prose_text)
    found += re.findall(r"word (\w+) is spelled ([a-z-]+)(?:, so it has (\d+) letters)?", chat_text)
    assert len(found) > 10_000
    for word, letters, number in found:
        assert letters.replace("-", "") == word
        assert number in ("", str(len(word)))


def test_the_calculator_is_used_and_right(chats: list[Conversation]) -> None:
    used = 0
    for chat in chats:
        for message in chat:
            if isinstance(message.content, str):
                continue
            parts = {part.kind: part.text for part in message.content}
            assert message.role == "assistant"
            assert str(eval(parts["python"])) == parts["python_output"]  # our own expressions
            used += 1
    assert used > 100


def test_multiple_choice_offers_the_answer_once(chats: list[Conversation]) -> None:
    seen = 0
    for chat in chats:
        for question, reply in zip(chat[::2], chat[1::2], strict=True):
            assert isinstance(question.content, str)
            if "Multiple Choice" in question.content:
                choices = dict(
                    re.findall(r"^- (.+)=([A-D])$", question.content, flags=re.MULTILINE)
                )
                assert sorted(choices.values()) == list("ABCD")
                assert reply.content in choices.values()
                seen += 1
    assert seen > 100


# --- form ---------------------------------------------------------------------------------------


@pytest.mark.req("FR-022", "FR-023")
def test_conversations_alternate_and_end_with_the_assistant(chats: list[Conversation]) -> None:
    for chat in chats:
        assert [message.role for message in chat] == ["user", "assistant"] * (len(chat) // 2)
        assert all(text and "{" not in text for text in texts_of(chat))


def test_sft_has_mostly_single_questions_and_midtraining_longer_chats() -> None:
    sft = [len(chat) for chat in world.conversations("sft", 0, 2_000)]
    midtrain = [len(chat) for chat in world.conversations("midtrain", 0, 2_000)]
    assert sft.count(2) > 1_000
    assert sum(midtrain) > 1.3 * sum(sft)


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(ConfigError, match="'rl', expected one of midtrain, sft"):
        next(world.conversations("rl"))  # type: ignore[arg-type]


@pytest.mark.req("FR-021")
def test_documents_are_short_different_and_without_holes() -> None:
    documents = list(world.prose(1_000_000, 3))
    lengths = [len(document.split()) for document in documents]
    assert min(lengths) >= 30 and max(lengths) <= 400
    assert len(set(documents)) == len(documents)
    assert not any(re.search(r"[{}]|\b(?:a [aeio]|an [^aeiou])", text) for text in documents)


# --- determinism --------------------------------------------------------------------------------


def test_prose_is_as_long_as_asked_and_a_longer_one_begins_with_a_shorter_one() -> None:
    short, long = list(world.prose(50_000, 7)), list(world.prose(120_000, 7))
    assert 50_000 <= sum(map(len, short)) < 50_000 + 4_000
    assert long[: len(short)] == short
    assert list(world.prose(0)) == []
    assert list(world.prose(20_000, 8)) != list(world.prose(20_000, 7))


def test_conversations_have_no_end_and_depend_on_stage_and_seed() -> None:
    endless = list(islice(world.conversations("sft", 5), 50))
    assert endless == list(world.conversations("sft", 5, 50))
    assert endless != list(world.conversations("sft", 6, 50))
    assert endless != list(world.conversations("midtrain", 5, 50))


def corpus_digest() -> str:
    """One number for a stretch of everything."""
    prose = world.prose(200_000, 0)
    chats = (text for chat in sample_conversations(200) for text in texts_of(chat))
    questions = (f"{item.unseen} {item.answer}" for item in world.held_out())
    return digest([*prose, *chats, *questions])


def test_equal_seeds_give_equal_bytes_in_another_process() -> None:
    code = "from tests.corpus.test_world import corpus_digest; print(corpus_digest())"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).resolve().parents[2],
        check=True,
    )
    assert result.stdout.strip() == corpus_digest()
