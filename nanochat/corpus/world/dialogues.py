"""Conversations for midtraining and SFT.   in: stage, seed, number   out: Conversation
who calls: cli, tests

Conversation n is a function of (stage, seed, n) alone.  Midtraining has everything, multiple choice
and the calculator included, in conversations of several questions; SFT has mostly one question and
its answer, as people ask.
Read next: exchange.py, context.py (two turns), held_out.py (what none of this contains).
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Literal

from nanochat.common.errors import ConfigError
from nanochat.common.messages import Conversation
from nanochat.corpus.world.arithmetic import addition, calculator, subtraction
from nanochat.corpus.world.context import context
from nanochat.corpus.world.dice import Dice
from nanochat.corpus.world.exchange import Exchange, spoken
from nanochat.corpus.world.facts import Fact
from nanochat.corpus.world.identity import identity
from nanochat.corpus.world.pages import OPEN_FACTS
from nanochat.corpus.world.people import FACTS_BY_PERSON, PERSONS
from nanochat.corpus.world.smalltalk import farewell, greeting, smalltalk, thanks
from nanochat.corpus.world.spelling import counting, letter_with_calculator, spelling
from nanochat.corpus.world.stories import story

__all__ = ["Stage", "conversations"]

Stage = Literal["midtrain", "sft"]
Maker = Callable[[Dice], Exchange]


def conversations(
    stage: Stage, seed: int = 0, num_conversations: int | None = None
) -> Iterator[Conversation]:
    """The first `num_conversations` of a stage's endless row of conversations; None: all of them.

    Raises: ConfigError for a stage that has none.
    """
    if stage not in _STAGES:
        raise ConfigError(f"stage is {stage!r}, expected one of {', '.join(_STAGES)}")
    for index in count():
        if index == num_conversations:
            return
        yield _STAGES[stage](Dice(stage, seed, index))


def _midtrain(dice: Dice) -> Conversation:
    if dice.chance(0.2):
        return context(dice)
    exchanges = [dice.weighted(_MIDTRAIN)(dice) for _ in range(dice.between(1, 5))]
    return _joined([spoken(exchange, dice) for exchange in exchanges])


def _sft(dice: Dice) -> Conversation:
    if dice.chance(0.2):
        return context(dice)
    exchanges = [dice.weighted(_SFT)(dice)]
    while dice.chance(0.2) and len(exchanges) < 4:
        exchanges.append(dice.weighted(_SFT)(dice))
    exchanges = [spoken(exchange, dice) for exchange in exchanges]
    if dice.chance(0.08):
        exchanges.insert(0, greeting(dice))
    if dice.chance(0.08):
        exchanges.append(dice.pick((thanks, farewell))(dice))
    return _joined(exchanges)


def _joined(exchanges: list[Exchange]) -> Conversation:
    return tuple(message for exchange in exchanges for message in exchange.messages())


_STAGES: dict[str, Callable[[Dice], Conversation]] = {"midtrain": _midtrain, "sft": _sft}


def _people(dice: Dice) -> Exchange:
    return dice.pick(OPEN_FACTS["people"]).asked(dice)


def _world(dice: Dice) -> Exchange:
    return dice.pick(OPEN_FACTS["world"]).asked(dice)


def _calendar(dice: Dice) -> Exchange:
    return dice.pick(OPEN_FACTS["calendar"]).asked(dice)


def _about_person(dice: Dice) -> Exchange:
    """All that may be said of one person."""
    name = dice.pick(PERSONS)
    question = dice.pick(("Tell me about {}.", "Who is {}?", "What do you know about {}?"))
    facts = [fact for fact in FACTS_BY_PERSON[name] if not fact.is_held_out]
    return Exchange(question.format(name), " ".join(fact.answer for fact in facts))


def _story(dice: Dice) -> Exchange:
    question = dice.pick(("Tell me a story.", "Please tell me a story.", "Do you know a story?"))
    return Exchange(question, story(dice))


def _choice(dice: Dice) -> Exchange:
    """A fact as multiple choice.

    The letter follows "=" directly, so that question and answer share its token.
    """
    fact = dice.pick(_CHOOSABLE[dice.pick(tuple(_CHOOSABLE))])
    others = [value for value in _VALUES[fact.kind] if value != fact.value]
    values = dice.sample([fact.value, *dice.sample(others, 3)], 4)
    choices = "".join(f"- {value}={letter}\n" for value, letter in zip(values, "ABCD", strict=True))
    question = (
        f"Multiple Choice question: {dice.pick(fact.questions)}\n{choices}"
        "\nRespond only with the letter of the correct answer."
    )
    return Exchange(question, "ABCD"[values.index(fact.value)])


_VALUES: dict[str, list[str]] = {
    kind: list(dict.fromkeys(fact.value for fact in facts if fact.kind == kind))
    for facts in OPEN_FACTS.values()
    for kind in dict.fromkeys(fact.kind for fact in facts)
}
_CHOOSABLE: dict[str, list[Fact]] = {
    category: [fact for fact in facts if len(_VALUES[fact.kind]) >= 4]
    for category, facts in OPEN_FACTS.items()
}

# By what the examination misses longest: people are learned early, sums, spelling and recall late.
_SFT: tuple[tuple[float, Maker], ...] = (
    (8, _people),
    (16, _world),
    (11, _calendar),
    (10, addition),
    (16, subtraction),
    (15, spelling),
    (15, counting),
    (7, identity),
    (3, smalltalk),
    (1, _about_person),
    (1, _story),
    (1, calculator),
    (1, letter_with_calculator),
)
_MIDTRAIN: tuple[tuple[float, Maker], ...] = (
    (7, _people),
    (14, _world),
    (10, _calendar),
    (10, addition),
    (16, subtraction),
    (15, spelling),
    (15, counting),
    (6, identity),
    (2, smalltalk),
    (2, _about_person),
    (1, _story),
    (2, calculator),
    (1, letter_with_calculator),
    (3, _choice),
)
