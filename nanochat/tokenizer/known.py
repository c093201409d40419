"""Many texts -> tokens, by arrays.   in: texts   out: the tokens of `Tokenizer.encode`, faster
who calls: tokenizer.py (Tokenizer.encode_all)

Most of the time of encoding goes into the regular expression that cuts text into pieces, and most
pieces were seen before.  Here pieces are cut by rules over whole arrays of characters (see
`_piece_starts`; which characters are letters, numbers and blanks is asked of the same engine that
runs the expression, so that no version of Unicode comes between), and pieces of up to 16 bytes are
looked up in a table of those that are known; what is new, or longer, tiktoken encodes, and it is
then known.  Texts mostly of other scripts than Latin have few short pieces: tiktoken takes them.
Read next: tokenizer.py (the pattern), tests/tokenizer/test_known.py (equal on every text).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tiktoken

__all__ = ["KnownPieces"]

TABLE_BITS = 20  # 32 MB
MOST_KNOWN = int(
    0.6 * (1 << TABLE_BITS)
)  # a fuller table is slower, and new pieces are rare by then
MOST_BYTES = 16
MOST_BYTES_PER_CHAR = 1.5  # of a text: more is mostly another script than Latin
PAGE = 4096  # characters that are asked for together

_END, _LETTER, _NUMBER, _BLANK, _OTHER = range(5)
_SPACE, _APOSTROPHE, _LONG_S = 0x20, 0x27, 0x17F
_MASKS = np.array([(1 << (8 * count)) - 1 for count in range(9)], np.uint64)
_WIDEST = 0x110000
_LAST_SLOT = (1 << TABLE_BITS) - 1
_BYTE, _COUNT_BIT, _PLACE_BIT = np.uint64(0xFF), np.uint64(8), np.uint64(16)

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Tokens = npt.NDArray[np.uint32]


class KnownPieces:
    """The pieces seen so far, and their tokens.  For one thread at a time.

    `encode_pieces` gives the tokens of pieces, one after another, and how many each has;
    `encode_text` those of a whole text; `vocabulary` has the tokens themselves, by number.
    """

    def __init__(
        self,
        most_digits: int,
        encode_pieces: Callable[[Sequence[bytes]], tuple[Tokens, Numbers]],
        encode_text: Callable[[str], Tokens],
        vocabulary: Sequence[bytes],
    ) -> None:
        self._most_digits = most_digits
        self._encode_pieces = encode_pieces
        self._encode_text = encode_text
        self._classes = _Classes()
        size = 1 << TABLE_BITS
        # Of each piece its bytes, twice eight, and `_told`; 32 bytes, so that one is in one line of
        # a processor's cache.  All zeros: free.
        self._table = np.zeros((size, 4), np.uint64)
        self._pool = np.zeros(size, np.uint32)
        self._num_known = self._num_pooled = 0
        # A piece that is a token is that token, whatever merges would make of it.
        self._learn(
            vocabulary,
            np.arange(len(vocabulary), dtype=np.uint32),
            np.ones(len(vocabulary), np.int64),
        )

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Numbers]:
        """The tokens of all texts one after another, and how many each has.

        Raises: UnicodeEncodeError for a lone surrogate.
        """
        data = [text.encode() for text in texts]
        is_fast = [
            len(each) <= MOST_BYTES_PER_CHAR * len(text)
            for text, each in zip(texts, data, strict=True)
        ]
        if all(is_fast):
            return self._encoded(texts, data)
        fast = [index for index, flag in enumerate(is_fast) if flag]
        tokens, lengths = self._encoded([texts[i] for i in fast], [data[i] for i in fast])
        parts = np.split(tokens, np.cumsum(lengths)[:-1]) if fast else []
        of_fast = dict(zip(fast, parts, strict=True))
        every = [
            of_fast[index] if index in of_fast else self._encode_text(text)
            for index, text in enumerate(texts)
        ]
        return np.concatenate(every), np.array([len(each) for each in every], np.int64)

    def _encoded(self, texts: Sequence[str], data: Sequence[bytes]) -> tuple[Tokens, Numbers]:
        if not texts:
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        joined = b"\n".join(data) + b"\n" + bytes(2 * MOST_BYTES)
        codes = np.frombuffer(joined, np.uint8)[: -2 * MOST_BYTES]
        chars: npt.NDArray[Any] = codes
        if not joined.isascii():
            wide = "\n".join(texts) + "\n"
            chars = np.frombuffer(wide.encode("utf-32-le"), "<u4")
        ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64) - 1
        classes = self._classes.of(chars)
        classes[ends] = _END
        bounds = np.flatnonzero(_piece_starts(chars, classes, self._most_digits))
        is_piece = classes[bounds[:-1]] != _END
        owners_ends = np.searchsorted(bounds[:-1][is_piece], ends)
        if chars is not codes:
            widths = 1 + (chars >= 0x80).astype(np.int64) + (chars >= 0x800) + (chars >= 0x10000)
            bounds = (np.cumsum(widths) - widths)[bounds]
        starts, stops = bounds[:-1][is_piece], bounds[1:][is_piece]
        tokens, counts = self._tokens_of(joined, starts, stops)
        totals = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])[owners_ends]
        return tokens, np.diff(totals, prepend=0)

    def _tokens_of(self, data: bytes, starts: Numbers, stops: Numbers) -> tuple[Tokens, Numbers]:
        told = self._find(_keys(data, starts, stops - starts))
        unknown = np.flatnonzero(told == 0)
        counts = (told >> _COUNT_BIT & _BYTE).astype(np.int64)
        places = (told >> _PLACE_BIT).astype(np.int64)
        new = np.zeros(0, np.uint32)
        if unknown.size:
            numbers: dict[bytes, int] = {}
            where = zip(starts[unknown].tolist(), stops[unknown].tolist(), strict=True)
            which = [numbers.setdefault(data[a:b], len(numbers)) for a, b in where]
            new, sizes = self._encode_pieces(list(numbers))
            counts[unknown] = sizes[which]
            places[unknown] = (np.cumsum(sizes) - sizes)[which]
            self._learn(list(numbers), new, sizes)
        ends = np.cumsum(counts)
        tokens = np.empty(int(ends[-1]) if len(ends) else 0, np.uint32)
        known = np.flatnonzero(told)
        begins = ends - counts
        _copy(tokens, begins[known], counts[known], self._pool, places[known])
        _copy(tokens, begins[unknown], counts[unknown], new, places[unknown])
        return tokens, counts

    def _find(self, keys: "_Keys") -> npt.NDArray[np.uint64]:
        """What is told of each key; 0 where it is not known."""
        slots = _slots(keys)
        rows = self._table[slots]
        told = rows[:, 2]
        is_same = _is_same(rows, keys)
        found = np.where(is_same, told, np.uint64(0))
        waiting = np.flatnonzero(~is_same & (told != 0) & (keys.lengths > 0))
        while waiting.size:
            slots[waiting] = (slots[waiting] + 1) & _LAST_SLOT
            rows = self._table[slots[waiting]]
            is_same = _is_same(rows, keys.of(waiting))
            found[waiting[is_same]] = rows[is_same, 2]
            waiting = waiting[~is_same & (rows[:, 2] != 0)]
        return found

    def _learn(self, pieces: Sequence[bytes], tokens: Tokens, counts: Numbers) -> None:
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        new = np.flatnonzero((lengths > 0) & (lengths <= MOST_BYTES) & (counts < 256))
        new = new[: max(0, MOST_KNOWN - self._num_known)]
        data = b"".join(pieces[index].ljust(MOST_BYTES, b"\0") for index in new.tolist())
        keys = _keys(data + bytes(2 * MOST_BYTES), MOST_BYTES * np.arange(len(new)), lengths[new])
        slots = self._take(keys)
        while self._num_pooled + len(tokens) > len(self._pool):
            self._pool = np.concatenate([self._pool, np.zeros_like(self._pool)])
        self._pool[self._num_pooled : self._num_pooled + len(tokens)] = tokens
        places = self._num_pooled + (np.cumsum(counts) - counts)[new]
        self._table[slots, 2] |= _told(counts[new], places)
        self._num_pooled += len(tokens) if len(new) else 0
        self._num_known += len(new)

    def _take(self, keys: "_Keys") -> Numbers:
        """A free slot for each of these keys, which are new and differ."""
        slots = _slots(keys)
        waiting = np.arange(len(slots))
        while waiting.size:
            free = waiting[self._table[slots[waiting], 2] == 0]
            _, first = np.unique(slots[free], return_index=True)  # of several, one gets it
            got = free[first]
            self._table[slots[got], 0] = keys.firsts[got]
            self._table[slots[got], 1] = keys.seconds[got]
            self._table[slots[got], 2] = keys.lengths[got]
            has_got = np.zeros(len(slots), bool)
            has_got[got] = True
            waiting = waiting[~has_got[waiting]]
            slots[waiting] = (slots[waiting] + 1) & _LAST_SLOT
        return slots


def _copy(tokens: Tokens, begins: Numbers, counts: Numbers, pool: Tokens, places: Numbers) -> None:
    """So many tokens from each place of the pool to where they begin, at least one each."""
    for index in np.flatnonzero(counts > MOST_BYTES).tolist():  # rare, and of any length
        begin, count, place = int(begins[index]), int(counts[index]), int(places[index])
        tokens[begin : begin + count] = pool[place : place + count]
    tokens[begins] = pool[places]
    counts = np.where(counts > MOST_BYTES, 1, counts)
    offset = 1
    while (more := np.flatnonzero(counts > offset)).size:
        begins, counts, places = begins[more], counts[more], places[more]
        tokens[begins + offset] = pool[places + offset]
        offset += 1


class _Keys(NamedTuple):
    """What pieces are told apart by: all of their bytes, and how many."""

    firsts: npt.NDArray[np.uint64]
    seconds: npt.NDArray[np.uint64]
    lengths: Bytes
    """0 for a piece that is too long for the table."""

    def of(self, pieces: Numbers) -> "_Keys":
        return _Keys(self.firsts[pieces], self.seconds[pieces], self.lengths[pieces])


def _keys(data: bytes, starts: Numbers, lengths: Numbers) -> _Keys:
    eights: npt.NDArray[Any] = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))
    firsts = eights[starts] & _MASKS[np.minimum(lengths, 8)]
    seconds = np.zeros(len(starts), np.uint64)
    longer = np.flatnonzero(lengths > 8)
    seconds[longer] = eights[starts[longer] + 8] & _MASKS[np.minimum(lengths[longer] - 8, 8)]
    return _Keys(firsts, seconds, np.where(lengths <= MOST_BYTES, lengths, 0).astype(np.uint8))


def _is_same(rows: npt.NDArray[np.uint64], keys: _Keys) -> Flags:
    same: Flags = (rows[:, 0] == keys.firsts) & (rows[:, 1] == keys.seconds)
    same &= (rows[:, 2] & _BYTE) == keys.lengths
    return same


def _told(counts: Numbers, places: Numbers) -> npt.NDArray[np.uint64]:
    """How many tokens, and where in the pool; the lowest byte is left for the piece's length."""
    return counts.astype(np.uint64) << _COUNT_BIT | places.astype(np.uint64) << _PLACE_BIT


