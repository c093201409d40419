"""Names -> data sets.   in: a name, or hf:org/dataset   out: Dataset: licence, size, where it lies
who calls: remote.py, cli/data_list.py, cli/data_download.py, evals/download.py

A data set lies on the network as numbered shards (Shards), as a dataset of the Hugging Face Hub, in
the Parquet files that the Hub makes of each (HubSplits) or in its own (HubFolder), or as files at
addresses (Files; Address where its files are not known beforehand).  Sizes are rounded; what a file
really has is checked as it arrives.
Read next: remote.py (how it gets here), docs/data.md.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nanochat.common.download import RemoteFile
from nanochat.common.errors import ConfigError

__all__ = [
    "BUNDLE_URL",
    "CATALOG",
    "Address",
    "Dataset",
    "Files",
    "HubFolder",
    "HubSplits",
    "Shards",
    "Side",
    "find_dataset",
]

BUCKET_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com"
BUNDLE_URL = f"{BUCKET_URL}/eval_bundle.zip"
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)

HUB_SUMS = "the SHA-256 that the Hub states of each file"
Side = Literal["train", "validation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """Files with numbers in the folder of a Hub dataset; the last of them is for validation."""

    repository: str
    pattern: str
    num_shards: int
    num_usual: int
    """Of those to train on, loaded where nobody says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSplits:
    """Splits of a Hub dataset, in the Parquet files the Hub makes of them."""

    repository: str
    splits: Mapping[tuple[str | None, str | None], Side]
    """(configuration, split) -> what it is for; None: the Hub's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFolder:
    """The Parquet files of a folder of a Hub dataset; the last of them is for validation."""

    repository: str
    folder: str
    num_usual: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Files at addresses."""

    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A file on the network; or a folder or a pattern, where fsspec can list it."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What there is to know before it is loaded."""

    name: str
    title: str
    kind: Literal["text", "chat", "eval", "unknown"]
    licence: str
    size_bytes: int | None
    """About; None: not known before."""
    num_files: int | None
    split_rule: str
    checksum: str
    """Where the sums come from that files are compared with."""
    source: Shards | HubSplits | HubFolder | Files | Address
    column: str | None = None
    """What holds the text, or the conversation; None: found by itself."""


