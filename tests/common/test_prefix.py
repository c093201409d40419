"""What texts share is found by halves, and is what one by one finds."""

from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.prefix import num_shared

TOKENS = st.lists(st.integers(0, 2), max_size=9)


def one_by_one(texts: list[list[int]]) -> int:
    """The slow twin."""
    count = 0
    for column in zip(*texts, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


@given(TOKENS, st.lists(TOKENS, min_size=1, max_size=4))
def test_halves_find_what_one_by_one_finds(begin: list[int], ends: list[list[int]]) -> None:
    texts = [begin + end for end in ends]
    assert num_shared(texts) == num_shared([tuple(text) for text in texts]) == one_by_one(texts)
    assert num_shared(ends) == one_by_one(ends)
