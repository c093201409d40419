"""nanochat data download   in: names, addresses   out: files under the home   who calls: cli.main

Read next: corpus/remote.py (what is loaded and where to), common/download.py (how).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from nanochat.common.config import CommonOptions
from nanochat.common.errors import ConfigError

if TYPE_CHECKING:
    from nanochat.corpus.catalog import Dataset
    from nanochat.corpus.remote import LoadOptions

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Load data sets: names of the catalog, hf:org/dataset[/config][:split], addresses.

    A load that was stopped goes on where it was; what is here is not loaded again.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """`nanochat data list` shows the catalog."""
    num_files: int | None = None
    """Of a data set in shards: how many to train on, the one for validation beside them. None: what
    is here already, else what is usual for it."""
    whole: bool = False
    """All shards."""
    workers: int = 4
    """Files at a time."""
    tries: int = 6
    """In a row that bring nothing new, before a file is given up."""
    mirror: str | None = None
    """For the CORE bundle: an address to load it from. For the Hub, set HF_ENDPOINT."""

    def __post_init__(self) -> None:
        if not self.names:
            raise ConfigError("no data set was named: nanochat data list shows them")
        for name in ("num_files", "workers", "tries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        if self.whole and self.num_files is not None:
            raise ConfigError("--whole and --num-files are both given: choose one")


def run(config: Config) -> int:
    """0 once all of them are here.

    Raises: ConfigError for a name without meaning; DataError for what cannot be loaded.
    """
    from nanochat.common.download import DownloadOptions
    from nanochat.corpus.remote import LoadOptions, dataset_of

    options = LoadOptions(
        num_files=config.num_files,
        is_whole=config.whole,
        download=DownloadOptions(num_workers=config.workers, num_tries=config.tries),
    )
    datasets = [dataset_of(name) for name in config.names]  # a wrong name is told first
    results = [_loaded(dataset, config, options) for dataset in datasets]
    if config.json:
        print(json.dumps({"datasets": results}))
    return 0


def _loaded(dataset: "Dataset", config: Config, options: "LoadOptions") -> dict[str, Any]:
    from nanochat.common.download_bars import human_bytes
    from nanochat.common.files import home_dir
    from nanochat.corpus.remote import fetch

    if not config.json:
        print(f"{dataset.name}: {dataset.title}; licence: {dataset.licence}", flush=True)
    if dataset.kind == "eval":
        folder = home_dir(config.home) / "data" / "eval"
        files = _evaluation_files(folder, config.mirror)
        use = "nanochat eval finds it by itself"
    else:
        here = fetch(dataset, config.home, options)
        folder, files = here.folder, list(here.files)
        name = dataset.name if ":" in dataset.name else f"data:{dataset.name}"
        use = f"give it to training as {name}"
    num_bytes = sum(path.stat().st_size for path in files)
    if not config.json:
        print(f"{len(files)} files, {human_bytes(num_bytes)}, in {folder}: {use}")
    return {
        "name": dataset.name,
        "licence": dataset.licence,
        "folder": str(folder),
        "num_files": len(files),
        "num_bytes": num_bytes,
        "files": [str(path) for path in files],
    }


def _evaluation_files(folder: Path, mirror: str | None) -> list[Path]:
    from nanochat.evals.download import Downloader

    root = folder / "eval_bundle"
    if not root.is_dir():
        Downloader(folder, mirror)("eval_bundle/eval_meta_data.csv")
    return sorted(path for path in root.rglob("*") if path.is_file())
