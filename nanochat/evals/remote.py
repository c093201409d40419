"""A model behind an OpenAI-compatible address.   in: samples   out: verdicts, answers
who calls: runner.py, through cli/eval.py   (imports no torch)

    likelihoods    POST /completions with echo and logprobs; the tokens are the server's own
    letters        POST /chat/completions, one token, its likeliest alternatives
    answers        POST /chat/completions, or /completions where the prompt is a text

A server that ignores echo is found out: its answer does not begin with what was sent.  How long its
context is, nobody has to know: what it refuses as too long is asked again, shorter (`_within`,
`_cut`) or in parts (`_bits`), and says so (flags cut, parts).  A server of ours is told to use its
calculator where a task offers one; of any other an answer is noted as made without (no_tools).
Read next: echoes.py (what is made of the likelihoods), server/completions.py (our side of it).
"""

import http.client
import json
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from nanochat.common.errors import EvalError
from nanochat.common.messages import Conversation, conversation_to_json
from nanochat.evals.echoes import Echo, echo_bits, echo_of, echo_verdict
from nanochat.evals.examinee import Asking
from nanochat.evals.task import Kind, Mode, Sample, Verdict
from nanochat.tokenizer.tokenizer import replace_surrogates

__all__ = ["RemoteExaminee"]

TIMEOUT_S = 600.0
MOST_TRIES = 5
MOST_WAIT_S = 30.0
TOP_LOGPROBS = 20  # as many as OpenAI's servers tell
MANY_PROMPTS = 16  # in one request
LIST_TIMEOUT_S = 20.0
OURS = "nanochat"  # who owns the models of a server of ours, in GET /v1/models
HALVING_STEPS = 5  # (7/8)^5 is about a half: so much of a prompt may go to make room for the answer
# How servers say that a prompt does not fit: OpenAI's and ours, vLLM's, llama.cpp's, Ollama's.
TOO_LONG = re.compile(
    r"context_length_exceeded|context (length|size|window)|max_model_len|exceed_context_size"
    r"|(prompt|input) is too long",
    re.IGNORECASE,
)

T = TypeVar("T")
Prompt = str | Conversation


class _TooLongError(Exception):
    """The server refuses a prompt for its length."""


