"""The examination counts what is exactly right; samples are cut where the model has to answer."""

import json

import pytest

from nanochat.common.errors import EvalError
from nanochat.common.messages import Conversation, Message, Part
from nanochat.corpus import world
from nanochat.corpus.world import context
from nanochat.engine.engine import Engine
from nanochat.evals import exam
from nanochat.evals.exam import (
    Exam,
    ExamAnswer,
    exam_table,
    identity_and_memory,
    sample_conversations,
    take_exam,
)
from nanochat.tokenizer.chat import render_prompt
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.evals.fakes import Script, ScriptedEngine
from tests.fakes import random_gpt, tiny_config

QUESTIONS = world.held_out()


def script_of(tokenizer: Tokenizer, replies: list[str]) -> Script:
    """Each question's prompt gets its reply."""
    prompts = [tokenizer.decode(render_prompt(item.conversation, tokenizer)) for item in QUESTIONS]
    return dict(zip(prompts, replies, strict=True)).__getitem__


def user(*texts: str) -> Conversation:
    """Turns beginning with the user's."""
    return tuple(
        Message("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)
    )


@pytest.mark.req("FR-043", "US-4", "SC-003")
def test_an_exam_asks_everything_at_once_and_counts_what_is_right(
    tiny_tokenizer: Tokenizer,
) -> None:
    replies = [
        item.answer if index % 3 else item.answer[1:] for index, item in enumerate(QUESTIONS)
    ]
    engine = ScriptedEngine(tiny_tokenizer, script_of(tiny_tokenizer, replies))
    taken = take_exam(engine, tiny_tokenizer)
    [requests] = engine.requests
    assert len({request.request_id for request in requests}) == len(QUESTIONS) >= 200
    assert {request.sampling.temperature for request in requests} == {0.0}
    stops = {request.sampling.stop_tokens for request in requests}
    assert stops == {(tiny_tokenizer.special("<|assistant_end|>"), tiny_tokenizer.bos)}
    assert taken.replies == tuple(replies)
    assert taken.results == world.score(replies)
    num_right = sum(bool(index % 3) for index in range(len(QUESTIONS)))
    assert taken.total == (taken.num_correct, taken.num_asked) == (num_right, len(QUESTIONS))


def test_every_right_answer_fits_even_a_small_vocabulary(tiny_tokenizer: Tokenizer) -> None:
    longest = max(len(tiny_tokenizer.encode(item.answer)) for item in QUESTIONS)
    assert longest > exam.EXAM_TOKENS
    answers = [item.answer for item in QUESTIONS]
    engine = ScriptedEngine(tiny_tokenizer, script_of(tiny_tokenizer, answers))
    assert take_exam(engine, tiny_tokenizer).num_correct == len(QUESTIONS)
    assert engine.requests[0][0].sampling.max_tokens == longest + 1


def test_a_reply_ends_at_its_end_token_and_tools_are_not_words(tiny_tokenizer: Tokenizer) -> None:
    encode, special = tiny_tokenizer.encode, tiny_tokenizer.special
    end = special("<|assistant_end|>")
    by_prompt = {
        tiny_tokenizer.decode(render_prompt(item.conversation, tiny_tokenizer)): item.answer
        for item in QUESTIONS
    }

    def goes_on(prompt: str) -> list[int]:
        return [*encode(by_prompt[prompt]), end, *encode("and more")]

    def brackets(prompt: str) -> list[int]:
        words = encode(by_prompt[prompt])
        return [special("<|python_start|>"), *words, special("<|python_end|>"), end]

    right = take_exam(ScriptedEngine(tiny_tokenizer, goes_on), tiny_tokenizer)
    assert right.num_correct == len(QUESTIONS)
    assert right.replies[0] == QUESTIONS[0].answer
    wrong = take_exam(ScriptedEngine(tiny_tokenizer, brackets), tiny_tokenizer)
    assert wrong.num_correct == 0
    assert wrong.replies[0] == f"<python>{QUESTIONS[0].answer}</python>"


def test_the_guesser_gives_the_most_frequent_answer_of_each_category() -> None:
    taken = Exam.from_replies([""] * len(QUESTIONS))
    for category, num_right in taken.guesser.items():
        always = [world.baseline_guess(category)] * len(QUESTIONS)
        assert Exam.from_replies(always).results[category][0] == num_right >= 1
    assert list(taken.guesser) == list(world.CATEGORIES)


def test_as_many_replies_as_questions() -> None:
    with pytest.raises(EvalError, match="1 replies to 322 questions: give one to each, in order"):
        Exam.from_replies(["yes"])


@pytest.mark.req("FR-043")
def test_json_has_the_scores_and_every_reply() -> None:
    replies = [item.answer for item in QUESTIONS]
    replies[0] = "no"
    value = json.loads(json.dumps(Exam.from_replies(replies).to_json()))
    assert (value["correct"], value["asked"]) == (len(QUESTIONS) - 1, len(QUESTIONS))
    assert value["categories"]["addition"] == {"correct": 35, "asked": 36, "guesser": 1}
    assert value["answers"][0] == {
        "category": "addition",
        "conversation": [{"role": "user", "content": "What is 28 + 25?"}],
        "expected": QUESTIONS[0].answer,
        "reply": "no",
        "is_correct": False,
    }
    assert [answer["is_correct"] for answer in value["answers"]].count(False) == 1


def exam_of(num_addition: int, num_identity: int) -> Exam:
    """Of 3 sums and 200 questions about itself, so many were right."""
    one, name = "1 + 1 = 2.", world.baseline_guess("identity")
    return Exam(
        (
            *(ExamAnswer("addition", user("1 + 1?"), one, one, i < num_addition) for i in range(3)),
            *(
                ExamAnswer("identity", user("Who?"), name, "I.", i < num_identity)
                for i in range(200)
            ),
        )
    )


@pytest.mark.req("US-4")
def test_the_table_of_the_terminal() -> None:
    assert exam_table(exam_of(0, 1), exam_of(3, 199)) == [
        "category       asked       before        after      guesser",
        "-----------------------------------------------------------",
        "addition           3       0   0%       3 100%       0   0%",
        "identity         200       1   0%     199  99%     200 100%",
        "-----------------------------------------------------------",
        "in all           203       1   0%     202  99%     200  98%",
    ]
    assert exam_of(2, 3).lines() == [
        "category       asked        after      guesser",
        "----------------------------------------------",
        "addition           3       2  66%       0   0%",
        "identity         200       3   1%     200 100%",
        "----------------------------------------------",
        "in all           203       5   2%     200  98%",
    ]
    assert exam_of(0, 0).answers[0].question == "1 + 1?"


@pytest.mark.req("SC-003")
def test_identity_and_memory_are_asked_in_two_turns(tiny_tokenizer: Tokenizer) -> None:
    def script(prompt: str) -> str:
        if "Who are you?" in prompt:
            return "I am nanochat."
        return "Your name is Isla." if "What is my name?" in prompt else "Nice to meet you."

    engine = ScriptedEngine(tiny_tokenizer, script)
    identity, memory = identity_and_memory(engine, tiny_tokenizer)
    assert identity == user("Who are you?", "I am nanochat.")
    assert memory == user(
        exam.MEMORY[0], "Nice to meet you.", "What is my name?", "Your name is Isla."
    )
    assert [len(requests) for requests in engine.requests] == [2, 1]
    assert context.is_left_out(0, context._NAMES.index("Isla"), context._COLOURS.index("purple"))


def test_samples_are_cut_before_the_last_answer_that_fits(tiny_tokenizer: Tokenizer) -> None:
    long = "the quick brown fox " * 100
    tool = (*user("Sum?"), Message("assistant", (Part("python", "1+1"), Part("text", "2"))))
    conversations = [
        user("One?", "1.", "Two?", "2."),
        user("A question without an answer"),
        user("Short?", "Yes.", long, "No."),  # only its first question fits
        user(long, "Never."),  # passed over
        (Message("assistant", "I begin."),),  # nobody asks
        (Message("user", "a"), Message("user", "b")),  # out of turn
        tool,
        user("Not reached?", "No."),
    ]
    engine = ScriptedEngine(tiny_tokenizer, lambda _: "So.", context_len=200)
    samples = sample_conversations(engine, tiny_tokenizer, conversations, 4)
    assert samples == [
        user("One?", "1.", "Two?", "So."),
        user("A question without an answer", "So."),
        user("Short?", "So."),
        user("Sum?", "So."),
    ]
    [requests] = engine.requests
    assert [request.sampling.seed for request in requests] == [0, 1, 2, 3]
    assert {request.sampling.temperature for request in requests} == {0.7}
    assert max(len(request.prompt_tokens) for request in requests) <= 200 - 64


def test_there_may_be_fewer_samples_or_none(tiny_tokenizer: Tokenizer) -> None:
    engine = ScriptedEngine(tiny_tokenizer, lambda _: "So.")
    assert sample_conversations(engine, tiny_tokenizer, [user("a", "b")], 5) == [user("a", "So.")]
    assert sample_conversations(engine, tiny_tokenizer, [user("a", "b")], 0) == []
    assert sample_conversations(engine, tiny_tokenizer, [], 5) == []
    endless = (user("the " * 1000) for _ in iter(int, 1))  # none of them fits
    assert sample_conversations(engine, tiny_tokenizer, endless, 1) == []


@pytest.mark.req("SC-003")
def test_a_real_engine_will_do(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exam, "EXAM_TOKENS", 6)
    monkeypatch.setattr(exam, "SAMPLE_TOKENS", 6)
    model = random_gpt(tiny_config(vocab_size=tiny_tokenizer.vocab_size, context_len=300))
    engine = Engine(model.eval().requires_grad_(False), tiny_tokenizer)
    talks = identity_and_memory(engine, tiny_tokenizer)
    once, again = (
        sample_conversations(engine, tiny_tokenizer, [user("a", "b"), user("c")], 2)
        for _ in range(2)
    )
    assert [len(talk) for talk in talks] == [2, 4]
    assert once == again
    assert [talk[-1].role for talk in [*talks, *once]] == ["assistant"] * 4
