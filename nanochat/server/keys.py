"""API keys -> who asks.   in: a file or the environment, then headers   out: a tenant or None
who calls: cli/serve.py (makes them), limits.py (asks)

Only their SHA-256 is kept, and a key that is shown is compared with every one of them, so that
neither memory nor time tells a key.
Read next: limits.py.
"""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from nanochat.common.errors import ConfigError

__all__ = ["MIN_KEY_LENGTH", "Keys"]

MIN_KEY_LENGTH = 16  # characters; `openssl rand -hex 16` writes 32
SCHEME = "bearer "


class Keys:
    """The keys of one server.

    Raises: ConfigError if there is none, or one is too short to be a secret or cannot be sent.
    """

    def __init__(self, keys: Iterable[str], *, where: str = "keys") -> None:
        found = list(keys)
        if not found:
            raise ConfigError(f"{where}: no key there, expected at least one")
        if any(len(key) < MIN_KEY_LENGTH for key in found):
            raise ConfigError(
                f"{where}: a key is shorter than {MIN_KEY_LENGTH} characters: "
                "openssl rand -hex 16 makes a good one"
            )
        if not all(key.isascii() and key.isprintable() for key in found):
            raise ConfigError(
                f"{where}: a key has characters beyond ASCII, which clients cannot send in a "
                "header: openssl rand -hex 16 makes a good one"
            )
        self._digests = sorted({_digest(key) for key in found})

    @classmethod
    def from_file(cls, path: Path) -> "Keys":
        """A key a line; empty lines and those that begin with # are no keys.

        Raises: ConfigError for a file that cannot be read, and as above.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            raise ConfigError(f"--api-key-file {path}: {reason}, expected a key a line") from None
        words = (line.strip() for line in lines)
        keys = [word for word in words if word and not word.startswith("#")]
        return cls(keys, where=str(path))

    def __repr__(self) -> str:
        return f"Keys({len(self._digests)})"  # what is logged by accident tells nothing

    def tenant_of(self, authorization: str) -> str | None:
        """Whose key an Authorization header shows: part of its hash.  None: nobody's."""
        if authorization[: len(SCHEME)].lower() != SCHEME:
            return None
        shown = _digest(authorization[len(SCHEME) :].strip())
        is_known = False
        for digest in self._digests:  # all of them, whether one has matched or not
            is_known |= hmac.compare_digest(shown, digest)
        return shown.hex()[:16] if is_known else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