@dataclass(kw_only=True)
class RemoteExaminee:
    """A model behind an address such as http://127.0.0.1:8000/v1."""

    name: str
    """The model's name there."""
    url: str
    api_key: str | None = None
    num_parallel: int = 8
    model_hash: str = ""
    service: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    chunk_tokens: int = 16384

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        if not self.url.endswith("/v1"):
            self.url += "/v1"
        self.service = f"{self.name} at {self.url}"
        self.settings = {"url": self.url, **self.settings}

    def likelihoods(self, samples: Sequence[Sample], kind: Kind, mode: Mode) -> list[Verdict]:
        """The verdicts, in order.

        Raises: EvalError for a server that cannot be reached or does not tell likelihoods.
        """
        if kind == "letter_choice":
            return self._in_parallel(lambda sample: self._letters(sample, mode), samples)
        if kind == "bits_per_byte":
            echoes = self._echoes([str(sample.prompt) for sample in samples])
            return [self._bits(*each) for each in zip(samples, echoes, strict=True)]
        following = iter(self._echoes([text for sample in samples for text in sample.texts]))
        found = []
        for sample in samples:
            told = [next(following) for _ in sample.choices]
            whole = [echo for echo in told if echo is not None]
            is_whole = len(whole) == len(told)
            found.append(
                echo_verdict(sample, kind, mode, whole)
                if is_whole
                else self._cut(sample, kind, mode)
            )
        return found

    def answers(
        self, samples: Sequence[Sample], asking: Asking
    ) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(index of a sample, what was written), as they are done."""
        with ThreadPoolExecutor(self.num_parallel) as threads:
            waiting = {
                threads.submit(self._written, sample, asking): index
                for index, sample in enumerate(samples)
            }
            try:
                for done in as_completed(waiting):
                    yield waiting[done], done.result()
            finally:
                for each in waiting:
                    each.cancel()

    def _written(self, sample: Sample, asking: Asking) -> tuple[str, ...]:
        body: dict[str, Any] = {
            "max_tokens": asking.max_tokens,
            "temperature": asking.temperature,
            "n": asking.num_samples,
            "seed": asking.seed,
            **({} if asking.top_k is None else {"top_k": asking.top_k}),
            **({"stop": list(asking.stop)} if asking.stop else {}),
        }
        if asking.tools:
            if self._has_calculator and not isinstance(sample.prompt, str):
                body["tools"] = [{"type": "calculator"}]
            else:
                asking.note(sample.sample_id, "no_tools")
        choices, is_cut = self._within(sample.prompt, body)
        if is_cut:
            asking.note(sample.sample_id, "cut")
        if isinstance(sample.prompt, str):
            return tuple(str(choice["text"]) for choice in choices)
        return tuple(str(choice["message"]["content"] or "") for choice in choices)

    @cached_property
    def _has_calculator(self) -> bool:
        """Whether the model is one of a `nanochat serve`, whose calculator answers can use.

        Others are not tried: some take a tool that they do not know for a part of the prompt.
        """
        request = urllib.request.Request(f"{self.url}/models", headers=self._headers())
        try:
            with urllib.request.urlopen(request, timeout=LIST_TIMEOUT_S) as answer:
                models = json.loads(answer.read())["data"]
            return any(each["id"] == self.name and each["owned_by"] == OURS for each in models)
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
            return False  # what is wrong with the server, the questions will tell

    def _letters(self, sample: Sample, mode: Mode) -> Verdict:
        assert not isinstance(sample.prompt, str), "lettered answers to a text"
        body = {
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        [choice], is_cut = self._within(sample.prompt, body)
        try:
            told = choice["logprobs"]["content"][0]["top_logprobs"]
            known = {each["token"]: float(each["logprob"]) for each in told}
        except (KeyError, TypeError, IndexError):
            raise EvalError(
                f"{self.url} tells no likelihoods with a chat answer: expected top_logprobs"
            ) from None
        # A letter that is not among the likeliest is less likely than all of them.
        logprobs = [known.get(letter, -math.inf) for letter in sample.choices]
        index = max(range(len(logprobs)), key=lambda place: logprobs[place])
        is_told = logprobs[index] > -math.inf
        is_correct = is_told and index == sample.gold
        return Verdict(
            sample_id=sample.sample_id,
            score=float(is_correct),
            choice=index if is_told else None,
            output=sample.choices[index] if is_told else None,
            choice_logprobs=tuple(logprobs),
            choice_tokens=(1,) * len(logprobs),
            explanation=""
            if is_correct
            else f"no letter among the {TOP_LOGPROBS} likeliest tokens"
            if not is_told
            else f"chose {index}, right is {sample.gold}",
            details={"flags": ["cut"]} if is_cut else {},
        )

    def _within(self, prompt: Prompt, body: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
        """The answers, and whether the prompt had to lose its beginning to be taken.

        An answer that does not fit behind its prompt is asked for shorter.  Only a prompt that is
        too long by itself is cut, by eighths; then at most half of what fits goes to make room for
        the answer, as examinee.py has it.
        Raises: EvalError for a server that refuses even the shortest.
        """
        if (found := self._with_room(prompt, body)) is not None:
            return found, False
        while self._tried(prompt, {**body, "max_tokens": 1}) is None:
            prompt = _shortened(prompt)
        for _ in range(HALVING_STEPS):
            prompt = _shortened(prompt)
            if (found := self._tried(prompt, body)) is not None:
                return found, True
        found = self._with_room(prompt, body)
        if found is None:
            raise EvalError(f"{self.url} refuses a prompt as too long that it has taken before")
        return found, True

    def _with_room(self, prompt: Prompt, body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The answers, as long as they may be; None where not even one token fits."""
        max_tokens = int(body["max_tokens"])
        while max_tokens:
            if (found := self._tried(prompt, {**body, "max_tokens": max_tokens})) is not None:
                return found
            max_tokens //= 2
        return None

    def _tried(self, prompt: Prompt, body: Mapping[str, Any]) -> list[dict[str, Any]] | None:
        """The answers; None where the server finds it too long."""
        try:
            if isinstance(prompt, str):
                return _choices(self._post("completions", {**body, "prompt": prompt}))
            messages = conversation_to_json(prompt)
            return _choices(self._post("chat/completions", {**body, "messages": messages}))
        except _TooLongError:
            return None

    def _cut(self, sample: Sample, kind: Kind, mode: Mode) -> Verdict:
        """The verdict once the prompt has lost so much of its beginning that all choices fit.

        Wrong where they do not fit without a prompt either.
        """
        prompt = str(sample.prompt)
        while prompt := prompt[(len(prompt) + 7) // 8 :]:
            shorter = replace(sample, prompt=prompt)
            echoes = [echo for echo in self._echoes(shorter.texts) if echo is not None]
            if len(echoes) == len(sample.choices):
                return echo_verdict(shorter, kind, mode, echoes, ("cut",))
        return Verdict(
            sample_id=sample.sample_id,
            score=0.0,
            explanation="longer than the server's context, even without its prompt",
            details={"flags": ["cut"]},
        )

    def _bits(self, sample: Sample, echo: Echo | None) -> Verdict:
        """A document's bits; one that is longer than the server's context is asked in halves."""
        waiting: list[tuple[str, Echo | None]] = [(replace_surrogates(str(sample.prompt)), echo)]
        parts: list[tuple[str, Echo]] = []
        while waiting:
            text, told = waiting.pop(0)
            if told is not None:
                parts.append((text, told))
                continue
            if len(text) < 2:
                raise EvalError(f"{self.url} refuses {text!r} as too long")
            middle = max(text.rfind(" ", 1, len(text) // 2 + 1), 0) or len(text) // 2
            halves = [text[:middle], text[middle:]]
            waiting[:0] = zip(halves, self._echoes(halves), strict=True)
        return echo_bits(sample, parts)

    def _echoes(self, texts: Sequence[str]) -> list[Echo | None]:
        """What the server makes of each text; None for one that is too long for it."""
        texts = [replace_surrogates(text) for text in texts]  # as a server tells it again
        batches = [
            texts[start : start + MANY_PROMPTS] for start in range(0, len(texts), MANY_PROMPTS)
        ]
        return [echo for batch in self._in_parallel(self._some_echoes, batches) for echo in batch]

    def _some_echoes(self, texts: Sequence[str]) -> list[Echo | None]:
        """One refuses all in a request, so those are asked again in halves."""
        try:
            return [*self._echo_batch(texts)]
        except _TooLongError:
            middle = len(texts) // 2
            if not middle:
                return [None]
            return [*self._some_echoes(texts[:middle]), *self._some_echoes(texts[middle:])]

    def _echo_batch(self, texts: Sequence[str]) -> list[Echo]:
        body = {
            "prompt": list(texts),
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        choices = sorted(_choices(self._post("completions", body)), key=lambda each: each["index"])
        if len(choices) != len(texts):
            raise EvalError(f"{self.url} gave {len(choices)} answers to {len(texts)} prompts")
        return [
            echo_of(text, choice, self.url) for text, choice in zip(texts, choices, strict=True)
        ]

    def _in_parallel(self, ask: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        with ThreadPoolExecutor(self.num_parallel) as threads:
            return list(threads.map(ask, items))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers; busy servers are asked again."""
        headers = {"Content-Type": "application/json", **self._headers()}
        content = json.dumps({"model": self.name, **body}).encode()
        for left in reversed(range(MOST_TRIES)):
            request = urllib.request.Request(f"{self.url}/{path}", content, headers)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                said = _said(error)
                if error.code in (400, 413, 422) and TOO_LONG.search(said):
                    raise _TooLongError from None
                if error.code not in (429, 500, 502, 503, 504) or not left:
                    raise EvalError(f"{self.url}/{path} answers {error.code}: {said}") from None
                time.sleep(_wait_s(error.headers.get("Retry-After"), left))
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not left or isinstance(error, ValueError | http.client.InvalidURL):
                    raise EvalError(f"{self.url}/{path} cannot be asked ({error!r})") from None
                time.sleep(_wait_s(None, left))
        raise AssertionError("the last try returns or raises")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def _said(error: urllib.error.HTTPError) -> str:
    """What a server gives for a reason, as far as it came."""
    try:
        content = error.read()
    except http.client.IncompleteRead as broken:
        content = broken.partial
    except (OSError, http.client.HTTPException):
        content = b""
    return content.decode(errors="replace")[:300]


def _wait_s(told: str | None, left: int) -> float:
    """What the server asks for, else longer with each try: 0.5 s, 1 s, 2 s."""
    try:
        return min(MOST_WAIT_S, float(told or ""))
    except ValueError:
        return float(0.5 * 2 ** (MOST_TRIES - 1 - left))


def _choices(answer: Any) -> list[dict[str, Any]]:
    try:
        return list(answer["choices"])
    except (KeyError, TypeError):
        raise EvalError(f"no choices in the answer: {str(answer)[:200]}") from None


def _shortened(prompt: Prompt) -> Prompt:
    """Without an eighth: the beginning of a text, or of the longest message.

    Raises: EvalError where next to nothing is left.
    """
    if isinstance(prompt, str):
        if len(prompt) < 8:
            raise EvalError(f"the server refuses {prompt!r} as too long")
        return prompt[(len(prompt) + 7) // 8 :]
    longest = max(range(len(prompt)), key=lambda index: len(str(prompt[index].content)))
    text = prompt[longest].content
    if not isinstance(text, str):
        raise EvalError("a question with parts of its own is longer than the server's context")
    return (
        *prompt[:longest],
        replace(prompt[longest], content=str(_shortened(text))),
        *prompt[longest + 1 :],
    )
