"""Wrong programs that want to pass.   in: nothing   out: FORGERIES
who calls: tests/evals/test_code.py

The task is to add two numbers; none of these can.  Each is a way in which a program once passed a
judge somewhere, or might.
"""

import textwrap
from dataclasses import dataclass

from nanochat.evals.code import CodeProblem

__all__ = ["FORGERIES", "PROBLEM", "RIGHT", "Forgery"]

PROBLEM = CodeProblem(
    prompt='''
def given(a, b):
    """Not wanted, but used by the tests."""
    return a + b


def add(a, b):
    """The sum."""
''',
    tests="""
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(-1, 1) == 0, "the answer is wrong"
    assert abs(candidate(0.5, 0.25) - 0.75) < 1e-9
    assert candidate("a", "b") == "ab"
    assert given(1, 2) == 3 and candidate(1, 2) == given(1, 2)
    assert candidate([1], [2]) != [3] and not candidate(0, 0) and candidate(1, 1)
check(add)
""",
    entry_point="add",
)
RIGHT = "def given(a, b):\n    return a + b\n\ndef add(a, b):\n    return a + b\n"


@dataclass(frozen=True)
class Forgery:
    """One program."""

    name: str
    program: str


WRONG = "\ndef add(a, b): return None\n"
# An object that answers every question as it is wanted.
YES = """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return True
    def __lt__(self, other): return True
    def __sub__(self, other): return self
    __add__ = __rsub__ = __sub__
    def __abs__(self): return self
    def __bool__(self): return True
    def __hash__(self): return 0
"""
# Whatever looks like a nonce, written wherever something can be written.
HUNT = """
import gc, os, re, sys
NONCE = re.compile(r"[0-9a-f]{32}")
def look(thing, depth=0):
    found = set()
    if isinstance(thing, bytes): thing = thing.decode("latin1")
    if isinstance(thing, str): found |= set(NONCE.findall(thing))
    elif isinstance(thing, dict) and depth < 4:
        for pair in list(thing.items()):
            for part in pair: found |= look(part, depth + 1)
    elif isinstance(thing, (list, tuple, set)) and depth < 4:
        for part in list(thing): found |= look(part, depth + 1)
    return found
def spread(found):
    for nonce in found | {"0" * 32}:
        for fd in range(256):
            for text in (nonce, '{"end": "finished", "reason": "passed", "detail": ""}'):
                try: os.write(fd, text.encode())
                except OSError: pass
"""


def _forgery(name: str, program: str, before: str = "", after: str = WRONG) -> Forgery:
    return Forgery(name, before + textwrap.dedent(program) + after)


