"""The examination.   in: nothing   out: HeldOut questions with exact answers, scores
who calls: cli (demo), tests

No question stands in the data of any stage; tests/corpus/test_world.py proves it.
Read next: facts.py, arithmetic.py, words.py, identity.py, context.py (where each is left out).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.common.errors import EvalError
from nanochat.common.messages import Conversation, Message
from nanochat.corpus.world.arithmetic import (
    HELD_OUT_DIFFERENCES,
    HELD_OUT_SUMS,
    difference_answer,
    sum_answer,
)
from nanochat.corpus.world.calendar import CALENDAR_FACTS
from nanochat.corpus.world.context import HELD_OUT_CONTEXTS
from nanochat.corpus.world.facts import Fact
from nanochat.corpus.world.identity import HELD_OUT_PHRASINGS
from nanochat.corpus.world.nature import NATURE_FACTS
from nanochat.corpus.world.people import PEOPLE_FACTS
from nanochat.corpus.world.places import PLACE_FACTS
from nanochat.corpus.world.spelling import (
    COUNT_QUESTIONS,
    SPELL_QUESTIONS,
    count_answer,
    spell_answer,
)
from nanochat.corpus.world.words import HELD_OUT_WORDS

__all__ = ["CATEGORIES", "HeldOut", "baseline_guess", "held_out", "is_correct", "score"]

CATEGORIES = (
    "addition",
    "subtraction",
    "spelling",
    "letters",
    "calendar",
    "people",
    "world",
    "identity",
    "context",
)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A question that is asked for the first time at the end."""

    category: str
    conversation: Conversation
    """Up to and including the user's question."""
    answer: str

    @property
    def unseen(self) -> str:
        """The text that stands nowhere in the data: the question, or what was told before it."""
        content = self.conversation[0].content
        assert isinstance(content, str), "a user's content is text"
        return content


def held_out() -> tuple[HeldOut, ...]:
    """All the questions, category by category in the order of CATEGORIES."""
    numbers = [
        *(("addition", f"What is {a} + {b}?", sum_answer(a, b)) for a, b in HELD_OUT_SUMS),
        *(
            ("subtraction", f"What is {a} - {b}?", difference_answer(a, b))
            for a, b in HELD_OUT_DIFFERENCES
        ),
    ]
    words = [
        *(
            ("spelling", SPELL_QUESTIONS[index % 4].format(w=word), spell_answer(word))
            for index, word in enumerate(HELD_OUT_WORDS[::2])
        ),
        *(
            ("letters", COUNT_QUESTIONS[index % 4].format(w=word), count_answer(word))
            for index, word in enumerate(HELD_OUT_WORDS[1::2])
        ),
    ]
    facts = [
        *_asked("calendar", CALENDAR_FACTS),
        *_asked("people", PEOPLE_FACTS),
        *_asked("world", PLACE_FACTS + NATURE_FACTS),
    ]
    identity = [("identity", question, answer) for question, answer in HELD_OUT_PHRASINGS]
    return (
        *(
            HeldOut(category, (Message("user", question),), answer)
            for category, question, answer in (*numbers, *words, *facts, *identity)
        ),
        *(HeldOut("context", turns, answer) for turns, answer in HELD_OUT_CONTEXTS),
    )


def _asked(category: str, facts: Sequence[Fact]) -> list[tuple[str, str, str]]:
    """Each fact that is held out, in one of its phrasings by turns."""
    chosen = [fact for fact in facts if fact.is_held_out]
    return [
        (category, fact.questions[index % len(fact.questions)], fact.answer)
        for index, fact in enumerate(chosen)
    ]


def is_correct(reply: str, question: HeldOut) -> bool:
    """Whether the whole reply is the answer; only blanks around it are forgiven."""
    return reply.strip() == question.answer


def score(replies: Sequence[str]) -> dict[str, tuple[int, int]]:
    """category -> (correct, asked), for one reply to each question of `held_out()` in order.

    Raises: EvalError when there are more or fewer replies than questions.
    """
    if len(replies) != len(held_out()):
        raise EvalError(
            f"{len(replies)} replies to {len(held_out())} questions: give one to each, in order"
        )
    correct: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for reply, question in zip(replies, held_out(), strict=True):
        asked[question.category] += 1
        correct[question.category] += is_correct(reply, question)
    return {category: (correct[category], asked[category]) for category in CATEGORIES}


def baseline_guess(category: str) -> str:
    """The category's most frequent answer: what a guesser would always say."""
    answers = Counter(item.answer for item in held_out() if item.category == category)
    return answers.most_common(1)[0][0]
