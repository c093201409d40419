"""Keys and values of what has been read.   in: k, v of new tokens   out: those of the whole row
who calls: engine.py, and the model through the KVCache protocol

Key s of a row stands at position s.  Rows are as long as they are: each keeps its own length, and
what lies behind it is left over and hidden by the causal mask.  Memory grows with the longest row
and with the number of rows, up to a stated limit; the windows of a model are masks, not memory.
Read next: model/attention.py (attend_cached), engine.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat.common.errors import EngineError
from nanochat.model.config import GPTConfig

__all__ = ["ContiguousCache"]

GROWTH_POSITIONS = 256  # a multiple of this is allocated: few copies, little waste


class ContiguousCache:
    """One block of memory for all rows of a batch; rows join at the end and leave anywhere.

    Raises: EngineError when a row would pass `max_positions`.
    """

    def __init__(
        self,
        config: GPTConfig,
        *,
        num_rows: int = 0,
        max_positions: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.max_positions = config.context_len if max_positions is None else max_positions
        self.lengths = [0] * num_rows
        self._device = device or torch.device("cpu")
        shape = (config.num_layers, 0, 0, config.num_kv_heads, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=self._device)
        self._values = torch.zeros_like(self._keys)
        self._plan_step(0)

    # ---------------------------------------------------------------- what the model calls

    def lengths_B(self) -> Tensor:
        """How many tokens each row holds: the position of its next one."""
        return self._lengths_B

    def extend(self, layer: int, k_BTKE: Tensor, v_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, the new ones in their places; some no query may see.

        Shapes: k_BTKE, v_BTKE -> (B, S, K, E) each, S the longest row with its new tokens.
        """
        num_new = k_BTKE.size(1)
        if num_new != self._num_new:
            self._plan_step(num_new)
        B, end = len(self.lengths), self._end
        for memory, new in ((self._keys, k_BTKE), (self._values, v_BTKE)):
            if self._is_level:
                memory[layer, :B, end - num_new : end] = new
            else:
                memory[layer].index_put_(self._places, new)
        return self._keys[layer, :B, :end], self._values[layer, :B, :end]

    # --------------------------------------------------------------- what the engine calls

    def advance(self, num_tokens_B: Sequence[int]) -> None:
        """Count the tokens just fed as part of their rows; what was padding is not counted."""
        self.lengths = [
            length + new for length, new in zip(self.lengths, num_tokens_B, strict=True)
        ]
        self._plan_step(0)

    def append(self, other: "ContiguousCache") -> None:
        """The rows of another cache join at the end."""
        first, after = len(self.lengths), len(self.lengths) + len(other.lengths)
        length = max(other.lengths, default=0)
        self._reserve(after, max([*self.lengths, length], default=0))
        self._keys[:, first:after, :length] = other._keys[:, : after - first, :length]
        self._values[:, first:after, :length] = other._values[:, : after - first, :length]
        self.lengths += other.lengths
        self._plan_step(0)

    def remove(self, row: int) -> None:
        """A row leaves and the last one takes its place: one row is copied at most."""
        last = len(self.lengths) - 1
        length, old_length = self.lengths[last], self.lengths[row]
        for memory in (self._keys, self._values):
            if row != last:
                memory[:, row, :length] = memory[:, last, :length]
                memory[:, row, length:old_length] = 0
            # A NaN left behind would reach others: a masked weight is 0, and 0 * NaN is NaN.
            memory[:, last, :length] = 0
        self.lengths[row] = length
        self.lengths.pop()
        self._plan_step(0)

    # ------------------------------------------------------------------------------ memory

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return 2 * self._keys.numel() * self._keys.element_size()

    def _plan_step(self, num_new: int) -> None:
        """Where the next tokens of each row go: computed once a step, used by every layer."""
        self._num_new = num_new
        self._end = max(self.lengths, default=0) + num_new
        self._is_level = len(set(self.lengths)) <= 1
        self._lengths_B = torch.tensor(self.lengths, dtype=torch.long, device=self._device)
        self._reserve(len(self.lengths), self._end)
        if num_new and not self._is_level:
            steps_T = torch.arange(num_new, device=self._device)
            rows_B = torch.arange(len(self.lengths), device=self._device)
            self._places = (rows_B[:, None], self._lengths_B[:, None] + steps_T)

    def _reserve(self, num_rows: int, num_positions: int) -> None:
        """Room for so many rows of so many positions; what is there is copied when memory grows."""
        if num_positions > self.max_positions:
            raise EngineError(
                f"a row would have {num_positions} tokens, but the cache was made for "
                f"{self.max_positions}: ask for fewer tokens"
            )
        _, old_rows, old_positions, *_ = self._keys.shape
        if num_rows <= old_rows and num_positions <= old_positions:
            return
        rows = old_rows if num_rows <= old_rows else max(num_rows, 2 * old_rows)
        positions = max(old_positions, min(_round_up(num_positions), self.max_positions))
        self._keys = _grown(self._keys, rows, positions)
        self._values = _grown(self._values, rows, positions)


def _round_up(num_positions: int) -> int:
    return -(-num_positions // GROWTH_POSITIONS) * GROWTH_POSITIONS


def _grown(memory: Tensor, num_rows: int, num_positions: int) -> Tensor:
    num_layers, old_rows, old_positions, *head = memory.shape
    grown = memory.new_zeros((num_layers, num_rows, num_positions, *head))
    grown[:, :old_rows, :old_positions] = memory
    return grown
