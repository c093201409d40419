"""quote.py: a value as an error message shows it."""

from nanochat.common.quote import quoted


def test_a_value_is_as_long_as_it_may_be_and_no_longer() -> None:
    assert quoted("it's") == '"it\'s"' and quoted({"a": 1}) == "{'a': 1}"
    assert quoted("x" * 58) == repr("x" * 58)
    assert quoted("x" * 59) == "'" + "x" * 56 + "..."
