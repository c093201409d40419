"""A large text -> does it fit a small memory.   in: how large, how much memory   out: one JSON line
who calls: make soak, tests/batches/test_soak_data.py

    corpus    made-up words with the frequencies of real ones, in JSONL files, some GB in a minute
    pretrain  some steps on it, from the raw text
    stream    all of its batches, once through, tokenized while they are read: tokens/s
    prepare   nanochat data prepare of all of it

Each runs as its users run it, in processes of its own whose data segments are limited (RLIMIT_DATA:
what is past the limit is a MemoryError), and the memory of all of them together is looked at ten
times a second.  File pages are apart: the system takes them back when somebody else needs memory.
Exit code 1 if one of them fails or has more.
Read next: nanochat/batches/on_the_fly.py, docs/data.md.
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from nanochat.corpus.documents import read_documents
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.tokenizer.train import train_tokenizer

__all__ = [
    "Bounded",
    "bounded",
    "main",
    "prepare",
    "pretrain",
    "save_tokenizer",
    "stream",
    "write_corpus",
]

ROOT = Path(__file__).resolve().parent.parent
FILE_BYTES = 256 << 20
NUM_WORDS, NUM_SENTENCES = 20_000, 40_000
VOCAB_SIZE, TOKENIZER_CHARS = 4096, 5_000_000
LOOK_S = 0.1
SMALL_MODEL = (
    "--depth 2 --context-len 128 --head-dim 16 --aspect-ratio 16 --batch-tokens 4096 --device cpu "
    "--dtype float32 --compile off --device-batch-rows 4 --eval-tokens 4096 --eval-every 0"
).split()


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """What became of a command under a limit."""

    code: int
    wall_s: float
    peak_bytes: int
    """Of all its processes together at one time, without file pages."""
    peak_processes: tuple[int, ...]
    """Of each process by itself, the largest first."""
    output: str

    def to_json(self, limit_bytes: int) -> dict[str, Any]:
        """For the report; `ok` if it went well within the limit."""
        return {
            "ok": self.code == 0 and self.peak_bytes <= limit_bytes,
            "wall_s": round(self.wall_s, 1),
            "peak_mb": round(self.peak_bytes / 1e6),
            "processes_mb": [round(each / 1e6) for each in self.peak_processes],
            **({} if self.code == 0 else {"code": self.code, "said": self.output[-600:]}),
        }


def write_corpus(folder: Path, num_bytes: int, seed: int = 0) -> int:
    """About so many bytes of documents, a few kilobytes each; how many documents."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    sentences = _sentences(rng)
    num_documents = written = file = 0
    while written < num_bytes:
        with (folder / f"{file:04}.jsonl").open("wb", buffering=1 << 20) as out:
            end = min(written + FILE_BYTES, num_bytes)
            while written < end:
                sizes = np.clip(rng.lognormal(3.0, 0.7, 1000), 2, 400).astype(int)
                ends = np.cumsum(sizes).tolist()
                chosen = rng.integers(0, NUM_SENTENCES, ends[-1]).tolist()
                for start, end_of_text in itertools.pairwise([0, *ends]):
                    text = b" ".join([sentences[each] for each in chosen[start:end_of_text]])
                    written += out.write(b'{"text": "Number %d. %s"}\n' % (num_documents, text))
                    num_documents += 1
        file += 1
    return num_documents


def bounded(command: Sequence[str], limit_bytes: int) -> Bounded:
    """Run it with no more data in any of its processes, and look at all of them."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

    start_s = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as output:
        with subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, preexec_fn=limit
        ) as process:
            peak, peaks = 0, dict[int, int]()
            while process.poll() is None:
                sizes = dict(_sizes(process.pid))
                peak = max(peak, sum(sizes.values()))
                peaks |= {who: max(size, peaks.get(who, 0)) for who, size in sizes.items()}
                time.sleep(LOOK_S)
        output.seek(0)
        said = output.read().decode(errors="replace")
    return Bounded(
        code=process.returncode,
        wall_s=time.monotonic() - start_s,
        peak_bytes=peak,
        peak_processes=tuple(sorted(peaks.values(), reverse=True)),
        output=said,
    )


def pretrain(
    corpus: Path, folder: Path, limit_bytes: int, num_steps: int, chapter_chars: int
) -> Bounded:
    """Some steps from the raw text."""
    words = ["--home", str(folder / "home"), "--data", str(corpus), "--run", "soak", "--overwrite"]
    words += ["--tokenizer", str(folder / "tokenizer.json"), "--num-steps", str(num_steps)]
    words += ["--chapter-chars", str(chapter_chars)]
    return bounded(
        [sys.executable, "-m", "nanochat", "pretrain", *words, *SMALL_MODEL], limit_bytes
    )


def stream(corpus: Path, folder: Path, limit_bytes: int, chapter_chars: int) -> dict[str, Any]:
    """All batches of an epoch, while the text is tokenized."""
    words = [str(corpus), str(folder), str(chapter_chars)]
    run = bounded(
        [sys.executable, str(ROOT / "scripts/soak_data.py"), "--read", *words], limit_bytes
    )
    told = json.loads(run.output.splitlines()[-1]) if run.code == 0 else {}
    return {**run.to_json(limit_bytes), **told}


def prepare(corpus: Path, folder: Path, limit_bytes: int) -> Bounded:
    """All of it, cleaned, tokenized and shuffled."""
    words = [str(corpus), "--to", str(folder / "prepared"), "--workers", "2"]
    words += ["--tokenizer", str(folder / "tokenizer.json")]
    return bounded([sys.executable, "-m", "nanochat", "data", "prepare", *words], limit_bytes)


def main(argv: Sequence[str] | None = None) -> int:
    """0 if all went well."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--limit-gb", type=float, default=2.0)
    parser.add_argument("--num-steps", type=int, default=200)
    parser.add_argument("--chapter-chars", type=int, default=64_000_000)
    parser.add_argument("--parts", nargs="+", default=["pretrain", "stream", "prepare"])
    parser.add_argument("--folder", type=Path, help="where there is room; removed afterwards")
    parser.add_argument("--read", nargs=3, help=argparse.SUPPRESS)
    said = parser.parse_args(argv)
    if said.read:
        print(json.dumps(_read(*said.read)))
        return 0
    limit_bytes = int(said.limit_gb * 1e9)
    folder = Path(tempfile.mkdtemp(prefix="soak_data_", dir=said.folder))
    try:
        result = _soak(folder, said, limit_bytes)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result))
    return 0 if all(part["ok"] for part in result["parts"].values()) else 1


