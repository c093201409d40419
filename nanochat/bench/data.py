"""How fast text becomes tokens, beside karpathy/nanochat.   in: text, a peer's checkout
out: one JSON object   who calls: cli/bench_data.py

Measured on the same Parquet files, with the same vocabulary, one after another, some rounds over;
the middle of each is told:

    prepare       `nanochat data prepare`, whole, processes started and shards written
    on the fly    raw text -> batches, nothing of it tokenized before
    peer          the tokenizing loader of karpathy/nanochat, in a process of its own
    vocabulary    our training of one, and rustbpe's on one core

The files are made of paragraphs of the text that is given, drawn at random and put together to
documents of its lengths, so that there is as much of it as is asked for and no two documents are
duplicates.
Read next: peer_data.py (what the peer's process runs), batches/prepare.py.
"""

import base64
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from nanochat.batches.on_the_fly import open_text
from nanochat.batches.prepare import PrepareSettings, prepare
from nanochat.batches.sources import Texts
from nanochat.batches.stream import PackedStream
from nanochat.bench.peer import peer_figures
from nanochat.common.device import best_device, machine_name
from nanochat.common.pool import num_cores, open_executor
from nanochat.corpus.documents import read_documents
from nanochat.tokenizer.load import load_tokenizer
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.tokenizer.train import train_tokenizer

__all__ = ["DataBench", "bench_data", "main", "write_corpus"]

ROW_GROUP_DOCUMENTS = 1024  # as in karpathy/nanochat's shards
MIN_DOCUMENT_CHARS = 200
WITHIN_AN_EPOCH = 0.8  # of the tokens that there are: packing loses some
SAMPLE_CHARS = 60_000_000  # of the text that is given


@dataclass(frozen=True, kw_only=True, slots=True)
class DataBench:
    """What is measured."""

    data: tuple[str, ...]
    megabytes: int
    """Of text, to train on; a shard beside them is held out."""
    vocab_size: int
    tokenizer: Path | None
    """None: one is trained on the text."""
    evaluation: tuple[Path, ...]
    """Evaluation sets that preparing looks for."""
    context_len: int
    rows: int
    num_workers: int | None
    rounds: int
    train_megabytes: int
    """Of text, that vocabularies are trained on; 0: not measured."""
    peer: Path | None
    seed: int


