"""What an older format version says -> what this one would have said.   in: Contents, a version
out: Contents of the newest version   who calls: format.py

A change of the format raises FORMAT_VERSION and adds one line to UPGRADES, which turns the contents
of the version before it into those of the new one; older ones pass through several.  A checkpoint
of every version there has been lies in tests/golden/checkpoints and is loaded by the tests.
Read next: manifest.py (FORMAT_VERSION), format.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nanochat.checkpoint import manifest

__all__ = ["UPGRADES", "Contents", "upgraded"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Contents:
    """The files of a checkpoint as they were read, before anything is made of them."""

    config: Mapping[str, Any]
    state: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] | None


# From which version to the next; version 1 is the first.
UPGRADES: dict[int, Callable[[Contents], Contents]] = {}


def upgraded(contents: Contents, version: int) -> Contents:
    """The contents as the newest version has them."""
    for step in range(version, manifest.FORMAT_VERSION):
        contents = UPGRADES[step](contents)
    return contents