def _soak(folder: Path, said: argparse.Namespace, limit_bytes: int) -> dict[str, Any]:
    start_s = time.monotonic()
    num_documents = write_corpus(folder / "corpus", int(said.gigabytes * 1e9))
    wrote_s = time.monotonic() - start_s
    save_tokenizer(folder / "corpus", folder / "tokenizer.json")
    parts: dict[str, dict[str, Any]] = {}
    for part in said.parts:
        if part == "pretrain":
            run = pretrain(
                folder / "corpus", folder, limit_bytes, said.num_steps, said.chapter_chars
            )
            parts[part] = run.to_json(limit_bytes)
        elif part == "stream":
            parts[part] = stream(folder / "corpus", folder, limit_bytes, said.chapter_chars)
        else:
            parts[part] = prepare(folder / "corpus", folder, limit_bytes).to_json(limit_bytes)
    return {
        "gigabytes": said.gigabytes,
        "num_documents": num_documents,
        "written_s": round(wrote_s, 1),
        "limit_mb": limit_bytes // 1_000_000,
        "parts": parts,
    }


def save_tokenizer(corpus: Path, path: Path) -> None:
    """One of the corpus's own, of the beginning."""
    texts = (document.text for document in read_documents([corpus]))
    train_tokenizer(texts, VOCAB_SIZE, max_chars=TOKENIZER_CHARS).save(path)


def _read(corpus: str, folder: str, chapter_chars: str) -> dict[str, Any]:
    """In a process of its own: every batch once, and how fast."""
    from nanochat.batches.on_the_fly import open_text
    from nanochat.batches.sources import Texts
    from nanochat.batches.stream import PackedStream

    tokenizer = Tokenizer.load(Path(folder) / "tokenizer.json")
    texts = Texts.from_files([corpus])
    start_s = time.monotonic()
    text = open_text(
        texts, tokenizer, Path(folder) / "read", chapter_chars=int(chapter_chars) or None
    )
    packed = PackedStream(text.train, 2048, num_epochs=1)
    num_tokens = index = 0
    while num_targets := packed.batch(index, 32).num_targets:
        num_tokens, index = num_tokens + num_targets, index + 1
    wall_s = time.monotonic() - start_s
    text.close()
    return {"num_tokens": num_tokens, "tokens_per_s": round(num_tokens / wall_s)}


def _sentences(rng: np.random.Generator) -> list[bytes]:
    """Words by Zipf's law, of one to four syllables."""
    onsets = "b c d f g h k l m n p r s t v w st tr pl gr".split()
    syllables = [onset + vowel for onset in onsets for vowel in ("a", "e", "i", "o", "u", "ai")]
    words = [
        "".join(syllables[each] for each in rng.integers(0, len(syllables), size))
        for size in rng.integers(1, 5, NUM_WORDS)
    ]
    odds = 1.0 / (np.arange(NUM_WORDS) + 10.0)
    sizes = rng.integers(6, 22, NUM_SENTENCES)
    chosen = iter(rng.choice(NUM_WORDS, int(sizes.sum()), p=odds / odds.sum()))
    return [
        (" ".join(words[next(chosen)] for _ in range(size)).capitalize() + ".").encode()
        for size in sizes
    ]


def _sizes(root: int) -> Iterator[tuple[int, int]]:
    """Each process below this one, itself included, and its memory without file pages."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has just ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    waiting = [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        kilobytes = [int(fields.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem")]
        yield process, sum(kilobytes) * 1024


if __name__ == "__main__":
    sys.exit(main())
