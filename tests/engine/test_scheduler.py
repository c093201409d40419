"""scheduler.py: every key that is read is there, nobody starves, no block is lost."""

import random
import time
from collections.abc import Sequence as Items
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nanochat.common.errors import RequestTooLong
from nanochat.engine.blocks import BLOCK_TOKENS, BlockPool
from nanochat.engine.request import NO_TOKEN
from nanochat.engine.scheduler import Copies, Scheduler, Sequence, StepPlan


class Memory:
    """What a cache would hold: in every slot the whole text up to that token, as a number."""

    def __init__(self, pools: Items[BlockPool]) -> None:
        self.slots = {
            pool.window: [[0] * BLOCK_TOKENS for _ in range(pool.num_blocks)] for pool in pools
        }

    def copy(self, copies: Copies) -> None:
        for window, pairs in copies.items():
            for source, target in pairs:
                self.slots[window][target] = list(self.slots[window][source])

    def step(self, plan: StepPlan) -> None:
        """Write what the plan feeds; then every token fed finds all it may see."""
        pieces = [*plan.prefill, *((row, row.num_cached, len(row.tokens)) for row in plan.decode)]
        for row, start, stop in pieces:
            for place in range(start, stop):
                for window in self.slots:
                    block = row.tables[window][place // BLOCK_TOKENS]
                    self.slots[window][block][place % BLOCK_TOKENS] = content(row, place)
        for row, start, stop in pieces:
            for window, slots in self.slots.items():
                first = 0 if window is None else max(0, start - window)
                for place in range(first, stop):
                    block = row.tables[window][place // BLOCK_TOKENS]
                    assert block is not None, f"{place} is in the window, its block is not"
                    assert slots[block][place % BLOCK_TOKENS] == content(row, place)


def content(row: Sequence, place: int) -> int:
    return hash(tuple(row.tokens[: place + 1]))


def sequence(tokens: Items[int], limit: int | None = None, **values: Any) -> Sequence:
    name = values.pop("request_id", f"r{id(tokens)}-{time.monotonic_ns()}")
    return Sequence(name, list(tokens), limit or len(tokens) + 8, **values)


def build(
    *sizes: tuple[int | None, int], max_rows: int = 8, step_tokens: int = 64
) -> tuple[Scheduler, Memory]:
    pools = [BlockPool(num_blocks, window) for window, num_blocks in sizes]
    return Scheduler(pools, max_rows=max_rows, step_tokens=step_tokens), Memory(pools)


def step(scheduler: Scheduler, memory: Memory, dice: random.Random) -> StepPlan:
    """One step; who has read everything gets a token, who is full ends."""
    plan = scheduler.plan()
    assert plan.num_tokens <= scheduler.step_tokens
    memory.step(plan)
    scheduler.fed(plan)
    for row in [*(chunk.sequence for chunk in plan.prefill), *plan.decode]:
        if row.state == "running" and row.num_new == 0:
            if len(row.tokens) >= row.limit:
                scheduler.finish(row)
            else:
                row.tokens.append(dice.randrange(3))
    return plan


def run(scheduler: Scheduler, memory: Memory, most: int = 5000) -> list[StepPlan]:
    plans = []
    dice = random.Random(0)
    while scheduler.num_waiting or scheduler.num_running:
        plans.append(step(scheduler, memory, dice))
        assert len(plans) < most, "somebody starves"
    for pool in scheduler.pools.values():
        assert (pool.num_free, pool.num_used) == (pool.num_blocks, 0)
    return plans


POOLS = st.sampled_from(
    [
        ((None, 12),),
        ((None, 30), (20, 8)),
        ((5, 6), (64, 12)),
        ((0, 4), (16, 6), (None, 16)),
        ((96, 10),),
    ]
)


class Machine(RuleBasedStateMachine):
    """Anything that can happen to a scheduler, in any order, with little memory."""

    @initialize(
        sizes=POOLS, max_rows=st.integers(1, 6), extra=st.integers(1, 40), seed=st.integers(0, 99)
    )
    def start(self, sizes: Any, max_rows: int, extra: int, seed: int) -> None:
        self.scheduler, self.memory = build(*sizes, max_rows=max_rows, step_tokens=max_rows + extra)
        self.dice = random.Random(seed)
        self.rows: list[Sequence] = []
        self.unknown: list[tuple[Sequence, int]] = []

    @rule(length=st.integers(1, 90), more=st.integers(0, 60), shared=st.none() | st.integers(0, 60))
    def add(self, length: int, more: int, shared: int | None) -> None:
        text = [self.dice.choice((0, 0, 0, 0, 0, 0, 0, 0, 0, 1)) for _ in range(length)]
        row = sequence(text, length + more, request_id=f"r{len(self.rows)}", max_shared=shared)
        try:
            self.scheduler.add(row)
            self.rows.append(row)
        except RequestTooLong:
            assert row.state == "waiting" and not row.tables

    @rule()
    def step(self) -> None:
        running_before = list(self.scheduler._running)
        oldest = next((row for row in running_before if row.num_new), None)
        plan = self.scheduler.plan()
        planned = [*(chunk.sequence for chunk in plan.prefill), *plan.decode]
        assert len(set(map(id, planned))) == len(planned)
        assert plan.num_tokens <= self.scheduler.step_tokens
        if oldest is not None:
            assert oldest in planned, "the oldest goes on, whatever happens"
        if not running_before and self.rows_in("waiting"):
            assert min(self.rows_in("waiting", planned), key=lambda row: row.order) in planned
        self.memory.step(plan)
        if self.dice.random() < 0.1 and planned:  # aborted while the device computes
            self.scheduler.abort(self.dice.choice(planned).request_id)
        self.scheduler.fed(plan)
        self.unknown = []
        for row in planned:
            if row.state != "running" or row.num_new:
                continue
            if len(row.tokens) >= row.limit:
                self.scheduler.finish(row)
            else:
                self.choose(row)

    def choose(self, row: Sequence) -> None:
        if row.sample == 0 and self.dice.random() < 0.2:
            fork = self.scheduler.fork(row, self.dice.randint(1, 3))
            self.memory.copy(fork.copies)
            self.rows += fork.children
            for child in fork.children:
                child.tokens.append(self.dice.randrange(3))
        most = min(row.limit - len(row.tokens), self.dice.choice((1, 1, 1, 5)))  # 5: forced ones
        row.tokens += [self.dice.randrange(2) for _ in range(most)]

    @rule(which=st.integers(0))
    def abort(self, which: int) -> None:
        if self.rows:
            name = self.rows[which % len(self.rows)].request_id
            alive = [row for row in self.rows_in("waiting", []) if row.request_id == name]
            alive += [row for row in self.rows_in("running") if row.request_id == name]
            gone = self.scheduler.abort(name)
            assert set(map(id, gone)) == set(map(id, alive))
            assert all(row.state == "finished" and not row.tables for row in gone)

    @rule()
    def forget(self) -> None:
        self.scheduler.forget()
        assert self.scheduler.num_running == 0

    def rows_in(self, state: str, also: Items[Sequence] = ()) -> list[Sequence]:
        return [row for row in self.rows if row.state == state or any(row is o for o in also)]

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        running, waiting = self.rows_in("running"), self.rows_in("waiting")
        assert len(running) == self.scheduler.num_running <= self.scheduler.max_rows
        assert len(waiting) == self.scheduler.num_waiting
        assert all(not row.tables and row.num_cached == 0 for row in waiting)
        for window, pool in self.scheduler.pools.items():
            held = [block for row in running for block in row.tables[window] if block is not None]
            assert pool.num_used == len(set(held))
            assert pool.num_free + pool.num_used == pool.num_blocks
            for row in running:
                table = row.tables[window]
                assert len(table) * BLOCK_TOKENS >= row.num_cached
                if window is not None:  # no more than the window needs
                    num_out = max(0, row.num_cached - window) // BLOCK_TOKENS
                    assert all(block is None for block in table[:num_out])
                    assert None not in table[num_out:]

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            run(self.scheduler, self.memory)
            assert all(row.state == "finished" for row in self.rows)


TestScheduler = pytest.mark.req("FR-010", "FR-015", "FR-062", "EC-10")(Machine.TestCase)
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# ------------------------------------------------------------------------------- shared prefixes


@pytest.mark.req("FR-010")
@pytest.mark.parametrize("window", [None, 0, 15, 16, 17, 40, 1000])
@pytest.mark.parametrize("length", [15, 16, 17, 32, 33, 60])
def test_the_second_of_two_equal_prompts_is_found_up_to_its_last_block(
    window: int | None, length: int
) -> None:
    scheduler, memory = build((window, 40), (None, 40) if window is not None else (7, 40))
    scheduler.add(sequence([1] * length))
    run(scheduler, memory)
    scheduler.add(sequence([1] * length))
    [chunk] = scheduler.plan().prefill
    assert chunk.start == (length - 1) // BLOCK_TOKENS * BLOCK_TOKENS == scheduler.num_hit_tokens
    assert chunk.stop == length


def test_a_prompt_that_differs_inside_a_block_shares_the_blocks_before_it() -> None:
    scheduler, memory = build((None, 40), (20, 40))
    scheduler.add(sequence([1] * 80))
    run(scheduler, memory)
    scheduler.add(sequence([1] * 40 + [2] + [1] * 39))
    assert step(scheduler, memory, random.Random(0)).prefill[0].start == 32
    scheduler.add(sequence([2] + [1] * 79))
    assert step(scheduler, memory, random.Random(0)).prefill[0].start == 0
    run(scheduler, memory)


def test_what_a_window_has_lost_is_no_hit() -> None:
    scheduler, memory = build((None, 40), (20, 40))
    scheduler.add(sequence([1] * 80))
    run(scheduler, memory)
    scheduler.pools[20].forget()
    scheduler.add(sequence([1] * 80))
    assert scheduler.plan().prefill[0].start == 0


def test_tokens_whose_logits_are_asked_for_are_computed() -> None:
    scheduler, memory = build((None, 40))
    for max_shared, start in ((0, 0), (15, 0), (40, 32), (None, 64)):
        scheduler.add(sequence([1] * 80, max_shared=max_shared))
        assert step(scheduler, memory, random.Random(0)).prefill[0].start == (
            0 if scheduler.num_hit_tokens == 0 else start
        )
        run(scheduler, memory)


def test_tokens_that_are_not_known_yet_are_shared_once_they_are() -> None:
    scheduler, memory = build((None, 40))
    row = sequence([1] * 15, 40)
    scheduler.add(row)
    scheduler.fed(scheduler.plan())
    row.tokens.append(NO_TOKEN)  # the device knows it, and feeds it
    scheduler.fed(scheduler.plan())
    assert (row.num_cached, row.num_published) == (16, 0)
    row.tokens[15] = 7
    row.tokens.append(NO_TOKEN)
    scheduler.fed(scheduler.plan())
    assert row.num_published == 1
    row.tokens[16] = 1
    while len(row.tokens) < 33:  # known only after all has been fed
        row.tokens.append(NO_TOKEN)
        scheduler.fed(scheduler.plan())
    assert (row.num_cached, row.num_published) == (33, 1)
    row.tokens[16:33] = [1] * 17
    scheduler.finish(row)
    scheduler.finish(row)  # harmless twice
    scheduler.add(sequence([1] * 15 + [7] + [1] * 17))
    assert scheduler.plan().prefill[0].start == 32


def test_answers_to_one_prompt_share_it() -> None:
    scheduler, memory = build((None, 40), (24, 40))
    row = sequence([1] * 70, 100)
    scheduler.add(row)
    while row.num_new:
        memory.step(plan := scheduler.plan())
        scheduler.fed(plan)
    fork = scheduler.fork(row, 4)
    memory.copy(fork.copies)
    assert [child.sample for child in fork.children] == [1, 2, 3]
    assert {len(pairs) for pairs in fork.copies.values()} == {3}
    assert scheduler.pools[None].num_used == 5 + 3  # four shared, a partial one each
    for number, sibling in enumerate((row, *fork.children)):
        sibling.tokens.append(number)
    plan = step(scheduler, memory, random.Random(0))
    assert plan.decode == [row, *fork.children]
    assert scheduler.abort(row.request_id) == [row, *fork.children]
    assert scheduler.abort(row.request_id) == scheduler.abort("unknown") == []


def test_answers_without_memory_wait_and_are_computed_later() -> None:
    scheduler, memory = build((None, 5))
    row = sequence([1] * 40, 60)
    scheduler.add(row)
    memory.step(plan := scheduler.plan())
    scheduler.fed(plan)
    fork = scheduler.fork(row, 4)
    memory.copy(fork.copies)
    assert [child.state for child in fork.children] == ["running", "running", "waiting"]
    for number, sibling in enumerate((row, *fork.children)):
        sibling.tokens.append(number)
    run(scheduler, memory)


# ----------------------------------------------------------------------- fairness and memory


@pytest.mark.req("FR-015", "FR-062")
def test_a_request_larger_than_the_whole_cache_is_refused_with_the_numbers() -> None:
    scheduler, _ = build((None, 10), (20, 3))
    with pytest.raises(RequestTooLong, match="161 tokens, .* 11 blocks of 16, .* cache has 10"):
        scheduler.add(sequence([1], limit=161))
    scheduler.add(sequence([1], limit=160))
    scheduler, _ = build((None, 10), (20, 2))
    with pytest.raises(RequestTooLong, match="take 3 blocks of 16, but the whole cache has 2"):
        scheduler.add(sequence([1], limit=160))


@pytest.mark.req("FR-015", "SC-010")
def test_running_rows_get_a_token_every_step_while_a_long_prompt_is_read() -> None:
    scheduler, memory = build((None, 400), step_tokens=32)
    dice = random.Random(0)
    short = [sequence([1] * 8, 400) for _ in range(4)]
    for row in short:
        scheduler.add(row)
    step(scheduler, memory, dice)
    scheduler.add(sequence([2] * 500))
    late = sequence([3] * 8)
    scheduler.add(late)
    for _ in range(10):
        plan = step(scheduler, memory, dice)
        assert plan.decode == short
        assert plan.num_tokens == 32  # what decoding leaves is used for the prompt
    assert late.state == "running" or late.num_cached == 0


def test_first_come_first_served() -> None:
    scheduler, memory = build((None, 60), max_rows=3, step_tokens=40)
    rows = [sequence([1, number] * 15, 40) for number in range(20)]
    for row in rows:
        scheduler.add(row)
    done: list[Sequence] = []
    while scheduler.num_waiting or scheduler.num_running:
        step(scheduler, memory, random.Random(0))
        done += [row for row in rows if row.state == "finished" and row not in done]
    assert done == rows


def test_who_came_last_gives_way_and_comes_back() -> None:
    scheduler, memory = build((None, 8), max_rows=4)
    old, young = sequence([1] * 30, 100), sequence([2] * 30, 100)
    scheduler.add(old)
    scheduler.add(young)
    plans = run(scheduler, memory)
    assert scheduler.num_preemptions >= 1
    assert scheduler.num_hit_tokens > 0  # its own beginning was still there
    assert len(plans) <= 2 * 100
    assert len(old.tokens) == len(young.tokens) == 100


def test_the_youngest_waits_with_its_memory_when_there_is_no_more() -> None:
    scheduler, memory = build((None, 6), max_rows=2)
    dice, pool = random.Random(0), scheduler.pools[None]
    old, young = sequence([1] * 17, 48), sequence([2] * 31, 48)
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler, memory, dice)
    taken = pool.allocate(pool.num_free) or []  # as if a third had it
    plans = [step(scheduler, memory, dice) for _ in range(5)]
    assert [plan.decode for plan in plans] == [[old, young], [old], [old], [old], [old]]
    assert young.num_cached == 32 and scheduler.num_preemptions == 0
    pool.release(taken)
    assert step(scheduler, memory, dice).decode == [old, young]
    run(scheduler, memory)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=25))
