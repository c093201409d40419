"""What passes between a program, its checks and its watcher, and how an ending is read."""

import dataclasses
import os
import sys
import threading
from typing import Any

import pytest

from nanochat.common.sandbox import (
    child,
    frames,
    plain,
)
from nanochat.common.sandbox.child import Checks, ProgramEnded
from nanochat.common.sandbox.ending import Process, outcome_of, printable, report_of
from nanochat.common.sandbox.limits import Outcome

pytestmark = pytest.mark.req("FR-040")


# ------------------------------------------------------------------------- messages


def test_messages_pass_whole() -> None:
    read_end, write_end = os.pipe()
    frames.write_json(write_end, {"a": [1, "\u00e4"]})
    frames.write_frame(write_end, b"")
    assert frames.read_json(read_end) == {"a": [1, "\u00e4"]}
    assert frames.read_frame(read_end) == b""
    os.write(write_end, b"\0\0\0\5abc")
    os.close(write_end)
    assert frames.read_frame(read_end) is None  # cut off
    assert frames.read_json(read_end) is None
    os.close(read_end)


def test_a_message_too_long_is_not_read() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="a message of 4294967295 bytes, expected at most"):
        frames.read_frame(read_end)
    with pytest.raises(ValueError, match="expected at most"):
        frames.write_frame(write_end, bytes(frames.MOST_BYTES + 1))
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        frames.write_frame(write_end, b"x")
    os.close(write_end)


class Sly(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


def test_values_arrive_as_pythons_own() -> None:
    for value in (Sly(3), [Sly(3)], {"a": Sly(3)}, {Sly(3)}, (Sly(3),)):
        again = plain.decode(plain.encode(value))
        assert again != 4 and "Sly" not in repr(again)
        assert type(again) in (int, list, dict, set, tuple)
    assert type(plain.decode(plain.encode(Sly(3)))) is int
    assert list(plain.decode(plain.encode(iter([1, 2])))) == [1, 2]
    opaque = plain.decode(plain.encode(object()))
    assert isinstance(opaque, plain.Opaque) and opaque != object() and opaque.type_name == "object"
    assert repr(opaque) == "<object, which is not plain data>"


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b'{"a": 1}', b'{"int": 1}', b'{"int": "x"}', b'{"set": [[]]}', b'{"dict": [1]}',
     b'{"dict": [[[], 1]]}', b'{"tuple": 1}', b'{"bytes": "x"}', b'{"complex": []}',
     b'{"range": ["a"]}', b'{"set": [], "list": []}', b"9" * 5000, b"\xff",
     b'{"complex": [1e999, 9' + b"9" * 400 + b"]}"],
)  # fmt: skip
def test_what_is_no_answer_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        plain.decode(text)


def test_a_value_nested_too_deep_is_refused() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RecursionError):
        plain.encode(deep)
    with pytest.raises(RecursionError):
        plain.decode(b"[" * 100_000 + b"]" * 100_000)


# ------------------------------------------------------------------------- children, in process


def test_names_are_found_inside_functions() -> None:
    code = compile("def f():\n    return [g(x) for x in h]\nclass A:\n    y = i", "x", "exec")
    assert {"g", "h", "i", "f", "A"} <= child.names_loaded(code)


def converse(source: str, checks: Checks) -> tuple[dict[str, str], str]:
    """What the checks report, and the verdict: both halves without processes or walls."""
    to_program, from_program, report, verdict = (os.pipe() for _ in range(4))

    def serve() -> None:
        child.answer(source, to_program[0], from_program[1], os.open(os.devnull, os.O_WRONLY))
        os.close(from_program[1])  # as its end would

    main_module, serving = sys.modules["__main__"], threading.Thread(target=serve)
    serving.start()
    child.check(checks, child.Asked(to_program[1], from_program[0]), report[1], verdict[1])
    os.close(to_program[1])
    serving.join()
    sys.modules["__main__"] = main_module
    os.close(verdict[1])
    try:
        return frames.read_json(report[0]), os.read(verdict[0], 100).decode()
    finally:
        for descriptor in (to_program[0], from_program[0], *report, verdict[0]):
            os.close(descriptor)


