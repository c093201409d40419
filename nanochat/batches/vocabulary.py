"""Texts -> the vocabulary that is learnt from them, once.   in: Texts, a size   out: Tokenizer
who calls: cli/pretrain.py (here), and the process it starts (`_main`)   (imports no torch)

What is learnt is kept under `<home>/tokenizers`, by the text and the size: the other ranks, a
restarted job and the next run find it.  A process of its own learns, because rustbpe holds on to
the interpreter for as long as it merges, which on much text is longer than a rank may be silent
(watch.py).
Read next: tokenizer/train.py (how), sources.py (what a text is).
"""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nanochat
from nanochat.batches.background import fault_of
from nanochat.batches.chapter_writer import beginning
from nanochat.batches.sources import Texts
from nanochat.common.errors import TrainingError
from nanochat.common.files import home_dir
from nanochat.tokenizer.tokenizer import SPLIT_PATTERN, Tokenizer
from nanochat.tokenizer.train import train_tokenizer

__all__ = ["TOKENIZER_CHARS", "learnt_tokenizer", "tokenizer_place"]

TOKENIZER_CHARS = 100_000_000  # of the training text are enough for a vocabulary
DOC_CAP = 50_000
VERSION = 1  # raised when the same text would give another vocabulary
LOOKS_S = 1.0  # how often the process looks whether who started it is still there


def learnt_tokenizer(
    texts: Sequence[Texts], vocab_size: int, home: Path | None = None
) -> Tokenizer:
    """The vocabulary of the texts, of each as much; learnt where it has not been before.

    Raises: DataError, ConfigError and TokenizerError as train_tokenizer does; TrainingError if the
            process that learns has died.
    """
    place = tokenizer_place(texts, vocab_size, home)
    if not place.is_file():
        _learn_elsewhere([text.recipe for text in texts], vocab_size, place)
    return Tokenizer.load(place)


def tokenizer_place(texts: Sequence[Texts], vocab_size: int, home: Path | None = None) -> Path:
    """Where it is kept."""
    identities = [text.identity("train") for text in texts]
    parts = [VERSION, identities, vocab_size, TOKENIZER_CHARS, DOC_CAP, SPLIT_PATTERN]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return home_dir(home) / "tokenizers" / f"{digest[:24]}.json"


def _learn_elsewhere(recipes: Sequence[str], vocab_size: int, place: Path) -> None:
    package = str(Path(nanochat.__file__).resolve().parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    job = [recipes, vocab_size, str(place), os.getpid()]
    process = subprocess.Popen(
        [sys.executable, "-c", "from nanochat.batches.vocabulary import _main; _main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C is for us, who end it
    )
    try:
        said, _ = process.communicate(json.dumps(job).encode())
    finally:
        process.kill()
        process.wait()
    told: Any = json.loads(said) if said.endswith(b"\n") else None
    if told is None:
        raise TrainingError(
            f"the process that learns the vocabulary (process {process.pid}) ended with code "
            f"{process.returncode}: if memory was short, train a tokenizer before (nanochat "
            "tokenizer train) and name it with --tokenizer"
        )
    if told["error"] is not None:
        raise fault_of(told["error"], told["message"], "the vocabulary could not be learnt")


def _main() -> None:
    """Learn what the job on the input says; one line of JSON says how it went."""
    recipes, vocab_size, place, parent = json.loads(sys.stdin.buffer.read())
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    told: dict[str, str | None] = {"error": None}
    try:
        _learnt(recipes, vocab_size).save(Path(place))
    except Exception as error:
        told = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.buffer.write(json.dumps(told).encode() + b"\n")


def _learnt(recipes: Sequence[str], vocab_size: int) -> Tokenizer:
    each = [Texts.from_recipe(recipe).documents("train", None) for recipe in recipes]
    if len(each) > 1:
        each = [beginning(documents, TOKENIZER_CHARS // len(each)) for documents in each]
    documents = (document.text for document in itertools.chain.from_iterable(each))
    return train_tokenizer(documents, vocab_size, max_chars=TOKENIZER_CHARS, doc_cap=DOC_CAP)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOKS_S)
    os._exit(1)
