"""How far a run is.   in: steps done, batches passed over   out: the next batch, state.json
who calls: loop.py, stages.py

Everything that decides what a run does next, besides its weights and moments: because the n-th
batch is a pure function of n (batches/stream.py), these few numbers are all that resuming needs.
Read next: loop.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nanochat.common.errors import CheckpointError

__all__ = ["Progress", "from_plain", "to_plain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Where a run stands after `step` updates."""

    step: int = 0
    skipped: tuple[int, ...] = ()
    """Numbers of batches that are passed over, ascending: training went back to before them."""
    discarded: tuple[int, ...] = ()
    """Numbers of batches whose update was thrown away, because it was no finite number."""
    streak: int = 0
    """How many of them came last, with none in between that was applied: while there are any,
    nobody knows whether the weights are still good."""
    num_returns: int = 0
    """How often training went back to a checkpoint."""
    last_row: Mapping[str, float] | None = None
    """What the last step measured: a killed process may not have come to write it down."""

    def batch_number(self, step: int) -> int:
        """The batch of the step with this number (from 0): the step-th that is not skipped."""
        number = step
        for skipped in self.skipped:
            if skipped <= number:
                number += 1
        return number

    def advanced(self) -> "Progress":
        """One step on."""
        return replace(self, step=self.step + 1)

    def without_update_of(self, batch: int) -> "Progress":
        """The same place; the update of this batch was thrown away."""
        return replace(self, discarded=(*self.discarded, batch), streak=self.streak + 1)

    def with_update(self) -> "Progress":
        """The same place; the last update was applied."""
        return self if not self.streak else replace(self, streak=0)

    def gone_back(self, to: "Progress") -> "Progress":
        """At `to` again, with all batches from there to here passed over from now on."""
        tried = {self.batch_number(step) for step in range(to.step, self.step)}
        return replace(
            to,
            skipped=tuple(sorted({*self.skipped, *tried})),
            discarded=self.discarded,
            streak=0,
            num_returns=self.num_returns + 1,
        )

    def to_json(self) -> dict[str, Any]:
        """For state.json."""
        return {
            "step": self.step,
            "skipped": list(self.skipped),
            "discarded": list(self.discarded),
            "streak": self.streak,
            "num_returns": self.num_returns,
            "last_row": self.last_row and to_plain(self.last_row),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Progress":
        """The inverse of to_json.

        Raises: CheckpointError for what it cannot have written.
        """
        try:
            progress = cls(
                step=int(value["step"]),
                skipped=tuple(int(number) for number in value["skipped"]),
                discarded=tuple(int(number) for number in value["discarded"]),
                streak=int(value.get("streak", 0)),  # not known before there was any
                num_returns=int(value["num_returns"]),
                last_row=value["last_row"] and from_plain(value["last_row"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"progress {value!r} is not a run's: {error!r}") from error
        if progress.step < 0 or list(progress.skipped) != sorted(set(progress.skipped)):
            raise CheckpointError(
                f"progress {value!r}: expected a step of at least 0 and ascending numbers"
            )
        return progress


def to_plain(row: Mapping[str, float]) -> dict[str, float | None]:
    """A row of metrics for JSON, which has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def from_plain(row: Mapping[str, float | None]) -> dict[str, float]:
    """The inverse of to_plain."""
    return {name: math.nan if value is None else value for name, value in row.items()}
