"""The kernel, and what a machine has too little of.

Read next: attack.py (what one is).
"""

import platform

from nanochat.common.sandbox.limits import SandboxLimits
from tests.common.attacks.attack import HURRIED, LIMITS, attack, gets

__all__ = ["KERNEL", "RESOURCES"]

KERNEL = [
    attack(
        "attach a debugger",
        """
        libc.ptrace(16, VICTIM, 0, 0)
        time.sleep(0.1)
        """,
        status="forbidden",
    ),
    attack(
        "seize with a debugger",
        """
        libc.ptrace(0x4206, VICTIM, 0, 0)
        time.sleep(0.1)
        """,
        status="forbidden",
    ),
    gets("ask to be debugged", "libc.ptrace(0, 0, 0, 0)", status="forbidden"),
    gets(
        "read another's memory",
        "call('process_vm_readv', VICTIM, None, 0, None, 0, 0)",
        status="forbidden",
    ),
    gets(
        "write another's memory",
        "call('process_vm_writev', VICTIM, None, 0, None, 0, 0)",
        status="forbidden",
    ),
    gets("take another's descriptor", "call('pidfd_getfd', 3, 0, 0)", status="forbidden"),
    gets("mount", "libc.mount(b'x', b'.', b'tmpfs', 0, None)", status="forbidden"),
    gets("unmount", "libc.umount2(b'/tmp', 2)", status="forbidden"),
    gets("pivot the root", "call('pivot_root', b'.', b'.')", status="forbidden"),
    gets("new user namespace", "libc.unshare(0x10000000)", status="forbidden"),
    gets("enter a namespace", "libc.setns(0, 0)", status="forbidden"),
    gets("keyring", "call('keyctl', 0, -3, 1, 0, 0)", status="forbidden"),
    gets("add a key", "call('add_key', b'user', b'x', b'x', 1, -3)", status="forbidden"),
    gets(
        "io_uring",
        "call('io_uring_setup', 1, ctypes.create_string_buffer(256))",
        status="forbidden",
    ),
    gets("userfaultfd", "call('userfaultfd', 0)", status="forbidden"),
    gets("bpf", "call('bpf', 0, ctypes.create_string_buffer(128), 128)", status="forbidden"),
    gets(
        "perf",
        "call('perf_event_open', ctypes.create_string_buffer(128), 0, -1, -1, 0)",
        status="forbidden",
    ),
    gets("load a module", "call('init_module', b'x', 1, b'')", status="forbidden"),
    gets(
        "restart the machine", "call('reboot', 0xfee1dead, 672274793, 0, None)", status="forbidden"
    ),
    gets("rename the machine", "libc.sethostname(b'got', 3)", status="forbidden"),
    gets(
        "set the clock", "call('clock_settime', 0, (ctypes.c_long * 2)(0, 0))", status="forbidden"
    ),
    gets("swap", "libc.swapon(b'x', 0)", status="forbidden"),
    gets("memory file", "call(319 if CALL['read'] == 0 else 279, b'x', 0)"),
    gets(
        "another's memory advice", "call('process_madvise', 3, None, 0, 0, 0)", status="forbidden"
    ),
    gets("personality", "call('personality', 0x0040000)", status="forbidden"),
    gets(
        "calls of another machine type",
        "call(0x40000000 + 41, 2, 1, 0)",
        status="forbidden" if platform.machine() == "x86_64" else "",
    ),
    gets("a filter of one's own", "call('seccomp' if 'seccomp' in CALL else 317, 1, 0, None)"),
    gets("dumpable again", "libc.prctl(4, 1, 0, 0, 0)"),
    attack(
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
    attack(
        "one large block",
        """
        x = b'x' * (1 << 31)
        print('GOT')
        """,
        status="memory",
    ),
    attack(
        "many small blocks",
        """
        x = []
        while True: x.append(bytearray(1 << 16))
        """,
        status="memory",
    ),
    attack(
        "shared memory",
        """
        import mmap
        m = mmap.mmap(-1, 1 << 30)
        print('GOT')
        """,
    ),
    attack(
        "one large file",
        """
        f = open('x', 'wb')
        for _ in range(64): f.write(bytes(1 << 20))
        print('GOT')
        """,
    ),
    attack(
        "a sparse file",
        """
        os.truncate(os.open('x', os.O_CREAT | os.O_RDWR), 1 << 40)
        print('GOT')
        """,
    ),
    attack(
        "many files",
        """
        for n in range(10**6): open(str(n), 'wb').write(bytes(1 << 15))
        print('GOT')
        """,
    ),
    attack(
        "deep folders",
        """
        for _ in range(10**6):
            os.mkdir('d')
            os.chdir('d')
        print('GOT')
        """,
    ),
    attack(
        "many descriptors",
        """
        x = []
        while True: x.append(os.dup(0))
        """,
        status="raised",
    ),
    attack(
        "many pipes",
        """
        x = []
        while True: x.append(os.pipe())
        """,
        status="raised",
    ),
    attack("flood of output", "while True: print('x' * 10000)", status="output"),
    attack("flood of errors", "while True: os.write(2, b'x' * 10000)", status="output"),
    attack(
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
    attack("sleep", "time.sleep(60)", limits=HURRIED, status="timeout"),
    attack("busy", "while True: pass", limits=HURRIED, status="timeout"),
    attack("long arithmetic", "x = 7 ** (10 ** 8)", limits=HURRIED, status="timeout"),
    attack(
        "long pattern",
        """
        import re
        re.match('(a+)+$', 'a' * 64 + 'b')
        """,
        limits=HURRIED,
        status="timeout",
    ),
    attack(
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
    attack(
        "deaf to the CPU limit",
        """
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        while True: pass
        """,
        limits=SandboxLimits(wall_s=6, cpu_s=1),
        status="timeout",
    ),
    attack(
        "closes its pipes and stays",
        """
        os.closerange(0, 64)
        while True: time.sleep(1)
        """,
        limits=HURRIED,
        status="timeout",
    ),
    attack(
        "reads its input",
        """
        sys.stdin.read()
        sys.stdin.buffer.read()
        print(len(sys.argv))
        """,
        limits=LIMITS,
        status="finished",
    ),
    attack(
        "endless recursion in C",
        """
        sys.setrecursionlimit(10**9)
        x = []
        for _ in range(10**6): x = [x]
        print(repr(x))
        """,
        limits=LIMITS,
    ),
    attack("crash", "ctypes.string_at(1)", limits=LIMITS, status="killed"),
]
