"""A program is run, or answers calls, or is checked.   in: source text   out: a report in a pipe
who calls: watch.py, in a child behind walls

    run     the program as __main__, once through
    answer  the program as __main__, then its functions are called with what the checks send
    check   the checks, where a function of the program is a question to the process that has it

The program and its checks never share a process.  The program holds no check, no expected answer
and no nonce, so it can forge nothing with frames, gc, a patched builtin or an __eq__ of its own: it
can only answer, and an answer is plain data (plain.py).  The nonce that says "passed" is written by
the checking process after the last check, and never by leaving early.
Read next: watch.py (who starts these), evals/code.py (what becomes of the verdict).
"""

import atexit
import builtins
import contextlib
import json
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nanochat.common.sandbox import plain
from nanochat.common.sandbox.frames import read_frame, read_json, write_frame, write_json

__all__ = ["Asked", "Checks", "ProgramEnded", "answer", "check", "names_loaded", "run"]

MOST_DETAIL = 500
ANSWER_BYTES = 16 << 20
FILE_NAME = "<program>"
NOT_ASKED = "the program ended without an answer"


class ProgramEnded(BaseException):
    """The program is gone.  No `except Exception` of a test goes on after it."""


def run(source: str, report: int) -> int:
    """The exit code; how it ended is in the pipe `report`."""
    try:
        _execute(source)
    except SystemExit as leaving:
        write_json(report, {"end": "exited", "detail": f"sys.exit({leaving.code!r})"[:MOST_DETAIL]})
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException as error:
        _tell(error)
        write_json(report, {"end": "raised", **_described(error)})
        return 1
    atexit._run_exitfuncs()
    _flush()
    write_json(report, {"end": "finished"})
    return 0


def answer(source: str, questions: int, answers: int, report: int) -> int:
    """The exit code, after the last question."""
    try:
        namespace = _execute(source)
    except BaseException as error:
        _tell(error)
        write_json(answers, {"raised": _described(error)})
        write_json(report, {"end": "raised", **_described(error)})
        return 1
    write_json(answers, {"ready": [name for name, value in namespace.items() if callable(value)]})
    while (question := read_frame(questions)) is not None:
        name, arguments, keywords = plain.decode(question)
        try:
            reply = b"=" + plain.encode(namespace[name](*arguments, **keywords))
        except BaseException as error:
            _tell(error)
            write_json(answers, {"raised": _described(error)})
        else:
            write_frame(answers, reply)
        _flush()
    write_json(report, {"end": "finished"})
    return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """What a program is held against."""

    tests: str
    """Source that raises where the program is wrong."""
    entry_point: str
    """The function that must exist."""
    prelude: str = ""
    """Source the tests may rely on: imports, and functions given with the task."""
    trusts_prelude: bool = True
    """Whether a function of the prelude stays where the program has one of that name too."""
    nonce: str = ""
    """Written when all is done."""


class Asked:
    """The functions of a program in another process."""

    def __init__(self, questions: int, answers: int) -> None:
        self._questions = questions
        self._answers = answers
        self.ended = ""
        """Why there are no more answers; empty while there are."""

    def names(self) -> list[str]:
        """The functions the program defines.

        Raises: ProgramEnded where it raised instead, or left.
        """
        message = self._read()
        if "raised" in message:
            raise self._end(_exception(message["raised"]))
        names = message.get("ready")
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def function(self, name: str) -> Callable[..., Any]:
        """A function that asks the program's function of this name."""

        def ask(*arguments: Any, **keywords: Any) -> Any:
            if self.ended:
                raise ProgramEnded(self.ended)
            question = plain.encode([name, list(arguments), keywords])
            try:
                write_frame(self._questions, question)
            except BrokenPipeError:
                raise self._end(NOT_ASKED) from None
            reply = read_frame(self._answers, ANSWER_BYTES)
            if reply is None:
                raise self._end(NOT_ASKED)
            if reply[:1] == b"=":
                return plain.decode(reply[1:])
            raise self._raised(reply)

        ask.__name__ = ask.__qualname__ = name
        return ask

    def _read(self) -> dict[str, Any]:
        message = read_json(self._answers, ANSWER_BYTES)
        if not isinstance(message, dict):
            raise self._end(NOT_ASKED)
        return message

    def _raised(self, reply: bytes) -> BaseException:
        error = _exception(json.loads(reply)["raised"])
        return error if isinstance(error, Exception) else self._end(error)

    def _end(self, why: BaseException | str) -> ProgramEnded:
        ended = ProgramEnded(str(why))
        if isinstance(why, BaseException):
            ended.__cause__ = why
        self.ended = str(why) or type(why).__name__
        return ended


