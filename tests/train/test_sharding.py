"""Who owns what, and in which order it travels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanochat.common.dist import World
from nanochat.common.errors import Stopped, TrainingError
from nanochat.common.watch import Watch
from nanochat.train import pace as pace_module
from nanochat.train.optim import RECIPES, Optimizer
from nanochat.train.pace import Pace
from nanochat.train.pieces import Storage, cut_pieces
from nanochat.train.recipes import rates_of
from nanochat.train.sharding import (
    LONGEST_PIECE,
    MANY_RANKS,
    Gathered,
    Reducer,
    cut,
    owners,
    place_in_backward,
)
from tests.fakes import random_gpt, tiny_config

# ------------------------------------------------------------------------------------- cutting


@given(
    num_units=st.integers(1, 300),
    unit_elements=st.integers(1, 10**6),
    num_ranks=st.integers(1, 64),
    more=st.integers(0, 10**9),
)
def test_spans_are_whole_and_short(
    num_units: int, unit_elements: int, num_ranks: int, more: int
) -> None:
    elements = num_units * unit_elements + more
    spans = cut(num_units, unit_elements, num_ranks, elements)
    assert spans[0].start == 0 and spans[-1].stop == num_units
    assert all(a.stop == b.start for a, b in zip(spans, spans[1:], strict=False))
    assert all(span.size > 0 for span in spans)
    if num_ranks == 1:
        assert len(spans) == 1
    else:
        longest = max(span.size for span in spans)
        assert longest == 1 or longest * unit_elements <= LONGEST_PIECE
        share = elements / (4 * min(num_ranks, MANY_RANKS))
        assert longest == 1 or longest * unit_elements <= share


def test_many_ranks_send_no_more_than_some() -> None:
    """Depth 12 has eight tables of 32,768 rows."""
    for num_ranks, num_spans in ((8, 7), (64, 7), (512, 7)):
        assert len(cut(32_768, 768, num_ranks, 8 * 32_768 * 768)) == num_spans


@given(costs=st.lists(st.integers(1, 1000), max_size=60), num_ranks=st.integers(1, 9))
def test_loads_differ_by_one_piece_at_most(costs: list[int], num_ranks: int) -> None:
    loads = [0] * num_ranks
    found = owners(costs, loads)
    sums = [sum(c for c, o in zip(costs, found, strict=True) if o == r) for r in range(num_ranks)]
    assert loads == sums
    assert max(loads) - min(loads) <= max(costs, default=0)


@pytest.mark.parametrize("num_ranks", [2, 3, 8])
@pytest.mark.req("FR-016")
def test_every_row_has_one_owner_and_shares_are_even(num_ranks: int) -> None:
    parameters = dict(random_gpt(tiny_config(3)).named_parameters())
    matrices = [name for name in parameters if name.startswith("blocks.") and "gate" not in name]
    storages = [Storage([name], parameters) for name in parameters if name not in matrices]
    by_shape: dict[Any, list[str]] = {}
    for name in matrices:
        by_shape.setdefault(parameters[name].shape, []).append(name)
    storages += [Storage(names, parameters) for names in by_shape.values()]
    pieces = cut_pieces(storages, num_ranks)
    seen = {
        name: torch.zeros(len(weight), dtype=torch.int64) for name, weight in parameters.items()
    }
    loads = [0] * num_ranks
    for piece in pieces:
        loads[piece.owner] += piece.grads.numel() * (1 if piece.is_matrix else 2)
        for name, rows, _ in piece.segments():
            seen[name][rows] += 1
    assert all(bool((count == 1).all()) for count in seen.values())
    assert max(loads) <= 1.2 * sum(loads) / num_ranks


def test_rates_and_places() -> None:
    names = [
        "head.weight",
        "blocks.2.mlp.expand.weight",
        "value_embeddings.0.weight",
        "embedding.x",
    ]
    assert [place_in_backward(name, 3) for name in names] == [0, 1, 3, 4]
    rates = rates_of(RECIPES["v5"], ["head.weight", "blocks.0.x"], 768, 0.5)
    assert rates == {"head": 0.004, "matrix": 0.01}


# ------------------------------------------------------------------------------------ travelling


class Postman(World):
    """A world whose sums are written down and never arrive."""

    def start_sum_at(self, owner: int, tensor: Tensor) -> Any:
        SENT.append((owner, int(tensor[0])))
        return self

    def wait(self) -> None:
        SENT.append((-1, -1))


SENT: list[tuple[int, int]] = []


def test_sums_begin_in_one_order_whatever_comes_first() -> None:
    SENT.clear()
    pieces = [
        (torch.tensor([index]), index % 2, frozenset(names))
        for index, names in enumerate([("a",), ("b", "c"), ("b",), ("d",)])
    ]
    reducer = Reducer(pieces, Postman())
    reducer.came("a")  # not of the last part: nothing is sent
    assert SENT == [] and reducer.num_sent == 0
    reducer.expect()
    for name in ("b", "d"):
        reducer.came(name)
    assert SENT == []
    reducer.came("a")
    assert SENT == [(0, 0)]
    reducer.came("c")
    assert SENT == [(0, 0), (1, 1), (0, 2), (1, 3)] and reducer.num_sent == 4
    reducer.finish()
    assert SENT[4:] == [(-1, -1)] * 4 and reducer.num_sent == 0
    reducer.finish()  # of a rank that had nothing to compute: all are sent all the same
    assert SENT[8:12] == [(0, 0), (1, 1), (0, 2), (1, 3)]


def test_what_is_gathered_is_fetched_when_it_is_looked_at() -> None:
    asked: list[str] = []

    def fetch(name: str) -> Tensor:
        asked.append(name)
        return torch.ones(1)

    gathered = Gathered(["x", "y"], fetch)
    assert list(gathered) == ["x", "y"] and len(gathered) == 2 and asked == []
    assert [name for name, _ in gathered.items()] == ["x", "y"] == asked
    with pytest.raises(KeyError):
        gathered["z"]


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[World]:
    """Collectives that are carried out, with nobody else."""
    store = torch_dist.FileStore(str(tmp_path / "store"), 1)
    torch_dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield World()
    torch_dist.destroy_process_group()


@pytest.mark.req("FR-016")
def test_collectives_of_one(group_of_one: World) -> None:
    tensor = torch.arange(3.0)
    group_of_one.start_sum_at(0, tensor).wait()
    group_of_one.start_copy_from(0, tensor).wait()
    assert tensor.tolist() == [0.0, 1.0, 2.0]
    assert group_of_one.texts("alone") == ["alone"] and group_of_one.name == "rank 0"
    group_of_one.now_at(3)
    with group_of_one.together():
        pass
    optimizer = Optimizer(random_gpt(tiny_config(2)), RECIPES["v5"], world=group_of_one)
    assert len(optimizer.digest()) == 64 and optimizer.state_bytes() > 0
    optimizer.expect_last_part()


# --------------------------------------------------------------------------------------- trouble


@pytest.mark.req("FR-016")
def test_what_ends_one_rank_ends_all_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(torch_dist.HashStore(), 0, 2)
    told: list[str] = []
    monkeypatch.setattr(watch, "tell", told.append)
    monkeypatch.setattr(watch, "explain", lambda: "rank 1 is gone")
    world = World(size=2, watch=watch)
    world.now_at(5)
    assert watch.step == 5 and world.name == watch.name
    with pytest.raises(TrainingError, match="rank 1 is gone"), world.together(told.append):
        raise RuntimeError("[gloo] Connection closed by peer")
    with pytest.raises(ValueError, match="own"), world.together():
        raise ValueError("own")
    assert told == ["ValueError: own"]
    with pytest.raises(Stopped), world.together():
        raise Stopped("saved", 143)
    monkeypatch.setattr(watch, "explain", lambda: None)
    with pytest.raises(RuntimeError, match="NCCL"), world.together():
        raise RuntimeError("NCCL error, and all others are well")
    assert told[1:] == ["RuntimeError: NCCL error, and all others are well"]


class Saying(World):
    """A world whose other ranks take a second for a thousand tokens, and one has none."""

    def texts(self, text: str) -> list[str]:
        return [text, "1.0|far|0.2|9", "0.0|idle|0.1|9", "1.0|near|0.3|9"]


class Alone(World):
    """A world whose other rank has nothing to do."""

    def texts(self, text: str) -> list[str]:
        return [text, "0.0|idle|0.0|9"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, to be set."""
    now = [0.0]
    monkeypatch.setattr(pace_module.time, "monotonic", lambda: now[0])
    yield now


