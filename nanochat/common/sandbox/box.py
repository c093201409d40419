"""Source text -> Outcome.   in: a program, limits   out: what became of it
who calls: evals.code, evals.runner, cli (eval), train (examine)

    with Sandbox() as sandbox:
        outcome = sandbox.run("print(6 * 7)")

A Sandbox is one warm process and runs one program at a time; from several threads they queue.
Opening one tries every wall first (selftest.py); where one does not hold, nothing is run.
Read next: limits.py (Outcome), forkserver.py (the process), evals/code.py (who is right).
"""

import dataclasses
import json
import os
import secrets
import select
import shutil
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import Any

from nanochat.common.errors import SandboxError
from nanochat.common.sandbox import drivers
from nanochat.common.sandbox.child import Checks
from nanochat.common.sandbox.drivers import Driver
from nanochat.common.sandbox.forkserver import ServerSettings
from nanochat.common.sandbox.frames import read_frame, write_json
from nanochat.common.sandbox.limits import Outcome, SandboxLimits

__all__ = ["CheckedOutcome", "Sandbox", "run_program"]

START_S = 60.0
END_S = 30.0  # for a container engine to end a container
# Beyond a program's own limit, before the server counts as stuck: a busy machine takes its time.
REPLY_S = 20.0
# Users of programs: high numbers nobody has, other ones for every sandbox, so that processes of one
# count as no other's.  The checks become the next number.
FIRST_USER, NUM_USERS = 1_500_000_000, 200_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedOutcome:
    """A program that was held against checks in another process."""

    passed: bool
    """The nonce came back, after the last check."""
    reason: str
    """Why not: see evals/code.py."""
    detail: str
    program: Outcome
    checks: Outcome


