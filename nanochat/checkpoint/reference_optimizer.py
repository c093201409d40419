"""karpathy/nanochat's optimizer state -> ours.   in: optim_*.pt, the weights of the same step
out: moments by our names   who calls: reference.py, train (tests)

The files know tensors by number only: AdamW's groups first, then Muon's matrices by shape, in the
order of the weights.  Of several devices each wrote a part: of AdamW's tensors of 1,024 elements or
more its share of the rows, of the smaller ones all; of Muon's stacks its share of the matrices,
ceil(count / devices) each, the last ones filled up.
Source: karpathy/nanochat GPT.setup_optimizer and (Dist)MuonAdamW at 2f09686 (V3), 6ed7d1d (V4),
        92d63d4 (V5).
Read next: train/optim.py (whose moments these become).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.checkpoint.reference_names import detect_generation, name_of
from nanochat.checkpoint.torch_file import FLOATS, Piece, StoredTensors, load_torch_file
from nanochat.common.errors import CheckpointError

__all__ = ["load_optimizer", "stored_optimizer"]

ADAMW = {"first": "exp_avg", "second": "exp_avg_sq"}
MUON = {"first": "momentum_buffer", "second": "second_momentum_buffer"}
MAX_STEPS = 2**53  # a count that float64 still holds


def load_optimizer(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The moments of an optim_*.pt by our names: `<name>/first`, `<name>/second`, and `num_steps`.

    AdamW's first and second moments, Muon's momentum and variance, in float32.  `weights` are those
    of the same step as `load_weights` gives them: their order says which number is whose.  Of
    several devices any one file stands for all: optim_<step>_rank<n>.pt beside each other.
    Raises: CheckpointError if a file is damaged, holds code, was written by V1 or V2 (whose
            optimizers were others), lacks its neighbours, or does not fit the weights.
    """
    return stored_optimizer(path, weights).read_all()


