"""nanochat import   in: a model of another program   out: a run   who calls: cli.main

Read next: checkpoint/reference.py and checkpoint/huggingface.py (what is read), hub.py (hf:...).
"""

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from nanochat.cli.terminal import neutralize
from nanochat.common.config import CommonOptions
from nanochat.common.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from nanochat.checkpoint.format import Checkpoint

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Make a run of a model from elsewhere: karpathy/nanochat's files, or Hugging Face's.

    Moments of karpathy/nanochat's optimizer come along where they can be read (since January 2026),
    so that training can go on.  Nothing in the files is run.
    """

    source: tyro.conf.Positional[str]
    """A directory, or hf:org/name[@revision] on the Hugging Face Hub."""
    run: str
    """Name of the run to make."""
    stage: Literal["pretrain", "midtrain", "sft", "rl"] | None = None
    """Which stage it is. None: what the source says."""
    tag: str | None = None
    """Which model of a karpathy/nanochat folder, such as d12. None: the deepest; on the Hub, that
    in the source's own folder."""
    step: int | None = None
    """Which step of karpathy/nanochat's. None: the last."""
    softcap: float | None = None
    """What logits are capped at. None: 15; only models of 2 to 9 March 2026 had 20."""
    window_pattern: str | None = None
    """Windows over the layers, such as SSSL, where karpathy/nanochat's files say nothing of them.
    None: what its base model says, or the usual one."""
    alias: tuple[str, ...] = ()
    """OLD=NEW for a tensor that a fork calls otherwise than karpathy/nanochat; * is the layer."""
    optimizer: bool = True
    """Bring the moments along; --no-optimizer where they are incomplete."""
    overwrite: bool = False
    """Replace the stage if the run has it already."""


def run(config: Config) -> int:
    """0 once the run has the checkpoint.

    Raises: CheckpointError for the source, ConfigError for the run.
    """
    from nanochat.checkpoint.fit import check_vocabulary, check_weights
    from nanochat.checkpoint.format import save_checkpoint, step_path
    from nanochat.checkpoint.huggingface import is_huggingface
    from nanochat.checkpoint.resolve import run_directory

    directory = run_directory(config.home, config.run)
    path, checkpoint = _read(config)
    if is_huggingface(path):  # the other reader has checked
        check_vocabulary(checkpoint.config, checkpoint.tokenizer.vocab_size, str(path))
        check_weights(checkpoint.config, checkpoint.weights, str(path))
    stage, step = str(checkpoint.state["stage"]), int(checkpoint.state["step"])
    if (directory / stage).exists() and not config.overwrite:
        raise ConfigError(
            f"run {config.run} has {stage} already: choose another --run, or pass --overwrite"
        )
    target = step_path(directory / stage / "checkpoints", step)
    with _set_aside(directory / stage):
        save_checkpoint(target, checkpoint)
    notes = checkpoint.state["imported"]["notes"]
    if config.json:
        print(
            json.dumps(
                {"model": f"{config.run}/{stage}@{step}", "path": str(target)}
                | {"imported": checkpoint.state["imported"]}
            )
        )
        return 0
    print(f"{config.run}/{stage}@{step} is {neutralize(str(path))}")
    for note in notes:
        print(f"note: {neutralize(note)}")
    return 0


@contextlib.contextmanager
def _set_aside(stage: Path) -> Iterator[None]:
    """What was there before is deleted once the block has ended, and comes back if it fails."""
    aside = stage.with_name(f".{stage.name}.replaced")
    if stage.exists():
        shutil.rmtree(aside, ignore_errors=True)
        stage.rename(aside)
    try:
        yield
    except BaseException:
        if aside.exists():
            shutil.rmtree(stage, ignore_errors=True)
            aside.rename(stage)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _refuse_unused(config: Config, path: Path) -> None:
    """Raises: ConfigError for what was said of karpathy/nanochat's files where there are none."""
    said = {
        "--tag": config.tag is not None,
        "--step": config.step is not None,
        "--softcap": config.softcap is not None,
        "--window-pattern": config.window_pattern is not None,
        "--alias": bool(config.alias),
        "--no-optimizer": not config.optimizer,
    }
    if unused := [flag for flag, is_said in said.items() if is_said]:
        raise ConfigError(
            f"{', '.join(unused)}: {path} is a directory for Hugging Face's transformers, whose "
            "files leave nothing open and have no moments: leave it out"
        )


def _aliases(words: tuple[str, ...]) -> dict[str, str]:
    if wrong := [word for word in words if word.count("=") != 1]:
        raise ConfigError(f"--alias {wrong[0]!r}: expected OLD=NEW")
    return dict(word.split("=") for word in words)


def _read(config: Config) -> tuple[Path, "Checkpoint"]:
    """The directory that is meant, and what is in it, tensors to be read one by one."""
    from nanochat.checkpoint.hub import PREFIX, download
    from nanochat.checkpoint.huggingface import is_huggingface, read_huggingface
    from nanochat.checkpoint.reference import ReadOptions, locate, read_reference

    is_on_hub = config.source.startswith(PREFIX)
    path = Path(config.source).expanduser()
    if is_on_hub:
        path = download(
            config.source, with_optimizer=config.optimizer, tag=config.tag, step=config.step
        )
    if not path.is_dir():
        raise CheckpointError(f"{path} is no directory, expected one, or hf:org/name")
    if is_huggingface(path):
        _refuse_unused(config, path)
        checkpoint = read_huggingface(path)
    else:
        files = locate(path, stage=config.stage, tag=config.tag, step=config.step)
        if files is None:
            raise CheckpointError(
                f"{path}: holds no model of another program (no model_*.pt, no model.safetensors "
                "with config.json); a run of ours is named as it is"
            )
        path = files.model.parent
        options = ReadOptions(
            softcap=config.softcap,
            window_pattern=config.window_pattern,
            aliases=_aliases(config.alias),
            stage=config.stage,
            with_optimizer=config.optimizer,
            is_streamed=True,
        )
        checkpoint = read_reference(files, options)
    state = {
        **checkpoint.state,
        "stage": config.stage or checkpoint.state["stage"],
        "parent": str(path.absolute()),
        "imported": {"source": config.source, **checkpoint.state["imported"]},
    }
    return path, replace(checkpoint, state=state)