@pytest.mark.parametrize(
    ("source", "tests", "reason"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2", "passed"),
        ("def f(x): return given(x)", "assert f(1) == given(1)", "exception"),
        ("def f(x): return x", "assert f(1) == given(0)", "passed"),
        ("def f(x): return x", "assert f(1) == 2", "wrong"),
        ("def f(x): return x.y", "f(1)", "exception"),
        ("def f(x): raise UnicodeDecodeError('utf-8', b'', 0, 1, 'no')", "f(1)", "exception"),
        ("def f(x): raise MemoryError", "f(1)", "memory"),
        ("def f(x): raise PermissionError", "f(1)", "forbidden"),
        ("def f(x): raise SystemExit", "f(1)", "exited"),
        ("def f(x): raise SystemExit", "try:\n    f(1)\nexcept:\n    pass", "exited"),
        ("def f(x): raise SystemExit", "try:\n    f(1)\nexcept:\n    f(2)", "exited"),
        ("def f(", "f(1)", "syntax"),
        ("raise SystemExit", "f(1)", "exited"),
        ("g = 1", "f(1)", "exception"),
        ("def f(x): return x", "f(", "checks"),
    ],
)
def test_checks_ask_and_the_program_answers(source: str, tests: str, reason: str) -> None:
    prelude = "def given(x): return x + 1"
    checks = Checks(tests=tests, entry_point="f", prelude=prelude, nonce="a nonce")
    report, verdict = converse(source, checks)
    assert report["reason"] == reason, report
    assert verdict == ("a nonce" if reason == "passed" else "")


@pytest.mark.parametrize("said", [b"", b"[]", b'{"ready": 1}', b'{"raised": 1}', b"{}"])
def test_a_program_that_says_something_else_has_not_passed(said: bytes) -> None:
    answers = os.pipe()
    frames.write_frame(answers[1], said)
    os.close(answers[1])
    questions = os.open(os.devnull, os.O_WRONLY)
    asked = child.Asked(questions, answers[0])
    try:
        with pytest.raises((ProgramEnded, ValueError)):
            asked.names()
            asked.function("f")(1)
            raise AssertionError("it was answered")
        if asked.ended:
            with pytest.raises(ProgramEnded):
                asked.function("f")(1)
    finally:
        os.close(questions)
        os.close(answers[0])


def test_a_program_reports_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    for source, code, end in (
        ("x = 1", 0, "finished"),
        ("raise SystemExit(3)", 3, "exited"),
        ("raise SystemExit('no')", 1, "exited"),
        ("1 / 0", 1, "raised"),
    ):
        read_end, write_end = os.pipe()
        assert child.run(source, write_end) == code
        assert frames.read_json(read_end)["end"] == end
        os.close(read_end)
        os.close(write_end)


def ended(wait_status: int, report: bytes = b"", **more: Any) -> Process:
    written = {"stdout": bytearray(), "stderr": bytearray(b"\xff"), "report": bytearray(report)}
    return Process(1, {}, {}, 0.0, written, ending=(wait_status, 0.5, 1), **more)


def test_an_ending_is_read_with_care() -> None:
    """A report may be anything: the program can write to its pipe."""
    for report in (b"", b"1234", b"1234[]", b"1234{", b"1234" + b"[" * 100_000, b"\xff" * 99):
        assert report_of(ended(0, report)) == {}
        assert outcome_of(ended(0, report)).status == "exited"
    assert outcome_of(ended(0, b'1234{"end": "finished"}')).status == "finished"
    assert outcome_of(ended(256, b'1234{"end": "finished"}')).status == "exited"
    assert outcome_of(ended(0, b'1234{"end": {"a": 1}, "detail": [1]}')).status == "exited"
    assert outcome_of(ended(9)).detail == "CPU time ran out (SIGKILL)"
    assert outcome_of(ended(31)).status == "forbidden"
    assert outcome_of(ended(40)).detail == "died of SIGRT_6" or outcome_of(ended(40))
    assert outcome_of(ended(9, stopped="disk")).status == "disk"
    assert outcome_of(ended(9, stopped="finished")).status == "finished"
    assert outcome_of(ended(0)).stderr == "\ufffd"


def test_half_a_character_can_be_printed() -> None:
    assert printable("a\ud800\u00e4") == "a?\u00e4"


def test_an_outcome_is_read_back() -> None:
    outcome = Outcome(status="raised", detail="x", exit_code=1)
    assert Outcome.from_json(dataclasses.asdict(outcome)) == outcome
    with pytest.raises(ValueError, match="status 'well'"):
        Outcome.from_json({"status": "well"})
    with pytest.raises(TypeError):
        Outcome.from_json({"status": "raised", "more": 1})
