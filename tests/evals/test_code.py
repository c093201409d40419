"""code.py: right programs pass, wrong ones do not, whatever they try."""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.common.sandbox.box import Sandbox
from nanochat.common.sandbox.limits import SandboxLimits
from nanochat.evals.code import (
    CodeProblem,
    CodeVerdict,
    extract_program,
    import_lines,
    judge,
)
from tests.evals.code_forgeries import FORGERIES, PROBLEM, RIGHT, Forgery

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux's"),
    pytest.mark.req("FR-040"),
]
LIMITS = SandboxLimits(wall_s=10.0)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


def human_eval(shared_dir: Path) -> list[tuple[CodeProblem, str]]:
    """Problems and the bodies that solve them."""
    path = shared_dir / "data" / "eval" / "humaneval" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [
        (
            CodeProblem(
                prompt=row["prompt"],
                tests=f"{row['test']}\ncheck({row['entry_point']})",
                entry_point=row["entry_point"],
            ),
            row["canonical_solution"],
        )
        for row in rows
    ]


def simple(tests: str, entry_point: str = "f", prompt: str = "") -> CodeProblem:
    return CodeProblem(prompt=prompt, tests=tests, entry_point=entry_point)


def verdict(
    sandbox: Sandbox, program: str, tests: str, limits: SandboxLimits = LIMITS
) -> CodeVerdict:
    return judge(sandbox, simple(tests), program, limits=limits)


def test_every_canonical_solution_passes(sandbox: Sandbox, shared_dir: Path) -> None:
    problems = human_eval(shared_dir)
    assert len(problems) == 164
    failed = {}
    for number, (problem, body) in enumerate(problems):
        # In turn as a chat answer under compat, as a chat answer, and as a body alone.
        form = number % 3
        fenced = f"Sure:\n```python\n{problem.prompt}{body}\n```\nThat is it."
        said = judge(
            sandbox, problem, body if form == 2 else fenced, compat=form == 0, limits=LIMITS
        )
        if not said.passed:
            failed[number] = said
    assert failed == {}


@pytest.mark.slow
@pytest.mark.parametrize("compat", [True, False])
def test_every_canonical_solution_passes_in_every_form(
    sandbox: Sandbox, shared_dir: Path, compat: bool
) -> None:
    for problem, body in human_eval(shared_dir):
        whole = problem.prompt + body
        for completion in (whole, f"```\n{whole}\n```", *([] if compat else [body])):
            assert judge(sandbox, problem, completion, compat=compat, limits=LIMITS).passed


def test_wrong_solutions_fail(sandbox: Sandbox, shared_dir: Path) -> None:
    for problem, _ in human_eval(shared_dir)[::8]:
        said = judge(sandbox, problem, "    return None\n", limits=LIMITS)
        assert not said.passed
        assert said.reason in ("wrong", "exception")


@pytest.mark.parametrize("compat", [True, False])
def test_the_right_program_passes_the_forgers_task(sandbox: Sandbox, compat: bool) -> None:
    assert judge(sandbox, PROBLEM, RIGHT, compat=compat, limits=LIMITS).passed


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda forgery: forgery.name)
def test_no_forgery_passes(sandbox: Sandbox, forgery: Forgery) -> None:
    limits = SandboxLimits(wall_s=3.0)
    said = judge(sandbox, PROBLEM, forgery.program, limits=limits)
    assert not said.passed
    assert said.reason not in ("passed", "checks"), said
    assert not judge(sandbox, PROBLEM, forgery.program, compat=True, limits=limits).passed


def test_nothing_of_an_earlier_job_is_in_memory(sandbox: Sandbox) -> None:
    """Neither its tests nor its expected answers nor its nonce."""
    mark = "a text that stands in these tests alone"
    assert verdict(sandbox, f"def f(): return {mark!r}", f"assert f() == {mark!r}").passed
    search = """
        import gc
        gc.unfreeze()  # also what was there before the first job
        def f():
            strings = [s for o in gc.get_objects() for s in (
                list(o) + list(o.values()) if isinstance(o, dict)
                else o if isinstance(o, (list, tuple, set)) else []
            ) if isinstance(s, (str, bytes))]
            return len(strings) > 1000, [s for s in strings if "in these tests" in str(s)][:1]
    """
    program = "\n".join(line.removeprefix("        ") for line in search.split("\n"))
    # The search finds its own constant, and only that.
    tests = "many, found = f()\nassert many and 'alone' not in str(found)"
    said = verdict(sandbox, program, tests)
    assert said.passed, said


@pytest.mark.parametrize(
    ("program", "reason", "detail"),
    [
        ("def f(): return 2", "wrong", "line 1 of the checks"),
        ("def f(): raise ValueError('\\ud800')", "exception", "ValueError: ?"),
        ("def f(): return 1 / 0", "exception", "ZeroDivisionError: division by zero"),
        ("def f(: pass", "syntax", "SyntaxError"),
        ("x = 1", "exception", "'f' is not defined"),
        ("import sys\nsys.exit(3)", "exited", ""),
        ("def f():\n    import os\n    os._exit(0)", "exited", "without an answer"),
        ("def f():\n    while True: pass", "timeout", ""),
        ("def f(): return len(bytearray(1 << 30))", "memory", "MemoryError"),
        ("def f():\n    while True: print('x' * 1000)", "output", ""),
        ("def f(): import os; os.fork()", "forbidden", "PermissionError"),
        ("import ctypes\nctypes.CDLL(None).ptrace(0, 0, 0, 0)", "forbidden", "system call"),
        ("import ctypes\nctypes.string_at(1)", "killed", "SIGSEGV"),
    ],
)
def test_the_reason_is_told(sandbox: Sandbox, program: str, reason: str, detail: str) -> None:
    limits = SandboxLimits(wall_s=1.0 if reason == "timeout" else 30.0)
    said = verdict(sandbox, program, "assert f() == 1", limits)
    assert not said.passed
    assert said.reason == reason, said
    assert detail in said.detail


