"""What a demo trains, and how long each stage may take.   in: nothing   out: Recipe
who calls: cli/demo_story.py

The numbers were found by trying; dev/LOG.md has the attempts.
Read next: demo_budget.py (minutes -> steps), demo_story.py.
"""

from dataclasses import dataclass

__all__ = ["OWN", "WORLD", "Recipe"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What a demo trains, and how its minutes are shared out."""

    minutes: float
    depth: int
    aspect_ratio: int
    head_dim: int
    context_len: int
    vocab_size: int
    batch_tokens: int
    lr_scale: float
    pretrain_share: float
    """Of the minutes."""
    midtrain_share: float
    sft_share: float
    midtrain_lr: float
    sft_lr: float
    sft_rows: int
    """Conversations per step of fine-tuning."""
    text_share: float
    """Of mid-training's tokens."""
    most_tokens: int | None
    """More pretraining than this teaches nothing more."""


WORLD = Recipe(
    minutes=5.6,
    depth=4,
    aspect_ratio=24,
    head_dim=24,
    context_len=256,
    vocab_size=1024,
    batch_tokens=2048,
    lr_scale=5.0,
    pretrain_share=0.36,
    midtrain_share=0.48,
    sft_share=0.16,
    midtrain_lr=3.0,
    sft_lr=0.35,
    sft_rows=64,
    text_share=0.35,
    most_tokens=4_000_000,
)

OWN = Recipe(
    minutes=10.0,
    depth=4,
    aspect_ratio=64,
    head_dim=64,
    context_len=512,
    vocab_size=4096,
    batch_tokens=8192,
    lr_scale=1.5,
    pretrain_share=0.65,
    midtrain_share=0.2,
    sft_share=0.15,
    midtrain_lr=1.0,
    sft_lr=1.0,
    sft_rows=32,
    text_share=0.2,
    most_tokens=None,
)
