"""cache.py: an answer comes again exactly as it came, to whom it may, for as long as it may."""

import dataclasses
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import EngineError
from nanochat.engine.request import PromptLogprob, Request, SamplingParams, TokenEvent
from nanochat.server import cache as cache_module
from nanochat.server.cache import CacheAnswer, ResponseCache
from nanochat.server.cache_key import CachePolicy, cache_policy, request_key
from nanochat.server.settings import CacheSettings
from tests.patience import wait_until

BOTH = CachePolicy(reads=True, writes=True)
Told = list[TokenEvent | Exception]


class SlowEngine:
    """Says what a test has it say."""

    def __init__(self) -> None:
        self.asked: dict[str, tuple[Request, Callable[[TokenEvent | Exception], None]]] = {}
        self.cancelled: list[str] = []
        self.refusal: Exception | None = None
        self.on_submit: Callable[[], None] = lambda: None

    def submit(self, request: Request, deliver: Callable[..., None], /) -> None:
        self.on_submit()
        if self.refusal is not None:
            raise self.refusal
        self.asked[request.request_id] = (request, deliver)

    def cancel(self, request_id: str, /) -> None:
        self.cancelled.append(request_id)

    def say(self, name: str, text: str, reason: Any = None, sample: int = 0, **more: Any) -> None:
        request, deliver = self.asked[name]
        deliver(
            TokenEvent(
                request_id=request.request_id, sample=sample, token=len(text), text=text,
                logprob=-0.25, finish_reason=reason, **more,
            )
        )  # fmt: skip

    def answer(self, name: str, *texts: str) -> None:
        for text in texts:
            self.say(name, text)
        self.say(name, "", "stop")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def engine() -> SlowEngine:
    return SlowEngine()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(engine: SlowEngine, clock: Clock) -> ResponseCache:
    return ResponseCache(engine, CacheSettings(ttl_s=60), model="tiny", model_hash="h", clock=clock)


def request(name: str, tokens: tuple[int, ...] = (1, 2), **said: Any) -> Request:
    num_samples = said.pop("num_samples", 1)
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **said})
    return Request(
        request_id=name, prompt_tokens=tokens, sampling=sampling, num_samples=num_samples
    )


def ask(
    cache: ResponseCache, asked: Request, policy: CachePolicy = BOTH, **more: Any
) -> tuple[CacheAnswer, Told]:
    told: Told = []
    return cache.submit(asked, told.append, policy=policy, **more), told


def ask_into(cache: ResponseCache, asked: Request, told: Told) -> None:
    cache.submit(asked, told.append, policy=BOTH)


def without_id(told: Told) -> list[TokenEvent]:
    events = [event for event in told if isinstance(event, TokenEvent)]
    assert len(events) == len(told)
    return [dataclasses.replace(event, request_id="") for event in events]


# ------------------------------------------------------------------------------- answers


@pytest.mark.req("FR-055")
def test_an_answer_comes_again_in_its_pieces_under_the_new_id(
    cache: ResponseCache, engine: SlowEngine, clock: Clock
) -> None:
    first, told = ask(cache, request("a", logprobs=1))
    assert first.status == "MISS" and first.key is not None and first.age_s == 0
    engine.say("a", "Hel", top_logprobs=((5, -0.1),), prompt_logprobs=(PromptLogprob(1, None),))
    engine.answer("a", "lo", " there")
    clock.now += 7
    second, again = ask(cache, request("b", logprobs=1))
    assert second == CacheAnswer("HIT", 7, first.key)
    assert without_id(again) == without_id(told) and len(again) == 4
    assert {event.request_id for event in again if isinstance(event, TokenEvent)} == {"b"}
    assert list(engine.asked) == ["a"]
    stats = cache.stats()
    assert (stats.entries, stats.hits, stats.misses, stats.joined) == (1, 1, 1, 0)
    assert stats.bytes > 500


