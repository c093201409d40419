"""data:NAME, hf:org/dataset, addresses -> files here.   in: a name   out: Arrived
who calls: places.py, cli/data_download.py

A data set has a folder of its own under `<home>/data`; `.dataset.json` in it says which files it
has, what they are for and where they came from, and is written last: what it names is complete.
One process of a machine loads, the others wait and then find it; nothing is asked of the network
for what is here.
Read next: catalog.py (the names), places.py (who mixes them with paths), common/download.py.
"""

import hashlib
import re
import shutil
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from nanochat.common.download import (
    DownloadOptions,
    RemoteFile,
    download_all,
    download_file,
    is_complete,
    list_patiently,
)
from nanochat.common.download_bars import human_bytes, shown
from nanochat.common.env import hub_url, is_offline
from nanochat.common.errors import ConfigError, DataError
from nanochat.common.files import home_dir, read_json, write_json_atomically
from nanochat.common.lock import locked
from nanochat.corpus.catalog import (
    Address,
    Dataset,
    Files,
    HubFolder,
    HubSplits,
    Shards,
    Side,
    find_dataset,
)

__all__ = ["Arrived", "LoadOptions", "arrived", "dataset_of", "fetch", "folder_of", "is_remote"]

RECORD = ".dataset.json"
LISTING = ".listing.json"
PARTIAL = "partial-"  # what the Hub puts before a split of which it has converted the first part
PARTLY = "a part of it only: the Hub makes Parquet files of the first gigabytes of a large data set"
PUBLIC_HUB = "https://huggingface.co/"
FREE_BYTES = 1 << 28  # stay free on the disk
OFFLINE = "HF_HUB_OFFLINE or NANOCHAT_OFFLINE is set"

