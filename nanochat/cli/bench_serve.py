"""nanochat bench serve   in: a server or a model, users, peers   out: one JSON object, or tables
who calls: cli.main

Read next: bench/serve.py.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanochat.bench.load import Lengths, Load, Workload, address_of
from nanochat.bench.load_metrics import Slo, table
from nanochat.common.config import CommonOptions
from nanochat.common.env import api_key_from_env
from nanochat.common.errors import ConfigError

__all__ = ["Config", "run"]


@dataclass(frozen=True, kw_only=True)
class Config(CommonOptions):
    """Ask a server as many users would, and measure what they notice.

    With --url a server that runs already; otherwise one is started, of a model or of random weights
    of a depth, and ended.  Figures are defined as vLLM defines them.
    """

    url: str | None = None
    """The address of a running server, such as http://127.0.0.1:8000; $NANOCHAT_API_KEY is shown to
    it."""
    model: str | None = None
    """A model to serve: what `nanochat serve` takes."""
    depth: int = 12
    """Without --url and --model: random weights of so many layers."""
    vocab_size: int = 32_768
    """Entries of the vocabulary of random weights."""
    head_dim: int = 128
    """Width of one attention head of random weights."""
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """What weights are kept in; auto: bfloat16 where the processor multiplies it fast."""
    device: str | None = None
    """cuda, mps or cpu. None: the fastest there is."""
    users: str = "1,4,16"
    """Users at once, each asking again when answered; separated by commas, one after the other."""
    rate: float | None = None
    """Requests a second that arrive by chance, instead of users."""
    seconds: float = 60.0
    """How long each number of users is measured."""
    warmup_s: float = 5.0
    """What comes before and does not count."""
    prompt_tokens: str = "64"
    """Length of prompts: 64, 32-128 (all alike) or ~64 (lognormal around the median)."""
    output_tokens: str = "128"
    """Length of answers, in the same forms."""
    slo: str | None = None
    """What counts for goodput, in milliseconds: "ttft:200 tpot:50 e2el:5000", any of them."""
    max_ttft_ms: float | None = None
    """The longest that a single user, who finds the server idle, may wait for a first token, in the
    median; more is a failure, exit code 1. Needs a 1 among the users."""
    stall_s: float = 2.0
    """A silence in the middle of an answer that is longer than this is a stall."""
    ignore_eos: bool = False
    """Answers go on past their natural end, so that lengths are exact."""
    seed: int = 0
    """Equal seeds ask the same."""
    engine: bool = False
    """Measure the engine without HTTP too, before and after each turn: what the server costs."""
    turns: int = 1
    """How often each number of users is measured; the turn in the middle is told."""
    peer_llama_server: Path | None = None
    """llama.cpp's llama-server, to be measured with a model of the same size."""
    peer_nanochat: Path | None = None
    """A checkout of karpathy/nanochat that still has scripts/chat_web.py (before July 2026)."""
    peer_python: Path | None = None
    """The interpreter that runs it. None: this one."""

    def __post_init__(self) -> None:
        if self.url is not None:
            address_of(self.url)
            own = {"model": self.model, "peer_llama_server": self.peer_llama_server,
                   "peer_nanochat": self.peer_nanochat, "engine": self.engine or None}  # fmt: skip
            if given := [name for name, value in own.items() if value is not None]:
                raise ConfigError(f"url goes without {', '.join(given)}: give one or the other")
        if self.rate is not None and self.engine:
            raise ConfigError("engine goes with users, not with a rate")
        if self.max_ttft_ms is not None and 1 not in self.counts():
            raise ConfigError(
                f"max_ttft_ms is about a single user, but users is {self.users!r}: add 1 to them, "
                "and give no rate"
            )
        self.load()
        self._check_numbers()
        self._check_paths()

    def counts(self) -> tuple[int, ...]:
        """The numbers of users; none where a rate is given.

        Raises: ConfigError for what is no list of numbers.
        """
        if self.rate is not None:
            return ()
        words = [word.strip() for word in self.users.split(",")]
        if not all(word.isdecimal() and int(word) >= 1 for word in words):
            raise ConfigError(
                f"users is {self.users!r}, expected numbers from 1 on, such as 1,4,16"
            )
        return tuple(int(word) for word in words)

    def load(self) -> Load:
        """What each of them asks.

        Raises: ConfigError for a length or a limit that cannot be read.
        """
        workload = Workload(
            prompt=Lengths.parse(self.prompt_tokens),
            output=Lengths.parse(self.output_tokens),
            seed=self.seed,
        )
        return Load(
            workload=workload,
            rate=self.rate,
            seconds=self.seconds,
            warmup_s=self.warmup_s,
            slo=None if self.slo is None else Slo.parse(self.slo),
            stall_s=self.stall_s,
        )

    def _check_numbers(self) -> None:
        self.counts()
        wrong = [
            f"{name} is {value:g}, expected {'more than' if is_open else 'at least'} {least}"
            for name, value, least, is_open in (
                ("depth", self.depth, 1, False),
                ("vocab_size", self.vocab_size, 300, False),
                ("turns", self.turns, 1, False),
                ("seconds", self.seconds, 0, True),
                ("warmup_s", self.warmup_s, 0, False),
                ("stall_s", self.stall_s, 0, True),
                ("max_ttft_ms", 1.0 if self.max_ttft_ms is None else self.max_ttft_ms, 0, True),
                ("rate", 1.0 if self.rate is None else self.rate, 0, True),
            )
            if not (value > least or (value == least and not is_open))
        ]
        if wrong:
            raise ConfigError("; ".join(wrong))

    def _check_paths(self) -> None:
        peer = self.peer_nanochat
        if peer is not None and not (peer / "scripts" / "chat_web.py").is_file():
            raise ConfigError(
                f"--peer-nanochat {peer}: no scripts/chat_web.py there; give a checkout from "
                "before July 2026"
            )
        binary = self.peer_llama_server
        if binary is not None and not (binary.is_file() and os.access(binary, os.X_OK)):
            raise ConfigError(f"--peer-llama-server {binary}: no program there")
        if self.peer_python is not None and not self.peer_python.is_file():
            raise ConfigError(f"--peer-python {self.peer_python}: no interpreter there")