def bench_data(bench: DataBench) -> dict[str, Any]:
    """Tokens per second of all, and ratios to the peer's.

    Units: tokens_per_s of prepare and encoded_tokens_per_s of the peer count what was encoded;
           tokens_per_s of the fly and of the peer what came out in batches.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = folder / "base_data_climbmix"  # where the peer looks, below its base directory
        num_chars = write_corpus(bench, shards)
        tokenizer = _tokenizer(bench, shards)
        tokenizer.save(folder / "tokenizer.json")
        (folder / "tokenizer.tiktoken").write_text("".join(_rank_lines(tokenizer)))
        rounds = [_round(bench, folder, tokenizer, number) for number in range(bench.rounds)]
        found: dict[str, Any] = {
            "machine": machine_name(best_device("cpu")),
            "num_cores": num_cores(),
            "characters": num_chars,
            "vocab_size": tokenizer.vocab_size,
            **{side: _middle([each[side] for each in rounds]) for side in rounds[0]},
        }
        if bench.train_megabytes:
            found["vocabulary"] = _vocabulary(bench, shards)
    if "peer" in found:
        found["ratios"] = _ratios(found)
    return found


def write_corpus(bench: DataBench, folder: Path) -> int:
    """Parquet shards, the last of them to be held out; how many characters are trained on."""
    folder.mkdir(parents=True)
    documents = _mixed_up(bench)
    wanted = bench.megabytes * 1_000_000
    num_chars, number = 0, 0
    while num_chars < wanted:
        num_chars += _write_shard(folder, number, documents, min(50_000_000, wanted - num_chars))
        number += 1
    _write_shard(folder, number, documents, wanted // 50)
    return num_chars


def _write_shard(folder: Path, number: int, documents: Iterator[str], num_chars: int) -> int:
    texts: list[str] = []
    total = 0
    while total < num_chars:
        texts.append(next(documents))
        total += len(texts[-1])
    path = folder / f"shard_{number:05d}.parquet"
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(
        table, path, row_group_size=ROW_GROUP_DOCUMENTS, compression="zstd", compression_level=3
    )
    return total


def _mixed_up(bench: DataBench) -> Iterator[str]:
    """Documents of paragraphs drawn at random, as long as those they are from."""
    paragraphs: list[str] = []
    lengths: list[int] = []
    total = 0
    for document in read_documents(bench.data):
        paragraphs += document.text.split("\n")
        lengths.append(len(document.text))
        total += len(document.text)
        if total >= SAMPLE_CHARS:
            break
    dice = random.Random(bench.seed)
    while True:
        wanted = max(dice.choice(lengths), MIN_DOCUMENT_CHARS)
        lines, length = [], 0
        while length < wanted:
            lines.append(dice.choice(paragraphs))
            length += len(lines[-1]) + 1
        yield "\n".join(lines)[: 2 * wanted]


def _tokenizer(bench: DataBench, shards: Path) -> Tokenizer:
    if bench.tokenizer is not None:
        return load_tokenizer(bench.tokenizer)
    texts = (document.text for document in read_documents(shards))
    return train_tokenizer(texts, bench.vocab_size, max_chars=30_000_000)


def _round(
    bench: DataBench, folder: Path, tokenizer: Tokenizer, number: int
) -> dict[str, dict[str, Any]]:
    """Whoever comes first finds the files in memory: all were just written or read."""
    ours = _prepare(bench, folder, number)
    wanted = int(WITHIN_AN_EPOCH * ours["tokens"])
    found = {"prepare": ours, "on_the_fly": _on_the_fly(bench, folder, tokenizer, number, wanted)}
    if bench.peer is not None:
        found["peer"] = _peer(bench, folder, tokenizer, wanted)
    return found


def _prepare(bench: DataBench, folder: Path, number: int) -> dict[str, Any]:
    *train, validation = sorted((folder / "base_data_climbmix").iterdir())
    settings = PrepareSettings(
        data=tuple(map(str, train)),
        val_data=(str(validation),),
        tokenizer=folder / "tokenizer.json",
        evaluation=bench.evaluation,
        # Each process has its share at the end too.
        piece_bytes=max(1_000_000, bench.megabytes * 1_000_000 // (8 * num_cores())),
        shard_tokens=16_000_000,
    )
    start_s = time.perf_counter()
    with open_executor(bench.num_workers, None) as executor:
        done = prepare(settings, folder / f"prepared-{number}", executor)
    wall_s = time.perf_counter() - start_s
    tokens = done.report["read"]["tokens"]
    return {
        "wall_s": wall_s,
        "tokens": tokens,
        "tokens_per_s": tokens / wall_s,
        "kept_tokens": done.train.num_tokens,
        **{f"{stage}_s": seconds for stage, seconds in done.report["seconds"].items()},
        **{
            f"piece_{name.replace(' ', '_')}_s": seconds
            for name, seconds in done.report["piece_seconds"].items()
        },
    }


def _on_the_fly(
    bench: DataBench, folder: Path, tokenizer: Tokenizer, number: int, wanted: int
) -> dict[str, Any]:
    """Until `wanted` tokens have come out; `steady` is without the start, which is one chapter."""
    *train, validation = sorted((folder / "base_data_climbmix").iterdir())
    texts = Texts.from_files([*map(str, train)], [str(validation)])
    start_s = time.perf_counter()
    opened = open_text(texts, tokenizer, folder / f"home-{number}")
    try:
        stream = PackedStream(opened.train, bench.context_len)
        first = stream.batch(0, bench.rows)
        first_s = time.perf_counter() - start_s
        tokens = first_tokens = first.inputs_BT.numel()
        for index in itertools.count(1):
            if tokens >= wanted:
                break
            tokens += stream.batch(index, bench.rows).inputs_BT.numel()
        wall_s = time.perf_counter() - start_s
    finally:
        opened.close()
    return {
        "wall_s": wall_s,
        "first_batch_s": first_s,
        "tokens": tokens,
        "tokens_per_s": tokens / wall_s,
        "steady_tokens_per_s": (tokens - first_tokens) / (wall_s - first_s),
    }


def _peer(bench: DataBench, folder: Path, tokenizer: Tokenizer, wanted: int) -> dict[str, Any]:
    """The peer's figures, from a process of its own.

    Raises: PeerFailed with the peer's last line if it fails.
    """
    setting = {
        "ranks": str(folder / "tokenizer.tiktoken"),
        "pattern": tokenizer.pattern,
        "special_tokens": tokenizer.special_tokens,
        "rows": bench.rows,
        "context_len": bench.context_len,
        "tokens": wanted,
    }
    script = Path(__file__).with_name("peer_data.py")
    environment = os.environ | {"PYTHONPATH": str(bench.peer), "NANOCHAT_BASE_DIR": str(folder)}
    command = [sys.executable, str(script), json.dumps(setting)]
    figures = peer_figures("the peer", command, environment)
    return figures | {
        "tokens_per_s": figures["tokens"] / figures["wall_s"],
        "encoded_tokens_per_s": figures["encoded_tokens"] / figures["wall_s"],
    }


def _vocabulary(bench: DataBench, shards: Path) -> dict[str, Any]:
    """Seconds on all cores and on one; a process each, since threads are chosen at its start."""
    command = [
        sys.executable, "-m", "nanochat.bench.data",
        str(shards), str(bench.train_megabytes), str(bench.vocab_size),
    ]  # fmt: skip
    found: dict[str, Any] = {"megabytes": bench.train_megabytes}
    for name, environment in (("all_cores", {}), ("one_core", {"RAYON_NUM_THREADS": "1"})):
        seconds = [
            peer_figures("training a vocabulary", command, os.environ | environment)["wall_s"]
            for _ in range(bench.rounds)
        ]
        found[f"{name}_s"] = statistics.median(seconds)
    found["speedup"] = found["one_core_s"] / found["all_cores_s"]
    return found


def main(words: Sequence[str]) -> dict[str, float]:
    """`SHARDS MEGABYTES VOCAB_SIZE` -> how long training a vocabulary took."""
    shards, megabytes, vocab_size = words
    texts: list[str] = []
    total = 0
    for document in read_documents(shards):
        texts.append(document.text)
        total += len(document.text)
        if total >= int(megabytes) * 1_000_000:
            break
    start_s = time.perf_counter()
    train_tokenizer(texts, int(vocab_size))
    return {"wall_s": time.perf_counter() - start_s}


def _rank_lines(tokenizer: Tokenizer) -> Iterator[str]:
    special = set(tokenizer.special_tokens.values())
    for token in range(tokenizer.vocab_size):
        if token not in special:
            packed = base64.b64encode(tokenizer.decode_bytes([token])).decode()
            yield f"{packed} {token}\n"


def _middle(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The round whose time is the middle one."""
    ordered = sorted(rounds, key=lambda each: float(each["wall_s"]))
    return ordered[len(ordered) // 2]


def _ratios(found: dict[str, Any]) -> dict[str, float]:
    prepared, peer = found["prepare"]["tokens_per_s"], found["peer"]
    return {
        "prepare_over_peer_given": prepared / peer["tokens_per_s"],
        "prepare_over_peer_encoded": prepared / peer["encoded_tokens_per_s"],
        "on_the_fly_over_peer_given": found["on_the_fly"]["tokens_per_s"] / peer["tokens_per_s"],
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
