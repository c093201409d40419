"""nanochat serve   in: a model   out: a chat page and an OpenAI-compatible API
who calls: cli.main, cli.demo

Read next: http_server.py (how it runs), server/app.py (the routes), nanochat/web/ (the page).
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.cli.model_options import ChoiceOptions, Opened, open_model
from nanochat.cli.terminal import notice
from nanochat.common.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["Config", "run"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Config(ChoiceOptions):
    """Serve a model: a chat page for people, /v1/chat/completions for programs.

    The sampling flags are what is used where a request says nothing.
    """

    host: str = "127.0.0.1"
    """The address to listen on; the default can be reached from this machine alone."""
    port: int = 8000
    """The port to listen on; 0 takes any that is free."""
    open: bool = False
    """Open the page in a browser."""
    name: str | None = None
    """What clients call the model. None: the reference, or the folder's name."""
    max_rows: int = 32
    """Answers that are written at the same time; more wait for their turn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, expected 0 to 65535")
        if self.max_rows < 1:
            raise ConfigError(f"max_rows is {self.max_rows}, expected at least 1")


def run(config: Config) -> int:
    """0 once a signal has ended the server; Ctrl-C is 130 as everywhere.

    Raises: CheckpointError for the model, ConfigError for a port that is taken.
    """
    from nanochat.cli.http_server import reserve, serve_app

    with reserve(config.host, config.port) as place:  # a port in use is known before loading
        opened = open_model(config, max_rows=config.max_rows)
        if not opened.is_chat:
            notice(f"{opened.name} is a base model: it has not been taught to answer")
        if config.host not in LOOPBACK:
            notice(f"anyone who can reach {config.host}:{config.port} can use this server")
        name = config.name or opened.name
        line = f"{name} answers at {place.url} (Ctrl-C stops)"
        if config.json:
            line = json.dumps({"url": place.url, "model": name})
        app = _app(config, opened, name)
        serve_app(app, place, ready=line, is_opened=config.open)
    return 0


def _app(config: Config, opened: Opened, name: str) -> "FastAPI":
    from nanochat.server.app import ServedModel, create_app
    from nanochat.server.limits import LOOPBACK_HOSTS, Limits

    served = ServedModel(
        name=name,
        tokenizer=opened.engine.tokenizer,
        context_len=opened.engine.context_len,
        defaults=config.choice(),
    )
    hosts = LOOPBACK_HOSTS if config.host in LOOPBACK else None
    return create_app(opened.engine, served, limits=Limits(allowed_hosts=hosts))
