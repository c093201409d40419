"""The built-in world's examination, and samples of what a model says.   in: an engine, tokenizer
out: Exam, conversations   who calls: cli (demo)   (imports no torch)

Every question is asked for the first time, all of them in one batch, greedily; a reply counts only
when all of it is the answer.  Beside the score stands a guesser who knows nothing of the questions
but the most frequent answer of each category.
It is the task `world` of `nanochat eval` too: tasks/world.py marks both.
Read next: corpus/world/held_out.py (the questions), report.py (where the answers are shown).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from nanochat.common.errors import DataError, EvalError
from nanochat.common.messages import Conversation, Message, conversation_to_json
from nanochat.corpus.world import HeldOut, baseline_guess, held_out
from nanochat.engine.request import Request, SamplingParams, TokenEvent
from nanochat.evals.tasks.world import WORLD, judge_held_out, world_sample
from nanochat.tokenizer.chat import parse_reply, render_prompt, stop_tokens
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = [
    "Exam",
    "ExamAnswer",
    "Responder",
    "exam_table",
    "identity_and_memory",
    "sample_conversations",
    "take_exam",
]

# The longest answer takes 61 with a vocabulary of 512, 43 with one of 1,024.
EXAM_TOKENS = WORLD.max_tokens
SAMPLE_TOKENS = 256
SAMPLE_ROOM_TOKENS = 64  # a sample is worth showing when at least this much may be answered
SAMPLE_TEMPERATURE = 0.7  # small models repeat themselves when they are greedy
LOOK_AT = 1000  # conversations that are tried at most, however many do not fit

IDENTITY: Conversation = (Message("user", "Who are you?"),)
# The built-in world never names these two together, so the name can only come from turn one.
MEMORY = ("My name is Isla and my favourite colour is purple.", "What is my name?")


class Responder(Protocol):
    """What is needed of an engine: engine/engine.py has it, and so has a fake."""

    @property
    def context_len(self) -> int:
        """Most tokens of prompt and answer together."""

    def generate(self, requests: Sequence[Request]) -> list[list[TokenEvent]]:
        """The events of each request."""


@dataclass(frozen=True, slots=True)
class ExamAnswer:
    """One question, what was said to it, and what should have been said."""

    category: str
    conversation: Conversation
    """Up to and including the question."""
    expected: str
    reply: str
    is_correct: bool

    @property
    def question(self) -> str:
        """The user's last words."""
        return _text_of(self.conversation[-1])


@dataclass(frozen=True, slots=True)
class Exam:
    """An examination that has been taken; categories in the order they were asked in."""

    answers: tuple[ExamAnswer, ...]

    @classmethod
    def from_replies(cls, replies: Sequence[str]) -> "Exam":
        """The verdicts on one reply to each question of `held_out()`, in order.

        Raises: EvalError when there are more or fewer replies than questions.
        """
        questions = held_out()
        if len(replies) != len(questions):
            raise EvalError(
                f"{len(replies)} replies to {len(questions)} questions: give one to each, in order"
            )
        pairs = zip(questions, replies, strict=True)
        return cls(tuple(_judged(number, *pair) for number, pair in enumerate(pairs, 1)))

    @property
    def replies(self) -> tuple[str, ...]:
        """What was said, in the order of the questions."""
        return tuple(answer.reply for answer in self.answers)

    @property
    def results(self) -> dict[str, tuple[int, int]]:
        """category -> (correct, asked)."""
        asked = Counter(answer.category for answer in self.answers)
        correct = Counter(answer.category for answer in self.answers if answer.is_correct)
        return {category: (correct[category], asked[category]) for category in asked}

    @property
    def num_correct(self) -> int:
        """Questions answered exactly."""
        return sum(answer.is_correct for answer in self.answers)

    @property
    def num_asked(self) -> int:
        """All questions."""
        return len(self.answers)

    @property
    def total(self) -> tuple[int, int]:
        """(correct, asked) over all categories."""
        return self.num_correct, self.num_asked

    @property
    def guesser(self) -> dict[str, int]:
        """category -> how many one would get who always gives its most frequent answer."""
        guesses = {category: baseline_guess(category) for category in self.results}
        right = Counter(
            answer.category
            for answer in self.answers
            if answer.expected == guesses[answer.category]
        )
        return {category: right[category] for category in guesses}

    def to_json(self) -> dict[str, Any]:
        """Scores first, then every question with its reply."""
        guesser = self.guesser
        return {
            "correct": self.num_correct,
            "asked": self.num_asked,
            "categories": {
                category: {"correct": correct, "asked": asked, "guesser": guesser[category]}
                for category, (correct, asked) in self.results.items()
            },
            "answers": [
                {
                    "category": answer.category,
                    "conversation": conversation_to_json(answer.conversation),
                    "expected": answer.expected,
                    "reply": answer.reply,
                    "is_correct": answer.is_correct,
                }
                for answer in self.answers
            ],
        }

    def lines(self) -> list[str]:
        """The table for the terminal."""
        return exam_table(None, self)


