"""What is in the repository speaks of the project alone: no machine, no registry, nothing large."""

import re
import subprocess

import pytest

from tests.conftest import REPOSITORY

FILES = subprocess.run(
    ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
).stdout.split("\0")[:-1]

# Written apart, so that this file does not contain what it forbids.
FORBIDDEN = re.compile(
    "|".join(
        [
            "/wo" + "rk/",
            "/ro" + "ot/",
            "/ho" + r"me/\w+/",
            "/Us" + r"ers/\w+/",
            "/op" + "t/(wheels|pypi)",
            "files[.]python" + "hosted",
            "py" + "pi[.]org",
        ]
    )
)
# PyTorch's own index of CPU wheels may be named where it is used, and where that is tested.
TORCH_INDEX = "download.py" + "torch.org"
MAY_NAME_TORCH_INDEX = {"scripts/setup", "tests/repo/test_setup.py"}
LARGE_BYTES = 3_000_000


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_bytes().decode(errors="replace")


def test_files_are_found() -> None:
    assert "pyproject.toml" in FILES


def test_no_machine_and_no_registry_is_named() -> None:
    found = [
        f"{name}: {match[0]}"
        for name in FILES
        if (REPOSITORY / name).is_file()
        for match in FORBIDDEN.finditer(text_of(name))
    ]
    assert found == []


def test_the_cpu_index_of_pytorch_is_named_once() -> None:
    naming = {
        name for name in FILES if (REPOSITORY / name).is_file() and TORCH_INDEX in text_of(name)
    }
    assert naming <= MAY_NAME_TORCH_INDEX


def test_nothing_large_is_tracked() -> None:
    large = [
        name
        for name in FILES
        if (path := REPOSITORY / name).is_file() and path.stat().st_size > LARGE_BYTES
    ]
    assert large == []


@pytest.mark.req("FR-062")
def test_no_pickle_is_ever_loaded() -> None:
    """torch.load may read old checkpoints: weights_only refuses all but tensors."""
    loads = re.compile(
        r"\b(pickle|marshal|shelve|dill|cloudpickle)\.loads?\("
        r"|torch\.load\((?![^)]*\bweights_only=True)"
    )
    found = [
        name
        for name in FILES
        if name.startswith("nanochat/")
        and name.endswith(".py")
        and (REPOSITORY / name).is_file()
        and loads.search(text_of(name))
    ]
    assert found == []
