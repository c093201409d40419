"""The numbers of system calls on two machines.   in: nothing   out: tables
who calls: seccomp.py, landlock.py

ALLOWED is all a Python program without network, children and threads needs; TRUNCATING is allowed
too where Landlock guards it.  DEADLY is what only an attack would call, PRETENDED what copying a
file calls and nothing depends on.
Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux 6.
Read next: seccomp.py (what becomes of them).
"""

__all__ = ["ALLOWED", "ARCHITECTURES", "DEADLY", "NUMBERS", "PRETENDED", "TRUNCATING"]

# linux/audit.h
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

ALLOWED = tuple(
    """
    read write readv writev pread64 pwrite64 lseek close close_range open openat creat stat
    fstat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents
    getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2
    ftruncate fsync fdatasync umask brk mmap munmap mremap mprotect madvise
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack rt_sigpending rt_sigsuspend
    rt_sigtimedwait pause alarm setitimer getitimer clock_gettime clock_getres clock_nanosleep
    nanosleep gettimeofday time times getrusage sysinfo uname getpid gettid getppid getuid
    geteuid getgid getegid getgroups getpgid getpgrp getsid getresuid getresgid
    sched_getaffinity sched_yield getcpu futex set_robust_list rseq restart_syscall pipe pipe2
    dup dup2 dup3 poll ppoll select pselect6 getrandom exit exit_group getrlimit wait4 waitid
    """.split()
)

TRUNCATING = ("truncate",)

DEADLY = tuple(
    """
    ptrace process_vm_readv process_vm_writev bpf mount umount2 pivot_root chroot unshare setns
    userfaultfd perf_event_open keyctl add_key request_key io_uring_setup io_uring_enter
    io_uring_register kexec_load kexec_file_load init_module finit_module delete_module
    open_by_handle_at name_to_handle_at reboot swapon swapoff open_tree move_mount fsopen
    fsconfig fsmount fspick mount_setattr pidfd_open pidfd_getfd pidfd_send_signal kcmp acct
    syslog quotactl settimeofday clock_settime sethostname setdomainname iopl ioperm personality
    process_madvise memfd_secret
    """.split()
)

PRETENDED = tuple("chmod fchmod fchmodat fchmodat2 utime utimes futimesat utimensat".split())

_X86_64 = """
    chmod=90 fchmod=91 fchmodat=268 fchmodat2=452 utime=132 utimes=235 futimesat=261 utimensat=280
    read=0 write=1 readv=19 writev=20 pread64=17 pwrite64=18 lseek=8 close=3 close_range=436
    open=2 openat=257 creat=85 stat=4 fstat=5 lstat=6 newfstatat=262 statx=332 access=21
    faccessat=269 faccessat2=439 readlink=89 readlinkat=267 getdents=78 getdents64=217 getcwd=79
    chdir=80 fchdir=81 mkdir=83 mkdirat=258 rmdir=84 unlink=87 unlinkat=263 rename=82
    renameat=264 renameat2=316 truncate=76 ftruncate=77 fsync=74 fdatasync=75 umask=95 brk=12
    mmap=9 munmap=11 mremap=25 mprotect=10 madvise=28 rt_sigaction=13 rt_sigprocmask=14
    rt_sigreturn=15 sigaltstack=131 rt_sigpending=127 rt_sigsuspend=130 rt_sigtimedwait=128
    pause=34 alarm=37 setitimer=38 getitimer=36 clock_gettime=228 clock_getres=229
    clock_nanosleep=230 nanosleep=35 gettimeofday=96 time=201 times=100 getrusage=98 sysinfo=99
    uname=63 getpid=39 gettid=186 getppid=110 getuid=102 geteuid=107 getgid=104 getegid=108
    getgroups=115 getpgid=121 getpgrp=111 getsid=124 getresuid=118 getresgid=120
    sched_getaffinity=204 sched_yield=24 getcpu=309 futex=202 set_robust_list=273 rseq=334
    restart_syscall=219 pipe=22 pipe2=293 dup=32 dup2=33 dup3=292 poll=7 ppoll=271 select=23
    pselect6=270 getrandom=318 exit=60 exit_group=231 getrlimit=97 wait4=61 waitid=247
    ptrace=101 process_vm_readv=310 process_vm_writev=311 bpf=321 mount=165 umount2=166
    pivot_root=155 chroot=161 unshare=272 setns=308 userfaultfd=323 perf_event_open=298
    keyctl=250 add_key=248 request_key=249 io_uring_setup=425 io_uring_enter=426
    io_uring_register=427 kexec_load=246 kexec_file_load=320 init_module=175 finit_module=313
    delete_module=176 open_by_handle_at=304 name_to_handle_at=303 reboot=169 swapon=167
    swapoff=168 open_tree=428 move_mount=429 fsopen=430 fsconfig=431 fsmount=432 fspick=433
    mount_setattr=442 pidfd_open=434 pidfd_getfd=438 pidfd_send_signal=424 kcmp=312 acct=163
    syslog=103 quotactl=179 settimeofday=164 clock_settime=227 sethostname=170 setdomainname=171
    iopl=172 ioperm=173 personality=135 process_madvise=440 memfd_secret=447 fcntl=72 ioctl=16
    prlimit64=302 clone3=435 landlock_create_ruleset=444 landlock_add_rule=445
    landlock_restrict_self=446
"""

