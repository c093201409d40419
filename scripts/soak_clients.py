"""A running server -> does it survive bad clients.   in: its address   out: one JSON line
who calls: make soak, tests/server

    aborted  many ask at once for long answers and go away after 0.2 s; then one request has to be
             answered within 2 s, and no memory for keys may still be taken
    slow     heads and bodies that trickle in, connections that say nothing or are half closed; one
             request has to be answered meanwhile, and all have to be gone after the deadline
Exit code 1 if not.  Standard library only, so that it can be run from anywhere.
Read next: nanochat/server/deadlines.py, admission.py; docs/operate.md.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["Target", "aborted", "main", "slow"]

ANSWER_S = 2.0
SETTLE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server, and a model that it serves."""

    url: str
    model: str
    key: str = ""

    def head(self, method: str, path: str, length: int = 0) -> bytes:
        """The head of a request, without its last empty line."""
        parts = urlsplit(self.url)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        if length:
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        return "\r\n".join([*lines, ""]).encode()

    def chat(self, max_tokens: int | None = None, *, is_streamed: bool = True) -> bytes:
        """A whole request for an answer."""
        said: dict[str, object] = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Tell me everything."}],
            "stream": is_streamed,
            "temperature": 1.0,
        }
        if max_tokens is not None:
            said["max_tokens"] = max_tokens
        body = json.dumps(said).encode()
        return self.head("POST", "/v1/chat/completions", len(body)) + b"\r\n" + body

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection."""
        parts = urlsplit(self.url)
        return await asyncio.open_connection(parts.hostname, parts.port)

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of one request, as it stands on the wire."""
        reader, writer = await self.open()
        writer.write(request)
        answer = await reader.read()
        writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]) if head else 0, body

    async def gauge(self, name: str) -> float:
        """One number of GET /metrics."""
        _, body = await self.ask(self.head("GET", "/metrics") + b"\r\n")
        for line in body.decode().splitlines():
            if line.startswith(f"nanochat_{name} "):
                return float(line.split()[1])
        raise ValueError(f"/metrics has no nanochat_{name}: expected a server of this version")


async def aborted(target: Target, count: int = 300, after_s: float = 0.2) -> dict[str, float]:
    """What many who go away leave behind: answer_s of the next request, kv_usage, running."""
    await asyncio.gather(*(_leave(target, after_s) for _ in range(count)))
    begin_s = time.monotonic()
    status, _ = await target.ask(target.chat(1, is_streamed=False))
    answer_s = time.monotonic() - begin_s
    kv_usage = running = 1.0
    while (kv_usage or running) and time.monotonic() - begin_s < SETTLE_S:
        kv_usage = await target.gauge("kv_cache_usage_perc")
        running = await target.gauge("num_requests_running")
        await asyncio.sleep(0.05)
    is_fine = status == 200 and answer_s <= ANSWER_S and not kv_usage and not running
    return {
        "requests": count,
        "status": status,
        "answer_s": round(answer_s, 3),
        "kv_usage": kv_usage,
        "running": running,
        "ok": is_fine,
    }


async def slow(target: Target, count: int = 30, deadline_s: float = 40.0) -> dict[str, float]:
    """What slow clients of four kinds do: answer_s of a request meanwhile, how many are left after
    the deadline, and how many answers ran for them."""
    kinds = (
        (target.head("POST", "/v1/chat/completions", 100), b"X-A: b\r\n"),  # a head without end
        (target.head("POST", "/v1/chat/completions", 5000) + b"\r\n{", b" "),  # a body
        (b"", b""),  # nothing at all
        (target.chat(), b""),  # an answer that is not read, from a client that is half gone
    )
    begin_s = time.monotonic()
    bad = [
        asyncio.ensure_future(_trickle(target, *kind, deadline_s, is_half=number == 3))
        for number, kind in enumerate(kinds)
        for _ in range(count)
    ]
    await asyncio.sleep(0.5)
    asked_s = time.monotonic()
    status, _ = await target.ask(target.chat(1, is_streamed=False))
    answer_s = time.monotonic() - asked_s
    running = 1.0
    while running and time.monotonic() - asked_s < SETTLE_S:
        running = await target.gauge("num_requests_running")
        await asyncio.sleep(0.05)
    _, waiting = await asyncio.wait(bad, timeout=deadline_s)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*bad, return_exceptions=True)
    is_fine = status == 200 and answer_s <= ANSWER_S and not waiting and not running
    return {
        "clients": len(bad),
        "status": status,
        "answer_s": round(answer_s, 3),
        "left": len(waiting),
        "running": running,
        "gone_s": round(time.monotonic() - begin_s, 1),
        "ok": is_fine,
    }


async def _leave(target: Target, after_s: float) -> None:
    """Ask for a long answer, and go."""
    with contextlib.suppress(OSError):
        _, writer = await target.open()
        writer.write(target.chat())
        await asyncio.sleep(after_s)
        writer.transport.abort()


async def _trickle(
    target: Target, first: bytes, then: bytes, deadline_s: float, *, is_half: bool
) -> None:
    """Send something, then a little now and then, until the server has had enough."""
    reader, writer = await target.open()
    with contextlib.suppress(OSError):
        writer.write(first)
        if is_half:
            writer.write_eof()
        end_s = time.monotonic() + deadline_s
        while time.monotonic() < end_s:
            with contextlib.suppress(TimeoutError):
                if not await asyncio.wait_for(reader.read(1 << 16), 0.2):
                    break
            if then:
                writer.write(then)
                await writer.drain()
    writer.transport.abort()


def main(argv: list[str] | None = None) -> int:
    """Both, against --url; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--aborted", type=int, default=300)
    parser.add_argument("--slow", type=int, default=30)
    parser.add_argument("--deadline-s", type=float, default=40.0)
    said = parser.parse_args(argv)
    target = Target(url=said.url, model=said.model, key=said.key)
    found = {
        "aborted": asyncio.run(aborted(target, said.aborted)),
        "slow": asyncio.run(slow(target, said.slow, said.deadline_s)),
    }
    print(json.dumps(found))
    return 0 if all(each["ok"] for each in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