@pytest.mark.req("FR-055")
def test_several_answers_are_kept_once_all_of_them_have_ended(
    cache: ResponseCache, engine: SlowEngine
) -> None:
    ask(cache, request("a", num_samples=2))
    engine.say("a", "x", sample=0)
    engine.say("a", "", "stop", sample=0)
    assert cache.stats().entries == 0
    engine.say("a", "y", "length", sample=1)
    answer, told = ask(cache, request("b", num_samples=2))
    assert answer.status == "HIT" and [event.sample for event in without_id(told)] == [0, 0, 1]


@pytest.mark.req("FR-055")
@pytest.mark.parametrize("ending", ["abort", "error", "exception", "cancel", "removed", "cleared"])
def test_what_is_not_whole_is_not_kept(
    ending: str, cache: ResponseCache, engine: SlowEngine
) -> None:
    answer, told = ask(cache, request("a"))
    engine.say("a", "Hel")
    if ending == "exception":
        engine.asked["a"][1](EngineError("it broke"))
        assert isinstance(told[-1], EngineError)
    elif ending == "cancel":
        cache.cancel("a")
        assert engine.cancelled == ["a"]
        assert isinstance(told[-1], TokenEvent) and told[-1].finish_reason == "abort"
        engine.say("a", "", "abort")
        assert len(told) == 2  # nobody is told twice
    elif ending == "removed":
        assert answer.key is not None and not cache.remove(answer.key)
        engine.answer("a", "lo")
    elif ending == "cleared":
        assert cache.clear() == 0
        engine.answer("a", "lo")
    else:
        engine.say("a", "", ending)
    assert cache.stats().entries == 0
    assert ask(cache, request("b"))[0].status == "MISS"
    assert list(engine.asked) == ["a", "b"]


@pytest.mark.req("FR-055")
def test_equal_requests_at_one_time_are_generated_once(
    cache: ResponseCache, engine: SlowEngine
) -> None:
    _, first = ask(cache, request("a"))
    engine.say("a", "Hel")
    answer, second = ask(cache, request("b"))
    assert answer == CacheAnswer("HIT", 0.0, answer.key)
    assert without_id(second) == without_id(first)  # what has been said already
    engine.say("a", "lo")
    cache.cancel("a")  # the first of them goes away; the other still listens
    assert engine.cancelled == []
    engine.answer("a", "!")
    assert [event.text for event in without_id(second)] == ["Hel", "lo", "!", ""]
    assert [event.finish_reason for event in without_id(first)] == [None, None, "abort"]
    assert list(engine.asked) == ["a"]
    assert ask(cache, request("c"))[0].status == "HIT"
    assert (cache.stats().hits, cache.stats().joined) == (2, 1)