def check(checks: Checks, asked: Asked, report: int, verdict: int) -> int:
    """The exit code; the nonce is in the pipe `verdict` if the program stood every check."""
    try:
        _hold_against(checks, asked)
    except BaseException as error:
        _tell(error)
        write_json(report, {"end": "finished", **_judged(error)})
        return 0
    if asked.ended:  # a bare `except:` in the tests went over it
        write_json(report, {"end": "finished", "reason": "exited", "detail": asked.ended})
        return 0
    _flush()
    os.write(verdict, checks.nonce.encode())
    write_json(report, {"end": "finished", "reason": "passed", "detail": ""})
    return 0


def names_loaded(code: types.CodeType) -> set[str]:
    """Every name a piece of code mentions, with what is defined inside it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(names_loaded, inner))


def _hold_against(checks: Checks, asked: Asked) -> None:
    namespace: dict[str, Any] = {"__name__": "checks"}
    with _as_ours("the prelude"):
        exec(compile(checks.prelude, "<prelude>", "exec"), namespace)
        tests = compile(checks.tests, "<checks>", "exec")
    given = set(namespace)
    offered = set(asked.names())
    if checks.entry_point not in offered:
        missing = NameError(f"name {checks.entry_point!r} is not defined by the program")
        missing.from_program = True  # type: ignore[attr-defined]
        raise missing
    for name in (names_loaded(tests) & offered) - set(vars(builtins)):
        if not (checks.trusts_prelude and name in given):
            namespace[name] = asked.function(name)
    namespace[checks.entry_point] = asked.function(checks.entry_point)
    exec(tests, namespace)


class _Unsound(Exception):
    """The checks themselves are at fault."""


@contextlib.contextmanager
def _as_ours(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise _Unsound(f"{what}: {type(error).__name__}: {error}") from error


def _judged(error: BaseException) -> dict[str, str]:
    """The class of a failure, and a line on it."""
    if isinstance(error, _Unsound):
        return {"reason": "checks", "detail": str(error)[:MOST_DETAIL]}
    if isinstance(error, ProgramEnded):
        if error.__cause__ is None:
            return {"reason": "exited", "detail": str(error)[:MOST_DETAIL]}
        error = error.__cause__
    detail = f"{type(error).__name__}: {error}"[:MOST_DETAIL].removesuffix(": ")
    if not getattr(error, "from_program", False):
        reason = "wrong" if isinstance(error, AssertionError) else "exception"
        if reason == "wrong":
            detail = f"{detail} at: {_failing_line(error)}"[:MOST_DETAIL]
    else:
        kinds = {MemoryError: "memory", PermissionError: "forbidden", SyntaxError: "syntax"}
        found = [reason for kind, reason in kinds.items() if isinstance(error, kind)]
        reason = "exited" if isinstance(error, SystemExit) else (found or ["exception"])[0]
    return {"reason": reason, "detail": detail}


def _failing_line(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)]
    lines = [frame.lineno for frame in frames if frame.filename == "<checks>"]
    return f"line {lines[-1]} of the checks" if lines else "the checks"


def _execute(source: str) -> dict[str, Any]:
    """The namespace of the program after it ran as __main__, as `python -c` would run it."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(source, FILE_NAME, "exec"), module.__dict__)
    return module.__dict__


def _described(error: BaseException) -> dict[str, Any]:
    """An exception as names: whoever reads it builds one of Python's own."""
    try:
        message = str(error)[:MOST_DETAIL]
    except Exception:
        message = ""
    bases = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    return {"type": type(error).__name__[:100], "bases": bases, "message": message}


def _exception(description: Any) -> BaseException:
    """One of Python's own exceptions, marked as the program's; never a class the program made."""
    name, message, bases = "", "", []
    if isinstance(description, dict):
        name, message = str(description.get("type")), str(description.get("message"))
        bases = [base for base in description.get("bases") or [] if isinstance(base, str)]
    found = [vars(builtins).get(base) for base in bases]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, BaseException)]
    kind = kinds[0] if kinds else RuntimeError
    try:
        error = kind(message if name == kind.__name__ else f"{name}: {message}")
    except TypeError:  # the Unicode errors want five arguments
        error = ValueError(f"{name}: {message}")
    error.from_program = True  # type: ignore[attr-defined]
    return error


def _tell(error: BaseException) -> None:
    """The traceback on stderr, without our own frames."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    with contextlib.suppress(BaseException):
        _flush()
        traceback.print_exception(type(error), error, trace)
        _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
