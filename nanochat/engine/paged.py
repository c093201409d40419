"""Decoding on a GPU: every shape is fixed, so that a step is recorded once and replayed.
in: rows of any number, positions and tables   out: hidden_BD   who calls: forward.py

A small model's step is some hundred short kernels, and starting each takes the host longer than the
kernel runs.  A CUDA graph starts all of them at once, but its shapes and addresses cannot change:
rows are padded to a ladder of batch sizes, what is seen to a ladder of blocks, and inputs are
copied into tensors that stay where they are.  Rows that pad are copies of the first one: they write
the same values into the same slots.
On a CPU the same bookkeeping runs without a graph; the tests use it so.
Source: CUDA graphs in PyTorch, docs.pytorch.org/docs/stable/notes/cuda.html.
Read next: decode.py (what is recorded), forward.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.engine.blocks import BLOCK_TOKENS
from nanochat.engine.decode import Buffers, Step, decode
from nanochat.engine.kvmemory import KVMemory, Table, Window
from nanochat.engine.late import Late
from nanochat.engine.weights import Weights
from nanochat.model.config import GPTConfig

__all__ = ["Capture", "PagedDecode", "capture_for", "ladder"]

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""A step that reads and writes fixed tensors -> the same step, recorded."""

FEWEST_BLOCKS = 8
WARM_UP_STEPS = 3  # before recording: libraries choose their kernels and allocate


@dataclass(frozen=True, slots=True)
class _Seen:
    """Of one group of layers, for every row: where its keys may lie."""

    blocks_BC: Tensor
    start_B: Tensor
    """The position of the first slot of the first block."""
    slot_B: Tensor
    """Where the new key and value go."""