# Path() makes one slash of the two of an address.
ADDRESS = re.compile(r"([a-z][a-z0-9+]+):/{1,2}(?=[^/])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """A data set that is here."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    sides: Mapping[Path, Side]
    """What each file is for."""
    column: str | None
    is_partial: bool = False
    """Whether the Hub has made Parquet files of the first part only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How much, and how patiently."""

    num_files: int | None = None
    """Of those to train on, where a data set comes in shards. None: what is usual for it."""
    is_whole: bool = False
    """All of them."""
    download: DownloadOptions = DownloadOptions()

    def __post_init__(self) -> None:
        if self.num_files is not None and self.num_files < 1:
            raise ConfigError(f"num_files is {self.num_files}, expected at least 1")


Plan = dict[RemoteFile, Side]  # what there is to load, in its order, and what it is for


def is_remote(name: str) -> bool:
    """Whether this is no path: data:NAME, hf:org/dataset, or an address."""
    return name.startswith(("data:", "hf:")) or ADDRESS.match(name) is not None


def dataset_of(name: str) -> Dataset:
    """What a name of the catalog, of the Hub, or an address stands for; with #column, that column.

    Raises: ConfigError where it is none of them.
    """
    name, _, column = name.partition("#")
    match = ADDRESS.match(name)
    found = find_dataset(name) if match is None else _at_address(name, match)
    return replace(found, column=column) if column else found


def _at_address(name: str, match: re.Match[str]) -> Dataset:
    url = f"{match[1]}://{name[match.end() :]}"
    if match[1] in ("http", "https") and not _file_name(url):
        raise ConfigError(f"{url} names no file, expected an address that ends with one")
    return Dataset(
        name=url,
        title=url,
        kind="unknown",
        licence="as its owner says",
        size_bytes=None,
        num_files=None,
        split_rule="a hundredth by hash",
        checksum="the length that the server states",
        source=Address(url=url),
    )


def folder_of(dataset: Dataset, home: Path | None = None) -> Path:
    """Where it is kept, whether it is there or not."""
    root = home_dir(home) / "data"
    if dataset.name.startswith("hf:"):
        name = dataset.name.removeprefix("hf:").replace("/", "--").replace(":", "@")
        return root / "hf" / name
    if ADDRESS.match(dataset.name):
        host = urllib.parse.urlsplit(dataset.name).netloc
        digest = hashlib.sha256(dataset.name.encode()).hexdigest()[:12]
        return root / "url" / f"{re.sub(r'[^A-Za-z0-9.-]', '-', host)}-{digest}"
    return root / dataset.name


def arrived(dataset: Dataset, home: Path | None = None) -> Arrived | None:
    """The data set as it is here; None where nothing of it was completed.

    Raises: DataError where a file of it has gone, or has another size.
    """
    folder = folder_of(dataset, home)
    if not (folder / RECORD).is_file():
        return None
    record = read_json(folder / RECORD)
    for each in record["files"]:
        path = folder / each["name"]
        if not path.is_file() or path.stat().st_size != each["num_bytes"]:
            raise DataError(
                f"{path} is not as it was loaded: nanochat data download {dataset.name} loads it "
                "again"
            )
    sides = {folder / each["name"]: each["side"] for each in record["files"]}
    return Arrived(
        name=dataset.name,
        folder=folder,
        files=tuple(sides),
        sides=sides,
        column=dataset.column,
        is_partial=any(f"/{PARTIAL}" in each["url"] for each in record["files"]),
    )


def fetch(
    dataset: Dataset, home: Path | None = None, options: LoadOptions | None = None
) -> Arrived:
    """The data set, loaded where it is not here; with more than there was, if more is asked for.

    Raises: DataError where it cannot be loaded, or finds no room; offline, where it is not here, or
            less of it than is asked for.
    """
    options = options or LoadOptions()
    folder = folder_of(dataset, home)
    if is_offline():
        if (here := _or_none(dataset, home)) is None:
            raise DataError(
                f"{dataset.name} is not in {folder}, and {OFFLINE}: unset it to load it"
            )
        _check_enough(dataset, here, options)
        return here
    with locked(folder / ".lock", f"loads {dataset.name}"):
        is_fixed = options.num_files is None and not options.is_whole
        if is_fixed and (here := _or_none(dataset, home)) is not None:
            return here
        _drop_damaged(folder)
        plan = _plan(dataset, folder, options)
        missing = [each for each in plan if not is_complete(each, folder)]
        _check_room(dataset, folder, missing)
        sizes = [each.num_bytes for each in plan]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        with shown(len(plan), total) as watcher:
            download_all(list(plan), folder, options.download, watcher)
        _write_record(dataset, folder, plan)
    found = arrived(dataset, home)
    assert found is not None, "the record was just written"
    if found.is_partial:
        print(f"{dataset.name}: {PARTLY}", file=sys.stderr, flush=True)
    return found


def _or_none(dataset: Dataset, home: Path | None) -> Arrived | None:
    try:
        return arrived(dataset, home)
    except DataError:  # a file has gone: it is loaded again
        return None


def _check_enough(dataset: Dataset, here: Arrived, options: LoadOptions) -> None:
    """Raises: DataError where fewer shards are here than are asked for."""
    if not isinstance(dataset.source, Shards | HubFolder) or dataset.num_files is None:
        return  # it is loaded whole
    all_files = dataset.num_files - 1  # the last is for validation
    wanted = all_files if options.is_whole else min(options.num_files or 0, all_files)
    have = sum(side == "train" for side in here.sides.values())
    if have < wanted:
        raise DataError(
            f"{dataset.name} has {have:,} files to train on in {here.folder}, expected the "
            f"{wanted:,} that are asked for, and {OFFLINE}: unset it to load the others, or ask "
            f"for {have:,}"
        )


def _drop_damaged(folder: Path) -> None:
    """Files that are not as they were loaded would be taken for complete where no size is known."""
    if (folder / RECORD).is_file():
        for each in read_json(folder / RECORD)["files"]:
            path = folder / each["name"]
            if path.is_file() and path.stat().st_size != each["num_bytes"]:
                path.unlink()


def _write_record(dataset: Dataset, folder: Path, plan: Plan) -> None:
    before = read_json(folder / RECORD)["files"] if (folder / RECORD).is_file() else []
    known = {each["name"]: each for each in before if (folder / each["name"]).is_file()}
    for remote, side in plan.items():
        num_bytes = (folder / remote.name).stat().st_size
        known[remote.name] = {**asdict(remote), "num_bytes": num_bytes, "side": side}
    # By name, validation last: equal files are in an equal order, however often more was loaded.
    files = sorted(known.values(), key=lambda each: (each["side"] != "train", each["name"]))
    write_json_atomically(
        folder / RECORD,
        {"name": dataset.name, "licence": dataset.licence, "files": files},
    )


def _check_room(dataset: Dataset, folder: Path, missing: Sequence[RemoteFile]) -> None:
    needed = sum(each.num_bytes or 0 for each in missing)
    if not needed and dataset.size_bytes and dataset.num_files:
        needed = dataset.size_bytes // dataset.num_files * len(missing)
    free = shutil.disk_usage(folder).free
    if needed and needed + FREE_BYTES > free:
        raise DataError(
            f"{dataset.name} needs {human_bytes(needed)} and {folder} has {human_bytes(free)} "
            "free: make room, ask for fewer files (--num-files), or name another --home"
        )


# ---------------------------------------------------------------------------------------- what


def _plan(dataset: Dataset, folder: Path, options: LoadOptions) -> Plan:
    source = dataset.source
    if isinstance(source, Address):
        return dict.fromkeys(_files_at(source.url, options.download), "train")
    if isinstance(source, Files):
        return dict.fromkeys(source.files, "train")
    if isinstance(source, Shards):
        return _last_held_out(_shard_files(source), source.num_usual, options)
    if isinstance(source, HubFolder):
        return _last_held_out(
            _folder_files(source, folder, options.download), source.num_usual, options
        )
    return _split_files(source, folder, options.download)


def _last_held_out(files: Sequence[RemoteFile], num_usual: int, options: LoadOptions) -> Plan:
    """The first so many to train on, and the last for validation."""
    *train, last = files
    wanted = len(train) if options.is_whole else options.num_files or num_usual
    plan: Plan = dict.fromkeys(train[:wanted], "train")
    plan[last] = "validation"
    return plan


def _shard_files(source: Shards) -> list[RemoteFile]:
    base = f"{hub_url()}/datasets/{source.repository}/resolve/main"
    names = [source.pattern.format(number) for number in range(source.num_shards)]
    return [RemoteFile(url=f"{base}/{name}", name=name) for name in names]


def _folder_files(source: HubFolder, folder: Path, options: DownloadOptions) -> list[RemoteFile]:
    api = f"{hub_url()}/api/datasets/{source.repository}/tree/main/{source.folder}"
    base = f"{hub_url()}/datasets/{source.repository}/resolve/main"
    found = []
    for each in _listing(api, folder, options):
        path = str(each.get("path", ""))
        if path.endswith(".parquet"):
            sums = each.get("lfs") or {}
            found.append(
                RemoteFile(
                    url=f"{base}/{path}",
                    name=PurePosixPath(path).name,
                    num_bytes=each.get("size"),
                    sha256=sums.get("oid"),
                )
            )
    if len(found) < 2:
        raise DataError(f"{api} lists {len(found)} Parquet files, expected several")
    return sorted(found, key=lambda each: each.name)


def _split_files(source: HubSplits, folder: Path, options: DownloadOptions) -> Plan:
    api = f"{hub_url()}/api/datasets/{source.repository}/parquet"
    listed = _listing(api, folder, options)
    plan: Plan = {}
    for (config, split), side in source.splits.items():
        configs = _one_of(listed, config, "default", f"{source.repository}: configuration")
        found = {name.removeprefix(PARTIAL): name for name in listed[configs]}
        urls = _one_of(found, split, "train", f"{source.repository}: split")
        for number, url in enumerate(listed[configs][found[urls]]):
            url = url.replace(PUBLIC_HUB, hub_url() + "/", 1)  # it names itself, not the mirror
            name = f"{configs}-{urls}-{number:05d}.parquet".replace("/", "-")
            plan[RemoteFile(url=url, name=name)] = side
    return plan


def _one_of(found: Mapping[str, object], wanted: str | None, usual: str, what: str) -> str:
    if wanted is None:
        wanted = next(iter(found)) if len(found) == 1 else usual
    if wanted not in found:
        raise DataError(f"{what} {wanted!r} is not there, expected one of {', '.join(found)}")
    return wanted


def _listing(url: str, folder: Path, options: DownloadOptions) -> Any:
    """What the Hub lists, loaded with the same patience as files are."""
    (folder / LISTING).unlink(missing_ok=True)
    path = download_file(RemoteFile(url=url, name=LISTING), folder, options)
    listed = read_json(path)
    path.unlink()
    if not listed:
        raise DataError(f"{url} lists nothing: the Hub has made no Parquet files of that dataset")
    return listed


def _files_at(url: str, options: DownloadOptions) -> list[RemoteFile]:
    """The file at an address; of a folder or a pattern that fsspec understands, all of them."""
    is_http = urllib.parse.urlsplit(url).scheme in ("http", "https")
    found = [url] if is_http else list_patiently(url, options)
    names = [_file_name(each) for each in found]
    files = [RemoteFile(url=each, name=name) for each, name in zip(found, names, strict=True)]
    if len(set(names)) < len(names):  # of several folders
        files = [replace(each, name=f"{i:05d}-{each.name}") for i, each in enumerate(files)]
    return files


def _file_name(url: str) -> str:
    return PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
