"""Waiting in tests.   in: what is to come true   out: it has, or the test fails

A machine that others use takes ten times as long as one that is quiet: what is waited for here is
given a minute, and nothing is measured.
"""

import time
from collections.abc import Callable
from typing import Any

__all__ = ["PATIENCE_S", "wait_until"]

PATIENCE_S = 60.0


def wait_until(is_true: Callable[[], Any], limit_s: float = PATIENCE_S) -> None:
    end_s = time.monotonic() + limit_s
    while not is_true():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.005)