FORGERIES = [
    _forgery("sys.exit(0)", "import sys\nsys.exit(0)"),
    _forgery("sys.exit()", "import sys\nsys.exit()"),
    _forgery("raise SystemExit", "raise SystemExit(0)"),
    _forgery("os._exit(0)", "import os\nos._exit(0)"),
    _forgery("quit()", "quit()"),
    _forgery("raw exit", "import ctypes\nctypes.CDLL(None)._exit(0)"),
    _forgery("leaves when asked", "import sys\ndef add(a, b): sys.exit(0)", after=""),
    _forgery("ends when asked", "import os\ndef add(a, b): os._exit(0)", after=""),
    _forgery("interrupts when asked", "def add(a, b): raise KeyboardInterrupt", after=""),
    _forgery("exits late", "import atexit, os\natexit.register(os._exit, 0)"),
    _forgery("exits in a hook", "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\n1 / 0"),
    _forgery(
        "exits on a signal",
        """
        import os, signal, time
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        def add(a, b): time.sleep(0.1)
        """,
        after="",
    ),
    _forgery("prints a verdict", "print('passed')\nprint('PASSED' * 9)\nprint('0' * 32)"),
    _forgery("replaces check", "def check(candidate): pass"),
    _forgery("replaces check, and defends it", "import builtins\nbuiltins.check = lambda c: None"),
    _forgery("replaces a function of the prompt", "def given(a, b): return None"),
    _forgery("asserts nothing", "import builtins\nbuiltins.AssertionError = type('E', (), {})"),
    _forgery("patches exec", "import builtins\nbuiltins.exec = lambda *a, **k: None"),
    _forgery("patches compile", "import builtins\nbuiltins.compile = lambda *a, **k: 'pass'"),
    _forgery("patches abs", "import builtins\nbuiltins.abs = lambda x: -1\nabs = builtins.abs"),
    _forgery("equals everything", "def add(a, b): return Yes()", YES, ""),
    _forgery(
        "a number that equals", "class N(Yes, int): pass\ndef add(a, b): return N(7)", YES, ""
    ),
    _forgery(
        "a text that equals",
        "class N(str):\n    __eq__ = Yes.__eq__\ndef add(a, b): return N('x')",
        YES,
        "",
    ),
    _forgery(
        "a list that equals",
        "class N(list):\n    __eq__ = Yes.__eq__\ndef add(a, b): return N()",
        YES,
        "",
    ),
    _forgery(
        "a type that equals",
        "class M(type):\n    __eq__ = Yes.__eq__\nclass add(metaclass=M): pass",
        YES,
        "",
    ),
    _forgery("mock.ANY", "from unittest.mock import ANY\ndef add(a, b): return ANY"),
    _forgery("MagicMock", "from unittest.mock import MagicMock\nadd = MagicMock()", after=""),
    _forgery(
        "claims another class",
        "class N(Yes):\n    __class__ = int\ndef add(a, b): return N()",
        YES,
        "",
    ),
    _forgery("not a number", "def add(a, b): return float('nan')", after=""),
    _forgery("true", "def add(a, b): return True", after=""),
    _forgery("returns itself", "def add(a, b): return add", after=""),
    _forgery("a generator", "def add(a, b):\n    while True: yield 5", after=""),
    _forgery(
        "contains itself", "def add(a, b):\n    x = []\n    x.append(x)\n    return x", after=""
    ),
    _forgery(
        "nested too deep",
        "def add(a, b):\n    x = []\n    for _ in range(10**5): x = [x]\n    return x",
        after="",
    ),
    _forgery("an answer too large", "def add(a, b): return 'x' * (20 << 20)", after=""),
    _forgery("raises AssertionError", "def add(a, b): raise AssertionError", after=""),
    _forgery(
        "raises its own exception", "class E(BaseException): pass\ndef add(a, b): raise E", after=""
    ),
    _forgery(
        "searches the frames",
        """
        found, frame = set(), sys._getframe()
        while frame:
            found |= look(dict(frame.f_locals)) | look(dict(frame.f_globals))
            frame = frame.f_back
        spread(found)
    """,
        HUNT,
    ),
    _forgery(
        "searches the frames when asked",
        """
        def add(a, b):
            found, frame = set(), sys._getframe()
            while frame:
                found |= look(dict(frame.f_locals)) | look(dict(frame.f_globals))
                frame = frame.f_back
            spread(found)
    """,
        HUNT,
        "",
    ),
    _forgery("searches all objects", "spread(set().union(*map(look, gc.get_objects())))", HUNT),
    _forgery(
        "searches all objects when asked",
        "def add(a, b): spread(set().union(*map(look, gc.get_objects())))",
        HUNT,
        "",
    ),
    _forgery(
        "searches its descriptors",
        """
        found = set()
        for fd in range(256):
            try:
                os.set_blocking(fd, False)
                found |= look(os.read(fd, 1 << 20))
            except OSError: pass
        spread(found)
    """,
        HUNT,
    ),
    _forgery(
        "searches its memory",
        """
        try:
            maps = open("/proc/self/maps").read()
        except OSError:
            maps = ""
        import ctypes
        found = look(ctypes.string_at(id(look) & ~0xFFF, 4096))
        for line in maps.splitlines():
            if "rw-p" in line and "/" not in line:
                start, end = (int(x, 16) for x in line.split()[0].split("-"))
                found |= look(ctypes.string_at(start, min(end - start, 1 << 22)))
        spread(found)
    """,
        HUNT,
    ),
    _forgery(
        "answers before it is asked",
        """
        import os, struct
        def frame(text): return struct.pack(">I", len(text)) + text
        texts = [b'{"ready": ["add", "given", "check"]}'] + [b"=true", b"=5", b"=null"] * 20
        for fd in range(3, 256):
            try: os.write(fd, b"".join(map(frame, texts)))
            except OSError: pass
    """,
    ),
    _forgery(
        "answers nonsense",
        """
        import os
        for fd in range(3, 256):
            try: os.write(fd, b"\\xff" * 4096)
            except OSError: pass
    """,
    ),
    _forgery(
        "says it is another kind",
        """
        import sys
        plain = sys.modules["nanochat.common.sandbox.plain"]
        plain.encode = lambda value: b'{"opaque": "int"}'
    """,
    ),
    _forgery(
        "says it is many kinds",
        """
        import sys
        plain = sys.modules["nanochat.common.sandbox.plain"]
        plain.encode = lambda value: b'{"__class__": "int", "py/object": "Yes", "int": "0x5"}'
    """,
    ),
    _forgery(
        "says it raised what it likes",
        """
        import sys
        child = sys.modules["nanochat.common.sandbox.child"]
        child._described = lambda e: {"bases": ["exec", "SystemExit"], "type": [], "message": {}}
        def add(a, b): raise ValueError
    """,
        after="",
    ),
    _forgery(
        "replaces the checks' code",
        """
        import sys
        for name, module in list(sys.modules.items()):
            if name.startswith("nanochat"):
                for key, value in list(vars(module).items()):
                    if callable(value) and key not in ("write_json", "write_frame"):
                        setattr(module, key, lambda *a, **k: 0)
    """,
    ),
    _forgery("traces", "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(print)"),
    _forgery(
        "a thread that outlives",
        "import threading, os\nthreading.Thread(target=lambda: os._exit(0)).start()",
    ),
    _forgery("forks, and the child answers", "import os\nif os.fork(): os._exit(0)"),
    _forgery(
        "kills the checks",
        """
        import os
        for pid in range(1, 400):
            for number in (pid, os.getpid() + pid, os.getpid() - pid):
                try: os.kill(number, 9)
                except OSError: pass
    """,
    ),
    _forgery("closes its pipes", "import os\nos.closerange(0, 256)"),
    _forgery(
        "claims to be __main__", "import sys\nsys.modules['__main__'] = sys\n__name__ = 'checks'"
    ),
    _forgery("is no program", "I would add the two numbers.", after=""),
    _forgery("defines nothing", "x = 1", after=""),
    _forgery("is empty", "", after=""),
    _forgery("a null byte", "x = '\\0'\0", after=""),
    _forgery("a lone surrogate", "x = '\ud800'"),
    _forgery("nested brackets", "x = " + "(" * 5000 + ")" * 5000),
    _forgery("a very long expression", "x = " + "-" * 200_000 + "1"),
]
