"""A Python that has imported torch already.   in: what is given to python   out: what python does
who calls: conftest.py, for tests that start several processes

Importing torch takes a process two to three seconds; a job under torchrun has a dozen of them.  One
process imports it and forks for every command; what tests start in its stead is a small program
that hands its words, environment, folder and streams over, passes signals on, and ends as the fork
did.  If it is killed, so is the fork.  A command's process has another number than its fork, which
is no child of it: tests that look at either take sys.executable.
Read next: deploy/test_slurm.py, which has `warm_python`; tests/cli, path start the real one.
"""

import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["warm_python"]

IMPORTED = ("torch.distributed.run", "torch._dynamo", "nanochat.cli.pretrain",
            "nanochat.train.stages")  # fmt: skip
REPOSITORY = Path(__file__).resolve().parent.parent

COMMAND = """#!{python} -SE
import json, os, signal, socket, sys

asked = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
with socket.socket(socket.AF_UNIX) as zygote:
    zygote.connect({door!r})
    socket.send_fds(zygote, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    zygote.sendall(asked)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: zygote.send(bytes([number])))
    status = zygote.recv(4)
if not status:
    sys.exit("the python that had imported torch is gone")
code = os.waitstatus_to_exitcode(int.from_bytes(status, "big"))
if code < 0:
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class Asked(NamedTuple):
    """What a command asks for."""

    words: list[str]
    folder: str
    environment: dict[str, str]
    streams: list[int]


@contextmanager
def warm_python(folder: Path) -> Iterator[str]:
    """The path of a program that is called as python is; Linux alone has what it needs."""
    if sys.platform != "linux":
        yield sys.executable
        return
    door, program = folder / "door", folder / "python"
    program.write_text(COMMAND.format(python=sys.executable, door=str(door)))
    program.chmod(0o755)
    started = [sys.executable, "-m", "tests.warm_python", str(door)]
    pipe = subprocess.PIPE
    with subprocess.Popen(started, stdin=pipe, stdout=pipe, cwd=REPOSITORY) as zygote:
        assert zygote.stdin is not None and zygote.stdout is not None
        assert zygote.stdout.readline() == b"ready\n"
        yield str(program)
        zygote.stdin.close()  # it ends


def main(door: str) -> None:
    """Serve, and in every fork do what is asked, to the interpreter's own end."""
    if asked := _serve(door):
        _become(asked)


def _serve(door: str) -> Asked | None:
    """What a command asks for, in a fork; None, once nobody is left to ask."""
    for name in IMPORTED:
        __import__(name)
    clients: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listening, selectors.DefaultSelector() as watched:
        listening.bind(door)
        listening.listen()
        watched.register(listening, selectors.EVENT_READ, "door")
        watched.register(sys.stdin, selectors.EVENT_READ, "parent")
        print("ready", flush=True)
        while True:
            for key, _ in watched.select():
                if key.data == "parent":
                    return None
                if key.data == "door":
                    client, _ = listening.accept()
                    asked = _read(client)
                    process = os.fork()
                    if process == 0:
                        for each in (client, *clients.values()):
                            each.close()
                        return asked
                    for stream in asked.streams:
                        os.close(stream)
                    clients[process] = client
                    watched.register(client, selectors.EVENT_READ, process)
                    watched.register(os.pidfd_open(process), selectors.EVENT_READ, -process)
                elif key.data > 0:
                    if key.data in clients and not _pass_on(clients[key.data], key.data):
                        watched.unregister(key.fileobj)
                else:
                    process = -key.data
                    watched.unregister(key.fileobj)
                    os.close(key.fd)
                    _, status = os.waitpid(process, 0)
                    _tell_end(watched, clients.pop(process), status)


def _read(client: socket.socket) -> Asked:
    head, streams, _, _ = socket.recv_fds(client, 8, 3)
    size, whole = int.from_bytes(head, "big"), b""
    while len(whole) < size:
        whole += client.recv(size - len(whole))
    return Asked(*json.loads(whole), streams)


def _pass_on(client: socket.socket, process: int) -> bool:
    """A signal for a fork; False once its command is gone, and so is it."""
    try:
        numbers = client.recv(64)
    except ConnectionError:
        numbers = b""
    for number in numbers or [signal.SIGKILL]:
        os.kill(process, number)  # not waited for yet: the number is its own
    return bool(numbers)


def _tell_end(watched: selectors.BaseSelector, client: socket.socket, status: int) -> None:
    if client in {key.fileobj for key in watched.get_map().values()}:
        watched.unregister(client)
    try:
        client.sendall(status.to_bytes(4, "big"))
    except ConnectionError:
        pass
    client.close()


def _become(asked: Asked) -> None:
    """As `python WORDS...` does, started anew."""
    for stream, place in zip(asked.streams, range(3), strict=True):
        os.dup2(stream, place)
        os.close(stream)
    os.environ.clear()
    os.environ.update(asked.environment)
    os.chdir(asked.folder)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    words = asked.words
    if words[0] == "-u":
        words = words[1:]
        assert isinstance(sys.stdout, io.TextIOWrapper), "its own standard output"
        sys.stdout.reconfigure(write_through=True)
    is_module = words[0] == "-m"
    paths = [asked.folder if is_module else str(Path(words[0]).parent)]
    sys.path[:0] = paths + list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    _customize()
    if is_module:
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")


def _customize() -> None:
    """What site does at the start of every Python."""
    sys.modules.pop("sitecustomize", None)
    try:
        __import__("sitecustomize")
    except ModuleNotFoundError:
        pass


if __name__ == "__main__":
    main(sys.argv[1])
