"""A model that outgrows a device, cut over the ranks.   in: GPT, World   out: its optimizer
who calls: stages.py (through it, the loop)

Every weight, gradient and moment of AdamW is cut by rows, a share at each rank (PyTorch's FSDP2);
a block's weights are brought together while it is computed.  Muon needs whole matrices: gradients
travel to the matrix's owner, who alone has its moments, and come back as directions, by which the
shards move.  Nothing else knows: what is saved and loaded are whole weights and moments by name.
Source: torch.distributed.fsdp.fully_shard; the exchange is that of torchtitan's and dion's Muon.
Read next: optim.py (the same where every rank holds the model).
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from nanochat.common.dist import World
from nanochat.model.gpt import GPT
from nanochat.train.moments import MOMENTS, complete_state, moment_shape
from nanochat.train.muon import MuonStep, muon_apply, muon_direction
from nanochat.train.recipes import ADAM_EPS, OptimizerRecipe, Rates, Role, rates_of, role_of
from nanochat.train.sharding import Gathered, owners, rows_of

__all__ = ["ShardedOptimizer", "shard_model"]


def shard_model(model: GPT, world: World, device: torch.device, compute_dtype: torch.dtype) -> None:
    """Cut a model, whole on every rank in host memory or on the device, over the ranks' devices.

    Shards keep their dtype; the blocks are computed in `compute_dtype`, gradients are summed in the
    shards' dtype.
    """
    mesh = init_device_mesh(device.type, (world.size,))
    wide = model.embedding.weight.dtype
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=wide)
    for part in (*model.value_embeddings.values(), *model.blocks):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    # The head is read after the trunk has returned (loss.py): what is not in a block stays.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):  # sums, where FSDP would take means
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


class ShardedOptimizer:
    """Moves the weights of a model that `shard_model` has cut; to its callers an Optimizer."""

    is_sharded = True
    """Every rank has a share of the model, and all compute in step."""

    def __init__(
        self,
        model: GPT,
        recipe: OptimizerRecipe,
        world: World,
        *,
        compute_dtype: torch.dtype,
        lr_scale: float = 1.0,
    ) -> None:
        self.recipe, self.lr_scale, self._world, self._model = recipe, lr_scale, world, model
        self.compute_dtype = compute_dtype
        is_narrow = compute_dtype in (torch.bfloat16, torch.float16)
        self._muon_dtype = torch.bfloat16 if is_narrow else compute_dtype
        self._parameters: dict[str, DTensor] = {}
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor), f"{name} is not sharded"
            self._parameters[name] = parameter
        self._shards = {n: p.to_local().detach() for n, p in self._parameters.items()}
        self._rates = rates_of(recipe, self._parameters, model.config.model_dim, lr_scale)
        self._groups = list(self._matrix_groups())
        self._adam = self._adamw()
        self._num_updates = torch.zeros((), device=next(iter(self._shards.values())).device)

    # -------------------------------------------------------------------------------- weights

    def masters(self) -> Mapping[str, Tensor]:
        """All weights in full precision, by name, in the model's order."""
        return Gathered(list(self._parameters), lambda name: self._gather(name, self._shards[name]))

    @torch.no_grad()
    def load_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from these weights, which must be all of the model's, by name and shape."""
        assert weights.keys() == self._parameters.keys(), "weights of another model"
        self._reshard()
        for name, shard in self._shards.items():
            shard.copy_(weights[name][self._rows(name)])

    def digest(self) -> str:
        """Of names and shapes: the weights themselves are different on every rank."""
        shapes = [(name, tuple(each.shape)) for name, each in self._parameters.items()]
        return hashlib.sha256(str(shapes).encode()).hexdigest()

    @property
    def num_steps(self) -> int:
        """Updates applied; those that were not good do not count."""
        return int(self._num_updates)

    def rates_by_role(self) -> dict[Role, float]:
        """Learning rates after scaling to width and batch, before the schedule."""
        return dict(self._rates)

    # ------------------------------------------------------------------------------ gradients

    def expect_last_part(self) -> None:
        """Nothing: each part's gradients are summed and cut at once, so that none is held whole."""

    @torch.no_grad()
    def gradients(self) -> list[Tensor]:
        """This rank's rows of the gradients gathered since the last update, summed over the ranks;
        zero where there were none."""
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            assert self._grad(name).shape == self._shards[name].shape
        return [grad for name in self._parameters if (grad := self._grad(name)).numel()]

    def discard_gradients(self) -> None:
        """Forget the gradients gathered so far."""
        for parameter in self._parameters.values():
            parameter.grad = None

    # --------------------------------------------------------------------------------- update

    @torch.no_grad()
    def step(self, rates: Rates, is_good: Tensor | None = None) -> None:
        """One update from the gradients gathered since the last one; they are used up.

        Where `is_good` is false nothing moves.
        """
        if is_good is not None and is_good.device.type == "cpu":
            if not is_good:
                return self.discard_gradients()
            is_good = None
        self.gradients()
        for group in self._adam.param_groups:
            group["lr"] = group["initial_lr"] * rates.lr
            for name in group["names"]:
                self._shards[name].grad = self._grad(name)
        self._adam.found_inf = None if is_good is None else (~is_good).float()  # type: ignore[attr-defined]
        self._adam.step()
        muon = MuonStep(self._rates["matrix"] * rates.lr, rates.momentum, rates.weight_decay)
        for matrices in self._groups:
            self._muon_step(matrices, muon, is_good)
        self._num_updates += 1.0 if is_good is None else is_good
        for shard in self._shards.values():
            shard.grad = None
        self.discard_gradients()
        self._reshard()

    def _muon_step(self, matrices: "_Matrices", muon: MuonStep, is_good: Tensor | None) -> None:
        grads = matrices.to_owners({name: self._grad(name) for name in matrices.names})
        if matrices.num_own:
            grads = muon_direction(
                grads,
                matrices.first,
                matrices.second,
                muon,
                self.recipe.muon,
                self._muon_dtype,
                is_good,
            )
        directions = matrices.from_owners(grads)
        for name in matrices.names:
            muon_apply(self._shards[name], directions[name], muon, matrices.shape, is_good)

    # -------------------------------------------------------------------------------- moments

    def state(self) -> Mapping[str, Tensor]:
        """Moments by weight name: `<name>/first`, `<name>/second`; Muon's and AdamW's alike."""
        has_moved = self.num_steps > 0  # AdamW has no moments before
        names = [n for n in self._parameters if has_moved or role_of(n) == "matrix"]
        return Gathered(
            ["num_steps", *(f"{name}/{which}" for name in names for which in MOMENTS)],
            self._gather_state,
        )

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned, or that of an Optimizer.

        Raises: CheckpointError naming moments that are missing or have another shape.
        """
        state = complete_state(state, {name: each.shape for name, each in self._parameters.items()})
        self._num_updates.fill_(float(state["num_steps"]))
        for group in self._adam.param_groups:
            for name in group["names"]:
                shard, rows = self._shards[name], self._rows(name)
                self._adam.state[shard] = {
                    "step": torch.tensor(float(state["num_steps"]), device=shard.device),
                    "exp_avg": torch.empty_like(shard).copy_(state[f"{name}/first"][rows]),
                    "exp_avg_sq": torch.empty_like(shard).copy_(state[f"{name}/second"][rows]),
                }
        for matrices in self._groups:
            for index, name in enumerate(matrices.own):
                matrices.first[index].copy_(state[f"{name}/first"])
                matrices.second[index].copy_(state[f"{name}/second"])

    def state_bytes(self) -> int:
        """What this rank holds of moments."""
        tensors = [each for matrices in self._groups for each in (matrices.first, matrices.second)]
        for moments in self._adam.state.values():
            tensors += [moments["exp_avg"], moments["exp_avg_sq"]]
        return sum(each.numel() * each.element_size() for each in tensors)

    def _gather_state(self, key: str) -> Tensor:
        if key == "num_steps":
            return torch.tensor(self.num_steps)
        name, which = key.rsplit("/", 1)
        if role_of(name) == "matrix":
            return self._gather_moment(name, which)
        moments = self._adam.state.get(self._shards[name], {})
        empty = torch.empty_like(self._shards[name])  # of a rank without rows
        return self._gather(
            name, moments.get({"first": "exp_avg", "second": "exp_avg_sq"}[which], empty)
        )

    def _gather(self, name: str, shard: Tensor) -> Tensor:
        """One weight, or a moment as large, put together from all ranks' rows at every rank."""
        whole = shard.new_empty(self._parameters[name].shape)
        for rank in range(self._world.size):
            rows = rows_of(len(whole), rank, self._world.size)
            if rows.size:
                target = whole[rows.start : rows.stop]
                if rank == self._world.rank:
                    target.copy_(shard)
                self._world.start_copy_from(rank, target).wait()
        return whole

    def _gather_moment(self, name: str, which: str) -> Tensor:
        matrices = next(each for each in self._groups if name in each.names)
        whole = matrices.first.new_empty(moment_shape(name, which, self._parameters[name].shape))
        owner = matrices.owner_of(name)
        if owner == self._world.rank:
            moments = matrices.first if which == "first" else matrices.second
            whole.copy_(moments[matrices.own.index(name)])
        self._world.start_copy_from(owner, whole).wait()
        return whole

    # ----------------------------------------------------------------------------- who has what

    def _rows(self, name: str) -> slice:
        rows = rows_of(self._parameters[name].shape[0], self._world.rank, self._world.size)
        return slice(rows.start, rows.stop)

    def _grad(self, name: str) -> Tensor:
        grad = self._parameters[name].grad
        assert isinstance(grad, DTensor), f"{name} has no gradient"
        return grad.to_local()

    def _reshard(self) -> None:
        """Let go of weights brought together from older shards."""
        assert isinstance(self._model, FSDPModule)
        self._model.reshard()

    def _matrix_groups(self) -> Iterator["_Matrices"]:
        by_shape: dict[torch.Size, list[str]] = {}
        for name, parameter in self._parameters.items():
            if role_of(name) == "matrix":
                by_shape.setdefault(parameter.shape, []).append(name)
        names = [name for group in by_shape.values() for name in group]
        costs = [self._parameters[name].numel() for name in names]
        owner_of = dict(zip(names, owners(costs, [0] * self._world.size), strict=True))
        for shape, group in by_shape.items():
            like = self._shards[group[0]]
            yield _Matrices({n: owner_of[n] for n in group}, shape, like, self._world)

    def _adamw(self) -> torch.optim.AdamW:
        groups = []
        for role, adam in self.recipe.adam.items():
            names = [n for n, s in self._shards.items() if role_of(n) == role and s.numel()]
            if names:
                groups.append(
                    {
                        "params": [self._shards[name] for name in names],
                        "names": names,
                        "initial_lr": self._rates[role],
                        "lr": self._rates[role],
                        "betas": adam.betas,
                        "weight_decay": adam.weight_decay,
                    }
                )
        # A rank may have no rows of any table; PyTorch wants a weight all the same.
        groups = groups or [{"params": [torch.zeros(0)], "names": [], "initial_lr": 0.0}]
        return torch.optim.AdamW(groups, eps=ADAM_EPS, fused=True)


