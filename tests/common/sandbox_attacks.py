"""Programs that want out.   in: nothing   out: ATTACKS, and what stands outside to be attacked
who calls: tests/common/test_sandbox_attacks.py

Each program knows more than a real one could: where the secret lies, whom to kill, the ports.  It
prints GOT where it believes to have got through.  What counts is looked at outside afterwards.
"""

import os
import platform
import resource
import secrets
import select
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.sandbox.box import Sandbox
from nanochat.common.sandbox.limits import Outcome, SandboxLimits
from nanochat.common.sandbox.numbers import NUMBERS
from tests.conftest import REPOSITORY

__all__ = ["ATTACKS", "LIMITS", "Attack", "Outside", "laid_out"]

LIMITS = SandboxLimits(
    wall_s=2.0,
    cpu_s=1,
    memory_bytes=128 << 20,
    disk_bytes=2 << 20,
    num_files=100,
    num_descriptors=32,
    output_bytes=1 << 16,
)
HURRIED = SandboxLimits(wall_s=0.4, memory_bytes=128 << 20, output_bytes=1 << 16)
CALLS = NUMBERS["aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"]


@dataclass(frozen=True)
class Attack:
    """One program."""

    name: str
    program: str
    limits: SandboxLimits = LIMITS
    must_not_print: str = "GOT"
    status: str = ""
    """How it must end; empty: in any way."""
    works_openly: bool = False
    """Harmless enough to be run without walls, where it must get through: the check can fail."""


@dataclass(frozen=True)
class Outside:
    """What is laid out, and how it looked before."""

    folder: Path
    secret: str
    victim: "subprocess.Popen[bytes]"
    tcp: socket.socket
    udp: socket.socket
    unix: socket.socket
    abstract: socket.socket

    def preamble(self) -> str:
        """What every attack knows."""
        values = {
            "FOLDER": str(self.folder),
            "SECRET": str(self.folder / "secret"),
            "PROJECT": str(REPOSITORY),
            "HOME": os.path.expanduser("~"),
            "VICTIM": self.victim.pid,
            "PARENT": os.getpid(),
            "TCP": self.tcp.getsockname(),
            "UDP": self.udp.getsockname(),
            "UNIX": self.unix.getsockname(),
            "ABSTRACT": self.abstract.getsockname(),
            "CALL": CALLS,
        }
        imports = "import ctypes, os, signal, socket, sys, time\n"
        tools = "libc = ctypes.CDLL(None, use_errno=True)\n"
        tools += "def call(name, *a): return libc.syscall(CALL.get(name, name), *a)\n"
        return imports + "".join(f"{name} = {value!r}\n" for name, value in values.items()) + tools

    def damage(self, output: str) -> list[str]:
        """What an attack has done, seen from outside."""
        found = []
        if self.secret in output:
            found.append("the secret was read")
        if any(name in output for name in os.listdir(self.folder) if name.startswith("hidden")):
            found.append("a folder was listed")
        found += [f"folder: {line}" for line in self._folder_differences()]
        found += [f"victim: {line}" for line in self._victim_differences()]
        for name in ("tcp", "unix", "abstract", "udp"):
            if select.select([getattr(self, name)], [], [], 0)[0]:
                found.append(f"somebody reached the {name} socket")
        found += [f"{path} exists" for path in ESCAPED if os.path.lexists(path)]
        return found

    def _folder_differences(self) -> list[str]:
        wanted = {"secret", "unix", next(n for n in os.listdir(self.folder) if n[:6] == "hidden")}
        differences = sorted(set(os.listdir(self.folder)) ^ wanted)
        path = self.folder / "secret"
        if not path.is_file() or path.read_text() != self.secret:
            return [*differences, "the secret was changed"]
        state = path.stat()
        if (state.st_mode & 0o7777, state.st_mtime, state.st_nlink) != (0o666, 1e9, 1):
            differences.append("mode, time or links of the secret were changed")
        if os.listxattr(path):
            differences.append("an attribute was set")
        return differences

    def _victim_differences(self) -> list[str]:
        if self.victim.poll() is not None:
            return [f"ended with {self.victim.returncode}"]
        fields = Path(f"/proc/{self.victim.pid}/status").read_text()
        differences = []
        if "TracerPid:\t0" not in fields or "\nState:\tS" not in fields:
            differences.append("is traced or stopped")
        if resource.prlimit(self.victim.pid, resource.RLIMIT_NOFILE)[0] == 7:
            differences.append("its limits were changed")
        if os.getpriority(os.PRIO_PROCESS, self.victim.pid) != os.getpriority(os.PRIO_PROCESS, 0):
            differences.append("its priority was changed")
        return differences

    def repair(self) -> None:
        """As before, after an attack that was let through on purpose."""
        for name in os.listdir(self.folder):
            if name not in ("unix",) and not name.startswith("hidden"):
                (self.folder / name).unlink()
        _write_secret(self.folder, self.secret)
        for listener in (self.tcp, self.unix, self.abstract):
            while select.select([listener], [], [], 0)[0]:
                listener.accept()[0].close()
        while select.select([self.udp], [], [], 0)[0]:
            self.udp.recv(100)
        for path in ESCAPED:
            Path(path).unlink(missing_ok=True)


