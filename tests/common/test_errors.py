"""errors.py: one tree, drawn in its docstring; all of it can be raised, caught and pickled."""

import pickle

import pytest

from nanochat.common import errors
from nanochat.common.errors import NanochatError

CLASSES = [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("error_type", CLASSES, ids=lambda error_type: error_type.__name__)
def test_errors_are_ours_and_survive_pickling(error_type: type[NanochatError]) -> None:
    assert issubclass(error_type, NanochatError)
    copy = pickle.loads(pickle.dumps(error_type("depth is 0, expected at least 1")))
    assert type(copy) is error_type
    assert str(copy) == "depth is 0, expected at least 1"


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines()[2 : len(CLASSES) + 2]:
        indent, name = len(line) - len(line.lstrip()), line.split()[0].split("(")[0]
        above = [entry for entry in above if entry[0] < indent]
        drawn[name] = above[-1][1] if above else None
        above.append((indent, name))
    real = {
        error_type.__name__: error_type.__bases__[0].__name__
        for error_type in CLASSES
        if error_type is not NanochatError
    }
    assert drawn == {"NanochatError": None, **real}
