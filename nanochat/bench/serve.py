"""How a server stands up to users.   in: a server, or a model to serve; users; peers
out: one JSON object   who calls: cli/bench_serve.py, scripts/soak_serve.py

A server of ours is started as `nanochat serve` in a process of its own, on a free port, and ended
when everything is measured; without a model, one with random weights is written first.  The
generator shares the machine's cores with the server: its share stands in every row.
The engine alone has the same load before and after each turn of the server's, and both stay loaded:
a turn's ratio is what HTTP costs, the turn in the middle is told, and the others beside it, because
a machine that is shared changes its speed within a minute.  Peers run one after the other, never
beside ours.
Read next: load.py (the load), load_engine.py, peer_serve.py (the peers).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nanochat.bench.load import Load, Workload, address_of, calibrated, get, run_load
from nanochat.bench.load_client import ChatDialect
from nanochat.bench.load_engine import EngineLoad, engine_alone
from nanochat.bench.load_model import made_up_tokens, write_random_run
from nanochat.bench.load_wire import WireError
from nanochat.bench.peer_serve import PeerModel, llama_server, nanochat_server
from nanochat.common.device import best_device, machine_name
from nanochat.common.errors import EngineError
from nanochat.engine.load import EngineSpec
from nanochat.engine.request import SamplingParams
from nanochat.model.config import GPTConfig
from nanochat.tokenizer.chat import stop_tokens
from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["ServeBench", "Served", "bench_serve", "serving"]

START_S = 600  # loading, and the choice of operators on a machine that was never seen
STOP_S = 30
TEMPLATE_TOKENS = 4  # of a conversation of one question, beside its words
MOST_ROWS = 64  # answers at once: no user of a small bench waits for another

Alone = Callable[[int], Mapping[str, float]]
"""Measures the engine without HTTP, for so many users."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeBench:
    """What is measured: a server at `url`, or one of `model`, or one of random weights."""

    load: Load
    users: tuple[int, ...] = ()
    """Closed loops of so many; none: the open loop that `load` describes."""
    url: str | None = None
    api_key: str | None = None
    model: str | None = None
    depth: int = 12
    vocab_size: int = 32_768
    head_dim: int = 128
    format: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    device: str | None = None
    is_beside_engine: bool = False
    """Whether the engine alone is measured too, half as long, before and after each turn."""
    turns: int = 1
    """Of each number of users."""
    max_ttft_ms: float | None = None
    """The longest that a single user may wait for a first token, in the median. None: any time."""
    ignores_eos: bool = False
    """Whether answers go on past their natural end."""
    server_flags: tuple[str, ...] = ()
    """Further flags of `nanochat serve`."""
    llama_server: Path | None = None
    peer_nanochat: Path | None = None
    peer_python: Path | None = None
    """The interpreter that runs karpathy/nanochat. None: this one."""
    home: Path | None = None

    def model_config(self) -> GPTConfig:
        """The model of that depth."""
        return GPTConfig.from_depth(self.depth, vocab_size=self.vocab_size, head_dim=self.head_dim)


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server that answers."""

    url: str
    model: str
    """What it calls its model."""
    process_id: int


def bench_serve(bench: ServeBench) -> dict[str, Any]:
    """`rows` of ours, one for each number of users, `peers`, their ratios, and `idle`: whether a
    single user's first token came in time.

    Raises: EngineError if a server does not start, or answers with nothing but errors.
    """
    with tempfile.TemporaryDirectory(prefix="nanochat_bench_") as folder:
        if bench.url is not None:
            return _result(bench, _rows_at(bench, bench.url), {})
        reference = bench.model
        if reference is None:
            reference = str(write_random_run(Path(folder) / "home", bench.model_config()))
        with contextlib.ExitStack() as stack:
            alone = None
            if bench.is_beside_engine:
                alone = stack.enter_context(engine_alone(_engine_load(bench, reference)))
            flags = _flags(bench)
            served = stack.enter_context(serving(reference, flags=flags, home=bench.home))
            rows = _rows_at(bench, served.url, alone)
        return _result(bench, rows, _peers(bench, Path(folder)))


@contextlib.contextmanager
def serving(model: str, *, flags: Sequence[str] = (), home: Path | None = None) -> Iterator[Served]:
    """`nanochat serve` on a free port, as long as the block lasts.

    Raises: EngineError with its last line if it does not start.
    """
    command = [sys.executable, "-m", "nanochat", "serve", model, "--port", "0", "--json", *flags]
    if home is not None:
        command += ["--home", str(home)]
    root = str(Path(__file__).resolve().parent.parent.parent)  # this package, whatever is installed
    environment = {**os.environ, "PYTHONPATH": root}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            ready = _ready(process)
            if ready is None:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["nothing on stderr"])[-1]
                raise EngineError(f"nanochat serve {model} did not start: {last}")
            yield Served(url=ready["url"], model=ready["model"], process_id=process.pid)
        finally:
            _end(process)


def _ready(process: "subprocess.Popen[str]") -> dict[str, Any] | None:
    """What its ready line says; None if it ended instead."""
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                content = json.loads(line)
                if isinstance(content, dict) and "url" in content:
                    return content
        return None
    finally:
        timer.cancel()


def _end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _flags(bench: ServeBench) -> list[str]:
    num_rows = max([MOST_ROWS, *bench.users])
    flags = ["--dtype", bench.format, "--max-rows", str(num_rows), *bench.server_flags]
    return flags if bench.device is None else [*flags, "--device", bench.device]


# ------------------------------------------------------------------------------------- rows


def _rows_at(bench: ServeBench, url: str, alone: Alone | None = None) -> list[dict[str, Any]]:
    """A row for each number of users."""
    address = address_of(url, api_key=bench.api_key)
    try:
        status, body = get(address, "/v1/models")
        names = [model["id"] for model in json.loads(body)["data"]]
    except (OSError, WireError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{url}: no models at /v1/models ({error}): is a server there?") from None
    dialect = ChatDialect(model=names[0], fields=_fields(bench))
    workload = calibrated(address, dialect, bench.load.workload)
    rows = []
    for load in _loads(bench, workload):
        engine = partial(alone, load.users) if alone is not None and load.users else lambda: None
        rows.append(_in_turns(bench.turns, partial(run_load, address, dialect, load), engine))
    return rows


def _in_turns(
    turns: int,
    measure: Callable[[], dict[str, Any]],
    measure_engine: Callable[[], Mapping[str, float] | None],
) -> dict[str, Any]:
    """The row of the turn in the middle, by its ratio or else by its rate, and all `turns`."""
    rows: list[dict[str, Any]] = []
    before = measure_engine()
    for _ in range(turns):
        row, after = measure(), measure_engine()
        rows.append({**row, **_over(row, before, after)})
        before = after
    told = ("output_tokens_per_s", "engine_tokens_per_s", "over_engine", "num_requests",
            "num_success")  # fmt: skip
    rank = "output_tokens_per_s" if before is None else "over_engine"
    middle = sorted(rows, key=lambda row: row[rank])[len(rows) // 2]
    return {**middle, "turns": [{name: row[name] for name in told} for row in rows]}


def _over(
    row: Mapping[str, Any], before: Mapping[str, float] | None, after: Mapping[str, float] | None
) -> dict[str, float | None]:
    """Beside the mean of the engine's rates around it; None where it was not measured."""
    if before is None or after is None:
        return {"engine_tokens_per_s": None, "engine_ttft_s": None, "over_engine": None}
    rate = (before["tokens_per_s"] + after["tokens_per_s"]) / 2
    return {
        "engine_tokens_per_s": rate,
        "engine_ttft_s": (before["ttft_s"] + after["ttft_s"]) / 2,
        "over_engine": row["output_tokens_per_s"] / rate if rate else None,
    }