# Where an attack writes besides the folder outside; the name is nobody else's.
MARK = f"nanochat-escaped-{os.getpid()}"
ESCAPED = (f"/dev/shm/{MARK}", f"/tmp/{MARK}", f"/var/tmp/{MARK}")


def _write_secret(folder: Path, secret: str) -> None:
    path = folder / "secret"
    path.write_text(secret)
    path.chmod(0o666)
    os.utime(path, (1e9, 1e9))


@contextmanager
def laid_out(folder: Path) -> Iterator[Outside]:
    """Everything there is to attack; only walls keep anybody from it."""
    secret = secrets.token_hex(16)
    for directory in (folder, *list(folder.parents)[:2]):
        directory.chmod(0o777)
    _write_secret(folder, secret)
    (folder / f"hidden-{secrets.token_hex(8)}").touch()
    with ExitStack() as stack:
        sockets = []
        for family, kind, address in (
            (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            (socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "unix")),
            (socket.AF_UNIX, socket.SOCK_STREAM, f"\0{secrets.token_hex(8)}"),
        ):
            listener = stack.enter_context(socket.socket(family, kind))
            listener.bind(address)
            if kind == socket.SOCK_STREAM:
                listener.listen()
            sockets.append(listener)
        (folder / "unix").chmod(0o777)
        with open(folder / "secret") as opened:
            victim = subprocess.Popen(
                ["sleep", "1000"], stdin=opened, env={"SECRET": secret, "PATH": os.defpath}
            )
        try:
            yield Outside(folder, secret, victim, *sockets)
        finally:
            victim.kill()
            victim.wait()


