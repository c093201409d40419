"""Cleaning changes nothing a reader would see, and says why a text is left out."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import ConfigError
from nanochat.corpus.prepare.clean import CleanRules, clean, reason_against

pytestmark = pytest.mark.req("FR-032")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("as it was,\n\n\tindented\n\n\nwith lines", "as it was,\n\n\tindented\n\n\nwith lines"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("page\x0cpage\x0bpage", "page\npage\npage"),
        ("bell\x07 null\x00 escape\x1b[0m delete\x7f", "bell null escape[0m delete"),
        ("blanks  \t\nat ends\t\n", "blanks\nat ends"),
        ("\n\n  first", "  first"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("a\n \n\t\n\n \nb", "a\n\n\nb"),
        ("cafe\u0301 \u212b", "caf\u00e9 \u00c5"),
        ("no\u00a0break\u2003em\u202fnarrow\u3000wide", "no break em narrow\u3000wide"),
        ("line\u2028line\u0085line", "line\nline\nline"),
        ("\ufeffso\u00adft ze\u200bro wo\u2060rd", "soft zero word"),
        ("join\u200der \u0645\u06cc\u200c\u062e", "join\u200der \u0645\u06cc\u200c\u062e"),
        ("half \ud83d pair \ud83d\ude00", "half \ufffd pair \U0001f600"),
        ("c1\x9b control", "c1 control"),
        ("e\u00ad\u0301", "\u00e9"),
        (" \n\t ", ""),
    ],
)  # fmt: skip
def test_a_text_becomes(before: str, after: str) -> None:
    assert clean(before) == after


def test_a_clean_text_is_returned_itself() -> None:
    for text in ("plain ASCII\nof two lines", "\u00fcber \u201equoted\u201c \u4e2d\u6587"):
        assert clean(text) is text


@given(st.text(alphabet=st.characters(), max_size=60))
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert once == unicodedata.normalize("NFC", once)
    once.encode()  # no lone surrogate is left
    assert not any(
        unicodedata.category(character) == "Cc" and character not in "\t\n" for character in once
    )


def test_a_million_blanks_cost_no_more_than_a_million_letters() -> None:
    # From each of its places, a run would take a million times longer.
    start_s = time.perf_counter()
    assert clean("a" + " " * 1_000_000 + "b\t\n" + "\t " * 500_000 + "c\nd \n") != ""
    assert time.perf_counter() - start_s < 10


def test_length_limits_say_themselves() -> None:
    rules = CleanRules(min_chars=5, max_chars=10)
    assert reason_against("", rules) == "empty"
    assert reason_against("four", rules) == "shorter than 5 characters"
    assert reason_against("fives", rules) is None
    assert reason_against("ten and on!", rules) == "longer than 10 characters"
    with pytest.raises(ConfigError, match="min_chars is 9 and max_chars 8"):
        CleanRules(min_chars=9, max_chars=8)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("An ordinary sentence, with 3 numbers.\nAnother line of it.", None),
        ("\u4e2d\u6587\u7684\u53e5\u5b50\u3002\u53e6\u4e00\u4e2a\u53e5\u5b50\u3002", None),
        ("| 12 | 34 | 56 |\n| 78 | 90 | 12 |", "fewer than 50% letters"),
        ("data " + "QUJD" * 300, "1,000 characters without a blank"),
        ("Buy it now, it is cheap!\n" * 3 + "One other line.", "more than 30% in repeated lines"),
    ],
)
def test_quality_rules_know_no_language(text: str, reason: str | None) -> None:
    assert reason_against(text, CleanRules(min_chars=5, has_quality=True)) == reason
    assert reason_against(text, CleanRules(min_chars=5)) is None