class PagedDecode:
    """Recorded steps for one memory, by number of rows and blocks."""

    def __init__(
        self,
        config: GPTConfig,
        weights: Weights,
        memory: KVMemory,
        *,
        activation_dtype: torch.dtype,
        scale: float,
        capture: Capture,
    ) -> None:
        self.config, self.weights, self.memory = config, weights, memory
        self._activation_dtype, self._scale, self._capture = activation_dtype, scale, capture
        self._device = memory.layers[0].device
        self._recorded: dict[tuple[int, ...], _Recorded] = {}

    @property
    def num_recorded(self) -> int:
        """Different shapes so far."""
        return len(self._recorded)

    def __call__(
        self,
        tokens: Sequence[int],
        previous: Sequence[int],
        positions: Sequence[int],
        rotation_SE: Tensor,
        tables: Sequence[Mapping[Window, Table]],
        late: Late | None = None,
    ) -> Tensor:
        """Feed one token of every row; `previous` is the table's row of zeros where there is none.

        Shapes: -> hidden_BD in float32, normed.
        """
        num_rows = len(tokens)
        order = [*range(num_rows), *[0] * (ladder(num_rows) - num_rows)]
        groups = {
            window: [_row_of(tables[row][window], positions[row], window) for row in order]
            for window in self.memory.num_blocks
        }
        widths = {
            window: max(FEWEST_BLOCKS, ladder(max(len(blocks) for blocks, _, _ in rows)))
            for window, rows in groups.items()
        }
        key = (len(order), *widths.values())
        if key not in self._recorded:
            self._recorded[key] = _Recorded(self, len(order), widths)
        recorded = self._recorded[key]
        recorded.fill([tokens[row] for row in order], [previous[row] for row in order],
                      [positions[row] for row in order], rotation_SE, groups)  # fmt: skip
        if late is not None:
            late.put(recorded.step.tokens_B)
        return recorded.run()[:num_rows].clone()

    def record(self, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A step as it will be run."""
        return self._capture(step)

    def buffers(self, num_rows: int) -> Buffers:
        """Memory for a step of so many rows."""
        return Buffers(
            self.config, self.weights, num_rows, dtype=self.memory.dtype,
            activation_dtype=self._activation_dtype, device=self._device,
        )  # fmt: skip

    def attend(self, layer: int, q_BKGE: Tensor, seen: _Seen, positions_B: Tensor) -> Tensor:
        """Attention with everything in the blocks that a row's query sees.

        Shapes: q_BKGE, positions_B -> (B, H * E).
        """
        window = self.config.windows[layer]
        B, K = q_BKGE.shape[:2]
        offsets_S = torch.arange(seen.blocks_BC.size(1) * BLOCK_TOKENS, device=self._device)
        slots_BS = seen.blocks_BC.repeat_interleave(BLOCK_TOKENS, 1) * BLOCK_TOKENS
        slots_BS = slots_BS + offsets_S % BLOCK_TOKENS
        distance_BS = positions_B[:, None] - seen.start_B[:, None] - offsets_S
        is_seen_BS = distance_BS >= 0
        if window is not None:
            is_seen_BS &= distance_BS <= window
        kv = self.memory.layers[layer].index_select(1, slots_BS.flatten())
        kv = kv.view(2 * K, B, -1, kv.size(-1)).transpose(0, 1)
        y_BKGE = F.scaled_dot_product_attention(
            q_BKGE, kv[:, :K], kv[:, K:], attn_mask=is_seen_BS[:, None, None], scale=self._scale
        )
        return y_BKGE.reshape(B, -1)


class _Recorded:
    """The fixed tensors of one shape, and the step recorded on them."""

    def __init__(self, owner: PagedDecode, num_rows: int, widths: Mapping[Window, int]) -> None:
        config, device = owner.config, owner._device

        def numbers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.positions_B = numbers(num_rows)
        self.seen = {
            window: _Seen(numbers(num_rows, width), numbers(num_rows), numbers(num_rows))
            for window, width in widths.items()
        }
        rotation = torch.ones(num_rows, config.head_dim // 2, dtype=torch.complex64, device=device)
        pairs = numbers(2 * num_rows)
        self.step = Step(
            pairs=pairs,
            tokens_B=pairs[:num_rows],
            rotation_BE=rotation,
            slots={window: seen.slot_B for window, seen in self.seen.items()},
        )
        buffers = owner.buffers(num_rows)

        def read_memory(layer: int, q_BKGE: Tensor) -> Tensor:
            return owner.attend(layer, q_BKGE, self.seen[config.windows[layer]], self.positions_B)

        def run() -> Tensor:
            return decode(config, owner.weights, buffers, self.step, owner.memory, read_memory)

        self._run, self._owner = run, owner
        self._recorded: Callable[[], Tensor] | None = None

    def fill(
        self,
        tokens: Sequence[int],
        previous: Sequence[int],
        positions: Sequence[int],
        rotation_SE: Tensor,
        groups: Mapping[Window, Sequence[tuple[list[int], int, int]]],
    ) -> None:
        """This step's values into the fixed tensors."""
        self._fill(self.step.pairs, [*tokens, *previous])
        self._fill(self.positions_B, positions)
        self.step.rotation_BE.copy_(rotation_SE[self.positions_B])
        for window, rows in groups.items():
            seen = self.seen[window]
            width = seen.blocks_BC.size(1)
            blocks = [numbers + [numbers[-1]] * (width - len(numbers)) for numbers, _, _ in rows]
            self._fill(seen.blocks_BC, blocks)
            self._fill(seen.start_B, [start for _, start, _ in rows])
            self._fill(seen.slot_B, [slot for _, _, slot in rows])

    @staticmethod
    def _fill(fixed: Tensor, numbers: Sequence[int] | Sequence[list[int]]) -> None:
        """Without waiting for the device."""
        fixed.copy_(torch.tensor(numbers), non_blocking=True)

    def run(self) -> Tensor:
        """The step; recorded the first time, when the tensors hold real values."""
        if self._recorded is None:
            self._recorded = self._owner.record(self._run)
        return self._recorded()


def ladder(count: int) -> int:
    """The least power of two that is not less: few shapes, at most twice the work."""
    return 1 << (count - 1).bit_length()


def capture_for(device: torch.device) -> Capture:
    """How a device records a step; one without graphs keeps it as it is."""
    return _capture_graph if device.type == "cuda" else _replay_nothing


def _replay_nothing(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return step


def _capture_graph(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The step as a CUDA graph.  Feeding a token twice writes the same key twice: warming up is
    harmless."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _row_of(table: Table, position: int, window: Window) -> tuple[list[int], int, int]:
    """The blocks that a query at `position` sees, the position of their first slot, its own
    slot."""
    first_block = 0 if window is None else max(0, position - window) // BLOCK_TOKENS
    last_block = position // BLOCK_TOKENS
    numbers: list[int] = []
    for number in table[first_block : last_block + 1]:
        assert number is not None, f"a block that position {position} sees was given back"
        numbers.append(number)
    assert len(numbers) == last_block + 1 - first_block, f"no block for position {position}"
    slot = numbers[-1] * BLOCK_TOKENS + position % BLOCK_TOKENS
    return numbers, first_block * BLOCK_TOKENS, slot
