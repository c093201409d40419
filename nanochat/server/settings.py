"""How a server is run.   in: nothing   out: ServerSettings   who calls: cli/serve.py, app.py

Read next: limits.py, admission.py, cache.py (what the numbers do).
"""

from dataclasses import dataclass, field
from pathlib import Path

from nanochat.common.errors import ConfigError
from nanochat.server.keys import Keys
from nanochat.server.limits import Limits

__all__ = ["CacheSettings", "ServerSettings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """How much a response cache keeps, and for how long.

    Raises: ConfigError listing all values out of range.
    """

    max_entries: int = 1024
    max_bytes: int = 64 << 20
    ttl_s: float = 3600.0
    """The longest that an answer is kept; a request may ask for less."""

    def __post_init__(self) -> None:
        _check_positive(self, "max_entries", "max_bytes", "ttl_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """All of them; the defaults are those of a server on the loopback address.

    Raises: ConfigError listing all values out of range.
    """

    limits: Limits = field(default_factory=Limits)
    keys: Keys | None = None
    """None: nobody is asked for one."""
    is_public: bool = False
    """Whether others than this machine reach it; without keys, /admin is closed then."""
    max_active: int = 32
    """Answers that are written at the same time: the rows of all engines together."""
    max_queue: int = 256
    """Answers that wait for their turn; more are refused with 429."""
    queue_wait_s: float = 60.0
    """The longest that an answer waits for its first token."""
    request_deadline_s: float = 600.0
    """The longest that an answer takes; the official client gives up then, too."""
    keep_alive_s: float = 15.0
    """A stream that has nothing to say says so this often."""
    drain_s: float = 30.0
    """Answers that run at the signal to stop may go on for so long."""
    cache: CacheSettings | None = field(default_factory=CacheSettings)
    """None: nothing is kept."""
    ui_path: Path | None = None
    """A page of one's own instead of ours: a file, or a folder with index.html."""

    def __post_init__(self) -> None:
        _check_positive(self, "max_active", "queue_wait_s", "request_deadline_s", "keep_alive_s")
        values = {"max_queue": self.max_queue, "drain_s": self.drain_s}
        if problems := [f"{name} is {value:g}" for name, value in values.items() if value < 0]:
            raise ConfigError(f"{', '.join(problems)}: expected at least 0")


def _check_positive(settings: object, *names: str) -> None:
    values = {name: getattr(settings, name) for name in names}
    if problems := [f"{name} is {value:g}" for name, value in values.items() if not value > 0]:
        raise ConfigError(f"{', '.join(problems)}: expected more than 0")
