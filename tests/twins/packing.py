"""Packing by brute force: the waiting documents are a list, and every choice looks at all of it.

What `nanochat.batches.packing` does fast, said as plainly as possible.
"""

from nanochat.batches.packing import Layout, Piece

Waiting = list[Piece]


def pack_slowly(lengths: list[int], row_tokens: int, layout: Layout) -> list[list[Piece]]:
    """The rows, each a list of pieces."""
    waiting = [Piece(document, 0, length) for document, length in enumerate(lengths)]
    if layout in ("pack", "pad"):
        waiting = [piece._replace(length=min(piece.length, row_tokens)) for piece in waiting]
    if layout == "pad":
        return [[piece] for piece in waiting]
    rows = []
    while waiting:
        row: list[Piece] = []
        while waiting and (space := row_tokens - sum(piece.length for piece in row)):
            piece = longest_that_fits(waiting, space)
            if piece is not None:
                waiting.remove(piece)
                row.append(piece)
            elif layout == "pack":
                break
            else:
                row.append(crop_one(waiting, space, layout))
        rows.append(row)
    return rows


def longest_that_fits(waiting: Waiting, space: int) -> Piece | None:
    """The first of the longest with at most `space` tokens."""
    fitting = [piece for piece in waiting if piece.length <= space]
    return max(fitting, key=lambda piece: piece.length, default=None)


def crop_one(waiting: Waiting, space: int, layout: Layout) -> Piece:
    """`space` tokens of the shortest, its rest lost; or of the longest, its rest kept."""
    choose = min if layout == "drop" else max
    whole = choose(waiting, key=lambda piece: piece.length)
    waiting.remove(whole)
    if layout == "reuse":
        own_tokens = space if whole.start == 0 else space - 1  # the first is a <|bos|> put there
        waiting.append(Piece(whole.document, whole.start + own_tokens, whole.length - space + 1))
    return whole._replace(length=space)
