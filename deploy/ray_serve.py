"""A model on as many machines as there are, behind one address.   in: a model, a number of replicas
out: the chat page and the OpenAI-compatible API on every machine of a Ray cluster

    python deploy/ray_serve.py d20/sft --replicas 2                     here, until Ctrl-C
    python deploy/ray_serve.py d20/sft --replicas 16 --address auto \\
        --host 0.0.0.0 --api-key-file keys                              on a cluster; it stays

Every replica is a whole server of `nanochat serve`, routes, limits and response cache, with its own
engine; Ray starts it again where it dies, and asks the one with less to do.
Read next: README.md beside this file, nanochat/cli/serve.py (the flags).
"""

import contextlib
import json
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanochat.cli import serve as nanochat_serve
from nanochat.cli.http_server import reserve
from nanochat.cli.model_options import name_of
from nanochat.common.config import parse
from nanochat.common.errors import ConfigError, NanochatError
from nanochat.engine.streams import SWITCH_INTERVAL_S

if TYPE_CHECKING:
    from fastapi import FastAPI

    from nanochat.server.settings import ServerSettings

__all__ = ["Config", "Named", "app_for_replica", "main", "run"]

REPLICA_HEADER = b"x-replica"
OBJECT_STORE_BYTES = 80 << 20  # the least that Ray takes: what passes are requests


@dataclass(frozen=True, kw_only=True)
class Config(nanochat_serve.Config):
    """Serve a model from replicas on a Ray cluster, or on a Ray that is started for it here."""

    replicas: int = 2
    """Servers, each with a model of its own."""
    address: str | None = None
    """The cluster's: auto on one of its machines, else ray://host:10001. None: a Ray of its own,
    which ends with this command."""
    cpus: float = 1.0
    """Cores of each replica."""
    gpus: float | None = None
    """GPUs of each replica. None: one, where the cluster has any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("workers", "engine_process", "open", "source"):
            if getattr(self, name) != getattr(nanochat_serve.Config, name, None):
                raise ConfigError(f"--{name.replace('_', '-')} is not for replicas: leave it out")
        if self.replicas < 1:
            raise ConfigError(f"replicas is {self.replicas}, expected at least 1")


class Named:
    """An ASGI app whose answers say which replica gave them."""

    def __init__(self, app: Any, name: str) -> None:
        self._app, self._name = app, name.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""

        async def send_named(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (REPLICA_HEADER, self._name)]
                message = {**message, "headers": headers}
            await send(message)

        await self._app(scope, receive, send_named)


def app_for_replica(config: Config, settings: "ServerSettings", name: str) -> "FastAPI":
    """The whole server of one replica; its weights are read here."""
    from nanochat.server.logs import set_up_logs

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    app = nanochat_serve.app_of(config, nanochat_serve.served_here(config), settings)
    app.add_middleware(Named, name=name)
    app.state.logs = contextlib.ExitStack()  # for as long as the app lives
    app.state.logs.enter_context(set_up_logs(config.log_format))
    return app


def run(config: Config) -> int:
    """0 once the replicas answer, or, where Ray is our own, once a signal has ended them.

    Raises: ConfigError for an address that is taken, and for no key where others could ask.
    """
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError(f"no Ray here ({error}): pip install 'nanochat[cluster]'") from None

    with reserve(config.host, config.port) as place:
        settings = nanochat_serve.settings_of(config, is_loopback=place.is_loopback)
        url, port = place.url, place.socket.getsockname()[1]

    def build() -> Any:
        return app_for_replica(config, settings, serve.get_replica_context().replica_id.unique_id)

    if config.address is None:
        ray.init(  # without an address it would join any cluster that has been started here
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    else:
        try:
            ray.init(address=config.address, log_to_driver=False)
        except ConnectionError as error:
            raise ConfigError(
                f"no Ray cluster at --address {config.address} ({error}): ray start --head makes "
                "one, or leave the flag out"
            ) from None
    gpus = config.gpus
    if gpus is None:
        gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
    serve.start(proxy_location="EveryNode", http_options={"host": config.host, "port": port})
    deployment = serve.deployment(serve.ingress(build)()).options(
        name="chat",
        num_replicas=config.replicas,
        # Ours refuses with 429 what is too much; Ray's would let requests wait unseen.
        max_ongoing_requests=2 * (settings.max_active + settings.max_queue),
        graceful_shutdown_timeout_s=settings.drain_s,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": gpus},
    )
    serve.run(deployment.bind(), name="nanochat", route_prefix="/")
    told = {"url": url, "model": config.name or name_of(config.model), "replicas": config.replicas}
    print(json.dumps(told) if config.json else f"{told['model']} answers at {url}", flush=True)
    if config.address is None:
        _until_signal()
        serve.shutdown()
        ray.shutdown()
    return 0


def _until_signal() -> None:
    is_over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_over.set())
    while not is_over.wait(1.0):
        pass


def main(argv: list[str]) -> int:
    """The exit code; what is wrong is said in one line."""
    try:
        return run(parse(Config, argv, prog="python deploy/ray_serve.py"))
    except NanochatError as error:
        print(f"ray_serve: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
