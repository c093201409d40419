"""Packing: equal to the brute force twin, and nothing is lost without being counted."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.batches.packing import Layout, Packed, pack
from nanochat.common.errors import ConfigError
from tests.twins.packing import pack_slowly

pytestmark = pytest.mark.req("FR-033")

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)
LAYOUTS = st.sampled_from(["drop", "reuse", "pack", "pad"])


@given(LENGTHS, st.integers(2, 25), LAYOUTS)
def test_equal_to_brute_force(lengths: list[int], row_tokens: int, layout: Layout) -> None:
    assert pack(lengths, row_tokens, layout).rows == pack_slowly(lengths, row_tokens, layout)


@given(LENGTHS, st.integers(2, 25), LAYOUTS)
def test_every_token_is_placed_or_counted(
    lengths: list[int], row_tokens: int, layout: Layout
) -> None:
    packed = pack(lengths, row_tokens, layout)
    assert sum(lengths) + packed.added_bos_tokens == packed.placed_tokens + packed.cropped_tokens
    assert packed.placed_tokens + packed.padded_tokens == len(packed.rows) * row_tokens
    pieces = [piece for row in packed.rows for piece in row]
    assert packed.placed_tokens == sum(piece.length for piece in pieces)
    assert packed.added_bos_tokens == sum(piece.start > 0 for piece in pieces)
    shortened = sum(kept < length for kept, length in zip(own_tokens(packed), lengths, strict=True))
    assert packed.cropped_documents == shortened


@given(LENGTHS, st.integers(2, 25), LAYOUTS)
def test_rows_are_never_empty_or_too_long(
    lengths: list[int], row_tokens: int, layout: Layout
) -> None:
    for row in pack(lengths, row_tokens, layout).rows:
        assert 1 <= sum(piece.length for piece in row) <= row_tokens
        assert all(piece.length > 0 for piece in row)


@given(LENGTHS, st.integers(2, 25))
def test_reuse_places_every_token_once_in_full_rows(lengths: list[int], row_tokens: int) -> None:
    packed = pack(lengths, row_tokens, "reuse")
    assert own_tokens(packed) == lengths
    assert packed.cropped_tokens == 0
    assert packed.padded_tokens < row_tokens  # only the last row has room
    ends = dict.fromkeys(range(len(lengths)), 0)
    for piece in sorted(piece for row in packed.rows for piece in row):
        assert piece.start == ends[piece.document]
        ends[piece.document] += piece.length - (piece.start > 0)


@given(LENGTHS, st.integers(2, 25))
def test_drop_fills_rows_and_keeps_only_beginnings(lengths: list[int], row_tokens: int) -> None:
    packed = pack(lengths, row_tokens, "drop")
    assert all(piece.start == 0 for row in packed.rows for piece in row)
    assert packed.added_bos_tokens == 0
    assert packed.padded_tokens < row_tokens
    assert sorted(piece.document for row in packed.rows for piece in row) == [*range(len(lengths))]


@given(LENGTHS, st.integers(2, 25), st.sampled_from(["pack", "pad"]))
def test_conversations_are_whole_and_occur_once(
    lengths: list[int], row_tokens: int, layout: Layout
) -> None:
    packed = pack(lengths, row_tokens, layout)
    pieces = {piece.document: piece for row in packed.rows for piece in row}
    assert sum(len(row) for row in packed.rows) == len(pieces) == len(lengths)
    assert all(pieces[i] == (i, 0, min(length, row_tokens)) for i, length in enumerate(lengths))


def test_reference_behaviour_by_hand() -> None:
    # Rows of 10: 6 is the longest that fits, then 4; then 3, beside which 15 is the shortest left.
    packed = pack([6, 3, 4, 20, 15], 10, "drop")
    assert packed.rows[0] == [(0, 0, 6), (2, 0, 4)]
    assert packed.rows[1] == [(1, 0, 3), (4, 0, 7)]
    assert packed.rows[2] == [(3, 0, 10)]
    assert (packed.cropped_tokens, packed.cropped_documents) == (18, 2)


def test_long_conversations_do_not_clog() -> None:
    packed = pack([500, 3, 500, 4], 10, "pack")
    assert packed.rows == [[(0, 0, 10)], [(2, 0, 10)], [(3, 0, 4), (1, 0, 3)]]
    assert packed.cropped_documents == 2


def test_lengths_may_be_an_array() -> None:
    lengths = np.array([5, 9, 30], np.int64)
    assert pack(lengths, 8, "reuse") == pack(lengths.tolist(), 8, "reuse")
    assert pack([], 8, "reuse").rows == []


def test_unknown_layout_is_named() -> None:
    with pytest.raises(ConfigError, match="'best', expected one of drop, reuse, pack, pad"):
        pack([1], 8, "best")  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["drop", "reuse", "pack"])
def test_millions_of_tokens_a_second(layout: Layout) -> None:
    # A third of a second here would be 6 million a second; it takes a thirtieth of that.
    lengths = np.random.default_rng(0).geometric(1 / 200, size=10_000)
    start = time.perf_counter()
    pack(lengths, 2049, layout)
    assert lengths.sum() / (time.perf_counter() - start) > 2e6


def own_tokens(packed: Packed) -> list[int]:
    """Tokens of each document that are in some row, <|bos|>s put there left out."""
    pieces = [piece for row in packed.rows for piece in row]
    found = [0] * (1 + max(piece.document for piece in pieces))
    for piece in pieces:
        found[piece.document] += piece.length - (piece.start > 0)
    return found
