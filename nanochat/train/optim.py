"""Gradients -> new weights: AdamW for tables and scalars, Muon for matrices.
in: a model whose backward has run   out: its weights moved   who calls: loop.py

The optimizer owns the float32 masters of all weights.  Matrices of one shape are slices of one
stacked tensor,
so that Muon works on them together and nothing is gathered or scattered.  When the model computes
in a narrower
dtype its weights are copies of the masters, written once a step; gradients are summed in float32
as they appear.
Source: karpathy/nanochat GPT.setup_optimizer and nanochat/optim.py at 2f09686 (V3), 6ed7d1d (V4),
        92d63d4 (V5).
Read next: muon.py, schedule.py; tests/twins/optim.py (the slow truth).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nanochat.common.errors import CheckpointError
from nanochat.model.config import Generation
from nanochat.model.gpt import GPT
from nanochat.train.muon import MuonRecipe, MuonStep, muon_update

__all__ = ["RECIPES", "AdamRecipe", "Optimizer", "OptimizerRecipe", "Rates", "Role", "role_of"]

Role = Literal["head", "embedding", "value_embedding", "residual", "input", "smear", "matrix"]

ADAM_EPS = 1e-10
WIDTH_OF_RATES = (
    768  # the width at which AdamW's rates were tuned; they scale with its inverse square root
)


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


class Optimizer:
    """Moves a model's weights.

    `lr_scale` multiplies all rates that scale with the batch; the model's compute dtype is fixed
    here: its
    matrices and tables become copies in `compute_dtype` of the masters kept in their first dtype.
    """

    def __init__(
        self,
        model: GPT,
        recipe: OptimizerRecipe,
        *,
        lr_scale: float = 1.0,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        self.recipe, self.lr_scale = recipe, lr_scale
        self._parameters = dict(model.named_parameters())
        self._masters: dict[str, Tensor] = {}
        self._grads: dict[str, Tensor] = {}
        self._has_grad = dict.fromkeys(self._parameters, False)
        self._width_scale = (model.config.model_dim / WIDTH_OF_RATES) ** -0.5
        compute_dtype = compute_dtype or model.embedding.weight.dtype
        # In float32 runs V3 and V4 round inside of muon_update.
        is_narrow = compute_dtype in (torch.bfloat16, torch.float16)
        self._muon_dtype = torch.bfloat16 if is_narrow else compute_dtype
        self._muon = [_MuonGroup(names, self._parameters) for names in self._matrices_by_shape()]
        for group in self._muon:
            self._masters.update(group.weights_by_name())
            self._grads.update(group.grads_by_name())
        self._adam = self._adamw()
        self._publish_dtype(compute_dtype)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._take_grad(name))
            for name, parameter in self._parameters.items()
        ]

    def masters(self) -> dict[str, Tensor]:
        """All weights in full precision, by name, in the model's order: what a checkpoint holds."""
        return {name: self._masters[name].detach() for name in self._parameters}

    @property
    def num_steps(self) -> int:
        """Updates applied; those that were not good do not count."""
        steps = next((state["step"] for state in self._adam.state.values()), None)
        return 0 if steps is None else int(steps)

    def load_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from these weights, which must be all of the model's, by name and shape."""
        assert weights.keys() == self._masters.keys(), "weights of another model"
        for name, master in self._masters.items():
            master.copy_(weights[name])
        self._publish()

    @torch.no_grad()
    def gradients(self) -> list[Tensor]:
        """The gradients gathered since the last update, where they lie; zero where there were
        none."""
        for name, has_grad in self._has_grad.items():
            if not has_grad:
                self._grads[name].zero_()
        self._has_grad = dict.fromkeys(self._parameters, True)
        tables = [self._grads[name] for name in self._parameters if role_of(name) != "matrix"]
        return [*tables, *(group.grads_MRC for group in self._muon)]

    @torch.no_grad()
    def step(self, rates: Rates, is_good: Tensor | None = None) -> None:
        """One update from the gradients gathered since the last one; they are used up.

        Where `is_good` is false nothing moves, neither weights nor moments.  On an accelerator that
        is decided there, so that nobody waits for it.
        """
        if is_good is not None and _is_here(is_good):
            if not is_good:
                return self.discard_gradients()
            is_good = None
        self._adam_step(rates, is_good)
        muon = MuonStep(
            self.recipe.muon.lr * self.lr_scale * rates.lr, rates.momentum, rates.weight_decay
        )
        for matrices in self._muon:
            assert all(self._has_grad[name] for name in matrices.names), (
                "a matrix without a gradient"
            )
            muon_update(
                matrices.weights_MRC,
                matrices.grads_MRC,
                matrices.momentum_MRC,
                matrices.variance,
                muon,
                self.recipe.muon,
                self._muon_dtype,
                is_good,
            )
        self._has_grad = dict.fromkeys(self._parameters, False)
        self._publish()

    def _adam_step(self, rates: Rates, is_good: Tensor | None) -> None:
        for group in self._adam.param_groups:
            group["lr"] = group["initial_lr"] * rates.lr
            for master in group["params"]:
                name = group["names"][id(master)]
                master.grad = self._grads[name] if self._has_grad[name] else None
        # PyTorch's fused AdamW leaves everything as it is where found_inf is 1.
        self._adam.found_inf = None if is_good is None else (~is_good).float()  # type: ignore[attr-defined]
        self._adam.step()

    def discard_gradients(self) -> None:
        """Forget the gradients gathered so far, also of a backward pass that did not end."""
        self._has_grad = dict.fromkeys(self._parameters, False)
        for parameter in self._parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Moments by weight name: `<name>/first`, `<name>/second`; Muon's and AdamW's alike."""
        state: dict[str, Tensor] = {"num_steps": torch.tensor(self.num_steps)}
        for group in self._adam.param_groups:
            for master in group["params"]:
                moments = self._adam.state.get(master, {})
                if moments:
                    name = group["names"][id(master)]
                    state[f"{name}/first"], state[f"{name}/second"] = (
                        moments["exp_avg"],
                        moments["exp_avg_sq"],
                    )
        for matrices in self._muon:
            for index, name in enumerate(matrices.names):
                state[f"{name}/first"], state[f"{name}/second"] = (
                    matrices.momentum_MRC[index],
                    matrices.variance[index],
                )
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned.

        Raises: CheckpointError naming moments that are missing or have another shape.
        """
        wanted = {"num_steps"} | {
            f"{name}/{which}" for name in self._parameters for which in ("first", "second")
        }
        if missing := sorted(wanted - set(state)):
            raise CheckpointError(
                f"optimizer state lacks {len(missing)} moments, such as {missing[0]}"
            )
        num_steps = float(state["num_steps"])
        for group in self._adam.param_groups:
            for master in group["params"]:
                name = group["names"][id(master)]
                self._adam.state[master] = {
                    "step": torch.tensor(num_steps, device=master.device),
                    "exp_avg": _moment(state, f"{name}/first", master),
                    "exp_avg_sq": _moment(state, f"{name}/second", master),
                }
        for matrices in self._muon:
            for index, name in enumerate(matrices.names):
                matrices.momentum_MRC[index] = _moment(
                    state, f"{name}/first", matrices.momentum_MRC[index]
                )
                matrices.variance[index] = _moment(
                    state, f"{name}/second", matrices.variance[index]
                )

    def rates_by_role(self) -> dict[Role, float]:
        """Learning rates after scaling to width and batch, before the schedule."""
        present = {role_of(name) for name in self._parameters}
        rates: dict[Role, float] = {
            role: self._adam_lr(role) for role in self.recipe.adam if role in present
        }
        rates["matrix"] = self.recipe.muon.lr * self.lr_scale
        return rates

    def _adam_lr(self, role: Role) -> float:
        adam = self.recipe.adam[role]
        lr = adam.lr * (self._width_scale if adam.scales_with_width else 1.0)
        return lr * (self.lr_scale if adam.scales_with_batch else 1.0)

    def _matrices_by_shape(self) -> Iterable[list[str]]:
        by_shape: dict[torch.Size, list[str]] = {}
        for name, parameter in self._parameters.items():
            if role_of(name) == "matrix":
                by_shape.setdefault(parameter.shape, []).append(name)
        return by_shape.values()

    def _adamw(self) -> torch.optim.AdamW:
        groups = []
        for role, adam in self.recipe.adam.items():
            names = [name for name in self._parameters if role_of(name) == role]
            for name in names:
                self._masters[name] = self._parameters[name].detach().clone()
                self._grads[name] = torch.empty_like(self._masters[name])
            if names:
                groups.append(
                    {
                        "params": [self._masters[name] for name in names],
                        "names": {id(self._masters[name]): name for name in names},
                        "initial_lr": self._adam_lr(role),
                        "lr": self._adam_lr(role),
                        "betas": adam.betas,
                        "weight_decay": adam.weight_decay,
                    }
                )
        return torch.optim.AdamW(groups, eps=ADAM_EPS, fused=True)

    def _publish_dtype(self, compute_dtype: torch.dtype) -> None:
        """Matrices and tables of the model take the compute dtype; where that is the masters',
        they share memory."""
        for name, parameter in self._parameters.items():
            master = self._masters[name]
            is_scalar = role_of(name) in ("residual", "input", "smear")
            parameter.data = (
                master if is_scalar or master.dtype == compute_dtype else master.to(compute_dtype)
            )
        self._copies = [
            (parameter.data, self._masters[name])
            for name, parameter in self._parameters.items()
            if parameter.dtype != self._masters[name].dtype
        ]

    def _publish(self) -> None:
        if self._copies:
            copies, masters = zip(*self._copies, strict=True)
            torch._foreach_copy_(list(copies), list(masters))

    def _take_grad(self, name: str):  # type: ignore[no-untyped-def]
        def take(parameter: Tensor) -> None:
            """The first micro-step's gradient replaces the sum, later ones are added, in the
            masters' dtype."""
            assert parameter.grad is not None
            if self._has_grad[name]:
                self._grads[name].add_(parameter.grad)
            else:
                self._grads[name].copy_(parameter.grad)
                self._has_grad[name] = True
            parameter.grad = None

        return take


def _is_here(tensor: Tensor) -> bool:
    """Whether reading a tensor waits for no accelerator."""
    return tensor.device.type == "cpu"


class _MuonGroup:
    """Matrices of one shape, stacked: weights, gradients and moments."""

    def __init__(self, names: list[str], parameters: Mapping[str, Tensor]) -> None:
        self.names = names
        self.weights_MRC = torch.stack([parameters[name].detach() for name in names])
        self.grads_MRC = torch.empty_like(self.weights_MRC)
        self.momentum_MRC = torch.zeros_like(self.weights_MRC)
        _, rows, columns = self.weights_MRC.shape
        shape = (len(names), rows, 1) if rows >= columns else (len(names), 1, columns)
        self.variance = self.weights_MRC.new_zeros(shape)

    def weights_by_name(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.weights_MRC.unbind(), strict=True))

    def grads_by_name(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.grads_MRC.unbind(), strict=True))


def _moment(state: Mapping[str, Tensor], key: str, like: Tensor) -> Tensor:
    value = state[key]
    if value.shape != like.shape:
        raise CheckpointError(
            f"optimizer state {key} has shape {tuple(value.shape)}, expected {tuple(like.shape)}"
        )
    return value.to(device=like.device, dtype=like.dtype).clone()
