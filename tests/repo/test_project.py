"""pyproject.toml, Makefile and CI agree with the code and with each other."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import nanochat
from nanochat.cli import doctor
from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "pyproject.toml").read_text()
PROJECT: dict[str, Any] = tomllib.loads(TEXT)["project"]
COMES_WITH = {
    "markdown_it": "rich",
    "prometheus_client": "prometheus-client",
    "pydantic_core": "pydantic",
    "starlette": "fastapi",
}
THROUGH_ANOTHER = {"httptools"}  # uvicorn's module for it is imported
# Of an extra: a model of Hugging Face's is examined, an s3:// address read, a corpus prepared on
# several machines, where it is there.
OPTIONAL = {"fsspec", "ray", "transformers"}
PEERS = {"llama_cpp"}  # measured beside us where a user has them, in a process of their own


def names(requirements: list[str]) -> list[str]:
    return [re.split(r"[<>=\[]", requirement)[0] for requirement in requirements]


def imported_by_the_package() -> set[str]:
    found = set()
    for path in (REPOSITORY / "nanochat").rglob("*.py"):
        if path.parent.name == "hf":  # travels with exported models and is run by transformers
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    third_party = found - set(sys.stdlib_module_names) - {"nanochat", "_typeshed"} - PEERS
    assert third_party >= OPTIONAL
    return {COMES_WITH.get(name, name) for name in third_party - OPTIONAL} | THROUGH_ANOTHER


@pytest.mark.req("FR-059", "FR-076")
def test_dependencies_are_what_is_imported() -> None:
    assert set(names(PROJECT["dependencies"])) == imported_by_the_package()


def test_every_dependency_has_a_lower_bound_and_a_reason() -> None:
    extras = PROJECT["optional-dependencies"]
    requirements = PROJECT["dependencies"] + extras["dev"] + extras["cluster"]
    for requirement in requirements:
        assert ">=" in requirement
        assert re.search(rf'"{re.escape(requirement)}",\s+# \w', TEXT), requirement


def test_torch_is_bounded_alike_everywhere() -> None:
    (bound,) = [line for line in PROJECT["dependencies"] if line.startswith("torch")]
    assert f"TORCH='{bound}'" in (REPOSITORY / "scripts" / "setup").read_text()


def test_doctor_looks_for_every_package() -> None:
    assert set(doctor.PACKAGES) == set(names(PROJECT["dependencies"])) - {"torch"}


def test_the_command_is_ours() -> None:
    assert PROJECT["scripts"] == {"nanochat": "nanochat.cli.main:main"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", nanochat.__version__)


@pytest.mark.req("SC-006", "FR-057", "FR-073", "FR-074")
def test_warnings_are_errors_and_the_tools_are_strict() -> None:
    tools = tomllib.loads(TEXT)["tool"]
    assert tools["pytest"]["ini_options"]["filterwarnings"][0] == "error"
    assert tools["pytest"]["ini_options"]["xfail_strict"] is True
    assert tools["mypy"]["strict"] is True
    assert tools["coverage"]["report"]["fail_under"] >= 95
    assert {"E", "F", "B", "RUF100"} <= set(tools["ruff"]["lint"]["select"])


def test_every_make_target_is_explained_and_phony() -> None:
    text = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.+)$", text, re.MULTILINE)[1].split())  # type: ignore[index]
    assert targets == phony
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout
    assert set(re.findall(r"^make ([\w-]+)", shown, re.MULTILINE)) == targets - {"help", "dev"}


@pytest.mark.req("FR-069")
def test_ci_runs_what_the_readme_says() -> None:
    run = REPOSITORY / ".ci" / "run"
    assert run.stat().st_mode & 0o111
    assert run.read_text().rstrip().endswith("exec make test")
    assert (REPOSITORY / "scripts" / "setup").stat().st_mode & 0o111


@pytest.mark.req("FR-077")
def test_every_room_has_tests() -> None:
    rooms = {path.name for path in (REPOSITORY / "nanochat").iterdir() if is_room(path)}
    tested = {path.name for path in (REPOSITORY / "tests").iterdir() if path.is_dir()}
    assert rooms - tested == set()


def is_room(path: Path) -> bool:
    return path.is_dir() and any(file.stem != "__init__" for file in path.glob("*.py"))