class _Matrices:
    """All matrices of one shape: who owns which, and the way there and back."""

    def __init__(
        self, owner_by_name: Mapping[str, int], shape: torch.Size, like: Tensor, world: World
    ) -> None:
        self._world, self._owner_by_name = world, owner_by_name
        self.shape: tuple[int, int] = (shape[0], shape[1])
        self.names = sorted(owner_by_name, key=lambda name: owner_by_name[name])
        """Those of the first rank first: as they travel."""
        self.own = [name for name in self.names if owner_by_name[name] == world.rank]
        rows, columns = self.shape
        self.first = like.new_zeros((self.num_own, rows, columns))
        second = (self.num_own, rows, 1) if rows >= columns else (self.num_own, 1, columns)
        self.second = like.new_zeros(second)
        ranks = range(world.size)
        self._rows = [rows_of(rows, rank, world.size).size for rank in ranks]
        my_elements = self._rows[world.rank] * columns
        owned = [list(owner_by_name.values()).count(rank) for rank in ranks]
        self._parts_here = [num * my_elements for num in owned]
        self._parts_there = [self.num_own * num_rows * columns for num_rows in self._rows]

    @property
    def num_own(self) -> int:
        """How many are this rank's."""
        return len(self.own)

    def owner_of(self, name: str) -> int:
        """The rank that has a matrix's moments."""
        return self._owner_by_name[name]

    def to_owners(self, shards: Mapping[str, Tensor]) -> Tensor:
        """This rank's rows of all matrices -> all rows of its own.   Shapes: -> (own, R, C)."""
        sent = torch.cat([shards[name].flatten() for name in self.names])
        came = sent.new_empty(sum(self._parts_there))
        torch_dist.all_to_all_single(came, sent, self._parts_there, self._parts_here)
        columns = self.shape[1]
        parts = [
            part.view(self.num_own, num_rows, columns)
            for part, num_rows in zip(came.split(self._parts_there), self._rows, strict=True)
        ]
        return torch.cat(parts, dim=1)

    def from_owners(self, whole_MRC: Tensor) -> dict[str, Tensor]:
        """The way back: all rows of its own -> this rank's rows of all matrices, by name."""
        sent = torch.cat([part.flatten() for part in whole_MRC.split(self._rows, dim=1)])
        came = sent.new_empty(sum(self._parts_here))
        torch_dist.all_to_all_single(came, sent, self._parts_here, self._parts_there)
        shape = (len(self.names), self._rows[self._world.rank], self.shape[1])
        return dict(zip(self.names, came.view(shape).unbind(), strict=True))