def test_much_is_told_again_from_another_thread_and_in_order(
    cache: ResponseCache, engine: SlowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MAX_EVENTS_AT_ONCE", 1)
    ask(cache, request("a"))
    engine.say("a", "Hel")
    engine.say("a", "lo")
    told: Told = []
    may_go_on = threading.Event()

    def listen(event: TokenEvent | Exception) -> None:
        assert may_go_on.wait(60)
        told.append(event)

    assert cache.submit(request("b"), listen, policy=BOTH).status == "HIT"  # without waiting
    engine.say("a", " the")
    may_go_on.set()
    wait_until(lambda: len(told) == 3)
    engine.answer("a", "re")
    wait_until(lambda: len(told) == 5)
    assert [event.text for event in without_id(told)] == ["Hel", "lo", " the", "re", ""]
    assert {event.request_id for event in told if isinstance(event, TokenEvent)} == {"b"}
    _, later = ask(cache, request("c"))
    wait_until(lambda: len(later) == 5)
    assert without_id(later) == without_id(told)

    def leave(event: TokenEvent | Exception) -> None:
        raise RuntimeError("nobody listens")

    cache.submit(request("d"), leave, policy=BOTH)
    _, last = ask(cache, request("e"))
    wait_until(lambda: len(last) == 5)


def test_the_last_to_leave_ends_it(cache: ResponseCache, engine: SlowEngine) -> None:
    for name in ("a", "b"):
        ask(cache, request(name))
    cache.cancel("a")
    assert engine.cancelled == []
    cache.cancel("b")
    assert engine.cancelled == ["a"]
    assert ask(cache, request("c"))[0].status == "MISS"  # nobody joins what is being dropped
    cache.cancel("nobody")
    assert engine.cancelled == ["a", "nobody"]


def test_a_refusal_is_for_everybody_who_came_meanwhile(
    cache: ResponseCache, engine: SlowEngine
) -> None:
    engine.refusal = EngineError("no")
    late: Told = []

    def join() -> None:
        engine.on_submit = lambda: None
        assert cache.submit(request("b"), late.append, policy=BOTH).status == "HIT"

    engine.on_submit = join
    with pytest.raises(EngineError, match="no"):
        ask(cache, request("a"))
    assert isinstance(late[0], EngineError) and len(late) == 1
    engine.refusal = None
    assert ask(cache, request("c"))[0].status == "MISS"


def test_a_listener_that_breaks_is_its_own_loss(cache: ResponseCache, engine: SlowEngine) -> None:
    def broken(event: TokenEvent | Exception) -> None:
        raise RuntimeError("its loop is closed")

    cache.submit(request("a"), broken, policy=BOTH)
    _, told = ask(cache, request("b"))
    engine.answer("a", "Hi")
    assert len(told) == 2 and cache.stats().entries == 1
    cache.submit(request("c", (9,)), broken, policy=BOTH)
    with pytest.raises(RuntimeError, match="its loop is closed"):  # the engine drops it then
        engine.say("c", "Hi")


def test_many_threads_ask_at_once(cache: ResponseCache, engine: SlowEngine) -> None:
    told: list[Told] = [[] for _ in range(32)]
    threads = [
        threading.Thread(target=ask_into, args=(cache, request(str(n)), told[n])) for n in range(32)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (leader,) = engine.asked
    engine.answer(leader, "one", "two")
    assert {tuple(event.text for event in without_id(each)) for each in told} == {
        ("one", "two", "")
    }


# -------------------------------------------------------------------------------- limits


@pytest.mark.req("FR-056")
def test_answers_grow_old(cache: ResponseCache, engine: SlowEngine, clock: Clock) -> None:
    for name, ttl_s in (("a", None), ("b", 5.0), ("c", 5000.0)):
        ask(cache, request(name, (ord(name),)), CachePolicy(True, True, ttl_s))
        engine.answer(name, "Hi")
    clock.now += 6
    assert ask(cache, request("x", (ord("b"),)))[0].status == "MISS"
    assert ask(cache, request("y", (ord("a"),)))[0].status == "HIT"
    clock.now += 60  # no request keeps its answer longer than the server would
    assert cache.stats().entries == 0
    assert cache.stats().evictions == {"expired": 3}


@pytest.mark.req("FR-056")
def test_the_one_used_last_goes_last(engine: SlowEngine) -> None:
    cache = ResponseCache(engine, CacheSettings(max_entries=2))
    for name in ("a", "b"):
        ask(cache, request(name, (ord(name),)))
        engine.answer(name, "Hi")
    ask(cache, request("again", (ord("a"),)))
    ask(cache, request("c", (ord("c"),)))
    engine.answer("c", "Hi")
    found = [ask(cache, request(f"{n}2", (ord(n),)))[0].status for n in ("a", "c", "b")]
    assert found == ["HIT", "HIT", "MISS"]
    assert cache.stats().evictions == {"entries": 1}


@pytest.mark.req("FR-056")
def test_bytes_are_limited(engine: SlowEngine) -> None:
    cache = ResponseCache(engine, CacheSettings(max_bytes=5000))
    for name in "abcdef":
        ask(cache, request(name, (ord(name),)))
        engine.answer(name, "x" * 1000)
        assert cache.stats().bytes <= 5000
    assert cache.stats().entries == 3 and cache.stats().evictions == {"bytes": 3}
    _, told = ask(cache, request("large"))
    engine.say("large", "y" * 6000)
    assert ask(cache, request("late"))[0].status == "MISS"  # too large to be joined or kept
    engine.answer("large", "z")
    assert len(told) == 3 and cache.stats().entries == 3


@pytest.mark.req("FR-056")
def test_answers_are_forgotten_by_hand(cache: ResponseCache, engine: SlowEngine) -> None:
    keys = []
    for name in "ab":
        keys.append(ask(cache, request(name, (ord(name),)))[0].key)
        engine.answer(name, "Hi")
    assert cache.remove(str(keys[0])) and not cache.remove(str(keys[0]))
    assert cache.clear("another") == 0 and cache.stats().entries == 1
    assert cache.clear("tiny") == 1 and cache.clear() == 0
    assert cache.stats().bytes == 0 and cache.stats().evictions == {"removed": 2}


# ------------------------------------------------------------------------------- policies


@pytest.mark.req("FR-055")
def test_each_request_has_its_say(cache: ResponseCache, engine: SlowEngine) -> None:
    answer, _ = ask(cache, request("a"), CachePolicy(reads=False, writes=False))
    assert answer == CacheAnswer("BYPASS")
    engine.answer("a", "old")
    assert cache.stats().entries == 0 and cache.stats().bypasses == 1
    ask(cache, request("b"))
    engine.answer("b", "old")
    answer, _ = ask(cache, request("c"), CachePolicy(reads=False, writes=True))
    assert answer.status == "MISS"
    engine.answer("c", "new")
    assert without_id(ask(cache, request("d"))[1])[0].text == "new"
    answer, _ = ask(cache, request("e", (7,)), CachePolicy(reads=True, writes=False))
    engine.answer("e", "x")
    assert answer.status == "MISS" and cache.stats().entries == 1


@pytest.mark.req("FR-055")
def test_policies_come_from_the_request_its_cache_object_and_its_header() -> None:
    def policy(is_deterministic: bool, asked: Any = None, header: str | None = None) -> CachePolicy:
        return cache_policy(
            is_deterministic=is_deterministic, has_seed=False, asked=asked, header=header
        )

    assert policy(True) == CachePolicy(True, True, None, False)
    assert policy(False) == CachePolicy(False, False, None, False)
    assert policy(False, {"ttl": 5}) == CachePolicy(True, True, 5, False)
    aged = policy(True, {"s-maxage": 7, "namespace": "mine"})
    assert aged == CachePolicy(True, True, None, False, 7, "mine")
    assert policy(True, {"no-cache": True})[:2] == (False, True)
    assert policy(True, {"no-store": True})[:2] == (True, False)
    assert policy(True, None, "No-Cache")[:2] == (False, True)
    assert policy(True, None, "max-age=0, no-store")[:2] == (False, False)
    assert policy(True, {"no-cache": False}, "private")[:2] == (True, True)


# ------------------------------------------------------------------------------------ keys


def key(asked: Request, **more: Any) -> str:
    return request_key(asked, **{"model_hash": "h", "tenant": "t", **more})


def test_a_request_says_how_old_an_answer_may_be_and_whose(
    cache: ResponseCache, engine: SlowEngine, clock: Clock
) -> None:
    ask(cache, request("a"))
    engine.answer("a", "old")
    clock.now += 10
    assert ask(cache, request("b"), BOTH._replace(max_age_s=10))[0].status == "HIT"
    clock.now += 1
    assert ask(cache, request("c"), BOTH._replace(max_age_s=10))[0].status == "MISS"
    engine.answer("c", "new")
    _, told = ask(cache, request("d"))
    assert without_id(told)[0].text == "new"  # it has taken the old one's place
    mine = BOTH._replace(namespace="mine")
    assert ask(cache, request("e"), mine)[0].status == "MISS"
    engine.answer("e", "mine")
    assert ask(cache, request("f"), mine)[0].status == "HIT"
    assert ask(cache, request("g"), BOTH._replace(namespace="yours"))[0].status == "MISS"


def test_tenants_and_models_share_nothing(cache: ResponseCache, engine: SlowEngine) -> None:
    ask(cache, request("a"), tenant="one")
    engine.answer("a", "Hi")
    assert ask(cache, request("b"), tenant="two")[0].status == "MISS"
    assert ask(cache, request("c"), tenant="one")[0].status == "HIT"
    plain = key(request("a"))
    assert plain != key(request("a"), model_hash="other") != key(request("a"), tenant="other")
    assert plain == key(request("b")), "the id is no part of it"


def test_a_seed_counts_where_it_is_used_and_was_asked_for() -> None:
    greedy = [key(request("a", seed=seed)) for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    warm = [key(request("a", seed=seed, temperature=1.0)) for seed in (1, 2)]
    assert warm[0] != warm[1]
    made_up = [key(request("a", seed=s, temperature=1.0), has_seed=False) for s in (1, 2)]
    assert made_up[0] == made_up[1] and made_up[0] not in warm


def any_but(value: Any) -> Any:
    return lambda other: other != value


SAMPLING = {
    "max_tokens": st.integers(1, 10_000),
    "temperature": st.floats(0, 2),
    "top_k": st.none() | st.integers(1, 1000),
    "top_p": st.floats(0.01, 1),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.1, 10),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.dictionaries(st.integers(0, 999), st.floats(-100, 100), max_size=4),
    "seed": st.integers(0, 2**63 - 1),
    "stop_tokens": st.lists(st.integers(0, 999), max_size=4).map(tuple),
    "stop": st.lists(st.text(min_size=1, max_size=8), max_size=4).map(tuple),
    "logprobs": st.none() | st.integers(0, 20),
}
REQUEST = {
    "prompt_tokens": st.lists(st.integers(0, 999), max_size=8).map(tuple),
    "num_samples": st.integers(1, 128),
    "prompt_logprobs": st.none() | st.integers(0, 20),
    "schema": st.none() | st.text(max_size=8),
    "beyond_context": st.sampled_from(["refuse", "slide"]),
    "tools": st.booleans(),
}


def test_every_field_has_a_strategy() -> None:
    """A field that is added to a request has to be thought of here."""
    assert set(SAMPLING) == {field.name for field in dataclasses.fields(SamplingParams)}
    fields = {field.name for field in dataclasses.fields(Request)}
    assert set(REQUEST) == fields - {"request_id", "sampling"}


@st.composite
def requests(draw: st.DrawFn) -> Request:
    said = {name: draw(strategy) for name, strategy in REQUEST.items()}
    if said["schema"] is not None:
        said["tools"] = False
    sampling = SamplingParams(**{name: draw(strategy) for name, strategy in SAMPLING.items()})
    return Request(request_id=draw(st.text(min_size=1)), sampling=sampling, **said)


@pytest.mark.req("FR-055")
@given(asked=requests(), data=st.data())
def test_changing_any_field_changes_the_key(asked: Request, data: st.DataObject) -> None:
    before = key(asked)
    json.loads(f'"{before}"')
    name = data.draw(st.sampled_from(sorted(SAMPLING | REQUEST)))
    old = getattr(asked if name in REQUEST else asked.sampling, name)
    strategy = (SAMPLING | REQUEST)[name]
    new = data.draw(strategy.filter(any_but(old)))
    if name in SAMPLING:
        if name == "seed" and asked.sampling.temperature == 0:
            asked = dataclasses.replace(
                asked, sampling=dataclasses.replace(asked.sampling, temperature=1.0)
            )
            before = key(asked)
        sampling = dataclasses.replace(asked.sampling, **{name: new})
        changed = dataclasses.replace(asked, sampling=sampling)
    else:
        changes = {name: new}
        if name == "tools" and new:
            changes["schema"] = None
        if name == "schema" and new is not None:
            changes["tools"] = False
        changed = dataclasses.replace(asked, **changes)
    assert key(changed) != before
    assert key(dataclasses.replace(changed, request_id="another")) == key(changed)
