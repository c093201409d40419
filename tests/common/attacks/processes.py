"""The network, other processes, and signals to them.

Read next: attack.py (what one is).
"""

import platform

from tests.common.attacks.attack import attack, gets

__all__ = ["NETWORK", "PROCESSES", "SIGNALS"]

NETWORK = [
    attack("TCP", "socket.create_connection(TCP)", works_openly=True),
    attack("UDP", "socket.socket(2, 2).sendto(b'x', UDP)", works_openly=True),
    attack("Unix socket", "socket.socket(1).connect(UNIX)", works_openly=True),
    attack("abstract socket", "socket.socket(1).connect(ABSTRACT)", works_openly=True),
    attack(
        "socket pair",
        """
        socket.socketpair()
        print('GOT')
        """,
        works_openly=True,
    ),
    attack(
        "netlink",
        """
        socket.socket(16, 3, 0)
        print('GOT')
        """,
        works_openly=True,
    ),
    attack(
        "raw packets",
        """
        socket.socket(17, 3, 3)
        print('GOT')
        """,
    ),
    attack(
        "kernel crypto socket",
        """
        socket.socket(38, 5)
        print('GOT')
        """,
    ),
    attack(
        "listen",
        """
        s = socket.socket()
        s.bind(('', 0))
        s.listen()
        print('GOT')
        """,
        works_openly=True,
    ),
    attack(
        "look up a name",
        """
        socket.getaddrinfo('localhost.example', 80)
        print('GOT')
        """,
    ),
    gets("raw socket call", "libc.socket(2, 1, 0)", works_openly=True),
]

PROCESSES = [
    attack(
        "fork",
        """
        os.fork()
        print('GOT')
        """,
        works_openly=True,
    ),
    attack(
        "fork bomb",
        """
        while True:
            try:
                if os.fork() >= 0: print('GOT')
            except OSError:
                break
    """,
    ),
    attack(
        "daemon by two forks",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: time.sleep(60)
            os._exit(0)
        print('GOT')
    """,
    ),
    gets("raw clone", "call('clone', 17, 0, 0, 0, 0) if 'clone' in CALL else libc.fork()"),
    gets("clone3", "call('clone3', (ctypes.c_ulong * 11)(), 88)"),
    gets("vfork", "call(58, 0)" if platform.machine() == "x86_64" else "libc.fork()"),
    attack(
        "spawn",
        """
        os.posix_spawn('/bin/sh', ['sh', '-c', 'echo GOT'], {})
        time.sleep(0.2)
        """,
        works_openly=True,
    ),
    attack(
        "subprocess",
        """
        import subprocess
        print(subprocess.check_output(['/bin/echo', 'GOT']))
        """,
        works_openly=True,
    ),
    attack("shell", "if os.system('echo GOT') == 0: print('GOT')", works_openly=True),
    attack("exec", "os.execv('/bin/echo', ['echo', 'GOT'])", works_openly=True),
    attack(
        "exec of a script",
        """
        open('x', 'w').write('#!/bin/sh\\necho GOT')
        os.execv('./x', ['x'])
        """,
    ),
    attack(
        "exec through the loader",
        """
        arguments = (ctypes.c_char_p * 4)(b'ld', b'/bin/echo', b'GOT', None)
        for path in (b'/lib64/ld-linux-x86-64.so.2', b'/lib/ld-linux-aarch64.so.1'):
            libc.execv(path, arguments)
        """,
        works_openly=True,
    ),
    attack(
        "exec from memory",
        """
        fd = os.memfd_create('x')
        os.write(fd, b'#!/bin/sh\\necho GOT\\n')
        os.execve(fd, ['x'], {})
    """,
    ),
    attack(
        "threads",
        """
        import threading
        threading.Thread(target=print, args=('GOT',)).start()
        """,
        works_openly=True,
    ),
    attack(
        "pool of processes",
        """
        import multiprocessing as m
        m.get_context('fork').Process(target=print, args=('GOT',)).start()
        time.sleep(0.1)
        """,
    ),
]

SIGNALS = [
    attack("kill another", "os.kill(VICTIM, 9)"),
    attack("stop another", "os.kill(VICTIM, signal.SIGSTOP)"),
    attack("kill the parent", "os.kill(os.getppid(), 9)"),
    attack(
        "kill the tests",
        """
        os.kill(PARENT, signal.SIGUSR1)
        print('GOT')
        """,
    ),
    attack("kill everybody", "os.kill(-1, 9)"),
    attack("kill a group", "os.killpg(os.getpgid(VICTIM), 9)"),
    attack(
        "queue a signal",
        "call(129 if CALL['read'] == 0 else 138, VICTIM, 15, (ctypes.c_int * 32)(15, 0, -1))",
    ),
    attack("signal a thread", "call(234 if CALL['read'] == 0 else 131, VICTIM, VICTIM, 9)"),
    attack(
        "signal through a pidfd",
        """
        fd = call('pidfd_open', VICTIM, 0)
        call('pidfd_send_signal', fd, 9, None, 0)
        """,
    ),
    attack(
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
    attack(
        "change another's limits",
        """
        import resource
        resource.prlimit(VICTIM, resource.RLIMIT_NOFILE, (7, 7))
        """,
    ),
    attack("change another's priority", "os.setpriority(os.PRIO_PROCESS, VICTIM, 19)"),
    attack(
        "raise one's own limits",
        """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))
        print('GOT')
        """,
    ),
    attack(
        "become root",
        """
        os.setuid(0)
        os.setgroups([0])
        print('GOT')
        """,
    ),
]
