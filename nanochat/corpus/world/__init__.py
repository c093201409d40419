"""THE BUILT-IN WORLD.   in: a seed   out: prose, conversations, held-out questions
who calls: cli, batches, tests

A valley with thirty-six people and twelve towns, sums to 99, words to spell, days and months, and
nanochat itself: English of our own that a model of a few million parameters can master in minutes.
Read next: pages.py (prose), dialogues.py (conversations), held_out.py (the examination).
"""

from nanochat.corpus.world.dialogues import Stage, conversations
from nanochat.corpus.world.held_out import (
    CATEGORIES,
    HeldOut,
    baseline_guess,
    held_out,
    is_correct,
    score,
)
from nanochat.corpus.world.pages import prose

__all__ = [
    "CATEGORIES",
    "HeldOut",
    "Stage",
    "baseline_guess",
    "conversations",
    "held_out",
    "is_correct",
    "prose",
    "score",
]
