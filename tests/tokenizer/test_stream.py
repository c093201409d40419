"""stream.py: no half characters, and in the end the same text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nanochat.common.errors import TokenizerError
from nanochat.tokenizer.stream import StreamDecoder
from nanochat.tokenizer.tokenizer import Tokenizer

ANY_TOKENS = st.lists(st.integers(0, 511) | st.integers(128, 255), max_size=40)


@pytest.mark.req("FR-028")
@given(tokens=ANY_TOKENS)
@example(tokens=[0xF0, 0x9F, 0x98, 0x80])
@example(tokens=[0xF0, 0x9F, 503, 0x98])
@example(tokens=[0xED, 0xA0, 0x80, 0xE2, 0x82])
def test_the_pieces_make_the_whole(tokenizer: Tokenizer, tokens: list[int]) -> None:
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.feed(token) for token in tokens]
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(tokens)


@pytest.mark.req("FR-028", "US-5")
@given(text=st.text())
def test_never_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    decoder = tokenizer.stream_decoder()
    shown = ""
    for token in tokenizer.encode(text):
        shown += decoder.feed(token)
        assert text.startswith(shown)
    assert decoder.flush() == "" and shown == text


@pytest.mark.req("FR-028")
def test_a_character_appears_when_it_is_whole(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    assert [decoder.feed(byte) for byte in "\U0001f600".encode()] == ["", "", "", "\U0001f600"]
    assert decoder.feed(0xE2) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == "", "flushing starts afresh"
    assert decoder.feed(97) == "a"


def test_special_tokens_show_their_names(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    assert decoder.feed(0xE2) + decoder.feed(tokenizer.bos) == "\ufffd<|bos|>"


def test_an_unknown_token_leaves_what_is_held_back(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    decoder.feed(0xC3)
    with pytest.raises(TokenizerError, match="token 512 is outside"):
        decoder.feed(512)
    assert decoder.feed(0xA9) == "\u00e9"


def test_two_decoders_do_not_share(tokenizer: Tokenizer) -> None:
    one, other = StreamDecoder(lambda token: bytes([token])), tokenizer.stream_decoder()
    assert one.feed(0xC3) == "" and other.feed(97) == "a" and one.feed(0xA9) == "\u00e9"
