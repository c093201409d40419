"""A model behind an OpenAI-compatible address.   in: samples   out: verdicts, answers
who calls: runner.py, through cli/eval.py   (imports no torch)

    likelihoods    POST /completions with echo and logprobs; the tokens are the server's own
    letters        POST /chat/completions, one token, its likeliest alternatives
    answers        POST /chat/completions, or /completions where the prompt is a text

A server that ignores echo is found out: its answer does not begin with what was sent.
Read next: scorers.py (what is made of the likelihoods), server/legacy.py (our side of it).
"""

import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nanochat.common.errors import EvalError
from nanochat.common.messages import conversation_to_json
from nanochat.evals.examinee import Asking, bits_verdict
from nanochat.evals.scorers import Prepared, Scored, num_common, verdict
from nanochat.evals.task import Kind, Mode, Sample, Verdict

__all__ = ["RemoteExaminee"]

TIMEOUT_S = 600.0
MOST_TRIES = 5
MOST_WAIT_S = 30.0
TOP_LOGPROBS = 20  # as many as OpenAI's servers tell
MANY_PROMPTS = 16  # in one request

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Echo:
    """One text as the server reads it: its tokens, where each begins in the text, how likely."""

    tokens: list[str]
    offsets: list[int]
    logprobs: list[float | None]
    best: list[str]


