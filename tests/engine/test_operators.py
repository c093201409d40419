"""Every operator computes the product it stands for; what is broken is left out and said so."""

import json
import logging
from pathlib import Path

import pytest
import torch

from nanochat.common.device import cpu_flags
from nanochat.engine import choice
from nanochat.engine.choice import OperatorChooser, error_of, machine_key, seconds_of
from nanochat.engine.operators import (
    BUCKETS,
    CANDIDATES,
    TOLERANCES,
    Candidate,
    Linear,
    bucket_of,
    dequantized,
    plain,
)

ROLES = ("plain", "expand", "contract")
ALL = [(format, candidate) for format, some in CANDIDATES.items() for candidate in some]
pytestmark = pytest.mark.req("FR-066")


def matrix(rows: int = 96, columns: int = 128) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 0.05


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("format", "candidate"), ALL, ids=lambda x: getattr(x, "name", x))
def test_products(format, candidate: Candidate, role) -> None:
    """Against the weights as stored; this processor may lack what one of them needs."""
    if not candidate.is_usable(cpu_flags()):
        pytest.skip("not here: this processor would overflow")
    try:
        multiply = candidate.build(matrix(), role)
        error = error_of(multiply, dequantized(matrix(), format), role, candidate.most_rows)
    except (RuntimeError, AttributeError) as problem:
        pytest.skip(f"not here: {str(problem)[:60]}")
    assert error <= TOLERANCES[format]


def test_stored_weights_are_close() -> None:
    for format, most in (("float32", 0.0), ("bfloat16", 0.005), ("int8", 0.01), ("int4", 0.12)):
        away = (dequantized(matrix(), format) - matrix()).std() / matrix().std()
        assert float(away) <= most


def test_what_has_no_whole_groups_stays_bfloat16(caplog: pytest.LogCaptureFixture) -> None:
    weight, x = matrix(32, 40), torch.randn(2, 40)
    linear = OperatorChooser("int4", None).make(weight, "plain")
    assert torch.allclose(linear(x).float(), x @ weight.T, atol=0.02)


def test_channels_of_very_different_sizes() -> None:
    """Judged each by its own size, a right operator stays right."""
    weight = matrix() * torch.logspace(-3, 3, 96)[:, None]
    for format, candidate in ALL[:4]:
        try:
            multiply = candidate.build(weight, "plain")
        except RuntimeError:  # this processor lacks what it needs
            continue
        error = error_of(multiply, dequantized(weight, format))
        assert error <= TOLERANCES[format]
    nearly = plain(weight * torch.linspace(1, 1.2, 96)[:, None], "plain", torch.float32)
    assert error_of(nearly, weight) > 0.1


def test_rows_of_zeros_and_rows_of_outliers() -> None:
    """A row of zeros stays one; an outlier in one row leaves another row alone."""
    for format, candidate in ALL:
        if candidate.most_rows == 1 or format != "int8":
            continue
        multiply = candidate.build(matrix(), "plain")
        x = torch.randn(3, 128, generator=torch.Generator().manual_seed(2))
        x[1] = 0
        before = multiply(x).clone()
        assert not before[1].any()
        x[2, 5] = 1e6
        assert torch.equal(multiply(x)[:2], before[:2])


def test_one_row_alone() -> None:
    (one_row,) = (c for c in CANDIDATES["int8"] if c.most_rows == 1)
    with pytest.raises(AssertionError, match="2 rows share no scale"):
        one_row.build(matrix(), "plain")(torch.ones(2, 128))


def test_buckets() -> None:
    assert [bucket_of(n) for n in (1, 2, 4, 5, 16, 17, 64, 65, 9999)] == [
        0, 1, 1, 2, 2, 3, 3, 4, 4
    ]  # fmt: skip
    weight = matrix()
    linear = Linear((96, 128), tuple(plain(weight * n, "plain", torch.float32) for n in BUCKETS))
    x = torch.ones(3, 128)
    assert torch.allclose(linear(x), 4 * x @ weight.T, atol=1e-4)


@pytest.mark.parametrize("format", CANDIDATES)
def test_the_choice_is_made_once(format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "TIMED_SECONDS", 1e-4)
    monkeypatch.setattr(choice, "TIMED_COPIES", 2)
    weight = matrix(512, 128)
    first = OperatorChooser(format, tmp_path)
    linear = first.make(weight, "plain")
    first.save()
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())
    assert list(kept) == [f"{format} 512x128 plain"] and machine_key() in file.name
    monkeypatch.setattr(choice, "seconds_of", None)  # a second start measures nothing
    second = OperatorChooser(format, tmp_path)
    x = torch.randn(5, 128)
    assert torch.equal(second.make(weight, "plain")(x), linear(x))
    second.save()


def test_what_is_broken_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(weight, role):
        raise RuntimeError("no such operator in this build")

    def lies(weight, role):
        return plain(weight * 1.5, role, torch.float32)

    monkeypatch.setitem(CANDIDATES, "float32", (Candidate("fails", fails), Candidate("lies", lies)))
    caplog.set_level(logging.INFO, "nanochat.engine.choice")
    linear = OperatorChooser("float32", None).make(matrix(), "expand")
    x = torch.randn(4, 128)
    assert torch.allclose(linear(x), (x @ matrix().T).relu(), atol=1e-4)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "operator fails left out: no such operator in this build"
    assert said[1].startswith("operator lies left out: its error is")
    assert said[2] == "float32: no operator works, F.linear does" and len(said) == 3


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"float32 512x128 plain": ["?", "?", "?", "?", "?"]}', '{"x": 1}']
)
def test_a_damaged_cache_is_measured_again(content: str, tmp_path: Path) -> None:
    (tmp_path / f"operators-{machine_key()}.json").write_text(content)
    linear = OperatorChooser("float32", tmp_path).make(matrix(), "plain")
    assert torch.allclose(linear(torch.ones(1, 128)), matrix().sum(1)[None], atol=1e-4)


def test_a_disk_that_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nanochat.engine.choice")
    (tmp_path / "file").write_text("")
    chooser = OperatorChooser("float32", tmp_path / "file" / "cache")
    chooser.make(matrix(), "plain")
    chooser.save()
    assert "is not kept" in caplog.text


def test_seconds() -> None:
    def slow(x: torch.Tensor) -> torch.Tensor:
        return torch.ones(400, 400) @ torch.ones(400, 400)

    times = seconds_of({"slow": [slow], "fast": [lambda x: x]}, torch.ones(1, 1), 0.002)
    assert 0 < times["fast"] < times["slow"]
