"""The parity folders -> parity_* beside this file.   in: the folder `shared`
out: what karpathy/nanochat computed at five commits, thinned until it is small

Run `python -m tests.golden.parity ../shared` after the parity folders changed; review the diff.
`Figures` reads either source, so that a test runs on the thin figures everywhere and on the full
ones where the folder is.  Kept for every generation: the final weights, the logits at every 8th
position (every 25th of the long texts), all losses.  Kept for V5 alone: first weights, their
gradients (tensors of zeros left out of both), and the optimizer's moments.

The folders' forward.safetensors names x and y, but its logits and losses are those of another
batch: x and y are the last training batch.  The true tokens can be computed: a target is the only
token whose negative log-likelihood under the logits is the loss given (in V2, where no two tokens
of a position are alike enough), an input is the target before it, and the first input is the only
token after which the first logits are these.  `recovered_rows` does it, and
tests/model/test_parity.py proves what it found.
Read next: tests/model/test_parity.py, tests/train/test_resume.py (who read these).
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.checkpoint import reference
from nanochat.model.config import Generation
from nanochat.model.gpt import GPT

HERE = Path(__file__).parent
FOLDERS: dict[Generation, str] = {
    "v1": "v1-2025-10",
    "v2": "v2-2026-01",
    "v3": "v3-2026-02",
    "v4": "v4-2026-03",
    "v5": "v5-2026-07",
}
GENERATIONS = tuple(FOLDERS)
NUMBERS = ("init_loss", "resume_losses", "mean_loss", "num_params", "flops_per_token")
LOGITS_EVERY = 8  # of the forward batch, in the golden files
LONG_EVERY = 25
SHARED_LONG_EVERY = 5  # what the parity folders themselves keep
MOMENTS = {
    "first": ("exp_avg", "momentum_buffer"),
    "second": ("exp_avg_sq", "second_momentum_buffer"),
}


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one generation computed; tensors under karpathy/nanochat's names."""

    generation: Generation
    meta: Path
    """The checkpoint's meta file."""
    numbers: dict[str, Any]
    """NUMBERS, by name."""
    weights: dict[str, Tensor]
    """After step 30, in the order of the checkpoint."""
    rows: Tensor
    """(2, 257), the forward batch: inputs are rows[:, :-1], targets rows[:, 1:]."""
    logits_every: int
    logits: Tensor
    """(2, positions, vocabulary) of the forward batch, at every `logits_every`-th position."""
    losses: Tensor
    """(2, 256) of the forward batch."""
    long_every: int
    over_context: tuple[Tensor, Tensor]
    """400 tokens, and their logits through the model of context 256."""
    long: tuple[Tensor, Tensor]
    """1,400 tokens, and their logits through the same weights at context 1,024."""
    batches: Tensor
    """(60, 2, 257): 30 that led to the weights, 30 that go on from them; as `rows`."""
    first_weights: dict[str, Tensor] | None
    first_grads: dict[str, Tensor] | None
    """Of batch 0 at the first weights."""
    optimizer: dict[str, Any] | None
    """The optimizer's state after step 30, as its file holds it."""


def from_shared(shared: Path, generation: Generation) -> Figures:
    """Everything one parity folder holds."""
    folder = shared / "parity" / FOLDERS[generation]
    files = reference.find_files(folder / "base" / "base_checkpoints" / "d4")
    assert files is not None and files.optimizer is not None, f"{folder}: no checkpoint"
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    forward = load_file(folder / "forward.safetensors")
    long = load_file(folder / "long.safetensors")
    tokens = _shared_tokens(folder)
    return Figures(
        generation=generation,
        meta=files.meta,
        numbers={name: expected[name] for name in NUMBERS},
        weights=reference.load_weights(files.model),
        rows=_tokens()["rows"],
        logits_every=1,
        logits=forward["logits"],
        losses=forward["loss_per_token"],
        long_every=SHARED_LONG_EVERY,
        over_context=(tokens["over_context"], long["over_context_logits_every_5"]),
        long=(tokens["long"], long["long_logits_every_5"]),
        batches=tokens["batches"],
        first_weights=load_file(folder / "init_weights.safetensors"),
        first_grads=load_file(folder / "init_grads.safetensors"),
        optimizer=torch.load(files.optimizer, weights_only=True),
    )


def from_golden(generation: Generation) -> Figures:
    """What the golden files keep of one."""
    kept = json.loads((HERE / "parity_figures.json").read_text(encoding="utf-8"))[generation]
    tokens = _tokens()
    logits = _load(generation, "logits")
    weights = _load(generation, "weights")
    has_all = kept["optimizer"] is not None
    return Figures(
        generation=generation,
        meta=HERE / f"parity_{generation}_meta.json",
        numbers=kept["numbers"],
        weights={name: weights[name] for name in kept["order"]},
        rows=tokens["rows"],
        logits_every=LOGITS_EVERY,
        logits=logits["logits"],
        losses=logits["losses"],
        long_every=LONG_EVERY,
        over_context=(tokens["over_context"], logits["over_context"]),
        long=(tokens["long"], logits["long"]),
        batches=tokens["batches"],
        first_weights=_with_zeros(_load(generation, "init"), weights) if has_all else None,
        first_grads=_with_zeros(_load(generation, "grads"), weights) if has_all else None,
        optimizer=_optimizer(generation, kept["optimizer"]) if has_all else None,
    )


