"""Which numbers move which weight.   in: a generation, a weight's name   out: rates, betas, decay
who calls: optim.py, fsdp.py, the stages

Source: karpathy/nanochat GPT.setup_optimizer and nanochat/optim.py at 2f09686 (V3), 6ed7d1d (V4),
        92d63d4 (V5).
Read next: optim.py (who applies them), schedule.py (how they change over a run).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from nanochat.model.config import Generation, GPTConfig
from nanochat.train.muon import MuonRecipe

__all__ = [
    "ADAM_EPS",
    "RECIPES",
    "WIDTH_OF_RATES",
    "AdamRecipe",
    "OptimizerRecipe",
    "Rates",
    "Role",
    "generation_of",
    "rates_of",
    "role_of",
]

Role = Literal["head", "embedding", "value_embedding", "residual", "input", "smear", "matrix"]

ADAM_EPS = 1e-10
# The width at which AdamW's rates were tuned; they scale with its inverse square root.
WIDTH_OF_RATES = 768


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamRecipe:
    """AdamW's numbers for one role, before scaling."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float = 0.0
    scales_with_width: bool = False
    scales_with_batch: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerRecipe:
    """The numbers of one generation, before any scaling to width or batch."""

    adam: Mapping[Role, AdamRecipe]
    muon: MuonRecipe = field(default_factory=MuonRecipe)


def _v3_adam() -> dict[Role, AdamRecipe]:
    return {
        "head": AdamRecipe(lr=0.004, betas=(0.8, 0.95), scales_with_width=True),
        "embedding": AdamRecipe(lr=0.3, betas=(0.8, 0.95), scales_with_width=True),
        "value_embedding": AdamRecipe(lr=0.3, betas=(0.8, 0.95), scales_with_width=True),
        "residual": AdamRecipe(lr=0.005, betas=(0.8, 0.95)),
        "input": AdamRecipe(lr=0.5, betas=(0.96, 0.95)),
    }


def _v5_adam() -> dict[Role, AdamRecipe]:
    return {
        "head": AdamRecipe(lr=0.008, betas=(0.8, 0.96), weight_decay=0.01, scales_with_width=True),
        "embedding": AdamRecipe(
            lr=0.3, betas=(0.8, 0.995), weight_decay=0.001, scales_with_width=True
        ),
        "value_embedding": AdamRecipe(
            lr=0.15, betas=(0.8, 0.995), weight_decay=0.01, scales_with_width=True
        ),
        "residual": AdamRecipe(lr=0.005, betas=(0.8, 0.95), weight_decay=0.05),
        "input": AdamRecipe(lr=0.5, betas=(0.96, 0.95)),
        "smear": AdamRecipe(lr=0.2, betas=(0.8, 0.95), scales_with_batch=False),
    }


_V3 = OptimizerRecipe(
    adam=_v3_adam(),
    muon=MuonRecipe(
        weight_decay=0.2,
        beta2=0.95,
        slack=1.02,
        equilibrate=False,
        renormalize=False,
        always_bfloat16=True,
    ),
)

RECIPES: dict[Generation, OptimizerRecipe] = {
    "v1": _V3,  # V1 and V2 had optimizers of their own; new models of theirs are trained as V3's
    "v2": _V3,
    "v3": _V3,
    "v4": OptimizerRecipe(
        adam=_v5_adam(), muon=MuonRecipe(equilibrate=False, renormalize=False, always_bfloat16=True)
    ),
    "v5": OptimizerRecipe(adam=_v5_adam()),
}


@dataclass(frozen=True, slots=True)
class Rates:
    """What the schedule says for this step."""

    lr: float = 1.0
    """Multiplies every learning rate."""
    momentum: float = 0.95
    """Muon's."""
    weight_decay: float = 0.0
    """Muon's; AdamW's are constant."""


def role_of(name: str) -> Role:
    """What part a weight plays, by its name in GPT."""
    match name.split("."):
        case ["head", _]:
            return "head"
        case ["embedding", _]:
            return "embedding"
        case ["value_embeddings", *_]:
            return "value_embedding"
        case ["residual_lambdas"]:
            return "residual"
        case ["input_lambdas"]:
            return "input"
        case ["smear_gate", _] | ["smear_lambda"] | ["backout_lambda"]:
            return "smear"
    assert name.startswith("blocks."), f"no role for {name}"
    return "matrix"


def generation_of(config: GPTConfig) -> Generation:
    """Whose optimizer fits a model: decided by what it has."""
    if config.smear_channels is not None:
        return "v5"
    if config.value_embedding is not None:
        return "v4" if config.qk_scale != 1.0 else "v3"
    return "v2" if config.residual_lambdas else "v1"


def rates_of(
    recipe: OptimizerRecipe, names: Iterable[str], model_dim: int, lr_scale: float
) -> dict[Role, float]:
    """Learning rates by role after scaling to width and batch, before the schedule, of the roles
    that the weights of these names play."""
    present = {role_of(name) for name in names}
    width_scale = (model_dim / WIDTH_OF_RATES) ** -0.5
    rates: dict[Role, float] = {
        role: adam.lr
        * (width_scale if adam.scales_with_width else 1.0)
        * (lr_scale if adam.scales_with_batch else 1.0)
        for role, adam in recipe.adam.items()
        if role in present
    }
    rates["matrix"] = recipe.muon.lr * lr_scale
    return rates
