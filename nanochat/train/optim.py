"""Gradients -> new weights: AdamW for tables and scalars, Muon for matrices.
in: a model whose backward has run   out: its weights moved   who calls: loop.py

The optimizer owns the float32 masters of all weights.  Matrices of one shape are slices of one
stacked tensor, so that Muon works on them together.  When the model computes in a narrower dtype
its weights are copies of the masters, written once a step; gradients are summed in float32 as they
appear.
Several ranks share the work: each updates the pieces it owns, of which it alone has moments and
masters, and gives them to the others (sharding.py).  One rank owns everything, and sends nothing.
Source: karpathy/nanochat GPT.setup_optimizer and nanochat/optim.py at 2f09686 (V3), 6ed7d1d (V4),
        92d63d4 (V5).
Read next: recipes.py (the numbers), muon.py, sharding.py; tests/twins/optim.py (the slow truth).
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nanochat.common.dist import World
from nanochat.model.gpt import GPT
from nanochat.train.moments import MOMENTS, complete_state, moment_shape
from nanochat.train.muon import MuonStep, muon_update
from nanochat.train.pieces import Piece, Storage, cut_pieces, names_by_storage
from nanochat.train.recipes import (
    ADAM_EPS,
    RECIPES,
    AdamRecipe,
    OptimizerRecipe,
    Rates,
    Role,
    rates_of,
    role_of,
)
from nanochat.train.sharding import Gathered, Reducer, place_in_backward

__all__ = ["RECIPES", "AdamRecipe", "Optimizer", "OptimizerRecipe", "Rates", "Role", "role_of"]


class Optimizer:
    """Moves a model's weights.

    `lr_scale` multiplies all rates that scale with the batch; the model's compute dtype is fixed
    here: its matrices and tables become copies in `compute_dtype` of the masters kept in their
    first dtype.  In a world of several ranks every method but the hooks is called by all of them.
    """

    is_sharded = False
    """Every rank has the whole model."""

    def __init__(
        self,
        model: GPT,
        recipe: OptimizerRecipe,
        *,
        lr_scale: float = 1.0,
        compute_dtype: torch.dtype | None = None,
        world: World | None = None,
    ) -> None:
        self.recipe, self.lr_scale, self._world = recipe, lr_scale, world or World()
        self._parameters = dict(model.named_parameters())
        self._has_grad = dict.fromkeys(self._parameters, False)
        self._rates = rates_of(recipe, self._parameters, model.config.model_dim, lr_scale)
        compute_dtype = compute_dtype or model.embedding.weight.dtype
        self.compute_dtype = compute_dtype
        """What matrices are multiplied in."""
        # In float32 runs V3 and V4 round inside of muon_update.
        is_narrow = compute_dtype in (torch.bfloat16, torch.float16)
        self._muon_dtype = torch.bfloat16 if is_narrow else compute_dtype
        shapes = {name: each.shape for name, each in self._parameters.items()}
        self._storages = [Storage(n, self._parameters) for n in names_by_storage(shapes)]
        self._grads = {n: grad for each in self._storages for n, grad in each.grads_by_name()}
        self._pieces = cut_pieces(self._storages, self._world.size)
        for storage in self._storages:
            storage.narrow(compute_dtype, is_shared=self._world.size > 1)
        for storage in self._storages:
            for name, weight in storage.weights_by_name():
                self._parameters[name].data = weight
        for piece in self._pieces:
            piece.settle(self._world.rank)
        for storage in self._storages:
            storage.release()
        self._segments: dict[str, list[tuple[Piece, slice, int | slice]]] = {}
        for piece in self._pieces:
            for name, part, index in piece.segments():
                self._segments.setdefault(name, []).append((piece, part, index))
        self._own = [piece for piece in self._pieces if piece.owner == self._world.rank]
        self._adam = self._adamw()
        self.num_sent_in_backward = 0
        """Sums that had begun when the last backward pass ended."""
        self._num_updates = torch.zeros((), device=model.embedding.weight.device)
        self._reducer = self._make_reducer(model.config.num_layers)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._take_grad(name))
            for name, parameter in self._parameters.items()
        ]

    # -------------------------------------------------------------------------------- weights

    def masters(self) -> Mapping[str, Tensor]:
        """All weights in full precision, by name, in the model's order: what a checkpoint holds.

        Where ranks share narrowed weights this is a Gathered.
        """
        if self._world.size == 1 or not any(storage.is_narrow for storage in self._storages):
            weights = {n: w for s in self._storages for n, w in s.masters_by_name()}
            return {name: weights[name] for name in self._parameters}
        return Gathered(list(self._parameters), lambda name: self._gather(name, "master"))

    @torch.no_grad()
    def load_masters(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from these weights, which must be all of the model's, by name and shape."""
        assert weights.keys() == self._parameters.keys(), "weights of another model"
        for piece in self._pieces:
            for name, part, index in piece.segments():
                source = weights[name][part]
                piece.weights[index].copy_(source)
                if piece.master is not None:
                    piece.master[index].copy_(source)

    def digest(self) -> str:
        """Of the weights that the model computes with: equal weights, equal digests, whatever the
        device; it finds what differs by accident."""
        words = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        sums = [
            storage.weights.view(words[storage.weights.element_size()]).sum(dtype=torch.int64)
            for storage in self._storages
        ]
        return hashlib.sha256(str(torch.stack(sums).tolist()).encode()).hexdigest()

    @property
    def num_steps(self) -> int:
        """Updates applied; those that were not good do not count."""
        return int(self._num_updates)

    def rates_by_role(self) -> dict[Role, float]:
        """Learning rates after scaling to width and batch, before the schedule."""
        return dict(self._rates)

    # ------------------------------------------------------------------------------ gradients

    def expect_last_part(self) -> None:
        """The next backward pass is the last before the update: what it finishes may be summed over
        the ranks at once."""
        self._reducer.expect()

    @torch.no_grad()
    def gradients(self) -> list[Tensor]:
        """The gradients gathered since the last update, summed over the ranks, where they lie: all
        of them, or those that this rank owns.  Zero where there were none."""
        for name, has_grad in self._has_grad.items():
            if not has_grad:
                self._grads[name].zero_()
        self._has_grad = dict.fromkeys(self._parameters, True)
        self.num_sent_in_backward = self._reducer.num_sent
        self._reducer.finish()
        return [piece.grads for piece in self._own]

    def discard_gradients(self) -> None:
        """Forget the gradients gathered so far, also of a backward pass that did not end."""
        self._has_grad = dict.fromkeys(self._parameters, False)
        for parameter in self._parameters.values():
            parameter.grad = None

    # --------------------------------------------------------------------------------- update

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
        works = [self._publish(piece) for piece in self._pieces if not piece.is_matrix]
        muon = MuonStep(self._rates["matrix"] * rates.lr, rates.momentum, rates.weight_decay)
        for piece in self._pieces:  # what is done travels while the next one is computed
            if piece.is_matrix:
                self._muon_step(piece, muon, is_good)
                works.append(self._publish(piece))
        self._num_updates += 1.0 if is_good is None else is_good
        self._has_grad = dict.fromkeys(self._parameters, False)
        for work in works:
            if work is not None:
                work.wait()

    def _adam_step(self, rates: Rates, is_good: Tensor | None) -> None:
        for group in self._adam.param_groups:
            group["lr"] = group["initial_lr"] * rates.lr
            for piece in group["pieces"]:
                piece.master.grad = piece.grads if self._has_grad[piece.names[0]] else None
        # PyTorch's fused AdamW leaves everything as it is where found_inf is 1.
        self._adam.found_inf = None if is_good is None else (~is_good).float()  # type: ignore[attr-defined]
        self._adam.step()

    def _muon_step(self, piece: Piece, muon: MuonStep, is_good: Tensor | None) -> None:
        if piece.master is None:
            return
        assert all(self._has_grad[name] for name in piece.names), "a matrix without a gradient"
        assert piece.first is not None and piece.second is not None
        muon_update(
            piece.master,
            piece.grads,
            piece.first,
            piece.second,
            muon,
            self.recipe.muon,
            self._muon_dtype,
            is_good,
        )

    def _publish(self, piece: Piece) -> Any:
        """From the owner's master to everybody's weights; what is to be waited for, or None."""
        if piece.master is not None and piece.weights.dtype != piece.master.dtype:
            piece.weights.copy_(piece.master)
        if self._world.size == 1:
            return None
        return self._world.start_copy_from(piece.owner, piece.weights)

    # -------------------------------------------------------------------------------- moments

    def state(self) -> Mapping[str, Tensor]:
        """Moments by weight name: `<name>/first`, `<name>/second`; Muon's and AdamW's alike.

        Where ranks share them this is a Gathered.
        """
        if self._world.size > 1:
            has_moved = self.num_steps > 0  # AdamW has no moments before
            names = [n for n in self._parameters if has_moved or role_of(n) == "matrix"]
            keys = [f"{name}/{which}" for name in names for which in MOMENTS]
            return Gathered(["num_steps", *keys], self._gather_state)
        state: dict[str, Tensor] = {"num_steps": torch.tensor(self.num_steps)}
        for piece in self._own:
            first, second = self._moments(piece)
            if first is None or second is None:
                continue
            for name, _, index in piece.segments():
                state[f"{name}/first"], state[f"{name}/second"] = first[index], second[index]
        return state

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned, whatever the number of ranks was.

        Raises: CheckpointError naming moments that are missing or have another shape.
        """
        state = complete_state(state, {name: grads.shape for name, grads in self._grads.items()})
        self._num_updates.fill_(float(state["num_steps"]))
        for piece in self._own:
            assert piece.master is not None
            if not piece.is_matrix:
                step = torch.tensor(float(state["num_steps"]), device=piece.master.device)
                first, second = torch.empty_like(piece.master), torch.empty_like(piece.master)
                self._adam.state[piece.master] = {
                    "step": step,
                    "exp_avg": first,
                    "exp_avg_sq": second,
                }
            for moment, which in zip(self._moments(piece), MOMENTS, strict=True):
                assert moment is not None
                for name, part, index in piece.segments():
                    moment[index].copy_(state[f"{name}/{which}"][part])

    def state_bytes(self) -> int:
        """What this rank holds of moments, and of masters beside the model's weights."""
        tensors = [moment for piece in self._own for moment in self._moments(piece)]
        tensors += [
            piece.master
            for piece in self._own
            if piece.master is not None and piece.master.dtype != piece.weights.dtype
        ]
        return sum(each.numel() * each.element_size() for each in tensors if each is not None)

    def _moments(self, piece: Piece) -> tuple[Tensor | None, Tensor | None]:
        if piece.is_matrix or piece.master is None:
            return piece.first, piece.second
        moments = self._adam.state.get(piece.master, {})
        return moments.get("exp_avg"), moments.get("exp_avg_sq")

    def _gather_state(self, key: str) -> Tensor:
        if key == "num_steps":
            return torch.tensor(self.num_steps)
        name, which = key.rsplit("/", 1)
        return self._gather(name, which)

    @torch.no_grad()
    def _gather(self, name: str, which: str) -> Tensor:
        """One weight's master or moment, put together from the owners' pieces at every rank."""
        like = self._grads[name]
        whole = like.new_empty(moment_shape(name, which, like.shape))
        for piece, part, index in self._segments[name]:
            target = whole[part]
            if piece.master is not None:
                first, second = self._moments(piece)
                source = {"master": piece.master, "first": first, "second": second}[which]
                assert source is not None, f"{name} has no {which} here"
                target.copy_(source[index])
            self._world.start_copy_from(piece.owner, target).wait()
        return whole

    # ----------------------------------------------------------------------------- who has what

    def _make_reducer(self, num_layers: int) -> Reducer:
        if self._world.size == 1:
            return Reducer([], self._world)

        def when(piece: Piece) -> int:
            return max(place_in_backward(name, num_layers) for name in piece.names)

        pieces = sorted(self._pieces, key=when)
        return Reducer(
            [(piece.grads, piece.owner, frozenset(piece.names)) for piece in pieces], self._world
        )

    def _adamw(self) -> torch.optim.AdamW:
        groups = []
        for role, adam in self.recipe.adam.items():
            pieces = [piece for piece in self._own if piece.role == role]
            if pieces:
                groups.append(
                    {
                        "params": [piece.master for piece in pieces],
                        "pieces": pieces,
                        "initial_lr": self._rates[role],
                        "lr": self._rates[role],
                        "betas": adam.betas,
                        "weight_decay": adam.weight_decay,
                    }
                )
        # A rank may own no table; PyTorch wants a weight all the same.
        groups = groups or [{"params": [torch.zeros(0)], "pieces": [], "initial_lr": 0.0}]
        return torch.optim.AdamW(groups, eps=ADAM_EPS, fused=True)

    def _take_grad(self, name: str):  # type: ignore[no-untyped-def]
        grads, came = self._grads[name], self._reducer.came

        def take(parameter: Tensor) -> None:
            """The first micro-step's gradient replaces the sum, later ones are added, in the
            masters' dtype."""
            assert parameter.grad is not None
            if self._has_grad[name]:
                grads.add_(parameter.grad)
            else:
                grads.copy_(parameter.grad)
                self._has_grad[name] = True
            parameter.grad = None
            came(name)

        return take


def _is_here(tensor: Tensor) -> bool:
    """Whether reading a tensor waits for no accelerator."""
    return tensor.device.type == "cpu"
