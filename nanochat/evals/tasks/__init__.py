"""The tasks that come with the program.   in: nothing   out: Task   who calls: cli, train, bench
(imports no torch)

Read next: lettered.py (ARC, MMLU), gsm8k.py, humaneval.py, spelling.py, world.py, bits.py; core.py
one level up (CORE's 22).
"""

import fnmatch
from collections.abc import Sequence

from nanochat.common.errors import ConfigError
from nanochat.evals.core import CORE_TASKS
from nanochat.evals.task import Task
from nanochat.evals.tasks.bits import BITS_PER_BYTE
from nanochat.evals.tasks.gsm8k import GSM8K
from nanochat.evals.tasks.humaneval import HUMANEVAL
from nanochat.evals.tasks.lettered import ARC_CHALLENGE, ARC_EASY, MMLU
from nanochat.evals.tasks.spelling import SIMPLE_SPELLING, SPELLING_BEE
from nanochat.evals.tasks.world import WORLD

__all__ = ["BUILT_IN", "GROUPS", "named_tasks"]

BUILT_IN: tuple[Task, ...] = (
    *CORE_TASKS,
    ARC_EASY,
    ARC_CHALLENGE,
    MMLU,
    GSM8K,
    HUMANEVAL,
    SPELLING_BEE,
    SIMPLE_SPELLING,
    BITS_PER_BYTE,
    WORLD,
)
"""In the order they are run and told."""

GROUPS = {
    "core": tuple(task.name for task in CORE_TASKS),
    "chatcore": (
        ARC_EASY.name, ARC_CHALLENGE.name, MMLU.name, GSM8K.name, HUMANEVAL.name,
        SPELLING_BEE.name,
    ),
}  # fmt: skip
"""Names for several tasks at once; `all` is another."""


def named_tasks(names: Sequence[str], own: Sequence[Task] = ()) -> list[Task]:
    """The tasks that names, globs and groups mean, one behind the other in commas or apart, and
    those of one's own; in the order they are run.

    Raises: ConfigError for a name that matches none, with the names there are; for a task of one's
            own that is called like another.
    """
    _check_names(own)
    known = [*BUILT_IN, *own]
    wanted = {task.name for task in own}
    for name in (part.strip() for word in names for part in word.split(",") if part.strip()):
        globs = ("*",) if name == "all" else GROUPS.get(name, (name,))
        matches = {
            task.name for task in known for glob in globs if fnmatch.fnmatchcase(task.name, glob)
        }
        if not matches:
            there = ", ".join([*GROUPS, *(task.name for task in known)])
            raise ConfigError(f"no task is called {name!r}: there are {there}")
        wanted |= matches
    return [task for task in known if task.name in wanted]


def _check_names(own: Sequence[Task]) -> None:
    taken = {"all", *GROUPS, *(task.name for task in BUILT_IN)}
    for task in own:
        if task.name in taken:
            raise ConfigError(
                f"a task of your own is called {task.name!r}, and so is another task or group: "
                'rename its file, or say name = "..." in a TOML file'
            )
        taken.add(task.name)
