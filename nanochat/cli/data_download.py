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
    from collections.abc import Sequence

    from nanochat.common.download import DownloadOptions
    from nanochat.corpus.catalog import Dataset
    from nanochat.corpus.remote import LoadOptions

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Load data sets: names of the catalog, hf:org/dataset[/config][:split][#column], addresses.

    A load that was stopped goes on where it was; what is here is not loaded again. One that cannot
    be loaded keeps none of the others from arriving.
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

    Raises: ConfigError for a name without meaning, and for flags that none of the data sets heeds;
            DataError, after all have been tried, for those that cannot be loaded.
    """
    from nanochat.common.download import DownloadOptions
    from nanochat.common.errors import DataError
    from nanochat.corpus.remote import LoadOptions, dataset_of

    options = LoadOptions(
        num_files=config.num_files,
        is_whole=config.whole,
        download=DownloadOptions(num_workers=config.workers, num_tries=config.tries),
    )
    datasets = [dataset_of(name) for name in config.names]  # a wrong name is told first
    _check_flags(config, datasets)
    results, failures = [], []
    for given, dataset in zip(config.names, datasets, strict=True):
        try:
            results.append(_loaded(given, dataset, config, options))
        except DataError as error:
            failures.append(f"{dataset.name}: {error}")
            if not config.json:
                print(f"{dataset.name}: not loaded", flush=True)
    if config.json:
        print(json.dumps({"datasets": results, "failures": failures}))
    if failures:
        raise DataError(
            f"{len(failures)} of {len(datasets)} data sets not loaded; {'; '.join(failures)}"
        )
    return 0


def _check_flags(config: Config, datasets: "Sequence[Dataset]") -> None:
    """Raises: ConfigError for a flag that does nothing for any of these."""
    from nanochat.corpus.catalog import HubFolder, Shards

    names = ", ".join(dataset.name for dataset in datasets)
    in_shards = any(isinstance(dataset.source, Shards | HubFolder) for dataset in datasets)
    if (config.whole or config.num_files is not None) and not in_shards:
        flag = "--whole" if config.whole else "--num-files"
        raise ConfigError(
            f"{flag} is for data sets in shards, and {names} is loaded whole: leave it out"
        )
    if config.mirror is not None and all(dataset.kind != "eval" for dataset in datasets):
        raise ConfigError(
            f"--mirror is for the CORE bundle (core), not for {names}: leave it out; another Hub "
            "is named by HF_ENDPOINT"
        )


def _loaded(
    given: str, dataset: "Dataset", config: Config, options: "LoadOptions"
) -> dict[str, Any]:
    from nanochat.common.download_bars import human_bytes
    from nanochat.common.files import home_dir
    from nanochat.corpus.remote import fetch

    if not config.json:
        print(f"{dataset.name}: {dataset.title}; licence: {dataset.licence}", flush=True)
    is_partial = False
    if dataset.kind == "eval":
        folder = home_dir(config.home) / "data" / "eval"
        files = _evaluation_files(folder, config.mirror, options.download)
        use = "nanochat eval finds it by itself"
    else:
        here = fetch(dataset, config.home, options)
        folder, files, is_partial = here.folder, list(here.files), here.is_partial
        name = dataset.name if ":" in dataset.name else f"data:{dataset.name}"
        _, mark, column = given.partition("#")
        use = f"give it to training as {name}{mark}{column}"
    num_bytes = sum(path.stat().st_size for path in files)
    if not config.json:
        print(f"{len(files)} files, {human_bytes(num_bytes)}, in {folder}: {use}")
    return {
        "name": dataset.name,
        "licence": dataset.licence,
        "folder": str(folder),
        "num_files": len(files),
        "num_bytes": num_bytes,
        "is_partial": is_partial,
        "files": [str(path) for path in files],
    }


def _evaluation_files(folder: Path, mirror: str | None, options: "DownloadOptions") -> list[Path]:
    from nanochat.evals.download import Downloader

    root = folder / "eval_bundle"
    if not root.is_dir():
        Downloader(folder, mirror, options)("eval_bundle/eval_meta_data.csv")
    return sorted(path for path in root.rglob("*") if path.is_file())
