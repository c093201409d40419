"""Who computes what in the next step.   in: sequences   out: StepPlan   who calls: engine.py

    waiting --admitted when blocks are free--> running --finish, abort--> finished
       ^----------- preempted when blocks run out -------------|
A step feeds one token of every running sequence (decode) and, with what is left of the step's
tokens, pieces of prompts (prefill).  Whoever came first is served first, and who came last gives
way: its blocks are taken and it is computed again later, so that the oldest always goes on and
nobody starves.  No tensors: a step is planned, computed by whoever asked, and reported as `fed`.
Read next: sequence.py (what is planned), blocks.py (memory), tests/engine/test_scheduler.py (the
promises).
"""

import bisect
from collections.abc import Iterable

from nanochat.common.errors import RequestTooLong
from nanochat.engine.blocks import BLOCK_TOKENS, BlockPool
from nanochat.engine.sequence import Chunk, Copies, Fork, Sequence, StepPlan

__all__ = ["Chunk", "Copies", "Fork", "Scheduler", "Sequence", "StepPlan"]


class Scheduler:
    """Plans steps of at most `step_tokens` tokens for at most `max_rows` sequences at a time.

    Use: add(sequence); then again and again plan = plan(), compute it, fed(plan), append to
    `sequence.tokens` what was chosen, finish(sequence) or abort(request_id) at any moment.
    """

    def __init__(self, pools: Iterable[BlockPool], *, max_rows: int, step_tokens: int) -> None:
        self.pools = {pool.window: pool for pool in pools}
        assert self.pools, "a scheduler without memory"
        assert 1 <= max_rows < step_tokens, f"{max_rows} rows in steps of {step_tokens} tokens"
        self.max_rows, self.step_tokens = max_rows, step_tokens
        self.num_preemptions = 0
        self.num_hit_tokens = 0
        """Tokens whose keys were found instead of computed."""
        self._waiting: list[Sequence] = []  # both in the order in which they are served
        self._running: list[Sequence] = []
        self._by_request: dict[str, list[Sequence]] = {}
        self._num_arrived = 0

    @property
    def num_waiting(self) -> int:
        """Sequences without memory."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences with memory."""
        return len(self._running)

    # ------------------------------------------------------------------------- come and go

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence.

        Raises: RequestTooLong if even alone it could not be held by the whole cache.
        """
        assert sequence.tokens and sequence.limit >= len(sequence.tokens), sequence
        self.check(sequence.limit)
        self._num_arrived += 1
        sequence.order = (self._num_arrived, sequence.sample)
        self._by_request.setdefault(sequence.request_id, []).append(sequence)
        self._wait(sequence)

    def check(self, num_tokens: int) -> None:
        """Whether a sequence that may grow so long could be held at all; callable from any thread.

        Raises: RequestTooLong with the numbers.
        """
        for pool in self.pools.values():
            needed = _most_held(pool.window, num_tokens, chunk=1)
            if needed > pool.num_blocks:
                raise RequestTooLong(
                    f"the request may grow to {num_tokens} tokens, which take {needed} blocks of "
                    f"{BLOCK_TOKENS}, but the whole cache has {pool.num_blocks}: ask for fewer "
                    "tokens, or give the cache more memory (--kv-memory)"
                )

    def finish(self, sequence: Sequence) -> None:
        """A sequence is complete: its memory is free at once; harmless twice."""
        if sequence.state == "finished":
            return
        (self._running if sequence.state == "running" else self._waiting).remove(sequence)
        self._release(sequence)
        sequence.state = "finished"
        siblings = self._by_request[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._by_request[sequence.request_id]

    def abort(self, request_id: str) -> list[Sequence]:
        """Finish all sequences of a request, and say which; an unknown one has none."""
        sequences = list(self._by_request.get(request_id, ()))
        for sequence in sequences:
            self.finish(sequence)
        return sequences

    def fork(self, sequence: Sequence, num_samples: int) -> Fork:
        """`num_samples` - 1 more answers to a prompt that has just been fed completely.

        They share its full blocks; the last, partial one is copied.  Who finds no memory waits and
        is computed later.  The logits after the prompt choose the first token of all.
        """
        assert sequence.state == "running" and sequence.num_new == 0, "the prompt is not read yet"
        copies: Copies = {window: [] for window in self.pools}
        children = []
        for sample in range(1, num_samples):
            child = Sequence(
                sequence.request_id,
                list(sequence.tokens),
                sequence.limit,
                sample=sample,
                max_shared=sequence.max_shared,
                order=(sequence.order[0], sample),
                hashes=list(sequence.hashes),
            )
            self._by_request[child.request_id].append(child)
            children.append(child)
            if not self._share_all(sequence, child, copies):
                self._wait(child)
        return Fork(children, copies)

    def forget(self) -> None:
        """Lose all keys, because the weights have changed; who runs is computed again."""
        for sequence in list(self._running):
            self._preempt(sequence)
        for pool in self.pools.values():
            pool.forget()

    # -------------------------------------------------------------------------------- a step

    def plan(self) -> StepPlan:
        """What to feed next; the blocks for it are in the tables.  Empty when nothing can be."""
        plan = StepPlan([], [])
        num_preemptions = self.num_preemptions
        budget = self.step_tokens - sum(map(_is_decoding, self._running))
        for sequence in list(self._running):  # oldest first: who gives way has no part in it yet
            if sequence.state != "running" or not sequence.num_new:
                continue
            if _is_decoding(sequence):
                if self._make_room(sequence):
                    self._extend(sequence, sequence.num_cached + 1)
                    plan.decode.append(sequence)
            elif budget and self._make_room(sequence):
                budget -= self._add_chunk(plan, sequence, budget)
        if num_preemptions == self.num_preemptions:  # else memory is short: nobody new
            self._admit(plan, budget)
        return plan

    def fed(self, plan: StepPlan) -> None:
        """The step's keys are in memory: full blocks can be shared, blocks past a window go."""
        for chunk in plan.prefill:
            self._advance(chunk.sequence, chunk.stop)
        for sequence in plan.decode:
            self._advance(sequence, sequence.num_cached + 1)

    def _advance(self, sequence: Sequence, num_cached: int) -> None:
        if sequence.state != "running":  # aborted since
            return
        sequence.num_cached = num_cached
        if sequence.num_published < num_cached // BLOCK_TOKENS:
            self._publish(sequence)
        for window, pool in self.pools.items():
            if num_out := _num_out(window, num_cached):
                _give_back(pool, sequence.tables[window], num_out)

    def _add_chunk(self, plan: StepPlan, sequence: Sequence, budget: int) -> int:
        """Plan the next piece of its prompt, as long as tokens and memory last; its length."""
        start = sequence.num_cached
        length = min(sequence.num_new, budget, self._num_fitting(sequence))
        self._extend(sequence, start + length)
        plan.prefill.append(Chunk(sequence, start, start + length))
        return length

    def _admit(self, plan: StepPlan, budget: int) -> None:
        """Let the first that wait begin, strictly in order, while there is memory for them."""
        while self._waiting and budget and len(self._running) < self.max_rows:
            sequence = self._waiting[0]
            num_shared = self._num_shared(sequence)
            if not self._is_affordable(sequence, num_shared):
                return
            del self._waiting[0]
            self._take_shared(sequence, num_shared)
            self._run(sequence)
            budget -= self._add_chunk(plan, sequence, budget)

    def _run(self, sequence: Sequence) -> None:
        sequence.state = "running"
        bisect.insort(self._running, sequence, key=_order)

    def _wait(self, sequence: Sequence) -> None:
        sequence.state = "waiting"
        bisect.insort(self._waiting, sequence, key=_order)

    # -------------------------------------------------------------------------------- memory

    def _is_affordable(self, sequence: Sequence, num_shared: int) -> bool:
        """Whether all of it fits beside what is being read and one block more for each row."""
        for window, pool in self.pools.items():
            names = sequence.hashes[_num_out(window, num_shared) : num_shared // BLOCK_TOKENS]
            # What somebody reads already costs nothing; what nobody reads is taken from the free.
            num_costless = sum(pool.is_used(pool.known(name)) for name in names)
            needed = self._num_to_read(pool, sequence) - num_costless
            promised = sum(
                max(0, self._num_to_read(pool, other) - _num_held(other, window))
                for other in self._running
                if other.num_new > 1
            )
            if needed > pool.num_free - promised - len(self._running):
                return False
        return True

    def _num_to_read(self, pool: BlockPool, sequence: Sequence) -> int:
        """Blocks it takes to read all its tokens and choose one more."""
        num_tokens = min(len(sequence.tokens) + 1, sequence.limit)
        return min(_most_held(pool.window, num_tokens, self.step_tokens), pool.num_blocks)

    def _make_room(self, sequence: Sequence) -> bool:
        """Whether a token more fits, after the youngest have given way to it; it may be youngest
        itself, and waits then."""
        while self._num_fitting(sequence) < 1:
            if self._running[-1] is sequence:
                return False
            self._preempt(self._running[-1])
        return True

    def _num_fitting(self, sequence: Sequence) -> int:
        """Tokens for which it has blocks or can get them."""
        num_blocks = min(
            len(sequence.tables[window]) + pool.num_free for window, pool in self.pools.items()
        )
        return num_blocks * BLOCK_TOKENS - sequence.num_cached

    def _extend(self, sequence: Sequence, num_tokens: int) -> None:
        """Blocks up to that many tokens; they are free."""
        assert num_tokens <= sequence.limit, f"{num_tokens} tokens, limit {sequence.limit}"
        num_blocks = -(-num_tokens // BLOCK_TOKENS)
        for window, pool in self.pools.items():
            table = sequence.tables[window]
            if num_blocks > len(table):
                table += self._allocate(pool, sequence, num_blocks - len(table), table)

    def _allocate(
        self, pool: BlockPool, sequence: Sequence, num_blocks: int, table: list[int | None]
    ) -> list[int]:
        """New blocks behind those of the table, where it can grow to its limit in one stretch."""
        rest = -(-sequence.limit // BLOCK_TOKENS) - len(table) - num_blocks
        room = max(0, min(rest, pool.num_blocks // self.max_rows))
        blocks = pool.allocate(num_blocks, after=table[-1] if table else None, room=room)
        assert blocks is not None, f"{num_blocks} blocks are not free: {pool.num_free} are"
        return blocks

    def _preempt(self, sequence: Sequence) -> None:
        """Take its memory; it is computed again when its turn comes."""
        self._running.remove(sequence)
        self._release(sequence)
        self._wait(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        """Give its blocks back, the last first: beginnings are shared most and kept longest."""
        if sequence.num_published < sequence.num_cached // BLOCK_TOKENS:
            self._publish(sequence)
        for window, table in sequence.tables.items():
            self.pools[window].release(block for block in reversed(table) if block is not None)
        sequence.tables = {}
        sequence.num_cached = sequence.num_published = 0

    # ---------------------------------------------------------------------- shared beginnings

    def _publish(self, sequence: Sequence) -> None:
        """Let others find its full blocks, up to the first whose tokens are not known yet."""
        stop = min(sequence.num_cached // BLOCK_TOKENS, sequence.name_blocks())
        for window, pool in self.pools.items():
            for index in range(sequence.num_published, stop):
                block = sequence.tables[window][index]
                if block is not None:
                    pool.publish(block, sequence.hashes[index])
        sequence.num_published = max(stop, sequence.num_published)

    def _num_shared(self, sequence: Sequence) -> int:
        """Tokens at its beginning whose keys are in memory, in every window as far as it sees."""
        most = len(sequence.tokens) - 1
        if sequence.max_shared is not None:
            most = min(most, sequence.max_shared)
        names = sequence.hashes[: min(most // BLOCK_TOKENS, sequence.name_blocks())]
        lengths = {window: _run_lengths(pool, names) for window, pool in self.pools.items()}
        for num_blocks in range(len(names), 0, -1):
            num_tokens = num_blocks * BLOCK_TOKENS
            if all(
                run[num_blocks] >= num_blocks - _num_out(window, num_tokens)
                for window, run in lengths.items()
            ):
                return num_tokens
        return 0

    def _take_shared(self, sequence: Sequence, num_tokens: int) -> None:
        """Read the blocks of its first tokens with those who have them."""
        num_blocks = num_tokens // BLOCK_TOKENS
        for window, pool in self.pools.items():
            num_out = _num_out(window, num_tokens)
            blocks = [pool.known(name) for name in sequence.hashes[num_out:num_blocks]]
            pool.share(blocks)
            sequence.tables[window] = [*[None] * num_out, *blocks]
        sequence.num_cached, sequence.num_published = num_tokens, num_blocks
        self.num_hit_tokens += num_tokens

    def _share_all(self, parent: Sequence, child: Sequence, copies: Copies) -> bool:
        """Give a child all its parent has, the partial block as a copy; False without memory."""
        num_full, num_rest = divmod(parent.num_cached, BLOCK_TOKENS)
        is_full = any(pool.num_free < (num_rest > 0) for pool in self.pools.values())
        if is_full or len(self._running) >= self.max_rows:
            return False
        for window, pool in self.pools.items():
            table = parent.tables[window]
            shared = table[:num_full]
            pool.share(block for block in shared if block is not None)
            if num_rest:
                source = table[num_full]
                assert source is not None, f"the block being written is out of window {window}"
                [target] = self._allocate(pool, child, 1, shared)
                copies[window].append((source, target))
                shared.append(target)
            child.tables[window] = shared
        child.num_cached, child.num_published = parent.num_cached, parent.num_published
        self._run(child)
        return True


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order


def _is_decoding(sequence: Sequence) -> bool:
    return sequence.num_cached > 0 and len(sequence.tokens) - sequence.num_cached == 1


def _num_out(window: int | None, num_cached: int) -> int:
    """Blocks that no later token sees: the next, at num_cached, sees `window` tokens before it."""
    return 0 if window is None else max(0, num_cached - window) // BLOCK_TOKENS


def _num_held(sequence: Sequence, window: int | None) -> int:
    return len(sequence.tables[window]) - _num_out(window, sequence.num_cached)


def _most_held(window: int | None, num_tokens: int, chunk: int) -> int:
    """Most blocks held at once on the way to that many tokens, `chunk` at a time."""
    num_blocks = -(-num_tokens // BLOCK_TOKENS)
    if window is None:
        return num_blocks
    # From the block of the first token seen to that of the last fed: neither need be aligned.
    return min(num_blocks, -(-(window + chunk - 1) // BLOCK_TOKENS) + 1)


def _give_back(pool: BlockPool, table: list[int | None], num_out: int) -> None:
    """Release the table's first blocks; those released before are None already."""
    index = num_out - 1
    while index >= 0 and (block := table[index]) is not None:
        pool.release((block,))
        table[index] = None
        index -= 1


def _run_lengths(pool: BlockPool, names: list[bytes]) -> list[int]:
    """For every number of blocks, how many of the last of them are known without a gap."""
    lengths = [0]
    for name in names:
        lengths.append(0 if pool.find(name) is None else lengths[-1] + 1)
    return lengths