def descendants(pid: int) -> set[int]:
    """The processes below a process."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        try:
            children = Path(f"/proc/{waiting[-1]}/task/{waiting.pop()}/children").read_text()
        except OSError:  # ended meanwhile
            continue
        waiting += (more := [int(child) for child in children.split()])
        found |= set(more)
    return found


def run(sandbox: Sandbox, attack: Attack, outside: Outside) -> tuple[Outcome, float]:
    """What became of an attack, and the seconds it took."""
    started_s = time.monotonic()
    outcome = sandbox.run(outside.preamble() + attack.program, attack.limits)
    return outcome, time.monotonic() - started_s


def _attack(name: str, program: str, **more: object) -> Attack:
    return Attack(name, textwrap.dedent(program), **more)  # type: ignore[arg-type]


def _gets(name: str, expression: str, **more: object) -> Attack:
    """Prints GOT if the expression, often a raw system call, gives 0 or more."""
    return Attack(name, f"if ({expression}) >= 0: print('GOT')\n", **more)  # type: ignore[arg-type]


READING = [
    _attack("read a file", "print(open(SECRET).read())", works_openly=True),
    _attack("read the password file", "print(open('/etc/passwd').read())", must_not_print="root:"),
    _attack("list a folder", "print(os.listdir(FOLDER))", works_openly=True),
    _attack(
        "list the home folder",
        """
        os.listdir(HOME)
        print('GOT')
        """,
        works_openly=True,
    ),
    _attack(
        "read the project's tests",
        """
        open(PROJECT + '/tests/conftest.py').read()
        print('GOT')
        """,
    ),
    _attack(
        "read the project's package",
        """
        open(PROJECT + '/nanochat/__init__.py').read(1)
        print('GOT')
        """,
    ),
    _attack(
        "climb up",
        """
        os.chdir('../' * 20)
        print(open('.' + SECRET).read())
        """,
        works_openly=True,
    ),
    _attack(
        "symbolic link",
        """
        os.symlink(SECRET, 'link')
        print(open('link').read())
        """,
        works_openly=True,
    ),
    _attack(
        "hard link",
        """
        os.link(SECRET, FOLDER + '/link')
        print('GOT')
        """,
        works_openly=True,
    ),
    _attack(
        "rename it in",
        """
        os.rename(SECRET, 'mine')
        print(open('mine').read())
        """,
    ),
    _attack(
        "directory descriptor",
        """
        d = os.open(FOLDER, os.O_PATH)
        print(os.read(os.open('secret', 0, dir_fd=d), 99))
        """,
        works_openly=True,
    ),
    _attack(
        "raw open",
        """
        b = ctypes.create_string_buffer(99)
        libc.read(libc.open(SECRET.encode(), 0), b, 99)
        print(b.value)
        """,
        works_openly=True,
    ),
    _attack(
        "map a file",
        """
        import mmap
        f = open(SECRET)
        print(mmap.mmap(f.fileno(), 0, prot=1).read())
        """,
        works_openly=True,
    ),
    _attack(
        "load as a module",
        """
        import importlib.machinery as m
        print(m.SourceFileLoader('x', SECRET).get_data(SECRET))
        """,
        works_openly=True,
    ),
    _attack(
        "attach as a database",
        """
        import sqlite3
        sqlite3.connect(FOLDER + '/data').execute('create table x (y)')
        print('GOT')
        """,
    ),
    _attack("own environment in /proc", "print('GOT', open('/proc/self/environ').read())"),
    _attack(
        "own memory in /proc",
        """
        open('/proc/self/mem', 'r+b')
        print('GOT')
        """,
    ),
    _attack(
        "another's environment", "print(open(f'/proc/{VICTIM}/environ').read())", works_openly=True
    ),
    _attack(
        "another's memory",
        """
        open(f'/proc/{VICTIM}/mem', 'rb')
        print('GOT')
        """,
    ),
    _attack(
        "the parent's memory",
        """
        open(f'/proc/{os.getppid()}/mem', 'r+b')
        print('GOT')
        """,
    ),
    _attack(
        "another's descriptor", "print(open(f'/proc/{VICTIM}/fd/0').read())", works_openly=True
    ),
    _attack("another's root", "print(open(f'/proc/{VICTIM}/root' + SECRET).read())"),
    _attack(
        "another's folder",
        """
        os.chdir(f'/proc/{PARENT}/cwd')
        os.listdir('.')
        print('GOT')
        """,
    ),
    _attack(
        "raw disk",
        """
        for d in ('vda', 'sda', 'nvme0n1', 'mem', 'kmem', 'kmsg'):
            try:
                open('/dev/' + d, 'rb').read(1)
                print('GOT')
            except OSError:
                pass
        """,
    ),
    _attack(
        "file handle",
        """
        handle = (ctypes.c_char * 136)()
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_uint))[0] = 128
        number = ctypes.byref(ctypes.c_int())
        if call('name_to_handle_at', -100, SECRET.encode(), handle, number, 0) >= 0: print('GOT')
    """,
        status="forbidden",
    ),
    _gets("chroot", "libc.chroot(b'.')", status="forbidden"),
]

WRITING = [
    _attack("write a file", "open(FOLDER + '/new', 'w').write('x')", works_openly=True),
    _attack(
        "write to the system's temporary folders",
        f"""
        for folder in ('/tmp', '/var/tmp', '/dev/shm', '/run/lock'):
            try:
                open(folder + '/{MARK}', 'w').write('x')
            except OSError:
                pass
    """,
    ),
    _attack("change a file", "open(SECRET, 'a').write('x')", works_openly=True),
    _attack("truncate a file", "os.truncate(SECRET, 0)", works_openly=True),
    _attack("delete a file", "os.unlink(SECRET)", works_openly=True),
    _attack("change a mode", "os.chmod(SECRET, 0o777)", works_openly=True),
    _attack("change a time", "os.utime(SECRET, (1, 1))", works_openly=True),
    _attack(
        "change an owner",
        """
        os.chown(SECRET, 12345, 12345)
        print('GOT')
        """,
    ),
    _attack("set an attribute", "os.setxattr(SECRET, 'user.x', b'x')"),
    _attack("make a pipe", "os.mkfifo(FOLDER + '/pipe')", works_openly=True),
    _attack("make a device", "os.mknod(FOLDER + '/device', 0o60600, os.makedev(254, 0))"),
    _attack("make a folder", "os.mkdir(FOLDER + '/sub')"),
    _attack(
        "change the kernel's settings",
        """
        open('/proc/sys/kernel/core_pattern', 'w')
        print('GOT')
        """,
    ),
    _attack(
        "change a control group",
        """
        open('/sys/fs/cgroup/cgroup.procs', 'w')
        print('GOT')
        """,
    ),
    _attack(
        "type into the terminal",
        """
        import fcntl
        for fd in range(3):
            try:
                fcntl.ioctl(fd, 0x5412, b'x')
                print('GOT')
            except OSError as error:
                if error.errno not in (1, 25): print('GOT', error)
    """,
    ),
]

NETWORK = [
    _attack("TCP", "socket.create_connection(TCP)", works_openly=True),
    _attack("UDP", "socket.socket(2, 2).sendto(b'x', UDP)", works_openly=True),
    _attack("Unix socket", "socket.socket(1).connect(UNIX)", works_openly=True),
    _attack("abstract socket", "socket.socket(1).connect(ABSTRACT)", works_openly=True),
    _attack(
        "socket pair",
        """
        socket.socketpair()
        print('GOT')
        """,
        works_openly=True,
    ),
    _attack(
        "netlink",
        """
        socket.socket(16, 3, 0)
        print('GOT')
        """,
        works_openly=True,
    ),
    _attack(
        "raw packets",
        """
        socket.socket(17, 3, 3)
        print('GOT')
        """,
    ),
    _attack(
        "kernel crypto socket",
        """
        socket.socket(38, 5)
        print('GOT')
        """,
    ),
    _attack(
        "listen",
        """
        s = socket.socket()
        s.bind(('', 0))
        s.listen()
        print('GOT')
        """,
        works_openly=True,
    ),
    _attack(
        "look up a name",
        """
        socket.getaddrinfo('localhost.example', 80)
        print('GOT')
        """,
    ),
    _gets("raw socket call", "libc.socket(2, 1, 0)", works_openly=True),
]

PROCESSES = [
    _attack(
        "fork",
        """
        os.fork()
        print('GOT')
        """,
        works_openly=True,
    ),
    _attack(
        "fork bomb",
        """
        while True:
            try:
                if os.fork() >= 0: print('GOT')
            except OSError:
                break
    """,
    ),
    _attack(
        "daemon by two forks",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: time.sleep(60)
            os._exit(0)
        print('GOT')
    """,
    ),
    _gets("raw clone", "call('clone', 17, 0, 0, 0, 0) if 'clone' in CALL else libc.fork()"),
    _gets("clone3", "call('clone3', (ctypes.c_ulong * 11)(), 88)"),
    _gets("vfork", "call(58, 0)" if platform.machine() == "x86_64" else "libc.fork()"),
    _attack(
        "spawn",
        """
        os.posix_spawn('/bin/sh', ['sh', '-c', 'echo GOT'], {})
        time.sleep(0.2)
        """,
        works_openly=True,
    ),
    _attack(
        "subprocess",
        """
        import subprocess
        print(subprocess.check_output(['/bin/echo', 'GOT']))
        """,
        works_openly=True,
    ),
    _attack("shell", "if os.system('echo GOT') == 0: print('GOT')", works_openly=True),
    _attack("exec", "os.execv('/bin/echo', ['echo', 'GOT'])", works_openly=True),
    _attack(
        "exec of a script",
        """
        open('x', 'w').write('#!/bin/sh\\necho GOT')
        os.execv('./x', ['x'])
        """,
    ),
    _attack(
        "exec through the loader",
        """
        arguments = (ctypes.c_char_p * 4)(b'ld', b'/bin/echo', b'GOT', None)
        for path in (b'/lib64/ld-linux-x86-64.so.2', b'/lib/ld-linux-aarch64.so.1'):
            libc.execv(path, arguments)
        """,
        works_openly=True,
    ),
    _attack(
        "exec from memory",
        """
        fd = os.memfd_create('x')
        os.write(fd, b'#!/bin/sh\\necho GOT\\n')
        os.execve(fd, ['x'], {})
    """,
    ),
    _attack(
        "threads",
        """
        import threading
        threading.Thread(target=print, args=('GOT',)).start()
        """,
        works_openly=True,
    ),
    _attack(
        "pool of processes",
        """
        import multiprocessing as m
        m.get_context('fork').Process(target=print, args=('GOT',)).start()
        time.sleep(0.1)
        """,
    ),
]