def _fields(bench: ServeBench) -> dict[str, Any]:
    """What makes answers as long as they are asked to be; other servers know `ignore_eos`."""
    if not bench.ignores_eos:
        return {}
    if bench.url is not None or bench.model is not None:
        return {"ignore_eos": True}
    tokenizer = Tokenizer(made_up_tokens(bench.vocab_size))
    return {"logit_bias": {str(token): -100 for token in stop_tokens(tokenizer)}}


def _loads(bench: ServeBench, workload: Workload) -> list[Load]:
    load = replace(bench.load, workload=workload)
    return [replace(load, users=users, rate=None) for users in bench.users] or [load]


def _engine_load(bench: ServeBench, reference: str) -> EngineLoad:
    """The same load for the engine alone, half as long."""
    return EngineLoad(
        spec=EngineSpec(
            model=reference,
            home=bench.home,
            device=bench.device,
            format=bench.format,
            max_rows=max([MOST_ROWS, *bench.users]),
        ),
        workload=replace(bench.load.workload, template_tokens=TEMPLATE_TOKENS),
        sampling=SamplingParams(),
        seconds=bench.load.seconds / 2,
        warmup_s=bench.load.warmup_s,
    )


def _peers(bench: ServeBench, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of each peer, at the same numbers of users."""
    peers = {}
    model = PeerModel(
        config=bench.model_config(),
        format=bench.format,
        folder=folder,
        num_users=max([1, *bench.users]),
    )
    if bench.llama_server is not None:
        with llama_server(bench.llama_server, model) as (address, tokens_dialect):
            peers[f"llama_server_{model.llama_format}"] = [
                run_load(address, tokens_dialect, load)
                for load in _loads(bench, bench.load.workload)
            ]
    if bench.peer_nanochat is not None:
        python = bench.peer_python or Path(sys.executable)
        workload = replace(bench.load.workload, template_tokens=TEMPLATE_TOKENS)
        with nanochat_server(bench.peer_nanochat, python, model) as (address, private_dialect):
            peers["nanochat_chat_web"] = [
                run_load(address, private_dialect, load) for load in _loads(bench, workload)
            ]
    return peers


def _result(
    bench: ServeBench,
    rows: list[dict[str, Any]],
    peers: dict[str, list[dict[str, Any]]],
) -> dict[str, Any]:
    workload = bench.load.workload
    return {
        "machine": machine_name(best_device(bench.device)),
        "model": bench.url or bench.model or f"random weights of depth {bench.depth}",
        "dtype": bench.format,
        "prompt_tokens": asdict(workload.prompt),
        "output_tokens": asdict(workload.output),
        "seed": workload.seed,
        "warmup_s": bench.load.warmup_s,
        "rows": rows,
        "idle": _idle(bench, rows),
        "peers": peers,
        "ratios": {name: _ratios(rows, theirs) for name, theirs in peers.items()},
    }


def _idle(bench: ServeBench, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The first token of who finds the server idle; None: no limit was given."""
    if bench.max_ttft_ms is None:
        return None
    ttft_ms = next((row["ttft_ms"] for row in rows if row["users"] == 1), None)
    median_ms = float("inf") if ttft_ms is None else ttft_ms["p50"]
    return {
        "ttft_ms": median_ms,
        "limit_ms": bench.max_ttft_ms,
        "ok": median_ms <= bench.max_ttft_ms,
    }


def _ratios(
    rows: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]
) -> list[float | None]:
    """Our output tokens a second over a peer's, at each number of users."""
    pairs = zip(rows, theirs, strict=True)
    return [
        mine["output_tokens_per_s"] / peer["output_tokens_per_s"]
        if peer["output_tokens_per_s"]
        else None
        for mine, peer in pairs
    ]
