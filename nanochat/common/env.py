"""The environment -> settings.   in: os.environ   out: values or None   who calls: files, cli

Every environment variable of this package is read here and nowhere else; docs/env.md explains them.
An empty variable counts as not set.
Read next: files.py (home_dir), cli/main.py (what debug logging shows).
"""

import os
from pathlib import Path

from nanochat.common.errors import ConfigError

__all__ = ["VARIABLES", "api_key_from_env", "api_keys_from_env", "home_from_env", "is_debug"]

VARIABLES = ("NANOCHAT_API_KEY", "NANOCHAT_API_KEYS", "NANOCHAT_HOME", "NANOCHAT_LOG")


def api_key_from_env(name: str | None = None) -> str | None:
    """The key to show to a server: $NANOCHAT_API_KEY, or None; or the variable that is named.

    Raises: ConfigError if the one that is named is not set.
    """
    if name is None:
        return os.environ.get("NANOCHAT_API_KEY") or None
    if not (key := os.environ.get(name)):
        raise ConfigError(f"the environment variable {name} is not set, expected an API key in it")
    return key


def api_keys_from_env() -> list[str]:
    """The keys in $NANOCHAT_API_KEYS, which commas or white space separate."""
    return (os.environ.get("NANOCHAT_API_KEYS") or "").replace(",", " ").split()


def home_from_env() -> Path | None:
    """$NANOCHAT_HOME with ~ expanded, or None."""
    value = os.environ.get("NANOCHAT_HOME")
    return Path(value).expanduser() if value else None


def is_debug() -> bool:
    """Whether $NANOCHAT_LOG asks for tracebacks.

    Raises: ConfigError for a value that is neither `info` nor `debug`.
    """
    value = os.environ.get("NANOCHAT_LOG") or "info"
    if value not in ("info", "debug"):
        raise ConfigError(f"NANOCHAT_LOG is {value!r}, expected info or debug")
    return value == "debug"
