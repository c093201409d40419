"""Tokens -> the stream that the head reads.   in: pieces of prompts, or one token of every row
out: hidden_ND, logits_NV   who calls: engine.py

    prefill   many tokens of a few rows: bound by arithmetic
    decode    one token of every row: bound by reading the weights
The mathematics is that of model/gpt.py; here nothing is kept for gradients, every weight was packed
once, and a step is a few operators a layer.  Both paths feed (token, token before it, position), so
pieces and neighbours change nothing but rounding.
Read next: weights.py, operators.py, attend.py, kvmemory.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from nanochat.common.device import best_device, compute_dtype
from nanochat.common.errors import ConfigError, EngineError
from nanochat.common.files import home_dir
from nanochat.common.transfer import send
from nanochat.engine.attend import attend_piece, attend_row
from nanochat.engine.choice import OperatorChooser
from nanochat.engine.decode import Buffers, Step, decode
from nanochat.engine.kvmemory import KVMemory, Table, Window, runs_of
from nanochat.engine.late import Late
from nanochat.engine.operators import BUCKETS, Linear, Role, WeightFormat, bucket_of, plain
from nanochat.engine.paged import PagedDecode, capture_for
from nanochat.engine.request import NO_TOKEN
from nanochat.engine.weights import LayerWeights, fuse
from nanochat.model.gpt import GPT
from nanochat.model.layers import RotaryTable

__all__ = ["Attend", "FormatName", "Forward", "Piece", "Tables"]

FormatName = Literal["auto", "float32", "bfloat16", "int8", "int4"]
Tables = Mapping[Window, Table]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_NHE, k_NKE, v_NKE) -> y_NR: keeps keys and values if need be, reads what is seen."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one row that follow each other."""

    tokens: Sequence[int]
    previous: int
    """The token before the first; NO_TOKEN at position 0."""
    start: int
    """The position of the first."""
    tables: Tables
    """The row's blocks, with room for these tokens."""


