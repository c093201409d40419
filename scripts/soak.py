"""Checkpoints -> can they be lost.   in: how many kills, how many corruptions   out: one JSON line
who calls: make soak, tests/fault

    kills        a process that saves again and again is killed with SIGKILL at a random moment;
                 then the newest checkpoint has to be there, whole, and no older than the last one
                 that was reported as saved
    corruptions  a bit is flipped, a file cut short or deleted, anywhere in a checkpoint; loading
                 has to refuse it by the file's name, and the one before it has to be found
    speed        of a larger checkpoint: loading beside reading and hashing the same bytes; what a
                 save holds up, and what it takes in the background

Exit code 1 if anything was lost or accepted.  Children are forked from this process once torch is
loaded, so a kill costs milliseconds.
Read next: nanochat/checkpoint/saver.py, docs/operate.md (what survives what).
"""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: a process with threads forks badly
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from nanochat.checkpoint.format import (
    Checkpoint,
    load_checkpoint,
    newest_valid,
    save_checkpoint,
    step_path,
)
from nanochat.checkpoint.saver import Retention, Saver
from nanochat.common.errors import CheckpointError
from nanochat.common.files import sha256_of_file
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["checkpoint_of", "corruptions", "kills", "main", "speed"]

FAILURES = ("lost", "damaged", "mixed", "accepted", "unnamed")


def checkpoint_of(step: int, depth: int = 2, vocab_size: int = 300) -> Checkpoint:
    """A checkpoint whose every number is its step, so that a mixture of two would be seen."""
    config = GPTConfig.from_depth(depth, vocab_size=vocab_size, context_len=64, head_dim=32)
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in GPT(config).named_parameters()}
    return Checkpoint(
        config=config,
        weights={name: torch.full(shape, float(step)) for name, shape in shapes.items()},
        tokenizer=_tokenizer(vocab_size),
        optimizer={
            f"{name}/first": torch.full(shape, float(step)) for name, shape in shapes.items()
        }
        if depth == 2
        else None,
        state={"stage": "pretrain", "step": step},
    )


def kills(stage: Path, num_kills: int, seed: int = 0) -> dict[str, Any]:
    """What `num_kills` kills did to the checkpoints of a stage.

    lost: the newest was older than one reported as saved; damaged: one was there that is not whole;
    mixed: numbers of another step; interrupted: the kill came while files were written or removed.
    """
    rng = random.Random(seed)
    result = Counter[str](kills=num_kills, interrupted=0, lost=0, damaged=0, mixed=0)
    span_s, newest = _warm_up(stage)
    for _ in range(num_kills):
        reported = _kill_one(stage, newest, rng.uniform(0.0, span_s))
        span_s *= 1.05 if reported is None else 0.95  # half of the kills: within the first save
        result["interrupted"] += any((stage / "checkpoints").glob(".step_*"))
        damaged: list[tuple[Path, CheckpointError]] = []
        found = newest_valid(stage, lambda *refused: damaged.append(refused))  # noqa: B023
        result["damaged"] += len(damaged)
        result["lost"] += found is None or found[0] < (reported or newest)
        if found is not None:
            result["mixed"] += not _is_whole(found[1], found[0])
            newest = found[0]
    return {**result, "last_step": newest}


def corruptions(stage: Path, num_corruptions: int, seed: int = 0) -> dict[str, Any]:
    """How loading took `num_corruptions` ways of damage.

    accepted: it was loaded; unnamed: refused without the file's name; lost: the one before it was
    not found.
    """
    rng = random.Random(seed)
    steps = [step_path(stage / "checkpoints", step) for step in (1, 2)]
    for step, path in enumerate(steps, 1):
        save_checkpoint(path, checkpoint_of(step))
    files = sorted(path for path in steps[1].rglob("*") if path.is_file())
    result = Counter[str](corruptions=num_corruptions, accepted=0, unnamed=0, lost=0)
    kinds = sorted(DAMAGES)
    for index in range(num_corruptions):
        kind, path = kinds[index % len(kinds)], rng.choice(files)
        content = path.read_bytes()
        DAMAGES[kind](path, content, rng)
        result[kind] += 1
        try:
            load_checkpoint(steps[1], with_optimizer=True)
            result["accepted"] += 1
        except CheckpointError as error:
            result["unnamed"] += path.name not in str(error)
        result["lost"] += newest_valid(stage) != (1, steps[0])
        path.write_bytes(content)
    assert newest_valid(stage) == (2, steps[1]), "what was mended is whole again"
    return dict(result)


