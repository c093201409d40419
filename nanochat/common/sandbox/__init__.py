"""Programs written by a model -> what became of them.   in: source text   out: Outcome
who calls: evals, cli (eval), train (examine)

    box.py         Sandbox and run_program: what the other rooms use
    limits.py      how much a program may take, and what is told of it afterwards
    selftest.py    each wall is tried in a real child before a model's code is run
    drivers.py     plain Linux, bubblewrap, a container
    forkserver.py  one warm interpreter; a fresh child of it for every program
    watch.py       its helper for one program: time, output, files; kills
    ending.py      how it ended, in a word and a line
    walls.py       what a child puts around itself: limits, user, Landlock, seccomp
      landlock.py  which files may be read and written
      seccomp.py   which system calls exist
      rooms.py     namespaces: a file tree without anything in it, no network, no other process
      kernel.py    system calls through ctypes
    child.py       runs the program, or answers calls, or runs the checks
    plain.py       values that pass between the program and its checks

Linux only, x86_64 and aarch64.  Nothing is imported here: the fork server starts the sooner.
"""
