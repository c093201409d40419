"""The environment -> settings.   in: os.environ   out: values or None   who calls: files, cli

Every environment variable of this package is read here and nowhere else; docs/env.md explains them.
An empty variable counts as not set.
Read next: files.py (home_dir), cli/main.py (what debug logging shows).
"""

import os
from pathlib import Path

from nanochat.common.errors import ConfigError

__all__ = [
    "VARIABLES",
    "api_key_from_env",
    "api_keys_from_env",
    "home_from_env",
    "hub_url",
    "is_debug",
    "is_offline",
]

VARIABLES = (
    "NANOCHAT_API_KEY",
    "NANOCHAT_API_KEYS",
    "NANOCHAT_HOME",
    "NANOCHAT_LOG",
    "NANOCHAT_OFFLINE",
)


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


def hub_url() -> str:
    """Where the Hugging Face Hub is: $HF_ENDPOINT, or its own address; without a slash at the end.

    Raises: ConfigError for an endpoint that is no http address.
    """
    value = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not value.startswith(("http://", "https://")):
        raise ConfigError(f"HF_ENDPOINT is {value!r}, expected an address with http:// or https://")
    return value


def is_offline() -> bool:
    """Whether $NANOCHAT_OFFLINE or Hugging Face's own $HF_HUB_OFFLINE forbids to load anything."""
    values = (os.environ.get("NANOCHAT_OFFLINE"), os.environ.get("HF_HUB_OFFLINE"))
    return any((value or "0").lower() not in ("0", "false", "no") for value in values)


def is_debug() -> bool:
    """Whether $NANOCHAT_LOG asks for tracebacks.

    Raises: ConfigError for a value that is neither `info` nor `debug`.
    """
    value = os.environ.get("NANOCHAT_LOG") or "info"
    if value not in ("info", "debug"):
        raise ConfigError(f"NANOCHAT_LOG is {value!r}, expected info or debug")
    return value == "debug"
