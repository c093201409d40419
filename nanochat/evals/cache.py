"""Verdicts that are known already.   in: what decides a verdict, a folder   out: verdicts, kept
who calls: runner.py   (imports no torch)

    FOLDER/<hash>/key.json     everything that decides the verdicts in this folder
    FOLDER/<hash>/*.jsonl      a line a sample, added when it is judged; one file a process

The hash is over the key: weights, vocabulary, task and its version, mode, parameters.  Within it a
sample is known by its own content, so that changed data is asked again, whatever its file is
called, and results never come from other weights under the same name.  A run that was killed goes
on where it was, in any number of processes: each reads what all have written.  What lies longest
unused goes first where all of it is more than 2 GB (`prune`).
Read next: runner.py.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nanochat.common.files import write_json_atomically
from nanochat.common.messages import conversation_to_json
from nanochat.evals.records import verdict_from_json, verdict_to_json
from nanochat.evals.task import Sample, Verdict

__all__ = ["Journal", "digest_of", "prune"]

MOST_BYTES = 2 << 30  # some 2,000,000 verdicts
RECENT_S = 86_400.0  # another run may be at it


def digest_of(sample: Sample) -> str:
    """The hash of everything that is asked and compared with."""
    prompt = sample.prompt
    content = [
        sample.sample_id,
        prompt if isinstance(prompt, str) else conversation_to_json(prompt),
        list(sample.choices),
        sample.ending,
        sample.gold,
        dict(sample.extra),
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


KEY_FILE = "key.json"


class Journal:
    """The verdicts of one task under one key.  A folder of None keeps nothing on the disk; what is
    older than `most_age_s` is not believed."""

    def __init__(
        self, folder: Path | None, key: Mapping[str, Any], most_age_s: float | None = None
    ) -> None:
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        self.folder = None if folder is None else folder / name[:32]
        self._key = dict(key)
        self._most_age_s = most_age_s
        self._new: dict[str, Verdict] = {}
        self._file: IO[bytes] | None = None

    def known(self, samples: Sequence[Sample]) -> dict[str, Verdict]:
        """The verdicts on these samples that any process has written, by digest; of several on one
        sample a final one."""
        wanted = {digest_of(sample) for sample in samples}
        found = {digest: verdict for digest, verdict in self._new.items() if digest in wanted}
        if self.folder is None or not self.folder.is_dir():
            return found
        with contextlib.suppress(OSError):
            os.utime(self.folder / KEY_FILE)  # it is of use: prune() goes by this
        oldest_s = 0.0 if self._most_age_s is None else time.time() - self._most_age_s
        for path in sorted(self.folder.glob("*.jsonl")):
            if path.stat().st_mtime < oldest_s:
                continue
            for line in path.read_bytes().split(b"\n")[:-1]:  # what has no end was cut off
                try:
                    raw = json.loads(line)
                    digest, verdict = raw["digest"], verdict_from_json(raw)
                    if digest in wanted and (verdict.is_final or digest not in found):
                        found[digest] = verdict
                except (ValueError, KeyError, TypeError):
                    continue  # half a line that a killed process left, before another's
        return found

    def add(self, sample: Sample, verdict: Verdict) -> None:
        """Keep a verdict: when this returns, killing the process does not lose it."""
        digest = digest_of(sample)
        self._new[digest] = verdict
        if self.folder is None:
            return
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / KEY_FILE).exists():
                write_json_atomically(self.folder / KEY_FILE, self._key)
            name = f"{os.getpid()}-{secrets.token_hex(4)}.jsonl"
            self._file = (self.folder / name).open("ab", buffering=0)
        line = json.dumps({"digest": digest, **verdict_to_json(verdict)}, allow_nan=False)
        self._file.write(line.encode() + b"\n")

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def forget(self) -> None:
        """Nothing is kept of this task under this key."""
        self.close()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def prune(folder: Path, most_bytes: int = MOST_BYTES) -> None:
    """The journals in a folder take at most so much, but for those used within a day.

    What cannot be removed stays.
    """
    journals = []
    with contextlib.suppress(OSError):
        for key in folder.glob(f"*/{KEY_FILE}"):
            size = sum(file.stat().st_size for file in key.parent.iterdir())
            journals.append((key.stat().st_mtime, size, key.parent))
    num_bytes = sum(size for _, size, _ in journals)
    for used_s, size, journal in sorted(journals):
        if num_bytes <= most_bytes or used_s > time.time() - RECENT_S:
            return
        shutil.rmtree(journal, ignore_errors=True)
        num_bytes -= size