def test_what_the_program_prints_is_kept(sandbox: Sandbox) -> None:
    said = verdict(sandbox, "def f():\n    print('hello')\n    return 1", "print('no')\nassert f()")
    assert said.passed
    assert said.stdout == "hello\n"
    assert said.wall_s > 0


def test_checks_at_fault_are_told_apart(sandbox: Sandbox) -> None:
    assert verdict(sandbox, "def f(): pass", "def def").reason == "checks"
    ended = verdict(sandbox, "def f(): pass", "import sys\nsys.exit(0)")
    assert (ended.passed, ended.reason) == (False, "exception")


def test_a_bare_except_in_the_tests_does_not_go_over_an_end(sandbox: Sandbox) -> None:
    tests = "try:\n    f()\nexcept:\n    pass"
    for ending in ("os._exit(0)", "sys.exit(0)", "raise KeyboardInterrupt"):
        said = verdict(sandbox, f"import os, sys\ndef f(): {ending}", tests)
        assert (said.passed, said.reason) == (False, "exited")
    assert verdict(sandbox, "def f(): raise ValueError", tests).passed


def test_tests_may_expect_an_exception(sandbox: Sandbox) -> None:
    tests = "try:\n    f(1)\n    assert False\nexcept KeyError as e:\n    assert 'one' in str(e)"
    assert verdict(sandbox, "def f(x): raise KeyError('one')", tests).passed
    own = "class E(KeyError): pass\ndef f(x): raise E('one')"
    assert verdict(sandbox, own, tests).passed  # as the KeyError that it is
    assert not verdict(sandbox, "def f(x): raise ValueError('one')", tests).passed
    unicode_error = "def f(x): return b'\\xff'.decode()"
    assert verdict(sandbox, unicode_error, "try:\n    f(1)\nexcept ValueError:\n    pass").passed


def test_plain_values_pass_both_ways(sandbox: Sandbox) -> None:
    tests = """
values = [None, True, 1, -1.5, 10**5000, 2j, "\\u00e4\\ud800", b"\\xff", (1, [2, {3: (4,)}]),
          {1, 2}, frozenset("ab"), {"a": 1, (1, 2): None}, range(1, 9, 2), 1e999, bytearray(b"x")]
for value in values:
    again = f(value)
    assert again == value and type(again) is type(value), value
assert f(value=3) == 3
"""
    assert verdict(sandbox, "def f(value): return value", tests).passed


def test_several_functions_may_be_asked(sandbox: Sandbox) -> None:
    said = judge(
        sandbox,
        simple("assert f(g(1)) == 3", prompt="import math\n"),
        "def f(x): return x + 1\n\ndef g(x): return math.floor(x + 1.5)",
        limits=LIMITS,
    )
    assert said.passed, said


def test_a_program_may_have_state(sandbox: Sandbox) -> None:
    program = "count = 0\ndef f():\n    global count\n    count += 1\n    return count"
    assert verdict(sandbox, program, "assert [f(), f(), f()] == [1, 2, 3]").passed


def test_programs_are_extracted() -> None:
    assert extract_program("x\n```python\na = 1\n```\ny\n```\nb\n```") == "a = 1"
    assert extract_program("```\na\n\n```") == "a"
    assert extract_program("  a = 1\n") == "a = 1"
    # A fence that stays open: karpathy/nanochat keeps it in the program.
    assert extract_program("```python\na = 1") == "a = 1"
    assert extract_program("```python\na = 1", compat=True) == "```python\na = 1"
    assert extract_program("```py\na = 1\n```", compat=True) == "```py\na = 1\n```"


def test_import_lines_are_those_a_prompt_begins_with() -> None:
    prompt = "# first\nimport math\n\nfrom typing import List\n  import os\nx = 1\nimport sys\n"
    assert import_lines(prompt) == "import math\nfrom typing import List\nimport os"


def test_compat_does_without_the_prompt(sandbox: Sandbox) -> None:
    body = "    return a + b\n"
    assert judge(sandbox, PROBLEM, body, limits=LIMITS).passed
    said = judge(sandbox, PROBLEM, body, compat=True, limits=LIMITS)
    assert (said.passed, said.reason) == (False, "syntax")
    # The tests use `given`, which this completion leaves out.
    alone = "def add(a, b):\n    return a + b\n"
    assert judge(sandbox, PROBLEM, alone, limits=LIMITS).passed
    said = judge(sandbox, PROBLEM, alone, compat=True, limits=LIMITS)
    assert (said.passed, said.reason) == (False, "exception")
    assert "given" in said.detail


def test_a_future_import_stays_first(sandbox: Sandbox) -> None:
    program = "from __future__ import annotations\ndef f(x: Unknown): return x"
    said = judge(
        sandbox, simple("assert f(1) == 1", prompt="import math\n"), program, limits=LIMITS
    )
    assert said.passed, said


def test_a_prompt_that_is_no_program_gives_its_imports(sandbox: Sandbox) -> None:
    problem = simple("assert f(4.5) == 4", prompt="import math\nWrite f, which rounds down.\n")
    assert judge(sandbox, problem, "def f(x): return math.floor(x)", limits=LIMITS).passed
