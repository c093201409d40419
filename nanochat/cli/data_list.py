"""nanochat data list   in: nothing, or names   out: a table of data sets, or all about one
who calls: cli.main

Read next: corpus/catalog.py (the entries), data_download.py.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from nanochat.common.config import CommonOptions

if TYPE_CHECKING:
    from nanochat.corpus.catalog import Dataset

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Which data sets can be had by name, under which licence, and which are here.

    Any other dataset of the Hugging Face Hub is hf:org/dataset[/config][:split][#column].
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Tell all about these."""


def run(config: Config) -> int:
    """0 once they are listed.

    Raises: ConfigError for a name without meaning.
    """
    from nanochat.corpus.catalog import CATALOG
    from nanochat.corpus.remote import dataset_of

    entries = [dataset_of(name) for name in config.names] or list(CATALOG.values())
    facts = [_facts(entry, config.home) for entry in entries]
    if config.json:
        print(json.dumps({"datasets": facts}))
    elif config.names:
        print("\n\n".join(_details(each) for each in facts))
    else:
        print(_table(facts))
    return 0


def _facts(entry: "Dataset", home: Path | None) -> dict[str, Any]:
    from nanochat.common.errors import DataError
    from nanochat.corpus.remote import arrived, folder_of

    here = None
    if entry.kind == "eval":  # kept where `nanochat eval` looks
        folder = folder_of(entry, home).parent / "eval"
        state = "here" if (folder / "eval_bundle").is_dir() else "not here"
    else:
        folder = folder_of(entry, home)
        try:
            here = arrived(entry, home)
            state = "not here" if here is None else f"{len(here.files)} files here"
        except DataError as error:
            state = str(error)
    return {
        "name": entry.name,
        "title": entry.title,
        "kind": entry.kind,
        "licence": entry.licence,
        "size_bytes": entry.size_bytes,
        "num_files": entry.num_files,
        "split_rule": entry.split_rule,
        "checksum": entry.checksum,
        "column": entry.column,
        "folder": str(folder),
        "state": state,
    }


def _size(facts: dict[str, Any]) -> str:
    from nanochat.common.download_bars import human_bytes

    return "unknown" if facts["size_bytes"] is None else human_bytes(facts["size_bytes"])


def _table(facts: list[dict[str, Any]]) -> str:
    rows = [("name", "kind", "about", "files", "licence", "on this machine")]
    for each in facts:
        count = f"{each['num_files']:,}"
        rows.append(
            (each["name"], each["kind"], _size(each), count, each["licence"], each["state"])
        )
    wide = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = [
        f"{name:{wide[0]}}  {kind:{wide[1]}}  {size:>{wide[2]}}  {count:>{wide[3]}}  "
        f"{licence:{wide[4]}}  {state}"
        for name, kind, size, count, licence, state in rows
    ]
    return "\n".join(
        [
            *lines,
            "",
            "nanochat data list NAME tells all about one, nanochat data download NAME loads it.",
        ]
    )


def _details(facts: dict[str, Any]) -> str:
    count = "unknown" if facts["num_files"] is None else f"{facts['num_files']:,}"
    lines = [
        f"{facts['name']}: {facts['title']}",
        f"  kind       {facts['kind']}",
        f"  licence    {facts['licence']}",
        f"  size       about {_size(facts)}, {count} files",
        f"  held out   {facts['split_rule']}",
        f"  checked    by {facts['checksum']}",
        f"  folder     {facts['folder']}",
        f"  state      {facts['state']}",
    ]
    return "\n".join(lines)