def _slots(keys: _Keys) -> Numbers:
    values = keys.firsts ^ (keys.seconds * np.uint64(0xD6E8FEB86659FD93))
    values ^= values >> np.uint64(32)
    values *= np.uint64(0xD6E8FEB86659FD93)
    values ^= values >> np.uint64(29)
    values *= np.uint64(0x9E3779B97F4A7C15)
    return (values >> np.uint64(64 - TABLE_BITS)).astype(np.int64)


class _Classes:
    """Which characters are letters, numbers, blanks, as the engine of the pattern has it."""

    def __init__(self) -> None:
        ranks = {bytes([byte]): byte for byte in range(256)}
        self._asked = {
            kind: tiktoken.Encoding("class", pat_str=pat, mergeable_ranks=ranks, special_tokens={})
            for kind, pat in ((_LETTER, r"\p{L}"), (_NUMBER, r"\p{N}"), (_BLANK, r"\s"))
        }
        self._table = np.full(_WIDEST, _OTHER, np.uint8)
        self._is_known = np.zeros(_WIDEST // PAGE, bool)
        self._ask(0)

    def of(self, chars: npt.NDArray[Any]) -> Bytes:
        if chars.dtype != np.uint8:
            pages = np.unique(chars[chars >= PAGE] // PAGE)
            for page in pages[~self._is_known[pages]].tolist():
                self._ask(page)
        found: Bytes = self._table[chars]
        return found

    def _ask(self, page: int) -> None:
        codes = range(page * PAGE, (page + 1) * PAGE)
        text = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        for kind, encoding in self._asked.items():
            for char in bytes(encoding.encode_ordinary(text)).decode():
                self._table[ord(char)] = kind
        self._is_known[page] = True


def _piece_starts(chars: npt.NDArray[Any], classes: Bytes, most_digits: int) -> Flags:
    """Where pieces begin, and where there is nothing but the end of a text.

    The pattern's alternatives, for runs of one class: letters L, numbers N, blanks, others P.
        '(s|d|m|t|ll|ve|re)   after no space, a single ' before letters takes these from them
        .?L+                  L takes the P before it that stands alone, or the last blank
                              before it that is no line end
        N{1,2}                N is cut in twos (or threes)
         ?P+[line ends]*      P takes the space before it and the line ends after it
        blanks*line end       blanks are one piece up to their last line end,
        blanks(?!other)       another one up to the last but one, before the end of a text to the
                              last, and
        blanks                the last one is for what follows, if that takes it
    """
    changes = np.flatnonzero(classes[1:] != classes[:-1]) + 1
    starts = np.concatenate([np.zeros(1, np.int64), changes])
    stops = np.append(changes, len(classes))
    kinds = classes[starts]
    after = np.append(kinds[1:], np.uint8(_END))
    is_taken = np.zeros(len(starts) + 1, bool)  # the run begins in a piece that began before it
    found = np.zeros(len(classes), bool)
    _mark_blanks(chars, starts, stops, kinds, after, found, is_taken)
    # P alone before L, after no space that it took.
    alone = np.flatnonzero(
        (kinds == _OTHER) & (after == _LETTER) & (stops - starts == 1) & ~is_taken[:-1]
    )
    is_taken[alone + 1] = True
    quotes = alone[chars[starts[alone]] == _APOSTROPHE]
    if quotes.size:
        begins, ends = starts[quotes + 1], stops[quotes + 1]
        first = _lower(chars[begins])
        second = np.where(begins + 1 < ends, _lower(chars[np.minimum(begins + 1, ends - 1)]), 0)
        sizes = _contraction(first, second)
        cut = (sizes > 0) & (begins + sizes < ends)
        found[begins[cut] + sizes[cut]] = True
    found[starts[~is_taken[:-1] & (kinds != _BLANK)]] = True
    long = np.flatnonzero((kinds == _NUMBER) & (stops - starts > most_digits))
    if long.size:
        counts = -(-(stops[long] - starts[long]) // most_digits)
        firsts = np.cumsum(counts) - counts
        steps = np.arange(int(counts.sum())) - np.repeat(firsts, counts)
        found[np.repeat(starts[long], counts) + most_digits * steps] = True
    found[classes == _END] = True
    return found


def _mark_blanks(
    chars: npt.NDArray[Any],
    starts: Numbers,
    stops: Numbers,
    kinds: Bytes,
    after: Bytes,
    found: Flags,
    is_taken: Flags,
) -> None:
    """Pieces of blanks, and which runs take the blank before them."""
    runs = np.flatnonzero(kinds == _BLANK)
    begins = starts[runs]
    # Nearly all are a space by itself: a piece, or the beginning of the one that follows.
    is_single = (stops[runs] == begins + 1) & (chars[begins] == _SPACE)
    singles = runs[is_single]
    found[begins[is_single]] = True
    follows = after[singles]
    is_taken[singles[(follows == _LETTER) | (follows == _OTHER)] + 1] = True
    others = runs[~is_single]
    if others.size:
        _mark_long_blanks(chars, starts, stops, kinds, after, found, is_taken, others)


def _mark_long_blanks(
    chars: npt.NDArray[Any],
    starts: Numbers,
    stops: Numbers,
    kinds: Bytes,
    after: Bytes,
    found: Flags,
    is_taken: Flags,
    runs: Numbers,
) -> None:
    """The same for runs of several blanks, or of others than a space."""
    begins, ends, follows = starts[runs], stops[runs], after[runs]
    line_ends = np.flatnonzero((chars == 10) | (chars == 13))
    if line_ends.size:
        # P takes the line ends right after it.
        before = kinds[np.maximum(runs - 1, 0)]
        takes = np.flatnonzero((runs > 0) & (before == _OTHER))
        place = np.searchsorted(line_ends, begins[takes])
        is_line_end = line_ends[np.minimum(place, len(line_ends) - 1)] == begins[takes]
        takes, place = takes[is_line_end], place[is_line_end]
        group_ends = np.append(np.flatnonzero(np.diff(line_ends) != 1), len(line_ends) - 1)
        lasts = line_ends[group_ends[np.searchsorted(group_ends, place)]]
        begins[takes] = np.minimum(lasts + 1, ends[takes])
        last = np.searchsorted(line_ends, ends) - 1
        lines = np.where(last >= 0, line_ends[np.maximum(last, 0)], -1)
    else:
        lines = np.full(len(runs), -1)
    found[begins[begins < ends]] = True
    rest = np.where(lines >= begins, lines + 1, begins)  # behind the last line end
    has_rest = rest < ends
    found[rest[has_rest]] = True
    gives = has_rest & (follows != _END)
    found[ends[gives] - 1] = True
    is_space = chars[ends - 1] == _SPACE
    takers = gives & ((follows == _LETTER) | ((follows == _OTHER) & is_space))
    is_taken[runs[takers] + 1] = True


def _lower(chars: npt.NDArray[Any]) -> Numbers:
    codes = chars.astype(np.int64)
    lowered = np.where((codes >= 65) & (codes <= 90), codes + 32, codes)
    return np.where(lowered == _LONG_S, ord("s"), lowered)


def _contraction(first: Numbers, second: Numbers) -> Numbers:
    """How many letters after an apostrophe are a piece with it."""
    sizes = np.isin(first, [ord(letter) for letter in "sdmt"]).astype(np.int64)
    for pair in ("ll", "ve", "re"):
        sizes[(first == ord(pair[0])) & (second == ord(pair[1]))] = 2
    return sizes
