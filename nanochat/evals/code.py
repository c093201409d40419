"""A written program and its tests -> right or wrong.   in: a completion, tests   out: a verdict
who calls: judging.py, for HumanEval and code tasks of one's own

The program runs behind walls, and its tests in another process that can only ask it questions: it
holds neither tests nor expected answers nor the nonce that stands for "passed", and what it answers
arrives as plain data.  So leaving early, printing, patching, searching memory and objects with an
__eq__ of their own gain nothing.  What remains: a program is asked what the tests ask, in their
order, and may answer these by heart (a table of the right answers is a right program here); and it
may run as long as its limits allow.
Tests may ask functions; they cannot hold classes or generators of the program, nor see what it does
to its arguments.
Read next: common/sandbox/child.py (both processes), common/sandbox/__init__.py (the walls).
"""

import ast
import re
import warnings
from dataclasses import dataclass
from typing import Literal

from nanochat.common.sandbox.box import CheckedOutcome, Sandbox
from nanochat.common.sandbox.child import Checks
from nanochat.common.sandbox.limits import SandboxLimits

__all__ = [
    "CodeProblem",
    "CodeVerdict",
    "Reason",
    "extract_program",
    "import_lines",
    "judge",
]

Reason = Literal[
    "passed",
    "wrong",
    "exception",
    "syntax",
    "exited",
    "timeout",
    "memory",
    "output",
    "disk",
    "forbidden",
    "killed",
    "checks",
]
"""passed, or why not: a test failed; an exception; a program Python cannot read; one that ended
before it was asked; a limit; a forbidden act; a signal; tests that are themselves at fault."""

# Where a limit or a wall ended the program, that is why the checks got no answer.
DECISIVE: dict[str, Reason] = {
    "timeout": "timeout",
    "memory": "memory",
    "output": "output",
    "disk": "disk",
    "forbidden": "forbidden",
    "killed": "killed",
}
REASONS: tuple[Reason, ...] = ("wrong", "exception", "syntax", "exited", "memory", "forbidden")

# As karpathy/nanochat has it: the fence must be closed on a line of its own.
CLOSED_FENCE = re.compile(r"```(?:python)?\s*\n(.*?)\n```", re.DOTALL)
ANY_FENCE = re.compile(r"```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeProblem:
    """What a program is asked for, and how it is tested."""

    prompt: str
    """The beginning of a program: imports, functions given, the head of the one wanted.  May be
    empty."""
    tests: str
    """Source that raises where the program is wrong; HumanEval's, with `check(name)` at its end."""
    entry_point: str
    """The function wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeVerdict:
    """What is said of one completion."""

    passed: bool
    reason: Reason
    detail: str = ""
    """The exception or the limit; a line."""
    wall_s: float = 0.0
    stdout: str = ""
    """What the program printed; tests print elsewhere."""


def judge(
    sandbox: Sandbox,
    problem: CodeProblem,
    completion: str,
    *,
    compat: bool = False,
    limits: SandboxLimits | None = None,
) -> CodeVerdict:
    """Whether a completion solves the problem.

    By default the prompt stands before the program, so that its imports and functions are there and
    a completion may be the body alone; a fence may be left open; and tests that use a function of
    the prompt use the prompt's.  With `compat` it is as in karpathy/nanochat: the prompt's imports
    and the completion, nothing else, and the tests use the completion's functions.
    Raises: SandboxError where the sandbox fails.
    """
    imports = import_lines(problem.prompt)
    if compat:
        source = f"{imports}\n\n{extract_program(completion, compat=True)}"
    else:
        source = _whole_program(problem, completion)
    checks = Checks(
        tests=problem.tests,
        entry_point=problem.entry_point,
        prelude=imports if compat else _prelude(problem.prompt),
        trusts_prelude=not compat,
    )
    return _verdict(sandbox.check(source, checks, limits))


def extract_program(completion: str, *, compat: bool = False) -> str:
    """The first fenced block of a chat answer, or all of it where nothing is fenced.

    A fence that is never closed reaches to the end; with `compat` it stays in the program, as in
    karpathy/nanochat.
    """
    found = (CLOSED_FENCE if compat else ANY_FENCE).search(completion)
    return (found.group(1) if found else completion).strip()


def import_lines(prompt: str) -> str:
    """The import lines a prompt begins with, blank lines and comments between them left out."""
    lines = []
    for line in map(str.strip, prompt.split("\n")):
        if line.startswith(("import ", "from ")):
            lines.append(line)
        elif line and not line.startswith("#"):
            break
    return "\n".join(lines)


def _whole_program(problem: CodeProblem, completion: str) -> str:
    """Prompt and program; or the prompt continued, where the completion is a body alone.

    Told apart by text: a model's program is not given to a parser in this process.
    """
    name = re.escape(problem.entry_point)
    defined = rf"^(?:async[ \t]+def|def|class)[ \t]+{name}\b|^{name}[ \t]*[:=]"
    program = extract_program(completion)
    if not re.search(defined, program, re.MULTILINE):
        fenced = ANY_FENCE.search(completion)
        return problem.prompt + (fenced.group(1) if fenced else completion)
    if "from __future__" in program:  # must stand at the beginning
        return program
    return f"{_prelude(problem.prompt)}\n\n{program}"


def _prelude(prompt: str) -> str:
    """The prompt if it is a program by itself, as HumanEval's are; else its imports."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its escape sequences are not ours to mend
            ast.parse(prompt)
    except (SyntaxError, ValueError):
        return import_lines(prompt)
    return prompt


def _verdict(outcome: CheckedOutcome) -> CodeVerdict:
    program, checks = outcome.program, outcome.checks
    reason: Reason
    detail = outcome.detail
    if outcome.passed:
        reason, detail = "passed", ""
    elif program.status in DECISIVE:
        reason, detail = DECISIVE[program.status], program.detail
    elif checks.status in DECISIVE:
        reason, detail = DECISIVE[checks.status], f"in the tests: {checks.detail}"
    elif outcome.reason in REASONS:
        reason = next(known for known in REASONS if known == outcome.reason)
    else:
        reason, detail = "checks", detail or f"the tests {checks.status}: {checks.detail}"
    return CodeVerdict(
        passed=outcome.passed,
        reason=reason,
        detail=detail,
        wall_s=max(program.wall_s, checks.wall_s),
        stdout=program.stdout,
    )
