"""Every public name -> what is wrong with it.   in: nanochat/*.py, .coverage   out: a list
who calls: scripts/check.py, tests/repo/test_scripts.py; --list prints every name

A public name stands in a module's __all__, or is a public method of a class that does.  It has to
have a docstring and to be executed by a test: a line of its body, as the coverage of the last whole
test run has it.  Of what has no code of its own (an exception, a tuple, a method that does nothing)
it is a line that calls it, or its name in a test.
"""

import ast
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PublicName", "main", "names_called", "problems", "public_names"]

ROOT = Path(__file__).resolve().parent.parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class PublicName:
    """One name, where it stands, and which lines are its body."""

    module: str
    name: str
    kind: str
    """function, class, protocol, method or value."""
    lines: range
    """Its statements without the docstring; of a value, its definition."""
    has_docstring: bool


def public_names(source: str, module: str) -> list[PublicName]:
    """The public names a module defines, in the order of its __all__, methods after their class."""
    tree = ast.parse(source)
    found: dict[str, list[PublicName]] = {}
    for node in tree.body:
        if isinstance(node, Function):
            found[node.name] = [_definition(node, module, node.name, "function")]
        elif isinstance(node, ast.ClassDef):
            is_protocol = any(ast.unparse(base).startswith("Protocol") for base in node.bases)
            kind = "protocol" if is_protocol else "class"
            methods = [] if is_protocol else _methods(node, module)
            found[node.name] = [_definition(node, module, node.name, kind), *methods]
        else:
            for name in _assigned(node):
                lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
                found[name] = [PublicName(module, name, "value", lines, True)]
    return [entry for name in _exported(tree) for entry in found.get(name, [])]


def names_called(source: str, lines_run: set[int]) -> set[str]:
    """What is called by name, bare or after a dot, on the lines of a module that were run."""
    return {
        ast.unparse(node.func).rpartition(".")[2]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and node.lineno in lines_run
    }


def problems(
    names: list[PublicName], lines_run: Mapping[str, set[int]], mentioned: Collection[str]
) -> Iterator[str]:
    """One line for every name without a docstring, and for every name no test executes.

    `mentioned` are the words that count for what has no code of its own.
    """
    for entry in names:
        where = f"{entry.module}.{entry.name} ({entry.kind})"
        if not entry.has_docstring:
            yield f"{where} has no docstring"
        is_run = entry.kind == "protocol" or bool(
            lines_run.get(entry.module, set()) & set(entry.lines)
        )
        if not entry.lines and entry.kind != "protocol":
            is_run = entry.name.rpartition(".")[2] in mentioned
        if not is_run:
            yield f"{where} is executed by no test"


def main(argv: Sequence[str] = ()) -> int:
    """Prints what is wrong and how many names there are; 1 when anything is.

    With --list, every public name and its kind instead.
    """
    sources = {_module(path): path for path in sorted((ROOT / "nanochat").rglob("*.py"))}
    names = [
        name for module, path in sources.items() for name in public_names(path.read_text(), module)
    ]
    if "--list" in argv:
        print("\n".join(f"{name.module}.{name.name} ({name.kind})" for name in names))
        return 0
    lines_run = _lines_run(sources)
    mentioned = set[str]()
    for module, path in sources.items():
        mentioned |= names_called(path.read_text(), lines_run[module])
    for path in sorted((ROOT / "tests").rglob("*.py")):
        mentioned |= set(re.findall(r"\w+", path.read_text()))
    found = list(problems(names, lines_run, mentioned))
    told = f"{len(names):,} public names, {len(found)} problems"
    print("\n".join([*found, f"{told}; all of them: python scripts/public_names.py --list"]))
    return 1 if found else 0


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _lines_run(sources: Mapping[str, Path]) -> dict[str, set[int]]:
    """By module, as the last whole test run has it."""
    from coverage import CoverageData

    data = CoverageData(str(ROOT / ".coverage"))
    data.read()
    return {module: set(data.lines(str(path)) or ()) for module, path in sources.items()}


def _definition(node: Function | ast.ClassDef, module: str, name: str, kind: str) -> PublicName:
    body = node.body
    if isinstance(node, ast.ClassDef):  # its fields run on import; its methods say that it is used
        body = [
            statement
            for method in node.body
            if isinstance(method, Function)
            for statement in method.body
        ]
    lines = [
        line
        for statement in body
        if not _is_text(statement)
        for line in range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    ]
    span = range(lines[0], lines[-1] + 1) if lines else range(0)
    return PublicName(module, name, kind, span, ast.get_docstring(node) is not None)


def _methods(node: ast.ClassDef, module: str) -> Iterator[PublicName]:
    for method in node.body:
        if isinstance(method, Function) and not method.name.startswith("_"):
            yield _definition(method, module, f"{node.name}.{method.name}", "method")


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _assigned(node: ast.stmt) -> Iterator[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    for target in targets:
        if isinstance(target, ast.Name):
            yield target.id


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if "__all__" in _assigned(node) and isinstance(node, ast.Assign):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