class Forward:
    """A model made ready: prefill, decode, logits.

    Raises: ConfigError for a format this device has no operators for.
    """

    def __init__(
        self,
        model: GPT,
        *,
        format: FormatName = "auto",
        device: torch.device | None = None,
        home: Path | None = None,
    ) -> None:
        self.config = model.config
        self.device = best_device() if device is None else device
        self.format = _format(format, self.device)
        self.dtype = torch.float32 if self.format == "float32" else torch.bfloat16
        """What keys and values are kept in."""
        chooser = OperatorChooser(self.format, home_dir(home) / "cache")
        make = chooser.make if self.device.type == "cpu" else self._plain_linear
        self.weights = fuse(model, make, self.dtype, self.device)
        chooser.save()
        config = model.config
        self._rotary = RotaryTable(
            config.head_dim,
            config.rope_base,
            model.rotary.cos_SE.size(0),
            round_to_bfloat16=config.rope_dtype == "bfloat16",
        )
        self._rotation_SE = self._rotation(0)
        self.scale = config.qk_scale**2 * config.head_dim**-0.5
        """What products of queries and keys are multiplied by."""
        self._eps = torch.tensor(config.norm_eps, device=self.device)
        is_narrow = self.format in ("bfloat16", "int4")
        self._activation_dtype = torch.bfloat16 if is_narrow else torch.float32
        self._buffers: dict[int, Buffers] = {}
        self._paged: PagedDecode | None = None

    # ------------------------------------------------------------------------------- paths

    @torch.inference_mode()
    def prefill(
        self, pieces: Sequence[Piece], memory: KVMemory, *, last_only: bool = False
    ) -> Tensor:
        """Feed pieces; the normed stream of all their tokens, laid end to end, or of the last of
        each.

        Shapes: -> hidden_ND.
        Raises: EngineError for a token outside the vocabulary.
        """
        tokens = [token for piece in pieces for token in piece.tokens]
        previous = [t for piece in pieces for t in (piece.previous, *piece.tokens[:-1])]
        positions = [
            position
            for piece in pieces
            for position in range(piece.start, piece.start + len(piece.tokens))
        ]
        slots = {
            window: self._long(
                [slot for piece in pieces for slot in _slots_of_piece(piece, window)]
            )
            for window in memory.num_blocks
        }
        config = self.config
        K = config.num_kv_heads

        def attend(layer: int, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor) -> Tensor:
            window = config.windows[layer]
            memory.write(layer, slots[window], k_NKE, v_NKE)
            q_KNGE = q_NHE.to(memory.dtype).unflatten(1, (K, -1)).transpose(0, 1)
            parts, begin = [], 0
            for piece in pieces:
                end, stop = begin + len(piece.tokens), piece.start + len(piece.tokens)
                first = 0 if window is None else max(0, piece.start - window)
                k_KSE, v_KSE = memory.gather(layer, runs_of(piece.tables[window], first, stop))
                y = attend_piece(
                    q_KNGE[:, begin:end], k_KSE, v_KSE,
                    start=piece.start, first=first, window=window, scale=self.scale,
                )  # fmt: skip
                parts.append(y.transpose(0, 1).reshape(end - begin, -1))
                begin = end
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        hidden_ND = self.trunk(tokens, previous, positions, attend)
        if not last_only:
            return hidden_ND
        ends = torch.tensor([len(piece.tokens) for piece in pieces]).cumsum(0) - 1
        return hidden_ND[ends.to(self.device)]

    @torch.inference_mode()
    def decode(
        self,
        tokens_B: Sequence[int],
        previous_B: Sequence[int],
        positions_B: Sequence[int],
        tables: Sequence[Tables],
        memory: KVMemory,
        late: Late | None = None,
    ) -> Tensor:
        """Feed one token of every row; its normed stream.  Where the token is `late`, what
        tokens_B says is not looked at.

        Shapes: -> hidden_BD.
        Raises: EngineError for a token outside the vocabulary.
        """
        self._check(tokens_B, previous_B)
        if self.device.type != "cpu":
            return self._decode_paged(tokens_B, previous_B, positions_B, tables, memory, late)
        num_rows = len(tokens_B)
        runs = {
            window: [
                runs_of(table[window], 0 if window is None else max(0, at - window), at + 1)
                for table, at in zip(tables, positions_B, strict=True)
            ]
            for window in memory.num_blocks
        }
        none = self.config.padded_vocab_size
        numbers = self._long(  # one tensor: each costs 5 us to make
            [
                *tokens_B,
                *[none if token == NO_TOKEN else token for token in previous_B],
                *positions_B,
                *[row[-1][1] - 1 for rows in runs.values() for row in rows],
            ]
        )
        tokens, _, positions, *slots = numbers.split(num_rows)
        if late is not None:
            late.put(tokens)
        step = Step(
            pairs=numbers.narrow(0, 0, 2 * num_rows),
            tokens_B=tokens,
            rotation_BE=self._rotation(max(positions_B)).index_select(0, positions),
            slots=dict(zip(runs, slots, strict=True)),
        )
        windows, scale = self.config.windows, self.scale

        def read_memory(layer: int, q_BKGE: Tensor) -> Tensor:
            if num_rows == 1:
                k, v = memory.gather_row(layer, runs[windows[layer]][0])
                return attend_row(q_BKGE, k, v, scale).view(1, -1)
            y_BKGE = torch.empty_like(q_BKGE)
            for row_runs, q, y in zip(
                runs[windows[layer]], q_BKGE.split(1), y_BKGE.split(1), strict=True
            ):
                y.copy_(attend_row(q, *memory.gather_row(layer, row_runs), scale))
            return y_BKGE.view(num_rows, -1)

        buffers = self._buffers_for(num_rows)
        return decode(self.config, self.weights, buffers, step, memory, read_memory)

    def _decode_paged(
        self,
        tokens_B: Sequence[int],
        previous_B: Sequence[int],
        positions_B: Sequence[int],
        tables: Sequence[Tables],
        memory: KVMemory,
        late: Late | None,
    ) -> Tensor:
        """The same by recorded steps.   Shapes: -> hidden_BD."""
        if self._paged is None or self._paged.memory is not memory:
            self._paged = PagedDecode(
                self.config,
                self.weights,
                memory,
                activation_dtype=self._activation_dtype,
                scale=self.scale,
                capture=capture_for(self.device),
            )
        none = self.config.padded_vocab_size
        previous = [none if token == NO_TOKEN else token for token in previous_B]
        rotation_SE = self._rotation(max(positions_B))
        return self._paged(tokens_B, previous, positions_B, rotation_SE, tables, late)

    @torch.inference_mode()
    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Capped logits in float32.   Shapes: hidden_ND -> (N, V), V the true vocabulary."""
        # The head was divided by the cap when it was packed.
        scaled_NV = self.weights.head(hidden_ND)[:, : self.config.vocab_size].float()
        return scaled_NV.tanh_().mul_(self.config.logit_softcap)

    # ------------------------------------------------------------------------------- trunk

    @torch.inference_mode()
    def trunk(
        self,
        tokens: Sequence[int],
        previous: Sequence[int],
        positions: Sequence[int],
        attend: Attend,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """All blocks; with `wanted` only these rows come out, and what the last block computes
        for the others is left out: there `attend` returns these rows alone.

        Shapes: N tokens -> hidden_ND in float32, normed; of the wanted rows, where they are given.
        """
        config, weights = self.config, self.weights
        N, H, K, E = len(tokens), config.num_heads, config.num_kv_heads, config.head_dim
        q_width, v_start = (H + K) * E, (H + 2 * K) * E
        bucket = bucket_of(N)
        x_ND, values_NLKE = self._embed(tokens, previous)
        rotation_N1E = self._rotation(max(positions))[self._long(positions)][:, None]
        first_ND, middle_ND = x_ND, None
        for index, layer in enumerate(weights.layers):
            if config.residual_lambdas:
                x_ND = torch.mul(x_ND, layer.residual).add_(first_ND, alpha=layer.input)
            elif index == 0:
                x_ND = x_ND.clone()
            qkv_NC = layer.qkv.by_bucket[bucket](x_ND * self._inverse_rms(x_ND)).float()
            qk_NHE = torch.view_as_real(
                torch.view_as_complex(qkv_NC[:, :q_width].view(N, H + K, E // 2, 2)) * rotation_N1E
            ).view(N, H + K, E)
            qk_NHE.mul_(self._inverse_rms(qk_NHE))
            v_NKE = qkv_NC[:, q_width:v_start].view(N, K, E)
            if layer.value_table is not None:
                assert values_NLKE is not None, "a layer with a value table in a model without"
                gate_NK1 = torch.sigmoid(qkv_NC[:, v_start : v_start + K])[..., None]
                v_NKE = torch.addcmul(v_NKE, gate_NK1, values_NLKE[:, layer.value_table])
            seen = attend(index, qk_NHE[:, :H], qk_NHE[:, H:], v_NKE)
            if wanted is not None and index == config.num_layers - 1:
                last = self._mixed(layer, x_ND[wanted], seen)
                if config.backout and index == config.backout_layer:
                    return self._ended(last, last)
                return self._ended(last, None if middle_ND is None else middle_ND[wanted])
            x_ND = self._mixed(layer, x_ND, seen)
            if config.backout and index == config.backout_layer:
                middle_ND = x_ND if config.residual_lambdas else x_ND.clone()
        return self._ended(x_ND, middle_ND)

    def _mixed(self, layer: LayerWeights, x_ND: Tensor, y_NR: Tensor) -> Tensor:
        """What a block does after its attention, in place.   Shapes: -> x_ND."""
        bucket = bucket_of(x_ND.size(0))
        x_ND.add_(layer.output.by_bucket[bucket](y_NR))
        u_NF = layer.expand.by_bucket[bucket](x_ND * self._inverse_rms(x_ND))
        return x_ND.add_(layer.contract.by_bucket[bucket](u_NF.mul_(u_NF)))

    def _ended(self, x_ND: Tensor, middle_ND: Tensor | None) -> Tensor:
        """The stream without the middle one, normed.   Shapes: -> x_ND."""
        if middle_ND is not None:
            x_ND = torch.add(x_ND, middle_ND, alpha=-self.weights.backout)
        return x_ND * self._inverse_rms(x_ND)

    def _embed(
        self, tokens: Sequence[int], previous: Sequence[int]
    ) -> tuple[Tensor, Tensor | None]:
        """What the first block reads, and the value embeddings.   Shapes: -> x_ND, values_NLKE."""
        weights, config = self.weights, self.config
        self._check(tokens, previous)
        tokens_N = self._long(tokens)
        x_ND = weights.embedding_VD.index_select(0, tokens_N).float()
        if weights.smear_V1 is not None:
            none = config.padded_vocab_size  # the row of zeros
            previous_N = self._long([none if token == NO_TOKEN else token for token in previous])
            before_ND = weights.embedding_VD.index_select(0, previous_N)
            x_ND = torch.addcmul(x_ND, weights.smear_V1.index_select(0, tokens_N), before_ND)
        if weights.values_VR is None:
            return x_ND, None
        values_NR = weights.values_VR.index_select(0, tokens_N).float()
        return x_ND, values_NR.view(len(tokens), -1, config.num_kv_heads, config.head_dim)

    def _check(self, tokens: Sequence[int], previous: Sequence[int]) -> None:
        low, high = min(tokens), max(max(tokens), max(previous))
        if low < 0 or min(previous) < NO_TOKEN or high >= self.config.vocab_size:
            raise EngineError(
                f"tokens from {min(low, min(previous))} to {high}: expected 0 to "
                f"{self.config.vocab_size - 1}"
            )

    def _buffers_for(self, num_rows: int) -> Buffers:
        if num_rows not in self._buffers:
            self._buffers[num_rows] = Buffers(
                self.config,
                self.weights,
                num_rows,
                dtype=self.dtype,
                activation_dtype=self._activation_dtype,
                device=self.device,
            )
        return self._buffers[num_rows]

    def _inverse_rms(self, x: Tensor) -> Tensor:
        """1 / sqrt(mean(x^2) + eps) over the last dimension, which is kept."""
        norm = torch.linalg.vector_norm(x, 2, -1, True)
        return torch.addcmul(self._eps, norm, norm, value=1 / x.size(-1)).rsqrt_()

    def _rotation(self, position: int) -> Tensor:
        """cos - i sin by position, at least up to this one.   Shapes: -> (S, E/2), complex."""
        if position == 0 or position >= self._rotation_SE.size(0):
            cos_SE, sin_SE = self._rotary(position + 1, torch.float32, torch.device("cpu"))
            cos_SE, sin_SE = self._rotary.cos_SE, self._rotary.sin_SE
            self._rotation_SE = torch.complex(cos_SE, -sin_SE).to(self.device)
        return self._rotation_SE

    def _long(self, numbers: Sequence[int]) -> Tensor:
        return send(numbers, self.device)

    # ----------------------------------------------------------------------------- weights

    def _plain_linear(self, weight_CR: Tensor, role: Role) -> Linear:
        multiply = plain(weight_CR.to(self.device), role, self.dtype)
        return Linear((weight_CR.size(0), weight_CR.size(1)), (multiply,) * len(BUCKETS))


def _format(name: FormatName, device: torch.device) -> WeightFormat:
    if name not in get_args(FormatName):
        raise ConfigError(f"format is {name!r}, expected one of {', '.join(get_args(FormatName))}")
    if name == "auto":
        return "bfloat16" if compute_dtype(device) == torch.bfloat16 else "float32"
    if name in ("int8", "int4") and device.type != "cpu":
        raise ConfigError(
            f"format {name} on {device.type}: expected the CPU; choose bfloat16 or float32 there"
        )
    return name


def _slots_of_piece(piece: Piece, window: Window) -> list[int]:
    runs = runs_of(piece.tables[window], piece.start, piece.start + len(piece.tokens))
    return [slot for first, stop in runs for slot in range(first, stop)]
