"""Text -> merges -> tokens, slowly.   in: texts   out: a vocabulary, token ids   who calls: tests

Byte-pair encoding as the definition says, with nothing kept between steps: what rustbpe's heap and
tiktoken's merges must equal.
Read next: tests/tokenizer/test_train.py, tests/tokenizer/test_tokenizer.py (the comparisons).
"""

from collections import Counter
from collections.abc import Iterable

import regex


def train(texts: Iterable[str], num_ranks: int, pattern: str) -> list[bytes]:
    """The vocabulary without special tokens: 256 bytes, then merges while there is a pair left."""
    pieces = Counter(piece for text in texts for piece in regex.findall(pattern, text))
    words = [([*piece.encode()], count) for piece, count in pieces.items()]
    vocabulary = [bytes([byte]) for byte in range(256)]
    while len(vocabulary) < num_ranks:
        pairs: Counter[tuple[int, int]] = Counter()
        for tokens, count in words:
            for pair in zip(tokens, tokens[1:], strict=False):
                pairs[pair] += count
        if not pairs:
            break
        # The most frequent pair; of equally frequent ones the smallest.
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        new = len(vocabulary)
        vocabulary.append(vocabulary[best[0]] + vocabulary[best[1]])
        words = [(merge(tokens, best, new), count) for tokens, count in words]
    return vocabulary


def merge(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """The tokens with every occurrence of the pair, from the left, replaced by the new token."""
    merged: list[int] = []
    at = 0
    while at < len(tokens):
        if tuple(tokens[at : at + 2]) == pair:
            merged.append(new)
            at += 2
        else:
            merged.append(tokens[at])
            at += 1
    return merged


def encode(text: str, vocabulary: list[bytes], pattern: str) -> list[int]:
    """The tokens of a text: in each piece, neighbours merge, the earliest-learnt token first."""
    ranks = {token: rank for rank, token in enumerate(vocabulary)}
    encoded: list[int] = []
    for piece in regex.findall(pattern, text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            joined = [
                (ranks[left + right], at)
                for at, (left, right) in enumerate(zip(parts, parts[1:], strict=False))
                if left + right in ranks
            ]
            if not joined:
                break
            _, at = min(joined)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        encoded += [ranks[part] for part in parts]
    return encoded
