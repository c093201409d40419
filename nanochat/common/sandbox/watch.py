"""One program, watched to its end.   in: a job from the control pipe   out: its outcome, as JSON
who calls: forkserver.py, in a process forked for this job alone

    job part 1   {kind, source, limits}: the program's child is forked now
    job part 2   {tests, nonce, ...}: only for kind "check"; the checks' child is forked now
    reply        {program: Outcome, checks: Outcome | null, reason, detail, verdict}

Between the two parts lies the fork of the program, so that it inherits neither tests nor nonce; and
because this process ends with its job, no later program inherits them either.
Read next: walls.py, child.py (the two children), box.py (the other end of the pipe).
"""

import contextlib
import dataclasses
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanochat.common.sandbox import child, folders, kernel
from nanochat.common.sandbox.ending import Process, outcome_of, printable, report_of
from nanochat.common.sandbox.frames import read_json, write_json
from nanochat.common.sandbox.limits import SandboxLimits, Status
from nanochat.common.sandbox.walls import Walls, put_up

__all__ = ["Place", "serve_job"]

REPORT_BYTES = 64 << 10
GRACE_S = 0.02
LOOK_EVERY_S = 0.02  # how often a folder without a limit of its own is measured
WALLS_FAILED = 113  # exit code; a program that imitates it gains nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What is the same for every program of a fork server."""

    readable: tuple[str, ...]
    scratch: str
    """Where private folders are made; with `has_room` the one folder."""
    has_room: bool
    """Whether rooms.py gave us a file tree of our own."""
    user: int | None
    """What programs become; their checks become the next one."""
    is_strict: bool
    """Whether a wall that cannot be put up keeps the program from running."""


def serve_job(control_in: int, control_out: int, place: Place) -> None:
    """One job is read, done and replied to.

    Raises: EOFError where the other end is gone.
    """
    job = read_json(control_in)
    if job is None:
        raise EOFError
    if sys.platform == "linux":
        kernel.prctl("PDEATHSIG", int(signal.SIGKILL))
        kernel.prctl("CHILD_SUBREAPER", 1)
    limits = SandboxLimits(**job["limits"])
    with folders.private(place.scratch, place.has_room, place.user, limits) as folder:
        reply = _done(job, control_in, _Bench(place, limits, folder))
    write_json(control_out, reply)


@dataclass(slots=True)
class _Bench:
    """What this job works with."""

    place: Place
    limits: SandboxLimits
    folder: str

    def walls(self, is_program: bool) -> Walls:
        user = self.place.user
        return Walls(
            limits=self.limits,
            readable=self.place.readable,
            folder=self.folder,
            can_write=is_program,
            user=user if user is None or is_program else user + 1,
            is_strict=self.place.is_strict,
        )


def _done(job: dict[str, Any], control_in: int, bench: _Bench) -> dict[str, Any]:
    source = job["source"]
    if job["kind"] == "run":
        program = _forked(bench, True, [], lambda out: child.run(source, out["report"]))
        _watch([program], program, bench)
        return _reply(program, None)
    to_program, from_program = os.pipe(), os.pipe()
    program = _forked(
        bench,
        True,
        [to_program[0], from_program[1]],
        lambda out: child.answer(source, to_program[0], from_program[1], out["report"]),
    )
    checks = child.Checks(**read_json(control_in))
    asked = child.Asked(to_program[1], from_program[0])
    checking = _forked(
        bench,
        False,
        [to_program[1], from_program[0]],
        lambda out: child.check(checks, asked, out["report"], out["verdict"]),
    )
    for descriptor in (*to_program, *from_program):
        os.close(descriptor)
    _watch([program, checking], checking, bench)
    return _reply(program, checking)


def _reply(program: Process, checking: Process | None) -> dict[str, Any]:
    values: dict[str, Any] = {"program": dataclasses.asdict(outcome_of(program)), "checks": None}
    if checking is not None:
        report = report_of(checking)
        values["checks"] = dataclasses.asdict(outcome_of(checking))
        values["verdict"] = checking.written["verdict"].decode("ascii", "replace")
        values["reason"] = str(report.get("reason", ""))
        values["detail"] = printable(str(report.get("detail", "")))
    return values


def _forked(
    bench: _Bench, is_program: bool, kept: list[int], body: Callable[[dict[str, int]], int]
) -> Process:
    """A child behind walls in which `body` runs; it has these descriptors and no other."""
    names = ["stdout", "stderr", "report"] + ([] if is_program else ["verdict"])
    pipes = {name: os.pipe() for name in names}
    started_s = time.monotonic()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        ends = {name: write_end for name, (_, write_end) in pipes.items()}
        _live(bench.walls(is_program), parent, ends, kept, body)
    for _, write_end in pipes.values():
        os.close(write_end)
    most = {"stdout": bench.limits.output_bytes, "stderr": bench.limits.output_bytes}
    return Process(
        pid=pid,
        pipes={read_end: name for name, (read_end, _) in pipes.items()},
        most_bytes=most | {"report": REPORT_BYTES, "verdict": 1000},
        started_s=started_s,
        written={name: bytearray() for name in names},
    )