_ENTRIES = (
    Dataset(
        name="climbmix",
        title="ClimbMix-400B, shuffled, the pretraining text of karpathy/nanochat since March 2026",
        kind="text",
        licence="CC-BY-NC-4.0",
        size_bytes=600_000_000_000,
        num_files=6543,
        split_rule="the last shard is for validation",
        checksum=HUB_SUMS,
        source=Shards(
            repository="karpathy/climbmix-400b-shuffle",
            pattern="shard_{:05d}.parquet",
            num_shards=6543,
            num_usual=8,
        ),
        column="text",
    ),
    Dataset(
        name="fineweb-edu",
        title="FineWeb-Edu 100B, shuffled, the pretraining text of karpathy/nanochat until then",
        kind="text",
        licence="ODC-By-1.0",
        size_bytes=180_000_000_000,
        num_files=1823,
        split_rule="the last shard is for validation",
        checksum=HUB_SUMS,
        source=Shards(
            repository="karpathy/fineweb-edu-100b-shuffle",
            pattern="shard_{:05d}.parquet",
            num_shards=1823,
            num_usual=8,
        ),
        column="text",
    ),
    Dataset(
        name="fineweb",
        title="FineWeb, its sample of 10 billion tokens",
        kind="text",
        licence="ODC-By-1.0",
        size_bytes=31_000_000_000,
        num_files=15,
        split_rule="the last file is for validation",
        checksum=HUB_SUMS,
        source=HubFolder(repository="HuggingFaceFW/fineweb", folder="sample/10BT", num_usual=2),
        column="text",
    ),
    Dataset(
        name="tinystories",
        title="TinyStories, short stories in a small child's words",
        kind="text",
        licence="CDLA-Sharing-1.0",
        size_bytes=1_000_000_000,
        num_files=5,
        split_rule="the Hub's split `validation`",
        checksum=HUB_SUMS,
        source=HubSplits(
            repository="roneneldan/TinyStories",
            splits={("default", "train"): "train", ("default", "validation"): "validation"},
        ),
        column="text",
    ),
    Dataset(
        name="tinyshakespeare",
        title="40,000 lines of Shakespeare",
        kind="text",
        licence="public domain",
        size_bytes=1_115_394,
        num_files=1,
        split_rule="a hundredth by hash",
        checksum="the SHA-256 in this catalog",
        source=Files(
            files=(
                RemoteFile(
                    url=SHAKESPEARE_URL,
                    name="input.txt",
                    num_bytes=1_115_394,
                    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                ),
            )
        ),
    ),
    Dataset(
        name="smoltalk",
        title="SmolTalk in the version for small models: 460,000 conversations",
        kind="chat",
        licence="Apache-2.0",
        size_bytes=1_000_000_000,
        num_files=5,
        split_rule="the Hub's split `test` is for validation",
        checksum=HUB_SUMS,
        source=HubSplits(
            repository="HuggingFaceTB/smol-smoltalk",
            splits={("default", "train"): "train", ("default", "test"): "validation"},
        ),
    ),
    Dataset(
        name="mmlu-auxiliary",
        title="MMLU auxiliary-train: 100,000 multiple-choice questions",
        kind="chat",
        licence="MIT",
        size_bytes=47_000_000,
        num_files=1,
        split_rule="a hundredth by hash",
        checksum=HUB_SUMS,
        source=HubSplits(repository="cais/mmlu", splits={("all", "auxiliary_train"): "train"}),
    ),
    Dataset(
        name="gsm8k",
        title="GSM8K, train: 7,473 word problems with their arithmetic",
        kind="chat",
        licence="MIT",
        size_bytes=2_300_000,
        num_files=1,
        split_rule="a hundredth by hash; the Hub's split `test` stays for the evaluation",
        checksum=HUB_SUMS,
        source=HubSplits(repository="openai/gsm8k", splits={("main", "train"): "train"}),
    ),
    Dataset(
        name="arc",
        title="ARC-Easy and ARC-Challenge, train: 3,370 multiple-choice questions",
        kind="chat",
        licence="CC-BY-SA-4.0",
        size_bytes=520_000,
        num_files=2,
        split_rule="a hundredth by hash; the Hub's split `test` stays for the evaluation",
        checksum=HUB_SUMS,
        source=HubSplits(
            repository="allenai/ai2_arc",
            splits={("ARC-Easy", "train"): "train", ("ARC-Challenge", "train"): "train"},
        ),
    ),
    Dataset(
        name="identity",
        title="1,000 conversations in which a model says who it is, of karpathy/nanochat",
        kind="chat",
        licence="MIT",
        size_bytes=3_400_000,
        num_files=1,
        split_rule="a hundredth by hash",
        checksum="none is published: the length, and every line has to be JSON",
        source=Files(
            files=(
                RemoteFile(
                    url=f"{BUCKET_URL}/identity_conversations.jsonl",
                    name="identity_conversations.jsonl",
                ),
            )
        ),
    ),
    Dataset(
        name="core",
        title="the CORE bundle: 22 tasks for base models",
        kind="eval",
        licence="each task its own",
        size_bytes=162_000_000,
        num_files=1,
        split_rule="for evaluation alone",
        checksum="the sums in the zip, and the SHA-256 of 19 of its files in evals/checksums.py",
        source=Files(files=(RemoteFile(url=BUNDLE_URL, name="eval_bundle.zip"),)),
    ),
)

CATALOG: Mapping[str, Dataset] = {entry.name: entry for entry in _ENTRIES}
"""What has a name here, in the order it is listed."""

HUB_NAME = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<config>[^:#/]+))?(?::(?P<split>[^:#/]+))?"
)


def find_dataset(name: str) -> Dataset:
    """The entry of a name (climbmix, data:climbmix), or the dataset of the Hub that is meant.

    Raises: ConfigError for a name that is not in the catalog, or is no name of a Hub dataset.
    """
    if name.startswith("hf:"):
        match = HUB_NAME.fullmatch(name)
        if match is None:
            raise ConfigError(f"{name!r} is no dataset, expected hf:org/dataset[/config][:split]")
        return _hub_dataset(name, match["repository"], match["config"], match["split"])
    entry = CATALOG.get(name.removeprefix("data:"))
    if entry is None:
        raise ConfigError(
            f"{name!r} is not in the catalog, expected one of {', '.join(CATALOG)}, or "
            "hf:org/dataset, or an address"
        )
    return entry


def _hub_dataset(name: str, repository: str, config: str | None, split: str | None) -> Dataset:
    return Dataset(
        name=name,
        title=f"{repository} on the Hugging Face Hub",
        kind="unknown",
        licence="as its page says",
        size_bytes=None,
        num_files=None,
        split_rule=f"the Hub's split `{split}`" if split else "the Hub's split `train`",
        checksum=HUB_SUMS,
        source=HubSplits(repository=repository, splits={(config, split): "train"}),
    )
