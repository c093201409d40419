"""hf:org/name -> a directory.   in: a reference to a repository on the Hugging Face Hub   out: the
folder with its files   who calls: resolve.py

    hf:karpathy/nanochat-d32                     the newest commit of its main branch
    hf:karpathy/nanochat-d32@v1                  a branch, a tag or a commit
    hf:org/name/chatsft_checkpoints/d20          a folder in it

huggingface_hub does the work: its cache ($HF_HOME), its token (`hf auth login` or $HF_TOKEN), its
progress bars on a terminal; what is complete is not loaded again, a broken connection goes on where
it broke.
With HF_HUB_OFFLINE=1 nothing is asked and the cache alone is used.  Only the files that reading a
model needs are loaded, the optimizer's moments where training is to go on from them, never code.
Read next: huggingface.py and reference.py (what is read then).
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from nanochat.checkpoint.huggingface import (
    INDEX,
    PADDING,
    TEMPLATE,
    WEIGHTS,
    check_model_type,
    is_huggingface,
    weight_parts,
)
from nanochat.common.errors import CheckpointError

__all__ = ["PREFIX", "HubReference", "download", "needed_files"]

PREFIX = "hf:"
OPTIONAL = ("tokenizer_config.json", TEMPLATE, PADDING)


@dataclass(frozen=True, slots=True)
class HubReference:
    """What `hf:org/name[/folder][@revision]` names."""

    repository: str
    folder: str = ""
    revision: str | None = None

    @classmethod
    def parse(cls, reference: str) -> "HubReference":
        """The parts of a reference.

        Raises: CheckpointError for one of another shape.
        """
        match = re.fullmatch(
            r"hf:(?P<repository>\w[\w.-]*/\w[\w.-]*)(?P<folder>(/\w[\w.-]*)*)(@(?P<revision>[^\s@]+))?",
            reference,
            re.ASCII,
        )
        if match is None:
            raise CheckpointError(
                f"model {reference!r}: expected hf:org/name or hf:org/name@revision"
            )
        return cls(match["repository"], match["folder"].strip("/"), match["revision"])

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return f"{PREFIX}{self.repository}{folder}" + (f"@{self.revision}" if self.revision else "")


Chosen = tuple[HubReference, list[str]]  # where in the repository, and which files of it


def download(
    reference: str,
    *,
    with_optimizer: bool = False,
    tag: str | None = None,
    step: int | None = None,
) -> Path:
    """The folder with the files of a model on the Hub, loaded where they are not in the cache.

    Of karpathy/nanochat's files `tag` names a folder such as d20 below the one of the reference,
    `step` another step than the last, and `with_optimizer` brings its moments too.
    The path ends with the commit (and the folder): what was read can be named exactly.
    Raises: CheckpointError in one line: no such repository or revision, no access, no connection,
            no model in it.
    """
    from huggingface_hub.constants import is_offline_mode

    wanted = HubReference.parse(reference)

    def choose(names: list[str]) -> Chosen:
        found = wanted if tag is None else _tagged(names, wanted, tag)
        return found, needed_files(names, found, step=step, with_optimizer=with_optimizer)

    try:
        return _cached(wanted, choose) if is_offline_mode() else _fetched(wanted, choose)
    except CheckpointError:
        raise
    except Exception as error:  # which library's errors these are depends on huggingface_hub's
        raise CheckpointError(f"{wanted}: {_explained(error)}") from error


def needed_files(
    names: list[str],
    wanted: HubReference,
    *,
    step: int | None = None,
    with_optimizer: bool = False,
) -> list[str]:
    """Which files of a repository a model needs: those of one format, of one step.

    Raises: CheckpointError if there is no model, naming the folders that hold one, or no such step.
    """
    folder = PurePosixPath(wanted.folder)
    there = {str(PurePosixPath(name)) for name in names}

    def in_folder(name: str) -> str:
        return str(folder / name)

    if {in_folder("config.json"), in_folder("tokenizer.json")} <= there:
        for weights in (WEIGHTS, INDEX):
            if in_folder(weights) in there:
                parts = [n for n in there if _is_part(n, folder)] if weights == INDEX else []
                some = [in_folder(name) for name in OPTIONAL if in_folder(name) in there]
                first = [in_folder("config.json"), in_folder("tokenizer.json"), in_folder(weights)]
                return first + sorted(parts) + some
    models = {
        int(match[1]): match
        for name in sorted(there)
        if (match := re.fullmatch(r"model_(\d+)\.pt", PurePosixPath(name).name))
        and PurePosixPath(name).parent == folder
    }
    if not models:
        raise CheckpointError(
            f"{wanted}: holds no model that can be read{_elsewhere(there, wanted)}"
        )
    if step is not None and step not in models:
        raise CheckpointError(
            f"{wanted}: has no step {step}, it has {', '.join(map(str, sorted(models)))}"
        )
    model = models[max(models) if step is None else step]
    meta = in_folder(f"meta_{model[1]}.json")
    tokenizers = [folder, folder / "tokenizer", PurePosixPath("tokenizer")]
    tokenizer = next(
        (name for place in tokenizers if (name := str(place / "tokenizer.pkl")) in there), None
    )
    if meta not in there or tokenizer is None:
        lacking = meta if meta not in there else "tokenizer.pkl"
        raise CheckpointError(f"{wanted}: holds {model[0]} but no {lacking}; both are needed")
    moments = re.compile(re.escape(in_folder(f"optim_{model[1]}")) + r"(_rank\d+)?\.pt")
    optimizer = [name for name in sorted(there) if moments.fullmatch(name)]
    return [meta, tokenizer, in_folder(model[0]), *(optimizer if with_optimizer else [])]


def _tagged(names: list[str], wanted: HubReference, tag: str) -> HubReference:
    """The folder of this name below the one wanted, or itself.

    Raises: CheckpointError unless there is exactly one with a model, naming those there are.
    """
    folders = [folder for folder in _model_folders(set(names)) if _is_below(folder, wanted)]
    found = [folder for folder in folders if PurePosixPath(folder).name == tag]
    if len(found) == 1:
        return replace(wanted, folder=found[0])
    have = ", ".join(f"{PREFIX}{wanted.repository}/{folder}" for folder in found or folders)
    what = "several models" if found else "no model"
    raise CheckpointError(f"{wanted}: has {what} {tag!r}, name one of {have or 'none'}")


def _is_below(folder: str, wanted: HubReference) -> bool:
    return PurePosixPath(folder).is_relative_to(PurePosixPath(wanted.folder))


def _is_part(name: str, folder: PurePosixPath) -> bool:
    path = PurePosixPath(name)
    return path.parent == folder and path.suffix == ".safetensors" and path.name != PADDING


def _elsewhere(names: set[str], wanted: HubReference) -> str:
    """Which folders of the repository do hold a model."""
    folders = _model_folders(names)
    if not folders:
        return " (no model.safetensors with tokenizer.json, no model_*.pt)"
    known = ", ".join(f"{PREFIX}{wanted.repository}/{folder}" for folder in folders)
    return f": try {known}"


def _model_folders(names: set[str]) -> list[str]:
    files = [PurePosixPath(name) for name in names]
    return sorted(
        {
            str(file.parent)
            for file in files
            if file.name in (WEIGHTS, INDEX) or re.fullmatch(r"model_\d+\.pt", file.name)
        }
    )


def _fetched(wanted: HubReference, choose: Callable[[list[str]], Chosen]) -> Path:
    """The snapshot with all that is needed, small files first."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not sys.stderr.isatty():
        disable_progress_bars()  # in a log they are noise; a user's own choice holds
    info = HfApi().model_info(wanted.repository, revision=wanted.revision)
    found, needed = choose([file.rfilename for file in info.siblings or []])

    def load(names: list[str]) -> Path:
        return Path(
            snapshot_download(
                wanted.repository,
                revision=wanted.revision,
                allow_patterns=[*map(_literally, names)],
            )
        )

    heavy = [name for name in needed if name.endswith((".safetensors", ".pt"))]
    light = [name for name in needed if name not in heavy]
    root = load(light)
    _check(root, found)  # before gigabytes of another kind of model are loaded
    return load(needed) / found.folder