SIGNALS = [
    _attack("kill another", "os.kill(VICTIM, 9)"),
    _attack("stop another", "os.kill(VICTIM, signal.SIGSTOP)"),
    _attack("kill the parent", "os.kill(os.getppid(), 9)"),
    _attack(
        "kill the tests",
        """
        os.kill(PARENT, signal.SIGUSR1)
        print('GOT')
        """,
    ),
    _attack("kill everybody", "os.kill(-1, 9)"),
    _attack("kill a group", "os.killpg(os.getpgid(VICTIM), 9)"),
    _attack(
        "queue a signal",
        "call(129 if CALL['read'] == 0 else 138, VICTIM, 15, (ctypes.c_int * 32)(15, 0, -1))",
    ),
    _attack("signal a thread", "call(234 if CALL['read'] == 0 else 131, VICTIM, VICTIM, 9)"),
    _attack(
        "signal through a pidfd",
        """
        fd = call('pidfd_open', VICTIM, 0)
        call('pidfd_send_signal', fd, 9, None, 0)
        """,
    ),
    _attack(
        "signal by asynchronous input",
        """
        import fcntl
        r, w = os.pipe()
        fcntl.fcntl(r, fcntl.F_SETOWN, VICTIM)
        fcntl.fcntl(r, 10, 9)
        fcntl.fcntl(r, fcntl.F_SETFL, fcntl.fcntl(r, fcntl.F_GETFL) | 0o20000)
        os.write(w, b'x')
        print('GOT')
    """,
    ),
    _attack(
        "change another's limits",
        """
        import resource
        resource.prlimit(VICTIM, resource.RLIMIT_NOFILE, (7, 7))
        """,
    ),
    _attack("change another's priority", "os.setpriority(os.PRIO_PROCESS, VICTIM, 19)"),
    _attack(
        "raise one's own limits",
        """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
        print('GOT')
        """,
    ),
    _attack(
        "become root",
        """
        os.setuid(0)
        os.setgroups([0])
        print('GOT')
        """,
    ),
]

