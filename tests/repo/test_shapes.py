"""The suffix check itself: a name that lies is found, an honest one is not."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests import shapes


@pytest.mark.parametrize(
    ("names", "fragment"),
    [
        ({"x_BT": (2, 3), "y_TB": (3, 2), "z": (9,), "name_BT": None}, None),
        ({"x_BT": (2, 3, 4)}, "x_BT: the name has 2 letters"),
        ({"x_BT": (2, 3), "y_BD": (5, 4)}, "y_BD: B=5, but x_BT has B=2"),
        ({"x_BQ": (2, 3)}, "['Q'] not in the legend"),
    ],
)
def test_problems_are_found(names: dict[str, tuple[int, ...] | None], fragment: str | None) -> None:
    values = {name: shape and np.zeros(shape) for name, shape in names.items()}
    found = list(shapes.problems(values))
    assert (fragment is None and not found) or (fragment and fragment in found[0])


def test_the_profiler_looks_at_returns_of_our_rooms_only() -> None:
    source = "def lie(x_BT):\n    return x_BT\n"
    namespaces: list[dict[str, Callable[[Any], Any]]] = [{}, {}]
    exec(compile(source, "/somewhere/nanochat/model/gpt.py", "exec"), namespaces[0])
    exec(compile(source, "/somewhere/else.py", "exec"), namespaces[1])
    found: list[str] = []
    previous = sys.getprofile()
    sys.setprofile(shapes.profiler(found))
    try:
        namespaces[0]["lie"](np.zeros(3))
        namespaces[1]["lie"](np.zeros(3))
    finally:
        sys.setprofile(previous)
    assert found == ["model/gpt.py:1 lie: x_BT: the name has 2 letters, the tensor has shape (3,)"]


def test_the_profiler_takes_itself_out() -> None:
    previous = sys.getprofile()
    sys.setprofile(shapes.profiler([], num_events=3))
    try:
        for _ in range(3):
            str(abs(1))
        assert sys.getprofile() is None
    finally:
        sys.setprofile(previous)


def test_the_legend_is_read_from_the_model_room() -> None:
    assert {"B", "T", "D", "H", "V"} <= shapes.LEGEND
    assert shapes.letters_of("Big words\n\n    B  rows    T  time\n    R, C  any\n") == set("BTRC")
