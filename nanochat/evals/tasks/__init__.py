"""The tasks that come with the program.   in: nothing   out: Task   who calls: cli, train, bench
(imports no torch)

Read next: lettered.py (ARC, MMLU), gsm8k.py, humaneval.py, spelling.py, world.py, bits.py; core.py
one level up (CORE's 22).
"""

from nanochat.evals.core import CORE_TASKS
from nanochat.evals.task import Task
from nanochat.evals.tasks.bits import BITS_PER_BYTE
from nanochat.evals.tasks.gsm8k import GSM8K
from nanochat.evals.tasks.humaneval import HUMANEVAL
from nanochat.evals.tasks.lettered import ARC_CHALLENGE, ARC_EASY, MMLU
from nanochat.evals.tasks.spelling import SIMPLE_SPELLING, SPELLING_BEE
from nanochat.evals.tasks.world import WORLD

__all__ = ["BUILT_IN", "GROUPS"]

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
"""Names for several tasks at once."""
