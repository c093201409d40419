"""device.py: what is chosen, and what is measured where no data sheet says it."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanochat.common import device as module
from nanochat.common.device import (
    best_device,
    compute_dtype,
    cpu_flags,
    find_compiler,
    keep_freed_memory,
    machine_name,
    peak_flops,
    peak_memory_bytes,
    total_memory_bytes,
)
from nanochat.common.errors import ConfigError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def has(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
@pytest.mark.req("FR-063", "FR-064")
def test_the_fastest_kind_is_chosen(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, cuda=cuda, mps=mps)
    assert best_device() == torch.device(expected)
    assert best_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "tpu", ""])
def test_a_device_that_is_not_here_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, cuda=False, mps=False)
    with pytest.raises(ConfigError, match="is not usable here: expected one of cpu"):
        best_device(name)


def test_bfloat16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"avx2"}))
    assert compute_dtype(CPU) == torch.float32
    monkeypatch.setattr(module, "cpu_flags", lambda: frozenset({"avx2", "amx_bf16"}))
    assert compute_dtype(CPU) == torch.bfloat16
    assert compute_dtype(CPU, "float32") == torch.float32
    assert compute_dtype(torch.device("mps")) == torch.float32
    assert compute_dtype(torch.device("mps"), "bfloat16") == torch.bfloat16
    for capability, expected in (((7, 5), torch.float32), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, it=capability: it)
        assert compute_dtype(CUDA) == expected


def test_flags_are_those_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = "processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    (tmp_path / "cpuinfo").write_text(lines)
    cpu_flags.cache_clear()
    for name, expected in (("cpuinfo", {"fpu", "avx512_bf16"}), ("absent", set())):
        monkeypatch.setattr(module, "Path", lambda _, name=name: tmp_path / name)
        assert cpu_flags() == expected
        cpu_flags.cache_clear()


def test_the_compiler_is_cxx_or_a_known_one_or_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None
    for name in ("clang++", "g++", "mycc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("CXX", "mycc")
        assert find_compiler() == str(tmp_path / name)


def test_peaks_come_from_data_sheets_or_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = peak_flops(CPU, torch.float32)
    assert 1e8 < measured < 1e14
    assert peak_flops(CPU, torch.float32) == measured  # measured once
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 PCIe")
    assert peak_flops(CUDA, torch.bfloat16) == 756e12
    assert peak_flops(CUDA, torch.float32) == 378e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "something new")
    monkeypatch.setattr(module, "_measured_flops", lambda device, dtype: 1e12)
    assert peak_flops(CUDA, torch.bfloat16) == 1e12


def test_memory_in_use_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    used, total = peak_memory_bytes(CPU), total_memory_bytes(CPU)
    assert 10_000_000 < used < total
    block = b"x" * (used + 50_000_000)  # more than ever before
    assert peak_memory_bytes(CPU) > used
    del block
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 123)
    properties = SimpleNamespace(total_memory=456)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert (peak_memory_bytes(CUDA), total_memory_bytes(CUDA)) == (123, 456)


def test_a_mac_counts_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "platform", "darwin")
    monkeypatch.setattr(module.resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=789))
    assert peak_memory_bytes(CPU) == 789


def test_machines_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{torch.get_num_threads()} threads" in machine_name(CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    assert machine_name(CUDA) == "NVIDIA H200"


def test_memory_is_counted_in_bytes_and_from_nothing() -> None:
    program = (
        "import torch; from nanochat.common.device import peak_memory_bytes as peak\n"
        "before = peak(torch.device('cpu')); x = b'x' * 300_000_000\n"
        "print(peak(torch.device('cpu')) - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 250e6 < int(done.stdout) < 400e6


@pytest.mark.parametrize(
    ("platform", "library", "kept"),
    [("linux", "libc.so.6", True), ("linux", "no.so", False), ("darwin", "", False)],
)
def test_freed_memory_is_kept_where_glibc_can(
    platform: str, library: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[int] = []

    class Glibc:
        def mallopt(self, option: int, value: int) -> int:
            options.append(option)
            return 1

    def load(name: str) -> Glibc:
        if library != name:
            raise OSError("no such library")
        return Glibc()

    monkeypatch.setattr(module.ctypes, "CDLL", load)
    monkeypatch.setattr(module.sys, "platform", platform)
    keep_freed_memory.cache_clear()
    assert keep_freed_memory() is kept
    assert options == ([-3, -1, -2] if kept else [])
    keep_freed_memory.cache_clear()