class Sandbox:
    """A place where a model's programs are run."""

    def __init__(
        self, driver: Driver = "auto", *, unsafe: bool = False, image: str = drivers.IMAGE
    ) -> None:
        """unsafe: go on where a wall does not hold, with those that do; no self-test is made.

        image: for the driver `container`, an image with a Python of 3.11 or later.
        Raises: SandboxError where the driver is not here or a wall does not hold.
        """
        self.driver = drivers.resolve(driver, unsafe=unsafe)
        self.notes: tuple[str, ...] = ()
        """What the server said of its own walls, for a report."""
        self._unsafe = unsafe
        self._image = image
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._end: list[str] = []
        self._scratch = ""
        if not unsafe:
            from nanochat.common.sandbox.selftest import self_test

            self_test(driver, image=image).demand()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_unsafe(self) -> bool:
        """Whether programs are run where a wall does not hold."""
        return self._unsafe

    def run(self, source: str, limits: SandboxLimits | None = None) -> Outcome:
        """What became of a program.

        Raises: SandboxError where the sandbox itself fails.
        """
        limits = limits or SandboxLimits()
        reply = self._ask([_job("run", source, limits)], limits.wall_s)
        return Outcome.from_json(reply["program"])

    def check(
        self, source: str, checks: Checks, limits: SandboxLimits | None = None
    ) -> CheckedOutcome:
        """Whether a program stands the checks.

        Each has a process of its own; `limits` holds for either, its wall clock for both together.
        Raises: SandboxError where the sandbox itself fails.
        """
        limits = limits or SandboxLimits()
        nonce = secrets.token_hex(16)
        second = dataclasses.asdict(dataclasses.replace(checks, nonce=nonce))
        reply = self._ask([_job("check", source, limits), second], limits.wall_s)
        program = Outcome.from_json(reply["program"])
        ending = Outcome.from_json(reply["checks"])
        has_nonce = secrets.compare_digest(reply["verdict"].encode(), nonce.encode())
        return CheckedOutcome(
            passed=has_nonce and ending.status == "finished" and ending.exit_code == 0,
            reason=reply["reason"],
            detail=reply["detail"],
            program=program,
            checks=ending,
        )

    def close(self) -> None:
        """The process is gone, and its files; the next program starts another one."""
        with self._lock:
            self._stop()

    def _ask(self, messages: list[dict[str, Any]], wall_s: float) -> dict[str, Any]:
        with self._lock:
            server = self._server or self._started()
            assert server.stdin is not None
            try:
                for message in messages:
                    write_json(server.stdin.fileno(), message)
                return self._reply(server, wall_s + REPLY_S)
            except (OSError, SandboxError) as error:
                said = self._stop()
                raise SandboxError(
                    f"the sandbox's process has failed: {error} {said}".rstrip()
                    + "; the next program starts another one"
                ) from error

    def _started(self) -> "subprocess.Popen[bytes]":
        self._scratch = tempfile.mkdtemp(prefix="nanochat-sandbox-")
        os.chmod(self._scratch, 0o711)
        settings = ServerSettings(
            scratch=self._scratch,
            user=FIRST_USER + 2 * secrets.randbelow(NUM_USERS // 2),
            has_room=self.driver == "linux",
            is_strict=not self._unsafe,
        )
        if self.driver == "container":
            drivers.fetch_image(self._image)
        start = drivers.start(self.driver, settings, self._image)
        self._end = start.end
        with open(os.path.join(self._scratch, "log"), "wb") as log:
            try:
                self._server = subprocess.Popen(
                    start.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=drivers.environment(self.driver),
                    cwd="/",
                    start_new_session=True,
                )
                hello = self._reply(self._server, START_S)
            except (OSError, SandboxError) as error:
                said = self._stop()
                raise SandboxError(
                    f"the sandbox ({self.driver}) does not start: {error} {said}".rstrip()
                ) from error
        self.notes = tuple(str(note) for note in hello["notes"])
        return self._server

    def _reply(self, server: "subprocess.Popen[bytes]", most_s: float) -> dict[str, Any]:
        assert server.stdout is not None
        descriptor = server.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(most_s * 1000):
            raise SandboxError(f"no reply within {most_s:.0f} s")
        frame = read_frame(descriptor)
        if frame is None:
            raise SandboxError("it has ended")
        reply: dict[str, Any] = json.loads(frame)
        return reply

    def _stop(self) -> str:
        """The end of what the server wrote to its log."""
        if self._server is not None:
            for pipe in (self._server.stdin, self._server.stdout):
                if pipe is not None:
                    pipe.close()
            if not _ended(self._server) and self._end:
                subprocess.run(
                    self._end, env=drivers.environment(self.driver), stdin=subprocess.DEVNULL,
                    capture_output=True, timeout=END_S, check=False,
                )  # fmt: skip
            self._server = None
        said = ""
        if self._scratch:
            with open(
                os.path.join(self._scratch, "log"), encoding="utf-8", errors="replace"
            ) as log:
                said = log.read()[-500:].strip()
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = ""
        return said


def run_program(
    source: str,
    *,
    limits: SandboxLimits | None = None,
    driver: Driver = "auto",
    unsafe: bool = False,
) -> Outcome:
    """What became of one program, in a sandbox of its own; for many, open a Sandbox.

    Raises: SandboxError where it cannot be run behind walls, and not `unsafe`.
    """
    with Sandbox(driver, unsafe=unsafe) as sandbox:
        return sandbox.run(source, limits)


def _job(kind: str, source: str, limits: SandboxLimits) -> dict[str, Any]:
    # A lone surrogate is legal in our text and not in a pipe: the program will not compile anyway.
    source = source.encode("utf-8", "replace").decode()
    return {"kind": kind, "source": source, "limits": dataclasses.asdict(limits)}


def _ended(server: "subprocess.Popen[bytes]") -> bool:
    """Whether it ended by itself, as its pipe has; if not, it is killed with all it started."""
    until_s = time.monotonic() + 1.0
    while server.poll() is None and time.monotonic() < until_s:
        time.sleep(0.001)
    is_alone = server.poll() is not None
    server.kill()
    server.wait()
    return is_alone
