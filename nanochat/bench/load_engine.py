"""The same load without HTTP.   in: an engine's spec, a workload   out: tokens a second
who calls: serve.py, in a process of its own

A closed loop whose users live in the engine's own thread: the next request is submitted where the
last event is delivered, so nothing but the engine is measured.
Read next: serve.py (what it is compared with), engine/engine.py.
"""

import contextlib
import itertools
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter
from typing import TYPE_CHECKING, Any

from nanochat.bench.load import Workload
from nanochat.common.messages import Message
from nanochat.engine.load import EngineSpec, load_engine
from nanochat.engine.request import Request, SamplingParams, TokenEvent
from nanochat.tokenizer.chat import render_prompt, stop_tokens

if TYPE_CHECKING:
    from nanochat.engine.engine import Engine

__all__ = ["EngineLoad", "engine_alone", "engine_rate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """What an engine is asked."""

    spec: EngineSpec
    workload: Workload
    sampling: SamplingParams
    """As the server has it by default; lengths, seeds and stops are added."""
    seconds: float
    warmup_s: float


@contextlib.contextmanager
def engine_alone(load: EngineLoad) -> Iterator[Callable[[int], dict[str, float]]]:
    """What measures `engine_rate` for so many users, in a process that stays loaded in between and
    is gone after the block.

    Raises: what loading raises, where it is first asked.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        yield lambda users: pool.submit(_rate_here, load, users).result()


@cache
def _engine_here(spec: EngineSpec) -> "Engine":
    return load_engine(spec).engine


def _rate_here(load: EngineLoad, users: int) -> dict[str, float]:
    return engine_rate(_engine_here(load.spec), load, users)


def engine_rate(engine: "Engine", load: EngineLoad, users: int) -> dict[str, float]:
    """tokens_per_s of so many answers at once, and ttft_s, the mean time to the first token.

    Raises: what an engine delivers instead of a token.
    """
    warm = Request(request_id="warm-up", prompt_tokens=(1,), sampling=SamplingParams(max_tokens=4))
    engine.generate([warm])  # its first step chooses among kernels
    run = _Run(engine, load, perf_counter() + load.warmup_s)
    for user in range(users):
        run.begin(user)
    run.wait(users)
    return {
        "tokens_per_s": run.num_tokens / load.seconds,
        "ttft_s": sum(run.first_s) / max(1, len(run.first_s)),
    }


@dataclass(slots=True)
class _Run:
    engine: Any
    load: EngineLoad
    start_s: float
    num_tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    error: Exception | None = None
    numbers: Any = field(default_factory=itertools.count)
    ended: Any = field(default_factory=lambda: threading.Semaphore(0))

    def begin(self, user: int) -> None:
        """Submit a user's next request."""
        number = next(self.numbers)
        load, tokenizer = self.load, self.engine.tokenizer
        wanted = load.workload.ask(user, number)
        prompt = render_prompt((Message("user", wanted.words),), tokenizer)
        sampling = SamplingParams(
            max_tokens=wanted.output_tokens,
            temperature=load.sampling.temperature,
            top_k=load.sampling.top_k,
            top_p=load.sampling.top_p,
            seed=number,
            stop_tokens=stop_tokens(tokenizer),
        )
        request = Request(
            request_id=f"load-{number}", prompt_tokens=tuple(prompt), sampling=sampling
        )
        sent_s, is_first = perf_counter(), True

        def deliver(event: TokenEvent | Exception) -> None:
            nonlocal is_first
            now_s = perf_counter()
            is_counted = self.start_s <= now_s < self.start_s + load.seconds
            if isinstance(event, Exception):
                self.error = event
                self.ended.release()
                return
            if is_first and self.start_s <= sent_s:
                self.first_s.append(now_s - sent_s)
            is_first = False
            self.num_tokens += is_counted and event.finish_reason in (None, "length")
            if event.finish_reason is None:
                return
            if now_s < self.start_s + load.seconds:
                self.begin(user)
            else:
                self.ended.release()

        self.engine.submit(request, deliver)

    def wait(self, users: int) -> None:
        """Until every user has ended."""
        for _ in range(users):
            self.ended.acquire()
        if self.error is not None:
            raise self.error
