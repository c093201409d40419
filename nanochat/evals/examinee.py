"""Who is examined.   in: samples   out: verdicts, answers   who calls: runner.py, cli, train

`Examinee` is what the runner needs of a model; `EngineExaminee` is our engine, in this process.
Read next: scorers.py (regions and verdicts), remote.py and foreign.py (the other two examinees).
"""

import hashlib
import math
import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from nanochat.engine.request import Request, SamplingParams, TokenEvent
from nanochat.evals.scorers import Encoder, Scored, prepare, verdict
from nanochat.evals.task import Kind, Mode, Sample, Verdict
from nanochat.tokenizer.chat import parse_reply, render_prompt, stop_tokens

if TYPE_CHECKING:
    from nanochat.engine.engine import Engine
    from nanochat.model.gpt import GPT

__all__ = [
    "Asking",
    "EngineExaminee",
    "Examinee",
    "bits_verdict",
    "cut_prompt",
    "weights_hash",
    "windows",
]

OUTSTANDING_ROWS = 4  # times the engine's rows: its queue never runs dry
CUT_SHARE = 2  # a prompt that is cut leaves room for the answer, at most half of the context


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How answers are written."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int | None = 50
    seed: int = 0
    num_samples: int = 1
    stop: tuple[str, ...] = ()
    tools: bool = False
    mode: Mode = "default"
    note: Callable[[str, str], None] = lambda sample_id, flag: None
    """Told what is particular about a sample, by a name of scorers.FLAGS; from any thread."""


