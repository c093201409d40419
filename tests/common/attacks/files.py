"""Files: what is to be kept from being read and from being written.

Read next: attack.py (what one is).
"""

from tests.common.attacks.attack import MARK, attack, gets

__all__ = ["READING", "WRITING"]

READING = [
    attack("read a file", "print(open(SECRET).read())", works_openly=True),
    attack("read the password file", "print(open('/etc/passwd').read())", must_not_print="root:"),
    attack("list a folder", "print(os.listdir(FOLDER))", works_openly=True),
    attack(
        "list the home folder",
        """
        os.listdir(HOME)
        print('GOT')
        """,
        works_openly=True,
    ),
    attack(
        "read the project's tests",
        """
        open(PROJECT + '/tests/conftest.py').read()
        print('GOT')
        """,
    ),
    attack(
        "read the project's package",
        """
        open(PROJECT + '/nanochat/__init__.py').read(1)
        print('GOT')
        """,
    ),
    attack(
        "climb up",
        """
        os.chdir('../' * 20)
        print(open('.' + SECRET).read())
        """,
        works_openly=True,
    ),
    attack(
        "symbolic link",
        """
        os.symlink(SECRET, 'link')
        print(open('link').read())
        """,
        works_openly=True,
    ),
    attack(
        "hard link",
        """
        os.link(SECRET, FOLDER + '/link')
        print('GOT')
        """,
        works_openly=True,
    ),
    attack(
        "rename it in",
        """
        os.rename(SECRET, 'mine')
        print(open('mine').read())
        """,
    ),
    attack(
        "directory descriptor",
        """
        d = os.open(FOLDER, os.O_PATH)
        print(os.read(os.open('secret', 0, dir_fd=d), 99))
        """,
        works_openly=True,
    ),
    attack(
        "raw open",
        """
        b = ctypes.create_string_buffer(99)
        libc.read(libc.open(SECRET.encode(), 0), b, 99)
        print(b.value)
        """,
        works_openly=True,
    ),
    attack(
        "map a file",
        """
        import mmap
        f = open(SECRET)
        print(mmap.mmap(f.fileno(), 0, prot=1).read())
        """,
        works_openly=True,
    ),
    attack(
        "load as a module",
        """
        import importlib.machinery as m
        print(m.SourceFileLoader('x', SECRET).get_data(SECRET))
        """,
        works_openly=True,
    ),
    attack(
        "attach as a database",
        """
        import sqlite3
        sqlite3.connect(FOLDER + '/data').execute('create table x (y)')
        print('GOT')
        """,
    ),
    attack("own environment in /proc", "print('GOT', open('/proc/self/environ').read())"),
    attack(
        "own memory in /proc",
        """
        open('/proc/self/mem', 'r+b')
        print('GOT')
        """,
    ),
    attack(
        "another's environment", "print(open(f'/proc/{VICTIM}/environ').read())", works_openly=True
    ),
    attack(
        "another's memory",
        """
        open(f'/proc/{VICTIM}/mem', 'rb')
        print('GOT')
        """,
    ),
    attack(
        "the parent's memory",
        """
        open(f'/proc/{os.getppid()}/mem', 'r+b')
        print('GOT')
        """,
    ),
    attack("another's descriptor", "print(open(f'/proc/{VICTIM}/fd/0').read())", works_openly=True),
    attack("another's root", "print(open(f'/proc/{VICTIM}/root' + SECRET).read())"),
    attack(
        "another's folder",
        """
        os.chdir(f'/proc/{PARENT}/cwd')
        os.listdir('.')
        print('GOT')
        """,
    ),
    attack(
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
    attack(
        "file handle",
        """
        handle = (ctypes.c_char * 136)()
        ctypes.cast(handle, ctypes.POINTER(ctypes.c_uint))[0] = 128
        number = ctypes.byref(ctypes.c_int())
        if call('name_to_handle_at', -100, SECRET.encode(), handle, number, 0) >= 0: print('GOT')
    """,
        status="forbidden",
    ),
    gets("chroot", "libc.chroot(b'.')", status="forbidden"),
]

WRITING = [
    attack("write a file", "open(FOLDER + '/new', 'w').write('x')", works_openly=True),
    attack(
        "write to the system's temporary folders",
        f"""
        for folder in ('/tmp', '/var/tmp', '/dev/shm', '/run/lock'):
            try:
                open(folder + '/{MARK}', 'w').write('x')
            except OSError:
                pass
    """,
    ),
    attack("change a file", "open(SECRET, 'a').write('x')", works_openly=True),
    attack("truncate a file", "os.truncate(SECRET, 0)", works_openly=True),
    attack("delete a file", "os.unlink(SECRET)", works_openly=True),
    attack("change a mode", "os.chmod(SECRET, 0o777)", works_openly=True),
    attack("change a time", "os.utime(SECRET, (1, 1))", works_openly=True),
    attack(
        "change an owner",
        """
        os.chown(SECRET, 12345, 12345)
        print('GOT')
        """,
    ),
    attack("set an attribute", "os.setxattr(SECRET, 'user.x', b'x')"),
    attack("make a pipe", "os.mkfifo(FOLDER + '/pipe')", works_openly=True),
    attack("make a device", "os.mknod(FOLDER + '/device', 0o60600, os.makedev(254, 0))"),
    attack("make a folder", "os.mkdir(FOLDER + '/sub')"),
    attack(
        "change the kernel's settings",
        """
        open('/proc/sys/kernel/core_pattern', 'w')
        print('GOT')
        """,
    ),
    attack(
        "change a control group",
        """
        open('/sys/fs/cgroup/cgroup.procs', 'w')
        print('GOT')
        """,
    ),
    attack(
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
