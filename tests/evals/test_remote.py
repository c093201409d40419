"""A model behind an address: a stand-in server answers as OpenAI's do, by an engine of ours."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.common.errors import EvalError
from nanochat.common.messages import Message
from nanochat.engine.engine import Engine
from nanochat.evals import remote as remote_module
from nanochat.evals.core import CORE_TASKS
from nanochat.evals.data import DataFiles
from nanochat.evals.examinee import Asking, EngineExaminee
from nanochat.evals.remote import RemoteExaminee
from nanochat.evals.report_eval import render_html
from nanochat.evals.report_markdown import render_markdown
from nanochat.evals.results import EvalResult
from nanochat.evals.runner import RunOptions, run_tasks
from nanochat.evals.task import Judgement, Sample, Task
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.conftest import LOGITS_ATOL
from tests.engine.conftest import random_model
from tests.evals.bundle import write_bundle
from tests.listening import Handler, listening

Answer = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any]]]


class Stand:
    """What is asked, and what is answered."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        self.answer: Answer = lambda path, body: (404, {})
        self.models: list[dict[str, str]] = []
        self.url = ""


@pytest.fixture
def stand() -> Iterator[Stand]:
    state = Stand()

    class Answers(Handler):
        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.say(200, {}, content=json.dumps({"data": state.models}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.asked.append((self.path, body, self.headers.get("Authorization")))
            status, answer = state.answer(self.path, body)
            self.say(status, {"Retry-After": "0"}, content=json.dumps(answer).encode())

    with listening(Answers) as state.url:
        yield state


def echo(engine: Engine, text: str, index: int) -> dict[str, Any]:
    """A completion with echo: the text's tokens, and one generated after it."""
    tokenizer = engine.tokenizer
    tokens = tokenizer.encode(text)
    [[score]] = engine.score_groups([[([tokenizer.bos, *tokens], 1)]])
    pieces = [tokenizer.decode([token]) for token in tokens]
    offsets = [sum(map(len, pieces[:place])) for place in range(len(pieces))]
    best = [
        {tokenizer.decode([b]): p + m if b != t else p}
        for b, t, p, m in zip(score.best, tokens, score.logprobs, score.margins, strict=True)
    ]
    return {
        "index": index,
        "text": text + "!",
        "logprobs": {
            "tokens": [*pieces, "!"],
            "token_logprobs": [*score.logprobs, -1.0],
            "top_logprobs": [*best, {"!": -1.0}],
            "text_offset": [*offsets, len(text)],
        },
    }


@pytest.mark.req("FR-037")
def test_likelihoods_over_http_are_those_of_the_engine(
    stand: Stand, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    engine = Engine(random_model(), tiny_tokenizer, format="float32")

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        assert path == "/v1/completions" and body["echo"] and body["model"] == "m"
        echoes = [echo(engine, text, index) for index, text in enumerate(body["prompt"])]
        return 200, {"choices": echoes[::-1]}

    stand.answer = answer
    source = DataFiles([write_bundle(tmp_path)])
    names = ("openbook_qa", "winograd", "lambada_openai")
    tasks = [task for task in CORE_TASKS if task.name in names]
    remote = RemoteExaminee(name="m", url=stand.url, api_key="secret")
    found = run_tasks(remote, tasks, RunOptions(source=source, limit=4))
    ours = run_tasks(
        EngineExaminee(name="m", engine=engine), tasks, RunOptions(source=source, limit=4)
    )
    for name in names:
        assert found[name].error is None
        for here, there in zip(ours[name].verdicts, found[name].verdicts, strict=True):
            assert there.choice_logprobs == pytest.approx(here.choice_logprobs, abs=LOGITS_ATOL)
            assert (there.score, there.choice) == (here.score, here.choice)
            assert there.choice_tokens == here.choice_tokens
    assert {key for _, _, key in stand.asked} == {"Bearer secret"}


def test_bits_over_http_count_the_bytes_of_the_tokens_that_have_a_likelihood(stand: Stand) -> None:
    stand.answer = lambda path, body: (
        200,
        {
            "choices": [
                {
                    "index": 0,
                    "text": "one two!",
                    "logprobs": {
                        "tokens": ["one", " two", "!"],
                        "token_logprobs": [None, -math.log(4), -1.0],
                        "text_offset": [0, 3, 7],
                    },
                }
            ]
        },
    )
    remote = RemoteExaminee(name="m", url=f"{stand.url}/v1/")
    [found] = remote.likelihoods(
        [Sample(sample_id="1", prompt="one two")], "bits_per_byte", "default"
    )
    assert found.score == pytest.approx(2.0) and found.details["num_bytes"] == 4


@pytest.mark.req("FR-038")
def test_the_likeliest_letter_of_a_chat_answer_wins(stand: Stand) -> None:
    tops = [{"token": "C", "logprob": -0.5}, {"token": "A", "logprob": -1.0}]
    stand.answer = lambda path, body: (
        200,
        {"choices": [{"logprobs": {"content": [{"top_logprobs": tops}]}}]},
    )
    remote = RemoteExaminee(name="m", url=stand.url)
    samples = [
        Sample(sample_id="1", prompt=(Message("user", "?"),), choices=("A", "B"), gold=0),
        Sample(sample_id="2", prompt=(Message("user", "?"),), choices=("B", "D"), gold=0),
    ]
    first, second = remote.likelihoods(samples, "letter_choice", "default")
    assert first.is_correct and first.choice_logprobs == (-1.0, -math.inf)
    assert not second.is_correct and second.choice is None
    assert stand.asked[0][1]["max_tokens"] == 1 and stand.asked[0][0] == "/v1/chat/completions"
    stand.answer = lambda path, body: (200, {"choices": [{"logprobs": None}]})
    with pytest.raises(EvalError, match="expected top_logprobs"):
        remote.likelihoods(samples, "letter_choice", "default")


def test_answers_come_from_chat_or_from_a_text_and_a_busy_server_is_asked_again(
    stand: Stand,
) -> None:
    busy = iter([503, 429])

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if status := next(busy, None):
            return status, {}
        if path.endswith("/chat/completions"):
            return 200, {"choices": [{"message": {"content": body["messages"][-1]["content"]}}]}
        return 200, {"choices": [{"text": body["prompt"] + "."}]}

    stand.answer = answer
    remote = RemoteExaminee(name="m", url=stand.url, num_parallel=1)
    samples = [
        Sample(sample_id="1", prompt=(Message("user", "hello"),)),
        Sample(sample_id="2", prompt="text"),
    ]
    found = dict(remote.answers(samples, Asking(max_tokens=5, stop=("x",))))
    assert found == {0: ("hello",), 1: ("text.",)}
    assert stand.asked[-1][1]["stop"] == ["x"] and stand.asked[-1][1]["max_tokens"] == 5


def test_top_k_is_sent_where_it_is_said(stand: Stand) -> None:
    stand.answer = lambda path, body: (200, {"choices": [{"message": {"content": "x"}}]})
    remote = RemoteExaminee(name="m", url=stand.url)
    sample = Sample(sample_id="1", prompt=(Message("user", "?"),))
    for top_k in (None, 5, 0):
        list(remote.answers([sample], Asking(top_k=top_k)))
    assert [body.get("top_k", "unsaid") for _, body, _ in stand.asked] == ["unsaid", 5, 0]


@pytest.mark.req("FR-039", "FR-043")
@pytest.mark.parametrize("owner", [None, "someone", "nanochat"])
def test_a_server_of_ours_is_told_to_use_its_calculator_and_of_others_it_is_noted(
    stand: Stand, tmp_path: Path, owner: str | None
) -> None:
    stand.answer = lambda path, body: (200, {"choices": [{"message": {"content": "4"}}]})
    if owner is not None:
        stand.models = [{"id": "m", "owned_by": owner}]
    samples = [Sample(sample_id=str(n), prompt=(Message("user", "2+2?"),)) for n in range(2)]
    task = Task(
        name="sums", version="1", kind="generative", load=lambda selection: samples,
        judge=lambda sample, output: Judgement(1.0), tools=True,
    )  # fmt: skip
    remote = RemoteExaminee(name="m", url=stand.url)
    options = RunOptions(source=DataFiles([tmp_path]))
    found = run_tasks(remote, [task], options)
    is_ours = owner == "nanochat"
    tools = [{"type": "calculator"}] if is_ours else None
    assert [body.get("tools") for _, body, _ in stand.asked] == [tools] * 2
    note = "2 of 2: answered without the calculator that the task offers"
    assert [each.startswith(note) for each in found["sums"].notes] == ([] if is_ours else [True])
    result = EvalResult(model="m", tasks=found)
    assert (note in render_html(result)) != is_ours
    assert (note in render_markdown(result)) != is_ours
    stand.asked.clear()
    assert not run_tasks(remote, [replace(task, tools=False)], options)["sums"].notes
    assert "tools" not in stand.asked[0][1]


@pytest.mark.req("FR-043")
def test_an_answer_that_breaks_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.evals.remote._wait_s", lambda told, left: 0.0)
    whole = json.dumps({"choices": [{"text": "four"}]}).encode()
    num_asked = []

    class Breaking(Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            num_asked.append(1)
            self.send_response(503 if len(num_asked) == 2 else 200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole if len(num_asked) == 3 else whole[:9])

    sample, asking = Sample(sample_id="1", prompt="2 + 2 is"), Asking()
    with listening(Breaking) as url:
        remote = RemoteExaminee(name="m", url=url)
        assert list(remote.answers([sample], asking)) == [(0, ("four",))]
        assert len(num_asked) == 3
        with pytest.raises(EvalError, match="cannot be asked .*IncompleteRead"):
            list(remote.answers([sample], asking))
    assert len(num_asked) == 3 + remote_module.MOST_TRIES


@pytest.mark.req("FR-043")
@pytest.mark.parametrize(
    ("num_letters", "max_tokens", "expected", "told"),
    [
        (40, 50, 50, []),
        (90, 50, 6, []),  # what is behind the prompt is asked for, by halves: 10 fit
        (400, 30, 30, [("1", "cut")]),  # the prompt makes room for all of a short answer
        (400, 500, 31, [("1", "cut")]),  # and of a long one for as much as half of the context
    ],
)
def test_a_prompt_beyond_the_servers_context_loses_its_beginning(
    stand: Stand, num_letters: int, max_tokens: int, expected: int, told: list[tuple[str, str]]
) -> None:
    """A server of 100 letters, prompt and answer together."""

    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        [message] = body["messages"]
        if len(message["content"]) + body["max_tokens"] > 100:
            return 400, {"error": {"code": "context_length_exceeded"}}
        return 200, {"choices": [{"message": {"content": message["content"]}}]}

    stand.answer = answer
    remote, found = RemoteExaminee(name="m", url=stand.url), []
    asking = Asking(max_tokens=max_tokens, note=lambda *about: found.append(about))
    prompt = "".join(chr(97 + n % 26) for n in range(num_letters))
    sample = Sample(sample_id="1", prompt=(Message("user", prompt),))
    [(_, (said,))] = remote.answers([sample], asking)
    assert stand.asked[-1][1]["max_tokens"] == expected and found == told
    assert prompt.endswith(said) and (len(said) == num_letters or 40 <= len(said) <= 70)


def test_what_fits_in_no_way_is_wrong_alone_and_documents_are_asked_in_parts(stand: Stand) -> None:
    def answer(path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if any(len(text) > 20 for text in body["prompt"]):
            return 400, {"error": {"message": "maximum context length is 20"}}
        return 200, {"choices": [told(n, text) for n, text in enumerate(body["prompt"])]}

    def told(index: int, text: str) -> dict[str, Any]:
        letters = [*text, "!"]
        logprobs = {
            "tokens": letters,
            "token_logprobs": [-math.log(2)] * len(letters),
            "text_offset": list(range(len(letters))),
        }
        return {"index": index, "text": text + "!", "logprobs": logprobs}

    stand.answer = answer
    remote = RemoteExaminee(name="m", url=stand.url)
    samples = [
        Sample(sample_id="1", prompt="short ", choices=("a", "b")),
        Sample(sample_id="2", prompt="x" * 90, choices=("a", "b")),
        Sample(sample_id="3", prompt="y", choices=("a" * 30, "b" * 30)),
    ]
    found = remote.likelihoods(samples, "multiple_choice", "default")
    assert [each.details.get("flags") for each in found] == [None, ["cut"], ["cut"]]
    assert [each.score for each in found] == [1.0, 1.0, 0.0]
    assert found[2].explanation == "longer than the server's context, even without its prompt"
    halved = Sample(sample_id="5", prompt="half \ud800 a pair")  # 13 letters, one of three bytes
    [bits] = remote.likelihoods([halved], "bits_per_byte", "default")
    assert bits.details["num_bytes"] == 15
    document = Sample(sample_id="4", prompt="one two three four five six seven")
    [bits] = remote.likelihoods([document], "bits_per_byte", "default")
    assert bits.score == pytest.approx(33) and bits.details["num_bytes"] == 33
    assert bits.details["num_parts"] == 2 and bits.details["flags"] == ["parts"]


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (400, {"error": "no"}, "answers 400"),
        (200, {"choices": [{"index": 0, "text": "other", "logprobs": None}]}, "does not echo"),
        (200, {"choices": []}, "0 answers to 1 prompts"),
        (200, {}, "no choices in the answer"),
    ],
)
def test_a_server_that_cannot_tell_likelihoods_is_found_out(
    stand: Stand, status: int, answer: dict[str, Any], message: str
) -> None:
    stand.answer = lambda path, body: (status, answer)
    remote = RemoteExaminee(name="m", url=stand.url)
    sample = Sample(sample_id="1", prompt="a ", choices=("b",))
    with pytest.raises(EvalError, match=message):
        remote.likelihoods([sample], "language_modeling", "default")


def test_an_address_where_nobody_listens_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.evals.remote.MOST_TRIES", 1)
    remote = RemoteExaminee(name="m", url="http://127.0.0.1:9")
    with pytest.raises(EvalError, match="cannot be asked"):
        remote.likelihoods([Sample(sample_id="1", prompt="a")], "bits_per_byte", "default")
