"""A signal ends several ranks together: nobody goes before the checkpoint is written."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from nanochat.common.dist import World
from nanochat.common.errors import Stopped
from nanochat.train.loop import fit
from tests.train.makers import Memory, Recorder, stage_of
from tests.train.ranks import exit_codes

ENDS_WITHIN_S = 1.0  # who does not wait for the checkpoint is gone in a hundredth of it


@dataclass
class SlowDisk(Memory):
    """A keeper whose checkpoint is written on the first rank only, as long as the other one stays;
    a second at most."""

    folder: Path
    is_first: bool

    def __post_init__(self) -> None:
        super().__init__()

    def finish(self) -> None:
        if not self.is_first:
            return
        end_s = time.monotonic() + ENDS_WITHIN_S
        while not (self.folder / "ended").exists() and time.monotonic() < end_s:
            time.sleep(0.005)
        (self.folder / "whole").touch()


class StopsItself(Recorder):
    """A display that sends its own process a SIGTERM at the first step."""

    def step(self, metrics: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.req("FR-016", "FR-020", "EC-5")
def test_no_rank_ends_before_the_checkpoint_is_whole(tmp_path: Path) -> None:
    """Launchers kill all ranks once one has ended."""

    def run(world: World) -> None:
        keeper = SlowDisk(tmp_path, world.is_first)
        stage = stage_of(num_steps=50, world=world, dtype=torch.float64, keeper=keeper)
        keeper.stage = stage
        if not world.is_first:
            stage = replace(stage, display=StopsItself())
        with contextlib.suppress(Stopped):
            fit(stage)
            raise AssertionError("nobody stopped")
        is_whole = (tmp_path / "whole").exists()
        if not world.is_first:
            (tmp_path / "ended").touch()
        assert world.watch is not None
        world.watch.leave()
        torch.distributed.destroy_process_group()
        assert is_whole

    assert exit_codes(2, run) == [0, 0]