def take_exam(engine: Responder, tokenizer: Tokenizer) -> Exam:
    """The held-out questions of the built-in world, asked greedily and in one batch.

    Raises: RequestTooLong when the context is shorter than a question.
    """
    questions = held_out()
    longest = max(len(answer) for answer in tokenizer.encode_batch([q.answer for q in questions]))
    sampling = SamplingParams(
        max_tokens=max(EXAM_TOKENS, longest + 1),  # + 1: an answer has to end, too
        temperature=0.0,
        stop_tokens=stop_tokens(tokenizer),
    )
    prompts = [question.conversation for question in questions]
    replies = _replies(engine, tokenizer, prompts, [sampling] * len(prompts), "exam")
    return Exam.from_replies([_text_of(reply) for reply in replies])


def exam_table(before: Exam | None, after: Exam) -> list[str]:
    """Category, asked, correct before and after, the guesser: a heading, rows, and a sum.

    Without `before` its column is left out.
    """
    guesser = after.guesser
    columns: dict[str, dict[str, int]] = {
        "after": {category: correct for category, (correct, _) in after.results.items()},
        "guesser": guesser,
    }
    if before is not None:
        correct_before = {category: correct for category, (correct, _) in before.results.items()}
        columns = {"before": correct_before, **columns}
    heading = f"{'category':<14}{'asked':>6}" + "".join(f"{name:>13}" for name in columns)
    rows = [
        _row(category, asked, [counts.get(category, 0) for counts in columns.values()])
        for category, (_, asked) in after.results.items()
    ]
    in_all = _row("in all", after.num_asked, [sum(counts.values()) for counts in columns.values()])
    rule = "-" * len(heading)
    return [heading, rule, *rows, rule, in_all]


def identity_and_memory(engine: Responder, tokenizer: Tokenizer) -> list[Conversation]:
    """Two conversations: who the model is, and whether it knows in turn two what turn one said."""
    greedy = SamplingParams(
        max_tokens=EXAM_TOKENS, temperature=0.0, stop_tokens=stop_tokens(tokenizer)
    )
    told: Conversation = (Message("user", MEMORY[0]),)
    name, heard = _replies(engine, tokenizer, [IDENTITY, told], [greedy] * 2, "first")
    asked: Conversation = (*told, heard, Message("user", MEMORY[1]))
    [remembered] = _replies(engine, tokenizer, [asked], [greedy], "second")
    return [(*IDENTITY, name), (*asked, remembered)]


def sample_conversations(
    engine: Responder,
    tokenizer: Tokenizer,
    conversations: Iterable[Conversation],
    num: int,
    temperature: float = SAMPLE_TEMPERATURE,
) -> list[Conversation]:
    """The first `num` conversations that fit, the last answer of each written by the model.

    Each is cut before its last answer, or where that prompt leaves too little of the context,
    before an earlier one.  What cannot be asked or is too long throughout is passed over, so there
    may be fewer.  Equal seeds and weights give equal samples; temperature 0 is greedy.
    """
    room = engine.context_len - min(SAMPLE_ROOM_TOKENS, engine.context_len // 2)
    cuts = (_cut(conversation, tokenizer, room) for conversation in islice(conversations, LOOK_AT))
    prompts = list(islice((cut for cut in cuts if cut), max(0, num)))
    sampling = [
        SamplingParams(
            max_tokens=SAMPLE_TOKENS,
            temperature=temperature,
            seed=index,
            stop_tokens=stop_tokens(tokenizer),
        )
        for index in range(len(prompts))
    ]
    replies = _replies(engine, tokenizer, prompts, sampling, "sample")
    return [(*prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]


def _replies(
    engine: Responder,
    tokenizer: Tokenizer,
    prompts: Sequence[Conversation],
    sampling: Sequence[SamplingParams],
    name: str,
) -> list[Message]:
    """What the engine says to each prompt, up to the token that ends an answer."""
    requests = [
        Request(
            request_id=f"{name}-{index}",
            prompt_tokens=tuple(render_prompt(prompt, tokenizer)),
            sampling=params,
        )
        for index, (prompt, params) in enumerate(zip(prompts, sampling, strict=True))
    ]
    return [
        parse_reply([event.token for event in events], tokenizer)
        for events in engine.generate(requests)
    ]


def _cut(conversation: Conversation, tokenizer: Tokenizer, max_tokens: int) -> Conversation:
    """Up to the last question whose prompt has at most max_tokens; empty when there is none."""
    for end in range(len(conversation), 0, -1):
        if conversation[end - 1].role != "user":
            continue
        try:
            num_tokens = len(render_prompt(conversation[:end], tokenizer))
        except DataError:  # out of turn: nothing in it can be asked
            return ()
        if num_tokens <= max_tokens:
            return conversation[:end]
    return ()


def _judged(number: int, question: HeldOut, reply: str) -> ExamAnswer:
    return ExamAnswer(
        category=question.category,
        conversation=question.conversation,
        expected=question.answer,
        reply=reply,
        is_correct=judge_held_out(world_sample(number, question), reply).score == 1.0,
    )


def _text_of(message: Message) -> str:
    """The words; what stands in a tool's brackets keeps them, so it is never mistaken for words."""
    if isinstance(message.content, str):
        return message.content
    return "".join(
        part.text if part.kind == "text" else f"<{part.kind}>{part.text}</{part.kind}>"
        for part in message.content
    )


def _row(category: str, asked: int, counts: Sequence[int]) -> str:
    # Rounded down: 100% means all.
    shares = "".join(f"{count:>8}{100 * count // max(1, asked):>4}%" for count in counts)
    return f"{category:<14}{asked:>6}{shares}"