def speed(stage: Path, depth: int, num_rounds: int = 9) -> dict[str, Any]:
    """Seconds, the best of some rounds, for a checkpoint of this depth, vocabulary 8,192.

    Units: load_ratio is loading, verified, over reading and hashing the same files one by one;
           first_use_s is reading every loaded number once, save_held_up_s what training waits for,
           save_s what the background takes.
    """
    checkpoint = checkpoint_of(1, depth, 8192)
    saver = Saver(stage / "checkpoints", Retention(keep_last=1))
    seconds: dict[str, list[float]] = {}
    for step in range(1, num_rounds + 1):
        _timed(seconds, "save_held_up_s", lambda: saver.save(step, checkpoint))  # noqa: B023
        _timed(seconds, "save_s", saver.finish)
    path = step_path(stage / "checkpoints", num_rounds)
    files = [file for file in path.rglob("*") if file.is_file()]
    for _ in range(num_rounds):
        _timed(seconds, "read_and_hash_s", lambda: [sha256_of_file(file) for file in files])
        loaded = _timed(seconds, "load_s", lambda: load_checkpoint(path))
        tensors = loaded.weights.values()
        _timed(seconds, "first_use_s", lambda: [tensor.sum() for tensor in tensors])  # noqa: B023
    best = {name: round(min(values), 4) for name, values in seconds.items()}
    return {
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6, 1),
        "load_ratio": round(best["load_s"] / best["read_and_hash_s"], 3),
        "first_save_held_up_s": round(seconds["save_held_up_s"][0], 4),
        **best,
    }


def main() -> int:
    """Prints one line; 1 if a checkpoint was lost, or damage accepted."""
    parser = argparse.ArgumentParser(description="Checkpoints under fire.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--corruptions", type=int, default=1000)
    parser.add_argument("--speed-depth", type=int, default=0, help="0: no measurement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="on the disk that is meant; default: temporary")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak_", dir=options.folder))
    start_s = time.monotonic()
    result: dict[str, Any] = {"seed": options.seed, "torch": torch.__version__}
    try:
        if options.kills:
            result["kills"] = kills(folder / "kills", options.kills, options.seed)
        if options.corruptions:
            result["corruptions"] = corruptions(
                folder / "corruptions", options.corruptions, options.seed
            )
        if options.speed_depth:
            result["speed"] = speed(folder / "speed", options.speed_depth)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result["wall_s"] = round(time.monotonic() - start_s, 1)
    counts = [result.get(part, {}) for part in ("kills", "corruptions")]
    result["is_good"] = not any(count.get(name) for count in counts for name in FAILURES)
    print(json.dumps(result))
    return 0 if result["is_good"] else 1


def _save(saver: Saver, step: int) -> None:
    saver.save(step, checkpoint_of(step))
    saver.validated(step, 1.0 + step % 7)  # the best moves now and then
    saver.finish()


def _warm_up(stage: Path, num_saves: int = 5) -> tuple[float, int]:
    """Twice the time of a save, and the newest step."""
    saver, durations_s = Saver(stage / "checkpoints"), []
    for step in range(1, num_saves + 1):
        start_s = time.monotonic()
        _save(saver, step)
        durations_s.append(time.monotonic() - start_s)
    return 2 * statistics.median(durations_s), num_saves


def _kill_one(stage: Path, newest: int, delay_s: float) -> int | None:
    """Fork a process that saves the steps after `newest`, kill it; the last step it reported."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            saver = Saver(stage / "checkpoints")
            os.write(writer, struct.pack("<q", 0))  # ready
            for step in itertools.count(newest + 1):
                _save(saver, step)
                os.write(writer, struct.pack("<q", step))
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as reports:
        reports.read(8)
        time.sleep(delay_s)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "it ended by itself: saving failed"
        steps = struct.unpack(f"<{len(rest) // 8}q", rest) if (rest := reports.read()) else ()
    return steps[-1] if steps else None


def _is_whole(path: Path, step: int) -> bool:
    checkpoint = load_checkpoint(path, with_optimizer=True)
    tensors = [*checkpoint.weights.values(), *(checkpoint.optimizer or {}).values()]
    return checkpoint.state["step"] == step and all(bool((t == step).all()) for t in tensors)


def _flip(path: Path, content: bytes, rng: random.Random) -> None:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)


def _truncate(path: Path, content: bytes, rng: random.Random) -> None:
    path.write_bytes(content[: rng.randrange(len(content))])


def _delete(path: Path, content: bytes, rng: random.Random) -> None:
    path.unlink()


Damage = Callable[[Path, bytes, random.Random], None]
DAMAGES: dict[str, Damage] = {"flip": _flip, "truncate": _truncate, "delete": _delete}


def _timed(seconds: dict[str, list[float]], name: str, work: Callable[[], Any]) -> Any:
    start_s = time.perf_counter()
    value = work()
    seconds.setdefault(name, []).append(time.perf_counter() - start_s)
    return value


def _tokenizer(vocab_size: int) -> Tokenizer:
    """Bytes, then pairs of letters and digits: as many tokens as the vocabulary has room for."""
    num_more = vocab_size - Tokenizer([bytes([byte]) for byte in range(256)]).vocab_size
    pairs = itertools.islice(itertools.product(range(33, 127), repeat=2), num_more)
    return Tokenizer([*(bytes([byte]) for byte in range(256)), *(bytes(pair) for pair in pairs)])


if __name__ == "__main__":
    sys.exit(main())