_AARCH64 = """
    fchmod=52 fchmodat=53 fchmodat2=452 utimensat=88
    read=63 write=64 readv=65 writev=66 pread64=67 pwrite64=68 lseek=62 close=57 close_range=436
    openat=56 fstat=80 newfstatat=79 statx=291 faccessat=48 faccessat2=439 readlinkat=78
    getdents64=61 getcwd=17 chdir=49 fchdir=50 mkdirat=34 unlinkat=35 renameat=38 renameat2=276
    truncate=45 ftruncate=46 fsync=82 fdatasync=83 umask=166 brk=214 mmap=222 munmap=215
    mremap=216 mprotect=226 madvise=233 rt_sigaction=134 rt_sigprocmask=135 rt_sigreturn=139
    sigaltstack=132 rt_sigpending=136 rt_sigsuspend=133 rt_sigtimedwait=137 setitimer=103
    getitimer=102 clock_gettime=113 clock_getres=114 clock_nanosleep=115 nanosleep=101
    gettimeofday=169 times=153 getrusage=165 sysinfo=179 uname=160 getpid=172 gettid=178
    getppid=173 getuid=174 geteuid=175 getgid=176 getegid=177 getgroups=158 getpgid=155
    getsid=156 getresuid=148 getresgid=150 sched_getaffinity=123 sched_yield=124 getcpu=168
    futex=98 set_robust_list=99 rseq=293 restart_syscall=128 pipe2=59 dup=23 dup3=24 ppoll=73
    pselect6=72 getrandom=278 exit=93 exit_group=94 getrlimit=163 wait4=260 waitid=95 ptrace=117
    process_vm_readv=270 process_vm_writev=271 bpf=280 mount=40 umount2=39 pivot_root=41
    chroot=51 unshare=97 setns=268 userfaultfd=282 perf_event_open=241 keyctl=219 add_key=217
    request_key=218 io_uring_setup=425 io_uring_enter=426 io_uring_register=427 kexec_load=104
    kexec_file_load=294 init_module=105 finit_module=273 delete_module=106 open_by_handle_at=265
    name_to_handle_at=264 reboot=142 swapon=224 swapoff=225 open_tree=428 move_mount=429
    fsopen=430 fsconfig=431 fsmount=432 fspick=433 mount_setattr=442 pidfd_open=434
    pidfd_getfd=438 pidfd_send_signal=424 kcmp=272 acct=89 syslog=116 quotactl=60
    settimeofday=170 clock_settime=112 sethostname=161 setdomainname=162 personality=92
    process_madvise=440 memfd_secret=447 fcntl=25 ioctl=29 prlimit64=261 clone3=435
    landlock_create_ruleset=444 landlock_add_rule=445 landlock_restrict_self=446
"""


def _table(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (pair.split("=") for pair in text.split())}


NUMBERS = {"x86_64": _table(_X86_64), "aarch64": _table(_AARCH64)}