@settings(max_examples=25)
def test_many_requests_in_little_memory_all_end(shapes: list[tuple[int, int]]) -> None:
    scheduler, memory = build((None, 8), (10, 4), max_rows=5, step_tokens=20)
    rows = [sequence([1] * length, length + more) for length, more in shapes]
    for row in rows:
        scheduler.add(row)
    run(scheduler, memory)
    assert all(len(row.tokens) == row.limit for row in rows)


def test_an_idle_scheduler_plans_nothing() -> None:
    scheduler, _ = build((None, 4))
    plan = scheduler.plan()
    assert plan == StepPlan([], []) and plan.num_tokens == 0
    scheduler.fed(plan)


def test_a_step_of_many_rows_is_planned_in_no_time() -> None:
    scheduler, _ = build((None, 4000), (512, 3000), max_rows=64, step_tokens=1024)
    rows = [sequence([number] * 40, 1000) for number in range(64)]
    for row in rows:
        scheduler.add(row)
    for _ in range(3):
        scheduler.fed(scheduler.plan())
    start_s, num_steps = time.thread_time(), 200
    for _ in range(num_steps):
        for row in rows:
            row.tokens.append(1)
        plan = scheduler.plan()
        scheduler.fed(plan)
        assert len(plan.decode) == 64
    # 0.1 ms here; a token of depth 4 takes 0.7 ms.  The bound is for slow machines.
    assert (time.thread_time() - start_s) / num_steps < 5e-3
