"""Which answers may come again, and to whom.   in: a request   out: what it allows, its key
who calls: serving.py (the policy), cache.py (the key)

The key is every field of the request and its sampling, but for the request's id; a field that is
added later is in it by itself.
Read next: cache.py (what is kept).
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from nanochat.engine.request import Request

__all__ = ["CachePolicy", "cache_policy", "request_key"]

IGNORED = frozenset({"request_id"})


class CachePolicy(NamedTuple):
    """What one request allows."""

    reads: bool
    writes: bool
    ttl_s: float | None = None
    """How long its answer may be kept, if not as long as any."""
    has_seed: bool = True
    """Whether the seed was asked for; one that we made up is not in the key."""
    max_age_s: float | None = None
    """How old an answer from the cache may be, if not as old as any."""
    namespace: str = ""
    """Answers of one are not given to requests of another."""


def cache_policy(
    *, is_deterministic: bool, has_seed: bool, asked: Mapping[str, Any] | None, header: str | None
) -> CachePolicy:
    """What a request allows: deterministic ones read and write, others if their `cache` object says
    so; no-cache and no-store, there or in the Cache-Control header, forbid one of them."""
    words = {word.strip().lower() for word in (header or "").split(",")}
    said = asked or {}
    is_wanted = is_deterministic or asked is not None
    return CachePolicy(
        reads=is_wanted and not (said.get("no-cache") or words & {"no-cache", "no-store"}),
        writes=is_wanted and not (said.get("no-store") or "no-store" in words),
        ttl_s=said.get("ttl"),
        has_seed=has_seed,
        max_age_s=said.get("s-maxage"),
        namespace=said.get("namespace") or "",
    )


def request_key(
    request: Request, *, model_hash: str, tenant: str, has_seed: bool = True, namespace: str = ""
) -> str:
    """SHA-256 of everything that decides an answer, and of whose it is."""
    fields = _plain(request)
    if request.sampling.temperature == 0 or not has_seed:
        fields["sampling"]["seed"] = None
    whole = {"model": model_hash, "tenant": tenant, "namespace": namespace, "request": fields}
    text = json.dumps(whole, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A request as JSON: every field that it has, whatever they will be."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name not in IGNORED]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
