"""pool.py: the engine with least to do answers; one that is gone costs its own requests alone."""

from typing import Any

import pytest

from nanochat.common.errors import EngineError, TokenizerError, Unavailable
from nanochat.engine.stats import EngineStats
from nanochat.server.pool import EnginePool
from tests.server.test_cache import SlowEngine, Told, request


class Pooled(SlowEngine):
    is_ready = True

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self.asked), num_blocks=4, num_free_blocks=3)


@pytest.fixture
def doors() -> list[Pooled]:
    return [Pooled(), Pooled(), Pooled()]


@pytest.fixture
def pool(doors: list[Pooled]) -> EnginePool:
    return EnginePool(doors)


def ask(pool: EnginePool, name: str, **said: Any) -> Told:
    told: Told = []
    pool.submit(request(name, **said), told.append)
    return told


@pytest.mark.req("FR-054")
def test_the_engine_with_least_to_do_answers(pool: EnginePool, doors: list[Pooled]) -> None:
    ask(pool, "a", num_samples=2)
    for name in "bcd":
        ask(pool, name)
    assert [list(door.asked) for door in doors] == [["a"], ["b", "d"], ["c"]]
    assert pool.loads == (2, 2, 1)
    doors[0].say("a", "", "stop", 0)
    assert pool.loads == (2, 2, 1)
    doors[0].say("a", "", "stop", 1)
    doors[1].asked["b"][1](EngineError("it broke"))
    assert pool.loads == (0, 1, 1)
    assert pool.stats() == EngineStats(num_running=4, num_blocks=12, num_free_blocks=9)
    assert pool.stats().kv_usage == 0.25


def test_a_request_is_cancelled_where_it_is(pool: EnginePool, doors: list[Pooled]) -> None:
    for name in "ab":
        ask(pool, name)
    pool.cancel("b")
    pool.cancel("nobody")
    assert [door.cancelled for door in doors] == [[], ["b"], []]


@pytest.mark.req("FR-054")
def test_an_engine_that_is_gone_is_left_out(pool: EnginePool, doors: list[Pooled]) -> None:
    doors[0].is_ready = False
    doors[1].refusal = Unavailable("it has just died")
    ask(pool, "a")
    assert [list(door.asked) for door in doors] == [[], [], ["a"]]
    doors[2].is_ready = False
    with pytest.raises(Unavailable, match="no engine is ready") as caught:
        ask(pool, "b")
    assert caught.value.retry_after_s == 5
    assert pool.is_ready  # the second one says so still
    doors[1].is_ready = False
    assert not pool.is_ready
    assert pool.loads == (0, 0, 1)


def test_what_is_wrong_with_a_request_is_wrong_everywhere(
    pool: EnginePool, doors: list[Pooled]
) -> None:
    doors[0].refusal = TokenizerError("no such token")
    with pytest.raises(TokenizerError):
        ask(pool, "a")
    assert pool.loads == (0, 0, 0) and not doors[1].asked
