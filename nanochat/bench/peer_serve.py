"""Peers' servers, with random weights of the same size.   in: paths of the user's own, a size
out: an address and a dialect, as long as a block lasts   who calls: serve.py; and itself, in
karpathy/nanochat's process

    llama-server   llama.cpp's server with a GGUF file (gguf.py) and as many slots as users; asked
                   at /v1/completions with token ids and ignore_eos
    chat_web       karpathy/nanochat before July 2026, when its page was taken out: this file, run
                   with the checkout on PYTHONPATH, writes a checkpoint with that code and starts
                   scripts.chat_web

As a script it imports nothing of ours.
Read next: serve.py, load_client.py (the dialects).
"""

import contextlib
import json
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanochat.bench.load_client import PrivateDialect, TokensDialect
    from nanochat.bench.load_wire import Address
    from nanochat.model.config import GPTConfig

__all__ = ["PeerModel", "llama_server", "main", "nanochat_server"]

START_S = 300
STOP_S = 10
LLAMA_FORMATS = {"float32": "bf16", "bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"}
SLOT_TOKENS = 2048  # of each of llama.cpp's slots


@dataclass(frozen=True, kw_only=True, slots=True)
class PeerModel:
    """What a peer serves."""

    config: "GPTConfig"
    format: str
    """Ours; "auto" is taken as bfloat16."""
    folder: Path
    """For its files."""
    num_users: int

    @property
    def llama_format(self) -> str:
        """The format of llama.cpp that has as many bits."""
        return LLAMA_FORMATS.get(self.format, "bf16")


@contextlib.contextmanager
def llama_server(binary: Path, model: PeerModel) -> "Iterator[tuple[Address, TokensDialect]]":
    """llama.cpp's server.

    Raises: EngineError with its last line if it does not start.
    """
    from nanochat.bench.gguf import write_gguf
    from nanochat.bench.load_client import TokensDialect
    from nanochat.bench.load_model import made_up_tokens

    file, port = model.folder / f"{model.llama_format}.gguf", _free_port()
    vocab_size = model.config.vocab_size
    write_gguf(file, model.config, model.llama_format, tokens=made_up_tokens(vocab_size))
    num_threads = os.cpu_count() or 1
    command = [
        str(binary), "--model", str(file), "--host", "127.0.0.1", "--port", str(port),
        "--parallel", str(model.num_users), "--ctx-size", str(SLOT_TOKENS * model.num_users),
        "--threads", str(num_threads), "--threads-batch", str(num_threads),
    ]  # fmt: skip
    with _running(command, port, "/health", {}) as address:
        fields = {"ignore_eos": True, "cache_prompt": False, "temperature": 0.8, "top_k": 50}
        yield address, TokensDialect(vocab_size=vocab_size, fields=fields)


@contextlib.contextmanager
def nanochat_server(
    checkout: Path, python: Path, model: PeerModel
) -> "Iterator[tuple[Address, PrivateDialect]]":
    """karpathy/nanochat's chat_web.py.

    Raises: EngineError with its last line if it does not start.
    """
    from nanochat.bench.load_client import PrivateDialect
    from nanochat.bench.load_model import made_up_tokens
    from nanochat.checkpoint.reference_config import their_config
    from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN

    config, port, base = model.config, _free_port(), model.folder / "peer_nanochat"
    setting = {
        "port": port,
        "pattern": SPLIT_PATTERN,
        "tokens": [token.decode("latin-1") for token in made_up_tokens(config.vocab_size)],
        "special_tokens": list(SPECIAL_TOKENS),
        "config": their_config(config, "SSSL"),
    }
    base.mkdir()
    (base / "setting.json").write_text(json.dumps(setting))
    environment = {"PYTHONPATH": str(checkout), "NANOCHAT_BASE_DIR": str(base)}
    command = [str(python), str(Path(__file__).resolve()), str(base / "setting.json")]
    with _running(command, port, "/health", environment, checkout) as address:
        yield address, PrivateDialect(fields={"temperature": 0.8, "top_k": 50})


@contextlib.contextmanager
def _running(
    command: Sequence[str],
    port: int,
    path: str,
    environment: Mapping[str, str],
    directory: Path | None = None,
) -> "Iterator[Address]":
    """A process, once it answers with 200."""
    from nanochat.bench.load_wire import Address
    from nanochat.common.errors import EngineError

    address = Address(host="127.0.0.1", port=port)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=directory,
        )
        try:
            if not _is_ready(process, address, path):
                log.seek(0)
                last = (log.read().strip().splitlines() or ["it said nothing"])[-1]
                raise EngineError(f"the peer {Path(command[0]).name} did not start: {last}")
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(process: "subprocess.Popen[bytes]", address: "Address", path: str) -> bool:
    from nanochat.bench.load import get
    from nanochat.bench.load_wire import WireError

    end_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(OSError, WireError):
            if get(address, path)[0] == 200:
                return True
        time.sleep(0.2)
    return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


# -------------------------------------------------------------------- in the peer's process


def main(path: Path) -> None:
    """Write a checkpoint with karpathy/nanochat's own model, and serve it until a signal."""
    import tiktoken
    import torch

    from nanochat.gpt import GPT, GPTConfig  # type: ignore[attr-defined, import-not-found, import-untyped, unused-ignore]

    setting: dict[str, Any] = json.loads(path.read_text())
    base = path.parent
    checkpoints = base / "chatsft_checkpoints" / "random"
    checkpoints.mkdir(parents=True)
    (base / "tokenizer").mkdir()
    tokens = [token.encode("latin-1") for token in setting["tokens"]]
    encoding = tiktoken.Encoding(
        name="made_up",
        pat_str=setting["pattern"],
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={
            name: len(tokens) + place for place, name in enumerate(setting["special_tokens"])
        },
    )
    (base / "tokenizer" / "tokenizer.pkl").write_bytes(pickle.dumps(encoding))
    torch.manual_seed(0)
    model = GPT(GPTConfig(**setting["config"]))
    model.init_weights()
    torch.save(model.state_dict(), checkpoints / "model_000001.pt")
    (checkpoints / "meta_000001.json").write_text(json.dumps({"model_config": setting["config"]}))
    del model
    flags = ["--host", "127.0.0.1", "--port", str(setting["port"]), "--device-type", "cpu"]
    sys.argv = ["chat_web", "--source", "sft", *flags]
    runpy.run_module("scripts.chat_web", run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