KERNEL = [
    _attack(
        "attach a debugger",
        """
        libc.ptrace(16, VICTIM, 0, 0)
        time.sleep(0.1)
        """,
        status="forbidden",
    ),
    _attack(
        "seize with a debugger",
        """
        libc.ptrace(0x4206, VICTIM, 0, 0)
        time.sleep(0.1)
        """,
        status="forbidden",
    ),
    _gets("ask to be debugged", "libc.ptrace(0, 0, 0, 0)", status="forbidden"),
    _gets(
        "read another's memory",
        "call('process_vm_readv', VICTIM, None, 0, None, 0, 0)",
        status="forbidden",
    ),
    _gets(
        "write another's memory",
        "call('process_vm_writev', VICTIM, None, 0, None, 0, 0)",
        status="forbidden",
    ),
    _gets("take another's descriptor", "call('pidfd_getfd', 3, 0, 0)", status="forbidden"),
    _gets("mount", "libc.mount(b'x', b'.', b'tmpfs', 0, None)", status="forbidden"),
    _gets("unmount", "libc.umount2(b'/tmp', 2)", status="forbidden"),
    _gets("pivot the root", "call('pivot_root', b'.', b'.')", status="forbidden"),
    _gets("new user namespace", "libc.unshare(0x10000000)", status="forbidden"),
    _gets("enter a namespace", "libc.setns(0, 0)", status="forbidden"),
    _gets("keyring", "call('keyctl', 0, -3, 1, 0, 0)", status="forbidden"),
    _gets("add a key", "call('add_key', b'user', b'x', b'x', 1, -3)", status="forbidden"),
    _gets(
        "io_uring",
        "call('io_uring_setup', 1, ctypes.create_string_buffer(256))",
        status="forbidden",
    ),
    _gets("userfaultfd", "call('userfaultfd', 0)", status="forbidden"),
    _gets("bpf", "call('bpf', 0, ctypes.create_string_buffer(128), 128)", status="forbidden"),
    _gets(
        "perf",
        "call('perf_event_open', ctypes.create_string_buffer(128), 0, -1, -1, 0)",
        status="forbidden",
    ),
    _gets("load a module", "call('init_module', b'x', 1, b'')", status="forbidden"),
    _gets(
        "restart the machine", "call('reboot', 0xfee1dead, 672274793, 0, None)", status="forbidden"
    ),
    _gets("rename the machine", "libc.sethostname(b'got', 3)", status="forbidden"),
    _gets(
        "set the clock", "call('clock_settime', 0, (ctypes.c_long * 2)(0, 0))", status="forbidden"
    ),
    _gets("swap", "libc.swapon(b'x', 0)", status="forbidden"),
    _gets("memory file", "call(319 if CALL['read'] == 0 else 279, b'x', 0)"),
    _gets(
        "another's memory advice", "call('process_madvise', 3, None, 0, 0, 0)", status="forbidden"
    ),
    _gets("personality", "call('personality', 0x0040000)", status="forbidden"),
    _gets(
        "calls of another machine type",
        "call(0x40000000 + 41, 2, 1, 0)",
        status="forbidden" if platform.machine() == "x86_64" else "",
    ),
    _gets("a filter of one's own", "call('seccomp' if 'seccomp' in CALL else 317, 1, 0, None)"),
    _gets("dumpable again", "libc.prctl(4, 1, 0, 0, 0)"),
    _attack(
        "32-bit calls by machine code",
        """
        import mmap, platform
        if platform.machine() == 'x86_64':
            page = mmap.mmap(-1, 4096, prot=7)
            # mov eax, 359 (socket); mov ebx, 2; mov ecx, 1; xor edx, edx; int 0x80; ret, rbx saved
            page.write(bytes.fromhex('53b867010000bb02000000b90100000031d2cd805bc3'))
            f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
            if f() >= 0: print('GOT')
    """,
    ),
]

