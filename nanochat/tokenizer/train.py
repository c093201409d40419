"""Text -> a vocabulary.   in: documents, a size   out: Tokenizer   who calls: cli, train (the demo)

Byte-pair encoding by rustbpe: bytes are tokens 0 to 255, then the most frequent pair of neighbours
within the pieces of the split pattern becomes the next token (equal counts: the smaller pair),
until the size is reached.  The nine special tokens are part of the size.
Read next: tests/twins/bpe.py (the same in forty readable lines), tokenizer.py (what comes out).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import rustbpe

from nanochat.common.errors import ConfigError, DataError, TokenizerError
from nanochat.tokenizer.tokenizer import (
    MAX_VOCAB_SIZE,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    Tokenizer,
    replace_surrogates,
)

__all__ = ["MIN_VOCAB_SIZE", "check_settings", "train_tokenizer"]

MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)

# rustbpe counts in 32 bits without a check; a pair occurs less often than there are characters (but
# for a few beyond U+40000), so below this bound no count can wrap around.
_MAX_CHARS = 2**31 - 1
_MAX_DOC_CAP = 100_000  # ten times less whitespace in a row than rustbpe's pattern engine can hold
_BUFFER_DOCUMENTS = 1024  # texts handed to rustbpe's threads at once: at most 10 MB of English


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = SPLIT_PATTERN,
    max_chars: int = 2_000_000_000,
    doc_cap: int = 10_000,
) -> Tokenizer:
    """The vocabulary of vocab_size tokens that the texts' pairs give.

    Reads each text once and keeps none: memory grows with the number of different words, not with
    the corpus.  Of each text the first doc_cap characters count; reading stops after the text that
    exceeds max_chars.
    Units:   max_chars and doc_cap in characters.
    Source:  the order of counting and both defaults: scripts/tok_train.py of karpathy/nanochat at
             92d63d4, whose ids this gives.
    Raises:  ConfigError for settings out of range; DataError when there is no text; TokenizerError
             when the text has too few different pairs, naming the largest vocabulary it supports.
    """
    check_settings(vocab_size, max_chars, doc_cap)
    trainer = rustbpe.Tokenizer()
    counted = _Counted()
    num_ranks = vocab_size - len(SPECIAL_TOKENS)
    trainer.train_from_iterator(
        _capped(texts, max_chars, doc_cap, counted),
        num_ranks,
        buffer_size=_BUFFER_DOCUMENTS,
        pattern=pattern,
    )
    if not counted.num_chars:
        raise DataError(
            f"the corpus is empty ({counted.num_texts} documents without a character): "
            "expected text to learn a vocabulary from"
        )
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    if len(ranks) < num_ranks:
        largest = len(ranks) + len(SPECIAL_TOKENS)
        raise TokenizerError(
            f"vocab_size is {vocab_size}, but the {counted.num_chars} characters of text support "
            f"at most {largest}: give more text, or a vocab_size of {largest} or less"
        )
    return Tokenizer([bytes(token) for token, _ in ranks], pattern)


@dataclass(slots=True)
class _Counted:
    num_texts: int = 0
    num_chars: int = 0


def _capped(texts: Iterable[str], max_chars: int, doc_cap: int, counted: _Counted) -> Iterator[str]:
    for text in texts:
        text = replace_surrogates(text[:doc_cap])
        counted.num_texts += 1
        counted.num_chars += len(text)
        yield text
        if counted.num_chars > max_chars:
            return


def check_settings(vocab_size: int, max_chars: int, doc_cap: int) -> None:
    """Nothing, where `train_tokenizer` can work with these.

    Raises: ConfigError listing every value out of range.
    """
    problems = [
        f"{name} is {value}, expected {least} to {most}"
        for name, value, least, most in (
            ("vocab_size", vocab_size, MIN_VOCAB_SIZE, MAX_VOCAB_SIZE),
            ("max_chars", max_chars, 1, _MAX_CHARS),
            ("doc_cap", doc_cap, 1, _MAX_DOC_CAP),
        )
        if not least <= value <= most
    ]
    if problems:
        raise ConfigError("; ".join(problems))