def run(config: Config) -> int:
    """0 once everything is measured; 1 if any request of ours failed, none was answered, or the
    first token of a single user came late."""
    from nanochat.bench.serve import ServeBench, bench_serve

    peer = config.peer_nanochat
    result = bench_serve(
        ServeBench(
            load=config.load(),
            users=config.counts(),
            url=config.url,
            api_key=api_key_from_env() if config.url is not None else None,
            model=config.model,
            depth=config.depth,
            vocab_size=config.vocab_size,
            head_dim=config.head_dim,
            format=config.dtype,
            device=config.device,
            is_beside_engine=config.engine,
            turns=config.turns,
            max_ttft_ms=config.max_ttft_ms,
            ignores_eos=config.ignore_eos,
            llama_server=config.peer_llama_server,
            peer_nanochat=peer.resolve() if peer is not None else None,
            peer_python=config.peer_python,
            home=config.home,
        )
    )
    if config.json:
        print(json.dumps(result))
    else:
        _print(result)
    turns = [turn for row in result["rows"] for turn in row["turns"]]
    is_complete = all(turn["num_success"] >= max(1, turn["num_requests"]) for turn in turns)
    return int(not is_complete or (result["idle"] is not None and not result["idle"]["ok"]))


def _print(result: dict[str, object]) -> None:
    rows, peers, ratios, idle = (result[name] for name in ("rows", "peers", "ratios", "idle"))
    assert isinstance(rows, list) and isinstance(peers, dict) and isinstance(ratios, dict)
    print(f"{result['model']} in {result['dtype']} on {result['machine']}")
    for row in rows:
        print(table(row))
        if row["over_engine"]:
            shares = ", ".join(f"{turn['over_engine']:.1%}" for turn in row["turns"])
            print(
                f"the engine alone: {row['engine_tokens_per_s']:,.1f} tok/s; over HTTP: {shares} of"
                " it, the turn in the middle above"
            )
    for name, theirs in peers.items():
        for row in theirs:
            print(table(row, name))
        print(f"ours over {name}: " + ", ".join(f"{ratio:.2f}" for ratio in ratios[name] if ratio))
    if isinstance(idle, dict):
        print(
            f"an idle server's first token: {idle['ttft_ms']:.0f} ms, expected at most "
            f"{idle['limit_ms']:g}: {'yes' if idle['ok'] else 'NO'}"
        )
