"""nanochat serve   in: a model   out: a chat page and an OpenAI-compatible API
who calls: cli.main, cli.demo, deploy/ray_serve.py

Read next: http_server.py (how it runs), server/app.py (the routes), server/settings.py (the
numbers), docs/operate.md.
"""

import contextlib
import ipaddress
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nanochat.cli.model_options import ChoiceOptions, name_of, open_model, spec_of
from nanochat.cli.terminal import notice
from nanochat.common.env import api_keys_from_env
from nanochat.common.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from nanochat.engine.engine import Engine
    from nanochat.engine.worker import EngineProcess
    from nanochat.server.keys import Keys
    from nanochat.server.pool import EnginePool
    from nanochat.server.settings import ServerSettings
    from nanochat.tokenizer.tokenizer import Tokenizer

__all__ = ["Config", "Served", "app_of", "run", "served_here", "settings_of"]


@dataclass(frozen=True, kw_only=True)
class Config(ChoiceOptions):
    """Serve a model: a chat page for people, an OpenAI-compatible API for programs.

    The sampling flags are what is used where a request says nothing. nanochat-rs's spellings are
    understood: --source for the model, --num-workers for --workers.
    """

    model: tyro.conf.Positional[str] = ""
    """A run (d12, d12/sft, d12/sft@1500), hf:org/name[@revision] on the Hugging Face Hub, or a
    directory: ours, one of karpathy/nanochat's, or one for transformers."""
    source: str = ""
    """The model, as nanochat-rs has it."""
    host: str = "127.0.0.1"
    """The address to listen on; the default can be reached from this machine alone."""
    port: int = 8000
    """The port to listen on; 0 takes any that is free."""
    open: bool = False
    """Open the page in a browser."""
    name: str | None = None
    """What clients call the model. None: the reference, or the folder's name."""
    alias: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Another name that clients may call the model, such as gpt-4o-mini."""
    ui_path: Path | None = None
    """A page of your own instead of ours: an HTML file, or a folder with index.html."""

    workers: Annotated[int, tyro.conf.arg(aliases=["--num-workers"])] = 1
    """Engines, one per device. 1: in this process; more: a process each, replaced if it dies."""
    engine_process: bool = False
    """Run a single engine in a process of its own, too."""
    max_rows: int = 32
    """Answers that an engine writes at the same time; more wait for their turn."""
    max_queue: int = 256
    """Answers that wait for their turn; more are refused with 429."""
    queue_wait_s: float = 60.0
    """The longest that an answer waits for its first token."""
    request_deadline_s: float = 600.0
    """The longest that an answer takes."""
    drain_s: float = 30.0
    """Answers that run at SIGTERM or Ctrl-C may go on for so long; a second one ends them."""
    keep_alive_s: float = 15.0
    """A stream that has nothing to say says so this often."""

    api_key_file: Path | None = None
    """A file with the keys that clients must show one of, a key a line. None: $NANOCHAT_API_KEYS,
    else nobody is asked."""
    insecure_public: bool = False
    """Serve others than this machine without asking for a key."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names that clients use, say behind a proxy. Empty: localhost alone on a loopback
    address, any on another."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For is believed. Empty: nobody's is."""
    log_format: Literal["auto", "json", "text"] = "auto"
    """Of the log on standard error. auto: text on a terminal, else JSON, a record a line."""

    cache_entries: int = 1024
    """Answers that are kept for equal requests; 0 keeps none."""
    cache_bytes: int = 64 << 20
    """Memory for them."""
    cache_ttl: float = 3600.0
    """The longest that one is kept, in seconds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.model) == bool(self.source):
            given = "both MODEL and --source are" if self.model else "no model is"
            raise ConfigError(f"{given} given, expected one: nanochat serve d12")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, expected 0 to 65535")
        for name in ("max_rows", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not all(self.alias):
            raise ConfigError("an --alias is empty, expected a name")
        for address in self.trusted_proxies:
            try:
                ipaddress.ip_network(address)
            except ValueError as error:
                raise ConfigError(
                    f"--trusted-proxies {address!r}: {error}; expected an address such as "
                    "127.0.0.1, or a network such as 10.0.0.0/8"
                ) from None
        if self.cache_entries < 0:
            raise ConfigError(f"cache_entries is {self.cache_entries}, expected at least 0")
        for name in ("cache_bytes", "cache_ttl"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name} is {getattr(self, name):g}, expected more than 0: "
                    "--cache-entries 0 is what keeps nothing"
                )


def run(config: Config) -> int:
    """0 once a signal has ended the server; Ctrl-C is 130 as everywhere.

    Raises: CheckpointError for the model; ConfigError for a port that is taken, keys that cannot be
            read, and for none where others could ask.
    """
    from nanochat.cli.http_server import answering, reserve, serve_app
    from nanochat.server.loading import loading_app
    from nanochat.server.logs import set_up_logs

    config = replace(config, model=config.model or config.source, source="")
    name = config.name or name_of(config.model)
    with reserve(config.host, config.port) as place:  # what is wrong is known before loading
        settings = settings_of(config, is_loopback=place.is_loopback)
        with contextlib.ExitStack() as stack:
            with answering(loading_app(name), place):
                model = stack.enter_context(_engines(config))
                app = app_of(config, model, settings)
            stack.enter_context(set_up_logs(config.log_format))
            if not model.is_chat:
                notice(f"{name} is a base model: it has not been taught to answer")
            line = f"{name} answers at {place.url} (Ctrl-C stops)"
            if config.json:
                line = json.dumps({"url": place.url, "model": name})
            serve_app(
                app,
                place,
                ready=line,
                is_opened=config.open,
                drains=app.state.admission,
                drain_s=config.drain_s,
                trusted_proxies=config.trusted_proxies,
            )
    return 0


def app_of(config: Config, model: "Served", settings: "ServerSettings") -> "FastAPI":
    """The routes in front of a model."""
    from nanochat.server.app import ServedModel, create_app

    served = ServedModel(
        name=config.name or name_of(config.model),
        aliases=config.alias,
        tokenizer=model.tokenizer,
        context_len=model.context_len,
        defaults=config.choice(),
        model_hash=model.model_hash,
        has_tools=model.is_chat,
        devices=model.devices,
    )
    return create_app(model.door, served, settings)


# ---------------------------------------------------------------------------- settings


def settings_of(config: Config, *, is_loopback: bool) -> "ServerSettings":
    """How the flags want a server run; `is_loopback`: this machine alone can reach it.

    Raises: ConfigError for keys that cannot be read, and for none where others could ask.
    """
    from nanochat.server.limits import LOOPBACK_HOSTS, Limits
    from nanochat.server.settings import CacheSettings, ServerSettings

    keys = _keys(config)
    if not is_loopback and keys is None:
        if not config.insecure_public:
            raise ConfigError(
                f"others can reach --host {config.host} and would be asked for no key: pass "
                "--api-key-file FILE, set NANOCHAT_API_KEYS, or say --insecure-public"
            )
        notice(f"anyone who can reach {config.host}:{config.port} can use this server")
    hosts: frozenset[str] | None = None
    if config.allowed_hosts or is_loopback:
        hosts = LOOPBACK_HOSTS | {host.lower() for host in (*config.allowed_hosts, config.host)}
    cache = None
    if config.cache_entries:
        cache = CacheSettings(
            max_entries=config.cache_entries,
            max_bytes=config.cache_bytes,
            ttl_s=config.cache_ttl,
        )
    return ServerSettings(
        limits=Limits(allowed_hosts=hosts),
        keys=keys,
        is_public=not is_loopback,
        max_active=config.workers * config.max_rows,
        max_queue=config.max_queue,
        queue_wait_s=config.queue_wait_s,
        request_deadline_s=config.request_deadline_s,
        keep_alive_s=config.keep_alive_s,
        drain_s=config.drain_s,
        cache=cache,
        ui_path=config.ui_path,
    )


def _keys(config: Config) -> "Keys | None":
    from nanochat.server.keys import Keys

    if config.api_key_file is not None:
        return Keys.from_file(config.api_key_file)
    found = api_keys_from_env()
    return Keys(found, where="NANOCHAT_API_KEYS") if found else None


# ----------------------------------------------------------------------------- engines


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A model with whatever computes it."""

    door: "Engine | EngineProcess | EnginePool"
    tokenizer: "Tokenizer"
    context_len: int
    is_chat: bool
    model_hash: str
    devices: tuple[str, ...]
    """One for each engine."""


