"""Users -> requests -> answers.   in: a server's address, a workload, how many users
out: one row of numbers   who calls: serve.py, peer_serve.py, scripts/soak_serve.py, tests

    closed loop   so many users, each of whom asks again once the answer is there
    open loop     requests that arrive by chance (Poisson) at a rate, whether or not others are
                  answered; times count from when a request was due, so a queue hides nowhere

A warm-up comes first and does not count; what runs at the end is waited for and does not count.
Read next: load_client.py (one request), load_metrics.py (what is counted).
"""

import asyncio
import itertools
import math
import os
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from nanochat.bench.load_client import Answer, Ask, ChatDialect, Dialect, ask
from nanochat.bench.load_metrics import Slo, Span, measure
from nanochat.bench.load_wire import Address, Connection
from nanochat.common.errors import ConfigError, EngineError

__all__ = ["Lengths", "Load", "Workload", "address_of", "calibrated", "get", "run_load"]

# Words of three letters: one token each, with the space before them, in nearly every vocabulary.
WORDS = (
    "the and for are but not you all any can had her was one our out day get has him his how man "
    "new now old see two way who boy did its let put say she too use air big box car cat dog eat "
    "far few fly fun got hot job key law lay lot low map may met mix net oil own pay per red run "
    "sea set sit six sky son sun ten top try war wet why win yes yet"
).split()
LONGEST_FACTOR = 8  # a drawn length is at most so many times the median
SIGMA = 0.8  # of the logarithm of lengths: a tenth are longer than 2.8 times the median
MAX_PAUSE_S = 1.0  # a user who was refused asks again after this at the latest


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """A distribution of whole numbers from 1 on."""

    low: int
    high: int
    is_lognormal: bool = False
    """Around `low` as the median, at most `high`; otherwise all between the two alike."""

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """From "64", "32-128" (all alike) or "~64" (lognormal around the median).

        Raises: ConfigError for anything else.
        """
        low, dash, high = text.removeprefix("~").partition("-")
        is_lognormal = text.startswith("~")
        numbers = [low, high] if dash and not is_lognormal else [text.removeprefix("~")]
        if not all(number.isdecimal() and int(number[:9]) >= 1 for number in numbers):
            raise ConfigError(f"length {text!r}, expected a form such as 64, 32-128 or ~64")
        first, last = int(numbers[0]), int(numbers[-1])
        if first > last:
            raise ConfigError(f"length {text!r}: {first} is more than {last}")
        if is_lognormal:
            last = LONGEST_FACTOR * first
        return cls(low=first, high=last, is_lognormal=is_lognormal)

    def draw(self, dice: random.Random) -> int:
        """One of them."""
        if self.is_lognormal:
            return max(1, min(self.high, round(self.low * math.exp(dice.gauss(0, SIGMA)))))
        return dice.randint(self.low, self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is asked.  Equal seeds ask the same, user by user."""

    prompt: Lengths
    output: Lengths
    seed: int = 0
    template_tokens: float = 0.0
    """Tokens that a prompt has beside its words."""
    tokens_per_word: float = 1.0

    def ask(self, user: int, number: int) -> Ask:
        """A user's n-th request; no two prompts begin alike for long."""
        dice = random.Random(f"{self.seed}/{user}/{number}")
        prompt_tokens, output_tokens = self.prompt.draw(dice), self.output.draw(dice)
        num_words = round((prompt_tokens - self.template_tokens) / self.tokens_per_word)
        words = " ".join(dice.choices(WORDS, k=max(1, num_words)))
        return Ask(words=words, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How much is asked, and for how long."""

    workload: Workload
    users: int | None = None
    """A closed loop of so many; None: an open one at `rate`."""
    rate: float | None = None
    """Requests a second."""
    seconds: float = 60.0
    warmup_s: float = 5.0
    drain_s: float = 120.0
    """How long what runs at the end is waited for."""
    slo: Slo | None = None
    stall_s: float = 2.0


@dataclass(slots=True)
class _Run:
    """One load while it runs."""

    address: Address
    dialect: Dialect
    load: Load
    start_s: float
    answers: list[Answer] = field(default_factory=list)
    late: list[asyncio.Task[Any]] = field(default_factory=list)

    @property
    def stop_s(self) -> float:
        return self.start_s + self.load.seconds

    async def user(self, user: int) -> None:
        """Asks again and again until the end."""
        async with Connection(self.address) as connection:
            for number in itertools.count():
                if perf_counter() >= self.stop_s:
                    return
                wanted = self.load.workload.ask(user, number)
                answer = await ask(connection, self.dialect, wanted, user=user)
                self.answers.append(answer)
                if not answer.is_success:
                    await asyncio.sleep(min(MAX_PAUSE_S, answer.retry_after_s or 0.1))

    async def arrivals(self, rate: float) -> None:
        """Requests at random moments; each has a connection of its own."""
        dice = random.Random(f"{self.load.workload.seed}/arrivals")
        due_s = perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                due_s += dice.expovariate(rate)
                if due_s >= self.stop_s:
                    return
                await asyncio.sleep(max(0.0, due_s - perf_counter()))
                group.create_task(self._arrival(number, due_s))

    async def _arrival(self, number: int, due_s: float) -> None:
        async with Connection(self.address) as connection:
            wanted = self.load.workload.ask(0, number)
            self.answers.append(await ask(connection, self.dialect, wanted, due_s=due_s))


def run_load(address: Address, dialect: Dialect, load: Load) -> dict[str, Any]:
    """The row of numbers of one load (`load_metrics.measure`), with its users or its rate.

    Raises: EngineError if what ran at the end did not end.
    """
    return asyncio.run(_run(address, dialect, load))


async def _run(address: Address, dialect: Dialect, load: Load) -> dict[str, Any]:
    run = _Run(address, dialect, load, perf_counter() + load.warmup_s)
    jobs: list[Coroutine[Any, Any, None]]
    if load.users is None:
        assert load.rate is not None, "neither users nor a rate"
        jobs = [run.arrivals(load.rate)]
    else:
        jobs = [run.user(user) for user in range(load.users)]
    working = asyncio.gather(*jobs)
    try:
        await asyncio.sleep(load.warmup_s)
        cpu_s, start_s = time.process_time(), perf_counter()
        await asyncio.wait([working], timeout=run.stop_s - start_s)
        cpu_s, stop_s = time.process_time() - cpu_s, perf_counter()
        await asyncio.wait_for(working, load.drain_s)
    except TimeoutError:
        raise EngineError(
            f"answers were not complete {load.drain_s:g} s after the last request was sent"
        ) from None
    span = Span(start_s=start_s, stop_s=stop_s, cpu_s=cpu_s, num_cores=_num_cores())
    row = measure(run.answers, span, num_users=load.users, slo=load.slo, stall_s=load.stall_s)
    return {"users": load.users, "rate": load.rate, **row}


def calibrated(address: Address, dialect: ChatDialect, workload: Workload) -> Workload:
    """The workload with the words that make its prompts as long as they are meant to be here.

    Raises: EngineError with what the server answered, if it does not answer.
    """
    return asyncio.run(_calibrated(address, dialect, workload))


async def _calibrated(address: Address, dialect: Dialect, workload: Workload) -> Workload:
    counts = []
    async with Connection(address) as connection:
        for num_words in (1, 33):
            words = " ".join(WORDS[place % len(WORDS)] for place in range(num_words))
            wanted = Ask(words=words, prompt_tokens=num_words, output_tokens=1)
            answer = await ask(connection, dialect, wanted)
            if not answer.is_success:
                raise EngineError(f"the server does not answer: {answer.status} {answer.error}")
            counts.append(answer.prompt_tokens)
    per_word = (counts[1] - counts[0]) / 32
    return Workload(
        prompt=workload.prompt,
        output=workload.output,
        seed=workload.seed,
        template_tokens=counts[0] - per_word,
        tokens_per_word=per_word,
    )


def address_of(url: str, *, api_key: str | None = None) -> Address:
    """The address that a URL names; a /v1 at its end is left out.

    Raises: ConfigError for anything but http.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError:
        raise ConfigError(f"{url!r} is no URL: expected http://host:port") from None
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"{url!r}: expected http://host:port")
    headers = (("Authorization", f"Bearer {api_key}"),) if api_key else ()
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(host=parts.hostname, port=port, path=path, headers=headers)


def get(address: Address, path: str) -> tuple[int, bytes]:
    """Status and body of a GET.

    Raises: WireError, OSError.
    """
    return asyncio.run(_get(address, path))


async def _get(address: Address, path: str) -> tuple[int, bytes]:
    async with Connection(address) as connection:
        await connection.send("GET", path)
        body = b""
        while not connection.response.is_done:
            body += await connection.receive()
        return connection.response.status, body


def _num_cores() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
