"""Spelling and letter counting.   in: dice   out: Exchange, pages
who calls: dialogues, pages, held_out

A reply repeats the word and spells it; the count follows the spelling, so that the letters to count
stand in view. Made-up compounds (`moonboat`) keep a model from learning the word list by heart
instead of the letters.
Read next: words.py (the words).
"""

from nanochat.common.messages import Part
from nanochat.corpus.world.dice import Dice
from nanochat.corpus.world.exchange import Exchange
from nanochat.corpus.world.words import WORDS, made_up_word

__all__ = [
    "COUNT_QUESTIONS",
    "SPELL_QUESTIONS",
    "count_answer",
    "counting",
    "letter_with_calculator",
    "spell_answer",
    "spelling",
    "spelling_page",
]

SPELL_QUESTIONS = (
    "How do you spell {w}?",
    "How is the word {w} spelled?",
    "Please spell the word {w}.",
    "Can you spell {w}?",
)
COUNT_QUESTIONS = (
    "How many letters are in the word {w}?",
    "How many letters does {w} have?",
    "Please count the letters in {w}.",
    "How long is the word {w}?",
)
_MADE_UP = 0.4
"""How many of the words are compounds nobody has heard of."""


def spell_answer(word: str) -> str:
    """`The word garden is spelled g-a-r-d-e-n.`"""
    return f"The word {word} is spelled {'-'.join(word)}."


def count_answer(word: str) -> str:
    """`The word garden is spelled g-a-r-d-e-n, so it has 6 letters.`"""
    return f"The word {word} is spelled {'-'.join(word)}, so it has {len(word)} letters."


def spelling(dice: Dice) -> Exchange:
    """A word to spell."""
    word = _word(dice)
    return Exchange(dice.pick(SPELL_QUESTIONS).format(w=word), spell_answer(word))


def counting(dice: Dice) -> Exchange:
    """A word whose letters are to be counted."""
    word = _word(dice)
    return Exchange(dice.pick(COUNT_QUESTIONS).format(w=word), count_answer(word))


def letter_with_calculator(dice: Dice) -> Exchange:
    """How often one letter comes in a word, counted by the calculator."""
    word = dice.pick(WORDS)
    letter = dice.pick(word) if dice.chance(0.9) else dice.pick("aeiou")
    times = word.count(letter)
    return Exchange(
        f"How many times does the letter {letter} come in {word}?",
        (
            Part("text", "I will count with the calculator. "),
            Part("python", f"'{word}'.count('{letter}')"),
            Part("python_output", str(times)),
            Part(
                "text",
                f" The letter {letter} comes {times} time{'' if times == 1 else 's'} in {word}.",
            ),
        ),
    )


_TITLES = (
    "A page of words.",
    "Words from the school book.",
    "Spelling is fun.",
    "Letter by letter.",
    "Old words and new words.",
    "The teacher asked the class to spell.",
)


def spelling_page(dice: Dice) -> str:
    """A page of eight to fourteen spelled words, half of them counted."""
    lines = [dice.pick(_TITLES)]
    for _ in range(dice.between(8, 14)):
        answer = count_answer if dice.chance(0.5) else spell_answer
        lines.append(answer(_word(dice)))
    return "\n".join(lines)


def _word(dice: Dice) -> str:
    return made_up_word(dice) if dice.chance(_MADE_UP) else dice.pick(WORDS)