RESOURCES = [
    _attack(
        "one large block",
        """
        x = b'x' * (1 << 31)
        print('GOT')
        """,
        status="memory",
    ),
    _attack(
        "many small blocks",
        """
        x = []
        while True: x.append(bytearray(1 << 16))
        """,
        status="memory",
    ),
    _attack(
        "shared memory",
        """
        import mmap
        m = mmap.mmap(-1, 1 << 30)
        print('GOT')
        """,
    ),
    _attack(
        "one large file",
        """
        f = open('x', 'wb')
        for _ in range(64): f.write(bytes(1 << 20))
        print('GOT')
        """,
    ),
    _attack(
        "a sparse file",
        """
        os.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 40)
        print('GOT')
        """,
    ),
    _attack(
        "many files",
        """
        for n in range(10**6): open(str(n), 'wb').write(bytes(1 << 15))
        print('GOT')
        """,
    ),
    _attack(
        "deep folders",
        """
        for _ in range(10**6):
            os.mkdir('d')
            os.chdir('d')
        print('GOT')
        """,
    ),
    _attack(
        "many descriptors",
        """
        x = []
        while True: x.append(os.dup(0))
        """,
        status="raised",
    ),
    _attack(
        "many pipes",
        """
        x = []
        while True: x.append(os.pipe())
        """,
        status="raised",
    ),
    _attack("flood of output", "while True: print('x' * 10000)", status="output"),
    _attack("flood of errors", "while True: os.write(2, b'x' * 10000)", status="output"),
    _attack(
        "flood of reports",
        """
        while True:
            for fd in range(3, 32):
                try:
                    os.write(fd, b'x' * 10000)
                except OSError:
                    pass
        """,
    ),
    _attack("sleep", "time.sleep(60)", limits=HURRIED, status="timeout"),
    _attack("busy", "while True: pass", limits=HURRIED, status="timeout"),
    _attack("long arithmetic", "x = 7 ** (10 ** 8)", limits=HURRIED, status="timeout"),
    _attack(
        "long pattern",
        """
        import re
        re.match('(a+)+$', 'a' * 64 + 'b')
        """,
        limits=HURRIED,
        status="timeout",
    ),
    _attack(
        "deaf to signals",
        """
        for s in range(1, 32):
            try:
                signal.signal(s, signal.SIG_IGN)
            except OSError:
                pass
        while True: pass
        """,
        limits=HURRIED,
        status="timeout",
    ),
    _attack(
        "deaf to the CPU limit",
        """
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True: pass
        """,
        limits=SandboxLimits(wall_s=6, cpu_s=1),
        status="timeout",
    ),
    _attack(
        "closes its pipes and stays",
        """
        os.closerange(0, 64)
        while True: time.sleep(1)
        """,
        limits=HURRIED,
        status="timeout",
    ),
    _attack(
        "reads its input",
        """
        sys.stdin.read()
        sys.stdin.buffer.read()
        print(len(sys.argv))
        """,
        limits=LIMITS,
        status="finished",
    ),
    _attack(
        "endless recursion in C",
        """
        sys.setrecursionlimit(10**9)
        x = []
        for _ in range(10**6): x = [x]
        print(repr(x))
        """,
        limits=LIMITS,
    ),
    _attack("crash", "ctypes.string_at(1)", limits=LIMITS, status="killed"),
]

ATTACKS = [*READING, *WRITING, *NETWORK, *PROCESSES, *SIGNALS, *KERNEL, *RESOURCES]
