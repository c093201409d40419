"""doctor.py: it finds what is there, says what is missing, and how to mend it."""

import builtins
import json
import os
import shutil
import socket
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from nanochat.cli import doctor
from nanochat.cli.doctor import (
    Config,
    Finding,
    examine,
    run,
    usable_cores,
    usable_memory_bytes,
)
from nanochat.cli.main import main
from nanochat.common.errors import ConfigError


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_everything_is_looked_at(home: Path) -> None:
    found = by_name(list(examine(home, free_port())))
    assert list(found) == [
        *["nanochat", "python", "system", "cpu", "memory", "home", "disk", "port"],
        *["packages", "torch", "devices", "compiler", "arithmetic", "choice"],
    ]
    assert "GFLOP/s in float32" in found["arithmetic"].fact
    assert all(finding.remedy for finding in found.values() if finding.status != "ok")


def test_lines_and_exit_code(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Config(port=free_port())) == 0
    out = capsys.readouterr().out
    assert f"{home} can be written to" in out
    assert "This machine is ready" in out


def test_json_is_one_object_on_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--port", str(free_port())]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["ok"] is True
    assert answer["findings"][0]["name"] == "nanochat"


def test_a_home_that_cannot_be_written_is_a_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_torch", lambda: iter(()))
    place = Path("/proc/nanochat")  # nobody can write there, not even root
    if not Path("/proc").exists():
        pytest.skip("needs /proc")
    assert run(Config(home=place)) == 1
    out = capsys.readouterr().out
    assert "fail  home         /proc/nanochat cannot be written to" in out
    assert "pass --home DIR or set NANOCHAT_HOME" in out
    assert "1 of 9 findings need mending" in out


def test_a_port_in_use_is_a_warning() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        finding = doctor._port(server.getsockname()[1])
    assert finding.status == "warn"
    assert "pass another --port" in finding.remedy


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="port is 0, expected 1 to 65535"):
        Config(port=0)


def test_little_memory_and_little_disk_are_warnings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "LITTLE_MEMORY_BYTES", 1 << 60)
    monkeypatch.setattr(doctor, "LITTLE_DISK_BYTES", 1 << 60)
    for finding in (doctor._memory(), doctor._disk(tmp_path / "not" / "yet")):
        assert finding.status == "warn"
        assert finding.remedy


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "tiktoken":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    failed, ok = doctor._packages()
    assert (failed.status, failed.fact) == ("fail", "tiktoken is not installed")
    assert "tyro 1.0" in ok.fact


def test_torch_that_cannot_be_imported_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_torch(name: str, *args: object, **kwargs: object) -> object:
        if name == "torch":
            raise ImportError("libgomp.so.1: cannot open shared object file")
        return real_import(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", no_torch)
    (finding,) = doctor._torch()
    assert finding.status == "fail"
    assert "libgomp.so.1" in finding.fact


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    assert doctor._devices().status == "warn"
    assert doctor._compiler().fact.endswith("long runs are compiled")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "none needed" in doctor._compiler().fact
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert doctor._devices().fact.startswith("MPS")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({}, None),
    ],
)
def test_cores_are_those_of_the_container(
    files: dict[str, str], cores: int | None, tmp_path: Path
) -> None:
    write(tmp_path, files)
    assert usable_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


def test_memory_is_that_of_the_container(tmp_path: Path) -> None:
    everything = usable_memory_bytes(tmp_path)
    assert everything > 1 << 28
    write(tmp_path, {"memory.max": "max"})
    assert usable_memory_bytes(tmp_path) == everything
    write(tmp_path, {"memory.max": "1048576"})
    assert usable_memory_bytes(tmp_path) == 1 << 20


def test_the_processor_is_named_with_what_matters(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16\n"
    )
    fact = doctor._cpu(tmp_path).fact
    assert fact.endswith("cores of Some CPU, avx2, avx512_bf16, amx_bf16")


def test_a_mac_is_asked_by_sysctl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Answer:
        stdout = "Apple M3\n"

    monkeypatch.setattr(doctor.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *args, **kwargs: Answer)
    assert doctor._cpu(tmp_path).fact.endswith("cores of Apple M3")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
