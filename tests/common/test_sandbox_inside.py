"""What stands in the children of the sandbox, step by step: which call, with what, in which order.

Whether the walls hold is tested from outside (test_sandbox.py, test_sandbox_attacks.py).
"""

import ctypes
import gc
import importlib
import json
import os
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nanochat.common.sandbox import (
    forkserver,
    frames,
    kernel,
    landlock,
    rooms,
    seccomp,
    walls,
    watch,
)
from nanochat.common.sandbox.limits import SandboxLimits
from scripts import sandbox_overhead

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's"),
    pytest.mark.req("FR-040"),
]


class Recorded(list[tuple[Any, ...]]):
    """Calls, as they were made."""

    def of(self, name: str, result: object = 0) -> Any:
        def record(*arguments: Any) -> object:
            self.append((name, *arguments))
            return result

        return record

    @property
    def names(self) -> list[str]:
        return [str(entry[0]) for entry in self]


def fence(**more: Any) -> walls.Walls:
    values = {
        "limits": SandboxLimits(num_descriptors=9),
        "readable": ("/usr/lib",),
        "folder": "/",
        "can_write": True,
        "user": 4321,
        "is_strict": True,
    }
    return walls.Walls(**(values | more))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    calls = Recorded()
    for module, names in (
        (walls.os, ("umask", "chdir", "setgroups", "setresgid", "setresuid")),
        (walls.resource, ("setrlimit",)),
        (walls.kernel, ("prctl", "call")),
        (walls.landlock, ("restrict",)),
        (walls.seccomp, ("install",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, calls.of(name))
    monkeypatch.setattr(walls.landlock, "abi", lambda: 7)
    return calls


def test_walls_go_up_in_the_order_that_holds(recorded: Recorded) -> None:
    walls.put_up(fence(), os.getppid())
    steps = [entry for entry in recorded if entry[:2] != ("prctl", "CAPBSET_DROP")]
    names = [entry[0] for entry in steps]
    options = [entry[1] for entry in steps if entry[0] == "prctl"]
    assert options == ["PDEATHSIG", "DUMPABLE", "NO_NEW_PRIVS"]
    # Another user before the death signal, which it would clear; seccomp after everything.
    user = steps.index(("setresuid", 4321, 4321, 4321))
    assert names.index("setgroups") < names.index("setresgid") < user < names.index("call")
    assert names.index("call") < steps.index(("prctl", "PDEATHSIG", 9))
    assert names[-3:] == ["prctl", "restrict", "install"]
    assert steps[-2] == ("restrict", ("/usr/lib",), ["/", "/dev/null"])
    assert ("setrlimit", walls.resource.RLIMIT_NOFILE, (9, 9)) in steps


def test_checks_may_write_nowhere(recorded: Recorded) -> None:
    walls.put_up(fence(can_write=False, user=None), os.getppid())
    assert ("restrict", ("/usr/lib",), ["/dev/null"]) in recorded
    assert "setresuid" not in recorded.names


def test_without_landlock_the_others_still_go_up(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walls.landlock, "abi", lambda: 0)
    walls.put_up(fence(), os.getppid())
    assert "restrict" not in recorded.names and recorded.names[-1] == "install"


@pytest.mark.parametrize(
    ("version", "size", "rights"),
    [(1, 8, 1 << 13), (2, 8, 1 << 14), (3, 8, 1 << 15), (4, 16, 1 << 15), (5, 16, 1 << 16),
     (6, 24, 1 << 16), (99, 24, 1 << 16)],
)  # fmt: skip
def test_landlock_guards_all_its_version_knows(
    version: int, size: int, rights: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def call(name: str, *arguments: Any) -> int:
        if name == "landlock_create_ruleset" and arguments[0] is None:
            return version
        raw = [argument.raw for argument in arguments if hasattr(argument, "raw")]
        calls.append((name, *raw))
        return os.open(os.devnull, os.O_RDONLY) if name == "landlock_create_ruleset" else 0

    monkeypatch.setattr(landlock, "_call", call)
    assert landlock.abi() == version
    landlock.restrict([str(tmp_path), "/does/not/exist"], [os.devnull])
    (_, ruleset), (_, shown), (_, null), (last,) = calls
    assert len(ruleset) == size and struct.unpack_from("<Q", ruleset)[0] == rights - 1
    assert ruleset[8:] == b"".join(struct.pack("<Q", 3) for _ in range(size // 8 - 1))
    assert struct.unpack("<Qi", shown)[0] == landlock.READ
    assert struct.unpack("<Qi", null)[0] == landlock.OF_A_FILE & (rights - 1)
    assert last == "landlock_restrict_self"


def test_no_landlock_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:  # there the same number is another system call
        elsewhere.setattr(landlock.sys, "platform", "darwin")
        assert landlock.abi() == 0

    def refuse(*_: object) -> int:
        raise OSError(38, "no such call")

    monkeypatch.setattr(landlock, "_call", refuse)
    assert landlock.abi() == 0
    with pytest.raises(OSError, match="the kernel has no Landlock"):
        landlock.restrict([], [])


def test_the_filter_is_handed_over_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def prctl(option: str, mode: int, header: Any) -> int:
        count, address = struct.unpack("<HxxxxxxQ", header.raw)
        seen.append((option, mode, ctypes.string_at(address, count * 8)))
        return 0

    monkeypatch.setattr(seccomp.kernel, "prctl", prctl)
    seccomp.install("aarch64")
    assert seen == [("SECCOMP", 2, seccomp.filter_program("aarch64"))]


def test_a_room_is_made_of_what_may_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "prefix" / "lib"
    library.mkdir(parents=True)
    (tmp_path / "link").symlink_to("prefix")
    (tmp_path / "file").touch()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    calls = Recorded()
    monkeypatch.setattr(rooms.kernel, "call", calls.of("call"))
    monkeypatch.setattr(rooms.os, "chdir", calls.of("chdir"))
    readable = [str(library), str(tmp_path / "link"), str(tmp_path / "file"), "/does/not/exist"]
    rooms.enter(readable, str(scratch))
    made = [entry[1:] for entry in calls if entry[0] == "call"]
    assert made[0] == ("unshare", rooms.NEW_REST)
    mounts = [entry for entry in made if entry[0] == "mount"]
    assert mounts[0] == ("mount", None, b"/", None, rooms.REC | rooms.PRIVATE, None)
    binds = [entry[1] for entry in mounts if entry[4] == rooms.BIND]
    assert binds == [str(path).encode() for path in (library, tmp_path / "file", "/dev/null")]
    remounts = {entry[2].decode(): entry[4] for entry in mounts if entry[4] & rooms.REMOUNT}
    for path, flags in remounts.items():
        assert path.endswith("/dev/null") or flags & rooms.RDONLY, path
    assert [entry[0] for entry in made[-3:]] == ["pivot_root", "umount2", "mount"]
    inside = str(scratch) + str(tmp_path)
    assert os.readlink(f"{inside}/link") == "prefix"
    assert os.path.isdir(f"{inside}/prefix/lib") and os.path.isfile(f"{inside}/file")
    calls.clear()
    rooms.empty_folder(1000, 20)
    rooms.remove_folder()
    options = b"size=1000,nr_inodes=20,mode=777"
    flags = rooms.NOSUID | rooms.NODEV | rooms.NOEXEC
    assert calls == [
        ("call", "mount", b"folder", b"/box", b"tmpfs", flags, options),
        ("call", "umount2", b"/box", rooms.DETACH),
    ]


def test_a_user_namespace_is_taken_where_only_that_is_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: dict[str, str] = {}

    def call(name: str, *arguments: Any) -> int:
        if (name, *arguments) == ("unshare", rooms.NEW_REST):
            raise PermissionError(1, "unshare")
        return 0

    monkeypatch.setattr(rooms.kernel, "call", call)
    monkeypatch.setattr(rooms.os, "chdir", lambda path: None)
    monkeypatch.setattr(
        rooms.Path, "write_text", lambda path, text: written.__setitem__(path.name, text)
    )
    rooms.enter([], str(tmp_path))
    assert written["setgroups"] == "deny"
    assert written["uid_map"] == f"0 {os.geteuid()} 1"
    assert written["gid_map"] == f"0 {os.getegid()} 1"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> watch.Place:
    """For a watcher in this process, which must not change what this process is."""
    monkeypatch.setattr(watch, "kernel", SimpleNamespace(prctl=lambda *_: 0))
    monkeypatch.setattr(watch, "_end_descendants", lambda: None)
    return watch.Place(
        readable=forkserver.readable_paths(),
        scratch=str(tmp_path),
        has_room=False,
        user=None,
        is_strict=True,
    )


def watched(place: watch.Place, *messages: dict[str, Any]) -> dict[str, Any]:
    job, reply = os.pipe(), os.pipe()
    for message in messages:
        frames.write_json(job[1], message)
    os.close(job[1])
    try:
        watch.serve_job(job[0], reply[1], place)
        answer: dict[str, Any] = frames.read_json(reply[0])
        return answer
    finally:
        for descriptor in (job[0], *reply):
            os.close(descriptor)


@pytest.mark.parametrize(
    ("source", "limits", "status"),
    [
        ("x = 1", {"wall_s": 60.0}, "finished"),
        ("while True: pass", {"wall_s": 0.2}, "timeout"),
        ("import os\nos.write(1, b'x' * 9999)", {"output_bytes": 1000, "wall_s": 60.0}, "output"),
        (
            "import time\nfor n in range(9): open(str(n), 'w').close()\ntime.sleep(9)",
            {"num_files": 5, "wall_s": 60.0},
            "disk",
        ),
        ("import os\nos.closerange(0, 99)\nos._exit(0)", {"wall_s": 60.0}, "exited"),
    ],
)
def test_a_watcher_sees_its_program_to_the_end(
    place: watch.Place, source: str, limits: dict[str, Any], status: str
) -> None:
    reply = watched(place, {"kind": "run", "source": source, "limits": limits})
    assert reply["program"]["status"] == status
    assert os.listdir(place.scratch) == []


def test_a_watcher_sees_both_to_the_end(place: watch.Place) -> None:
    job = {"kind": "check", "source": "def f(): return 1", "limits": {"wall_s": 60.0}}
    reply = watched(place, job, {"tests": "assert f()", "entry_point": "f", "nonce": "n"})
    assert (reply["verdict"], reply["reason"]) == ("n", "passed")
    stubborn = "import os, time\nwhile True: time.sleep(1)"
    reply = watched(
        place,
        job | {"source": stubborn, "limits": {"wall_s": 0.3}},
        {"tests": "assert f()", "entry_point": "f", "nonce": "n"},
    )
    assert (reply["verdict"], reply["program"]["status"]) == ("", "timeout")


def test_a_watcher_without_a_job_says_so(place: watch.Place) -> None:
    with pytest.raises(EOFError):
        watched(place)


def test_a_server_introduces_itself_and_ends_with_its_pipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job, hello = os.pipe(), os.pipe()
    os.close(job[1])
    monkeypatch.setattr(forkserver, "CONTROL_IN", job[0])
    monkeypatch.setattr(forkserver, "CONTROL_OUT", hello[1])
    monkeypatch.setattr(forkserver.os, "environ", {"SECRET": "x"})
    monkeypatch.setattr(sys, "path", ["the package", *sys.path])
    monkeypatch.setattr(sys, "argv", ["-c", "root", "settings"])
    monkeypatch.setattr(gc, "freeze", lambda: None)
    forkserver.main(
        f'{{"scratch": "{tmp_path}", "user": null, "has_room": false, "is_strict": true}}'
    )
    assert os.environ == {} and sys.path[0] != "the package" and sys.argv == ["-c"]
    said = frames.read_json(hello[0])
    assert (said["room"], said["user"]) == (False, None)
    for descriptor in (job[0], *hello):
        os.close(descriptor)


def test_what_is_imported_beforehand_exists() -> None:
    for name in forkserver.WARM.split():
        importlib.import_module(name)


def test_a_room_that_is_refused_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "unshare: Operation not permitted")

    notes: list[str] = []
    monkeypatch.setattr(forkserver.rooms, "enter", refuse)
    assert not forkserver._move_into_room((), "", notes)
    assert notes == ["no namespaces ([Errno 1] unshare: Operation not permitted)"]


def test_every_number_is_the_kernels_own() -> None:
    """The headers of this machine, where they are installed, agree."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.is_file():
        pytest.skip("needs the kernel's headers")
    defined = dict(
        line.removeprefix("#define __NR_").split()[:2]
        for line in header.read_text().splitlines()
        if line.startswith("#define __NR_")
    )
    ours = landlock.NUMBERS["x86_64"]
    newer = {name for name in ours if name not in defined}
    assert {name: str(number) for name, number in ours.items() if name not in newer} == {
        name: defined[name] for name in ours if name not in newer
    }
    assert newer <= {"fchmodat2"}
    assert kernel.PRCTL["NO_NEW_PRIVS"] == 38


def test_what_a_program_costs_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure itself is taken on an idle machine; there the limit is 60 ms."""
    assert sandbox_overhead.main(["--programs", "5", "--limit-ms", "600"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"programs", "run_ms", "check_ms", "open_ms"}
    monkeypatch.setattr(sandbox_overhead, "measure", lambda _: {"run_ms": 1.0, "check_ms": 61.0})
    assert sandbox_overhead.main([]) == 1


def test_another_user_is_taken_only_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    assert not forkserver._can_become(None, True, notes) and notes == []
    is_root = os.geteuid() == 0
    monkeypatch.setattr(forkserver.os, "geteuid", lambda: 0)
    assert forkserver._can_become(1_500_000_000, True, notes) == is_root
    assert bool(notes) != is_root  # what did not work is told
    monkeypatch.setattr(forkserver, "is_open_to_others", lambda path: False)
    assert not forkserver._can_become(1_500_000_000, False, notes)
    assert "others may not read this interpreter" in notes[-1]
