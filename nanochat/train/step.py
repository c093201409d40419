"""One batch -> one update.   in: a rank's rows of a batch   out: StepResult, weights moved
who calls: loop.py

The rows are computed in parts whose gradients add up (and, over ranks, are summed).  Where memory
runs out the parts are halved and the step is done again.  An update that is no finite number is
thrown away on the device; nothing here waits for a GPU.
Read next: optim.py (the update), loop.py (what follows from a result).
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from nanochat.batches.batch import IGNORE, Batch, micro_batches
from nanochat.common.device import is_out_of_memory, total_memory_bytes
from nanochat.common.dist import World
from nanochat.common.errors import TrainingError
from nanochat.model.cost import count_parameters
from nanochat.model.gpt import GPT
from nanochat.train.optim import Optimizer, Rates
from nanochat.train.pace import Pace

if TYPE_CHECKING:
    from nanochat.train.fsdp import ShardedOptimizer

__all__ = ["LossFunction", "StepResult", "Stepper", "explained"]

LossFunction = Callable[[GPT, Batch], Tensor]

MICRO_BATCH_MULTIPLE = 32  # padded rows are cut back to a multiple of this many tokens


@contextlib.contextmanager
def explained(model: GPT, where: str) -> Iterator[None]:
    """Meanwhile memory that runs out is one line for the user: where, with what, and the remedy.
    For what cannot be done in smaller parts.

    Raises: TrainingError instead of what the allocator says.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        device = model.embedding.weight.device
        num_weights = count_parameters(model.config).total
        raise TrainingError(
            f"out of memory in {where} of a model of {num_weights:,} weights on {device}, which "
            f"has {total_memory_bytes(device) / 2**30:.1f} GiB ({error}): lower --depth or "
            "--context-len, or cut the model over more devices (--shard-model on)"
        ) from error


class StepResult(NamedTuple):
    """What one step measured; tensors still on the device."""

    loss: Tensor
    """Mean over the targets of all ranks."""
    grad_norm: Tensor
    """Euclidean norm of all gradients."""
    is_good: Tensor
    """Whether both are finite, so that the update was applied."""
    num_targets: int
    """Of all ranks; without any, nothing is changed."""


class Stepper:
    """Computes steps, and remembers how many rows fit at once."""

    def __init__(
        self,
        model: GPT,
        optimizer: "Optimizer | ShardedOptimizer",
        compute: LossFunction,
        *,
        device_rows: int,
        is_padded: bool = False,
        world: World | None = None,
    ) -> None:
        self.device_rows = device_rows
        """Rows computed at once; halved when memory runs out."""
        self._model, self._optimizer, self._compute = model, optimizer, compute
        self._multiple = MICRO_BATCH_MULTIPLE if is_padded else None
        self._world = world or World()
        middle = model.blocks[len(model.blocks) // 2] if optimizer.is_sharded else None
        self.pace = Pace(model.embedding.weight.device, middle)
        """How long this rank's own part takes."""
        self._device = model.embedding.weight.device
        wide = torch.promote_types(optimizer.compute_dtype, torch.float32)
        self._nothing = torch.zeros((), dtype=wide, device=self._device)

    def step(self, batch: Batch, rates: Rates) -> StepResult:
        """The weights moved by one batch.

        Raises: TrainingError when memory does not suffice for a single row, or for the update.
        """
        num_targets = self._world.total(batch.num_targets)
        if num_targets == 0:
            loss = self._nothing.clone()
            return StepResult(loss, torch.zeros_like(loss), torch.ones_like(loss).bool(), 0)
        loss, gradients = self._loss_and_gradients(batch, num_targets)
        # AdamW takes room for its moments at the first update; what is half done cannot be redone.
        with explained(self._model, "the update"):
            return self._update(loss, gradients, num_targets, rates)

    def _update(
        self, loss: Tensor, gradients: list[Tensor], num_targets: int, rates: Rates
    ) -> StepResult:
        norms = [norm.to(loss.dtype) for norm in torch._foreach_norm(gradients)]
        grad_norm = torch.linalg.vector_norm(torch.stack(norms or [torch.zeros_like(loss)]))
        if self._world.size > 1:  # every rank knows a share of the loss, and some gradients' sums
            both = torch.stack([loss, grad_norm.square()])
            self._world.sum_([both])
            loss, grad_norm = both[0], both[1].sqrt()
        is_good = torch.isfinite(loss) & torch.isfinite(grad_norm)
        self._optimizer.step(rates, is_good)
        return StepResult(loss, grad_norm, is_good, num_targets)

    def _loss_and_gradients(self, batch: Batch, num_targets: int) -> tuple[Tensor, list[Tensor]]:
        """This rank's share of the mean loss, computed in as many parts as fit, and the gradients
        that it owns, summed over the ranks."""
        while True:
            failure: BaseException | None = None
            loss = self._nothing
            try:
                with self.pace.own_part():
                    loss = self._loss_in_parts(batch, num_targets)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._optimizer.is_sharded:  # others are waiting in the middle of a pass
                    raise TrainingError(
                        f"out of memory with {self.device_rows} rows at once of a sharded model on "
                        f"{self._device}: lower --device-batch-rows, or pass --recompute on"
                    ) from error
                failure = error
            with explained(self._model, "the sums of gradients"):
                gradients = self._optimizer.gradients()  # sums that others wait for are carried out
            # One rank without memory is enough: all take the same, smaller parts.
            if not self._world.largest(failure is not None):
                return loss, gradients
            self._halve(batch, failure)

    def _loss_in_parts(self, batch: Batch, num_targets: int) -> Tensor:
        losses = []
        trained = self._parts(batch)
        for index, part in enumerate(trained):
            if index == len(trained) - 1:
                self._optimizer.expect_last_part()
            part = Batch(
                part.inputs_BT.to(self._device, non_blocking=True),
                part.targets_BT.to(self._device, non_blocking=True),
            )
            self.pace.computed(part.inputs_BT.numel())
            loss = self._compute(self._model, part) / num_targets
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum() if losses else self._nothing.clone()

    def _parts(self, batch: Batch) -> list[Batch]:
        """What is computed one after the other; of a sharded model, whose weights come together
        part by part, as many on every rank, the last ones without targets."""
        parts = micro_batches(batch, self.device_rows, self._multiple)
        trained = [part for part in parts if part.num_targets > 0]
        if self._optimizer.is_sharded:
            num_idle = self._world.largest(len(trained)) - len(trained)
            tokens_BT = torch.zeros((1, batch.inputs_BT.shape[1]), dtype=torch.int64)
            trained += [Batch(tokens_BT, torch.full_like(tokens_BT, IGNORE))] * num_idle
        return trained

    def _halve(self, batch: Batch, failure: BaseException | None) -> None:
        self._optimizer.discard_gradients()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if self.device_rows == 1:
            raise TrainingError(
                f"out of memory with one row of {batch.inputs_BT.shape[1]} tokens at once on "
                f"{self._device} ({failure or 'on another rank'}): lower --context-len or --depth"
            ) from failure
        self.device_rows //= 2