def model_of(figures: Figures, weights: Mapping[str, Tensor], **changes: Any) -> GPT:
    """Our model holding these weights; `changes` replace fields of its config."""
    config = reference.load_config(figures.meta, figures.weights)
    model = GPT(dataclasses.replace(config, **changes))
    model.load_state_dict({reference.name_of(name): weight for name, weight in weights.items()})
    return model


def recovered_rows(shared: Path) -> Tensor:
    """The tokens of the forward batch, (2, 257): see the module's docstring."""
    folder = shared / "parity" / FOLDERS["v2"]
    forward = load_file(folder / "forward.safetensors")
    away = (-forward["logits"].log_softmax(-1) - forward["loss_per_token"][..., None]).abs()
    files = reference.find_files(folder / "base" / "base_checkpoints" / "d4")
    assert files is not None, f"{folder}: no checkpoint"
    weights = reference.load_weights(files.model)
    model = GPT(reference.load_config(files.meta, weights))
    model.load_state_dict({reference.name_of(name): weight for name, weight in weights.items()})
    with torch.inference_mode():
        after_each = model(torch.arange(model.config.vocab_size)[:, None])[:, 0]
    differences = (after_each[None] - forward["logits"][:, :1]).abs().amax(-1)
    return torch.cat((differences.argmin(-1, keepdim=True), away.argmin(-1)), dim=1)


def main(shared: Path) -> None:
    """Write all files."""
    tokens = _shared_tokens(shared / "parity" / FOLDERS["v1"])
    narrow = {name: ids.to(torch.int16) for name, ids in tokens.items()}
    narrow["rows"] = recovered_rows(shared).to(torch.int16)
    save_file(narrow, HERE / "parity_tokens.safetensors")
    kept = {}
    for generation in GENERATIONS:
        for name, ids in _shared_tokens(shared / "parity" / FOLDERS[generation]).items():
            assert torch.equal(ids, tokens[name]), f"{generation} has other {name}"
        kept[generation] = _save(generation, from_shared(shared, generation))
    lines = [f"{json.dumps(generation)}: {json.dumps(entry)}" for generation, entry in kept.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (HERE / "parity_figures.json").write_text(text, encoding="utf-8")


def _save(generation: Generation, figures: Figures) -> dict[str, Any]:
    """The tensors of one generation into files; its entry in parity_figures.json."""
    thin = LONG_EVERY // SHARED_LONG_EVERY
    tensors = {
        "weights": figures.weights,
        "logits": {
            "logits": figures.logits[:, ::LOGITS_EVERY],
            "losses": figures.losses,
            "over_context": figures.over_context[1][::thin],
            "long": figures.long[1][::thin],
        },
    }
    optimizer = None
    if generation == "v5":
        assert figures.first_weights and figures.first_grads and figures.optimizer, "V5 has all"
        tensors["init"] = _without_zeros(figures.first_weights)
        tensors["grads"] = _without_zeros(figures.first_grads)
        states = figures.optimizer["state"]
        for which, keys in MOMENTS.items():
            tensors[which] = {
                f"{number}/{key}": state[key]
                for number, state in states.items()
                for key in keys
                if key in state
            }
        optimizer = {
            "param_groups": figures.optimizer["param_groups"],
            "steps": {number: state["step"] for number, state in states.items() if "step" in state},
        }
    for which, named in tensors.items():
        contiguous = {name: tensor.contiguous() for name, tensor in named.items()}
        save_file(contiguous, HERE / f"parity_{generation}_{which}.safetensors")
    (HERE / f"parity_{generation}_meta.json").write_bytes(figures.meta.read_bytes())
    return {"numbers": figures.numbers, "order": list(figures.weights), "optimizer": optimizer}


def _optimizer(generation: Generation, kept: Mapping[str, Any]) -> dict[str, Any]:
    states: dict[int, dict[str, Any]] = {}
    for which in MOMENTS:
        for name, moment in _load(generation, which).items():
            number, key = name.split("/")
            states.setdefault(int(number), {})[key] = moment
    for number, step in kept["steps"].items():
        states[int(number)]["step"] = step
    return {"state": states, "param_groups": kept["param_groups"]}


def _shared_tokens(folder: Path) -> dict[str, Tensor]:
    """The tokens of a folder; the same in all of them."""
    batches = load_file(folder / "train_batches.safetensors")
    long = load_file(folder / "long.safetensors")
    return {
        "batches": torch.cat((batches["x"], batches["y"][..., -1:]), dim=-1),
        "over_context": long["over_context_tokens"],
        "long": long["long_tokens"],
    }


def _tokens() -> dict[str, Tensor]:
    tokens = load_file(HERE / "parity_tokens.safetensors")
    return {name: ids.long() for name, ids in tokens.items()}


def _load(generation: Generation, which: str) -> dict[str, Tensor]:
    return load_file(HERE / f"parity_{generation}_{which}.safetensors")


def _without_zeros(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.any()}


def _with_zeros(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors.get(name, torch.zeros_like(shape)) for name, shape in like.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