def passes(pace: Pace, clock: list[float], seconds: float, num_tokens: int) -> None:
    with pace.own_part():
        clock[0] += seconds
        pace.computed(num_tokens)


@pytest.mark.req("FR-016")
def test_the_slowest_rank_is_named(clock: list[float]) -> None:
    pace = Pace(torch.device("cpu"))
    passes(pace, clock, 1.0, 1000)
    passes(pace, clock, 3.0, 1000)
    told = pace.report(Saying(size=4))
    assert told is not None and told.startswith("rank 0 (") and ") is slow: 2 s a thousand" in told
    assert "tokens for its own part, 2.0 times the others' 1 s" in told
    passes(pace, clock, 1.1, 1000)
    assert pace.report(Saying(size=4)) is None


@pytest.mark.req("FR-016")
def test_who_has_more_rows_is_not_slow(clock: list[float]) -> None:
    pace = Pace(torch.device("cpu"))
    passes(pace, clock, 2.0, 2000)
    assert pace.report(Saying(size=4)) is None
    passes(pace, clock, 9.0, 2000)
    assert pace.report(Alone(size=2)) is None  # who has no rows says nothing about who has
    with pytest.raises(MemoryError), pace.own_part():
        pace.computed(1000)
        raise MemoryError
    assert pace.report(Saying(size=4)) is None  # what was not finished does not count


@pytest.mark.req("FR-016", "FR-035")
def test_who_waits_for_its_batches_is_named(clock: list[float]) -> None:
    """The others have theirs: they stand still in the sums, and say nothing about it."""
    pace = Pace(torch.device("cpu"))
    clock[0] += 40.0
    pace.waited(1.5)
    pace.waited(2.0)
    told = pace.report(Saying(size=4))
    assert (
        told is not None
        and told.startswith("rank 0 (")
        and told.endswith(
            ") waits for its batches: 3.5 s of the last 40 s, the others 0.2 s, who wait for it"
        )
    )
    clock[0] += 400.0
    pace.waited(3.5)
    assert pace.report(Saying(size=4)) is None  # a hundredth of the time
    pace.waited(0.9)
    assert pace.report(Saying(size=4)) is None  # all at once, and yet short
    passes(pace, clock, 3.0, 1000)
    pace.waited(3.0)
    told = pace.report(Saying(size=4))
    assert told is not None and " is slow: 3 s " in told and "; rank 0 (" in told
