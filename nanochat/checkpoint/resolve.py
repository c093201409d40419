"""A model reference -> a model.   in: `d12`, `d12/sft`, `d12/sft@1500`, or a directory   out:
Loaded
who calls: engine, train, evals, cli

A directory may be one of our checkpoints, one of our runs or stages, or karpathy/nanochat's
`<kind>_checkpoints/<tag>` with its tokenizer in ../../tokenizer.
Read next: format.py, reference.py.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat.checkpoint import reference as karpathy
from nanochat.checkpoint.format import Checkpoint, find_steps, load_checkpoint
from nanochat.common.config import nearest
from nanochat.common.errors import CheckpointError
from nanochat.common.files import home_dir
from nanochat.model.cost import count_parameters
from nanochat.model.gpt import GPT
from nanochat.tokenizer.reference import load_reference_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["STAGES", "Loaded", "load", "read", "resolve", "restore", "run_directory"]

STAGES = ("pretrain", "midtrain", "sft")  # in the order they are run
CHAT_STAGES = ("midtrain", "sft", "rl")


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model ready to use."""

    model: GPT
    tokenizer: Tokenizer
    path: Path
    stage: str
    step: int

    @property
    def is_chat(self) -> bool:
        """Whether the model has seen conversations."""
        return self.stage in CHAT_STAGES


def run_directory(home: Path | None, run: str) -> Path:
    """Where a run lives.

    Raises: CheckpointError for a name that is no plain folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run):
        raise CheckpointError(
            f"run name {run!r}: expected letters, digits, dots, dashes and underscores"
        )
    return home_dir(home) / "runs" / run


def load(
    reference: str,
    *,
    home: Path | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Loaded:
    """The model and tokenizer that a reference names, verified, in `dtype` on `device`, ready to
    run.

    Raises: CheckpointError saying what was looked for, what there is, and what to do.
    """
    path = resolve(reference, home)
    checkpoint = read(path)
    model = restore(checkpoint, str(path))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(dtype)
    model.to(device or torch.device("cpu")).eval().requires_grad_(False)
    return Loaded(
        model=model,
        tokenizer=checkpoint.tokenizer,
        path=path,
        stage=str(checkpoint.state.get("stage", "pretrain")),
        step=int(checkpoint.state.get("step", 0)),
    )


def resolve(reference: str, home: Path | None = None, *, before: str | None = None) -> Path:
    """The checkpoint directory that a reference names.

    A run alone stands for its last finished stage; with `before`, for the last one before that.
    Raises: CheckpointError if there is none, with the nearest run name.
    """
    as_path = Path(reference).expanduser()
    if reference and as_path.is_dir():
        return _checkpoint_in(as_path)
    match = re.fullmatch(r"(?P<run>[^/@]+)(/(?P<stage>[^/@]+))?(@(?P<step>\d+))?", reference)
    runs = home_dir(home) / "runs"
    if match is None or not (runs / match["run"]).is_dir():
        known = (
            sorted(path.name for path in runs.glob("*") if path.is_dir()) if runs.is_dir() else []
        )
        there = (
            f"runs here: {', '.join(known)}"
            if known
            else "there are no runs yet; nanochat demo makes one"
        )
        raise CheckpointError(
            f"model {reference!r} is neither a directory nor a run in "
            f"{runs}{nearest(reference, known)}: {there}"
        )
    directory = runs / match["run"]
    stage = match["stage"] or _last_stage(directory, before)
    if not (directory / stage).is_dir():
        have = [name for name in STAGES if (directory / name).is_dir()]
        raise CheckpointError(
            f"run {match['run']} has no stage {stage!r}: it has {', '.join(have) or 'none'}"
        )
    return _checkpoint_in(directory / stage, int(match["step"]) if match["step"] else None)


def restore(checkpoint: Checkpoint, where: str) -> GPT:
    """A GPT in float32 holding the checkpoint's weights.

    Raises: CheckpointError naming tensors that are missing, left over or of another shape, and a
            tokenizer that
            does not fit.
    """
    config = checkpoint.config
    if checkpoint.tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {checkpoint.tokenizer.vocab_size} tokens, the model "
            f"{config.vocab_size}"
        )
    # Before anything is made of a size that only the config claims.
    claimed, held = count_parameters(config).total, _num_weights(checkpoint)
    if claimed > 2 * held:
        raise CheckpointError(f"{where}: the config is for {claimed:,} weights, it holds {held:,}")
    with torch.device("meta"):
        model = GPT(config)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.weights.items()}
    if wanted != found:
        names = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )
        first = names[0]
        raise CheckpointError(
            f"{where}: {len(names)} tensors do not fit the config, such as {first}: "
            f"expected {wanted.get(first, 'none')}, found {found.get(first, 'none')}"
        )
    weights = {name: tensor.float() for name, tensor in checkpoint.weights.items()}
    model.load_state_dict(weights, assign=True)  # no second copy, no first weights made for nothing
    return model


def read(path: Path, *, with_optimizer: bool = False) -> Checkpoint:
    """The checkpoint in a directory of either format; moments only from our own.

    Raises: CheckpointError naming the file and the reason.
    """
    files = karpathy.find_files(path)
    if files is None:
        return load_checkpoint(path, with_optimizer=with_optimizer)
    weights = karpathy.load_weights(files.model)
    config = karpathy.load_config(files.meta, weights)
    stage = {"base": "pretrain", "mid": "midtrain", "chatsft": "sft", "chatrl": "rl"}
    kind = path.parent.name.removesuffix("_checkpoints")
    return Checkpoint(
        config=config,
        weights={karpathy.name_of(name): tensor.float() for name, tensor in weights.items()},
        tokenizer=load_reference_tokenizer(_reference_tokenizer(path)),
        state={"stage": stage.get(kind, "pretrain"), "step": files.step},
    )


def _num_weights(checkpoint: Checkpoint) -> int:
    return sum(tensor.numel() for tensor in checkpoint.weights.values())


def _reference_tokenizer(path: Path) -> Path:
    candidates = [
        folder / "tokenizer" / "tokenizer.pkl"
        for folder in (path.resolve().parent.parent, path, path.parent)
    ]
    candidates.append(path / "tokenizer.pkl")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise CheckpointError(f"{path}: no tokenizer.pkl, looked for {', '.join(map(str, candidates))}")


def _last_stage(directory: Path, before: str | None = None) -> str:
    stages = STAGES[: STAGES.index(before)] if before else STAGES
    done = [stage for stage in stages if find_steps(directory / stage)]
    if not done:
        what = f"stage before {before}" if before else "stage"
        raise CheckpointError(f"run {directory.name} has no finished {what}: train it first")
    return done[-1]


def _checkpoint_in(directory: Path, step: int | None = None) -> Path:
    if karpathy.find_files(directory) is not None or (directory / "manifest.json").is_file():
        return directory
    steps = find_steps(directory)
    if not steps and any(find_steps(directory / stage) for stage in STAGES):
        return _checkpoint_in(directory / _last_stage(directory), step)
    if not steps:
        raise CheckpointError(
            f"{directory}: holds no checkpoint (no manifest.json, no model_*.pt, no checkpoints/)"
        )
    if step is None:
        return steps[max(steps)]
    if step not in steps:
        raise CheckpointError(
            f"{directory} has no step {step}: it has {', '.join(map(str, steps))}"
        )
    return steps[step]