def served_here(config: Config) -> Served:
    """The model in an engine of this process."""
    opened = open_model(config, max_rows=config.max_rows)
    return Served(
        door=opened.engine,
        tokenizer=opened.engine.tokenizer,
        context_len=opened.engine.context_len,
        is_chat=opened.is_chat,
        model_hash=opened.model_hash,
        devices=(str(opened.engine.forward.device),),
    )


@contextlib.contextmanager
def _engines(config: Config) -> Iterator[Served]:
    """The engines, loaded; ended afterwards."""
    if config.workers == 1 and not config.engine_process:
        yield served_here(config)
        return
    from nanochat.engine.worker import EngineProcess
    from nanochat.server.pool import EnginePool

    spec = replace(spec_of(config, max_rows=config.max_rows), num_workers=config.workers)
    workers = [EngineProcess(replace(spec, worker=place)) for place in range(config.workers)]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            stack.callback(worker.close)
        with ThreadPoolExecutor(len(workers)) as threads:
            models = list(threads.map(EngineProcess.start, workers))
        first = models[0]
        yield Served(
            door=workers[0] if len(workers) == 1 else EnginePool(workers),
            tokenizer=first.tokenizer,
            context_len=first.context_len,
            is_chat=first.is_chat,
            model_hash=first.model_hash,
            devices=tuple(model.device for model in models),
        )
