"""Sums of files: what is remembered, and what is not believed."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from nanochat.corpus import sums
from nanochat.corpus.files import corpus_fingerprint
from nanochat.corpus.sums import KnownSums

pytestmark = pytest.mark.req("FR-034", "EC-7")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read to be hashed."""
    told: list[str] = []
    hash_it = sums.sha256_of_file

    def noted(path: Path) -> str:
        told.append(path.name)
        return hash_it(path)

    monkeypatch.setattr(sums, "sha256_of_file", noted)
    monkeypatch.setattr(sums, "LARGE_BYTES", 4)
    return told


def aged(path: Path, content: bytes, age_s: float = 60.0) -> Path:
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_file_is_hashed_once(hashed: list[str], tmp_path: Path) -> None:
    file, place = aged(tmp_path / "large", b"12345"), tmp_path / "home/data/sums.json"
    for _ in range(3):
        with KnownSums(place) as known:
            for _ in range(2):
                assert known.sha256(file) == hashlib.sha256(b"12345").hexdigest()
    assert hashed == ["large"]


def test_a_file_that_changed_is_hashed_again(hashed: list[str], tmp_path: Path) -> None:
    file, place = tmp_path / "large", tmp_path / "sums.json"
    for content, age_s in ((b"12345", 60.0), (b"54321", 50.0), (b"123456", 50.0)):
        aged(file, content, age_s)
        with KnownSums(place) as known:
            assert known.sha256(file) == hashlib.sha256(content).hexdigest()
    assert len(hashed) == 3


def test_what_has_just_changed_is_not_believed(hashed: list[str], tmp_path: Path) -> None:
    """A second change in the same tick of the clock would not show."""
    file, place = tmp_path / "large", tmp_path / "sums.json"
    for content in (b"12345", b"54321"):
        aged(file, content, 0.0)
        with KnownSums(place) as known:
            assert known.sha256(file) == hashlib.sha256(content).hexdigest()
    assert len(hashed) == 2 and not place.exists()


def test_small_files_and_broken_memories(hashed: list[str], tmp_path: Path) -> None:
    small, large = aged(tmp_path / "small", b"1"), aged(tmp_path / "large", b"12345")
    place = tmp_path / "sums.json"
    for content in ("no JSON", "[1]", '{"x": 1}'):
        place.write_text(content)
        with KnownSums(place) as known:
            assert corpus_fingerprint([small, large], known.sha256) == corpus_fingerprint(
                [small, large]
            )
    assert hashed == ["small", "large"] * 3


def test_a_home_that_cannot_be_written_is_no_fault(hashed: list[str], tmp_path: Path) -> None:
    file = aged(tmp_path / "large", b"12345")
    (tmp_path / "a file").touch()
    with KnownSums(tmp_path / "a file" / "sums.json") as known:
        assert known.sha256(file) == hashlib.sha256(b"12345").hexdigest()