def _cached(wanted: HubReference, choose: Callable[[list[str]], Chosen]) -> Path:
    """The snapshot in the cache.

    Raises: CheckpointError if something of it is not there.
    """
    from huggingface_hub import snapshot_download

    root = Path(
        snapshot_download(
            wanted.repository, revision=wanted.revision, allow_patterns=[], local_files_only=True
        )
    )
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    try:
        found, _ = choose(names)
        _check(root, found)
        if is_huggingface(root / found.folder):
            weight_parts(root / found.folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} (offline, and only a part of it is in the cache: unset HF_HUB_OFFLINE once)"
        ) from error
    return root / found.folder


def _check(root: Path, wanted: HubReference) -> None:
    config = root / wanted.folder / "config.json"
    if config.is_file() and (config.parent / "tokenizer.json").is_file():
        check_model_type(config)


def _literally(name: str) -> str:
    """The pattern that matches this name alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)


def _explained(error: Exception) -> str:
    """What went wrong, and what to do about it."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "is gated: ask for access on its page, then log in (`hf auth login` or HF_TOKEN)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private: check the name, and log in to reach "
            "a private one (`hf auth login` or HF_TOKEN)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return "the repository has no such revision: expected a branch, a tag or a commit"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "is not in the cache, and HF_HUB_OFFLINE is set: unset it to load the model"
    text = " ".join(str(error).split())[:200]
    if isinstance(error, errors.HfHubHTTPError):
        return f"{constants.ENDPOINT} refused ({text})"
    if isinstance(error, OSError):
        return f"not loaded ({text}); run the same again, what is complete stays"
    return (
        f"{constants.ENDPOINT} cannot be reached, or broke off ({type(error).__name__}: {text}): "
        "run the same again, what is complete stays; with HF_HUB_OFFLINE=1 the cache is used"
    )
