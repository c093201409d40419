"""SpellingBee and SimpleSpelling: letters of words.   in: spellingbee/words_alpha.txt   out: Task
who calls: tasks/__init__.py   (imports no torch)

SpellingBee asks how often a letter is in a word, in seven languages, with and without quotes,
capitals and question marks; the answer stands behind ####, as in GSM8K.  The draws and their seeds
are karpathy/nanochat's; the 51 phrasings are our own, so results compare in kind, not item by item.
Source: karpathy/nanochat tasks/spellingbee.py at 2f09686.
Read next: gsm8k.py (judge_number).
"""

import random
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from nanochat.common.messages import Conversation, Message, Part
from nanochat.evals.task import Judgement, Sample, Selection, Task
from nanochat.evals.tasks.gsm8k import judge_number

__all__ = [
    "SIMPLE_SPELLING",
    "SPELLING_BEE",
    "judge_spelling",
    "phrasings",
    "simple_spelling_conversation",
    "spelling_bee_conversation",
]

WORDS_FILE = "spellingbee/words_alpha.txt"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEST_SEED = 10_000_000  # above any index: test items have seeds of their own
WORD_ORDER_SEED = 42
NUM_TEST = 256
LETTER_SHARE, LOWER_SHARE, MARK_SHARE = 0.9, 0.3, 0.5
QUOTES = ("", "'", '"')


@cache
def phrasings() -> tuple[str, ...]:
    """The questions, l for the letter and w for the word.

    30 English, 4 Spanish, 4 Chinese, 4 Korean, 3 French, 3 German and 3 Japanese, as many as in the
    reference: a draw of one of 51 leaves the dice where its draw does.
    """
    text = (files("nanochat.evals.tasks") / "spelling_phrasings.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def spelling_bee_conversation(words: Sequence[str], seed: int) -> Conversation:
    """A question and its worked answer.  Training items have seeds from 0, test items from
    10,000,000."""
    dice = random.Random(seed)
    word = dice.choice(words)
    letter = dice.choice(word) if dice.random() < LETTER_SHARE else dice.choice(LETTERS)
    phrasing = dice.choice(phrasings())
    if dice.random() < LOWER_SHARE:
        phrasing = phrasing.lower()
    letter_quote, word_quote = dice.choice(QUOTES), dice.choice(QUOTES)
    question = phrasing.format(
        l=f"{letter_quote}{letter}{letter_quote}", w=f"{word_quote}{word}{word_quote}"
    )
    if dice.random() < MARK_SHARE:
        question += "?"
    return Message("user", question), Message("assistant", _worked(word, letter))


def simple_spelling_conversation(words: Sequence[str], seed: int) -> Conversation:
    """A word to spell; `words` in the order of `random.Random(42).shuffle`."""
    word = random.Random(seed).choice(words)
    return (
        Message("user", f"Spell the word: {word}"),
        Message("assistant", f"{word}:{','.join(word)}"),
    )


def judge_spelling(sample: Sample, output: str) -> Judgement:
    """Right when all of it is the answer; blanks around it are forgiven."""
    is_right = output.strip() == sample.gold
    return Judgement(float(is_right), "" if is_right else f"expected {sample.gold}")


def _worked(word: str, letter: str) -> tuple[Part, ...]:
    """Letter by letter, then by the calculator.  No blank between number, colon and letter: each
    letter is then the same token as in the word spelled out."""
    lines, num_hits = [], 0
    for place, each in enumerate(word, 1):
        num_hits += each == letter
        lines.append(f"{place}:{each}" + f" hit! count={num_hits}" * (each == letter))
    count = word.count(letter)
    manual = (
        f"We are asked to find the number '{letter}' in the word '{word}'. "
        f"Let me try a manual approach first.\n\nFirst spell the word out:\n{word}:{','.join(word)}"
        f"\n\nThen count the occurrences of '{letter}':\n" + "\n".join(lines)
        + f"\n\nThis gives us {count}."
    )  # fmt: skip
    return (
        Part("text", manual),
        Part("text", "\n\nLet me double check this using Python:\n\n"),
        Part("python", f"'{word}'.count('{letter}')"),
        Part("python_output", str(count)),
        Part("text", f"\n\nPython gives us {count}.\n\nMy final answer is:\n\n#### {count}"),
    )


def _bee(selection: Selection) -> list[Sample]:
    words = selection.source.words(WORDS_FILE)
    samples = []
    for index in range(min(NUM_TEST, selection.limit or NUM_TEST)):
        question, answer = spelling_bee_conversation(words, TEST_SEED + index)
        last = answer.content[-1]
        assert isinstance(last, Part), "the last part of a worked answer is no part"
        samples.append(
            Sample(
                sample_id=f"{index}",
                prompt=(question,),
                gold=last.text.rpartition(" ")[2],
                extra={"mode": selection.mode},
            )
        )
    return samples


def _simple(selection: Selection) -> list[Sample]:
    words = selection.source.words(WORDS_FILE)
    random.Random(WORD_ORDER_SEED).shuffle(words)
    samples = []
    for index in range(min(NUM_TEST, selection.limit or NUM_TEST)):
        question, answer = simple_spelling_conversation(words, TEST_SEED + index)
        gold = str(answer.content)
        samples.append(Sample(sample_id=f"{index}", prompt=(question,), gold=gold))
    return samples


SPELLING_BEE = Task(
    name="SpellingBee", version="1", kind="generative", load=_bee, judge=judge_number, tools=True,
    notes=("phrasings are our own, so items are not karpathy/nanochat's",),
)  # fmt: skip
SIMPLE_SPELLING = Task(
    name="SimpleSpelling",
    version="1",
    kind="generative",
    load=_simple,
    judge=judge_spelling,
    max_tokens=128,
)