def _live(
    walls: Walls,
    parent: int,
    ends: dict[str, int],
    kept: list[int],
    body: Callable[[dict[str, int]], int],
) -> None:
    """The life of a child; never returns."""
    code = WALLS_FAILED
    try:
        os.setsid()
        _keep_only(ends, kept)
        put_up(walls, parent)
        code = body(ends)
    except BaseException as error:
        with contextlib.suppress(BaseException):
            os.write(2, f"sandbox: {error}\n".encode())
    finally:
        os._exit(code)


def _keep_only(ends: dict[str, int], kept: list[int]) -> None:
    """Standard input is empty, output goes into our pipes, everything else is closed."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(ends["stdout"], 1)
    os.dup2(ends["stderr"], 2)
    others = {number for name, number in ends.items() if name not in ("stdout", "stderr")}
    wanted = sorted({0, 1, 2, *kept, *others})
    for before, after in zip(wanted, [*wanted[1:], 1 << 16], strict=True):
        os.closerange(before + 1, after)


def _watch(children: list[Process], last: Process, bench: _Bench) -> None:
    """Every child has ended: `last` by itself or at a limit, the others then at the latest."""
    deadline_s = children[0].started_s + bench.limits.wall_s
    look_s = time.monotonic() + LOOK_EVERY_S
    try:
        while last.ending is None:
            now_s = time.monotonic()
            if now_s >= deadline_s:
                _stop(children, "timeout")
            elif not bench.place.has_room and now_s >= look_s:
                look_s = now_s + LOOK_EVERY_S
                if folders.is_over(bench.folder, bench.limits):
                    _stop(children, "disk")
            _gather(children, min(deadline_s - now_s, LOOK_EVERY_S))
        # The checks have let go of the program, so it ends too, unless it does not want to.
        grace_s = min(deadline_s, time.monotonic() + GRACE_S)
        while any(process.ending is None for process in children) and time.monotonic() < grace_s:
            _gather(children, GRACE_S)
        _stop(children, "finished")
    finally:
        for process in children:
            _end(process)
        _end_descendants()


def _gather(children: list[Process], most_s: float) -> None:
    """What was written is read, who has ended is noted; waits for news, though not for long."""
    open_pipes = {pipe: process for process in children for pipe in process.pipes}
    if not open_pipes:
        time.sleep(0.0005)  # a child closed its pipes, or is just about to end
    poll = select.poll()
    for pipe in open_pipes:
        poll.register(pipe, select.POLLIN)
    for pipe, _ in poll.poll(max(0, most_s) * 1000) if open_pipes else []:
        _read(open_pipes[pipe], pipe)
    for process in children:
        _reap(process, os.WNOHANG)


def _read(process: Process, pipe: int) -> None:
    name = process.pipes[pipe]
    content = os.read(pipe, 1 << 16)
    kept = process.written[name]
    room = process.most_bytes[name] - len(kept)
    kept += content[:room]
    if not content:
        os.close(pipe)
        del process.pipes[pipe]
    elif len(content) > room:
        _stop([process], "output")


def _stop(children: list[Process], why: Status) -> None:
    for process in children:
        if process.ending is None:
            process.stopped = process.stopped or why
            _kill(process.pid)


def _kill(pid: int) -> None:
    for end in (os.kill, os.killpg):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(pid, signal.SIGKILL)


def _reap(process: Process, how: int) -> None:
    if process.ending is not None:
        return
    pid, status, usage = os.wait4(process.pid, how)
    if pid:
        unit = 1024 if sys.platform == "linux" else 1
        process.ending = (status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)
        process.ended_s = time.monotonic()
        _kill_group(process.pid)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _end(process: Process) -> None:
    """It is dead, reaped, and what it left in its pipes is read."""
    if process.ending is None:
        _kill(process.pid)
        _reap(process, 0)
    for pipe in list(process.pipes):
        os.set_blocking(pipe, False)
        with contextlib.suppress(BlockingIOError):
            while pipe in process.pipes:
                _read(process, pipe)


def _end_descendants() -> None:
    """What a program without walls has started and left behind came to us, and ends here."""
    while True:
        try:
            with open("/proc/thread-self/children") as file:
                found = [int(pid) for pid in file.read().split()]
        except OSError:  # no /proc in a room of ours; there nobody can fork
            return
        if not found:
            return
        for pid in found:
            _kill(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