class Examinee(Protocol):
    """A model that can be asked."""

    name: str
    model_hash: str
    """Of its weights; empty where they are not known."""
    service: str
    """Where they are not known, who answers: what it said is kept until a run comes to its end,
    and no longer.  Empty: nothing is kept."""
    settings: Mapping[str, Any]
    """What else decides its numbers: vocabulary, dtype, address."""
    chunk_tokens: int
    """About how many tokens of prompts are asked at once."""

    def likelihoods(self, samples: Sequence[Sample], kind: Kind, mode: Mode) -> list[Verdict]:
        """The verdicts on samples of a kind that needs no writing, in order."""

    def answers(
        self, samples: Sequence[Sample], asking: Asking
    ) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(index of a sample, what was written), as they are done."""


@dataclass(kw_only=True)
class EngineExaminee:
    """A model of ours."""

    name: str
    engine: "Engine"
    model_hash: str = ""
    service: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tokenizer = self.engine.tokenizer
        self.settings = {
            "tokenizer": tokenizer.content_hash,
            "dtype": self.engine.forward.format,
            **self.settings,
        }
        self.encoder = Encoder(
            bos=tokenizer.bos,
            encode_batch=tokenizer.encode_batch,
            render=lambda conversation: render_prompt(conversation, tokenizer),
            context_len=self.engine.context_len,
        )
        self.chunk_tokens = 4096 if self.engine.forward.device.type == "cpu" else 65536

    def likelihoods(self, samples: Sequence[Sample], kind: Kind, mode: Mode) -> list[Verdict]:
        """The verdicts, in order.

        Raises: EvalError as `prepare` does; RequestTooLong beyond ten contexts.
        """
        if kind == "bits_per_byte":
            return self._bits(samples)
        prepared = prepare(samples, kind, mode, self.encoder)
        groups = [list(zip(each.texts, each.places, strict=True)) for each in prepared]
        scores = self.engine.score_groups(
            groups, beyond_context="slide" if mode == "nanochat" else "refuse"
        )
        return [
            verdict(
                each,
                [
                    Scored(score.logprobs, text[place:], score.best, score.margins)
                    for score, text, place in zip(found, each.texts, each.places, strict=True)
                ],
            )
            for each, found in zip(prepared, scores, strict=True)
        ]

    def answers(
        self, samples: Sequence[Sample], asking: Asking
    ) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(index of a sample, what was written), as they are done.

        Raises: what the engine raises for a request.
        """
        events: queue.SimpleQueue[tuple[int, TokenEvent | Exception]] = queue.SimpleQueue()
        told: dict[int, list[list[TokenEvent]]] = {}
        num_left: dict[int, int] = {}
        rows = max(1, OUTSTANDING_ROWS * self.engine.max_rows // asking.num_samples)
        waiting = iter(enumerate(samples))
        try:
            while True:
                while len(num_left) < rows and (following := next(waiting, None)) is not None:
                    index, sample = following
                    request, is_cut = self._request(index, sample, asking)
                    if is_cut:
                        asking.note(sample.sample_id, "cut")
                    told[index] = [[] for _ in range(asking.num_samples)]
                    num_left[index] = asking.num_samples
                    self.engine.submit(request, _into(events, index))
                if not num_left:
                    return
                index, event = events.get()
                if isinstance(event, Exception):
                    raise event
                told[index][event.sample].append(event)
                if event.finish_reason is not None:
                    num_left[index] -= 1
                    if not num_left[index]:
                        del num_left[index]
                        written = told.pop(index)
                        yield index, tuple(self._text(each, asking) for each in written)
        finally:
            for index in num_left:
                self.engine.cancel(f"eval {index}")

    def _request(self, index: int, sample: Sample, asking: Asking) -> tuple[Request, bool]:
        """What the engine is asked, and whether the prompt lost its beginning."""
        tokenizer, context_len = self.engine.tokenizer, self.engine.context_len
        if isinstance(sample.prompt, str):
            num_kept, prompt = 1, [tokenizer.bos, *tokenizer.encode(sample.prompt)]
        else:
            num_kept, prompt = 2, render_prompt(sample.prompt, tokenizer)
        is_sliding = asking.mode == "nanochat"
        is_cut = not is_sliding and len(prompt) >= context_len
        if is_cut:
            prompt = cut_prompt(prompt, num_kept, context_len, asking.max_tokens)
        request = Request(
            request_id=f"eval {index}",
            prompt_tokens=tuple(prompt),
            sampling=SamplingParams(
                max_tokens=asking.max_tokens,
                temperature=asking.temperature,
                top_k=asking.top_k,
                seed=asking.seed,
                stop_tokens=stop_tokens(tokenizer),
                stop=asking.stop,
            ),
            num_samples=asking.num_samples,
            tools=asking.tools,
            beyond_context="slide" if is_sliding else "refuse",
        )
        return request, is_cut

    def _text(self, events: list[TokenEvent], asking: Asking) -> str:
        """What was written.  By default special tokens that stand nowhere sensible are left out,
        and a tool's brackets stay, so that they are never mistaken for words."""
        tokenizer = self.engine.tokenizer
        if asking.stop:  # inside a token perhaps: only the text says where
            return "".join(event.text for event in events)
        tokens = [event.token for event in events if event.finish_reason != "stop"]
        if asking.mode == "nanochat":
            return tokenizer.decode(tokens)
        content = parse_reply(tokens, tokenizer).content
        if isinstance(content, str):
            return content
        brackets = {"python": "python", "python_output": "output"}
        return "".join(
            part.text
            if part.kind == "text"
            else f"<|{brackets[part.kind]}_start|>{part.text}<|{brackets[part.kind]}_end|>"
            for part in content
        )

    def _bits(self, samples: Sequence[Sample]) -> list[Verdict]:
        tokenizer = self.engine.tokenizer
        verdicts = []
        encoded = tokenizer.encode_batch([str(sample.prompt) for sample in samples])
        for sample, tokens in zip(samples, encoded, strict=True):
            parts = windows(tokens, self.engine.context_len - 1)
            scores = self.engine.score_groups([[([tokenizer.bos, *part], 1)] for part in parts])
            nats = -math.fsum(math.fsum(score.logprobs) for [score] in scores)
            num_bytes = sum(tokenizer.token_bytes[token] for token in tokens)
            verdicts.append(bits_verdict(sample, nats, num_bytes, len(tokens)))
        return verdicts


def weights_hash(model: "GPT") -> str:
    """The SHA-256 of a model's shape and weights as they are computed with."""
    import torch

    digest = hashlib.sha256(repr(model.config).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def cut_prompt(
    prompt: Sequence[int], num_kept: int, context_len: int, max_tokens: int
) -> list[int]:
    """A prompt that leaves no room for an answer, without what stands behind its first `num_kept`
    tokens: room for the answer, or for as much of it as half of the context holds."""
    room = context_len - min(max_tokens, context_len // CUT_SHARE)
    return [*prompt[:num_kept], *prompt[len(prompt) - (room - num_kept) :]]


def windows(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    """The tokens in stretches of at most this size; none of no tokens."""
    return [tokens[start : start + size] for start in range(0, len(tokens), size)]


def bits_verdict(sample: Sample, nats: float, num_bytes: int, num_tokens: int) -> Verdict:
    """How well one document was predicted: its score is bits, which add up."""
    return Verdict(
        sample_id=sample.sample_id,
        score=nats / math.log(2),
        choice_logprobs=(-nats,),
        choice_tokens=(num_tokens,),
        details={"num_bytes": num_bytes},
    )


def _into(
    events: "queue.SimpleQueue[tuple[int, TokenEvent | Exception]]", index: int
) -> Callable[[TokenEvent | Exception], None]:
    return lambda event: events.put((index, event))
