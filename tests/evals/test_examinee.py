"""Our engine and transformers as examinees, and the terminal's lines."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.common.errors import EvalError
from nanochat.common.messages import Message
from nanochat.engine.engine import Engine
from nanochat.evals.examinee import (
    Asking,
    EngineExaminee,
    bits_verdict,
    weights_hash,
    windows,
)
from nanochat.evals.foreign import ForeignExaminee, is_foreign
from nanochat.evals.progress import EvalDisplay, result_line
from nanochat.evals.records import SampleRecord
from nanochat.evals.results import TaskResult
from nanochat.evals.task import Sample, Verdict
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.engine.conftest import CONTEXT_LEN, random_model
from tests.evals.foreign_model import write_foreign


@pytest.fixture(scope="module")
def gpt() -> GPT:
    return random_model()


@pytest.fixture
def examinee(gpt: GPT, tiny_tokenizer: Tokenizer) -> EngineExaminee:
    return EngineExaminee(name="tiny", engine=Engine(gpt, tiny_tokenizer, format="float32"))


def test_a_hash_is_of_the_weights_not_of_their_name() -> None:
    one, same, other = random_model(), random_model(), random_model(seed=1)
    assert weights_hash(one) == weights_hash(same) != weights_hash(other)
    assert weights_hash(one) != weights_hash(same.to(torch.bfloat16))


def test_bits_per_byte_are_those_of_the_whole_text(
    examinee: EngineExaminee, gpt: GPT, tiny_tokenizer: Tokenizer
) -> None:
    text = "The cat sat on the mat. " * 20
    tokens = tiny_tokenizer.encode(text)
    parts = windows(tokens, CONTEXT_LEN - 1)
    assert len(parts) > 1 and sum(parts, []) == tokens  # type: ignore[arg-type]
    nats = 0.0
    for part in parts:
        whole = torch.tensor([[tiny_tokenizer.bos, *part]])
        logprobs_TV = gpt(whole)[0].log_softmax(-1)
        nats -= float(logprobs_TV[:-1].gather(1, whole[0, 1:, None]).sum())
    [found] = examinee.likelihoods([Sample(sample_id="1", prompt=text)], "bits_per_byte", "default")
    assert found.details["num_bytes"] == len(text.encode())
    assert found.score == pytest.approx(nats / math.log(2), rel=1e-5)
    assert bits_verdict(Sample(sample_id="1", prompt=""), math.log(2), 4, 1).score == 1.0


@pytest.mark.req("FR-041")
def test_a_letter_is_chosen_by_the_logits_behind_the_prompt(
    examinee: EngineExaminee, gpt: GPT, tiny_tokenizer: Tokenizer
) -> None:
    sample = Sample(
        sample_id="1", prompt=(Message("user", "Why?"),), choices=("A", "B", "C"), gold=0
    )
    prompt = examinee.encoder.render(sample.prompt)  # type: ignore[arg-type]
    logits_V = gpt(torch.tensor([prompt]))[0, -1]
    letters = [tiny_tokenizer.encode(letter)[0] for letter in sample.choices]
    [found] = examinee.likelihoods([sample], "letter_choice", "nanochat")
    assert found.choice == int(logits_V[letters].argmax())
    assert found.choice_logprobs == pytest.approx(
        logits_V.log_softmax(-1)[letters].tolist(), abs=1e-4
    )


@pytest.mark.req("FR-041")
def test_a_lettered_question_costs_less_than_a_pass_of_its_prompt(
    examinee: EngineExaminee, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the prompt is fed, once, whatever the number of letters."""
    fed: list[int] = []
    trunk = examinee.engine.forward.trunk

    def counting(tokens: list[int], *rest: object) -> torch.Tensor:
        fed.append(len(tokens))
        return trunk(tokens, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(examinee.engine.forward, "trunk", counting)
    samples = [
        Sample(
            sample_id=f"{n}", prompt=(Message("user", f"Why {n}?"),), choices=("A", "B", "C", "D")
        )
        for n in range(5)
    ]
    examinee.likelihoods(samples, "letter_choice", "default")
    prompts = sum(len(examinee.encoder.render(each.prompt)) for each in samples)  # type: ignore[arg-type]
    assert sum(fed) == prompts


@pytest.mark.req("FR-039")
def test_answers_come_as_they_are_done_and_stop_where_they_should(
    examinee: EngineExaminee,
) -> None:
    samples = [Sample(sample_id=f"{n}", prompt=(Message("user", f"{n}"),)) for n in range(3)]
    samples.append(Sample(sample_id="text", prompt="A text"))
    asking = Asking(max_tokens=6, num_samples=2, temperature=1.0, seed=3)
    found = dict(examinee.answers(samples, asking))
    assert sorted(found) == [0, 1, 2, 3]
    assert all(len(outputs) == 2 for outputs in found.values())
    assert dict(examinee.answers(samples, asking)) == found
    whole = found[3][0]
    stop = whole[2]
    stopped = Asking(max_tokens=6, num_samples=2, temperature=1.0, seed=3, stop=(stop,))
    text = dict(examinee.answers(samples[3:], stopped))[0][0]
    assert stop not in text and len(text) < len(whole)


def test_a_prompt_beyond_the_context_is_cut_or_slides_as_the_reference(
    examinee: EngineExaminee,
) -> None:
    long = [Sample(sample_id="1", prompt=(Message("user", "word " * 200),))]
    for mode in ("default", "nanochat"):
        told: list[tuple[str, str]] = []
        asking = Asking(
            max_tokens=3,
            mode=mode,  # type: ignore[arg-type]
            note=lambda *about, told=told: told.append(about),  # type: ignore[misc]
        )
        assert len(list(examinee.answers(long, asking))) == 1
        assert told == ([("1", "cut")] if mode == "default" else [])


# --------------------------------------------------------------------------------- transformers


@pytest.fixture
def foreign(tmp_path: Path) -> ForeignExaminee:
    pytest.importorskip("transformers")
    write_foreign(tmp_path)
    return ForeignExaminee(tmp_path, device="cpu")


def test_a_model_of_transformers_scores_as_its_own_loss_says(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = write_foreign(tmp_path)
    assert is_foreign(tmp_path) and not is_foreign(tmp_path.parent)
    foreign = ForeignExaminee(tmp_path, device="cpu")
    assert len(foreign.model_hash) == 64 and foreign.encoder.context_len == 12
    sample = Sample(sample_id="1", prompt="one two ", choices=("three", "four one"), gold=0)
    [found] = foreign.likelihoods([sample], "multiple_choice", "default")
    tokens = torch.tensor([[0, 1, 2, 4, 1]])
    with torch.inference_mode():
        logprobs_TV = model(tokens).logits[0].log_softmax(-1)
    expected = float(logprobs_TV[2, 4] + logprobs_TV[3, 1])
    assert found.choice_logprobs[1] == pytest.approx(expected, abs=1e-5)
    text = Sample(sample_id="1", prompt="one two three")
    [bits] = foreign.likelihoods([text], "bits_per_byte", "default")
    assert bits.details["num_bytes"] == 13 and bits.score > 0
    [(index, (written,))] = foreign.answers([text], Asking(max_tokens=3))
    assert index == 0 and isinstance(written, str)
    chat = Sample(sample_id="1", prompt=(Message("user", "one"),), choices=("A", "B"))
    with pytest.raises(EvalError, match="has no chat template"):
        foreign.likelihoods([chat], "letter_choice", "default")


@pytest.mark.req("FR-039", "FR-043")
@pytest.mark.parametrize(
    ("num_words", "max_tokens", "is_cut"),
    [(6, 20, False), (10, 3, False), (11, 3, True), (40, 3, True), (40, 200, True)],
)
def test_a_model_of_transformers_loses_only_what_does_not_fit_and_no_calculator_is_noted(
    foreign: ForeignExaminee,
    monkeypatch: pytest.MonkeyPatch,
    num_words: int,
    max_tokens: int,
    is_cut: bool,
) -> None:
    """Its context is 12: the beginning of a text, and what is written, take part of it."""
    asked: list[list[int]] = []
    generate = foreign._model.generate
    monkeypatch.setattr(
        foreign._model,
        "generate",
        lambda tokens, **more: asked.append(tokens[0].tolist()) or generate(tokens, **more),
    )
    words = [("one", "two", "three", "four")[n % 4] for n in range(num_words)]
    told: list[str] = []
    asking = Asking(max_tokens=max_tokens, tools=True, note=lambda _, flag: told.append(flag))
    prompt = " ".join(words)
    sample = Sample(sample_id="1", prompt=prompt)
    assert len(list(foreign.answers([sample], asking))) == 1
    [[bos, *rest]] = asked
    expected = foreign._encode(prompt)
    assert bos == 0 and sorted(told) == (["cut", "no_tools"] if is_cut else ["no_tools"])
    assert rest == (expected[-(12 - min(max_tokens, 6) - 1) :] if is_cut else expected)
    told.clear()
    list(foreign.answers([sample], replace(asking, tools=False)))
    assert told == (["cut"] if is_cut else [])


def test_a_model_of_transformers_is_asked_half_a_surrogate_pair(foreign: ForeignExaminee) -> None:
    [bits] = foreign.likelihoods(
        [Sample(sample_id="1", prompt="one \ud800")], "bits_per_byte", "default"
    )
    assert bits.details["num_bytes"] == 7  # as U+FFFD
    choice = Sample(sample_id="1", prompt="one ", choices=("\ud800", "two"))
    assert foreign.likelihoods([choice], "multiple_choice", "default")[0].choice is not None
    foreign._tokenizer.chat_template = "{% for m in messages %}one {{ m.content }}{% endfor %} two"
    [asked] = foreign._tokenizer.apply_chat_template([[{"role": "user", "content": "four"}]])[
        "input_ids"
    ]
    assert foreign._render((Message("user", "four"),)) == asked == [1, 4, 2]
    assert foreign._render((Message("user", "\ud800"),)) == [1, 0, 2]


# --------------------------------------------------------------------------------- the terminal


def result(**fields: object) -> TaskResult:
    return TaskResult(
        label="copa", version="1", kind="multiple_choice", baseline=0.5,
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_terminal_is_told_the_number_and_how_sure_it_is() -> None:
    record = SampleRecord(
        task="copa",
        sample=Sample(sample_id="1", prompt=""),
        verdict=Verdict(sample_id="1", score=1),
    )
    line = result_line(result(records=(record,) * 4, seconds=75.0))
    assert "100.00%  (51.01% to 100.00%)  centred  1.0000" in line and "1 min 15 s" in line
    several = result_line(result(records=(record,), pass_at={1: 0.25, 8: 0.75}))
    assert "pass@1 25.00%  pass@8 75.00%" in several
    assert result_line(result(error="no file")).endswith("failed: no file")
    assert result_line(result(records=(record,), seconds=7330.0)).endswith("2 h 02 min")


def test_plain_lines_tell_progress_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.evals.progress.LINE_SECONDS", 0.0)
    stream = io.StringIO()
    display = EvalDisplay(stream=stream, num_processes=2)
    display.start("copa", 10, 2)
    display.advance(2)
    display.finish(result(error="stopped"))
    text = stream.getvalue()
    assert "2 of 10 samples are known already" in text and "copa: 6 of 10" in text
    assert "left" in text and "failed: stopped" in text


def test_a_run_that_is_broken_off_leaves_no_bar_and_no_hidden_cursor() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    display = EvalDisplay(stream=stream)
    display.start("copa", 10, 0)
    assert "\x1b[?25l" in stream.getvalue()
    display.close()
    assert stream.getvalue().rindex("\x1b[?25h") > stream.getvalue().rindex("\x1b[?25l")
