"""The ranks of one start find each other.   in: a store that has seen others   out: Start
who calls: dist.py   (imports no torch)

torchrun's store outlives a restart, and with it what those who were there before have left in it.
What torchrun counts does not tell starts apart: a machine whose ranks were only ended because one
elsewhere had died counts none, and a machine that was rebooted counts from zero.  So they ask:

    rank r   says hello with a word that nobody has used before
    rank 0   answers each hello with the word of this start
    rank r   says under that word that it is here, and what torchrun counts for it
    rank 0   says under it, once all are here, which start of the job this is
A hello of an earlier start is answered too; nobody is left to read the answer.
Read next: dist.py (what is done under that word), watch.py (who dies later).
"""

import datetime
import secrets
import time
from typing import Any, NamedTuple, NoReturn

from nanochat.common.errors import TrainingError

__all__ = ["LIMIT_S", "Start", "meet"]

LIMIT_S = 600.0  # hundreds of processes load their programs from one file server
POLL_S = 0.05
PLACE = "nanochat/starts"


class Start(NamedTuple):
    """One start of all ranks."""

    word: str
    """What its part of the store is called; no other start has it."""
    number: int
    """How many there were before it."""


def meet(
    store: Any,
    rank: int,
    size: int,
    num_counted: int = 0,
    memory: Any = None,
    *,
    limit_s: float = LIMIT_S,
) -> Start:
    """The start that this rank is part of, once all ranks are here.

    `num_counted` is what the launcher counts; the largest of all ranks' is believed where fewer
    starts are known of in `memory`, a store that outlives them (None: this one).
    Raises: TrainingError naming who has not come.
    """
    try:
        if rank:
            return _join(store, rank, num_counted, limit_s)
        word, num_counted = _gather(store, size, num_counted, limit_s)
        number = max((memory or store).add(f"{PLACE}/count", 1) - 1, num_counted)
        store.set(f"{PLACE}/{word}/number", str(number))
        return Start(word, number)
    except RuntimeError as error:  # torch's, which knows no rank
        if isinstance(error, TrainingError):
            raise
        _give_up(f"rank {rank} of {size}", f"rank 0 and the store with it ({error})", limit_s)


def _gather(store: Any, size: int, num_counted: int, limit_s: float) -> tuple[str, int]:
    """The word of this start, and the most restarts that any rank's launcher counts."""
    word, end_s = secrets.token_hex(8), time.monotonic() + limit_s
    answered: dict[int, bytes] = {}
    missing = set(range(1, size))
    while missing:
        for rank in sorted(missing):
            if store.check([f"{PLACE}/{word}/{rank}"]):
                num_counted = max(num_counted, int(store.get(f"{PLACE}/{word}/{rank}")))
                missing.remove(rank)
            elif store.check([f"{PLACE}/hello/{rank}"]):
                hello = store.get(f"{PLACE}/hello/{rank}")
                if answered.get(rank) != hello:
                    answered[rank] = hello
                    store.set(f"{PLACE}/welcome/{hello.decode()}", word)
        if missing and time.monotonic() > end_s:
            names = ", ".join(map(str, sorted(missing)[:8]))
            _give_up(f"rank 0 of {size}", f"rank {names}", limit_s)
        if missing:
            time.sleep(POLL_S)
    return word, num_counted


def _join(store: Any, rank: int, num_counted: int, limit_s: float) -> Start:
    hello, limit = secrets.token_hex(8), datetime.timedelta(seconds=limit_s)
    store.set(f"{PLACE}/hello/{rank}", hello)
    store.wait([f"{PLACE}/welcome/{hello}"], limit)
    word = store.get(f"{PLACE}/welcome/{hello}").decode()
    store.set(f"{PLACE}/{word}/{rank}", str(num_counted))
    store.wait([f"{PLACE}/{word}/number"], limit)
    return Start(word, int(store.get(f"{PLACE}/{word}/number")))


def _give_up(who: str, missed: str, limit_s: float) -> NoReturn:
    raise TrainingError(
        f"{who} has waited {limit_s:.0f} s in vain for {missed}: look at what those machines say, "
        "then start all of them again"
    )