def stored_optimizer(path: Path, weights: Mapping[str, Tensor]) -> StoredTensors:
    """The same, each read when it is asked for.

    Raises: CheckpointError as `load_optimizer` does.
    """
    generation = detect_generation(weights, str(path))
    if generation in ("v1", "v2"):
        raise CheckpointError(
            f"{path}: {generation} had other optimizers than v3 to v5, whose moments can be read: "
            "go on from the weights alone"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    groups = _groups(shapes)
    expected = [len(group) for group in groups]
    ranks = [_read_rank(rank, expected) for rank in _ranks(path)]
    found = _Found({}, {})
    number = 0
    for group in groups:
        if group[0].startswith("transformer.h."):  # the state of a stack stands at its first number
            _find_stack(ranks, number, group, shapes[group[0]], found)
        else:
            for offset, name in enumerate(group):
                _find_rows(ranks, number + offset, name, shapes[name], found)
        number += len(group)
    return StoredTensors(found.pieces, found.shapes, {"num_steps": _num_steps(ranks)})


@dataclass(frozen=True, slots=True)
class _Rank:
    """What one device wrote; its tensors are mapped, not read."""

    path: Path
    states: Mapping[int, Any]

    def tensor(self, number: int, key: str, what: str) -> Tensor:
        value = self.states.get(number, {}).get(key)
        if not isinstance(value, Tensor) or value.dtype not in FLOATS:
            kind = value.dtype if isinstance(value, Tensor) else "missing"
            raise CheckpointError(f"{self.path}: {what}: {key} is {kind}, expected floats")
        return value


@dataclass(frozen=True, slots=True)
class _Found:
    """Where every moment lies, and its shape."""

    pieces: dict[str, tuple[Piece, ...]]
    shapes: dict[str, tuple[int, ...]]


def _groups(shapes: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    """Reference names as the optimizer numbers them: AdamW's groups, then Muon's by shape."""
    matrices = [name for name in shapes if name.startswith("transformer.h.")]
    groups = [
        ["lm_head.weight"],
        ["transformer.wte.weight"],
        [name for name in shapes if name.startswith("value_embeds.")],
        ["resid_lambdas"],
        ["x0_lambdas"],
        [n for n in ("smear_gate.weight", "smear_lambda", "backout_lambda") if n in shapes],
    ]
    groups += [
        [name for name in matrices if shapes[name] == shape]
        for shape in sorted({shapes[name] for name in matrices})
    ]
    return [group for group in groups if group]


def _ranks(path: Path) -> list[Path]:
    """The files of all devices, by rank; a file without a rank stands alone."""
    match = re.fullmatch(r"(optim_\d+_rank)\d+\.pt", path.name)
    if match is None:
        return [path]
    by_rank = {
        int(other.stem.removeprefix(match[1])): other
        for other in path.parent.glob(f"{match[1]}*.pt")
        if other.stem.removeprefix(match[1]).isdigit()
    }
    if missing := sorted(set(range(max(by_rank, default=0) + 1)) - set(by_rank)):
        raise CheckpointError(
            f"{path.parent / match[1]}{missing[0]}.pt is missing: every device wrote a part; go on "
            "from the weights alone"
        )
    return [by_rank[rank] for rank in sorted(by_rank)]


def _read_rank(path: Path, expected: list[int]) -> _Rank:
    raw = load_torch_file(path)
    try:
        sizes = [len(group["params"]) for group in raw["param_groups"]]
        states = dict(raw["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not the state of one optimizer ({error!r})") from error
    if sizes != expected or not all(isinstance(state, dict) for state in states.values()):
        raise CheckpointError(
            f"{path}: groups of {sizes} tensors, expected {expected} for these weights"
        )
    return _Rank(path, states)


def _find_rows(
    ranks: list[_Rank], number: int, name: str, shape: tuple[int, ...], found: _Found
) -> None:
    """AdamW's moments of one tensor: whole in the first file, or a share of the rows in each."""
    for which, key in ADAMW.items():
        parts = [rank.tensor(number, key, name) for rank in ranks]
        is_whole = tuple(parts[0].shape) == shape
        used = 1 if is_whole else len(ranks)
        _expect_rows(ranks[:used], parts[:used], shape, f"{name}: {key}")
        our_name = f"{name_of(name)}/{which}"
        found.shapes[our_name] = shape
        found.pieces[our_name] = tuple(
            Piece(rank.path, ("state", number, key)) for rank in ranks[:used]
        )


def _find_stack(
    ranks: list[_Rank], number: int, names: list[str], shape: tuple[int, ...], found: _Found
) -> None:
    """Muon's moments of matrices of one shape, stacked; each file has its share of the stack."""
    if len(shape) != 2:
        raise CheckpointError(f"{ranks[0].path}: {names[0]} is {shape}, expected a matrix")
    rows, columns = shape
    share = -(-len(names) // len(ranks))
    variance = (rows, 1) if rows >= columns else (1, columns)
    what = f"{names[0]} and {len(names) - 1} more"
    for (which, key), each in zip(MUON.items(), ((rows, columns), variance), strict=True):
        parts = [rank.tensor(number, key, what) for rank in ranks]
        _expect_rows(ranks, parts, (share * len(ranks), *each), f"{what}: {key}")
        for index, name in enumerate(names):
            rank, place = ranks[index // share], index % share
            our_name = f"{name_of(name)}/{which}"
            found.shapes[our_name] = each
            found.pieces[our_name] = (Piece(rank.path, ("state", number, key, place)),)


def _expect_rows(
    ranks: list[_Rank], parts: list[Tensor], shape: tuple[int, ...], what: str
) -> None:
    """Each part has its equal share of the whole's first dimension."""
    expected = (shape[0] // len(parts), *shape[1:]) if shape[0] % len(parts) == 0 else shape
    for rank, part in zip(ranks, parts, strict=True):
        if tuple(part.shape) != expected:
            of_each = f" of each of {len(parts)} devices" if len(parts) > 1 else ""
            raise CheckpointError(
                f"{rank.path}: {what} is {tuple(part.shape)}, expected {expected}{of_each} "
                "(several devices write a part each: are all their files here?); go on from the "
                "weights alone"
            )


def _num_steps(ranks: list[_Rank]) -> Tensor:
    """AdamW counts its steps in every state; Muon does not."""
    steps = [state["step"] for rank in ranks for state in rank.states.values() if "step" in state]
    wrong = [step for step in steps if type(step) is not int or not 0 <= step < MAX_STEPS]
    if wrong or len(set(steps)) != 1:
        shown = sorted({str(step)[:20] for step in steps})[:4]
        raise CheckpointError(
            f"{ranks[0].path}: its tensors have made {', '.join(shown) or 'no'} steps, expected "
            "one number"
        )
    return torch.tensor(steps[0])