@dataclass(kw_only=True)
class RemoteExaminee:
    """A model behind an address such as http://127.0.0.1:8000/v1."""

    name: str
    """The model's name there."""
    url: str
    api_key: str | None = None
    num_parallel: int = 8
    model_hash: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    chunk_tokens: int = 16384

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        if not self.url.endswith("/v1"):
            self.url += "/v1"
        self.settings = {"url": self.url, **self.settings}

    def likelihoods(self, samples: Sequence[Sample], kind: Kind, mode: Mode) -> list[Verdict]:
        """The verdicts, in order.

        Raises: EvalError for a server that cannot be reached or does not tell likelihoods.
        """
        if kind == "letter_choice":
            return self._in_parallel(lambda sample: self._letters(sample, mode), samples)
        if kind == "bits_per_byte":
            texts = [str(sample.prompt) for sample in samples]
            echoes = self._echoes(texts)
            return [_bits(*each) for each in zip(samples, texts, echoes, strict=True)]
        texts = [text for sample in samples for text in sample.texts]
        following = iter(self._echoes(texts))
        return [
            _verdict(sample, kind, mode, [next(following) for _ in sample.choices])
            for sample in samples
        ]

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
            **({"stop": list(asking.stop)} if asking.stop else {}),
        }
        if isinstance(sample.prompt, str):
            answer = self._post("completions", {**body, "prompt": sample.prompt})
            return tuple(str(choice["text"]) for choice in _choices(answer))
        messages = conversation_to_json(sample.prompt)
        answer = self._post("chat/completions", {**body, "messages": messages})
        return tuple(str(choice["message"]["content"] or "") for choice in _choices(answer))

    def _letters(self, sample: Sample, mode: Mode) -> Verdict:
        assert not isinstance(sample.prompt, str), "lettered answers to a text"
        body = {
            "messages": conversation_to_json(sample.prompt),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        [choice] = _choices(self._post("chat/completions", body))
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
        )

    def _echoes(self, texts: Sequence[str]) -> list[_Echo]:
        batches = [
            texts[start : start + MANY_PROMPTS] for start in range(0, len(texts), MANY_PROMPTS)
        ]
        return [echo for batch in self._in_parallel(self._echo_batch, batches) for echo in batch]

    def _echo_batch(self, texts: Sequence[str]) -> list[_Echo]:
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
        return [_echo(text, choice, self.url) for text, choice in zip(texts, choices, strict=True)]

    def _in_parallel(self, ask: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
        with ThreadPoolExecutor(self.num_parallel) as threads:
            return list(threads.map(ask, items))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers; busy servers are asked again."""
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        content = json.dumps({"model": self.name, **body}).encode()
        for left in reversed(range(MOST_TRIES)):
            request = urllib.request.Request(f"{self.url}/{path}", content, headers)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                said = error.read().decode(errors="replace")[:300]
                if error.code not in (429, 500, 502, 503, 504) or not left:
                    raise EvalError(f"{self.url}/{path} answers {error.code}: {said}") from None
                time.sleep(_wait_s(error.headers.get("Retry-After"), left))
            except (OSError, ValueError) as error:
                if not left or isinstance(error, ValueError):
                    raise EvalError(f"{self.url}/{path} cannot be asked ({error})") from None
                time.sleep(_wait_s(None, left))
        raise AssertionError("the last try returns or raises")


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


def _echo(text: str, choice: Mapping[str, Any], url: str) -> _Echo:
    """The text's own tokens: without what was generated after it, or stands before it."""
    told = choice.get("logprobs")
    begin = str(choice.get("text", "")).find(text)
    if not told or begin < 0:
        raise EvalError(
            f"{url} does not echo a prompt with its likelihoods (echo, logprobs): likelihood tasks "
            "cannot be asked there, generative ones can"
        )
    offsets = [offset - begin for offset in told["text_offset"]]
    kept = [index for index, offset in enumerate(offsets) if 0 <= offset < len(text)]
    tops = told.get("top_logprobs") or []
    return _Echo(
        tokens=[str(told["tokens"][index]) for index in kept],
        offsets=[offsets[index] for index in kept],
        logprobs=[told["token_logprobs"][index] for index in kept],
        best=[_best(told, tops, index) for index in kept],
    )


def _best(told: Mapping[str, Any], tops: Sequence[Any], index: int) -> str:
    """The likeliest token in a place; the token itself where nothing is likelier."""
    own, token = told["token_logprobs"][index], str(told["tokens"][index])
    top = tops[index] if index < len(tops) and tops[index] else {}
    if own is None or not top or own >= max(top.values()):
        return token
    return str(max(top, key=lambda each: top[each]))


def _verdict(sample: Sample, kind: Kind, mode: Mode, echoes: Sequence[_Echo]) -> Verdict:
    places = _places(sample, kind, mode, echoes)
    scored = []
    for echo, place in zip(echoes, places, strict=True):
        logprobs = echo.logprobs[place:]
        if any(each is None for each in logprobs):
            raise EvalError(f"sample {sample.sample_id}: a token without likelihood is scored")
        scored.append(
            Scored(
                [each for each in logprobs if each is not None],
                echo.tokens[place:],
                echo.best[place:],
                [],
            )
        )
    compat = places if kind != "multiple_choice" else [_common(echoes)] * len(echoes)
    prepared = Prepared(
        sample=sample,
        kind=kind,
        mode=mode,
        texts=[list(range(len(echo.tokens))) for echo in echoes],
        places=places,
        compat_places=compat,
    )
    return verdict(prepared, scored)


def _places(sample: Sample, kind: Kind, mode: Mode, echoes: Sequence[_Echo]) -> list[int]:
    if kind == "schema":
        numbered = _numbered(echoes)
        num_last = num_common(numbered, from_end=True)
        return [max(1, len(echo.tokens) - num_last) for echo in echoes]
    if kind == "multiple_choice" and mode == "nanochat":
        return [_common(echoes)] * len(echoes)
    prompt = str(sample.prompt)
    length = len(prompt.rstrip()) if kind == "language_modeling" else len(prompt)
    return [_place_of(echo, length) for echo in echoes]


def _place_of(echo: _Echo, length: int) -> int:
    """The token that reaches beyond the first `length` characters; never none."""
    ends = [*echo.offsets[1:], math.inf]
    place = next(index for index, end in enumerate(ends) if end > length)
    return min(place, len(echo.tokens) - 1)


def _common(echoes: Sequence[_Echo]) -> int:
    return num_common(_numbered(echoes))


def _numbered(echoes: Sequence[_Echo]) -> list[list[int]]:
    """Equal tokens, equal numbers."""
    numbers: dict[str, int] = {}
    return [[numbers.setdefault(token, len(numbers)) for token in each.tokens] for each in echoes]


def _bits(sample: Sample, text: str, echo: _Echo) -> Verdict:
    """Of all tokens that have a likelihood; without <|bos|> the first has none and is left out."""
    known = [index for index, logprob in enumerate(echo.logprobs) if logprob is not None]
    begin = echo.offsets[known[0]] if known else len(text)
    nats = -math.fsum(logprob for logprob in echo.logprobs if logprob is not None)
    return bits_verdict(sample, nats, len(text[begin:].encode()), len(known))
