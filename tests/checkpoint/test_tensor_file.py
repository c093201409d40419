"""One tensor after the other gives the bytes that safetensors gives."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.checkpoint.tensor_file import save_tensors
from nanochat.checkpoint.torch_file import Piece, StoredTensors

DTYPES = (
    torch.int64,
    torch.float64,
    torch.float32,
    torch.int32,
    torch.bfloat16,
    torch.float16,
    torch.uint8,
    torch.bool,
)


@given(
    drawn=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name.isprintable()),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
@pytest.mark.req("FR-045", "SC-008")
def test_bytes_are_those_of_safetensors(
    tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    tensors = {
        name: torch.arange(3, 3 + torch.Size(shape).numel()).reshape(shape).to(dtype)
        for name, (dtype, shape) in drawn.items()
    }
    folder = tmp_path_factory.mktemp("tensors")
    save_file(tensors, folder / "theirs")
    save_tensors(tensors, folder / "ours")
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_views_gradients_and_order(tmp_path: Path) -> None:
    """A view that skips, one that needs gradients: what is written is what it shows."""
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {"b": whole.T, "a": whole[:, 1:3], "p": torch.nn.Parameter(whole)}
    save_tensors(tensors, tmp_path / "file")
    loaded = load_file(tmp_path / "file")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="complex64"):
        save_tensors({"a": torch.ones(1, dtype=torch.complex64)}, tmp_path / "file")

    class Changing(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            return torch.ones(3)

    with pytest.raises(ValueError, match="a changed while it was written"):
        save_tensors(Changing(a=torch.ones(2)), tmp_path / "file")


@pytest.mark.req("FR-046")
def test_tensors_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"x": torch.arange(4.0), "deep": {3: {"y": torch.ones(2, 3).bfloat16()}}}, first)
    torch.save({"x": torch.arange(4.0, 6.0)}, second)
    stored = StoredTensors(
        {
            "x": (Piece(first, ("x",)), Piece(second, ("x",))),
            "y": (Piece(first, ("deep", 3, "y")),),
            "row": (Piece(first, ("deep", 3, "y", 1)),),
        },
        {"x": (6,), "y": (2, 3), "row": (3,)},
        held={"n": torch.tensor(7)},
    )
    assert len(stored) == 4 and list(stored) == ["x", "y", "row", "n"]
    assert torch.equal(stored["x"], torch.arange(6.0))
    assert torch.equal(stored["y"], torch.ones(2, 3)) and stored["y"].dtype == torch.float32
    assert torch.equal(stored["row"], torch.ones(3)) and int(stored["n"]) == 7
    with pytest.raises(KeyError):
        stored["z"]
    at_once = stored.read_all()
    assert list(at_once) == list(stored)
    assert all(torch.equal(at_once[name], tensor) for name, tensor in stored.items())
    save_tensors(stored, tmp_path / "file")
    loaded = load_file(tmp_path / "file")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    # One that was read does not share memory with the file: it can be changed.
    stored["y"].zero_()
    assert torch.equal(stored["y"], torch.ones(2, 3))
