"""Is every rank alive?   in: the store that all ranks share   out: who is not, with its last words
who calls: dist.py   (imports torch)

Every rank says every second that it is there, and listens to the next one in the ring, so that the
store has three short questions a rank a second whatever the number of ranks.  A rank that fails
says why before it goes; of one that is killed its neighbour says that it went silent, and where the
store was the first rank's, everybody knows who went with it.  Whoever reads of a fault writes it
down, and ends: a collective that waits for a dead rank never returns.
Read next: dist.py (who starts it), train/stages.py (whose log it is written to).
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Watch"]

BEAT_S = 1.0
SILENCE_S = 20.0  # a machine that swaps may be away for some seconds
SILENCE_AFTER_ERROR_S = 3.0  # once a collective has failed, somebody is gone
GRACE_S = 10.0  # for the main thread to end by itself
GRACE_WITHOUT_STORE_S = 30.0  # who held it may have ended in order, a little earlier
READING_BEATS = 2.5  # in which every rank has read last words
FAULT = "fault"


class Watch:
    """This rank's place in the ring; `store` is a connection of its own.

    `holder` is who has the store, where that is no rank; None: the first rank.
    """

    def __init__(self, store: Any, rank: int, size: int, holder: str | None = None) -> None:
        self.step = 0
        """Updates done so far, for this rank's last words."""
        self.on_fault: Callable[[str], None] = lambda text: print(text, file=sys.stderr)
        """Told once of a fault before the process is ended from here."""
        self._store, self._rank, self._next = store, rank, (rank + 1) % size
        self._me = f"rank {rank} ({socket.gethostname()}, process {os.getpid()})"
        self._silence_s = SILENCE_S
        self._fault: str | None = None
        self._has_left = threading.Event()
        self._unheard = f"0|rank {self._next}|0"  # as if it had said so when all were there
        self._last_beat, self._heard_s = "", time.monotonic()
        self._holds_store = holder is None and rank == 0
        self._holder, self._has_named_holder = holder or "rank 0", holder is not None
        self._num_beats = 0
        self._grace_s = GRACE_S
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @property
    def name(self) -> str:
        """This rank, its machine and its process."""
        return self._me

    def start(self) -> None:
        """Say that we are here, learn who holds the store, and listen from now on."""
        self._beat()
        self._learn_holder()
        self._thread.start()

    def tell(self, words: str) -> None:
        """This rank ends, and why; the first one to say so is whom all others blame."""
        with self._lock:
            self._blame(f"{self._me} ended after step {self.step}: {words}")
        if self._holds_store:  # the words would go with it before the others had read them
            time.sleep(READING_BEATS * BEAT_S)

    def explain(self) -> str | None:
        """Who is to blame for a collective that has failed; None if all others are well.

        Waits some seconds: who was killed has to be missed first.
        """
        self._silence_s = SILENCE_AFTER_ERROR_S
        end_s = time.monotonic() + SILENCE_AFTER_ERROR_S + 3 * BEAT_S
        while self._fault is None and time.monotonic() < end_s:
            time.sleep(BEAT_S / 10)
        self._has_left.set()  # whoever knows, ends by itself
        return self._fault

    def leave(self) -> None:
        """Orderly: nobody is to miss this rank."""
        if self._has_left.is_set():
            return
        self._has_left.set()
        with self._lock:
            try:
                self._store.set(f"beat/{self._rank}", f"left|{self._me}|{self.step}")
            except RuntimeError:  # the store went with the rank that held it
                pass

    def _run(self) -> None:
        while not self._has_left.wait(BEAT_S):
            if self._beat():
                break
        if self._fault is None or self._has_left.wait(self._grace_s):
            return
        self.on_fault(self._fault)
        os._exit(1)

    def _beat(self) -> bool:
        """One turn; whether a fault is known after it."""
        try:
            with self._lock:
                self._num_beats += 1
                self._store.set(f"beat/{self._rank}", f"{self._num_beats}|{self._me}|{self.step}")
                if self._store.check([FAULT]):
                    self._fault = self._store.get(FAULT).decode()
                else:
                    self._listen(self._said_by(self._next) or self._unheard)
        except RuntimeError as error:
            self._fault = (
                f"{self._holder} is gone after step {self.step}, and the store of all ranks with "
                f"it: it was killed, or its machine is gone ({error})"
            )
            self._grace_s = GRACE_WITHOUT_STORE_S
        return self._fault is not None

    def _said_by(self, rank: int) -> str | None:
        key = f"beat/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _learn_holder(self) -> None:
        """The first rank's machine and process, from its first beat, which is waited for: once its
        store has gone with it, nobody could say who it was."""
        if self._has_named_holder:
            return
        with contextlib.suppress(RuntimeError):  # gone already: the next beat tells everybody
            self._holder = self._store.get("beat/0").decode().split("|")[1]

    def _listen(self, beat: str) -> None:
        if beat != self._last_beat:
            self._last_beat, self._heard_s = beat, time.monotonic()
        count, name, said = beat.split("|")
        step = max(int(said), self.step)  # all go in step, and the last beat may be a second old
        silent_s = time.monotonic() - self._heard_s
        if silent_s < self._silence_s:
            return
        if count != "left":
            self._blame(
                f"{name} has been silent for {silent_s:.0f} s, after step {step}: it was killed, or"
                " its machine is gone"
            )
        elif self._silence_s == SILENCE_AFTER_ERROR_S:
            self._blame(f"{name} left after step {step}, before the others")

    def _blame(self, words: str) -> None:
        try:
            self._fault = self._store.compare_set(FAULT, "", words).decode()
        except RuntimeError:
            self._fault = words
